"""How noisy a volume is, measured in the volume itself."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data_recipes.errors import DataError

NORMAL_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


@dataclass(frozen=True)
class NoiseLevel:
    """Noise of a volume.

    Parameters
    ----------
    sd : float
        Robust standard deviation of the fine structure in the body, in the volume's unit.
    mean : float
        Mean of the body.
    """

    sd: float
    mean: float

    @property
    def relative(self) -> float:
        """Standard deviation over mean: what networks are conditioned on, through its logarithm."""
        return self.sd / self.mean


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


def noise_level(image: np.ndarray) -> NoiseLevel:
    """Noise from second differences across the slice, whose median absolute deviation edges hardly change.

    For white noise of standard deviation s, x[i] - (x[i - 1] + x[i + 1]) / 2 has the standard deviation s sqrt(3/2), by
    which is divided. Noise of reconstructions is correlated, so that the figure is less than the spread of voxels; among
    images of one reconstruction it is proportional to it.

    Parameters
    ----------
    image : ndarray
        (x, y, z), at least three voxels across.

    Returns
    -------
    NoiseLevel
    """
    body = body_mask(image)
    parts = []
    for axis in (0, 1):
        x, inside = np.moveaxis(image, axis, 0), np.moveaxis(body, axis, 0)
        parts.append((x[1:-1] - 0.5 * (x[:-2] + x[2:]))[inside[1:-1]])
    fine = np.concatenate(parts)
    mean = float(image[body].mean(dtype=np.float64)) if body.any() else 0.0
    if not fine.size or mean <= 0:
        raise DataError("the volume has no body in which noise could be measured; give a PET volume")
    sd = NORMAL_MAD * float(np.median(np.abs(fine - np.median(fine)))) / np.sqrt(1.5)
    return NoiseLevel(float(sd), mean)
