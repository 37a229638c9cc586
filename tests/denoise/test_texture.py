"""Local standard deviation and the sharpness of edges, against known answers."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from data_recipes.grid import Grid
from denoise.adversarial.styles import style_distances
from denoise.networks.unipet import UniPET, UniPETShape
from denoise.scaling import Scaling
from denoise.texture import edge_sharpness, local_sd
from petsim.noise import liver_sphere

SPACING = (4.0, 4.0, 4.0)


def test_local_sd_of_white_noise_and_of_a_slope():
    """Of white noise the expected variance over n voxels is sigma^2 (n - 1) / n; of a slope g it is 2/3 g^2."""
    grid = Grid((32, 32, 32), SPACING, (0.0, 0.0, 0.0))
    body = np.zeros(grid.shape, np.uint8)
    body[2:-2, 2:-2, 2:-2] = 1
    box = liver_sphere(body, 1, grid)
    assert box is not None
    noise = np.random.default_rng(0).normal(5, 0.3, grid.shape).astype(np.float32)
    assert local_sd(noise, box, grid) == pytest.approx(0.3 * math.sqrt(26 / 27), rel=0.06)
    slope = np.broadcast_to(0.5 * np.arange(32, dtype=np.float32)[:, None, None], grid.shape)
    assert local_sd(slope, box, grid) == pytest.approx(0.5 * math.sqrt(2 / 3))


def test_sharpness_of_edges_is_not_that_of_noise():
    x, y, z = np.meshgrid(*3 * [np.arange(40)], indexing="ij")
    lesions = ((x - 20) ** 2 + (y - 20) ** 2 + (z - 20) ** 2 < 81).astype(np.int32)
    clean = ndimage.gaussian_filter(4.0 * lesions, 1.5).astype(np.float32)
    blurred = ndimage.gaussian_filter(clean, 1.5)
    noisy = clean + np.random.default_rng(0).normal(0, 0.5, clean.shape).astype(np.float32)
    assert edge_sharpness(clean, clean, lesions, SPACING) == pytest.approx(1)
    assert edge_sharpness(3 * clean + 1, clean, lesions, SPACING) == pytest.approx(3)
    assert edge_sharpness(noisy, clean, lesions, SPACING) == pytest.approx(1, abs=0.03)
    # Widths add in squares: an edge blurred by sqrt(2) times the width is as much less steep.
    assert edge_sharpness(blurred, clean, lesions, SPACING) == pytest.approx(1 / math.sqrt(2), abs=0.06)
    assert math.isnan(edge_sharpness(clean, clean, np.zeros_like(lesions), SPACING))


def test_distances_of_styles():
    torch.manual_seed(0)
    network, full = UniPET(UniPETShape((16,), 4)), torch.rand(3, 1, 8, 8, 8)
    images = {1.0: full, 4.0: full + 0.2 * torch.randn_like(full), 20.0: full.clone()}
    near = style_distances(network, Scaling(), images)
    assert near[4.0]["distance"] > 0 and near[20.0]["distance"] == 0
    # Twice the features have twice the distance, at twice the spread.
    twice = UniPET(UniPETShape((16,), 4, aligned=False))
    with torch.no_grad():
        small = style_distances(twice, Scaling(), images)[4.0]
        for parameter in twice.stem.parameters():
            parameter *= 2
        large = style_distances(twice, Scaling(), images)[4.0]
    assert large["distance"] == pytest.approx(2 * small["distance"], rel=1e-4)
    assert large["relative"] == pytest.approx(small["relative"], rel=1e-4)
