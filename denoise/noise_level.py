"""How noisy a volume is, measured in the volume itself."""

from dataclasses import dataclass

import numpy as np

from data_recipes.errors import DataError
from petsim.noise import body_mask

BLOCK = 8
"""Edge, in voxels, of the cubes in which noise is measured."""

SLAB = 64
"""Slices worked on at a time, a multiple of `BLOCK`."""


@dataclass(frozen=True)
class NoiseLevel:
    """Noise of a volume.

    Parameters
    ----------
    sd : float
        Standard deviation of the fine structure, median of the body's parts, in the volume's unit.
    mean : float
        Mean of the body.
    """

    sd: float
    mean: float

    @property
    def relative(self) -> float:
        """Standard deviation over mean: what networks are conditioned on, through its logarithm."""
        return self.sd / self.mean


def noise_level(image: np.ndarray, body_of: np.ndarray | None = None) -> NoiseLevel:
    """Noise from second differences across the slice: their root mean square in cubes, of which the median is taken.

    For white noise of standard deviation s, x[i] - (x[i - 1] + x[i + 1]) / 2 has the standard deviation s sqrt(3/2), by
    which is divided. Noise of reconstructions is correlated, so that the figure is less than the spread of voxels; among
    images of one reconstruction it is proportional to it. The median leaves out cubes with edges. Within a cube it would
    go wrong: images of few counts are near zero but for some peaks, and a median sees less noise there, not more.

    Parameters
    ----------
    image : ndarray
        (x, y, z), at least three voxels across.
    body_of : ndarray, optional
        Image whose body is looked at; None: the image itself.

    Returns
    -------
    NoiseLevel

    Raises
    ------
    DataError
        Nothing is positive, or the volume is smaller than that.
    """
    body = body_mask(image if body_of is None else body_of)
    mean = float(image[body].mean(dtype=np.float64)) if body.any() else 0.0
    if min(image.shape[:2]) < 3 or mean <= 0:
        raise DataError("the volume has no body in which noise could be measured; give a PET volume")
    # In slabs: float64 copies of a whole body would take many times its memory.
    slabs = [slice(first, first + SLAB) for first in range(0, image.shape[2], SLAB)]
    sums = [_squares_and_voxels(image[:, :, slab], body[1:-1, 1:-1, slab]) for slab in slabs]
    squares, voxels = (np.concatenate(parts, axis=2) for parts in zip(*sums, strict=True))
    full = voxels >= 0.5 * voxels.max()
    return NoiseLevel(float(np.sqrt(np.median(squares[full] / voxels[full]) / 3)), mean)


def _squares_and_voxels(image: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squared second differences, and voxels, of the body in cubes."""
    core = image[1:-1, 1:-1].astype(np.float64)
    fine = (core - 0.5 * (image[:-2, 1:-1] + image[2:, 1:-1])) ** 2
    fine += (core - 0.5 * (image[1:-1, :-2] + image[1:-1, 2:])) ** 2
    return _block_sums(np.where(inside, fine, 0)), _block_sums(inside.astype(np.float64))


def _block_sums(values: np.ndarray) -> np.ndarray:
    for axis, n in enumerate(values.shape):
        values = np.add.reduceat(values, np.arange(0, n, BLOCK), axis)
    return values
