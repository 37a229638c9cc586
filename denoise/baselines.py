"""Denoisers that learn nothing."""

import numba as nb
import numpy as np

from data_recipes.errors import DataError
from petsim.filters import gaussian


def gaussian_baseline(image: np.ndarray, fwhm_mm: float, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Convolve with an isotropic Gaussian of the given full width at half maximum; the image is zero outside."""
    return gaussian(image, (fwhm_mm, fwhm_mm, fwhm_mm), spacing_mm)


def non_local_means(image: np.ndarray, sigma: float, strength: float, patch: int, search: int) -> np.ndarray:
    """Average voxels whose neighborhoods look alike.

    The weight of a voxel is exp(-max(d^2 - 2 sigma^2, 0) / (strength sigma)^2), where d^2 is the mean squared
    difference of the cubes around it and around the voxel at hand. The image is mirrored at its border.

    Parameters
    ----------
    image : ndarray
        float32 (x, y, z).
    sigma : float
        Standard deviation of the noise, in the unit of the image; one value for all of it.
    strength : float
        Width of the weights in units of sigma; about 0.5 to 1.
    patch : int
        Cubes are 2 `patch` + 1 voxels wide.
    search : int
        Voxels at most this far along each axis are averaged.

    Returns
    -------
    ndarray
        float32 (x, y, z).

    Raises
    ------
    DataError
        When sigma or strength is not positive, or patch or search is negative.

    References
    ----------
    Buades, Coll and Morel 2005, doi 10.1109/CVPR.2005.38; the weight is that of 2011, doi 10.5201/ipol.2011.bcm_nlm.
    """
    if not (sigma > 0 and strength > 0 and patch >= 0 and search >= 0):
        raise DataError(
            f"sigma and strength must be positive and patch and search at least 0, got {sigma:g}, {strength:g}, "
            f"{patch} and {search}"
        )
    padded = np.pad(np.asarray(image, np.float32), patch + search, mode="symmetric")
    out = np.empty(image.shape, np.float32)
    voxels = (2 * patch + 1) ** 3
    width = voxels * (strength * sigma) ** 2
    _average_alike(padded, patch, search, np.float32(2 * voxels * sigma**2), np.float32(1 / width), out)
    return out


@nb.njit(cache=True, nogil=True, parallel=True, fastmath={"contract", "nsz", "arcp"})
def _average_alike(padded, patch, search, expected, steepness, out):
    nx, ny, nz = out.shape
    reach = patch + search
    length = nz + 2 * patch
    for task in nb.prange(nx * ny):
        i, j = task // ny + reach, task % ny + reach
        center = padded[i, j, reach : reach + nz]
        weights = np.ones(nz, np.float32)
        # Summing differences from the center keeps a constant exactly.
        differences = np.zeros(nz, np.float32)
        squares = np.empty(length, np.float32)
        excess = np.empty(nz, np.float32)
        for dx in range(-search, search + 1):
            for dy in range(-search, search + 1):
                for dz in range(-search, search + 1):
                    if dx == 0 and dy == 0 and dz == 0:
                        continue
                    squares[:] = np.float32(0)
                    for px in range(-patch, patch + 1):
                        for py in range(-patch, patch + 1):
                            a = padded[i + px, j + py, search : search + length]
                            b = padded[i + px + dx, j + py + dy, search + dz : search + dz + length]
                            for k in range(length):
                                squares[k] += (a[k] - b[k]) ** 2
                    other = padded[i + dx, j + dy, reach + dz : reach + dz + nz]
                    excess[:] = -expected
                    for p in range(2 * patch + 1):
                        for k in range(nz):
                            excess[k] += squares[k + p]
                    for k in range(nz):
                        w = np.exp(-max(excess[k], np.float32(0)) * steepness)
                        weights[k] += w
                        differences[k] += w * (other[k] - center[k])
        for k in range(nz):
            out[i - reach, j - reach, k] = center[k] + differences[k] / weights[k]
