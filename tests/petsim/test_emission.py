"""Activity that a measured image shows in air takes no part in a simulation."""

from dataclasses import replace

import numpy as np
import pytest

import petsim
from data_recipes.phantoms.analytic import cylinder
from petsim.emission import MARGIN_MM, emitted, near_matter, share_in_air
from petsim.plan import plan_subject
from petsim.settings import SimulationSettings


def measured(haze_bqml: float):
    """A water cylinder of 8 kBq/mL with a level of activity all around it."""
    subject = cylinder(radius_mm=90.0, length_mm=120.0, bqml=8000.0, margin_mm=60.0)
    haze = np.where(subject.mu_per_cm > 0, 0, np.float32(haze_bqml)).astype(np.float32)
    return replace(subject, activity_bqml=subject.activity_bqml + haze, is_noisy=True, fwhm_mm=(4.0, 4.0, 4.0))


def test_what_lies_further_from_matter_than_the_margin_is_left_out():
    subject = measured(100.0)
    x, y, z = (subject.grid.axis_mm(a) for a in range(3))
    radius = np.hypot(x[:, None], y[None, :])[:, :, None]
    outside = radius + 0 * z > 90 + 2**0.5 * MARGIN_MM + 5
    inside = (radius < 85) & (np.abs(z) < 55)
    left = emitted(subject)
    assert not left[outside].any() and not near_matter(subject)[outside].any()
    np.testing.assert_array_equal(left[inside], subject.activity_bqml[inside])
    # Beside the axis, the margin is reached along a row of voxels.
    row = left[:, len(y) // 2, len(z) // 2] > 0
    assert np.abs(x[row]).max() == pytest.approx(90 + MARGIN_MM, abs=5)
    assert share_in_air(subject) == pytest.approx(1 - left.sum() / subject.activity_bqml.sum(), rel=1e-5)


def test_phantoms_are_taken_as_they_are():
    phantom = replace(measured(100.0), is_noisy=False)
    assert emitted(phantom) is phantom.activity_bqml and share_in_air(phantom) == 0


def test_a_mu_map_that_lacks_a_part_of_the_body_is_doubted():
    settings = SimulationSettings(scanner="biograph_vision_600", preset="fast")
    assert not any("in air" in w for w in plan_subject(measured(10.0), settings).warnings)
    assert any("in air" in w for w in plan_subject(measured(1000.0), settings).warnings)


def test_haze_does_not_darken_the_image():
    """Scatter is scaled by tails beside the body, where haze would pass for scatter."""
    subject = measured(80.0)
    result = petsim.simulate(subject, "biograph_vision_600", drf=[4], preset="fast", full_dose="simulated")
    assert result.provenance["forward"]["activity_left_out_in_air"] == pytest.approx(share_in_air(subject), abs=1e-5)
    x, y, z = (result.grid.axis_mm(a) for a in range(3))
    inside = (np.hypot(x[:, None], y[None, :]) < 60)[:, :, None] & (np.abs(z) < 30)[None, None, :]
    assert result.images[0, 0][inside].mean() == pytest.approx(8000, rel=0.03)
