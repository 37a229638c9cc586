"""Gaussian and non-local means on constants, noise and edges, and the latter against its formula."""

import itertools
import math

import numpy as np
import pytest

from denoise.baselines import gaussian_baseline, non_local_means


def noise(shape=(20, 18, 24), sd=1.0):
    return np.random.default_rng(0).normal(5, sd, shape).astype(np.float32)


def test_gaussian_spreads_a_point_by_its_width_in_mm():
    """Second moments of a point, less the h^2 / 12 that integrating over a voxel adds, are sigma^2 on every axis."""
    point = np.zeros((41, 41, 41), np.float32)
    point[20, 20, 20] = 1
    spacing = (2.0, 3.0, 4.0)
    spread = gaussian_baseline(point, 12.0, spacing).astype(np.float64)
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    for axis, d in enumerate(spacing):
        profile = spread.sum(axis=tuple(a for a in range(3) if a != axis))
        variance = (profile * ((np.arange(41) - 20) * d) ** 2).sum() - d**2 / 12
        assert math.sqrt(8 * math.log(2) * variance) == pytest.approx(12, rel=2e-3)


def test_non_local_means_keeps_a_constant_exactly():
    flat = np.full((6, 5, 7), 3.3, np.float32)
    assert np.array_equal(non_local_means(flat, 0.1, 1.0, 1, 2), flat)


@pytest.mark.parametrize(("patch", "search"), [(0, 1), (1, 1), (1, 2)])
def test_non_local_means_follows_its_formula(patch, search):
    image, sigma, strength = noise((5, 4, 6)), 0.7, 0.8
    padded = np.pad(image.astype(np.float64), patch + search, mode="symmetric")
    cube = np.arange(-patch, patch + 1)

    def around(voxel):
        return padded[np.ix_(*(c + patch + search + cube for c in voxel))]

    expected = np.zeros(image.shape)
    for voxel in np.ndindex(*image.shape):
        total = weights = 0.0
        for shift in itertools.product(range(-search, search + 1), repeat=3):
            other = tuple(v + s for v, s in zip(voxel, shift, strict=True))
            squared = ((around(other) - around(voxel)) ** 2).mean()
            weight = math.exp(-max(squared - 2 * sigma**2, 0) / (strength * sigma) ** 2)
            total += weight * padded[tuple(o + patch + search for o in other)]
            weights += weight
        expected[voxel] = total / weights
    np.testing.assert_allclose(non_local_means(image, sigma, strength, patch, search), expected, rtol=1e-5)


def test_non_local_means_takes_noise_and_leaves_an_edge():
    """White noise falls to near the 1 / 125 of a plain mean over the search cube; a step of 20 sigma stays."""
    image = noise()
    smoothed = non_local_means(image, 1.0, 1.0, 1, 2)
    assert smoothed.var() < 3 / 125
    assert smoothed.mean() == pytest.approx(image.mean(), abs=0.01)
    step = image.copy()
    step[10:] += 20
    kept = non_local_means(step, 1.0, 1.0, 1, 2)
    assert kept[10].mean() - kept[9].mean() == pytest.approx(20, abs=0.3)


def test_non_local_means_leaves_its_input_alone():
    image = noise((4, 4, 4))
    before = image.copy()
    non_local_means(image, 1.0, 1.0, 1, 1)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("arguments", [(0.0, 1.0, 1, 1), (1.0, 0.0, 1, 1), (1.0, 1.0, -1, 1), (1.0, 1.0, 1, -1)])
def test_non_local_means_refuses_meaningless_settings(arguments):
    with pytest.raises(ValueError, match="must be positive"):
        non_local_means(noise((4, 4, 4)), *arguments)
