"""Images from one axis-aligned grid to another."""

import numpy as np
from scipy import sparse

from data_recipes.errors import DataError
from data_recipes.grid import Grid


def overlap_weights(source: Grid, target: Grid, axis: int) -> np.ndarray:
    """Weights (target voxels, source voxels) along one axis, float32.

    Each target voxel averages the source, taken as constant in its voxels, over a window as wide as the larger of both
    voxels. On equal grids that is the identity, on a coarser grid it conserves the total, and on a finer grid it is
    linear interpolation; nothing is aliased. Where the window leaves the source, the part inside counts, so that uniform
    regions keep their value up to the edge. A target voxel whose center lies outside the source is zero.
    """
    wide = max(source.spacing_mm[axis], target.spacing_mm[axis])
    centers = target.axis_mm(axis)[:, None]
    lower = source.axis_mm(axis)[None, :] - source.spacing_mm[axis] / 2
    upper = lower + source.spacing_mm[axis]
    overlap = np.maximum(0.0, np.minimum(upper, centers + wide / 2) - np.maximum(lower, centers - wide / 2))
    inside = (centers >= lower[:, :1]) & (centers <= upper[:, -1:])
    return (inside * overlap / np.maximum(overlap.sum(axis=1, keepdims=True), 1e-9)).astype(np.float32)


def resample(image: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Image on another grid, see `overlap_weights`.

    Parameters
    ----------
    image : ndarray
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
    if source == target:
        return np.array(image, np.float32, order="C")
    weights = [overlap_weights(source, target, axis) for axis in range(3)]
    for axis, w in enumerate(weights):
        if not w.any():
            raise DataError(
                f"the two images do not overlap: along {'xyz'[axis]} one covers {_span(source, axis)} mm and the other "
                f"{_span(target, axis)} mm; give images of the same scan in the same frame of reference"
            )
    out = np.asarray(image, np.float32)
    # A few sources each, added in their order: dense products would differ with the number of BLAS threads.
    for axis in (2, 0, 1):
        lines = np.moveaxis(out, axis, 0)
        mixed = sparse.csr_array(weights[axis]) @ lines.reshape(len(lines), -1)
        out = np.moveaxis(mixed.reshape(-1, *lines.shape[1:]), 0, axis)
    return np.ascontiguousarray(out)


def _span(grid: Grid, axis: int) -> str:
    at, half = grid.axis_mm(axis), grid.spacing_mm[axis] / 2
    return f"{at[0] - half:.0f} to {at[-1] + half:.0f}"


def resample_labels(labels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Labels on another grid: those of the source voxel that holds each target center, 0 outside."""
    out = labels
    for axis in range(3):
        index = np.floor((target.axis_mm(axis) - source.origin_mm[axis]) / source.spacing_mm[axis] + 0.5).astype(int)
        inside = (index >= 0) & (index < labels.shape[axis])
        out = np.take(out, np.clip(index, 0, labels.shape[axis] - 1), axis=axis)
        shape = [1, 1, 1]
        shape[axis] = -1
        out = out * inside.reshape(shape).astype(labels.dtype)
    return np.ascontiguousarray(out)


def crop_axially(array: np.ndarray | None, grid: Grid, low_mm: float, high_mm: float) -> tuple[np.ndarray | None, Grid]:
    """Slices whose centers lie between two axial positions, and their grid."""
    z = grid.axis_mm(2)
    keep = np.flatnonzero((z >= low_mm) & (z <= high_mm))
    first, last = int(keep[0]), int(keep[-1]) + 1
    part = Grid((*grid.shape[:2], last - first), grid.spacing_mm, (*grid.origin_mm[:2], float(z[first])))
    return (None if array is None else np.ascontiguousarray(array[:, :, first:last])), part
