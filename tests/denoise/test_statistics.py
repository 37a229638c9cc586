"""Intervals and tests against distributions known in closed form."""

import numpy as np
import pytest
from scipy import stats

from denoise.statistics import bootstrap_interval, holm, paired_wilcoxon


@pytest.mark.parametrize("level", [0.95, 0.5])
def test_bootstrap_of_zeros_and_ones_is_binomial(level):
    """Means of resamplings of 36 ones in 100 are Binomial(100, 0.36) / 100."""
    values = np.repeat([1.0, 0.0], [36, 64])
    expected = stats.binom.ppf([(1 - level) / 2, (1 + level) / 2], 100, 0.36) / 100
    assert bootstrap_interval(values, seed=0, level=level) == pytest.approx(tuple(expected), abs=0.0101)


def test_bootstrap_repeats_with_its_seed():
    values = np.random.default_rng(0).normal(size=15)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1, draws=200) != bootstrap_interval(values, seed=2, draws=200)


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], [[1.0, 2.0], [3.0, 4.0]]])
def test_bootstrap_refuses_what_has_no_interval(values):
    with pytest.raises(ValueError, match="at least 2 patients"):
        bootstrap_interval(values, seed=0)


def test_wilcoxon_of_differences_of_one_sign():
    """All 12 differences positive and unequal: the extreme of 2^12 equally likely sign patterns, on both sides."""
    a = np.arange(12) ** 2 + 100.0
    assert paired_wilcoxon(a, a - np.arange(1, 13)) == pytest.approx(2 / 2**12)
    assert paired_wilcoxon(a - np.arange(1, 13), a) == pytest.approx(2 / 2**12)


def test_wilcoxon_keeps_equal_pairs_in_the_ranking():
    """Two equal pairs take ranks 1 and 2, so 3..14 are left: z = 102 / sqrt(sum of their squares)."""
    difference = np.concatenate([np.zeros(2), np.arange(1.0, 13)])
    ranks = np.arange(3, 15)
    expected = 2 * stats.norm.sf(ranks.sum() / np.sqrt((ranks**2).sum()))
    assert paired_wilcoxon(difference, np.zeros(14)) == pytest.approx(expected, rel=1e-6)


def test_wilcoxon_of_equal_values_is_one():
    assert paired_wilcoxon(np.arange(12.0), np.arange(12.0)) == 1


def test_wilcoxon_refuses_few_or_unpaired_patients():
    with pytest.raises(ValueError, match="at least 12 patients, got 11; add patients"):
        paired_wilcoxon(np.arange(11.0), np.zeros(11))
    with pytest.raises(ValueError, match="two finite values"):
        paired_wilcoxon(np.arange(12.0), np.zeros(13))
    with pytest.raises(ValueError, match="two finite values"):
        paired_wilcoxon(np.full(12, np.nan), np.zeros(12))


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.3 times 4, 3, 2, 1: 0.04, 0.06, 0.06 and 0.3; 0.7 and 0.8 end at 1."""
    assert holm([0.03, 0.01, 0.3, 0.02]) == pytest.approx([0.06, 0.04, 0.3, 0.06])
    assert holm([0.02, 0.021]) == pytest.approx([0.04, 0.04])
    assert holm([0.8, 0.7]) == pytest.approx([1, 1])
