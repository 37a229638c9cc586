"""Painting smooth solids on a voxel grid, with edges one voxel wide.

Every solid is a signed distance in mm (negative inside), exact to first order near its surface. A voxel's covered
fraction follows from the distance of its center, so that activity and mu are voxel averages there, while the label is
that of the center. A common low-frequency warp of x and y and a rough field keep outlines from being ellipses.
"""

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator

from data_recipes.grid import Grid

Box = tuple[slice, slice, slice]
_MARGIN_MM = 10.0
_MAX_WARP_MM = 7.0


def smooth_field(rng: np.random.Generator, grid: Grid, knot_mm: float, span_mm: tuple[float, float, float]) -> np.ndarray:
    """A random field of mean 0 and variance near 1 that varies over some `knot_mm`.

    A cubic B-spline with independent normal coefficients. The number of draws depends on `span_mm` alone, so that a
    finer grid sees the same field.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    grid : Grid
        Where to evaluate.
    knot_mm : float
        Distance of the spline's knots in mm.
    span_mm : tuple of float
        Region around the grid's middle that is covered, in mm, at least the grid's extent.

    Returns
    -------
    ndarray
        float32, of the grid's shape.
    """
    counts = [int(np.ceil(span / knot_mm)) + 4 for span in span_mm]
    field = rng.standard_normal(counts).astype(np.float32)
    for axis, (n, center) in enumerate(zip(counts, grid.center_mm, strict=True)):
        at = (grid.axis_mm(axis) - center) / knot_mm + (n - 1) / 2
        first = np.clip(np.floor(at).astype(int) - 1, 0, n - 4)
        u = at - np.floor(at)
        weights = np.stack([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3]) / 6
        # Each spline sum has a variance below one; dividing by its rms over the line restores it.
        weights /= np.sqrt((weights**2).sum(axis=0))
        shape = [1, 1, 1]
        shape[axis] = -1
        w = weights.astype(np.float32).reshape(4, *shape)
        # Sums of four terms in a fixed order instead of a matrix product: the same bits for any thread count.
        field = _add(w[j] * np.take(field, first + j, axis=axis) for j in range(4))
    return field


class Profile:
    """Cross-section of a body part along z: half-widths a and b, center and superellipse exponent, by height in mm."""

    def __init__(self, z_mm: ArrayLike, *, a: ArrayLike, b: ArrayLike, x: ArrayLike = 0.0, y: ArrayLike = 0.0,
                 n: float = 2.0) -> None:  # fmt: skip
        z = np.asarray(z_mm, dtype=float)
        order = np.argsort(z)
        self.z = z[order]
        self.n = n
        self._curves = [
            PchipInterpolator(self.z, np.broadcast_to(np.asarray(values, dtype=float), z.shape)[order])
            for values in (a, b, x, y)
        ]

    def at(self, z_mm: np.ndarray) -> list[np.ndarray]:
        """Half-widths a, b and center x, y in mm at heights `z_mm`, held constant beyond the ends."""
        inside = np.clip(z_mm, self.z[0], self.z[-1])
        return [curve(inside) for curve in self._curves]


