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
    x, y, z = (gaussian_kernel(fwhm / spacing) for fwhm, spacing in zip(fwhm_mm, spacing_mm, strict=True))
    out = np.empty(image.shape, np.float32)
    _convolve(np.ascontiguousarray(image, np.float32), x, y, z, out)
    return out


def gaussian_kernel(fwhm_voxels: float) -> np.ndarray:
    """Kernel of `gaussian` along an axis, float32, of odd length."""
    if fwhm_voxels <= 0:
        return np.ones(1, np.float32)
    sigma = fwhm_voxels / _FWHM_PER_SIGMA
    half = math.ceil(4 * sigma)
    edges = (np.arange(-half, half + 2) - 0.5) / (sigma * math.sqrt(2))
    kernel = np.diff([math.erf(e) for e in edges])
    return (kernel / kernel.sum()).astype(np.float32)


_BLOCK = 2048
"""Voxels that stay in the innermost cache."""

_FAST = {"contract", "nsz", "arcp"}


@nb.njit(cache=True, nogil=True, fastmath=_FAST)
def _add_rows(weights, rows, first, stride, out):
    """out += sum over k of weights[k] x the row of `rows` (flat) that begins at first + k stride, in their order."""
    n, size, k = weights.size, out.size, 0
    # Five at once, since `out` is read and written each time.
    while k + 5 <= n:
        at = first + k * stride
        a, b, c = rows[at : at + size], rows[at + stride :][:size], rows[at + 2 * stride :][:size]
        d, e = rows[at + 3 * stride :][:size], rows[at + 4 * stride :][:size]
        wa, wb, wc, wd, we = weights[k], weights[k + 1], weights[k + 2], weights[k + 3], weights[k + 4]
        for i in range(size):
            out[i] = out[i] + wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i] + we * e[i]
        k += 5
    for j in range(k, n):
        a, wa = rows[first + j * stride :][:size], weights[j]
        for i in range(size):
            out[i] += wa * a[i]


@nb.njit(cache=True, nogil=True, parallel=True, fastmath=_FAST)
def _convolve(image, along_x, along_y, along_z, out):
    """All axes of a slab while it is in the cache, in blocks of its flat voxels."""
    nx, ny, nz = image.shape
    hx, hy, hz = along_x.size // 2, along_y.size // 2, along_z.size // 2
    flat, size, stride = image.reshape(-1), ny * nz, nz + 2 * hz
    for task in nb.prange(nx):
        x = np.int64(task)  # numba's own is unsigned.
        slab, rows = np.zeros(size + 2 * hy * nz, np.float32), np.zeros(size, np.float32)
        low, high = max(0, x - hx), min(nx, x + hx + 1)
        for first in range(0, size, _BLOCK):
            last = min(first + _BLOCK, size)
            to = slab[hy * nz + first : hy * nz + last]
            _add_rows(along_x[low - x + hx : high - x + hx], flat, low * size + first, size, to)
        for first in range(0, size, _BLOCK):
            _add_rows(along_y, slab, first, nz, rows[first : min(first + _BLOCK, size)])
        # Zeros between rows keep them apart.
        padded, sums = np.zeros(ny * stride + 2 * hz, np.float32), np.zeros(ny * stride, np.float32)
        for y in range(ny):
            padded[y * stride + hz :][:nz] = rows[y * nz :][:nz]
        for first in range(0, sums.size, _BLOCK):
            _add_rows(along_z, padded, first, 1, sums[first : min(first + _BLOCK, sums.size)])
        for y in range(ny):
            out[x, y] = sums[y * stride :][:nz]
