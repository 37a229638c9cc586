"""Recorded prompts of a list-mode file at every dose, as counts of a sinogram."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numba as nb
import numpy as np

from data_recipes.errors import DataError
from petsim.geometry.pair_bins import PairBins
from petsim.geometry.sinogram import SinogramLayout
from petsim.rawdata.events import Listmode
from petsim.rawdata.thin import Levels

RECORDED_BYTES = 5
"""That an event takes in memory."""

Seen = Callable[[np.ndarray, np.ndarray], None]
"""Told the events of a block and their levels."""


@dataclass(frozen=True, eq=False)
class RecordedCounts:
    """Prompts, sorted by view.

    Parameters
    ----------
    layout : SinogramLayout
    doses : int
    starts : ndarray
        int64 (views + 1,): first event of every view.
    within : ndarray
        uint32 (events,): bin in its view.
    levels : ndarray
        uint8 (events,): number of doses, counted from full dose, that the event is in.
    outside : int
        Prompts that lie in no bin.
    """

    layout: SinogramLayout
    doses: int
    starts: np.ndarray
    within: np.ndarray
    levels: np.ndarray
    outside: int

    @classmethod
    def of(
        cls,
        source: Listmode,
        layout: SinogramLayout,
        doses: int,
        levels_for: Levels,
        budget_bytes: float,
        taken_bytes: float,
        seen: Seen,
        dead: np.ndarray | None = None,
    ) -> "RecordedCounts":
        """Read a file twice: once to count, once to sort.

        Parameters
        ----------
        source : Listmode
        layout : SinogramLayout
        doses : int
        levels_for : callable
            Events and the index of the first -> number of doses that each is in.
        budget_bytes, taken_bytes : float
            Memory that may be used, and what the reconstruction takes of it.
        seen : callable
            Called with every block of the second pass, delayeds included.
        dead : ndarray, optional
            bool (crystals_per_ring, rings): crystals whose prompts do not count.

        Raises
        ------
        DataError
            More events than fit the budget.
        """
        pairs, header = PairBins.of(layout), source.header
        per_view = int(np.prod(layout.shape[1:]))
        starts, outside = np.zeros(layout.views + 1, np.int64), 0

        def bins_of(events: np.ndarray) -> np.ndarray:
            bins = pairs.of_events(events, header.tof_bins, header.tof_bin_ps)
            if dead is not None:
                bins[dead[events["crystal1"], events["ring1"]] | dead[events["crystal2"], events["ring2"]]] = -1
            return bins

        for block in source.blocks():
            bins = bins_of(block.events)
            outside += _count_views(block.events, bins, per_view, starts)
        total = int(starts[-1])
        needed = taken_bytes + RECORDED_BYTES * total
        if needed > budget_bytes:
            raise DataError(
                f"{source.name}: about {needed / 1e9:.2g} GB of memory are needed, {RECORDED_BYTES * total / 1e9:.2g} of "
                f"them for its {total} prompts, but {budget_bytes / 1e9:.2g} GB may be used; use --memory-gb "
                f"{math.ceil(needed / 1e8) / 10:g}, or larger voxels (--voxel-mm)"
            )
        within, levels = np.empty(total, np.uint32), np.empty(total, np.uint8)
        place, first = starts[:-1].copy(), 0
        for block in source.blocks():
            own = levels_for(block.events, first)
            bins = bins_of(block.events)
            _sort(block.events, bins, own, per_view, place, within, levels)
            seen(block.events, own)
            first += len(block.events)
        return cls(layout, doses, starts, within, levels, outside)

    def prompts(self) -> np.ndarray:
        """int64 (dose,): counts."""
        return len(self.levels) - np.cumsum(np.bincount(self.levels, minlength=self.doses + 1))[: self.doses]

    def draw(self, views: np.ndarray) -> np.ndarray:
        """Counts of some views, uint16 (dose, views, radial, tof, plane)."""
        out = np.zeros((self.doses, len(views), *self.layout.shape[1:]), np.uint16)
        if _fill(views, self.starts, self.within, self.levels, out.reshape(self.doses, len(views), -1)):
            raise DataError("more than 65535 counts lie in one bin; use --preset full, which merges fewer crystals")
        return out


@nb.njit(cache=True, nogil=True)
def _count_views(events, bins, per_view, starts):
    """Add events to the starts of all later views; returns prompts without a bin."""
    views = starts.size - 1
    counts, outside = np.zeros(views, np.int64), 0
    for k in range(events.size):
        if events[k].is_delayed == 0:
            if bins[k] < 0:
                outside += 1
            else:
                counts[bins[k] // per_view] += 1
    total = 0
    for v in range(views):
        total += counts[v]
        starts[v + 1] += total
    return outside


@nb.njit(cache=True, nogil=True)
def _sort(events, bins, own, per_view, place, within, levels):
    for k in range(events.size):
        if events[k].is_delayed == 0 and bins[k] >= 0:
            view = bins[k] // per_view
            at = place[view]
            within[at], levels[at] = bins[k] - view * per_view, own[k]
            place[view] += 1


@nb.njit(cache=True, nogil=True)
def _fill(views, starts, within, levels, out):
    """Count events; True where a bin is full."""
    full = False
    for v in range(views.size):
        for k in range(starts[views[v]], starts[views[v] + 1]):
            for d in range(levels[k]):
                full |= out[d, v, within[k]] == 65535
                out[d, v, within[k]] += 1
    return full
