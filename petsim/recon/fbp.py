"""Filtered back projection of corrected data: rebinned to slices, or in three dimensions with reprojection (3DRP).

Bins are first interpolated to parallel projections: views at even angles (neighboring radial bins of a view lie half a view
apart) and even radial steps (bins of a ring draw together outwards). Then

- `fbp_2d`: single-slice rebinning (Daube-Witherspoon and Muehllehner 1987): a line counts for the slice of its middle, with
  its length in that slice; ramp filter.
- `fbp_3d`: Kinahan and Rogers 1989, doi 10.1109/23.34585. Oblique projections lack what left the scanner at its ends; it
  is taken from the forward projection of an image of the direct planes. Then all of them are filtered after Colsher 1980,
  doi 10.1088/0031-9155/25/1/009: with Theta the steepest angle, and psi that of a frequency nu with the axis,

      H(nu) = |nu| / (2 arcsin(sin(Theta) / sin(psi))),      |nu| / pi where psi < Theta,

  and the image is the sum over half the circle of angles and all tilts theta of filtered projections times cos(theta).

The filters reach to the highest frequency of the samples, without a window. (Formulas were derived anew; dois are
from memory, not verified.)
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numba as nb
import numpy as np
import scipy.fft
from scipy.interpolate import CubicSpline

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from petsim.geometry.sinogram import SinogramLayout
from petsim.projectors.sinogram import SinogramProjector

fft: Any = scipy.fft
"""Its own types are too loose for pyright."""

_FINER = 4
"""Frequencies of Colsher's filter are sampled so much finer before it is cut to the size of the data: sampled at their
spacing, it would shift the image's mean."""


_DENSER, _DENSER_AXIALLY = 4, 2
"""Filtered projections are sampled so much denser (by their spectrum) that back projection can interpolate linearly."""


def fbp_2d(layout: SinogramLayout, data: np.ndarray, grid: Grid, center_mm: tuple[float, float, float] | None = None,
           max_ring_difference: float = math.inf) -> np.ndarray:  # fmt: skip
    """Rebin to slices, filter, back project.

    Parameters
    ----------
    layout : SinogramLayout
        Of a round scanner with rings at one pitch.
    data : ndarray
        (view, radial, plane): line integrals, image unit x mm, all corrections made, TOF bins summed, no gaps
        (`fill_gaps`).
    grid : Grid
    center_mm : tuple of float, optional
        Position of the scanner's center in the grid's coordinates; None: the middle of the grid.
    max_ring_difference : float
        Segments of larger mean ring difference are left out.

    Returns
    -------
    ndarray
        float32 (x, y, z).

    Raises
    ------
    DataError
        A scanner or data that do not fit.
    """
    space = _Space(layout)
    space.check(data)
    slices, planes = _rebinned(space, data, max_ring_difference)
    n = len(space.s_mm)
    size = fft.next_fast_len(2 * n, real=True)
    # The ramp up to the highest frequency, sampled in space (Kak and Slaney 1988, section 3.3).
    at = np.minimum(np.arange(size), size - np.arange(size))
    kernel = np.where(at % 2 == 1, -1 / np.maximum(math.pi * at, 1) ** 2, 0.0)
    kernel[0] = 0.25
    response = (fft.rfft(kernel).real / space.step_mm).astype(np.float32)
    spectrum = fft.rfft(slices, size, axis=1) * (_DENSER * response[:, None])
    filtered = fft.irfft(spectrum, _DENSER * size, axis=1)[:, : _DENSER * (n - 1) + 1]
    image = np.zeros(grid.shape, np.float32)
    _back(space, filtered * (math.pi / layout.views), planes, np.zeros(n), grid, center_mm, image)
    return image


