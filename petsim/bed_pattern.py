"""Bed positions in the noise along the axis."""

from collections.abc import Sequence

import numpy as np

_LEAST_PERIODS = 3
_LEAST_CORRELATION = 0.5
_TREND = 4
"""Degree of the polynomial that stands for the body's own change of noise along the axis."""


def bed_period_mm(variances: Sequence[np.ndarray], means: Sequence[np.ndarray], spacing_mm: float) -> float | None:
    """Axial distance at which the noise repeats, where bed positions overlap.

    The logarithm of variance over mean activity, without its trend, is correlated with itself; beds show as a peak of at
    least 0.5 beyond the first negative lag. Anatomy differs among subjects and averages out, beds stay.

    Parameters
    ----------
    variances, means : sequence of ndarray
        float64 (z,) of each subject: noise variance and mean activity of slices; NaN in slices without body.
    spacing_mm : float
        Distance of slices.

    Returns
    -------
    float or None
        None where less than three periods lie in the body or nothing repeats.
    """
    correlations = []
    for variance, mean in zip(variances, means, strict=True):
        with np.errstate(invalid="ignore", divide="ignore"):
            level = np.log(variance / mean)
        level = level[np.isfinite(level)]
        if level.size > 4 * _TREND:
            z = np.linspace(-1, 1, level.size)
            level = level - np.polynomial.Polynomial.fit(z, level, _TREND)(z)
            correlations.append(_autocorrelation(level))
    if not correlations:
        return None
    shortest = min(c.size for c in correlations) // _LEAST_PERIODS
    mean_correlation = np.mean([c[: shortest + 1] for c in correlations], axis=0)
    negative = np.flatnonzero(mean_correlation < 0)
    if not negative.size:
        return None
    lag = int(negative[0] + np.argmax(mean_correlation[negative[0] :]))
    # At the last lag the peak may lie beyond.
    found = lag < mean_correlation.size - 1 and mean_correlation[lag] >= _LEAST_CORRELATION
    return lag * spacing_mm if found else None


def _autocorrelation(values: np.ndarray) -> np.ndarray:
    """Mean products of values some places apart over the mean square."""
    n = values.size
    sums = np.correlate(values, values, "full")[n - 1 :]
    return sums / (n - np.arange(n)) / max(float(values @ values) / n, 1e-30)
