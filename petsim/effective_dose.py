"""Effective dose reduction factors of real low-dose scans."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from petsim.difference_noise import DifferenceNoise, variance_factor

DRAWS = 400
"""Draws of a bootstrap."""

_AGREE = 0.05
"""Doses whose noise, by the DRFs of their names, differs by less than this part are taken at their word."""


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
        return not low - _AGREE * self.drf <= self.drf <= high + _AGREE * self.drf


def dose_levels(noise: DifferenceNoise, chosen: np.ndarray | None = None) -> np.ndarray:
    """Noise of each dose over the mean of the doses: 1 for all where their DRFs are what their names say.

    Every part of the body gives a ratio of variances, in which anatomy, uptake and position cancel.

    Parameters
    ----------
    noise : DifferenceNoise
    chosen : ndarray, optional
        int: pieces to be used, repeated ones as often as they stand there.

    Returns
    -------
    ndarray
        float64 (dose,).
    """
    pick = slice(None) if chosen is None else chosen
    variance, voxels = noise.piece_variance[pick], noise.piece_voxels[pick].astype(np.float64)
    mean = variance.mean(axis=1, keepdims=True)
    used = mean[:, 0] > 0
    return voxels[used] @ (variance[used] / mean[used]) / voxels[used].sum()


def trusted(levels: np.ndarray) -> np.ndarray:
    """bool (dose,): doses whose level is within 5 % of the median, of three or more; of fewer all.

    Of three doses, one with a wrong name is found; of two, either may be wrong; one alone says nothing.
    """
    near = np.abs(levels / np.median(levels) - 1) < _AGREE
    return near if levels.size > 2 and near.any() else np.ones(levels.size, bool)


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
        size = noise.piece_voxels.size
        levels = dose_levels(noise)
        words = trusted(levels)
        central = _drfs(noise, _over_others(levels, words), nested)
        picks = rng.integers(size, size=(DRAWS, size))
        drawn = np.array([_drfs(noise, _over_others(dose_levels(noise, p), words), nested) for p in picks])
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
