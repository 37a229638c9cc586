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
from petsim.philox import philox, philox_at, stream_key
from petsim.settings import check_drfs

_POISSON, _THIN, _EVENT = 0, 1, 2
_PIECE = 16.0
"""Poisson means above this are drawn as a sum of equal pieces, so that exp(-mean) stays far from underflow."""

_ROW = 256
"""Bins worked on at once."""

_TASK = 64 * _ROW
"""Bins of a parallel task."""


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
        last = np.array([math.ceil(2**32 / d) - 1 for d in self.drfs], np.uint32)
        kept = np.empty((len(self.drfs), *counts.shape), flat.dtype) if out is None else out
        _thin(flat, first_bin, np.uint64(self.key), last[:, None], 1, 1, kept.reshape(len(self.drfs), -1))
        return kept

    def thin_by_bin(self, counts: np.ndarray, kept: np.ndarray, first_bin: int = 0) -> np.ndarray:
        """Nested counts at every dose, where bins keep different shares.

        Parameters
        ----------
        counts : ndarray
            Unsigned integers (radial, tof, plane) of one view.
        kept : ndarray
            (dose, radial, plane): the share that is kept, at most 1, not rising with the dose's index; one below
            2^-32 counts as that.
        first_bin : int
            Index of the first bin in the whole sinogram.

        Returns
        -------
        ndarray
            (dose, radial, tof, plane), of the type of `counts`.
        """
        radials, tof, planes = counts.shape
        shares = np.clip(np.ceil(np.asarray(kept, np.float64) * 2**32), 1, 2**32)
        last = (shares - 1).astype(np.uint32).reshape(len(kept), -1)
        out = np.empty((len(kept), counts.size), counts.dtype)
        _thin(np.ascontiguousarray(counts).reshape(-1), first_bin, np.uint64(self.key), last,
              tof * planes, planes, out)  # fmt: skip
        return out.reshape(len(kept), radials, tof, planes)

    def levels(self, events: int, first_event: int = 0, kept: np.ndarray | None = None) -> np.ndarray:
        """In how many doses, counted from full dose, each of some recorded events is.

        An event's random number depends on its index only, so that pieces of a list can be worked on in any order.

        Parameters
        ----------
        events : int
            How many.
        first_event : int
            Index of the first of them in the whole list.
        kept : ndarray, optional
            float32 (dose, events): the share that is kept, not rising with the dose's index, 0 keeps none; None: 1 / DRF.

        Returns
        -------
        ndarray
            uint8 (events,).
        """
        words = np.empty(events, np.uint32)
        _event_words(first_event, np.uint64(self.key), words)
        levels = np.empty(events, np.uint8)
        if kept is None:
            _levels(words, np.array([math.ceil(2**32 / d) for d in self.drfs], np.uint64)[:, None], levels)
        else:
            _levels(words, np.ceil(np.clip(kept, 0, 1).astype(np.float64) * 2**32).astype(np.uint64), levels)
        return levels


