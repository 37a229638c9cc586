"""Keeps a cache of fresh realizations filled, in turn for all subjects, while others read it."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_recipes.errors import UsageError
from petsim.cache.live import DoseCache, holdings
from petsim.philox import stream_key
from petsim.settings import check_drfs

STATE = "producer.json"

RECENT = 20
"""Realizations over which the rate is taken."""


@dataclass(frozen=True)
class Doses:
    """Doses of a realization, besides full dose.

    Parameters
    ----------
    drfs : tuple of float
        The same ones for every realization; empty: `draws` of them, evenly on a logarithmic scale from `low` to `high`.
    low, high : float
    draws : int
    """

    drfs: tuple[float, ...] = ()
    low: float = 1.0
    high: float = 1.0
    draws: int = 0

    def __post_init__(self) -> None:
        check_drfs(self.drfs)
        if not self.drfs and self.draws < 1:
            raise UsageError(f"--draws: must be at least 1, got {self.draws}")
        if not self.drfs and not (1 <= self.low < self.high < math.inf):
            raise UsageError(
                f"--drf-range: {self.low:g} {self.high:g} is no range of dose reduction factors; give two of at least 1, "
                "the lower one first"
            )

    def of(self, seed: int, subject: str, number: int) -> tuple[float, ...]:
        """1 and the doses of a realization, ascending; a function of the arguments."""
        if self.drfs:
            return tuple(sorted({1.0, *self.drfs}))
        rng = np.random.Generator(np.random.Philox(key=stream_key(seed, subject, number, "doses")))
        # Even on each of `draws` equal parts of the range, so that every realization covers it.
        parts = (np.arange(self.draws) + rng.random(self.draws)) / self.draws
        drawn = self.low * (self.high / self.low) ** parts
        return (1.0, *(float(f"{d:.4g}") for d in drawn if d > 1))


def produce(
    cache: DoseCache,
    subjects: Sequence[str],
    doses: Doses,
    seed: int,
    first: int,
    go_on: Callable[[], bool],
    told: Callable[[dict[str, Any]], None] = lambda state: None,
) -> dict[str, Any]:
    """Make one realization after the other, of the subject that was given the fewest.

    Parameters
    ----------
    cache : DoseCache
    subjects : sequence of str
    doses : Doses
    seed : int
    first : int
        Number of the first realization.
    go_on : callable
        Asked before each realization.
    told : callable
        Told the state after each realization.

    Returns
    -------
    dict
        The last state: made, per_minute, subject, realization, time_s (since 1970), bytes, volumes.
    """
    times = [time.monotonic()]
    state: dict[str, Any] = {"made": 0, "per_minute": 0.0}
    while go_on():
        subject = min(subjects, key=cache.started)
        number = first + cache.new_realization(subject)
        cache.get_all(subject, doses.of(seed, subject, number), number)
        times = [*times[-RECENT:], time.monotonic()]
        held = holdings(cache.root)
        state = {
            "made": state["made"] + 1, "per_minute": round(60 * (len(times) - 1) / max(times[-1] - times[0], 1e-9), 2),
            "subject": subject, "realization": number, "time_s": time.time(), "volumes": held["volumes"],
            "bytes": held["bytes"],
        }  # fmt: skip
        cache.note(STATE, state)
        told(state)
    return state
