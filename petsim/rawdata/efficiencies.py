"""Crystal efficiencies from delayed coincidences.

Delayeds between two crystals are proportional to the product of their singles rates e_i s_i, where s varies smoothly over
the detectors and e is the efficiency, whatever the activity looks like (Casey and Hoffman 1986, J Comput Assist Tomogr
10:845). The sum over all partners of a crystal, its fan, has enough counts for e_i where products have not.
"""

import numba as nb
import numpy as np

from petsim.geometry.pair_bins import PairBins

PRIOR_SPREAD = 0.1
"""Relative standard deviation that is expected of efficiencies; few counts move them little from 1."""

ITERATIONS = 20


class FanCounts:
    """Counts delayeds by crystal, float64 `counts` (crystals_per_ring, rings).

    Parameters
    ----------
    pairs : PairBins
        Its transaxial pairs count, with ring differences up to the scanner's.
    """

    def __init__(self, pairs: PairBins) -> None:
        scanner = pairs.layout.scanner
        self._pairs, self._farthest = pairs, scanner.max_ring_difference
        self.counts = np.zeros((scanner.crystals_per_ring, scanner.rings), np.int64)

    def add(self, events: np.ndarray) -> None:
        """Add the delayeds among some events."""
        _add(events, self._pairs.line, self._pairs.layout.merge_transaxial, self._farthest, self.counts)


@nb.njit(cache=True, nogil=True)
def _add(events, line, merge, farthest, counts):
    for k in range(events.size):
        e = events[k]
        far = abs(np.int64(e.ring1) - np.int64(e.ring2)) > farthest
        if e.is_delayed == 0 or far or line[e.crystal1 // merge, e.crystal2 // merge] < 0:
            continue
        counts[e.crystal1, e.ring1] += 1
        counts[e.crystal2, e.ring2] += 1


def estimate_efficiencies(pairs: PairBins, fans: np.ndarray, singles_cps: np.ndarray) -> np.ndarray:
    """Efficiencies of crystals, relative to their mean.

    Ring by ring, position by position in the ring, and crystal by crystal, each the posterior mean of a Poisson count with a
    gamma prior of mean 1: (n + k) / (expected + k) with k = 1 / `PRIOR_SPREAD`^2.

    Parameters
    ----------
    pairs : PairBins
        With which `fans` were counted.
    fans : ndarray
        (crystals_per_ring, rings): delayeds by crystal.
    singles_cps : ndarray
        (crystals_per_ring, rings): smooth rate of a crystal of efficiency 1; only its shape counts.

    Returns
    -------
    ndarray
        float32 (crystals_per_ring, rings), mean 1 over real crystals, 0 for virtual ones.
    """
    scanner, merge = pairs.layout.scanner, pairs.layout.merge_transaxial
    real = scanner.is_real()
    across = np.kron(pairs.line >= 0, np.ones((merge, merge))).astype(np.float64)
    rings = np.arange(scanner.rings)
    along = (np.abs(rings[:, None] - rings[None, :]) <= scanner.max_ring_difference).astype(np.float64)
    prior = PRIOR_SPREAD**-2
    counts = np.where(real, fans, 0).astype(np.float64)
    efficiency = real.astype(np.float64)
    for _ in range(ITERATIONS):
        expected = singles_cps * (across @ (singles_cps * efficiency) @ along) * real
        expected *= counts.sum() / max((expected * efficiency).sum(), 1e-300)
        by_ring = (counts.sum(axis=0) + prior) / (expected.sum(axis=0) + prior)
        by_place = (counts.sum(axis=1) + prior) / ((expected * by_ring).sum(axis=1) + prior)
        outer = by_place[:, None] * by_ring[None, :]
        efficiency = real * outer * (counts + prior) / (expected * outer + prior)
        efficiency /= efficiency[real].mean()
    return efficiency.astype(np.float32)
