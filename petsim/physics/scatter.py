"""Single scatter with time of flight, computed for several images at once.

Watson, IEEE Trans Nucl Sci 2000;47:1587, doi 10.1109/23.873012; with TOF: Watson, IEEE Trans Nucl Sci 2007;54:1679,
doi 10.1109/TNS.2007.901227.

Faces of area A at the two ends of a LOR of length L see, of unscattered pairs (rates over the decay density f),

    T = A^2 cos(alpha_A) cos(alpha_B) / (2 pi L^2) q(511)^2 x (attenuated line integral of f),

where q(E) is the share of photons of energy E that are accepted. A pair whose one photon scatters at the point S on its way
to B was emitted between S and A. The lines through A and S fill the solid angle A cos(alpha_AS) / R_AS^2 at S, and each
carries 1/(2 pi) of the decays on it; the share mu dV of the photons that pass S scatters there, and (1/sigma) dsigma/dOmega
A cos(alpha_BS) / R_BS^2 of those goes to B. With those that scatter on their way to A, in units of T per line integral:

    S_AB = L^2 / (cos(alpha_A) cos(alpha_B)) x integral dV mu(S) (1/sigma) dsigma/dOmega
           x cos(alpha_AS) cos(alpha_BS) / (R_AS^2 R_BS^2) x q(E')/q(511) x (I_A + I_B),
    I_A = exp(-int_S^A mu) exp(-int_S^B mu(E')) int_S^A f ds,   I_B likewise.

Hence expected counts are K n (a P + S) with n of `petsim.physics.normalization`. On the cylinder of radius R the first
factor is 4 R^2 / cos(theta)^4. The dimension of S is that of a line integral, Bq/mL mm, since lengths are in mm throughout,
mu in 1/mm included. mu(E') follows the total Klein-Nishina cross section.

TOF positions are positive towards end 2 (B): (path to A - path to B) / 2. A decay at the distance s from S towards A appears
at (R_AS - R_BS) / 2 - s, one towards B at (R_AS - R_BS) / 2 + s.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.special import ndtr

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from petsim.geometry.sinogram import TOF_SIGMAS, SinogramLayout
from petsim.physics import scatter_kernels as kernels
from petsim.physics.photons import (
    ELECTRON_KEV,
    attenuation_ratio,
    klein_nishina_differential,
    klein_nishina_total,
    scattered_energy,
)

POINT_MM, PHI_MM, SUB_BIN_MM, STEP_MM = 32.0, 80.0, 20.0, 15.0
"""Spacings: of scatter points, of detectors around the cylinder, of the TOF positions between which one interpolates, and of
samples along a ray."""

VOXEL_MM = (12.0, 12.0, 8.0)
"""Voxels to which images are averaged: less along z, since scatter from outside depends steeply on how far outside it is."""

AXIAL_MM = (25.0, 60.0)
"""Least and largest spacing of detectors along the cylinder: what comes from outside falls off steeply at the ends."""

LEAST_MU_PER_CM = 0.002
"""Cells with less attenuation than this (air) scatter nothing."""

LEAST_ACCEPTANCE = 1e-3
"""Scattering angles after which photons are accepted less often than this, relative to 511 keV, are left out."""

SHEAR = (0.618034, 0.754878)
"""Shifts of columns of scatter cells: reciprocals of the golden and the plastic number."""

POINTS_AT_ONCE = 16
ANGLES = 1024


@dataclass(frozen=True)
class ScatterTable:
    """Scatter of several images on a coarse grid of detector pairs.

    Parameters
    ----------
    values : ndarray
        float32 (image, phi, difference of phi, tof, z, difference of z) in Bq/mL mm: scatter between the detectors phi and
        phi + difference, at z and z + difference.
    factors : tuple of float
        Of the images.
    first_difference : int
        Steps of phi of the first difference; the first difference of z is minus half their number.
    detector_z_mm : tuple of float
        Axial detector positions from the scanner's center.
    tof_bin_mm : float
        Width of the layout's TOF bins, 0 without TOF.
    radius_mm : float
        Of the cylinder of detectors.
    """

    values: np.ndarray
    factors: tuple[float, ...]
    first_difference: int
    detector_z_mm: tuple[float, ...]
    tof_bin_mm: float
    radius_mm: float

    def at(self, layout: SinogramLayout, views: np.ndarray, image: int = 0, out: np.ndarray | None = None) -> np.ndarray:
        """Scatter of an image in the bins of some views.

        Parameters
        ----------
        layout : SinogramLayout
            That for which the table was made.
        views : ndarray of int
        image : int
        out : ndarray, optional
            Is filled and returned; None makes a new one.

        Returns
        -------
        ndarray
            float32 (views, radial, tof, plane), Bq/mL mm of unscattered annihilations; never negative.
        """
        if (layout.tof_bins, _tof_bin_mm(layout)) != (self.values.shape[3], self.tof_bin_mm):
            raise DataError("the scatter table was made for other TOF bins than the layout's; make it again")
        nodes, fractions, swapped = self._angles(layout, np.asarray(views, np.int64))
        places, parts = _plane_places(layout, self.detector_z_mm, self.values.shape[5])
        out = np.empty((len(views), *layout.shape[1:]), np.float32) if out is None else out
        values = self.values[image].reshape(*self.values.shape[1:4], -1)
        kernels.interpolate(
            values, self.factors[image], nodes, fractions, swapped, self.values.shape[5] - 1, places, parts, out
        )
        return out

    def with_factor(self, factors: tuple[float, ...] | np.ndarray) -> "ScatterTable":
        """The same table with every image multiplied by a factor more; the values are shared."""
        return replace(self, factors=tuple(float(a * b) for a, b in zip(self.factors, factors, strict=True)))

    def mixed(self, other: "ScatterTable", share: float) -> "ScatterTable":
        """1 - `share` of this table and `share` of another of the same layout and subject."""
        values = [
            a * np.float32((1 - share) * f) + b * np.float32(share * g)
            for a, b, f, g in zip(self.values, other.values, self.factors, other.factors, strict=True)
        ]
        return replace(other, values=np.stack(values), factors=(1.0,) * len(values))

    def _angles(self, layout: SinogramLayout, views: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nodes, fractions and order of the ends of the LORs of some views, see `scatter_kernels.interpolate`."""
        phis = self.values.shape[1]
        phi = _group_angles(layout, views.tobytes()) * (phis / (2 * math.pi))
        # The table holds differences up to half a turn.
        swapped = (phi[..., 1] - phi[..., 0]) % phis > phis / 2
        phi[swapped] = phi[swapped][:, ::-1]
        start = np.floor(phi[..., 0])
        end = phi[..., 0] + (phi[..., 1] - phi[..., 0]) % phis
        nodes = np.stack([start, np.floor(end) - start - self.first_difference], axis=-1).astype(np.int32)
        fractions = np.stack([phi[..., 0] - start, end - np.floor(end)], axis=-1)
        return nodes, fractions, swapped


