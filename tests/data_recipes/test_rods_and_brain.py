"""Derenzo rods and the brain: volumes, ratios and places that are known."""

import numpy as np
import pytest
from scipy import ndimage

from data_recipes.errors import UsageError
from data_recipes.phantoms.analytic import DERENZO_MM, derenzo
from data_recipes.phantoms.brain import brain_phantom


def test_rods_have_their_volume_and_pitch():
    phantom = derenzo(spacing_mm=(1.0, 1.0, 4.0), length_mm=40.0)
    middle = phantom.labels[:, :, phantom.grid.shape[2] // 2]
    slab = phantom.activity_bqml[:, :, phantom.grid.shape[2] // 2]
    for number, diameter in enumerate(DERENZO_MM, start=2):
        parts, count = ndimage.label(middle == number)
        assert count >= 3 and phantom.label_names[number] == f"rods_{diameter:g}"
        x, y = (phantom.grid.axis_mm(a) for a in (0, 1))
        centers = np.array(ndimage.center_of_mass(middle == number, parts, range(1, count + 1)))
        centers = np.stack([np.interp(centers[:, a], np.arange(len(v)), v) for a, v in ((0, x), (1, y))], axis=1)
        gaps = np.linalg.norm(centers[:, None] - centers[None], axis=2)
        nearest = np.sort(gaps, axis=1)[:, 1]
        np.testing.assert_allclose(nearest, 2 * diameter, atol=0.6)
        # Sector `number` lies between its angles, and its rods hold pi d^2 / 4 each.
        angle = np.arctan2(centers[:, 1], centers[:, 0]) % (2 * np.pi)
        assert ((angle > (number - 2) * np.pi / 3) & (angle < (number - 1) * np.pi / 3)).all()
        around = ndimage.binary_dilation(middle == number, iterations=2)
        assert slab[around].sum() / 20_000 == pytest.approx(count * np.pi * diameter**2 / 4, rel=2e-3)
    cold = derenzo(hot=False, spacing_mm=(1.0, 1.0, 4.0), length_mm=40.0)
    total = (cold.activity_bqml + phantom.activity_bqml).sum(dtype=float) * phantom.grid.voxel_ml
    assert total / 20_000 == pytest.approx(np.pi * 10.0**2 * 4.0, rel=1e-3)
    with pytest.raises(UsageError, match="rod must be positive"):
        derenzo(())


def test_the_brain_has_its_ratio_and_structure():
    brain = brain_phantom(spacing_mm=(2.0, 2.0, 2.0))
    gray, white, fluid = (brain.labels == v for v in (3, 2, 1))
    core = {
        n: ndimage.binary_erosion(m, np.ones((3, 3, 3))) for n, m in (("gray", gray), ("white", white), ("fluid", fluid))
    }
    assert np.median(brain.activity_bqml[core["gray"]]) == 20_000 and np.median(brain.activity_bqml[core["white"]]) == 5_000
    assert brain.activity_bqml[core["fluid"]].max() == 0
    ml = {name: m.sum() * brain.grid.voxel_ml for name, m in (("gray", gray), ("white", white))}
    # An adult's cortex and nuclei have some 600 mL, white matter some 500.
    assert 350 < ml["gray"] < 850 and 300 < ml["white"] < 750
    np.testing.assert_array_equal(brain.labels[:, :, :2], 0)
    assert brain.mu_per_cm.max() == np.float32(0.096)
    coarse = brain_phantom(spacing_mm=(4.0, 4.0, 4.0))
    assert coarse.total_mbq() == pytest.approx(brain.total_mbq(), rel=0.005)
    with pytest.raises(UsageError, match="gray_bqml"):
        brain_phantom(gray_bqml=0.0)
