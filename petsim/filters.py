"""Gaussian filtering of images."""

import math

import numba as nb
import numpy as np

_FWHM_PER_SIGMA = math.sqrt(8 * math.log(2))


def gaussian(image: np.ndarray, fwhm_mm: tuple[float, float, float], spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Convolve with a Gaussian; the image counts as zero outside, which makes the operator its own transpose.

    The kernel holds the integral of the Gaussian over each voxel, cut at four standard deviations and normalized.

    Parameters
    ----------
    image : ndarray
        float32 (x, y, z).
    fwhm_mm : tuple of float
        Full width at half maximum by axis; 0 leaves an axis alone.
    spacing_mm : tuple of float
        Voxel edges.

    Returns
    -------
    ndarray
        float32 (x, y, z).
    """
    out = np.ascontiguousarray(image, np.float32)
    for axis, (fwhm, spacing) in enumerate(zip(fwhm_mm, spacing_mm, strict=True)):
        if fwhm <= 0:
            continue
        sigma = fwhm / _FWHM_PER_SIGMA / spacing
        half = math.ceil(4 * sigma)
        edges = (np.arange(-half, half + 2) - 0.5) / (sigma * math.sqrt(2))
        kernel = np.diff([math.erf(e) for e in edges])
        kernel = (kernel / kernel.sum()).astype(np.float32)
        shape = out.shape
        view = out.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
        result = np.empty_like(view)
        (_convolve_last if axis == 2 else _convolve_middle)(view, kernel, result)
        out = result.reshape(shape)
    return out if out is not image else image.copy()


@nb.njit(cache=True, nogil=True, parallel=True, fastmath={"contract", "nsz", "arcp"})
def _convolve_middle(image, kernel, out):
    half = kernel.size // 2
    n = image.shape[1]
    for task in nb.prange(image.shape[0] * n):
        a, i = task // n, task % n
        row = out[a, i]
        row[:] = np.float32(0)
        for k in range(max(0, i - half), min(n, i + half + 1)):
            w = kernel[k - i + half]
            source = image[a, k]
            for j in range(row.size):
                row[j] += w * source[j]


@nb.njit(cache=True, nogil=True, parallel=True, fastmath={"contract", "nsz", "arcp"})
def _convolve_last(image, kernel, out):
    half = kernel.size // 2
    n = image.shape[1]
    for a in nb.prange(image.shape[0]):
        padded = np.zeros(n + 2 * half, np.float32)
        padded[half : half + n] = image[a, :, 0]
        row = np.zeros(n, np.float32)
        for k in range(kernel.size):
            w = kernel[k]
            source = padded[k : k + n]
            for j in range(n):
                row[j] += w * source[j]
        out[a, :, 0] = row
