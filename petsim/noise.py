"""Noise measures on images."""

import numpy as np
from scipy import ndimage
from scipy.signal import fftconvolve

from data_recipes.errors import DataError
from data_recipes.grid import Grid

SPHERE_MM = 30.0
"""Diameter of the sphere in which the coefficient of variation is measured, the usual clinical liver sphere."""
CUT_OFF = "the body is cut off at the sides of the image"
TRUNCATED = f"none: {CUT_OFF}"
"""Instead of a place where noise is measured: what lies beyond neither scattered nor counted."""
NO_FIGURE = f"{CUT_OFF}, which serves no figure of noise"
"""Why a subject is refused."""


def body_mask(image: np.ndarray) -> np.ndarray:
    """Voxels of the body: where the image, averaged over 5 x 5 x 5 voxels, exceeds a fifth of its mean above zero.

    Parameters
    ----------
    image : ndarray
        (x, y, z).

    Returns
    -------
    ndarray
        bool.

    Raises
    ------
    DataError
        Nothing is positive.
    """
    smooth = ndimage.uniform_filter(np.asarray(image, np.float32), 5)
    positive = smooth[smooth > 0]
    if not positive.size:
        raise DataError("the volume holds nothing above zero; give a PET volume")
    return smooth > 0.2 * positive.mean(dtype=np.float64)


def sphere(grid: Grid, diameter_mm: float = SPHERE_MM) -> np.ndarray:
    """bool array of the voxels of a centered sphere, odd in every axis."""
    half = [int(diameter_mm / 2 / d) for d in grid.spacing_mm]
    axes = [np.arange(-h, h + 1) * d for h, d in zip(half, grid.spacing_mm, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 <= (diameter_mm / 2) ** 2


def liver_sphere(labels: np.ndarray, liver: int, grid: Grid) -> tuple[slice, slice, slice] | None:
    """Place of the sphere deepest inside the liver, or None when the label is absent or touches the edge there."""
    if not np.any(labels == liver):
        return None
    depth = np.asarray(ndimage.distance_transform_edt(labels == liver, sampling=grid.spacing_mm))
    return _box(np.unravel_index(int(np.argmax(depth)), grid.shape), grid)


def uniform_sphere(image: np.ndarray, grid: Grid) -> tuple[slice, slice, slice] | None:
    """Place of the most uniform sphere whose mean lies between 1 and 4 times that of the body, mostly in the liver.

    For images without labels. The body is where the image exceeds a tenth of the mean of its nonzero voxels.
    """
    kernel = sphere(grid).astype(np.float32)
    kernel /= kernel.sum()
    mean = fftconvolve(image, kernel, mode="same")
    spread = np.sqrt(np.maximum(fftconvolve(image.astype(np.float32) ** 2, kernel, mode="same") - mean**2, 0))
    body_mean = image[image > 0.1 * image[image > 0].mean()].mean() if (image > 0).any() else 0.0
    eligible = (mean > body_mean) & (mean < 4 * body_mean)
    if not eligible.any():
        return None
    cov = np.where(eligible, spread / np.maximum(mean, 1e-12), np.inf)
    return _box(np.unravel_index(int(np.argmin(cov)), grid.shape), grid)


def noise_region(
    image: np.ndarray, labels: np.ndarray | None, names: dict[int, str], grid: Grid
) -> tuple[tuple[slice, slice, slice] | None, str]:
    """Where noise is measured, and how that place was found."""
    liver = next((k for k, v in names.items() if v == "liver"), None)
    if labels is not None and liver is not None:
        box = liver_sphere(labels, liver, grid)
        if box is not None:
            return box, "30 mm sphere deepest in the labeled liver"
    return uniform_sphere(image, grid), "most uniform 30 mm sphere of above-average uptake (liver not labeled)"


def _box(center: tuple, grid: Grid) -> tuple[slice, slice, slice] | None:
    shape = sphere(grid).shape
    box = tuple(slice(int(c) - n // 2, int(c) + n // 2 + 1) for c, n in zip(center, shape, strict=True))
    if any(b.start < 0 or b.stop > n for b, n in zip(box, grid.shape, strict=True)):
        return None
    return box[0], box[1], box[2]


def coefficient_of_variation(image: np.ndarray, box: tuple[slice, slice, slice], grid: Grid) -> float:
    """Standard deviation over mean of the voxels of the sphere in `box`."""
    values = image[box][sphere(grid)].astype(np.float64)
    # One voxel has no spread.
    return float(values.std() / values.mean()) if values.size > 1 and values.mean() > 0 else float("nan")
