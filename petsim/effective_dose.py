"""Effective dose reduction factors of real low-dose scans."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from petsim.difference_noise import AGREE, DifferenceNoise, dose_levels, trusted, variance_factor

DRAWS = 400
"""Draws of a bootstrap."""


@dataclass(frozen=True)
class EffectiveDRF:
    """What a dose's noise says its DRF is.

    Parameters
    ----------
    subjects : tuple of str
    drf : float
        As its name says.
    effective_drf : float
    interval : tuple of float
        95 %, by bootstrap over subjects and over parts of the body.
    """

    subjects: tuple[str, ...]
    drf: float
    effective_drf: float
    interval: tuple[float, float]

    @property
    def contradicts(self) -> bool:
        """The named DRF lies outside the interval, by more than 5 % of itself."""
        low, high = self.interval
        return not low - AGREE * self.drf <= self.drf <= high + AGREE * self.drf


def effective_drfs(subjects: Sequence[DifferenceNoise], nested: bool, seed: int) -> list[EffectiveDRF]:
    """Effective DRF of every low dose of subjects with at least two, and of every DRF over all subjects that have it.

    Parameters
    ----------
    subjects : sequence of DifferenceNoise
    nested : bool
        Low doses are parts of the full one.
    seed : int
        Of the bootstrap.

    Returns
    -------
    list of EffectiveDRF
        Scans in the order of the subjects, then each DRF of more than one subject.
    """
    found, estimates, draws = [], defaultdict(list), defaultdict(list)
    rng = np.random.default_rng(seed)
    for noise in subjects:
        if len(noise.drfs) < 2:
            continue
        levels, size = dose_levels(noise.piece_variance, noise.piece_voxels), noise.piece_voxels.size
        words = trusted(levels)
        central = _drfs(noise, _over_others(levels, words), nested)
        drawn = np.empty((DRAWS, len(noise.drfs)))
        for n in range(DRAWS):
            pick = rng.integers(size, size=size)
            again = dose_levels(noise.piece_variance[pick], noise.piece_voxels[pick])
            drawn[n] = _drfs(noise, _over_others(again, words), nested)
        for k, drf in enumerate(noise.drfs):
            found.append(EffectiveDRF((noise.name,), drf, float(central[k]), interval(drawn[:, k])))
            estimates[drf].append(central[k])
            draws[drf].append((noise.name, drawn[:, k]))
    for drf, values in sorted(estimates.items()):
        if len(values) > 1:
            names, tables = zip(*draws[drf], strict=True)
            table = np.stack(tables)
            rows = rng.integers(len(values), size=(DRAWS, len(values)))
            means = table[rows, np.arange(DRAWS)[:, None]].mean(axis=1)
            found.append(EffectiveDRF(names, drf, float(np.mean(values)), interval(means)))
    return found


def _over_others(levels: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Levels over the mean of the other doses that are taken at their word; where there are none, of all others."""
    others = words & ~np.eye(levels.size, dtype=bool)
    others[~others.any(axis=1)] = True
    np.fill_diagonal(others, False)
    return levels * others.sum(axis=1) / (others @ levels)


def _drfs(noise: DifferenceNoise, ratios: np.ndarray, nested: bool) -> np.ndarray:
    offset = variance_factor(0.0, nested)
    factors = np.array([variance_factor(drf, nested) for drf in noise.drfs])
    return factors * ratios - offset


def interval(draws: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the draws of a bootstrap (Efron 1979, doi 10.1214/aos/1176344552)."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)
