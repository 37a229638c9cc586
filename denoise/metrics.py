"""Distance of an image from a reference, and what that distance is worth in counts."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import ndimage

from data_recipes.errors import DataError

Border = Literal["reflect", "constant"]

_SSIM_SIGMA = 1.5
_SSIM_RADIUS = 5
_SLAB = 64
_SSIM_K1 = 0.01
_SSIM_K2 = 0.03


def own_range_peak(reference: np.ndarray, mask: np.ndarray | None) -> float:
    """Largest value of the reference in the mask: the peak of papers that scale every volume by its own range.

    It moves with the hottest voxel of each patient, so decibels with it compare within a patient only.
    """
    return float(_inside(reference, mask).max())


def psnr_db(image: np.ndarray, reference: np.ndarray, peak: float, mask: np.ndarray | None) -> float:
    """Peak signal-to-noise ratio, 20 log10(peak / root mean squared error).

    Parameters
    ----------
    image, reference : ndarray
        float32 (x, y, z), in the same unit.
    peak : float
        In the unit of the images. A number that is the same for all patients makes their values comparable.
    mask : ndarray or None
        bool (x, y, z): where the error is averaged; None is everywhere.

    Returns
    -------
    float
        Decibels; infinite for equal images.

    Raises
    ------
    DataError
        When the mask is empty or the peak is not positive.
    """
    _check_peak(peak)
    rms = _rms(_inside(image, mask) - _inside(reference, mask))
    return 20 * math.log10(peak / rms) if rms > 0 else math.inf


def ssim(
    image: np.ndarray, reference: np.ndarray, peak: float, mask: np.ndarray | None, border: Border = "reflect"
) -> float:
    """Mean structural similarity with a 3D Gaussian window of sigma 1.5 voxels, 11 wide, and K of 0.01 and 0.03.

    Moments are the weighted ones without a sample correction.

    Parameters
    ----------
    image, reference : ndarray
        float32 (x, y, z), in the same unit.
    peak : float
        Dynamic range L in the unit of the images.
    mask : ndarray or None
        bool (x, y, z): where the map is averaged; windows reach beyond it. None is everywhere.
    border : str
        Beyond the border images are mirrored ("reflect") or zero ("constant").

    Returns
    -------
    float
        At most 1, which equal images have.

    Raises
    ------
    DataError
        When the mask is empty or the peak is not positive.

    References
    ----------
    Wang et al. 2004, doi 10.1109/TIP.2003.819861.
    """
    _check_peak(peak)
    if mask is not None and not mask.any():
        raise DataError("the mask is empty; choose one that covers part of the image")
    total, voxels, depth = 0.0, 0, image.shape[2]
    # In slabs: float64 copies of a whole body would take ten times its memory.
    for first in range(0, depth, _SLAB):
        low, high = max(0, first - _SSIM_RADIUS), min(depth, first + _SLAB + _SSIM_RADIUS)
        found = _ssim_map(image[:, :, low:high], reference[:, :, low:high], peak, border)
        part = slice(first, min(depth, first + _SLAB))
        found = found[:, :, part.start - low : part.stop - low]
        inside = found if mask is None else found[mask[:, :, part]]
        total += float(inside.sum())
        voxels += inside.size
    return total / voxels


def _ssim_map(image: np.ndarray, reference: np.ndarray, peak: float, border: Border) -> np.ndarray:
    a, b = image.astype(np.float64), reference.astype(np.float64)
    mean_a, mean_b = _window(a, border), _window(b, border)
    variances = _window(a * a, border) - mean_a**2 + _window(b * b, border) - mean_b**2
    covariance = _window(a * b, border) - mean_a * mean_b
    c1, c2 = (_SSIM_K1 * peak) ** 2, (_SSIM_K2 * peak) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def nmae(image: np.ndarray, reference: np.ndarray, mask: np.ndarray | None) -> float:
    """Mean absolute error over the mean absolute reference, both in the mask."""
    expected = _inside(reference, mask)
    return float(np.abs(_inside(image, mask) - expected).mean() / np.abs(expected).mean())


def nrmse(image: np.ndarray, reference: np.ndarray, mask: np.ndarray | None) -> float:
    """Root mean squared error over the root mean squared reference, both in the mask."""
    expected = _inside(reference, mask)
    return _rms(_inside(image, mask) - expected) / _rms(expected)


def variance_ceiling_db(variance_ratio: float, independent: bool) -> float:
    """Largest possible gain in PSNR of a denoised over the low-dose image when the reference is noisy itself.

    With an unbiased linear reconstruction and s2 the variance of the full dose, the low dose misses a full dose that
    holds its counts by (D - 1) s2, and even a denoiser that knows the truth misses it by s2 (D - 1) / D: 10 log10 D.
    Against the complement, scaled to full dose, they are s2 D^2 / (D - 1) and s2 D / (D - 1): 10 log10 D again.
    Against an independent full dose they are (D + 1) s2 and s2: 10 log10(D + 1).

    Parameters
    ----------
    variance_ratio : float
        D, noise variance of the low dose over that of the full dose; the dose reduction factor of thinned counts.
    independent : bool
        Whether the reference is an independent full dose, rather than the parent or the complement of the low dose.

    Returns
    -------
    float
        Decibels. Only indicative for an iterative reconstruction, which is not linear.

    Raises
    ------
    DataError
        When the ratio is below 1.
    """
    if not variance_ratio >= 1:
        raise DataError(f"noise variance of the low over the full dose must be at least 1, got {variance_ratio:g}")
    return 10 * math.log10(variance_ratio + 1 if independent else variance_ratio)


def fraction_of_ceiling(gain_db: float, variance_ratio: float, independent: bool) -> float:
    """Gain in PSNR over the largest possible, `variance_ceiling_db`; comparable between doses and data sets.

    Raises
    ------
    DataError
        When nothing can be gained: a ratio of 1 without independence.
    """
    ceiling = variance_ceiling_db(variance_ratio, independent)
    if ceiling == 0:
        raise DataError("the low dose is the reference, so nothing can be gained; give a ratio above 1")
    return gain_db / ceiling


def bias_and_variance(realizations: np.ndarray, noise_free: np.ndarray, mask: np.ndarray | None) -> tuple[float, float]:
    """Squared bias and variance over noise realizations, averaged over the mask.

    Both are unbiased: the variance has n - 1 in the denominator, and the squared difference of the mean image from the
    truth is freed of the variance of that mean, variance / n. Their sum is the expected squared error.

    Parameters
    ----------
    realizations : ndarray
        float32 (n, x, y, z), independent images of one object.
    noise_free : ndarray
        float32 (x, y, z), in the same unit.
    mask : ndarray or None
        bool (x, y, z); None is everywhere.

    Returns
    -------
    squared_bias, variance : float
        In the squared unit of the images. The squared bias of an unbiased method scatters around 0, also below.

    Raises
    ------
    DataError
        With fewer than two realizations or an empty mask.
    """
    n = len(realizations)
    if n < 2:
        raise DataError(f"bias and variance need at least 2 noise realizations, got {n}; simulate more of the same patient")
    values = np.stack([_inside(image, mask) for image in realizations])
    variance = float(values.var(axis=0, ddof=1).mean())
    squared = float(((values.mean(axis=0) - _inside(noise_free, mask)) ** 2).mean())
    return squared - variance / n, variance


def equivalent_counts(drfs: Sequence[float], plain_mse: Sequence[float], mse: float) -> float:
    """Fraction of the full dose at which the plain reconstruction errs as much as the image under test.

    Linear in the logarithms of dose and error; below the lowest dose the last segment is prolonged.

    Parameters
    ----------
    drfs : sequence of float
        Dose reduction factors of the plain reconstructions; 1 must be among them.
    plain_mse : sequence of float
        Their mean squared errors to the noise-free image.
    mse : float
        Mean squared error of the image under test, to the same image over the same mask.

    Returns
    -------
    float
        Positive, at most 1; infinite when the image is better than the full dose, as nothing measured says how much.

    Raises
    ------
    DataError
        When there are fewer than two doses, none is the full dose, an error is not positive, or the plain error does
        not fall with dose.
    """
    order = np.argsort(drfs)[::-1]
    log_dose = -np.log(np.asarray(drfs, np.float64)[order])
    errors = np.asarray(plain_mse, np.float64)[order]
    if len(order) < 2 or log_dose[-1] != 0:
        raise DataError(f"equivalent counts need the full dose (DRF 1) and a lower one, got DRF {list(drfs)}; add them")
    if not mse >= 0 or not np.all(errors > 0) or not np.all(np.diff(errors) < 0):
        raise DataError(
            f"errors of the plain images must fall with dose, got {list(plain_mse)} at DRF {list(drfs)} "
            f"against {mse:g}; average over more patients or realizations"
        )
    if mse < errors[-1]:
        return math.inf
    low = max(0, int(np.searchsorted(-errors, -mse)) - 1)
    position = math.log(errors[low] / mse) / math.log(errors[low] / errors[low + 1])
    return math.exp(log_dose[low] + position * (log_dose[low + 1] - log_dose[low]))


def _inside(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    if mask is None:
        return image.astype(np.float64).ravel()
    if not mask.any():
        raise DataError("the mask is empty; choose one that covers part of the image")
    return image[mask].astype(np.float64)


def _rms(values: np.ndarray) -> float:
    return math.sqrt(np.square(values).mean())


def _window(image: np.ndarray, border: Border) -> np.ndarray:
    return np.asarray(ndimage.gaussian_filter(image, _SSIM_SIGMA, mode=border, radius=_SSIM_RADIUS))


def _check_peak(peak: float) -> None:
    if not peak > 0:
        raise DataError(f"the peak must be positive, got {peak:g}")
