"""Samplers on Gaussian data, x_0 ~ N(m, v), whose exact denoiser is known: (m s^2 + a v x) / (a^2 v + s^2)."""

import math

import numpy as np
import pytest

from data_recipes.errors import UsageError
from denoise.diffusion.samplers import evaluations, sample, spread_times
from denoise.diffusion.schedule import NoiseSchedule

MEAN = 0.7
DRAWS = 20_000
SAMPLERS = ("ancestral", "ddim", "dpm", "heun")


def exact(schedule, variance, calls=None):
    """The denoiser, and the standard deviation of what it cannot know."""

    def parts(t):
        return float(schedule.signal(t)), float(schedule.noise(t))

    def estimate(x, t):
        if calls is not None:
            calls.append(t)
        a, s = parts(t)
        return (MEAN * s * s + a * variance * x) / (a * a * variance + s * s)

    def doubt(t):
        a, s = parts(t)
        return math.sqrt(variance * s * s / (a * a * variance + s * s))

    return estimate, doubt


def drawn(kind, variance, sampler, steps, seed=0):
    schedule, rng = NoiseSchedule(kind), np.random.default_rng(seed)
    estimate, doubt = exact(schedule, variance)
    a, s = float(schedule.signal(schedule.steps)), float(schedule.noise(schedule.steps))
    x = a * (MEAN + math.sqrt(variance) * rng.standard_normal(DRAWS)) + s * rng.standard_normal(DRAWS)
    times = spread_times(schedule, steps)
    return sample(estimate, schedule, times, x, lambda: rng.standard_normal(DRAWS), sampler, doubt=doubt)


@pytest.mark.parametrize("variance", [1.0, 0.05])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["linear", "cosine", "edm", "flow"])
def test_gaussian_data(kind, sampler, variance):
    """Mean and variance are right; at 25 steps a rule of first order has an error of its own, of less than a quarter.

    The last estimate is an expectation and lacks the variance that is left at its time, v^2 / (v + (s / a)^2) remains.
    """
    for steps, off in ((1000, 0.03), (25, {"ancestral": 0.06, "ddim": 0.24, "dpm": 0.06, "heun": 0.06}[sampler])):
        out = drawn(kind, variance, sampler, steps)
        last = NoiseSchedule(kind).ratio(spread_times(NoiseSchedule(kind), steps)[-1])
        assert out.mean() == pytest.approx(MEAN, abs=0.02 * math.sqrt(variance) + 1e-3)
        assert out.var() == pytest.approx(variance * variance / (variance + last**2), rel=off + 3 * math.sqrt(2 / DRAWS))


def test_flow_in_two_steps():
    """The mean is right; of the variance two first-order steps give a quarter at most, whatever the step between.

    From x = n at the end the first estimate is m. At u the second is m + v (1 - u) u n / ((1 - u)^2 v + u^2), whose
    variance is at most v / 4. Where the input tells almost all, v is small, and so is what lacks.
    """
    for variance in (1.0, 0.05, 0.002):
        out = drawn("flow", variance, "ddim", 2)
        u = spread_times(NoiseSchedule("flow"), 2)[-1] / 1000
        a = 1 - u
        assert out.mean() == pytest.approx(MEAN, abs=0.02 * math.sqrt(variance))
        assert out.var() == pytest.approx((variance * a * u / (a * a * variance + u * u)) ** 2, rel=0.03)
        assert out.var() < 0.26 * variance


def test_flow_in_two_steps_given_an_input():
    """x_0 ~ N(0, 1) seen as y = x_0 + 0.1 n: sampled images have the variance of x_0, since v is 0.01 then."""
    rng, schedule = np.random.default_rng(1), NoiseSchedule("flow")
    truth = rng.standard_normal(DRAWS)
    known = (truth + 0.1 * rng.standard_normal(DRAWS)) / 1.01
    left = 0.01 / 1.01

    def estimate(x, t):
        a, s = float(schedule.signal(t)), float(schedule.noise(t))
        return (known * s * s + a * left * x) / (a * a * left + s * s)

    out = sample(estimate, schedule, spread_times(schedule, 2), rng.standard_normal(DRAWS), lambda: 0.0, "ddim")
    assert out.var() == pytest.approx(1.0, abs=0.025)
    assert np.square(out - truth).mean() == pytest.approx(left, rel=0.3)


def test_an_estimate_that_is_right_gives_the_image():
    """Whatever the sampler, the noise, and the number of steps."""
    rng, truth = np.random.default_rng(2), np.linspace(-3, 9, 50)
    for kind in ("linear", "flow", "edm"):
        schedule = NoiseSchedule(kind)
        x = rng.standard_normal(50) * float(schedule.noise(1000)) + float(schedule.signal(1000)) * truth
        for sampler in SAMPLERS:
            for steps in (1, 2, 7):
                seen = []
                out = sample(
                    lambda x, t: truth, schedule, spread_times(schedule, steps), x, lambda: rng.standard_normal(50), sampler,
                    lambda t, image, seen=seen: seen.append(t),
                )  # fmt: skip
                assert np.array_equal(out, truth)
                assert seen == spread_times(schedule, steps)


def test_evaluations():
    for sampler in SAMPLERS:
        calls = []
        schedule = NoiseSchedule("linear")
        estimate, _ = exact(schedule, 1.0, calls)
        sample(estimate, schedule, spread_times(schedule, 6), np.ones(3), lambda: np.zeros(3), sampler)
        assert len(calls) == evaluations(sampler, 6)


def test_times_pass_through_anchors():
    schedule = NoiseSchedule("linear")
    times = spread_times(schedule, 5, through=(12.5, 80.0, 300.0))
    assert times[0] == 1000 and len(times) == 5 and {12.5, 80.0, 300.0} < set(times)
    assert times == sorted(times, reverse=True)
    assert spread_times(schedule, 1000) == list(range(1000, 0, -1))
    assert spread_times(schedule, 3, 90.0, through=(300.0,))[0] == 90.0
    with pytest.raises(UsageError, match="--steps: 3 evaluations cannot stop at 3 anchors"):
        spread_times(schedule, 3, through=(1.0, 2.0, 3.0))
    with pytest.raises(UsageError, match="--steps"):
        spread_times(schedule, 0)
