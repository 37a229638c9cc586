"""Noise with a measured covariance."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from data_recipes.errors import DataError
from denoise.diffusion.noise import LAG, draw_noise, measure_noise
from petsim.noise import body_mask

SHAPE = (72, 64, 60)
WIDTHS = (0.9, 0.9, 1.4)


def ellipsoid():
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    image = 1.0 * (x**2 / 0.7 + y**2 / 0.6 + z**2 / 0.9 < 1)
    image += 3.0 * ((x - 0.3) ** 2 + y**2 + z**2 < 0.08)
    return ndimage.gaussian_filter(image, 1.0).astype(np.float32)


def correlated(rng):
    noise = ndimage.gaussian_filter(rng.standard_normal(SHAPE).astype(np.float32), WIDTHS, mode="wrap")
    return noise / noise.std()


def test_measured_noise_has_the_correlation_and_the_variance_of_the_data():
    """Noise made here as root activity times a Gaussian of 0.9, 0.9 and 1.4 voxels, whose autocorrelation is
    exp(-lag^2 / (4 sigma^2))."""
    rng, clean = np.random.default_rng(0), ellipsoid()
    pairs = []
    for _ in range(4):
        noise = 0.2 * np.sqrt(np.maximum(clean, 0.01)) * correlated(rng)
        pairs.append((clean + noise, noise))
    found = measure_noise(pairs)
    assert found.power == pytest.approx(0.5, abs=0.08)
    low = torch.from_numpy(clean)[None, None]
    drawn = np.stack([draw_noise(found, low, [seed])[0, 0].numpy() for seed in range(6)])
    body = ndimage.binary_erosion(body_mask(clean), iterations=4)
    assert np.square(drawn[:, body_mask(clean)]).mean() == pytest.approx(1.0, rel=0.15)
    local = np.maximum(ndimage.gaussian_filter(clean, 2.0) / found.mean, 0.05) ** found.power
    flat = drawn / local
    for axis, sigma in enumerate(WIDTHS):
        for lag in (1, 2):
            both = body & np.roll(body, -lag, axis)
            product = (flat * np.roll(flat, -lag, axis + 1))[:, both].mean()
            assert product / np.square(flat[:, both]).mean() == pytest.approx(np.exp(-(lag**2) / (4 * sigma**2)), abs=0.06)
    hot, cold = clean > 3.5, body & (clean < 1.2)
    ratio = drawn[:, hot].std() / drawn[:, cold].std()
    assert ratio == pytest.approx(np.sqrt(clean[hot].mean() / clean[cold].mean()), rel=0.15)


def test_white_noise_is_white_and_a_function_of_its_seed():
    low = torch.zeros(2, 1, 20, 24, 28)
    a, b = draw_noise(None, low, [3, 4]), draw_noise(None, low, [3, 5])
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])
    assert a.var().item() == pytest.approx(1.0, abs=0.03)
    assert (a[..., 1:] * a[..., :-1]).mean().item() == pytest.approx(0.0, abs=0.02)


def test_nothing_to_measure():
    with pytest.raises(DataError, match="no noise to measure"):
        measure_noise([(ellipsoid(), np.zeros(SHAPE, np.float32))])


def test_kernel_size():
    rng, clean = np.random.default_rng(1), ellipsoid()
    noise = correlated(rng)
    found = measure_noise([(clean + 0.1 * noise, noise)])
    assert len(found.kernel) == (2 * LAG + 1) ** 3
    assert np.square(found.kernel).sum() == pytest.approx(1.0, abs=1e-5)
    assert abs(found.power) < 0.1
