"""The NEMA phantoms have the volumes, places and activities of the drawing."""

import numpy as np
import pytest

from data_recipes.errors import UsageError
from data_recipes.grid import Grid
from data_recipes.phantoms.nema import (
    SPHERES_MM,
    body_outline_mm,
    body_phantom,
    point_sources,
    sphere_centers_mm,
    sphere_fraction,
)

BODY_MM2 = np.pi * 147**2 / 2 + 140 * 77 + np.pi * 77**2 / 2
LUNG_ML = np.pi * 25**2 * 194e-3
SPHERES_ML = sum(np.pi / 6 * d**3 * 1e-3 for d in SPHERES_MM)
WALLS_ML = sum(np.pi / 6 * (d + 2) ** 3 * 1e-3 for d in SPHERES_MM) - SPHERES_ML


@pytest.mark.parametrize(("radius", "spacing"), [(5.0, (2.0, 2.0, 2.0)), (18.5, (3.3, 2.1, 5.0)), (0.5, (1.0, 1.0, 1.0)),
                                                 (0.5, (4.0, 4.0, 4.0))])  # fmt: skip
def test_balls_have_their_volume_and_place(radius, spacing):
    grid = Grid.centered((24, 31, 15), spacing, (1.0, -2.0, 3.0))
    center = (1.7, -3.1, 2.2)
    part = sphere_fraction(grid, center, radius)
    assert part.sum() * grid.voxel_ml == pytest.approx(4 / 3 * np.pi * radius**3 * 1e-3, rel=0.01)
    assert part.min() >= 0 and part.max() <= 1 + 1e-12
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        found = np.average(grid.axis_mm(axis), weights=part.sum(axis=others))
        assert abs(found - center[axis]) <= (0.02 if radius > 2 else spacing[axis] / 2)


def test_ball_beside_the_grid_is_nothing():
    assert sphere_fraction(Grid.centered((4, 4, 4), (1.0, 1.0, 1.0)), (50.0, 0.0, 0.0), 3.0).sum() == 0


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (4.0, 3.0, 5.0)])
def test_body_phantom_holds_its_activity_and_mass(spacing):
    subject = body_phantom(background_bqml=1000.0, ratio=4.0, spacing_mm=spacing)
    body_ml = BODY_MM2 * 194e-3
    wanted = 1000 * (body_ml - LUNG_ML + 3 * SPHERES_ML - WALLS_ML)
    assert subject.total_mbq() * 1e6 == pytest.approx(wanted, rel=2e-4)
    # C5H8O2 of 1.18 g/mL: 54 electrons in 100.116 g/mol, water 10 in 18.015.
    plastic = 0.096 * 1.18 * (54 / 100.116) / (10 / 18.015)
    mass = 0.096 * (body_ml - LUNG_ML - WALLS_ML) + 0.0288 * LUNG_ML + plastic * WALLS_ML
    assert subject.mu_per_cm.sum(dtype=float) * subject.grid.voxel_ml == pytest.approx(mass, rel=2e-4)
    np.testing.assert_allclose(subject.grid.center_mm, 0, atol=1e-9)


def test_parts_are_where_they_belong():
    subject = body_phantom(background_bqml=1000.0, ratio=8.0)
    grid = subject.grid

    def at(x, y, z):
        place = (round((v - o) / d) for v, o, d in zip((x, y, z), grid.origin_mm, grid.spacing_mm, strict=True))
        index = tuple(place)
        return subject.activity_bqml[index], subject.mu_per_cm[index], subject.label_names[subject.labels[index]]

    assert at(0, 0, 0) == (0, np.float32(0.0288), "lung_insert")
    for diameter, (x, y) in sphere_centers_mm().items():
        assert at(x, y, 0) == (8000, np.float32(0.096), f"sphere_{diameter:g}")
        assert at(x, y, diameter / 2 + 4)[0] == 1000
    assert at(-57.2, 0, 0)[2] == "sphere_37" and at(57.2, 0, 0)[2] == "sphere_17"
    # Flat on the back, round in front; 194 mm long with the spheres 70 mm from the head end.
    assert at(69, -109, 0)[0] == 1000 and at(69, -115, 0)[0] == 0 and at(120, 60, 0)[0] == 0
    assert at(0, 109, 0)[0] == 1000 and at(0, 115, 0)[0] == 0
    assert at(100, 0, 67)[0] == 1000 and at(100, 0, 73)[0] == 0 and at(100, 0, -121)[0] == 1000 and at(100, 0, -127)[0] == 0


