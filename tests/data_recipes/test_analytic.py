"""Analytic phantoms must be right in volume, activity and path length."""

import numpy as np
import pytest

from data_recipes.errors import UsageError
from data_recipes.phantoms.analytic import cylinder, line_source


@pytest.mark.parametrize("spacing", [(4.0, 4.0, 4.0), (3.3, 2.1, 5.7), (7.0, 7.0, 7.0)])
def test_cylinder_holds_its_activity_and_mass(spacing):
    subject = cylinder(83.0, 171.0, bqml=4000.0, spacing_mm=spacing, center_mm=(11.3, -4.9))
    volume_ml = np.pi * 8.3**2 * 17.1
    assert subject.total_mbq() == pytest.approx(4000.0 * volume_ml * 1e-6, rel=1e-3)
    assert subject.mu_per_cm.sum(dtype=float) * subject.grid.voxel_ml == pytest.approx(0.096 * volume_ml, rel=1e-3)
    assert subject.activity_at_scan_mbq() == pytest.approx(subject.total_mbq(), rel=1e-3)


def test_cylinder_is_where_it_was_put_and_flat_inside():
    subject = cylinder(60.0, 100.0, bqml=1000.0, spacing_mm=(3.0, 3.0, 3.0), center_mm=(20.0, -7.0))
    activity, grid = subject.activity_bqml.astype(float), subject.grid
    for axis, want in enumerate((20.0, -7.0, 0.0)):
        others = tuple(i for i in range(3) if i != axis)
        assert np.average(grid.axis_mm(axis), weights=activity.sum(axis=others)) == pytest.approx(want, abs=0.02)
    x, y, z = np.meshgrid(*(grid.axis_mm(i) for i in range(3)), indexing="ij")
    r = np.hypot(x - 20.0, y + 7.0)
    np.testing.assert_allclose(activity[(r < 57) & (np.abs(z) < 48)], 1000.0, rtol=1e-6)
    assert activity[(r > 63) | (np.abs(z) > 52)].max() == 0.0
    np.testing.assert_array_equal(subject.labels[(r < 57) & (np.abs(z) < 48)], 1)
    assert subject.label_names[1] == "background"


def test_mu_gives_the_diameter_as_path_length():
    subject = cylinder(75.0, 60.0, spacing_mm=(2.5, 2.5, 5.0), mu_per_cm=0.1)
    middle = subject.mu_per_cm[:, :, subject.grid.shape[2] // 2]
    through_center = middle.sum(axis=0)[subject.grid.shape[1] // 2] * 0.25
    y = subject.grid.axis_mm(1)[subject.grid.shape[1] // 2]
    assert through_center == pytest.approx(0.1 * 2 * np.sqrt(7.5**2 - (y / 10) ** 2), rel=2e-3)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.0, 1.0, 5.0), (4.0, 4.0, 4.0)])
def test_line_source_holds_its_activity_over_its_length(spacing):
    subject = line_source(700.0, activity_mbq=7.5, diameter_mm=2.0, spacing_mm=spacing, center_mm=(3.0, 10.0))
    assert subject.total_mbq() == pytest.approx(7.5, rel=2e-3)
    assert subject.mu_per_cm.max() == 0.0
    along = subject.activity_bqml.sum(axis=(0, 1), dtype=float)
    z = subject.grid.axis_mm(2)
    inside = np.abs(z) < 350.0 - spacing[2]
    np.testing.assert_allclose(along[inside] * subject.grid.voxel_ml * 1e-6, 7.5 * spacing[2] / 700.0, rtol=2e-3)
    assert np.all(along[np.abs(z) > 350.0 + spacing[2] / 2] == 0.0)
    weights = subject.activity_bqml.sum(axis=2, dtype=float)
    for axis, want in enumerate((3.0, 10.0)):
        found = np.average(subject.grid.axis_mm(axis), weights=weights.sum(axis=1 - axis))
        assert abs(found - want) <= spacing[axis] / 2, "a thin source lies in the voxel that holds it"


@pytest.mark.parametrize("make", [
    lambda: cylinder(0.0, 100.0), lambda: cylinder(10.0, 100.0, bqml=-1.0), lambda: cylinder(9.0, 9.0, mu_per_cm=-0.1),
    lambda: line_source(-700.0), lambda: line_source(activity_mbq=float("nan")),
])  # fmt: skip
def test_nonsense_is_refused_in_one_line(make):
    with pytest.raises(UsageError) as caught:
        make()
    assert "\n" not in str(caught.value)
