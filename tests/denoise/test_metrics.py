"""Error measures against closed forms, the ceiling against simulated counts, bias and variance, equivalent counts."""

import math

import numpy as np
import pytest

from denoise.metrics import (
    bias_and_variance,
    equivalent_counts,
    fraction_of_ceiling,
    nmae,
    nrmse,
    own_range_peak,
    psnr_db,
    ssim,
    variance_ceiling_db,
)

SHAPE = (12, 14, 16)


def image(seed=0):
    return np.random.default_rng(seed).gamma(2.0, 1.5, SHAPE).astype(np.float32)


def half():
    mask = np.zeros(SHAPE, bool)
    mask[:6] = True
    return mask


def test_psnr_of_a_constant_offset():
    assert psnr_db(image() + np.float32(0.5), image(), 20.0, None) == pytest.approx(20 * math.log10(20 / 0.5), abs=1e-5)
    assert psnr_db(image(), image(), 20.0, None) == math.inf


def test_errors_outside_the_mask_do_not_count():
    spoiled = image()
    spoiled[~half()] += 7
    spoiled[half()] += np.float32(0.25)
    assert psnr_db(spoiled, image(), 5.0, half()) == pytest.approx(20 * math.log10(5 / 0.25), abs=1e-5)
    assert nmae(spoiled, image(), half()) == pytest.approx(0.25 / image()[half()].mean(), rel=1e-5)
    reference = np.ones(SHAPE, np.float32)
    assert ssim(np.where(half(), reference, reference + 1), reference, 1.0, half()) < 1
    far = np.zeros(SHAPE, bool)
    far[0] = True
    assert ssim(np.where(half(), reference, reference + 1), reference, 1.0, far) == pytest.approx(1, abs=1e-12)


def test_own_range_peak_is_that_of_the_mask():
    reference = image()
    reference[0, 0, 0], reference[-1, 0, 0] = 50, 90
    assert own_range_peak(reference, half()) == 50
    assert own_range_peak(reference, None) == 90


def test_mean_errors_are_relative_to_the_reference():
    reference = np.array([1, -3], np.float32).reshape(2, 1, 1)
    found = np.array([2, 0], np.float32).reshape(2, 1, 1)
    assert nmae(found, reference, None) == pytest.approx(4 / 4)
    assert nrmse(found, reference, None) == pytest.approx(math.sqrt(10 / 10))
    assert nmae(found, 2 * reference, None) == pytest.approx(6 / 8)
    assert nrmse(found, 2 * reference, None) == pytest.approx(math.sqrt(36 / 40))


def test_ssim_of_equal_images_is_one():
    assert ssim(image(), image(), 10.0, None) == pytest.approx(1, abs=1e-12)


def test_ssim_of_a_luminance_shift():
    a, b, peak = 4.0, 5.0, 10.0
    expected = (2 * a * b + 0.01) / (a * a + b * b + 0.01)
    flat = np.full(SHAPE, a, np.float32)
    assert ssim(flat, flat + 1, peak, None) == pytest.approx(expected, abs=1e-9)


def test_ssim_with_zeros_beyond_the_border():
    """In a corner of flat images an eighth of the window, and a little more, lies inside."""
    a, b, peak = 4.0, 5.0, 10.0
    kernel = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    inside = (kernel[5:].sum() / kernel.sum()) ** 3
    spread, c1, c2 = inside - inside**2, 0.01, 0.09
    expected = (2 * a * b * inside**2 + c1) * (2 * a * b * spread + c2)
    expected /= ((a * a + b * b) * inside**2 + c1) * ((a * a + b * b) * spread + c2)
    corner = np.zeros(SHAPE, bool)
    corner[0, 0, 0] = True
    flat = np.full(SHAPE, a, np.float32)
    assert ssim(flat, flat + 1, peak, corner, border="constant") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("border", ["reflect", "constant"])
def test_ssim_does_not_depend_on_the_slabs(monkeypatch, border):
    rng = np.random.default_rng(3)
    a, b = rng.gamma(2, 1, (2, 12, 13, 45)).astype(np.float32)
    mask = rng.random(a.shape) < 0.3
    whole = ssim(a, b, 3.0, mask, border)
    monkeypatch.setattr("denoise.metrics._SLAB", 10)
    assert ssim(a, b, 3.0, mask, border) == pytest.approx(whole, rel=1e-12)


def test_ssim_of_a_contrast_change_of_white_noise():
    """The moments under an 11 wide window written out: k a has k and k^2 times the mean and variance of a."""
    noise = np.random.default_rng(1).normal(0, 1, (24, 24, 24)).astype(np.float32)
    middle = np.zeros(noise.shape, bool)
    middle[12, 12, 12] = True
    kernel = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.einsum("i,j,k->ijk", *[kernel / kernel.sum()] * 3)
    window = noise[7:18, 7:18, 7:18].astype(float)
    mean = (weights * window).sum()
    variance = (weights * (window - mean) ** 2).sum()
    c1, c2, k = 0.02**2, 0.06**2, 3
    expected = (2 * k * mean**2 + c1) * (2 * k * variance + c2)
    expected /= ((1 + k**2) * mean**2 + c1) * ((1 + k**2) * variance + c2)
    assert ssim(k * noise, noise, 2.0, middle) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("measure", [psnr_db, ssim])
