"""Moving an image from one voxel grid to another."""

import numpy as np

from data_recipes.errors import DataError
from data_recipes.grid import Grid


def resample(values: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Linear interpolation on a finer grid, tent-weighted means on a coarser one, zero outside the source.

    The kernel along each axis is a tent as wide as the larger of both voxel sizes, so that nothing is aliased when a
    fine CT goes to a coarse PET grid, and uniform regions keep their value up to the edge of the source.

    Parameters
    ----------
    values : ndarray
        (x, y, z) on `source`.
    source, target : Grid
        Both in the same patient coordinates (RAS+ mm).

    Returns
    -------
    ndarray
        float32 (x, y, z) on `target`.

    Raises
    ------
    DataError
        When no voxel center of `target` lies inside `source`.
    """
    out = np.asarray(values, np.float32)
    for axis in range(3):
        weights = _weights(source, target, axis)
        if not weights.any():
            raise DataError(
                f"the two images do not overlap: along {'xyz'[axis]} one covers {_span(source, axis)} mm and the other "
                f"{_span(target, axis)} mm; give images of the same scan in the same frame of reference"
            )
        out = np.moveaxis(np.tensordot(weights, out, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out)


def _inside_axis(source: Grid, target: Grid, axis: int) -> np.ndarray:
    low, high = _edges(source, axis)
    at = target.axis_mm(axis)
    return (at >= low) & (at <= high)


def _weights(source: Grid, target: Grid, axis: int) -> np.ndarray:
    width = max(source.spacing_mm[axis], target.spacing_mm[axis])
    at = target.axis_mm(axis)
    points = source.axis_mm(axis)
    # The outer half voxel has a center on one side only: there the nearest value holds.
    clamped = np.clip(at, points[0], points[-1])
    weights = np.clip(1.0 - np.abs(clamped[:, None] - points[None, :]) / width, 0.0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    weights[~_inside_axis(source, target, axis)] = 0.0
    return weights.astype(np.float32)


def _edges(grid: Grid, axis: int) -> tuple[float, float]:
    half = grid.spacing_mm[axis] / 2
    at = grid.axis_mm(axis)
    return float(at[0] - half), float(at[-1] + half)


def _span(grid: Grid, axis: int) -> str:
    low, high = _edges(grid, axis)
    return f"{low:.0f} to {high:.0f}"
