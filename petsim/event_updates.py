"""Updates of doses with few counts from their events (list mode), where that costs less than from all bins.

Both ways have one likelihood, so that images agree to rounding (1e-4 of the highest voxel). Which doses go by events follows
from their counts, the layout and the iterations (`petsim.recon.cost`): never from memory, workers or the other doses of a
ladder. Each dose has events of its own, so that its image does not depend on the others either.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from petsim.counts import CountStream, InFile, Place, Storage
from petsim.projectors.listmode import Events, ListmodeProjector
from petsim.recon.listmode import BinLines, SubsetEvents
from petsim.recon.osem import EmBack
from petsim.reconstruct import Reconstructor

Ready = Callable[[], tuple[ListmodeProjector, np.ndarray]]
"""Gives the projector of an image's events of a subset, and their scatter and randoms over the factors of a bin."""


class EventUpdates:
    """`EmBack` of some images from their events.

    Parameters
    ----------
    recon : Reconstructor
        Whose corrections hold for the events.
    counts : callable
        Views -> whole numbers (n, views, radial, tof, plane) of the images.
    images : sequence of int
        Their places among those of `recon`.
    place : str
        Where events wait for the next iteration; redrawn: found anew. All places give the same numbers bit for bit.
    file : optional
        Where they are written if the place is the disk.
    """

    def __init__(
        self,
        recon: Reconstructor,
        counts: Callable[[np.ndarray], np.ndarray],
        images: Sequence[int],
        place: Place,
        file: Any,
    ) -> None:
        self._recon, self._counts, self._images, self._place, self._file = recon, counts, images, place, file
        self._lines = BinLines(recon.plan.layout)
        self._held: dict[int, list[Ready]] = {}

    def em_back(self, subset: int, blurred: np.ndarray) -> np.ndarray:
        """See `petsim.recon.osem.EmBack`; `blurred` are those of the chosen images in their order."""
        if (ready := self._held.get(subset)) is None:
            ready = self._found(subset)
            if self._place != "redrawn":
                self._held[subset] = ready
        backs = []
        for get, image in zip(ready, blurred, strict=True):
            projector, background = get()
            backs.append(projector.em_back(image, background=background))
        return np.stack(backs)

    def _found(self, subset: int) -> list[Ready]:
        """By image."""
        events = [SubsetEvents(self._lines) for _ in self._images]
        for views in self._recon.groups(subset):
            for own, counts, image in zip(events, self._counts(views), self._images, strict=True):
                own.add(views, counts[None], self._recon.background(views, image, 1))
        return [self._waiting(*own.ordered()) for own in events]

    def _waiting(self, events: Events, background: np.ndarray) -> Ready:
        if self._place == "disk":
            held = _HeldEvents(events, background, self._file)
            return lambda: (self._projector(held.events()), held.background())
        projector = self._projector(events)
        return lambda: (projector, background)

    def _projector(self, events: Events) -> ListmodeProjector:
        plan, lines = self._recon.plan, self._lines
        return ListmodeProjector(lines.xy_mm, lines.z_mm, plan.grid, events, plan.center_mm, plan.fov_mm / 2, lines.tof)


class _HeldEvents:
    """Events and their background in a file."""

    def __init__(self, events: Events, background: np.ndarray, file: Any) -> None:
        ends = events.crystal1, events.ring1, events.crystal2, events.ring2
        self._ends = [InFile(column, file) for column in ends]
        self._tof_bin = None if events.tof_bin is None else InFile(events.tof_bin, file)
        self._background = InFile(background, file)

    def events(self) -> Events:
        a, b, c, d = (column.load() for column in self._ends)
        return Events(a, b, c, d, None if self._tof_bin is None else self._tof_bin.load())

    def background(self) -> np.ndarray:
        return self._background.load()[None]


@contextmanager
def cheapest(
    recon: Reconstructor, data: Callable[..., Iterable[np.ndarray]], stream: CountStream, storage: Storage
) -> Iterator[EmBack]:
    """`EmBack` of all images, each from events or from bins. The context removes the temporary file that may hold events.

    Parameters
    ----------
    recon : Reconstructor
    data : callable
        Views, and the images asked for -> stacks of their counts.
    stream : CountStream
        Counts of all doses, which are the first images.
    storage : Storage
        Says which doses go by events, and where these are held.
    """
    images, of_events = len(recon.corrections.rates), list(storage.from_events)
    if not of_events:
        yield recon.em_back(data)
        return
    of_bins = [k for k in range(images) if k not in of_events]
    by_bins = recon.em_back(lambda views: data(views, of_bins), of_bins)

    def counts(views: np.ndarray) -> np.ndarray:
        # Whole numbers below 2^16 are exact in the float32 that the sinogram's kernels take.
        return np.concatenate([stack.astype(np.uint16) for stack in stream.read(views, of_events)])

    def em_back(subset: int, blurred: np.ndarray) -> np.ndarray:
        out = np.empty_like(blurred)
        if of_bins:
            out[of_bins] = by_bins(subset, blurred[of_bins])
        out[of_events] = by_events.em_back(subset, blurred[of_events])
        return out

    on_disk = storage.counts == "disk"
    with tempfile.TemporaryFile(prefix="petsim-") if on_disk else nullcontext() as file:
        by_events = EventUpdates(recon, counts, of_events, storage.counts, file)
        yield em_back
