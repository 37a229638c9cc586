"""Noise power spectra and residual correlation of patterns and noise whose answers are known."""

import math

import numpy as np
import pytest

from petsim.noise_spectrum import noise_power_spectrum, residual_autocorrelation

BOX = (slice(2, 34), slice(1, 41), slice(3, 11))
SPACING = (2.0, 3.0, 4.0)


def white(shape=(40, 44, 12), sd=2.0):
    return np.random.default_rng(0).normal(7.0, sd, shape).astype(np.float32)


def test_spectrum_integrates_to_the_variance():
    noise = white()
    spectrum = noise_power_spectrum(noise, SPACING, BOX)
    assert (spectrum.power * spectrum.area_per_mm2).sum() == pytest.approx(noise[BOX].astype(float).var(), rel=1e-12)
    assert spectrum.area_per_mm2.sum() == pytest.approx(1 / (2.0 * 3.0))


def test_spectrum_of_white_noise_is_flat():
    spectrum = noise_power_spectrum(white(), SPACING, BOX)
    # Half of the cells of a bin mirror the others, in 8 slices; each is exponential.
    cells = spectrum.area_per_mm2 * (32 * 2.0) * (40 * 3.0)
    expected = 2.0**2 * 2.0 * 3.0
    assert np.all(np.abs(spectrum.power[1:] / expected - 1) < 4 / np.sqrt(np.maximum(cells[1:] / 2, 1) * 8))


def test_spectrum_of_a_wave_lies_at_its_frequency():
    """A cosine of period 16 mm along x: all of its variance 1/2 in the bin at 1/16 per mm."""
    x = np.arange(40) * 2.0
    wave = np.broadcast_to(np.cos(2 * math.pi * x / 16)[:, None, None], (40, 44, 12)).astype(np.float32)
    spectrum = noise_power_spectrum(wave, SPACING, BOX)
    peak = int(np.argmax(spectrum.power))
    assert spectrum.frequency_per_mm[peak] == pytest.approx(1 / 16, abs=1 / 64 / 2)
    assert spectrum.power[peak] * spectrum.area_per_mm2[peak] == pytest.approx(0.5, rel=1e-5)


def test_autocorrelation_of_a_moving_sum():
    """The sum of a white row and the same one voxel on correlates by 1/2 one voxel away and not at two."""
    noise = white((40, 44, 40))
    residual = noise[:, 1:] + noise[:, :-1]
    limit = 5 / math.sqrt(residual.size)
    assert residual_autocorrelation(residual, None, (0, 0, 0)) == pytest.approx(1)
    for shift in ((0, 1, 0), (0, -1, 0)):
        assert residual_autocorrelation(residual, None, shift) == pytest.approx(0.5, abs=limit)
    for shift in ((0, 2, 0), (1, 0, 0), (0, 0, -1)):
        assert residual_autocorrelation(residual, None, shift) == pytest.approx(0, abs=limit)


def test_autocorrelation_along_a_diagonal():
    noise = white((40, 44, 40))
    residual = noise[1:, :-1] + noise[:-1, 1:]
    limit = 5 / math.sqrt(residual.size)
    assert residual_autocorrelation(residual, None, (1, -1, 0)) == pytest.approx(0.5, abs=limit)
    assert residual_autocorrelation(residual, None, (1, 1, 0)) == pytest.approx(0, abs=limit)


def test_autocorrelation_takes_only_pairs_within_the_mask():
    """Along x: 0 1 2 3 correlates fully with itself shifted, whatever lies outside the mask."""
    residual = np.array([90, 0, 1, 2, 3, -50], np.float32).reshape(6, 1, 1)
    mask = (np.abs(residual) < 10) & (residual >= 0)
    assert residual_autocorrelation(residual, mask, (1, 0, 0)) == pytest.approx(1)
    assert residual_autocorrelation(residual, None, (1, 0, 0)) < 0.9
    with pytest.raises(ValueError, match="no two voxels"):
        residual_autocorrelation(residual, mask, (4, 0, 0))
    with pytest.raises(ValueError, match="no two voxels"):
        residual_autocorrelation(residual, None, (0, 0, 9))


def test_autocorrelation_of_a_constant_is_undefined():
    assert math.isnan(residual_autocorrelation(np.ones((3, 3, 3), np.float32), None, (1, 0, 0)))