def test_a_peak_of_zero_and_an_empty_mask_are_refused(measure):
    with pytest.raises(ValueError, match="peak must be positive"):
        measure(image(), image(), 0.0, None)
    with pytest.raises(ValueError, match="mask is empty"):
        measure(image(), image(), 1.0, np.zeros(SHAPE, bool))


@pytest.mark.parametrize("drf", [1.5, 4, 20])
def test_ceiling_of_thinned_and_of_independent_counts(drf):
    """The best estimate of each reference by one who knows the expectation, in counts scaled to full dose."""
    rng = np.random.default_rng(3)
    mean, n = 1000.0, 200_000
    full = rng.poisson(mean, n)
    kept = rng.binomial(full, 1 / drf)
    low, complement = kept * drf, (full - kept) * drf / (drf - 1)
    other = rng.poisson(mean, n)

    def gain(reference, best):
        return 10 * math.log10(((low - reference) ** 2).mean() / ((best - reference) ** 2).mean())

    nested = variance_ceiling_db(drf, independent=False)
    assert gain(full, kept + mean * (1 - 1 / drf)) == pytest.approx(nested, abs=0.06)
    assert gain(complement, mean) == pytest.approx(nested, abs=0.06)
    assert gain(other, mean) == pytest.approx(variance_ceiling_db(drf, independent=True), abs=0.06)


def test_fraction_of_ceiling():
    """MedNeXt on UDPET gains 2.87 dB at a third of the dose, 60 % of what can be gained."""
    assert fraction_of_ceiling(2.87, 3, independent=False) == pytest.approx(0.60, abs=0.005)
    assert fraction_of_ceiling(10 * math.log10(5) / 2, 4, independent=True) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="nothing can be gained"):
        fraction_of_ceiling(0.0, 1, independent=False)
    with pytest.raises(ValueError, match="at least 1"):
        variance_ceiling_db(0.5, independent=True)


def test_bias_and_variance_of_two_realizations():
    """Values 1 and 3 about a truth of 5: mean 2, variance 2, squared difference 9 less 2/2 of the mean's variance."""
    realizations = np.stack([np.full(SHAPE, 1, np.float32), np.full(SHAPE, 3, np.float32)])
    realizations[:, ~half()] = 40
    squared_bias, variance = bias_and_variance(realizations, np.full(SHAPE, 5, np.float32), half())
    assert (squared_bias, variance) == (pytest.approx(8), pytest.approx(2))


def test_bias_is_freed_of_the_variance_of_the_mean():
    rng = np.random.default_rng(4)
    truth = image()
    realizations = (truth + 0.3 + rng.normal(0, 2, (4, *SHAPE))).astype(np.float32)
    squared_bias, variance = bias_and_variance(realizations, truth, None)
    n = truth.size
    assert abs(variance - 4) < 4 * 4 * math.sqrt(2 / (3 * n))
    # The difference of the mean has variance 1: that of its square is 2 + 4 * 0.09.
    assert abs(squared_bias - 0.09) < 4 * math.sqrt(2.36 / n)


def test_one_realization_has_no_variance():
    with pytest.raises(ValueError, match="at least 2 noise realizations, got 1"):
        bias_and_variance(image()[None], image(), None)


@pytest.mark.parametrize(
    ("mse", "dose"), [(2.0, 0.5), (1.0, 1.0), (8.0, 0.125), (100.0, 0.01), (20.0, 0.05), (0.99, math.inf)]
)
def test_equivalent_counts_where_error_goes_as_one_over_dose(mse, dose):
    assert equivalent_counts([20, 1, 4], [20.0, 1.0, 4.0], mse) == pytest.approx(dose)


def test_equivalent_counts_between_doses_of_a_biased_reconstruction():
    """Between DRF 4 and 1 the error goes from 9 to 1, so 3 lies halfway in logarithms: half the dose."""
    assert equivalent_counts([1, 4, 16], [1.0, 9.0, 18.0], 3.0) == pytest.approx(0.5)
    assert equivalent_counts([1, 4, 16], [1.0, 9.0, 18.0], 9.0 * math.sqrt(2)) == pytest.approx(0.125)


def test_equivalent_counts_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match=r"full dose \(DRF 1\)"):
        equivalent_counts([2, 4], [1.0, 2.0], 1.5)
    with pytest.raises(ValueError, match=r"full dose \(DRF 1\)"):
        equivalent_counts([1], [1.0], 1.5)
    with pytest.raises(ValueError, match="must fall with dose"):
        equivalent_counts([1, 2, 4], [1.0, 3.0, 2.0], 1.5)
    with pytest.raises(ValueError, match="must fall with dose"):
        equivalent_counts([1, 2, 4], [1.0, 2.0, 3.0], math.nan)
