"""How much of the image and how much noise a diffusing image holds at each time.

At time t in [0, T] it is x_t = a(t) x_0 + s(t) noise, with a(0) = 1 and s(0) = 0. Steps of training are t = 1 ... T; between
them the logarithm of s / a is interpolated.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from data_recipes.errors import UsageError

Kind = Literal["linear", "cosine", "edm", "flow"]

LEAST_SIGNAL = 1e-4
"""The image's part never gets less but in a flow, whose end is noise alone: an estimate divides by it."""


@dataclass(frozen=True)
class NoiseSchedule:
    """Signal a(t) and noise s(t).

    Parameters
    ----------
    kind : str
        "linear": a^2 is the product of 1 - beta, beta from 1e-4 to 0.02 for 1000 steps, for others in proportion (Ho et al.
        2020, arXiv 2006.11239). "cosine": a^2 as the square of a cosine (Nichol and Dhariwal 2021, arXiv 2102.09672, eq.
        17). Both have a^2 + s^2 = 1. "edm": a = 1, s from 0.002 to 80 with rho = 7 (Karras et al. 2022, arXiv 2206.00364,
        eq. 5). "flow": a = 1 - t/T, s = t/T, straight lines from the image to noise (Liu et al. 2022, arXiv 2209.03003).
    steps : int
        T.
    """

    kind: Kind = "linear"
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 10:
            raise UsageError(f"--diffusion-steps: must be 10 or more, got {self.steps}")

    def signal(self, time: np.ndarray | float) -> np.ndarray:
        """a at times in [0, T], float64."""
        if self.kind == "edm":
            return np.ones_like(np.asarray(time, np.float64))
        if self.kind == "flow":
            return 1 - np.asarray(time, np.float64) / self.steps
        return 1 / np.sqrt(1 + self.ratio(time) ** 2)

    def noise(self, time: np.ndarray | float) -> np.ndarray:
        """s at times in [0, T], float64."""
        if self.kind == "flow":
            return np.asarray(time, np.float64) / self.steps
        return self.signal(time) * self.ratio(time)

    def ratio(self, time: np.ndarray | float) -> np.ndarray:
        """s / a, the standard deviation of the noise in x_t / a; infinite at the end of a flow."""
        t = np.asarray(time, np.float64)
        if self.kind == "flow":
            with np.errstate(divide="ignore"):
                return t / (self.steps - t)
        times, logarithms = _table(self)
        # Below the first step in proportion, since the logarithm of no noise is infinite.
        return np.where(t < 1, t * np.exp(logarithms[0]), np.exp(np.interp(t, times, logarithms)))

    def time_of(self, ratio: np.ndarray | float) -> np.ndarray:
        """Time in [0, T] at which s / a is `ratio`, float64; T for all that is larger."""
        r = np.asarray(ratio, np.float64)
        if self.kind == "flow":
            return np.where(np.isinf(r), self.steps, self.steps * r / (1 + np.where(np.isinf(r), 0, r)))
        times, logarithms = _table(self)
        first = np.exp(logarithms[0])
        with np.errstate(divide="ignore"):
            return np.where(r < first, r / first, np.interp(np.log(r), logarithms, times))


@lru_cache(maxsize=16)
def _table(schedule: NoiseSchedule) -> tuple[np.ndarray, np.ndarray]:
    """Steps 1 ... T and the logarithm of s / a there."""
    n = schedule.steps
    times = np.arange(1.0, n + 1)
    if schedule.kind == "edm":
        least, most, rho = 0.002, 80.0, 7.0
        return times, rho * np.log(np.linspace(least ** (1 / rho), most ** (1 / rho), n))
    if schedule.kind == "linear":
        # With few steps each of them does the work of many, but none may leave less than nothing.
        beta = np.minimum(np.linspace(1e-4, 0.02, n) * 1000 / n, 0.999)
        squared = np.cumprod(1 - beta)
    else:
        offset = 0.008
        squared = (
            np.cos((times / n + offset) / (1 + offset) * math.pi / 2) / np.cos(offset / (1 + offset) * math.pi / 2)
        ) ** 2
    squared = np.maximum(squared, LEAST_SIGNAL**2)
    return times, 0.5 * np.log((1 - squared) / squared)