def fbp_3d(layout: SinogramLayout, data: np.ndarray, grid: Grid, center_mm: tuple[float, float, float] | None = None,
           projector: Callable[..., SinogramProjector] = SinogramProjector) -> np.ndarray:  # fmt: skip
    """Complete by reprojection, filter, back project.

    Parameters
    ----------
    layout, data, grid, center_mm
        As for `fbp_2d`. Radial bins must hold all activity.
    projector : callable
        Makes the projector that completes the data.

    Returns
    -------
    ndarray
        float32 (x, y, z).
    """
    space = _Space(layout)
    space.check(data)
    wide, starts = _wider(layout, float(space.s_mm[-1]), space.radius_mm)
    pitch, middle = layout.ring_pitch_mm, float(layout.ring_z_mm().mean())
    whole = Grid.centered((len(space.s_mm), len(space.s_mm), 2 * layout.rings), (space.step_mm, space.step_mm, pitch / 2))
    direct = fbp_2d(layout, data, whole, (0.0, 0.0, -middle), 1 if layout.span == 1 else 0)
    operator = projector(wide, whole, (0.0, 0.0, 0.0), float(space.s_mm[-1]), tof=False)
    completed = operator.forward(direct)[:, :, 0]
    for seg, start in zip(layout.segments(), starts, strict=True):
        completed[..., start : start + seg.planes] = data[..., seg.start : seg.start + seg.planes]
    steepest = math.atan((layout.max_ring_difference + 0.5) * pitch / (2 * space.radius_mm))
    image = np.zeros(grid.shape, np.float32)
    for seg in wide.segments():
        low, tilt, high = (math.atan(d * pitch / (2 * space.radius_mm))
                           for d in (seg.lowest - 0.5, seg.ring_difference, seg.highest + 0.5))  # fmt: skip
        planes, step = slice(seg.start, seg.start + seg.planes), seg.step * pitch / 2
        part = space.parallel(completed[..., planes])
        filtered = _colsher(part, space.step_mm, step * math.cos(tilt), tilt, steepest)
        filtered *= math.pi / layout.views * (high - low) * math.cos(tilt)
        first = float(wide.plane_z_mm()[seg.start].mean()) + middle
        _back(
            space,
            filtered,
            (first, step / _DENSER_AXIALLY),
            seg.ring_difference * pitch / space.chord_mm(),
            grid,
            center_mm,
            image,
        )
    return image