@nb.njit(cache=True, nogil=True)
def _event_words(first, key, out):
    """A random word for each index from `first` on, four to a counter."""
    words, offsets = np.empty((4, _ROW), np.uint32), np.arange(_ROW).astype(np.uint32)
    for counter in range(first // 4, (first + out.size + 3) // 4, _ROW):
        philox_at(_ROW, counter, offsets, 0, _EVENT, key, words)
        at = 4 * counter - first
        for i in range(max(0, -(at // 4)), min(_ROW, (out.size - at) // 4)):
            for lane in range(4):
                out[at + 4 * i + lane] = words[lane, i]
        for i in range(_ROW):
            # What the loop above leaves: counters of which only a part is wanted.
            if at + 4 * i < 0 or at + 4 * i + 4 > out.size:
                for lane in range(4):
                    if 0 <= at + 4 * i + lane < out.size:
                        out[at + 4 * i + lane] = words[lane, i]


@nb.njit(cache=True, nogil=True)
def _levels(words, below, levels):
    """Number of doses whose bound, (doses, 1) or (doses, events), is above the word."""
    own = below.shape[1] > 1
    for i in range(words.size):
        at = i if own else 0
        count = 0
        for d in range(below.shape[0]):
            count += np.uint64(words[i]) < below[d, at]
        levels[i] = count


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


# Rows have a fixed length and every loop over them a function of its own: so the compiler vectorizes them.


@nb.njit(cache=True, nogil=True)
def _first_pieces(means, uniforms, p, cumulative, counts):
    """`_poisson` of all bins of a row."""
    for i in range(means.size):
        p[i] = np.exp(-means[i])
        cumulative[i] = p[i]
        counts[i] = 0
    for n in range(1, 201):
        more = 0
        for i in range(means.size):
            above = np.int64(uniforms[i] > cumulative[i])
            more += above
            counts[i] += above
            p[i] *= means[i] / n
            cumulative[i] += p[i]
        if more == 0:
            return


@nb.njit(cache=True, nogil=True)
def _uniform(w0, w1):
    return (np.float64((np.uint64(w0) << np.uint64(21)) ^ (np.uint64(w1) >> np.uint64(11))) + 0.5) * 2.0**-53


@nb.njit(cache=True, nogil=True)
def _later_pieces(mean, pieces, index, key):
    total = 0
    for piece in range(1, pieces):
        w0, w1, _, _ = philox(index & np.uint64(0xFFFFFFFF), index >> np.uint64(32), piece, _POISSON, key)
        total += _poisson(mean, _uniform(w0, w1))
    return total


@nb.njit(cache=True, nogil=True)
def _draw_some(expected, first_bin, key, counts):
    words = np.empty((4, _ROW), np.uint32)
    means, uniforms, p, cumulative = np.zeros(_ROW), np.zeros(_ROW), np.zeros(_ROW), np.zeros(_ROW)
    pieces, drawn = np.ones(_ROW, np.int64), np.zeros(_ROW, np.int64)
    bins = np.arange(_ROW).astype(np.uint32)
    for start in range(0, expected.size, _ROW):
        size = min(_ROW, expected.size - start)
        philox_at(_ROW, first_bin + start, bins, 0, _POISSON, key, words)
        means[size:] = 0.0
        for i in range(size):
            mean = max(np.float64(expected[start + i]), 0.0)
            pieces[i] = max(int(np.ceil(mean / _PIECE)), 1)
            means[i] = mean / pieces[i]
        for i in range(_ROW):
            uniforms[i] = _uniform(words[0, i], words[1, i])
        _first_pieces(means, uniforms, p, cumulative, drawn)
        for i in range(size):
            counts[start + i] = drawn[i]
            if pieces[i] > 1:
                counts[start + i] += _later_pieces(means[i], pieces[i], np.uint64(first_bin + start + i), key)


@nb.njit(cache=True, nogil=True, parallel=True)
def _draw(expected, first_bin, key, counts):
    for task in nb.prange((expected.size + _TASK - 1) // _TASK):
        start = task * _TASK
        _draw_some(expected[start : start + _TASK], first_bin + start, key, counts[start : start + _TASK])


@nb.njit(cache=True, nogil=True)
def _keep(size, words, counts, ordinal, last, kept):
    """Where a bin has more than `ordinal` counts, keep that one if its word is not above the bin's `last`."""
    for i in range(size):
        kept[i] += np.uint32((counts[i] > ordinal) & (words[i] <= last[i]))


@nb.njit(cache=True, nogil=True)
def _keep_four(size, first_bin, bins, counts, block, key, last, words, kept):
    """Add the kept ones, by dose and bin, of four counts of some bins of a row."""
    philox_at(size, first_bin, bins, block, _THIN, key, words)
    for j in range(4):
        for d in range(last.shape[0]):
            _keep(size, words[j], counts, np.uint32(4 * block + j), last[d], kept[d])


@nb.njit(cache=True, nogil=True)
def _thin_some(first, size, counts, first_bin, key, last, line, planes, kept):
    doses, alike = last.shape[0], last.shape[1] == 1
    words, bins, row = np.empty((4, _ROW), np.uint32), np.empty(_ROW, np.uint32), np.zeros(_ROW, np.uint32)
    own, sums = np.empty((doses, _ROW), np.uint32), np.empty((doses, _ROW), np.uint32)
    for d in range(doses):
        own[d] = last[d, 0]
    for start in range(first, first + size, _ROW):
        width = min(_ROW, first + size - start)
        total = 0
        for i in range(width):
            bins[i], row[i] = i, counts[start + i]
            total += row[i]
        row[width:] = 0
        if not alike:
            for i in range(width):
                at = (start + i) // line * planes + (start + i) % planes
                for d in range(doses):
                    own[d, i] = last[d, at]
        block = total // (4 * _ROW) + 1
        sums[:] = 0
        for k in range(block):
            _keep_four(_ROW, first_bin + start, bins, row, k, key, own, words, sums)
        for d in range(doses):
            for i in range(width):
                kept[d, start + i] = sums[d, i]
        # Bins with many more counts than most of the row's go on alone.
        more = width
        while True:
            some, more = more, 0
            for i in range(some):
                if row[i] > 4 * block:
                    bins[more], row[more] = bins[i], row[i]
                    if not alike:
                        for d in range(doses):
                            own[d, more] = own[d, i]
                    more += 1
            if more == 0:
                break
            full = -(-more // 16) * 16
            row[more:full] = 0
            sums[:, :full] = 0
            _keep_four(full, first_bin + start, bins, row, block, key, own, words, sums)
            block += 1
            for i in range(more):
                for d in range(doses):
                    kept[d, start + bins[i]] += sums[d, i]


@nb.njit(cache=True, nogil=True, parallel=True)
def _thin(counts, first_bin, key, last, line, planes, kept):
    """Keep counts whose word is not above `last`, uint32.

    `last` is (doses, 1), or (doses, radials * planes) for lines of `line` bins, `planes` to a TOF bin.
    """
    for task in nb.prange((counts.size + _TASK - 1) // _TASK):
        start = task * _TASK
        _thin_some(start, min(_TASK, counts.size - start), counts, first_bin, key, last, line, planes, kept)