def test_cold_spheres_and_walls():
    """Cold spheres have no activity, and a wall takes that of the background around a sphere."""
    hot = body_phantom(background_bqml=1000.0)
    some = body_phantom(background_bqml=1000.0, cold_mm=(28.0, 37.0))
    lost = sum(4 * np.pi / 6 * d**3 for d in (28.0, 37.0))
    assert (hot.total_mbq() - some.total_mbq()) * 1e6 == pytest.approx(lost, rel=1e-3)
    np.testing.assert_array_equal(hot.mu_per_cm, some.mu_per_cm)
    np.testing.assert_array_equal(hot.labels, some.labels)
    # Through the middle of the cold sphere of 37 mm, whose wall ends 19.5 mm from it.
    fine = Grid.centered((90, 1, 1), (0.5, 0.5, 0.5), (-57.2, 0.0, 0.0))
    cold, away = body_phantom(background_bqml=1000.0, cold_mm=(37.0,), grid=fine), np.abs(fine.axis_mm(0) + 57.2)
    line, mu = cold.activity_bqml[:, 0, 0], cold.mu_per_cm[:, 0, 0]
    assert np.all(np.abs(line[away < 19.0]) < 1e-3) and np.allclose(line[away > 20.0], 1000)
    assert np.allclose(mu[(away > 18.8) & (away < 19.2)], 0.1101, rtol=1e-3) and np.allclose(mu[away < 18.0], 0.096)


def test_the_phantom_on_a_grid_of_its_own_is_the_same_phantom():
    usual = body_phantom(scatter_phantom=True, spacing_mm=(4.0, 4.0, 4.0))
    x, y, z = usual.grid.shape
    cut = 100
    grid = Grid((x, y, z - cut), usual.grid.spacing_mm, (*usual.grid.origin_mm[:2], usual.grid.origin_mm[2] + 4.0 * cut))
    part = body_phantom(scatter_phantom=True, grid=grid)
    assert part.grid == grid
    np.testing.assert_allclose(part.activity_bqml, usual.activity_bqml[..., cut:], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(part.mu_per_cm, usual.mu_per_cm[..., cut:])


def test_outline_is_closed_and_as_wide_as_the_drawing():
    x = np.array([-147.0, -70.0, 0.0, 146.999, 147.0, 160.0])
    low, high = body_outline_mm(x)
    np.testing.assert_allclose(low[[1, 2]], -112)
    assert high[2] == 112 and np.all(high >= low)
    np.testing.assert_allclose((high - low)[[0, 4, 5]], 0, atol=1e-6)


def test_scatter_phantom_lies_beyond_the_feet_with_its_line():
    plain = body_phantom(spacing_mm=(4.0, 4.0, 4.0))
    subject = body_phantom(scatter_phantom=True, spacing_mm=(4.0, 4.0, 4.0))
    assert subject.total_mbq() - plain.total_mbq() == pytest.approx(116.6, rel=1e-4)
    z = subject.grid.axis_mm(2)
    beyond = z < -126
    line = subject.activity_bqml[:, :, beyond].sum(axis=(0, 2))
    assert np.average(subject.grid.axis_mm(1), weights=line) == pytest.approx(-45, abs=2)
    more = subject.mu_per_cm.sum(dtype=float) - plain.mu_per_cm.sum(dtype=float)
    assert more * subject.grid.voxel_ml == pytest.approx(0.0945 * np.pi * 10.15**2 * 70, rel=1e-3)
    assert subject.label_names[9] == "scatter_phantom" and z[0] < -820


def test_points_hold_their_activity():
    places = [(0.0, 10.0, -40.0), (0.0, 100.0, -40.0)]
    subject = point_sources(places, activity_mbq=2.0)
    assert subject.mu_per_cm.max() == 0
    np.testing.assert_allclose(subject.grid.center_mm[:2], 0, atol=1e-9)
    assert subject.activity_bqml.sum(dtype=float) * subject.grid.voxel_ml * 1e-6 == pytest.approx(4.0, rel=1e-3)
    where = np.argwhere(subject.labels == 1) * subject.grid.spacing_mm + subject.grid.origin_mm
    for place in places:
        assert np.abs(where - place).max(axis=1).min() <= 1
    # The scanner's center, z = 0, lies inside.
    assert subject.grid.axis_mm(2)[0] < 0 < subject.grid.axis_mm(2)[-1]


@pytest.mark.parametrize("make", [
    lambda: body_phantom(cold_mm=(11.0,)),
    lambda: body_phantom(ratio=0.0), lambda: body_phantom(background_bqml=-1.0), lambda: point_sources([]),
    lambda: point_sources(activity_mbq=0.0),
])  # fmt: skip
def test_nonsense_is_refused_in_one_line(make):
    with pytest.raises(UsageError, match=r"^[^\n]+$"):
        make()