def fill_gaps(data: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Interpolate what no crystal pair recorded.

    Parameters
    ----------
    data : ndarray
        (view, radial, plane).
    known : ndarray
        bool, the same shape. Bins are filled linearly along the radial axis between known ones; planes without any
        along the planes.

    Returns
    -------
    ndarray
        float32.
    """
    out = np.where(known, data, 0).astype(np.float32)
    radials, planes = np.arange(data.shape[1]), np.arange(data.shape[2])
    for v, view in enumerate(known):
        some = view.any(axis=0)
        for p in np.flatnonzero(some & ~view.all(axis=0)):
            out[v, :, p] = np.interp(radials, radials[view[:, p]], out[v, view[:, p], p])
        if some.any() and not some.all():
            for r in radials:
                out[v, r] = np.interp(planes, planes[some], out[v, r, some])
    return out


class _Space:
    """Even angles and radial positions of a layout, and how its bins are interpolated to them."""

    def __init__(self, layout: SinogramLayout) -> None:
        self.layout = layout
        ends = layout.transaxial_ends(np.arange(layout.views)).reshape(layout.views, layout.radials, 2, 2)
        (x1, y1), (dx, dy) = np.moveaxis(ends[:, :, 0], -1, 0), np.moveaxis(ends[:, :, 1] - ends[:, :, 0], -1, 0)
        radius = np.hypot(*np.moveaxis(ends, -1, 0))
        z = layout.plane_z_mm().mean(axis=1)
        place = (z - z.min()) / (layout.ring_pitch_mm / 2)
        if np.ptp(radius) > 1e-3 * radius.mean() or np.abs(place - np.round(place)).max() > 1e-3:
            raise DataError(
                f"filtered back projection needs a round scanner with rings at one pitch; {layout.scanner.name} has flat "
                "sides or axial gaps (even_rings=True places rings evenly)"
            )
        self.radius_mm, self.step_mm = float(radius.mean()), layout.radial_pitch_mm
        self.half_rings, self.first_z_mm = np.round(place).astype(int), float(z.min())
        angle = np.unwrap(np.arctan2(dy, dx), axis=0)
        turn = math.copysign(math.pi / layout.views, float(angle[-1, 0] - angle[0, 0]))
        views, middle = np.arange(layout.views), angle[0, layout.radials // 2]
        self.angle = middle + turn * views
        # In a view of an even ring, neighboring radial bins lie half a view apart; of an odd ring, positions alternate.
        offset = (np.mod(angle[0] - middle + math.pi / 2, math.pi) - math.pi / 2) / turn
        self._shift = np.where(np.abs(offset) < 1e-6, 0, -offset)
        s = (x1 * dy - y1 * dx) / np.hypot(dx, dy)
        self._way = slice(None, None, 1 if s[0, -1] > s[0, 0] else -1)
        self._s = s[:, self._way]
        count = int(min(-self._s[:, 0].max(), self._s[:, -1].min()) / self.step_mm)
        self.s_mm = self.step_mm * np.arange(-count, count + 1)

    def check(self, data: np.ndarray) -> None:
        """Refuse data of another shape, or with values that are no numbers."""
        wanted = (self.layout.views, self.layout.radials, self.layout.planes)
        if data.shape != wanted:
            raise DataError(f"data have shape {data.shape}, the layout (view, radial, plane) {wanted}; sum TOF bins first")
        if not np.isfinite(data).all():
            raise DataError("data hold values that are no numbers; see petsim.recon.fbp.fill_gaps")

    def parallel(self, data: np.ndarray) -> np.ndarray:
        """Data (view, radial, n) at even angles and radial positions, interpolated by cubics."""
        out = np.empty((len(data), len(self.s_mm), data.shape[2]), np.float32)
        low = np.floor(self._shift)
        weights = _cubic((self._shift - low)[:, None]).astype(np.float32)
        column, last = np.arange(data.shape[1]), len(data) - 1
        for k, row in enumerate(out):
            near = np.clip(k + low.astype(int) + np.arange(-1, 3)[:, None], 0, last)
            view = (weights * data[near, column]).sum(axis=0)
            row[:] = CubicSpline(self._s[k], view[self._way])(self.s_mm)
        return out

    def chord_mm(self) -> np.ndarray:
        """Transaxial length of the lines of a radial position."""
        return 2 * np.sqrt(self.radius_mm**2 - self.s_mm**2)


def _cubic(share: np.ndarray) -> np.ndarray:
    """Lagrange's weights of the samples at -1, 0, 1 and 2 for the value at `share` between 0 and 1."""
    x = share
    return np.stack([
        -x * (x - 1) * (x - 2) / 6, (x + 1) * (x - 1) * (x - 2) / 2, -(x + 1) * x * (x - 2) / 2, (x + 1) * x * (x - 1) / 6
    ])  # fmt: skip


def _rebinned(space: _Space, data: np.ndarray, max_ring_difference: float) -> tuple[np.ndarray, tuple[float, float]]:
    """Parallel projections of slices, and z of the first and the distance of slices."""
    layout = space.layout
    sums = np.zeros((len(space.angle), len(space.s_mm), space.half_rings.max() + 1), np.float32)
    counts = np.zeros(sums.shape[2], int)
    for seg in layout.segments():
        if abs(seg.ring_difference) <= max_ring_difference:
            planes = slice(seg.start, seg.start + seg.planes)
            length = np.hypot(1, seg.ring_difference * layout.ring_pitch_mm / space.chord_mm())[:, None]
            sums[..., space.half_rings[planes]] += space.parallel(data[..., planes]) / length
            counts[space.half_rings[planes]] += 1
    step = 1 if counts.all() else 2
    return sums[..., ::step] / counts[::step], (space.first_z_mm, step * layout.ring_pitch_mm / 2)


def _wider(layout: SinogramLayout, reach_mm: float, radius_mm: float) -> tuple[SinogramLayout, list[int]]:
    """A layout with more rings at both ends, and the place of each segment's first plane in it.

    Its lines of the largest ring difference reach every voxel within the radius `reach_mm` at the ends of the scanner.
    """
    climb = layout.max_ring_difference / (2 * math.sqrt(radius_mm**2 - reach_mm**2))
    more = math.ceil(reach_mm * climb) + 1
    rings = layout.rings + 2 * more
    scanner = replace(
        layout.scanner, rings=rings, ring_spacing_mm=layout.ring_pitch_mm, axial_block=rings, axial_block_real=rings,
        axial_gap_mm=0.0, max_ring_difference=layout.max_ring_difference,
    )  # fmt: skip
    wide = replace(layout, scanner=scanner, merge_axial=1, merge_tof=0, tof_bins=1, even_rings=False)
    return wide, [seg.start + 2 * more // seg.step for seg in wide.segments()]


def _colsher(data: np.ndarray, s_mm: float, u_mm: float, tilt: float, steepest: float) -> np.ndarray:
    """Projections (view, s, u) of one tilt, filtered (see the module's docstring) and denser."""
    size = [fft.next_fast_len(2 * n, real=True) for n in data.shape[1:]]
    nu_s = fft.rfftfreq(_FINER * size[0], s_mm)[:, None]
    nu_u = fft.fftfreq(_FINER * size[1], u_mm)[None, :]
    nu = np.hypot(nu_s, nu_u)
    # The mean over the cell around zero frequency, about.
    nu[0, 0] = nu[1, 0] / 4
    sine = np.sqrt(np.maximum(1 - (nu_u * math.cos(tilt) / nu) ** 2, 1e-12))
    response = nu / (2 * np.arcsin(np.minimum(math.sin(steepest) / sine, 1)))
    kernel = fft.irfftn(response, [_FINER * n for n in size[::-1]], axes=(1, 0))
    near = [np.r_[: -(-n // 2), _FINER * n - n // 2 : _FINER * n] for n in size]
    response = _DENSER * _DENSER_AXIALLY * fft.rfftn(kernel[np.ix_(*near)], axes=(1, 0)).real
    rows, planes = (k * (n - 1) + 1 for k, n in zip((_DENSER, _DENSER_AXIALLY), data.shape[1:], strict=True))
    dense = np.zeros((size[0] // 2 + 1, _DENSER_AXIALLY * size[1]), complex)
    half = size[1] // 2
    out = np.empty((len(data), rows, planes), np.float32)
    for filtered, view in zip(out, data, strict=True):
        spectrum = fft.rfftn(view, size[::-1], axes=(1, 0)) * response
        dense[:, :half], dense[:, -half:] = spectrum[:, :half], spectrum[:, -half:]
        filtered[:] = fft.irfftn(dense, (dense.shape[1], _DENSER * size[0]), axes=(1, 0))[:rows, :planes]
    return out


def _back(space: _Space, data: np.ndarray, planes: tuple[float, float], slope: np.ndarray, grid: Grid,
          center_mm: tuple[float, float, float] | None, image: np.ndarray) -> None:  # fmt: skip
    """Add the sum over views of data (view, s, plane), interpolated at the lines through every voxel.

    `planes` are z of the middles of the first plane's lines and the planes' distance, `slope` the rise of lines by s.
    """
    dense = np.linspace(0, len(slope) - 1, data.shape[1])
    slope = np.interp(dense, np.arange(len(slope)), slope)
    center = grid.center_mm if center_mm is None else center_mm
    x, y, z = (grid.axis_mm(a) - center[a] for a in range(3))
    place = np.array([space.s_mm[0], space.step_mm / _DENSER, *planes])
    _back_project(data.astype(np.float32), np.cos(space.angle), np.sin(space.angle), place, slope, x, y, z, image)


@nb.njit(cache=True, nogil=True, parallel=True, fastmath={"contract", "nsz", "arcp"})
def _back_project(data, cosine, sine, place, slope, x, y, z, image):
    views, radials, planes = data.shape
    s0, ds, z0, dz = place
    step = (z[1] - z[0]) / dz if z.size > 1 else 0.0
    for i in nb.prange(x.size):
        line = np.empty(planes + 1, np.float32)
        for j in range(y.size):
            row = image[i, j]
            for v in range(views):
                s = (x[i] * sine[v] - y[j] * cosine[v] - s0) / ds
                n = int(np.floor(s))
                if n < 0 or n >= radials - 1:
                    continue
                f = np.float32(s - n)
                low, high = data[v, n], data[v, n + 1]
                for p in range(planes):
                    line[p] = low[p] + f * (high[p] - low[p])
                line[planes] = line[planes - 1]
                along = x[i] * cosine[v] + y[j] * sine[v]
                first = (z[0] - along * (slope[n] + f * (slope[n + 1] - slope[n])) - z0) / dz
                for k in range(z.size):
                    at = first + k * step
                    # Planes reach half their distance beyond the outermost ones.
                    if -0.5 <= at <= planes - 0.5:
                        at = max(at, 0.0)
                        p = int(at)
                        w = np.float32(at - p)
                        row[k] += line[p] + w * (line[p + 1] - line[p])
