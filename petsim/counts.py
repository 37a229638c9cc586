"""Counts of a realization at all doses, by groups of views, for every iteration of a reconstruction."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numba as nb
import numpy as np

from petsim.dose import DoseLadder
from petsim.plan import Plan
from petsim.projectors.choose import choose_backend
from petsim.recon.cost import event_cost
from petsim.settings import SimulationSettings

Place = Literal["memory", "disk", "redrawn"]
"""Where counts wait for the next iteration; redrawn: nowhere, they are drawn anew."""

EVENT_BYTES = 40
"""That an event takes when its dose is updated from events."""

SPARSE_BYTES = 5
"""Bytes a count takes when only those that are not zero are held."""

DISK_SHARE = 0.5
"""Part of the free space of the temporary folder that may be used."""


@dataclass(frozen=True)
class Storage:
    """What is held between iterations.

    Parameters
    ----------
    counts : str
        "memory", "disk" or "redrawn".
    counts_bytes, expected_bytes : float
        What counts and expected counts take in memory.
    from_events : tuple of int
        Doses that are updated from their events, see `petsim.event_updates`.
    """

    counts: Place
    counts_bytes: float
    expected_bytes: float
    from_events: tuple[int, ...] = ()

    def drfs_from_events(self, drfs: Sequence[float]) -> list[float]:
        """Dose reduction factors of the doses that are updated from events."""
        return [drfs[k] for k in self.from_events]


def storage(plan: Plan, settings: SimulationSettings, noise_free: bool, level: float, budget: float) -> Storage:
    """Where the counts of a simulation are held: in memory where they fit, else in a temporary file, else not at all.

    Parameters
    ----------
    plan, settings
    noise_free : bool
        Whether the expected counts are reconstructed too.
    level : float
        Expected prompts at full dose.
    budget : float
        Bytes of memory that may be used.
    """
    drfs = settings.ladder()
    least = plan.bytes_needed(len(drfs) + noise_free, len(drfs), settings.live_fractions)
    bins = float(np.prod(plan.layout.shape))
    from_events = doses_from_events(plan, settings.backend, [level / d for d in drfs], settings.finds_scatter)
    counts = sum(min(bins, 1.1 * SPARSE_BYTES * level / d) for d in drfs)
    counts += sum(EVENT_BYTES * level / drfs[k] for k in from_events)
    place = place_for(counts, budget - least)
    if place != "memory":
        return Storage(place, 0.0, 0.0, from_events)
    expected = 4 * bins if noise_free or settings.realizations > 1 else 0.0
    return Storage(place, counts, expected if least + counts + expected <= budget else 0.0, from_events)


def place_for(wanted: float, room: float) -> Place:
    """Where so many bytes are held while there is room for so many in memory."""
    if wanted <= room:
        return "memory"
    return "disk" if wanted < DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free else "redrawn"


def doses_from_events(plan: Plan, backend: str, prompts: Sequence[float], finds_scatter: bool) -> tuple[int, ...]:
    """Doses that cost less to update from their events than from all bins.

    Parameters
    ----------
    plan : Plan
    backend : str
        Events are projected by numba's only.
    prompts : sequence of float
        By dose.
    finds_scatter : bool
        The first iteration is made from bins; if it is the only one, it is done again once scatter is found.
    """
    if choose_backend(backend)[0] != "numba":
        return ()
    iterations = max(plan.preset.iterations - finds_scatter, 1)
    return tuple(k for k, counts in enumerate(prompts) if event_cost(plan.layout, counts, iterations) < 1)


def draw_thinned(ladder: DoseLadder, expected: np.ndarray, views: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Counts of some views at all doses by binomial thinning: uint16 (dose, views, radial, tof, plane), `out` if given."""
    counts = np.empty((len(ladder.drfs), *expected.shape), np.uint16) if out is None else out
    for k, (view, mean) in enumerate(zip(views.tolist(), expected, strict=True)):
        first = view * mean.size
        ladder.thin(ladder.draw(mean, first), first, counts[:, k])
    return counts


def draw_by_component(
    ladder: DoseLadder, components: dict[str, np.ndarray], kept: dict[str, list[np.ndarray]], views: np.ndarray
) -> np.ndarray:
    """Counts of some views where every component has its own share at a dose.

    A component is nested as far as its expectation falls; what a dose gains over the one above it (by regained live time)
    is drawn apart.

    Parameters
    ----------
    ladder : DoseLadder
    components : dict
        Expected counts at full dose by name, float32 (views, radial, tof, plane).
    kept : dict
        By name: share of the full dose's expected counts at every dose, (views, radial, plane) each.
    views : ndarray of int

    Returns
    -------
    ndarray
        uint16 (dose, views, radial, tof, plane).
    """
    shape = next(iter(components.values())).shape
    counts = np.zeros((len(ladder.drfs), *shape), np.uint16)
    for name, expected in components.items():
        shares = np.stack(kept[name])
        nested = np.minimum.accumulate(np.minimum(shares, 1.0), axis=0)
        own = replace(ladder, stream=name)
        for k, (view, mean) in enumerate(zip(views.tolist(), expected, strict=True)):
            first = view * mean.size
            counts[:, k] += own.thin_by_bin(own.draw(mean, first), nested[:, k], first)
        for d, gained in enumerate(shares - nested):
            if gained.max() > 1e-6:
                apart = replace(ladder, stream=f"{name} gained at {ladder.drfs[d]:g}")
                for k, view in enumerate(views.tolist()):
                    mean = expected[k] * np.maximum(gained[k], 0)[:, None]
                    counts[d, k] += apart.draw(mean, view * mean.size)
    return counts


