"""List-mode EM: a nested ladder of doses in one pass over the events of its first dose.

Parra and Barrett 1998, IEEE Trans. Med. Imaging 17(2), 228 (not verified). The likelihood of the events is that of the
sinogram which they make, so that images are those of `petsim.recon.osem.osem` with the sinogram, to rounding. A pass
projects one line for each event and dose instead of one for each bin.
"""

from collections.abc import Callable, Iterable
from typing import Any

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
    """

    def __init__(self, layout: SinogramLayout) -> None:
        self._layout = layout
        ends = layout.transaxial_ends(np.arange(layout.views)).reshape(-1, 2)
        _, first, inverse = np.unique(np.round(ends / _SAME_MM), axis=0, return_index=True, return_inverse=True)
        self.xy_mm = ends[first]
        self._points = inverse.reshape(layout.views, layout.radials, 2)
        z = layout.plane_z_mm()
        _, first, inverse = np.unique(np.round(z / _SAME_MM), return_index=True, return_inverse=True)
        self.z_mm = z.reshape(-1)[first]
        self._places = inverse.reshape(z.shape)

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
        flat = counts.reshape(len(counts), -1)
        used = np.flatnonzero(flat[0])
        own = flat[:, used].astype(np.int64)
        if (np.diff(own, axis=0) > 0).any() or np.count_nonzero(flat[1:]) > np.count_nonzero(own[1:]):
            raise DataError("list-mode: a bin has more counts at a lower dose; only nested doses share their events")
        bins = np.repeat(used, own[0])
        ordinal = np.arange(len(bins)) - np.repeat(np.cumsum(own[0]) - own[0], own[0])
        doses = np.stack([np.repeat(level, own[0]) > ordinal for level in own]).sum(axis=0, dtype=np.uint8)
        view, radial, tof, plane = np.unravel_index(bins, counts.shape[1:])
        points, places = self._points[views[view], radial], self._places[plane]
        is_tof = self._layout.is_tof
        return Events(points[:, 0], places[:, 0], points[:, 1], places[:, 1], tof if is_tof else None, doses), bins


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
    tof = Tof(layout.tof_bins, layout.tof_bin_mm, layout.tof_sigma_mm) if layout.is_tof else None
    projectors, added = [], []
    for subset in groups:
        parts, more = [], []
        for views in subset:
            events, bins = lines.events(views, counts(views))
            parts.append(events)
            own = background(views)
            more.append(own.reshape(len(own), -1)[:, bins].astype(np.float32))
        events = _joined(parts)
        order = pair_order(events, len(lines.xy_mm))
        projectors.append(projector(lines.xy_mm, lines.z_mm, grid, events.taken(order), center_mm, support_mm, tof))
        added.append(np.concatenate(more, axis=1)[:, order])

    def em_back(subset: int, images: np.ndarray) -> np.ndarray:
        more = added[subset]
        return projectors[subset].em_back(images, background=more if len(more) > 1 else more[0])

    return em_back


def _joined(parts: list[Events]) -> Events:
    names = ("crystal1", "ring1", "crystal2", "ring2", "tof_bin", "doses")
    columns = {name: [getattr(part, name) for part in parts] for name in names}
    joined: dict[str, Any] = {n: None if column[0] is None else np.concatenate(column) for n, column in columns.items()}
    return Events(**joined)
