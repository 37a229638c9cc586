"""Simulated counts as list mode: every count becomes an event with its crystals, TOF bin, time and what it is.

A count of a merged bin is spread over the elementary crystal pairs of the bin in proportion to their efficiencies, and
evenly over the TOF bins that were merged; finer detail than the simulation's own layout is not in it. What a count is (true,
scattered, random) is drawn from the expected shares of its bin, its time from the decay of the isotope over the frame. All
of it is a function of the seed, the subject, the realization, the bin and the ordinal of the count in the bin, so that an
event at a dose is the same event at the doses above.
"""

import math
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numba as nb
import numpy as np

from data_recipes.errors import DataError
from data_recipes.isotopes import isotope
from petsim.acquisition import AcquisitionModel
from petsim.dose import DoseLadder
from petsim.geometry.pair_bins import PairBins
from petsim.philox import philox
from petsim.physics.normalization import ring_pairs_by_plane
from petsim.physics.randoms import DelayedWindow
from petsim.plan import Plan
from petsim.rawdata import hdf5
from petsim.rawdata.events import EVENT, Block, Dose, Header
from petsim.settings import SimulationSettings

ATTEMPTS = 200
"""Draws of an elementary pair before the last one is taken whatever its efficiency."""

BUCKET_EVENTS = 1 << 21
"""Events that are sorted by time at once."""

MOST_BUCKETS = 200
"""Temporary files at most."""

_PROMPT, _DELAYED = 3, 4
"""Streams of random numbers, beside those of `petsim.dose`."""

_RECORD = np.dtype([("event", EVENT), ("doses", np.uint32)])
_ORDER = ("tof_bin", "ring2", "crystal2", "ring1", "crystal1", "is_delayed", "time_ms")


@dataclass(frozen=True)
class EventTables:
    """What turns bins into crystals.

    Parameters
    ----------
    crystals : ndarray
        int32 (views, mash, radials, 2): merged crystals.
    ring_pairs : ndarray
        int64 (pairs, 3), elementary, sorted by their plane, which is the last.
    planes : ndarray
        int64 (planes + 1,): first ring pair of every plane.
    efficiencies : ndarray
        float32 (crystals_per_ring, rings), highest 1.
    """

    crystals: np.ndarray
    ring_pairs: np.ndarray
    planes: np.ndarray
    efficiencies: np.ndarray

    @classmethod
    def of(cls, model: AcquisitionModel) -> "EventTables":
        """Tables of a model's layout and efficiencies."""
        layout = model.layout
        crystals = np.stack([np.stack(layout.crystal_pairs(v), axis=-1) for v in range(layout.views)]).astype(np.int32)
        pairs, planes = ring_pairs_by_plane(layout)
        efficiencies = model.efficiencies / model.efficiencies.max()
        return cls(crystals, pairs, planes, efficiencies.astype(np.float32))


