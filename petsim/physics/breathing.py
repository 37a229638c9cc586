"""Breathing during a scan, as a blur along the axis."""

import math

import numpy as np
from scipy import ndimage

EXPONENT = 6
"""2 n of Lujan's model, with the n = 3 that is usual for the liver: more time is spent near the end of expiration."""

PHASES = 512


def displacement_kernel(amplitude_mm: float, spacing_mm: float) -> np.ndarray:
    """How long an organ spends where, on the voxels of an axis.

    Displacement towards the feet from the end of expiration is A cos^6(t) with the phase t even in (0, pi) (Lujan et al.,
    Med Phys 26, 1999, 715-720), from which its mean is subtracted: the mean position stays. Shared linearly by the two
    nearest voxels.

    Parameters
    ----------
    amplitude_mm : float
    spacing_mm : float

    Returns
    -------
    ndarray
        float64, of odd length, sum 1.
    """
    phase = (np.arange(PHASES) + 0.5) * math.pi / PHASES
    place = -amplitude_mm * np.cos(phase) ** EXPONENT / spacing_mm
    place -= place.mean()
    half = math.ceil(np.abs(place).max()) + 1
    low = np.floor(place).astype(np.int64)
    share = place - low
    weights = np.bincount(low + half, 1 - share, 2 * half + 1) + np.bincount(low + 1 + half, share, 2 * half + 1)
    return weights / PHASES


def breathed(image: np.ndarray, amplitude_mm: float, spacing_mm: float) -> np.ndarray:
    """An image averaged over the cycle of breathing.

    All of the body moves alike, head and pelvis too, and attenuation stays: right for liver and lower lungs only. Beyond its
    ends the image goes on as it ends.

    Parameters
    ----------
    image : ndarray
        (x, y, z).
    amplitude_mm : float
        0 leaves the image as it is.
    spacing_mm : float
        Along z.
    """
    if amplitude_mm == 0:
        return image
    return ndimage.convolve1d(image, displacement_kernel(amplitude_mm, spacing_mm), axis=2, mode="nearest")