class Canvas:
    """SUV, mu and labels under construction.

    Parameters
    ----------
    grid : Grid
        Voxels to paint.
    warp_mm, rough : ndarray
        float32 (2, x, y, z) displacement of x and y in mm, and float32 (x, y, z) of unit variance.
    """

    def __init__(self, grid: Grid, warp_mm: np.ndarray, rough: np.ndarray) -> None:
        self.grid = grid
        x, y, z = (grid.axis_mm(i).astype(np.float32) for i in range(3))
        self.x = x[:, None, None] + np.clip(warp_mm[0], -_MAX_WARP_MM, _MAX_WARP_MM)
        self.y = y[None, :, None] + np.clip(warp_mm[1], -_MAX_WARP_MM, _MAX_WARP_MM)
        self.z = z[None, None, :]
        self.rough = rough
        self.suv = np.zeros(grid.shape, dtype=np.float32)
        self.mu = np.zeros(grid.shape, dtype=np.float32)
        self.labels = np.zeros(grid.shape, dtype=np.uint8)
        self.edge_mm = float(np.prod(grid.spacing_mm) ** (1 / 3))

    def box(self, low_mm: Sequence[float] | np.ndarray, high_mm: Sequence[float] | np.ndarray) -> Box:
        """Voxels between two corners in mm, with room for edge and warp; empty where outside the grid."""
        pad = _MARGIN_MM + self.edge_mm
        slices = []
        for low, high, origin, step, count in zip(
            low_mm, high_mm, self.grid.origin_mm, self.grid.spacing_mm, self.grid.shape, strict=True
        ):
            first = int(np.clip(np.floor((low - pad - origin) / step), 0, count))
            last = int(np.clip(np.ceil((high + pad - origin) / step) + 1, first, count))
            slices.append(slice(first, last))
        return slices[0], slices[1], slices[2]

    def coordinates(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Warped x and y, and z, in mm for a box; they broadcast to its shape."""
        return self.x[box], self.y[box], self.z[:, :, box[2]]

    def ellipsoid(self, box: Box, center: np.ndarray, half: np.ndarray, *, axes: np.ndarray | None = None,
                  n: float = 2.0, rough_mm: float = 0.0) -> np.ndarray:  # fmt: skip
        """Signed distance in mm to a superellipsoid; `axes` holds its unit axes as rows, `n` its exponent."""
        x, y, z = self.coordinates(box)
        local = [x - np.float32(center[0]), y - np.float32(center[1]), z - np.float32(center[2])]
        if axes is not None:
            r = np.asarray(axes, dtype=np.float32)
            local = [r[i, 0] * local[0] + r[i, 1] * local[1] + r[i, 2] * local[2] for i in range(3)]
        widths = np.asarray(half, dtype=np.float32)
        scaled = [np.abs(v) / h for v, h in zip(local, widths, strict=True)]
        distance = _implicit_distance(scaled, widths, n)
        return distance + np.float32(rough_mm) * self.rough[box] if rough_mm else distance

    def tube(self, box: Box, profile: Profile) -> np.ndarray:
        """Signed distance in mm to a body part whose superelliptic cross-section follows `profile` along z."""
        x, y, z = self.coordinates(box)
        heights = z.ravel().astype(float)
        a, b, cx, cy = (v.astype(np.float32)[None, None, :] for v in profile.at(heights))
        across = _implicit_distance([np.abs(x - cx) / a, np.abs(y - cy) / b], [a, b], profile.n)
        beyond = np.maximum(profile.z[0] - heights, heights - profile.z[-1]).astype(np.float32)
        return np.maximum(across, beyond[None, None, :])

    def path(self, box: Box, points: np.ndarray, radii: ArrayLike, rough_mm: float = 0.0) -> np.ndarray:
        """Signed distance in mm to a round-ended tube along `points` (k, 3), with a radius at each of them."""
        shape = tuple(s.stop - s.start for s in box)
        distance = np.full(shape, 1e3, dtype=np.float32)
        radius = np.broadcast_to(np.asarray(radii, dtype=float), len(points))
        for p, q, rp, rq in zip(points[:-1], points[1:], radius[:-1], radius[1:], strict=True):
            reach = max(float(rp), float(rq))
            part = self.box(np.minimum(p, q) - reach, np.maximum(p, q) + reach)
            part = tuple(slice(max(s.start, o.start), max(s.start, o.start, min(s.stop, o.stop)))
                         for s, o in zip(part, box, strict=True))  # fmt: skip
            inner = tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(part, box, strict=True))
            x, y, z = self.coordinates((part[0], part[1], part[2]))
            along = (q - p).astype(np.float32)
            dx, dy, dz = x - np.float32(p[0]), y - np.float32(p[1]), z - np.float32(p[2])
            t = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / max(float(along @ along), 1e-6), 0, 1)
            dx, dy, dz = dx - t * along[0], dy - t * along[1], dz - t * along[2]
            d = np.sqrt(dx * dx + dy * dy + dz * dz) - (np.float32(rp) + t * np.float32(rq - rp))
            np.minimum(distance[inner], d, out=distance[inner])
        return distance + np.float32(rough_mm) * self.rough[box] if rough_mm else distance

    def path_box(self, points: np.ndarray, radius: float) -> Box:
        """The box that holds a path."""
        return self.box(points.min(axis=0) - radius, points.max(axis=0) + radius)

    def covered(self, distance_mm: np.ndarray) -> np.ndarray:
        """Fraction of each voxel inside a surface at `distance_mm` from its center."""
        return np.clip(0.5 - distance_mm / np.float32(self.edge_mm), 0, 1)

    def paint(self, box: Box, distance_mm: np.ndarray, suv: float | np.ndarray, mu_per_cm: float | None,
              label: int | None) -> None:  # fmt: skip
        """Replace what lies inside by `suv`, `mu_per_cm` and `label`; None leaves mu or label as it was."""
        part = self.covered(distance_mm)
        self.suv[box] += part * (np.asarray(suv, dtype=np.float32) - self.suv[box])
        if mu_per_cm is not None:
            self.mu[box] += part * (np.float32(mu_per_cm) - self.mu[box])
        if label is not None:
            self.labels[box][distance_mm <= 0] = label


def _implicit_distance(scaled: Sequence[np.ndarray], half: Sequence[np.ndarray] | np.ndarray, n: float) -> np.ndarray:
    """(rho - 1) / |grad rho| for rho = (sum s**n)**(1/n): the signed distance near the surface rho = 1."""
    if n == 2.0:
        rho = np.sqrt(_add(s * s for s in scaled))
        slope = _add((s / h) ** 2 for s, h in zip(scaled, half, strict=True))
        return (rho - 1) * rho / np.sqrt(slope + np.float32(1e-9))
    m = np.float32(n)
    powers = [np.maximum(s, np.float32(1e-4)) ** (m - 1) for s in scaled]
    rho = _add(p * s for p, s in zip(powers, scaled, strict=True)) ** (1 / m)
    slope = _add((p / h) ** 2 for p, h in zip(powers, half, strict=True))
    return (rho - 1) * rho ** (m - 1) / np.sqrt(slope + np.float32(1e-12))


def _add(terms: Iterable[np.ndarray]) -> np.ndarray:
    """Sum of arrays that broadcast, first to last."""
    return reduce(np.add, terms)


def smooth_union(first: np.ndarray, second: np.ndarray, blend_mm: float) -> np.ndarray:
    """Union of two solids whose crease is filled over `blend_mm`."""
    near = np.maximum(np.float32(blend_mm) - np.abs(first - second), 0)
    return np.minimum(first, second) - near * near / np.float32(4 * blend_mm)
