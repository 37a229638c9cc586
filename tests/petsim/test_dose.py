"""Distributions of drawn and thinned counts, and nesting."""

import numpy as np
import pytest
from scipy import stats

from data_recipes.errors import UsageError
from petsim.dose import DoseLadder
from petsim.philox import philox, stream_key


def ladder(*drfs, seed=0, realization=0):
    return DoseLadder(tuple(map(float, drfs)), seed, "subject", realization)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822,
         (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)  # fmt: skip
def test_philox_gives_the_published_known_answers(counter, key, words):
    """Known answers of Random123 (Salmon et al. 2011) for philox4x32-10."""
    assert tuple(int(w) for w in philox(*counter, np.uint64(key))) == words


@pytest.mark.parametrize("mean", [0.02, 0.7, 6.0, 40.0, 333.0])
def test_counts_are_poisson(mean):
    n = 200_000
    counts = ladder(1).draw(np.full(n, mean, np.float32)).astype(np.float64)
    assert abs(counts.mean() - mean) < 4 * np.sqrt(mean / n)
    # Var of the sample variance of a Poisson variable: (mu4 - var^2)/n with mu4 = mean + 3 mean^2.
    assert abs(counts.var() - mean) < 4 * np.sqrt((mean + 2 * mean**2) / n)
    values = np.arange(int(stats.poisson.ppf(1e-4, mean)), int(stats.poisson.ppf(1 - 1e-4, mean)) + 1)
    observed = np.array([(counts == v).sum() for v in values])
    expected = n * stats.poisson.pmf(values, mean)
    use = expected > 10
    chi2 = ((observed - expected)[use] ** 2 / expected[use]).sum()
    assert chi2 < stats.chi2.ppf(0.9999, use.sum())


def test_draws_of_neighboring_bins_and_realizations_are_uncorrelated():
    n = 200_000
    expected = np.full(n, 3.0, np.float32)
    a, b = (ladder(1, realization=r).draw(expected).astype(float) for r in (0, 1))
    limit = 4 / np.sqrt(n)
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < limit
    assert abs(np.corrcoef(a, b)[0, 1]) < limit
    assert abs((a - b).var() / 6 - 1) < 0.02


def test_each_dose_is_binomial():
    """Given n counts, those kept at factor d are Binomial(n, 1/d): mean n/d, variance n (1/d)(1 - 1/d)."""
    bins, n = 100_000, 37
    drfs = (1, 2.5, 4, 10, 20, 100)
    kept = ladder(*drfs).thin(np.full(bins, n, np.uint16)).astype(np.float64)
    for d, counts in zip(drfs, kept, strict=True):
        p = 1 / d
        assert abs(counts.mean() - n * p) <= 4 * np.sqrt(n * p * (1 - p) / bins)
        assert abs(counts.var() - n * p * (1 - p)) <= 5 * n * p * np.sqrt(2 / bins) * max(1 - p, 0.0) + 1e-12


def test_thinned_poisson_is_poisson():
    """Variance over mean of independent realizations is 1 at every dose (Poisson(s x measured) would give 1 + s)."""
    expected = np.full(2000, 5.0, np.float32)
    drfs = (1.0, 2.0, 4.0, 20.0)
    draws = []
    for r in range(100):
        rung = ladder(*drfs, realization=r)
        draws.append(rung.thin(rung.draw(expected)))
    stack = np.stack(draws).astype(np.float64)
    ratio = stack.var(axis=0, ddof=1).mean(axis=1) / stack.mean(axis=(0, 2))
    assert np.all(np.abs(ratio - 1) < 5 * np.sqrt(2 / (100 * 2000)) * np.sqrt(1 + drfs[-1] / 10))


def test_a_dose_does_not_depend_on_the_others():
    expected = np.random.default_rng(0).gamma(0.5, 8.0, 20_000).astype(np.float32)
    full = ladder(1).draw(expected)
    many = ladder(1, 4, 10, 20, 100).thin(full)
    alone = ladder(1, 20).thin(full)
    np.testing.assert_array_equal(many[3], alone[1])
    np.testing.assert_array_equal(many[0], full)


def test_doses_are_nested():
    expected = np.random.default_rng(0).gamma(0.5, 8.0, 20_000).astype(np.float32)
    rung = ladder(1, 4, 10, 20, 100)
    kept = rung.thin(rung.draw(expected)).astype(int)
    assert np.all(np.diff(kept, axis=0) <= 0)


def test_counts_do_not_depend_on_how_bins_are_cut():
    expected = np.random.default_rng(0).gamma(0.5, 8.0, 5000).astype(np.float32)
    rung = ladder(1, 7)
    whole = rung.thin(rung.draw(expected))
    pieces = [rung.thin(rung.draw(expected[i : i + 777], i), i) for i in range(0, 5000, 777)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces, axis=1))


def test_bins_beyond_32_bits_have_numbers_of_their_own():
    expected = np.full(1000, 3.0, np.float32)
    assert np.any(ladder(1).draw(expected, 0) != ladder(1).draw(expected, 2**32))


def test_streams_differ_by_seed_subject_and_realization():
    assert len({stream_key(0, "a", 0), stream_key(1, "a", 0), stream_key(0, "b", 0), stream_key(0, "a", 1)}) == 4


@pytest.mark.parametrize("drfs", [(0.5,), (1, 4, 4), (float("nan"),), (4, 10), (1, 20, 10)])
def test_wrong_ladders_are_refused(drfs):
    with pytest.raises(UsageError):
        ladder(*drfs)


def test_every_count_is_kept_by_a_number_of_its_own():
    """The rule of the module, count by count, also in bins that hold many more counts than their neighbors."""
    first, doses = 2**32 - 300, ladder(1, 4, 10.5, 100)
    counts = np.random.default_rng(1).poisson(1.5, 700).astype(np.uint16)
    counts[[0, 100, 255, 256, 699]] = (4, 37, 5, 0, 911)
    shares = np.random.default_rng(2).random((1, 7, 20)) ** np.arange(4)[:, None, None]
    wanted, wanted_by_bin = np.zeros((2, 4, 700), int)
    own = np.broadcast_to(shares[:, :, None], (4, 7, 5, 20)).reshape(4, 700)
    for i, n in enumerate(counts.tolist()):
        index = first + i
        words = [w for k in range(n // 4 + 1) for w in philox(index % 2**32, index // 2**32, k, 1, np.uint64(doses.key))]
        uniform = np.array(words[:n], np.float64) / 2**32
        for d, drf in enumerate(doses.drfs):
            wanted[d, i] = (uniform < np.ceil(2**32 / drf) / 2**32).sum()
            wanted_by_bin[d, i] = (uniform < own[d, i]).sum()
    np.testing.assert_array_equal(doses.thin(counts, first), wanted)
    by_bin = doses.thin_by_bin(counts.reshape(7, 5, 20), shares, first)
    np.testing.assert_array_equal(by_bin.reshape(4, 700), wanted_by_bin)