def lor_angles(layout: SinogramLayout, views: np.ndarray) -> np.ndarray:
    """Angles in rad, float64 (views, radial, 2), at which LORs meet the cylinder of radius `scanner.radius_mm`."""
    x1, y1, x2, y2 = np.moveaxis(layout.transaxial_ends(views), -1, 0)
    length = np.hypot(x2 - x1, y2 - y1)
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    along = x1 * ux + y1 * uy
    mx, my = x1 - along * ux, y1 - along * uy
    half = np.sqrt(np.maximum(layout.scanner.radius_mm**2 - mx**2 - my**2, 0.0))
    return np.stack([np.arctan2(my - half * uy, mx - half * ux), np.arctan2(my + half * uy, mx + half * ux)], axis=-1)


@lru_cache(maxsize=1024)
def _group_angles(layout: SinogramLayout, views: bytes) -> np.ndarray:
    """`lor_angles` of a group of views (int64 as bytes): every image and iteration asks for the same groups."""
    return lor_angles(layout, np.frombuffer(views, np.int64))


@lru_cache(maxsize=4)
def _plane_places(layout: SinogramLayout, detector_z: tuple[float, ...], differences: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower nodes in (z, z difference) and fractions of every plane, for ends in order and exchanged."""
    z = np.array(detector_z)
    position = (layout.plane_z_mm() - z[0]) / (z[1] - z[0])
    node = np.clip(np.floor(position).astype(np.int32), 0, len(z) - 2)
    fraction = np.clip(position - node, 0.0, 1.0).astype(np.float32)
    ends = [(0, 1), (1, 0)]
    places = [node[:, a] * differences + (node[:, b] - node[:, a] + differences // 2) for a, b in ends]
    return np.stack(places).astype(np.int32), np.stack([fraction[:, list(e)].T for e in ends])


def _tof_bin_mm(layout: SinogramLayout) -> float:
    return layout.tof_bin_mm if layout.is_tof else 0.0


def single_scatter(layout: SinogramLayout, activity_bqml: np.ndarray, mu_per_cm: np.ndarray, grid: Grid,
                   center_mm: tuple[float, float, float], acceptance: tuple[np.ndarray, np.ndarray], *,
                   point_mm: float = POINT_MM, axial_mm: float | None = None, phi_mm: float = PHI_MM
                   ) -> ScatterTable:  # fmt: skip
    """Single scatter of several images that share a mu-map.

    Images are averaged to voxels of about `VOXEL_MM`. Scatter points are the centers of mass of mu in cells of about
    `point_mm`; every pair of detectors sums over all of them, and every sum holds the whole TOF shape.

    Parameters
    ----------
    layout : SinogramLayout
    activity_bqml : ndarray
        (n, x, y, z); may reach beyond the scanner's ends, and should.
    mu_per_cm : ndarray
        (x, y, z) at 511 keV, likewise.
    grid : Grid
        Of the images.
    center_mm : tuple of float
        The scanner's center in the grid's coordinates.
    acceptance : tuple of ndarray
        Energies [keV], ascending, and the share of photons of that energy that the scanner accepts.
    point_mm, axial_mm, phi_mm : float
        Spacing of scatter points, and of detectors along (None: by the scanner's length) and around the cylinder.

    Returns
    -------
    ScatterTable
        In Bq/mL mm of unscattered annihilations, see the module's docstring.
    """
    radius, length = layout.scanner.radius_mm, layout.scanner.axial_length_mm
    axial_mm = axial_mm or float(np.clip(length / 18, *AXIAL_MM))
    image, origin, voxel = _coarse(activity_bqml, mu_per_cm, grid, center_mm)
    points, scales = _scatter_points(image[..., 0], origin, voxel, point_mm)
    phis = 2 * math.ceil(math.pi * radius / phi_mm)
    angles = np.arange(phis) * (2 * math.pi / phis)
    z = _detector_z(layout, axial_mm)
    reach = _z_reach(layout, z)
    first_difference = _first_difference(layout, phis)
    angular, lowest_cos = _angular(acceptance)
    most_tan = math.sqrt(1 - lowest_cos**2) / max(lowest_cos, 1e-9)

    n, bins, width = len(activity_bqml), layout.tof_bins, _tof_bin_mm(layout)
    subs = max(1, round(width / SUB_BIN_MM))
    longest = float(np.linalg.norm(voxel * image.shape[:3]))
    first, response = _tof_response(layout, math.ceil(longest / STEP_MM) + 1, subs, voxel[:2].mean())
    response = np.repeat(response, n, axis=2)
    lowest, places = int(first[0]), int(first[-1] - first[0] + response.shape[2] // n)

    table = np.zeros((phis, phis // 2 - first_difference + 1, len(z), 2 * reach + 1, bins * n), np.float32)
    rays = np.empty((POINTS_AT_ONCE, phis, kernels.FIELDS, len(z)), np.float32)
    used = np.empty((POINTS_AT_ONCE, phis, len(z)), np.int64)
    forward, backward = (np.empty((POINTS_AT_ONCE, phis, len(z), subs + 1, places, n), np.float32) for _ in range(2))
    for start in range(0, len(points), POINTS_AT_ONCE):
        some, scale = points[start : start + POINTS_AT_ONCE], scales[start : start + POINTS_AT_ONCE]
        kernels.trace(image, origin, voxel, some, angles, z, radius, reach, most_tan, STEP_MM, first, response,
                      lowest, rays, used, forward, backward)  # fmt: skip
        kernels.add_pairs(some, scale, angles, z, radius, reach, first_difference, rays, used, forward, backward, lowest,
                          angular, lowest_cos, 0.5 / width if width else 0.0, table)  # fmt: skip
    table = table.reshape(*table.shape[:4], bins, n)
    values = _finish(table, z, radius, first_difference)
    return ScatterTable(values, (1.0,) * n, first_difference, tuple(z.tolist()), width, radius)


def _coarse(activity: np.ndarray, mu: np.ndarray, grid: Grid, center_mm: tuple[float, float, float]
            ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Block averages (x, y, z, channel) of mu [1/mm] and activities in a border of zeros, first center and voxel in mm."""
    for image in (mu, *activity):
        if image.shape != grid.shape:
            raise DataError(f"image has shape {image.shape}, its grid {grid.shape}; give all on one grid")
    blocks = [max(1, round(size / d)) for size, d in zip(VOXEL_MM, grid.spacing_mm, strict=True)]
    edges = [np.arange(0, n, b) for n, b in zip(grid.shape, blocks, strict=True)]
    channels = -(-(len(activity) + 1) // kernels.LANES) * kernels.LANES
    out = np.zeros((*(len(e) + 2 for e in edges), channels), np.float32)
    for channel, image in enumerate((mu, *activity)):
        total = image
        # The longest rows first, since they are contiguous.
        for axis in (2, 1, 0):
            total = np.add.reduceat(total, edges[axis], axis=axis)
        out[1:-1, 1:-1, 1:-1, channel] = total / np.float32(math.prod(blocks) * (10 if channel == 0 else 1))
    voxel = np.array([b * d for b, d in zip(blocks, grid.spacing_mm, strict=True)])
    origin = np.array(grid.origin_mm) - np.array(grid.spacing_mm) / 2 - np.array(center_mm) - voxel / 2
    for axis in range(3):
        some = np.flatnonzero(np.moveaxis(out, axis, 0).reshape(out.shape[axis], -1).max(axis=1) > 0)
        low, high = (some[0], some[-1]) if len(some) else (1, 1)
        out = np.take(out, np.arange(low - 1, high + 2), axis=axis)
        origin[axis] += (low - 1) * voxel[axis]
    return out, origin, voxel


def _scatter_points(mu: np.ndarray, origin: np.ndarray, voxel: np.ndarray, size_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Scatter points (n, 3) in mm and their mu x volume [mm^2], ordered along z.

    One in every cell's center of mass. Neighboring columns of cells are shifted by irrational fractions, as bricks are laid:
    points in common planes would all miss, or meet, where scatter changes steeply.
    """
    filled = np.nonzero(mu > 0)
    if not len(filled[0]):
        return np.zeros((0, 3)), np.zeros(0)
    weight = mu[filled].astype(np.float64) * voxel.prod()
    places = np.stack([o + d * n for o, d, n in zip(origin, voxel, filled, strict=True)])
    x = np.floor(places[0] / size_mm)
    y = np.floor(places[1] / size_mm + SHEAR[0] * x)
    z = np.floor(places[2] / size_mm + SHEAR[0] * y + SHEAR[1] * x)
    cells = [(c - c.min()).astype(np.int64) for c in (z, y, x)]
    cell = np.ravel_multi_index(cells, [c.max() + 1 for c in cells])
    total = np.bincount(cell, weight)
    kept = total > LEAST_MU_PER_CM / 10 * size_mm**3
    points = np.stack([np.bincount(cell, weight * p)[kept] / total[kept] for p in places], axis=1)
    order = np.argsort(points[:, 2], kind="stable")
    return points[order], total[kept][order]


def _detector_z(layout: SinogramLayout, spacing_mm: float) -> np.ndarray:
    """Axial detector positions from the first to the last ring, at least four."""
    ends = layout.plane_z_mm()
    count = max(4, math.ceil((ends.max() - ends.min()) / spacing_mm) + 1)
    return np.linspace(ends.min(), ends.max(), count)


def _z_reach(layout: SinogramLayout, z: np.ndarray) -> int:
    """Largest difference of two detectors along z between which LORs are interpolated."""
    farthest = np.abs(np.diff(layout.plane_z_mm(), axis=1)).max()
    return min(math.ceil(farthest / (z[1] - z[0]) - 1e-9) + 1, len(z) - 1)


def _first_difference(layout: SinogramLayout, phis: int) -> int:
    """Least difference of two phi indices between which LORs are interpolated."""
    phi = lor_angles(layout, np.arange(layout.views))
    difference = np.abs((phi[..., 1] - phi[..., 0]) % (2 * math.pi) - math.pi).max()
    return max(1, math.floor((math.pi - difference) * phis / (2 * math.pi)) - 3)


def _angular(acceptance: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, float]:
    """Table of `scatter_kernels.add_pairs` by the cosine of the scattering angle, and the lowest cosine that counts."""
    energies, accepted = acceptance
    at_511 = np.interp(ELECTRON_KEV, energies, accepted)
    if not at_511 > 0:
        raise DataError("the acceptance table holds nothing at 511 keV; check the energy window")

    def relative(cos: np.ndarray) -> np.ndarray:
        return np.interp(scattered_energy(ELECTRON_KEV, cos), energies, accepted) / at_511

    cos = np.linspace(-1, 1, 4001)
    lowest = float(cos[max(np.argmax(relative(cos) > LEAST_ACCEPTANCE) - 1, 0)])
    cos = lowest + (1 - lowest) * (np.arange(ANGLES) + 0.5) / ANGLES
    total = klein_nishina_total(ELECTRON_KEV)
    strength = [klein_nishina_differential(ELECTRON_KEV, c) / total for c in cos] * relative(cos)
    ratio = [attenuation_ratio(scattered_energy(ELECTRON_KEV, c)) for c in cos]
    return np.stack([strength, ratio], axis=1).astype(np.float32), lowest


def _tof_response(layout: SinogramLayout, samples: int, subs: int, voxel_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Share of a sample on a ray in each TOF bin: first bin (sample,), response (sample, sub, bin).

    Bin m of sample j for a point at sub / subs of a bin: the TOF kernel over the bin, j + 1/2 steps away from the point. The
    kernel's variance is less by what interpolation between sub-bins (h^2 / 6 on average) and in voxels of edge d (d^2 / 4,
    averaging included) adds, but not by more than three quarters.
    """
    if not layout.is_tof:
        # All in one bin, which as a sub-bin further on is the next.
        return np.zeros(samples, np.int64), np.broadcast_to(np.eye(2, dtype=np.float32), (samples, 2, 2))
    width = layout.tof_bin_mm
    added = (width / subs) ** 2 / 6 + voxel_mm**2 / 4
    sigma = math.sqrt(max(layout.tof_sigma_mm**2 - added, layout.tof_sigma_mm**2 / 4))
    distance = (np.arange(samples) + 0.5) * STEP_MM
    first = np.floor((distance - TOF_SIGMAS * sigma) / width + 0.5).astype(np.int64)
    count = math.ceil((2 * TOF_SIGMAS * sigma + width) / width) + 1
    lower_edge = (first[:, None, None] + np.arange(count + 1) - 0.5) * width
    away = (lower_edge - np.arange(subs + 1)[:, None] * (width / subs) - distance[:, None, None]) / sigma
    cut = ndtr(TOF_SIGMAS)
    below = (ndtr(np.clip(away, -TOF_SIGMAS, TOF_SIGMAS)) - (1 - cut)) / (2 * cut - 1)
    return first, np.diff(below, axis=-1).astype(np.float32)


def _finish(table: np.ndarray, z: np.ndarray, radius: float, first_difference: int) -> np.ndarray:
    """The table times 4 R^2 / cos(theta)^4, images first, with the differences beyond half a turn that cubics need."""
    phis, stored, rings, differences, bins, n = table.shape
    reach = differences // 2
    chord = 2 * radius * np.sin((np.arange(stored) + first_difference) * (math.pi / phis))
    rise = (np.arange(differences) - reach) * (z[1] - z[0])
    tilt = (1 + (rise / chord[:, None]) ** 2) ** 2 * (4 * radius**2)
    table *= tilt[:, None, :, None, None].astype(np.float32)
    out = np.zeros((n, phis, stored + 3, bins, rings, differences), np.float32)
    out[:, :, :stored] = table.transpose(5, 0, 1, 4, 2, 3)
    fill_mirrored(out)
    return out


def fill_mirrored(values: np.ndarray) -> None:
    """Set the last three differences of `ScatterTable.values`, beyond half a turn, from their pairs in reverse."""
    phis, stored, rings, differences = (values.shape[axis] for axis in (1, 2, 4, 5))
    reach = differences // 2
    first, second = np.meshgrid(np.arange(rings), np.arange(differences) - reach, indexing="ij")
    inside = (first + second >= 0) & (first + second < rings)
    for extra in range(1, 4):
        # The pair (i, i + phis/2 + extra) is the pair (i + phis/2 + extra, i + phis) seen against the LOR.
        mirrored = np.roll(values[:, :, stored - 4 - extra], -(phis // 2 + extra), axis=1)[:, :, ::-1]
        values[:, :, stored - 4 + extra][..., inside] = mirrored[..., (first + second)[inside], reach - second[inside]]
