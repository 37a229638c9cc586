"""Uncertainty and tests over patients, who are the independent units."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from data_recipes.errors import DataError

FEWEST_PATIENTS = 12
"""Below this number a paired test says little, whatever its p-value."""


def bootstrap_interval(
    values_by_patient: Sequence[float], seed: int, level: float = 0.95, draws: int = 10000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over patients.

    Parameters
    ----------
    values_by_patient : sequence of float
        One value for each patient; several doses, lesions or realizations of a patient are averaged before.
    seed : int
        The same seed gives the same interval.
    level : float
        Coverage.
    draws : int
        Resamplings of the patients.

    Returns
    -------
    low, high : float

    Raises
    ------
    DataError
        With fewer than two patients or a value that is not finite.

    References
    ----------
    Efron 1979, doi 10.1214/aos/1176344552.
    """
    values = np.asarray(values_by_patient, np.float64)
    if values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
        raise DataError("an interval needs one finite value for each of at least 2 patients; leave out undefined ones")
    chosen = np.random.default_rng(seed).integers(values.size, size=(draws, values.size))
    low, high = np.quantile(values[chosen].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_wilcoxon(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p-value of the Wilcoxon signed-rank test, with equal pairs ranked as Pratt does.

    Parameters
    ----------
    a, b : sequence of float
        One value for each patient, the same patients in the same order.

    Returns
    -------
    float
        1 when all pairs are equal.

    Raises
    ------
    DataError
        With fewer than 12 patients, a value that is not finite, or sequences of unequal length.

    References
    ----------
    Wilcoxon 1945, doi 10.2307/3001968. Pratt 1959, doi 10.1080/01621459.1959.10501526.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1 or not np.isfinite(first - second).all():
        raise DataError("a paired test needs two finite values for each patient; leave out patients without both")
    if first.size < FEWEST_PATIENTS:
        raise DataError(f"a paired test needs at least {FEWEST_PATIENTS} patients, got {first.size}; add patients")
    if np.array_equal(first, second):
        return 1.0
    return float(stats.wilcoxon(first, second, zero_method="pratt").pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values adjusted for their number by Holm's step-down, in the order given; at most 1.

    Reject those at or below the level wanted for the whole family.

    References
    ----------
    Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1)
    return adjusted


def correct_lines(lines: list[dict[str, Any]], key: str) -> None:
    """Put Holm's adjusted p-values in the place of those that lines hold under `key`; other lines stay."""
    tested = [line for line in lines if key in line]
    if tested:
        for line, p in zip(tested, holm([line[key] for line in tested]).tolist(), strict=True):
            line[key] = p
