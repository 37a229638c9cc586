"""Gaussian filter, resampling and noise measures against closed forms."""

import numpy as np
import pytest

from data_recipes.grid import Grid
from data_recipes.resample import crop_axially, resample, resample_labels
from petsim.filters import gaussian
from petsim.noise import coefficient_of_variation, liver_sphere, sphere, uniform_sphere


def test_gaussian_has_the_wanted_width_and_conserves_the_total():
    image = np.zeros((61, 51, 71), np.float32)
    image[30, 25, 35] = 1
    fwhm, spacing = (9.0, 7.0, 12.0), (2.0, 2.5, 1.5)
    out = gaussian(image, fwhm, spacing).astype(np.float64)
    assert abs(out.sum() - 1) < 1e-5
    for axis in range(3):
        profile = out.sum(axis=tuple(a for a in range(3) if a != axis))
        x = (np.arange(profile.size) - image.shape[axis] // 2) * spacing[axis]
        # Cutting at four sigma removes 0.1 % of the variance; integrating over voxels adds d^2 / 12.
        variance = (fwhm[axis] / np.sqrt(8 * np.log(2))) ** 2 + spacing[axis] ** 2 / 12
        assert abs((profile * x**2).sum() / variance - 1) < 0.005


@pytest.mark.parametrize("shape", [(9, 8, 20), (3, 30, 5)])
def test_gaussian_is_its_own_transpose(shape):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, *shape)).astype(np.float32)
    left = np.vdot(gaussian(a, (4.0, 6.0, 9.0), (2.0, 2.0, 2.0)).astype(float), b.astype(float))
    right = np.vdot(a.astype(float), gaussian(b, (4.0, 6.0, 9.0), (2.0, 2.0, 2.0)).astype(float))
    assert abs(left - right) < 1e-5 * np.linalg.norm(a) * np.linalg.norm(b)


def test_no_width_changes_nothing():
    image = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(gaussian(image, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), image)


def test_resampling_to_the_same_grid_is_the_identity():
    grid = Grid.centered((5, 6, 7), (2.0, 3.0, 4.0))
    image = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    moved = Grid(grid.shape, grid.spacing_mm, grid.origin_mm)
    np.testing.assert_array_equal(resample(image, grid, moved), image)


def test_resampling_to_a_coarser_grid_conserves_the_total():
    grid = Grid.centered((20, 24, 30), (2.0, 2.0, 2.0))
    coarse = Grid.centered((12, 12, 14), (4.1, 4.7, 5.3), (1.0, 0.5, 0.2))
    image = np.zeros(grid.shape, np.float32)
    image[3:-3, 3:-3, 3:-3] = np.random.default_rng(0).random((14, 18, 24))
    out = resample(image, grid, coarse)
    assert abs(out.sum() * coarse.voxel_ml / (image.sum() * grid.voxel_ml) - 1) < 1e-5


def test_resampling_to_a_finer_grid_is_linear():
    grid = Grid.centered((10, 10, 10), (4.0, 4.0, 4.0))
    fine = Grid.centered((24, 24, 24), (1.3, 1.3, 1.3))
    x, y, z = np.meshgrid(*(grid.axis_mm(a) for a in range(3)), indexing="ij")
    u, v, w = np.meshgrid(*(fine.axis_mm(a) for a in range(3)), indexing="ij")
    np.testing.assert_allclose(resample((3 * x - y + 2 * z).astype(np.float32), grid, fine), 3 * u - v + 2 * w, atol=1e-3)


def test_labels_are_those_of_the_voxel_at_the_center():
    grid = Grid((3, 1, 1), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))
    fine = Grid((8, 1, 1), (2.0, 4.0, 4.0), (-3.0, 0.0, 0.0))
    labels = np.array([5, 6, 7], np.uint8).reshape(3, 1, 1)
    np.testing.assert_array_equal(resample_labels(labels, grid, fine)[:, 0, 0], [0, 5, 5, 6, 6, 7, 7, 0])


def test_cropping_keeps_positions():
    grid = Grid.centered((2, 2, 11), (1.0, 1.0, 3.0))
    array = np.broadcast_to(grid.axis_mm(2), grid.shape).astype(np.float32)
    part, cropped = crop_axially(array, grid, -6.0, 9.0)
    assert part is not None
    np.testing.assert_allclose(part[0, 0], cropped.axis_mm(2))
    assert cropped.axis_mm(2)[0] == -6 and cropped.axis_mm(2)[-1] == 9


def test_coefficient_of_variation_of_white_noise_in_the_liver():
    grid = Grid.centered((40, 40, 40), (3.0, 3.0, 3.0))
    rng = np.random.default_rng(0)
    image = np.full(grid.shape, 1.0, np.float32)
    labels = np.zeros(grid.shape, np.uint8)
    labels[5:30, 5:30, 10:35] = 4
    image[labels == 4] = 10 + rng.normal(0, 1.5, (labels == 4).sum())
    box = liver_sphere(labels, 4, grid)
    assert box is not None and np.all(labels[box][sphere(grid)] == 4)
    assert abs(coefficient_of_variation(image, box, grid) - 0.15) < 0.02
    assert liver_sphere(labels, 9, grid) is None


def test_uniform_sphere_finds_the_even_organ():
    grid = Grid.centered((50, 50, 50), (3.0, 3.0, 3.0))
    rng = np.random.default_rng(0)
    image = rng.gamma(4.0, 1.0, grid.shape).astype(np.float32)
    image[:20, :20, :20] = 8 + rng.normal(0, 0.4, (20, 20, 20))
    box = uniform_sphere(image, grid)
    assert box is not None and all(s.stop <= 20 for s in box)
