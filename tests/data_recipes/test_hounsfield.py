"""The bilinear scale: water and air are exact at every voltage, and both lines meet."""

import numpy as np
import pytest

from data_recipes.errors import DataError
from data_recipes.hounsfield import hu_to_mu

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
