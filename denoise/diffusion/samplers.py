"""From noise to an image, by repeated estimates of the image: samplers with one signature.

They are plain arithmetic on arrays of any library; what estimates the image and what draws noise are callables. With
x = a x_0 + s n, an estimate of x_0 at time t is one of n too, n = (x - a x_0) / s.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from data_recipes.errors import UsageError
from denoise.diffusion.schedule import NoiseSchedule

SamplerName = Literal["ancestral", "ddim", "dpm", "heun"]

Array = Any
"""A NumPy array or a torch tensor."""

Estimate = Callable[[Array, float], Array]
"""(diffusing image, time) -> estimate of the image."""


def spread_times(
    schedule: NoiseSchedule, count: int, start: float | None = None, through: Sequence[float] = ()
) -> list[float]:
    """Times of estimates, from `start` towards 0, which itself is left out.

    They are squares of evenly spread numbers, since most of what an image holds is settled at little noise; evenly spread
    where all steps are taken, and on the schedule "edm", whose steps are spread so already.

    Parameters
    ----------
    schedule : NoiseSchedule
    count : int
        How many.
    start : float, optional
        The first; None: the schedule's end.
    through : sequence of float
        The nearest times but the first are moved to these, as far as they lie below the start: where estimates are wanted.

    Raises
    ------
    UsageError
        Fewer times than asked to pass through.
    """
    if count < 1:
        raise UsageError(f"--steps: must be 1 or more, got {count}")
    first = schedule.steps if start is None else start
    power = 1 if count == schedule.steps or schedule.kind == "edm" else 2
    times = (first * (np.arange(count, 0, -1) / count) ** power).tolist()
    wanted = sorted({float(t) for t in through if 0 < t < first}, reverse=True)
    if len(wanted) > count - 1:
        raise UsageError(
            f"--steps: {count} evaluations cannot stop at {len(wanted)} anchors too; give {len(wanted) + 1} or more"
        )
    free = list(range(1, count))
    for t in wanted:
        nearest = min(free, key=lambda k: abs(times[k] - t))
        free.remove(nearest)
        times[nearest] = t
    return sorted(times, reverse=True)


def sample(
    estimate: Estimate, schedule: NoiseSchedule, times: Sequence[float], x: Array, draw: Callable[[], Array],
    sampler: SamplerName = "ddim", seen: Callable[[float, Array], None] = lambda time, image: None,
    doubt: Callable[[float], float] = lambda time: 0.0,
) -> Array:  # fmt: skip
    """One image.

    "ancestral": steps of the Markov chain, with the posterior variance (Ho et al. 2020, arXiv 2006.11239, eqs. 6 and 7; for
    times further apart the same Gaussians), to which the variance of x_0 given x_t is added (Bao et al. 2022, arXiv
    2201.06503, eq. 8), without which few steps give too little. "ddim": its deterministic limit (Song et al. 2020, arXiv
    2010.02502, eq. 12 with sigma 0), which is Euler's rule on the probability flow, and on straight flows. "dpm":
    DPM-Solver++ (2M), second order from the estimate before (Lu et al. 2022, arXiv 2211.01095, algorithm 2). "heun": second
    order by a second estimate (Karras et al. 2022, arXiv 2206.00364, algorithm 1 without churn; here along the angle whose
    tangent is s / a, as Salimans and Ho 2022, arXiv 2202.00512, write the flow).

    Parameters
    ----------
    estimate : callable
    schedule : NoiseSchedule
    times : sequence of float
        Falling; the last estimate is the result.
    x : array
        At times[0].
    draw : callable
        Noise of unit variance, of the shape of x; "ancestral" only.
    sampler : str
    seen : callable
        Told every estimate and its time, "heun"'s second ones left out.
    doubt : callable
        Root mean squared error of an estimate at a time; "ancestral" only.

    Returns
    -------
    array
    """
    signal, noise = schedule.signal(np.asarray(times)), schedule.noise(np.asarray(times))
    before: Array = None
    for k, time in enumerate(times):
        image = estimate(x, time)
        seen(time, image)
        if k == len(times) - 1:
            return image
        (a, b), (s, e) = signal[k : k + 2].tolist(), noise[k : k + 2].tolist()
        if sampler == "ancestral":
            # Of s / a squared, the later over the earlier; 0 where the earlier image is noise alone.
            kept = (a * e / (b * s)) ** 2
            spread = math.sqrt(e * e * (1 - kept) + (b * (1 - kept) * doubt(time)) ** 2)
            x = b * (1 - kept) * image + a * e * e / (b * s * s) * x + spread * draw()
            continue
        shrunk = (e / s) * x
        if sampler == "dpm" and before is not None:
            step, last = math.log(s * b / (a * e)), _log_ratio(signal, noise, k - 1)
            share = step / (2 * last)
            image, before = (1 + share) * image - share * before, image
        elif sampler == "dpm":
            before = image
        following = shrunk + (b - a * e / s) * image
        if sampler == "heun":
            ahead = estimate(following, times[k + 1])
            # With a = h cos(angle) and s = h sin(angle), x / h moves at cos(angle) n - sin(angle) x_0, which stays finite.
            here, there = math.hypot(a, s), math.hypot(b, e)
            speed = (a / s * (x - a * image) - s * image) / here + (b / e * (following - b * ahead) - e * ahead) / there
            following = there * (x / here + 0.5 * (math.atan2(e, b) - math.atan2(s, a)) * speed)
        x = following
    raise UsageError("--steps: must be 1 or more")


def evaluations(sampler: SamplerName, count: int) -> int:
    """Evaluations of a network that `sample` needs for so many times."""
    return 2 * count - 1 if sampler == "heun" else count


def _log_ratio(signal: np.ndarray, noise: np.ndarray, k: int) -> float:
    """Fall of the logarithm of s / a over step k; infinite from noise alone."""
    if signal[k] == 0:
        return math.inf
    return math.log(noise[k] * signal[k + 1] / (signal[k] * noise[k + 1]))
