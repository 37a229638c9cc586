"""The bilinear scale: water and air are exact at every voltage, and both lines meet."""

import numpy as np
import pytest

from data_recipes.errors import DataError
from data_recipes.hounsfield import hu_to_mu, remove_table

VOLTAGES = (80, 100, 110, 120, 130, 135, 140)


@pytest.mark.parametrize("kvp", VOLTAGES)
def test_air_is_nothing_and_water_is_water(kvp):
    mu = hu_to_mu(np.array([-1024.0, -1000.0, -500.0, 0.0]), kvp)
    np.testing.assert_allclose(mu, [0, 0, 0.048, 0.096], atol=1e-7)


@pytest.mark.parametrize("kvp", VOLTAGES)
def test_the_two_lines_meet(kvp):
    hu = np.arange(0.0, 100.0, 0.1)
    steps = np.diff(hu_to_mu(hu, kvp).astype(float))
    # The table is rounded, which leaves a step of up to 3e-5 /cm where the lines meet.
    assert steps.max() < 9.6e-6 + 3e-5
    assert steps.min() > -3e-5


def test_bone_by_voltage():
    # a x 2000 + b at 1000 HU, from the table of Carney et al.
    wanted = {80: 0.1354, 100: 0.1430, 110: 0.1472, 120: 0.1491, 130: 0.1526, 140: 0.1536}
    for kvp, mu in wanted.items():
        assert float(hu_to_mu(np.array(1000.0), kvp)) == pytest.approx(mu, abs=1e-6)
    between = float(hu_to_mu(np.array(1000.0), 135.0))
    assert wanted[130] < between < wanted[140]


@pytest.mark.parametrize("kvp", [70, 150, float("nan")])
def test_other_voltages_are_refused(kvp):
    with pytest.raises(DataError, match="--mu"):
        hu_to_mu(np.zeros(1), kvp)


def scan():
    """A body of 40 HU with lungs of -850 HU and gas at its edge, on foam of -900 HU, on a couch, beside a tube; in air."""
    x, y, z = np.meshgrid(np.arange(-60, 60, 4.0), np.arange(-60, 60, 4.0), np.arange(-40, 40, 8.0), indexing="ij")
    body = (x / 44) ** 2 + ((y - 10) / 30) ** 2 < 1
    lungs = ((np.abs(x) - 20) / 12) ** 2 + ((y - 10) / 16) ** 2 < 1
    hu = np.full(x.shape, -1000.0, np.float32)
    hu[(y > -36) & (y < -20)] = -900
    hu[(y <= -36) & (y > -50)] = -100
    hu[(x > 48) & (y > 40)] = 200
    hu[body] = 40
    hu[lungs & (np.abs(z) < 30)] = -850
    return hu, body


def test_only_the_body_and_what_it_encloses_stay():
    hu, body = scan()
    cleared = remove_table(hu)
    np.testing.assert_array_equal(cleared[body], hu[body])
    assert np.all(cleared[~body] == -1000) and (hu[~body] > -1000).any()
    assert cleared.dtype == np.float32 and np.all(cleared[body] > -900)
    np.testing.assert_array_equal(remove_table(cleared), cleared)


def test_the_largest_part_counts_and_not_the_densest():
    hu = np.full((20, 20, 6), -1000.0)
    hu[2:8, 2:8] = -50
    hu[12:15, 12:15] = 3000
    hu[8, 8] = 500
    assert set(np.unique(remove_table(hu))) == {-1000.0, -50.0}


def test_a_ct_without_a_body_is_refused():
    with pytest.raises(DataError, match=r"^the CT has no voxel above -300 HU[^\n]+$"):
        remove_table(np.full((3, 3, 3), -400.0))
