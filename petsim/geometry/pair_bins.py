"""Which sinogram bin a coincidence of two crystals belongs to: the inverse of `SinogramLayout.crystal_pairs`."""

from dataclasses import dataclass

import numba as nb
import numpy as np

from data_recipes.errors import UsageError
from petsim.geometry.sinogram import SinogramLayout


@dataclass(frozen=True, eq=False)
class PairBins:
    """Bins of crystal pairs.

    Parameters
    ----------
    layout : SinogramLayout
    line : ndarray
        int32 (crystals, crystals), merged ones: view x radials + radial of a pair, -1 where it has no bin.
    is_swapped : ndarray
        bool (crystals, crystals): the second crystal is at end 1 of the bin's LOR.
    plane : ndarray
        int32 (rings, rings), merged ones: plane of the ring at end 1 and the ring at end 2; -1 where there is none.
    """

    layout: SinogramLayout
    line: np.ndarray
    is_swapped: np.ndarray
    plane: np.ndarray

    @classmethod
    def of(cls, layout: SinogramLayout) -> "PairBins":
        """Tables of a layout."""
        line = np.full((layout.crystals, layout.crystals), -1, np.int32)
        swapped = np.zeros(line.shape, bool)
        for view in range(layout.views):
            for first, second in zip(*layout.crystal_pairs(view), strict=True):
                line[first, second] = line[second, first] = view * layout.radials + np.arange(layout.radials)
                swapped[second, first] = True
        return cls(layout, line, swapped, layout.planes_of_ring_pairs())

    def of_events(self, events: np.ndarray, tof_bins: int = 1, tof_bin_ps: float = 0.0) -> np.ndarray:
        """Bins of events.

        Parameters
        ----------
        events : ndarray
            Structured, with crystal1, ring1, crystal2, ring2 and tof_bin of elementary crystals, as
            `petsim.rawdata.events.EVENT` has them.
        tof_bins : int
            TOF bins of the events.
        tof_bin_ps : float
            Their width.

        Returns
        -------
        ndarray
            int64 (events,): index in the flattened (view, radial, tof, plane); -1 where there is no bin.
        """
        layout = self.layout
        if layout.is_tof and tof_bins == 1:
            raise UsageError("events without TOF cannot be sorted into TOF bins; use a layout without TOF")
        # Layout bins in one bin of the events.
        step = tof_bin_ps / (layout.merge_tof * (layout.scanner.tof_bin_ps or 1.0)) if layout.is_tof else 0.0
        if layout.is_tof and (abs(1 / step - round(1 / step)) > 0.02 or (round(1 / step) - tof_bins) % 2):
            raise UsageError(
                f"{tof_bins} TOF bins cannot be merged by {1 / step:.3g}: edges of both would not fall together"
            )
        out = np.empty(len(events), np.int64)
        _bins(events, self.line, self.is_swapped, self.plane, layout.merge_transaxial, layout.merge_axial, layout.radials,
              layout.tof_bins, layout.planes, step, (tof_bins - 1) / 2, out)  # fmt: skip
        return out

    def count_radials(self, events: np.ndarray, counts: np.ndarray) -> None:
        """Add events to `counts`, int64 (radials,), by their radial bins."""
        _count_radials(events, self.line, self.layout.merge_transaxial, self.layout.radials, counts)


@nb.njit(cache=True, nogil=True)
def _count_radials(events, line, across, radials, counts):
    for k in range(events.size):
        at = line[events[k].crystal1 // across, events[k].crystal2 // across]
        if at >= 0:
            counts[at % radials] += 1


@nb.njit(cache=True, nogil=True)
def _bins(events, line, swapped, plane, across, along, radials, tof_bins, planes, step, middle, out):
    for k in range(events.size):
        e = events[k]
        c1, c2 = e.crystal1 // across, e.crystal2 // across
        r1, r2 = e.ring1 // along, e.ring2 // along
        at = line[c1, c2]
        shift = (e.tof_bin - middle) * step
        if swapped[c1, c2]:
            r1, r2 = r2, r1
            shift = -shift
        p = plane[r1, r2]
        t = int(np.floor(shift + tof_bins / 2))
        out[k] = -1
        if at >= 0 and p >= 0 and t >= 0 and t < tof_bins:
            out[k] = (np.int64(at) * tof_bins + t) * planes + p
