"""List-mode EM: a nested ladder of doses in one pass over the events of its first dose.

Parra and Barrett 1998, IEEE Trans. Med. Imaging 17(2), 228 (not verified). The likelihood of the events is that of the
sinogram which they make, so that images are those of `petsim.recon.osem.osem` with the sinogram, to rounding. A pass
projects one line for each event and dose instead of one for each bin.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numba as nb
import numpy as np

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from petsim.geometry.sinogram import SinogramLayout
from petsim.projectors.listmode import Events, ListmodeProjector, Tof, pair_order
from petsim.recon.osem import EmBack

_SAME_MM = 1e-4
"""Line ends nearer than this are one."""


class BinLines:
    """The lines of a layout's bins between numbered points, as `ListmodeProjector` takes them.

    Parameters
    ----------
    layout : SinogramLayout
        Any, with mashing and span too: points are ends of lines, be they crystals or means of several.

    Attributes
    ----------
    xy_mm, z_mm : ndarray
        (points, 2) and (places,): transaxial and axial ends.
    tof : Tof, optional
        The layout's bins, which are those of the events.
    """

    def __init__(self, layout: SinogramLayout) -> None:
        self._layout = layout
        ends = layout.transaxial_ends(np.arange(layout.views)).reshape(-1, 2)
        _, first, inverse = np.unique(np.round(ends / _SAME_MM), axis=0, return_index=True, return_inverse=True)
        self.xy_mm = ends[first]
        self._points = inverse.reshape(layout.views, layout.radials, 2).astype(np.int64)
        z = layout.plane_z_mm()
        _, first, inverse = np.unique(np.round(z / _SAME_MM), return_index=True, return_inverse=True)
        self.z_mm = z.reshape(-1)[first]
        self._places = inverse.reshape(z.shape).astype(np.int64)
        self.tof = Tof(layout.tof_bins, layout.tof_bin_mm, layout.tof_sigma_mm) if layout.is_tof else None

    def events(self, views: np.ndarray, counts: np.ndarray) -> tuple[Events, np.ndarray]:
        """Events of the counts of some views.

        Parameters
        ----------
        views : ndarray of int
        counts : ndarray
            Whole numbers (dose, views, radial, tof, plane), none higher than at the dose before.

        Returns
        -------
        events : Events
        bins : ndarray
            int64 (events,): index of the event's bin in the flattened (views, radial, tof, plane).

        Raises
        ------
        DataError
            Doses that are not nested.
        """
        # uint16 and wider, so that the kernel is compiled once for what petsim draws.
        counts = np.ascontiguousarray(counts, np.uint16 if counts.dtype.itemsize <= 2 else np.int64)
        starts = np.concatenate([[0], np.cumsum(counts[0].sum(axis=(1, 2, 3), dtype=np.int64))])
        events = int(starts[-1])
        ends, tof_bin = np.empty((4, events), np.uint16), np.empty(events, np.int16)
        doses, bins = np.empty(events, np.uint8), np.empty(events, np.int64)
        _unpack(counts, starts, self._points[views], self._places, ends, tof_bin, doses, bins)
        in_dose = len(doses) - np.cumsum(np.bincount(doses, minlength=256))[: len(counts)]
        if not np.array_equal(in_dose, counts.sum(axis=(1, 2, 3, 4), dtype=np.int64)):
            raise DataError("list-mode: a bin has more counts at a lower dose; only nested doses share their events")
        return Events(ends[0], ends[1], ends[2], ends[3], tof_bin if self._layout.is_tof else None, doses), bins


@nb.njit(cache=True, nogil=True, parallel=True)
def _unpack(counts, starts, points, places, ends, tof_bin, doses, bins):
    """Fill the columns of events from counts (dose, views, radial, tof, plane); those of view v begin at starts[v]."""
    _, views, radials, tofs, planes = counts.shape
    for v in nb.prange(views):
        at = starts[v]
        for r in range(radials):
            for t in range(tofs):
                row = counts[0, v, r, t]
                for p in range(planes):
                    for k in range(row[p]):
                        level = 1
                        while level < len(counts) and counts[level, v, r, t, p] > k:
                            level += 1
                        ends[0, at], ends[2, at] = points[v, r, 0], points[v, r, 1]
                        ends[1, at], ends[3, at] = places[p, 0], places[p, 1]
                        tof_bin[at], doses[at] = t, level
                        bins[at] = ((np.int64(v) * radials + r) * tofs + t) * planes + p
                        at += 1


class SubsetEvents:
    """Events of a subset, gathered from its groups of views, and their background.

    Parameters
    ----------
    lines : BinLines
    """

    def __init__(self, lines: BinLines) -> None:
        self._lines = lines
        self._parts: list[Events] = []
        self._background: list[np.ndarray] = []

    def add(self, views: np.ndarray, counts: np.ndarray, background: np.ndarray) -> None:
        """Take in a group.

        Parameters
        ----------
        views, counts
            As for `BinLines.events`.
        background : ndarray
            Scatter and randoms over the multiplicative factors, like counts, or with one dose that holds for all.
        """
        events, bins = self._lines.events(views, counts)
        self._parts.append(events)
        self._background.append(background.reshape(len(background), -1)[:, bins].astype(np.float32))

    def ordered(self) -> tuple[Events, np.ndarray]:
        """All events in the order that a projector works in, and float32 (dose or 1, events): their background."""
        events = _joined(self._parts)
        order = pair_order(events, len(self._lines.xy_mm))
        return events.taken(order), np.concatenate(self._background, axis=1)[:, order]


def listmode_em_back(
    layout: SinogramLayout,
    grid: Grid,
    groups: Iterable[Iterable[np.ndarray]],
    counts: Callable[[np.ndarray], np.ndarray],
    background: Callable[[np.ndarray], np.ndarray],
    projector: Callable[..., ListmodeProjector] = ListmodeProjector,
    center_mm: tuple[float, float, float] | None = None,
    support_mm: float | None = None,
) -> EmBack:
    """`EmBack` of the events of a nested ladder.

    Parameters
    ----------
    layout : SinogramLayout
        Its TOF bins, if any, are those of the events.
    grid : Grid
    groups : iterable
        By subset: groups of views, of which the counts and background are asked for together.
    counts : callable
        Views -> whole numbers (dose, views, radial, tof, plane), see `BinLines.events`.
    background : callable
        Views -> scatter and randoms over the multiplicative factors, like counts, or with one dose that holds for all.
    projector : callable
        `ListmodeProjector` or one with the same arguments.
    center_mm, support_mm
        As for the projector.
    """
    lines = BinLines(layout)
    projectors, added = [], []
    for subset in groups:
        found = SubsetEvents(lines)
        for views in subset:
            found.add(views, counts(views), background(views))
        events, more = found.ordered()
        projectors.append(projector(lines.xy_mm, lines.z_mm, grid, events, center_mm, support_mm, lines.tof))
        added.append(more)

    def em_back(subset: int, images: np.ndarray) -> np.ndarray:
        more = added[subset]
        return projectors[subset].em_back(images, background=more if len(more) > 1 else more[0])

    return em_back


def _joined(parts: list[Events]) -> Events:
    names = ("crystal1", "ring1", "crystal2", "ring2", "tof_bin", "doses")
    columns = {name: [getattr(part, name) for part in parts] for name in names}
    joined: dict[str, Any] = {n: None if column[0] is None else np.concatenate(column) for n, column in columns.items()}
    return Events(**joined)
