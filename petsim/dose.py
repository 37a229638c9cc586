"""Nested low-dose counts: Poisson full-dose counts, and the binomial thinning of them.

Every recorded count has one uniform number, keyed by (stream, bin, ordinal in the bin), and is kept at a dose reduction
factor d when that number is below 1/d. So the counts at one factor do not depend on which others are asked for, every
count at 20 is also at 10, and the complement is exact (count splitting).
"""

import math
from dataclasses import dataclass

import numba as nb
import numpy as np

from data_recipes.errors import UsageError
from petsim.philox import philox, stream_key
from petsim.settings import check_drfs

_POISSON, _THIN = 0, 1
_PIECE = 16.0
"""Poisson means above this are drawn as a sum of equal pieces, so that exp(-mean) stays far from underflow."""


@dataclass(frozen=True)
class DoseLadder:
    """The doses of one realization of one subject.

    Parameters
    ----------
    drfs : tuple of float
        Dose reduction factors, ascending, 1 first.
    seed : int
    subject : str
        Neutral name of the subject.
    realization : int
    stream : str
        Sets apart what is drawn for the same realization, such as delayeds from prompts.
    """

    drfs: tuple[float, ...]
    seed: int
    subject: str
    realization: int
    stream: str = ""

    def __post_init__(self) -> None:
        check_drfs(self.drfs)
        if self.drfs[0] != 1 or list(self.drfs) != sorted(self.drfs):
            raise UsageError(f"a dose ladder starts at DRF 1 and ascends, got {self.drfs}")

    @property
    def key(self) -> int:
        """Key of this realization's random numbers."""
        parts = (self.seed, self.subject, self.realization)
        return stream_key(*parts, self.stream) if self.stream else stream_key(*parts)

    def draw(self, expected: np.ndarray, first_bin: int = 0) -> np.ndarray:
        """Poisson counts at full dose.

        Parameters
        ----------
        expected : ndarray
            float32, expected counts of consecutive bins.
        first_bin : int
            Index of the first of them in the whole sinogram.

        Returns
        -------
        ndarray
            uint16, same shape.
        """
        flat = np.ascontiguousarray(expected, np.float32).reshape(-1)
        if flat.size and float(flat.max()) > 60000:
            raise UsageError(
                f"{flat.max():.3g} counts are expected in one bin, more than 16 bits hold; shorten --duration-s or lower "
                "--activity-mbq"
            )
        counts = np.empty(flat.size, np.uint16)
        _draw(flat, first_bin, np.uint64(self.key), counts)
        return counts.reshape(expected.shape)

    def thin(self, counts: np.ndarray, first_bin: int = 0, out: np.ndarray | None = None) -> np.ndarray:
        """Nested counts at every dose.

        Parameters
        ----------
        counts : ndarray
            Unsigned integers: recorded counts of consecutive bins at full dose.
        first_bin : int
            Index of the first of them in the whole sinogram.
        out : ndarray, optional
            Is filled and returned; None makes a new one.

        Returns
        -------
        ndarray
            (dose, *counts.shape), of the type of `counts`.
        """
        flat = np.ascontiguousarray(counts).reshape(-1)
        limits = np.array([math.ceil(2**32 / d) for d in self.drfs], np.uint64)
        kept = np.empty((len(self.drfs), *counts.shape), flat.dtype) if out is None else out
        _thin(flat, first_bin, np.uint64(self.key), limits[:, None], 1, 1, kept.reshape(len(self.drfs), -1))
        return kept

    def thin_by_bin(self, counts: np.ndarray, kept: np.ndarray, first_bin: int = 0) -> np.ndarray:
        """Nested counts at every dose, where bins keep different shares.

        Parameters
        ----------
        counts : ndarray
            Unsigned integers (radial, tof, plane) of one view.
        kept : ndarray
            (dose, radial, plane): the share that is kept, at most 1, not rising with the dose's index.
        first_bin : int
            Index of the first bin in the whole sinogram.

        Returns
        -------
        ndarray
            (dose, radial, tof, plane), of the type of `counts`.
        """
        radials, tof, planes = counts.shape
        limits = np.minimum(np.ceil(np.asarray(kept, np.float64) * 2**32), 2**32).astype(np.uint64)
        out = np.empty((len(kept), counts.size), counts.dtype)
        _thin(np.ascontiguousarray(counts).reshape(-1), first_bin, np.uint64(self.key), limits.reshape(len(kept), -1),
              tof * planes, planes, out)  # fmt: skip
        return out.reshape(len(kept), radials, tof, planes)


@nb.njit(cache=True, nogil=True)
def _poisson(mean, uniform):
    """Inverse of the Poisson distribution function by summation, float64, for means up to `_PIECE`."""
    p = np.exp(-mean)
    cumulative = p
    n = 0
    while uniform > cumulative and n < 200:
        n += 1
        p *= mean / n
        cumulative += p
    return n


@nb.njit(cache=True, nogil=True, parallel=True)
def _draw(expected, first_bin, key, counts):
    unit = 2.0**-53
    for i in nb.prange(expected.size):
        mean = np.float64(expected[i])
        if mean <= 0.0:
            counts[i] = 0
            continue
        index = np.uint64(first_bin + i)
        low, high = index & np.uint64(0xFFFFFFFF), index >> np.uint64(32)
        pieces = int(np.ceil(mean / _PIECE))
        total = 0
        for piece in range(pieces):
            w0, w1, _, _ = philox(low, high, piece, _POISSON, key)
            uniform = (np.float64((w0 << np.uint64(21)) ^ (w1 >> np.uint64(11))) + 0.5) * unit
            total += _poisson(mean / pieces, uniform)
        counts[i] = total


@nb.njit(cache=True, nogil=True, parallel=True)
def _thin(counts, first_bin, key, limits, line, planes, kept):
    """`limits` is (doses, 1), or (doses, radials * planes) for lines of `line` bins, `planes` to a TOF bin."""
    doses, alike = limits.shape[0], limits.shape[1] == 1
    for i in nb.prange(counts.size):
        for d in range(doses):
            kept[d, i] = 0
        n = counts[i]
        if n == 0:
            continue
        at = 0 if alike else (i // line) * planes + i % planes
        index = np.uint64(first_bin + i)
        low, high = index & np.uint64(0xFFFFFFFF), index >> np.uint64(32)
        for block in range((n + 3) // 4):
            words = philox(low, high, block, _THIN, key)
            for j in range(min(4, n - 4 * block)):
                word = words[0] if j == 0 else (words[1] if j == 1 else (words[2] if j == 2 else words[3]))
                for d in range(doses):
                    if word >= limits[d, at]:
                        break
                    kept[d, i] += 1
