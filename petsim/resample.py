"""Images from one axis-aligned grid to another."""

import numpy as np

from data_recipes.grid import Grid


def overlap_weights(source: Grid, target: Grid, axis: int) -> np.ndarray:
    """Weights (target voxels, source voxels) along one axis.

    Each target voxel averages the source, taken as constant in its voxels, over a window as wide as the larger of both
    voxels. On equal grids that is the identity, on a coarser grid it conserves the total, and on a finer grid it is
    linear interpolation. Outside the source there is nothing.
    """
    wide = max(source.spacing_mm[axis], target.spacing_mm[axis])
    centers = target.axis_mm(axis)[:, None]
    lower = source.axis_mm(axis)[None, :] - source.spacing_mm[axis] / 2
    low = np.maximum(lower, centers - wide / 2)
    high = np.minimum(lower + source.spacing_mm[axis], centers + wide / 2)
    return np.maximum(0.0, high - low) / wide


def resample(image: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Image on another grid, see `overlap_weights`.

    Parameters
    ----------
    image : ndarray
        (x, y, z) on `source`.
    source, target : Grid

    Returns
    -------
    ndarray
        float32 (x, y, z) on `target`.
    """
    if source == target:
        return np.ascontiguousarray(image, np.float32)
    x, y, z = (overlap_weights(source, target, a).astype(np.float32) for a in range(3))
    out = np.asarray(image, np.float32) @ z.T
    out = np.einsum("ax,xyz->ayz", x, out, optimize=True)
    return np.ascontiguousarray(np.einsum("by,ayz->abz", y, out, optimize=True))


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