def prompts(
    model: AcquisitionModel, tables: EventTables, ladder: DoseLadder, views: np.ndarray, counts: np.ndarray,
    duration_ms: float, decay_per_ms: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Events of the prompts of some views.

    Parameters
    ----------
    model, tables
    ladder : DoseLadder
    views : ndarray of int
    counts : ndarray
        uint16 (dose, views, radial, tof, plane).
    duration_ms, decay_per_ms : float
        Of the frame, and of the isotope.

    Returns
    -------
    tuple of ndarray
        EVENT (events,), not in order; uint32 (events,): bit d tells whether the event is in dose d.
    """
    components = model.components(views)
    total = sum(components.values())
    shares = np.stack([
        np.divide(components[name], total, out=np.zeros_like(total), where=total > 0) for name in ("trues", "scatter")
    ])  # fmt: skip
    most = counts.max(axis=0)
    events, doses = np.zeros(int(most.sum(dtype=np.int64)), EVENT), np.zeros(int(most.sum(dtype=np.int64)), np.uint32)
    layout = model.layout
    _expand(views, counts, most, shares[0], shares[1], tables.crystals, tables.ring_pairs, tables.planes,
            tables.efficiencies, layout.merge_transaxial, max(layout.merge_tof, 1), np.uint64(ladder.key), duration_ms,
            decay_per_ms, events, doses)  # fmt: skip
    return events, doses


@nb.njit(cache=True, nogil=True)
def _time(uniform, length, decay):
    """Time of a decay in a frame, with density exp(-decay t)."""
    if decay * length < 1e-9:
        return uniform * length
    return -np.log(1 - uniform * (1 - np.exp(-decay * length))) / decay


@nb.njit(cache=True, nogil=True)
def _expand(views, counts, most, trues, scatter, crystals, ring_pairs, planes, efficiencies, merge, merge_tof, key,
            length, decay, events, doses):  # fmt: skip
    radials, tofs, width = most.shape[1:]
    unit = 2.0**-32
    at = 0
    for v in range(views.size):
        for r in range(radials):
            for t in range(tofs):
                for p in range(width):
                    place = (np.uint64(views[v]) * np.uint64(radials) + np.uint64(r)) * np.uint64(tofs) + np.uint64(t)
                    place = place * np.uint64(width) + np.uint64(p)
                    low, high = place & np.uint64(0xFFFFFFFF), place >> np.uint64(32)
                    for k in range(most[v, r, t, p]):
                        w0, w1, w2, _ = philox(low, high, k, _PROMPT, key)
                        e = events[at]
                        mask = np.uint32(0)
                        for d in range(counts.shape[0]):
                            mask |= np.uint32(counts[d, v, r, t, p] > k) << np.uint32(d)
                        doses[at] = mask
                        own = w0 * unit
                        e.label = 1 if own < trues[v, r, t, p] else 2 if own < trues[v, r, t, p] + scatter[v, r, t, p] else 3
                        e.time_ms = np.uint32(_time(w1 * unit, length, decay))
                        e.tof_bin = t * merge_tof + np.int64(w2 * unit * merge_tof)
                        for attempt in range(ATTEMPTS):
                            a, b, c, accept = philox(low, high, k, _PROMPT + 16 * (attempt + 1), key)
                            m = np.int64(a % np.uint64(crystals.shape[1]))
                            pair = planes[p] + np.int64(b % np.uint64(planes[p + 1] - planes[p]))
                            c1 = crystals[views[v], m, r, 0] * merge + np.int64(c % np.uint64(merge))
                            c2 = crystals[views[v], m, r, 1] * merge + np.int64((c >> np.uint64(16)) % np.uint64(merge))
                            r1, r2 = ring_pairs[pair, 0], ring_pairs[pair, 1]
                            if accept * unit < efficiencies[c1, r1] * efficiencies[c2, r2]:
                                break
                        e.crystal1, e.ring1, e.crystal2, e.ring2 = c1, r1, c2, r2
                        at += 1


def delayeds(
    window: DelayedWindow, tables: EventTables, pairs: PairBins, ladder: DoseLadder, counts: np.ndarray, tof_bins: int,
    duration_ms: float, decay_per_ms: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Events of delayeds between areas of detectors.

    Parameters
    ----------
    window : DelayedWindow
    tables : EventTables
    pairs : PairBins
        Whose pairs of crystals are accepted.
    ladder : DoseLadder
    counts : ndarray
        (dose, across, along, across, along), as `petsim.corrections.drawn_delayeds` gives them.
    tof_bins : int
        Of events.
    duration_ms, decay_per_ms : float
        As for `prompts`; randoms fall with the square of the activity.

    Returns
    -------
    tuple of ndarray
        As for `prompts`.
    """
    scanner, areas = pairs.layout.scanner, window.areas
    around, axial = areas.of_crystals()
    crystals, rings = (np.argsort(area, kind="stable") for area in (around, axial))
    first_crystal = np.searchsorted(around[crystals], np.arange(areas.across + 1))
    first_ring = np.searchsorted(axial[rings], np.arange(areas.along + 1))
    most = counts.max(axis=0).astype(np.int64)
    events, doses = np.zeros(int(most.sum()), EVENT), np.zeros(int(most.sum()), np.uint32)
    _expand_delayeds(counts, most, crystals, first_crystal, rings, first_ring, pairs.line, pairs.layout.merge_transaxial,
                     scanner.max_ring_difference, tables.efficiencies, tof_bins, np.uint64(ladder.key), duration_ms,
                     2 * decay_per_ms, events, doses)  # fmt: skip
    return events, doses


@nb.njit(cache=True, nogil=True)
def _one_of(sorted_by_area, first, area, word):
    """A random one of those in an area."""
    return sorted_by_area[first[area] + np.int64(word % np.uint64(first[area + 1] - first[area]))]


@nb.njit(cache=True, nogil=True)
def _expand_delayeds(counts, most, crystals, first_crystal, rings, first_ring, line, merge, farthest, efficiencies, tof_bins,
                     key, length, decay, events, doses):  # fmt: skip
    across, along = most.shape[:2]
    unit = 2.0**-32
    at = 0
    for place in range(most.size):
        z2, a2 = place % along, place // along % across
        z1, a1 = place // (along * across) % along, place // (along * across * along)
        for k in range(most[a1, z1, a2, z2]):
            w0, w1, _, _ = philox(place, 0, k, _DELAYED, key)
            mask = np.uint32(0)
            for d in range(counts.shape[0]):
                mask |= np.uint32(counts[d, a1, z1, a2, z2] > k) << np.uint32(d)
            doses[at] = mask
            e = events[at]
            e.is_delayed = 1
            e.time_ms = np.uint32(_time(w0 * unit, length, decay))
            e.tof_bin = np.int64(w1 * unit * tof_bins)
            for attempt in range(ATTEMPTS):
                a, b, c, accept = philox(place, 0, k, _DELAYED + 16 * (attempt + 1), key)
                c1 = _one_of(crystals, first_crystal, a1, a & np.uint64(0xFFFF))
                c2 = _one_of(crystals, first_crystal, a2, a >> np.uint64(16))
                r1, r2 = _one_of(rings, first_ring, z1, b), _one_of(rings, first_ring, z2, c)
                fits = line[c1 // merge, c2 // merge] >= 0 and abs(r1 - r2) <= farthest
                if fits and accept * unit < efficiencies[c1, r1] * efficiencies[c2, r2]:
                    break
            e.crystal1, e.ring1, e.crystal2, e.ring2 = c1, r1, c2, r2
            at += 1


class EventWriter:
    """Writes the list-mode files of a realization, one a dose, in a folder.

    Events come by views and wait in temporary files by time, since a whole scan may not fit memory.

    Parameters
    ----------
    folder : Path
    plan : Plan
    settings : SimulationSettings
    model : AcquisitionModel
        Of both.
    number : int
        Of the realization.
    """

    def __init__(self, folder: Path, plan: Plan, settings: SimulationSettings, model: AcquisitionModel, number: int) -> None:
        self._folder, self._plan, self._settings, self._model, self._number = folder, plan, settings, model, number
        self._ladder = DoseLadder(settings.ladder(), settings.seed, plan.subject.name, number)
        self._tables = EventTables.of(model)
        self._duration_ms = 1000 * model.rates[0].seconds
        self._decay_per_ms = math.log(2) / (1000 * isotope(plan.subject.injection.isotope).half_life_s)
        level = float(sum(component.sum(dtype=np.float64) for component in self._sample()))
        self._count = min(MOST_BUCKETS, 1 + int(level / BUCKET_EVENTS))
        self._buckets: list[IO[bytes]] = []

    def _sample(self) -> list[np.ndarray]:
        """Expected counts of one view, scaled to all."""
        view = np.array([self._model.layout.views // 2])
        return [c * np.float32(self._model.layout.views) for c in self._model.components(view).values()]

    def __enter__(self) -> "EventWriter":
        # Closed, and thereby removed, by __exit__.
        self._buckets = [tempfile.TemporaryFile(prefix="petsim-", dir=self._folder) for _ in range(self._count)]  # noqa: SIM115
        return self

    def __exit__(self, *error: object) -> None:
        for bucket in self._buckets:
            bucket.close()

    def add(self, views: np.ndarray, counts: np.ndarray) -> None:
        """Add the prompts of some views, uint16 (dose, views, radial, tof, plane)."""
        self._put(*prompts(self._model, self._tables, self._ladder, views, counts, self._duration_ms, self._decay_per_ms))

    def add_delayeds(self, window: DelayedWindow, counts: np.ndarray) -> None:
        """Add delayeds between areas, (dose, across, along, across, along)."""
        pairs = PairBins.of(replace(self._model.layout, merge_tof=0, tof_bins=1))
        self._put(*delayeds(window, self._tables, pairs, self._ladder, counts, self._tof_bins, self._duration_ms,
                            self._decay_per_ms))  # fmt: skip

    @property
    def _tof_bins(self) -> int:
        return self._plan.layout.tof_bins * max(self._plan.layout.merge_tof, 1)

    def _put(self, events: np.ndarray, doses: np.ndarray) -> None:
        records = np.empty(len(events), _RECORD)
        records["event"], records["doses"] = events, doses
        place = np.minimum(events["time_ms"] * (self._count / self._duration_ms), self._count - 1).astype(np.int64)
        order = np.argsort(place, kind="stable")
        ends = np.searchsorted(place[order], np.arange(self._count + 1))
        try:
            for k, bucket in enumerate(self._buckets):
                bucket.write(records[order[ends[k] : ends[k + 1]]].tobytes())
        except OSError as error:
            raise DataError(f"--save listmode: events cannot be kept: {error.strerror}; free some space") from None

    def finish(self) -> None:
        """Sort by time and write the files."""
        drfs, name = self._ladder.drfs, self._plan.subject.name
        files = [f"{name}_r{self._number}_drf{d:g}.lm.h5" for d in drfs]
        with ExitStack() as stack:
            writes = [stack.enter_context(hdf5.create(self._folder / f, self._header(d)))
                      for f, d in zip(files, drfs, strict=True)]  # fmt: skip
            for bucket in self._buckets:
                bucket.seek(0)
                records = np.frombuffer(bucket.read(), _RECORD)
                # Events of equal time stand in the order in which their bins came, whatever group of views brought them.
                records = records[np.lexsort([records["event"][c] for c in _ORDER])]
                for d, write in enumerate(writes):
                    write(Block(records["event"][(records["doses"] >> d & 1) > 0]))

    def _header(self, drf: float) -> Header:
        fields = {"time", "delayeds", "labels", "injection"} | ({"tof"} if self._plan.layout.is_tof else set())
        dose = None if drf == 1 else Dose(drf, "thin", self._settings.seed)
        return Header(
            self._plan.scanner, self._duration_ms / 1000, tof_bins=self._tof_bins,
            tof_bin_ps=self._plan.scanner.given("tof_bin_ps") if self._plan.layout.is_tof else 0.0,
            fields=frozenset(fields | ({"dose"} if dose else set())),
            injection=replace(self._plan.subject.injection, duration_s=None), dose=dose,
        )  # fmt: skip
