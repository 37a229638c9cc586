"""Mismatched mu-maps: shifts are exact, draws have their distribution, and truncation cuts at a radius."""

import json

import numpy as np
import pytest

from data_recipes.errors import UsageError
from data_recipes.grid import Grid
from petsim.physics.mismatch import AXIAL_SIGMA_MM, TRANSAXIAL_SIGMA_MM, MuMismatch, apply_mismatch, draw_mismatch

GRID = Grid.centered((21, 19, 31), (4.0, 3.0, 2.5), (7.0, -11.0, 40.0))


@pytest.mark.parametrize("shift", [(0.0, 0.0, 5.0), (4.0, -3.0, 0.0), (1.7, -5.2, 3.3), (-6.1, 0.4, -9.9)])
def test_a_plane_is_moved_by_the_shift(shift):
    """Linear interpolation is exact on a linear map, away from the edges."""
    x, y, z = np.meshgrid(*(GRID.axis_mm(a) for a in range(3)), indexing="ij")

    def plane(dx, dy, dz):
        return 0.5 + 1e-3 * (2 * (x - dx) - 3 * (y - dy) + (z - dz))

    moved = apply_mismatch(plane(0, 0, 0), GRID, MuMismatch(shift))
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(moved[inner], plane(*shift)[inner], atol=1e-6)


def test_a_whole_voxel_moves_content_towards_the_head_and_keeps_the_edge():
    mu = np.random.default_rng(0).random(GRID.shape).astype(np.float32)
    moved = apply_mismatch(mu, GRID, MuMismatch((0.0, 0.0, 5.0)))
    np.testing.assert_array_equal(moved[:, :, 2:], mu[:, :, :-2])
    np.testing.assert_array_equal(moved[:, :, 0], mu[:, :, 0])


def test_interpolation_keeps_the_total_of_what_stays_inside():
    mu = np.zeros(GRID.shape, np.float32)
    mu[8:12, 8:12, 10:20] = 0.096
    moved = apply_mismatch(mu, GRID, MuMismatch((3.1, -4.4, 7.7)))
    assert moved.sum(dtype=float) == pytest.approx(mu.sum(dtype=float), rel=1e-5)
    for axis, shift in enumerate((3.1, -4.4, 7.7)):
        others = tuple(a for a in range(3) if a != axis)
        before, after = (np.average(GRID.axis_mm(axis), weights=m.sum(axis=others)) for m in (mu, moved))
        assert after - before == pytest.approx(shift, abs=1e-3)


def test_truncation_cuts_a_cylinder_around_the_center():
    mu = np.ones(GRID.shape, np.float32)
    cut = apply_mismatch(mu, GRID, MuMismatch(truncation_mm=20.0))
    x, y = (GRID.axis_mm(a) - c for a, c in ((0, 7.0), (1, -11.0)))
    np.testing.assert_array_equal(cut[:, :, 5] > 0, np.hypot(x[:, None], y[None, :]) <= 20)
    beside = apply_mismatch(mu, GRID, MuMismatch(truncation_mm=20.0), center_mm=(15.0, -11.0, 0.0))
    np.testing.assert_array_equal(beside[:, :, 5] > 0, np.hypot(x[:, None] - 8, y[None, :]) <= 20)


def test_no_mismatch_changes_nothing_and_leaves_the_input():
    mu = np.random.default_rng(0).random(GRID.shape).astype(np.float32)
    none = draw_mismatch(0, "phantom-0000", 0.0)
    assert none.is_none and not MuMismatch((0.0, 0.0, 1.0)).is_none and not MuMismatch(truncation_mm=1.0).is_none
    same = apply_mismatch(mu, GRID, none)
    np.testing.assert_array_equal(same, mu)
    assert same is not mu


def test_draws_depend_on_seed_and_subject_only_and_scale():
    one = draw_mismatch(3, "phantom-0001")
    assert draw_mismatch(3, "phantom-0001") == one
    assert draw_mismatch(4, "phantom-0001") != one and draw_mismatch(3, "phantom-0002") != one
    np.testing.assert_allclose(draw_mismatch(3, "phantom-0001", 2.0).shift_mm, 2 * np.array(one.shift_mm))
    assert draw_mismatch(3, "phantom-0001", truncation_mm=250.0).truncation_mm == 250


def test_draws_have_their_distribution():
    shifts = np.array([draw_mismatch(1, f"s{i}").shift_mm for i in range(2000)])
    sigma = np.array([TRANSAXIAL_SIGMA_MM, TRANSAXIAL_SIGMA_MM, AXIAL_SIGMA_MM])
    assert np.all(np.abs(shifts.mean(axis=0)) < 4 * sigma / np.sqrt(2000))
    np.testing.assert_allclose(shifts.std(axis=0), sigma, rtol=0.07)
    assert np.abs(np.corrcoef(shifts.T) - np.eye(3)).max() < 0.09
    # The published mean distance that the axial figure comes from.
    assert np.abs(shifts[:, 2]).mean() == pytest.approx(3.5, rel=0.08)


def test_description_is_json():
    assert json.loads(json.dumps(MuMismatch((1.23456, 0.0, -2.0), 250.0).describe())) == {
        "shift_mm": [1.235, 0.0, -2.0],
        "truncation_mm": 250.0,
    }


@pytest.mark.parametrize("make", [
    lambda: MuMismatch((0.0, np.nan, 0.0)), lambda: MuMismatch(truncation_mm=-1.0), lambda: draw_mismatch(0, "a", -1.0),
])  # fmt: skip
def test_nonsense_is_refused_in_one_line(make):
    with pytest.raises(UsageError, match=r"^[^\n]+$"):
        make()
