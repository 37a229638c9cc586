"""Texture of an image: whether it looks sharp, beside what that is worth."""

import numpy as np
from scipy import ndimage

from data_recipes.grid import Grid
from petsim.noise import sphere

LOCAL = 3
"""Voxels across which a local standard deviation is taken, along each axis."""


def local_sd(image: np.ndarray, box: tuple[slice, slice, slice], grid: Grid) -> float:
    """Root mean local variance, over 3 x 3 x 3 voxels, in the sphere of a box, in the image's unit.

    Parameters
    ----------
    image : ndarray
        float32 (x, y, z).
    box : tuple of slice
        Place of a `petsim.noise.sphere`.
    grid : Grid
    """
    wide = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
    values = image[wide].astype(np.float64)
    values -= values.mean()
    variance = ndimage.uniform_filter(values**2, LOCAL) - ndimage.uniform_filter(values, LOCAL) ** 2
    inside = tuple(slice(part.start - outer.start, part.stop - outer.start) for part, outer in zip(box, wide, strict=True))
    return float(np.sqrt(max(0.0, variance[inside][sphere(grid)].mean())))


def edge_sharpness(
    image: np.ndarray, reference: np.ndarray, lesions: np.ndarray, spacing_mm: tuple[float, float, float]
) -> float:
    """Slope of an image across the edges of lesions over that of a reference, along the latter's direction.

    Along a direction that is given, noise of mean zero adds nothing on average, as it does to the size of a gradient: a
    noisy image is not sharper for its noise.

    Parameters
    ----------
    image, reference : ndarray
        float32 (x, y, z), in the same unit; the reference free of noise.
    lesions : ndarray
        Integers (x, y, z), 0 outside lesions.
    spacing_mm : tuple of float

    Returns
    -------
    float
        1 when edges are as steep as in the reference; NaN without edges.
    """
    inside = lesions > 0
    edge = np.asarray(ndimage.binary_dilation(inside), bool) & ~np.asarray(ndimage.binary_erosion(inside), bool)
    own, true = (
        np.stack([np.gradient(a.astype(np.float64), d, axis=axis)[edge] for axis, d in enumerate(spacing_mm)])
        for a in (image, reference)
    )
    steepness = np.sqrt((true**2).sum(axis=0))
    if not steepness.sum() > 0:
        return float("nan")
    along = (own * true).sum(axis=0)[steepness > 0] / steepness[steepness > 0]
    return float(along.sum() / steepness.sum())