class CountStream:
    """Counts of one realization at all doses, by groups of views. A context manager, which removes its temporary file.

    All places give the same numbers bit for bit, since every count depends on its bin only.

    Parameters
    ----------
    draw : callable
        Views -> counts (dose, views, radial, tof, plane).
    place : str
        Where counts are held after they were drawn.
    at_once : int
        Doses read together.
    """

    def __init__(self, draw: Callable[[np.ndarray], np.ndarray], place: Place, at_once: int) -> None:
        self._draw, self._place, self._at_once = draw, place, at_once
        # Closed, and thereby removed, by __exit__.
        self._file: Any = tempfile.TemporaryFile(prefix="petsim-") if place == "disk" else None  # noqa: SIM115
        self._held: dict[bytes, list[_Packed]] = {}
        self._totals: dict[bytes, np.ndarray] = {}
        self._buffers: dict[tuple[int, ...], np.ndarray] = {}

    def __enter__(self) -> "CountStream":
        return self

    def __exit__(self, *error: object) -> None:
        self._held.clear()
        if self._file is not None:
            self._file.close()

    def read(self, views: np.ndarray, doses: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """Counts of a group of views, float32 (n, views, radial, tof, plane), some doses at a time in their order.

        The next ones may overwrite them: fresh memory for every group would cost as much as filling it.

        Parameters
        ----------
        views : ndarray of int
        doses : sequence of int, optional
            The only ones that are read, ascending. Stacks hold neighbors only.
        """
        group = views.tobytes()
        drawn: Any
        if group in self._held:
            drawn = self._held[group]
        else:
            drawn = counts = self._draw(views)
            if group not in self._totals:
                self._totals[group] = _totals(counts.reshape(len(counts), len(views), -1))
            if self._place != "redrawn":
                self._held[group] = [_Packed(np.asarray(c), self._file) for c in counts]
        for part in _runs(range(len(drawn)) if doses is None else doses, self._at_once):
            some = drawn[part]
            out = self._buffer((len(some), *some[0].shape))
            for target, one in zip(out, some, strict=True):
                if isinstance(one, _Packed):
                    one.unpack_into(target.reshape(-1))
                else:
                    _convert(one.reshape(-1), target.reshape(-1))
            yield out

    def _buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        if shape not in self._buffers:
            self._buffers[shape] = np.empty(shape, np.float32)
        return self._buffers[shape]

    def totals(self) -> np.ndarray:
        """int64 (dose,): counts in all views that were read."""
        return np.sum(list(self._totals.values()), axis=0)


def _runs(places: Sequence[int], longest: int) -> list[slice]:
    """Slices of neighbors that hold ascending places."""
    runs: list[slice] = []
    for place in places:
        if runs and runs[-1].stop == place and place - runs[-1].start < longest:
            runs[-1] = slice(runs[-1].start, place + 1)
        else:
            runs.append(slice(place, place + 1))
    return runs


class _Packed:
    """Unsigned integers, held densely or as the places and values of those that are not zero, whichever is smaller.

    Parameters
    ----------
    counts : ndarray
    file : optional
        Where they are written; None keeps them in memory.
    """

    def __init__(self, counts: np.ndarray, file: Any) -> None:
        self.shape = counts.shape
        flat = counts.reshape(-1).astype(np.uint8 if counts.max() < 256 else np.uint16)
        nonzero = np.count_nonzero(flat)
        arrays = [flat]
        if nonzero * SPARSE_BYTES <= flat.nbytes:
            values, places = np.empty(nonzero, flat.dtype), np.empty(nonzero, np.uint32)
            _compress(flat, values, places)
            arrays = [values, places]
        self._parts = [_InMemory(a) if file is None else InFile(a, file) for a in arrays]

    def unpack_into(self, out: np.ndarray) -> None:
        """Write all values to a float32 array of one dimension."""
        values = self._parts[0].load()
        if len(self._parts) == 1:
            _convert(values, out)
        else:
            _expand(values, self._parts[1].load(), out)


class _InMemory:
    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def load(self) -> np.ndarray:
        return self._array


class InFile:
    """An array at the end of an open file."""

    def __init__(self, array: np.ndarray, file: Any) -> None:
        self._file, self._count, self._dtype = file, array.size, array.dtype
        self._at = file.seek(0, 2)
        file.write(array.data)

    def load(self) -> np.ndarray:
        array = np.empty(self._count, self._dtype)
        self._file.seek(self._at)
        self._file.readinto(array.data)
        return array


@nb.njit(cache=True, nogil=True, parallel=True)
def _totals(counts):
    doses, views = counts.shape[:2]
    sums = np.zeros((doses, views), np.int64)
    for k in nb.prange(doses * views):
        total = np.int64(0)
        for c in counts[k // views, k % views]:
            total += c
        sums[k // views, k % views] = total
    return sums.sum(axis=1)


@nb.njit(cache=True, nogil=True)
def _compress(flat, values, places):
    n = 0
    for i in range(flat.size):
        if flat[i] != 0:
            values[n] = flat[i]
            places[n] = i
            n += 1


@nb.njit(cache=True, nogil=True, parallel=True)
def _convert(source, target):
    for i in nb.prange(source.size):
        target[i] = source[i]


@nb.njit(cache=True, nogil=True)
def _expand(values, places, target):
    target[:] = np.float32(0)
    for n in range(values.size):
        target[places[n]] = values[n]
