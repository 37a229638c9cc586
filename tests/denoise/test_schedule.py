"""Noise schedules against their published formulas."""

import math

import numpy as np
import pytest

from data_recipes.errors import UsageError
from denoise.diffusion.schedule import NoiseSchedule

KINDS = ("linear", "cosine", "edm", "flow")


def test_linear_is_that_of_ddpm():
    """Ho et al. 2020: the product of 1 - beta over 1000 steps, about 4e-5 at the end."""
    beta = np.linspace(1e-4, 0.02, 1000)
    s = NoiseSchedule("linear")
    for t in (1, 2, 100, 1000):
        assert s.signal(t) ** 2 == pytest.approx(np.prod(1 - beta[:t]), rel=1e-9)
    assert s.signal(1000) ** 2 == pytest.approx(4.0e-5, rel=0.02)


def test_cosine_is_that_of_improved_ddpm():
    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    s = NoiseSchedule("cosine")
    for t in (1, 250, 900):
        assert s.signal(t) ** 2 == pytest.approx(f(t) / f(0), rel=1e-9)


def test_edm_and_flow():
    s = NoiseSchedule("edm", 18)
    assert s.noise(1) == pytest.approx(0.002) and s.noise(18) == pytest.approx(80.0)
    middle = (0.002 ** (1 / 7) + 8 / 17 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    assert s.noise(9) == pytest.approx(middle)
    flow = NoiseSchedule("flow")
    assert flow.signal(250.0) == 0.75 and flow.noise(250.0) == 0.25
    assert flow.signal(1000) == 0 and np.isinf(flow.ratio(1000))


@pytest.mark.parametrize("kind", KINDS)
def test_time_and_ratio_are_inverse_and_monotone(kind):
    s = NoiseSchedule(kind)
    t = np.array([0.0, 0.3, 1.0, 1.5, 77.2, 500.0, 999.0])
    assert s.time_of(s.ratio(t)) == pytest.approx(t, abs=1e-6)
    assert s.time_of(np.inf) == 1000
    assert np.all(np.diff(s.ratio(np.linspace(0, 999, 4000))) > 0)
    assert s.signal(0.0) == 1 and s.noise(0.0) == 0


def test_first_step_that_reaches_an_nmae():
    """Published arithmetic on MAP-Diff's anchors: mean SUV 1, white noise, NMAE = sqrt(2 / pi) s / a over the mean.

    With SUV as they are, steps 28, 44, 74, 111, 162 (linear) and 57, 89, 150, 223, 322 (cosine); with SUV / 16 the
    anchors of 1/2, 1/4 and 1/10 lie within some ten steps of the start.
    """
    nmae = np.array([0.08, 0.12, 0.20, 0.30, 0.45])
    for kind, whole, sixteenth in (
        ("linear", (28, 44, 74, 111, 162), (1, 1, 3, 5, 8)),
        ("cosine", (57, 89, 150, 223, 322), (1, 3, 5, 10, 16)),
    ):
        s = NoiseSchedule(kind)
        for mean, steps in ((1.0, whole), (1 / 16, sixteenth)):
            reached = np.ceil(s.time_of(nmae * mean * math.sqrt(math.pi / 2)))
            assert np.abs(reached - steps).max() <= 1


def test_schedules_are_values():
    assert NoiseSchedule("linear") == NoiseSchedule("linear", 1000)
    assert len({NoiseSchedule(kind) for kind in KINDS}) == 4
    with pytest.raises(UsageError, match="--diffusion-steps"):
        NoiseSchedule("linear", 3)
