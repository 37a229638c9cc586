"""Updates of doses with few counts from their events (list mode), where that costs less than from all bins.

Both ways have one likelihood, so that images agree to rounding (1e-4 of the highest voxel). Which doses go by events follows
from their counts, the layout and the iterations (`petsim.recon.cost`): never from memory, workers or the other doses of a
ladder. Each dose has events of its own, so that its image does not depend on the others either.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from petsim.counts import CountStream, InFile, Place, Storage
from petsim.projectors.listmode import Events, ListmodeProjector, Tof, pair_order
from petsim.recon.listmode import BinLines, joined
from petsim.recon.osem import EmBack
from petsim.reconstruct import Reconstructor


class EventUpdates:
    """`EmBack` of some images from their events. A context manager, which removes its temporary file.

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
    """

    def __init__(
        self, recon: Reconstructor, counts: Callable[[np.ndarray], np.ndarray], images: Sequence[int], place: Place
    ) -> None:
        self._recon, self._counts, self._images, self._place = recon, counts, images, place
        plan = recon.plan
        layout = plan.layout
        self._lines = BinLines(layout)
        self._tof = Tof(layout.tof_bins, layout.tof_bin_mm, layout.tof_sigma_mm) if layout.is_tof else None
        # Closed, and thereby removed, by __exit__.
        self._file: Any = tempfile.TemporaryFile(prefix="petsim-") if place == "disk" else None  # noqa: SIM115
        self._held: dict[int, list[Any]] = {}

    def __enter__(self) -> "EventUpdates":
        return self

    def __exit__(self, *error: object) -> None:
        self._held.clear()
        if self._file is not None:
            self._file.close()

    def em_back(self, subset: int, blurred: np.ndarray) -> np.ndarray:
        """See `petsim.recon.osem.EmBack`; `blurred` are those of the chosen images in their order."""
        ready = zip(self._events(subset), blurred, strict=True)
        return np.stack([projector.em_back(image, background=background) for (projector, background), image in ready])

    def _events(self, subset: int) -> Iterator[tuple[ListmodeProjector, np.ndarray]]:
        """By image: its events of a subset, and their scatter and randoms over the factors of a bin."""
        if self._place == "memory":
            if subset not in self._held:
                self._held[subset] = [(self._projector(events), more) for events, more in self._found(subset)]
            yield from self._held[subset]
            return
        if self._place == "disk" and subset not in self._held:
            self._held[subset] = [_HeldEvents(events, more, self._file) for events, more in self._found(subset)]
        found = (one.load() for one in self._held[subset]) if self._place == "disk" else self._found(subset)
        for events, more in found:
            yield self._projector(events), more

    def _projector(self, events: Events) -> ListmodeProjector:
        plan = self._recon.plan
        return ListmodeProjector(
            self._lines.xy_mm, self._lines.z_mm, plan.grid, events, plan.center_mm, plan.fov_mm / 2, self._tof
        )

    def _found(self, subset: int) -> list[tuple[Events, np.ndarray]]:
        """The same with events in the projector's order."""
        parts: list[list[Events]] = [[] for _ in self._images]
        more: list[list[np.ndarray]] = [[] for _ in self._images]
        buffer = np.empty((0,), np.float32)
        for views in self._recon.groups(subset):
            counts = self._counts(views)
            if buffer.shape != (1, *counts.shape[1:]):
                buffer = np.empty((1, *counts.shape[1:]), np.float32)
            for own, added, some, image in zip(parts, more, counts, self._images, strict=True):
                events, bins = self._lines.events(views, some[None])
                own.append(events)
                added.append(self._recon.background(views, image, 1, buffer).reshape(-1)[bins])
        found = []
        for own, added in zip(parts, more, strict=True):
            events = joined(own)
            order = pair_order(events, len(self._lines.xy_mm))
            found.append((events.taken(order), np.concatenate(added)[order]))
        return found


class _HeldEvents:
    """Events and their background in a file."""

    def __init__(self, events: Events, background: np.ndarray, file: Any) -> None:
        ends = events.crystal1, events.ring1, events.crystal2, events.ring2
        self._ends = [InFile(column, file) for column in ends]
        self._tof_bin = None if events.tof_bin is None else InFile(events.tof_bin, file)
        self._background = InFile(background, file)

    def load(self) -> tuple[Events, np.ndarray]:
        a, b, c, d = (column.load() for column in self._ends)
        return Events(a, b, c, d, None if self._tof_bin is None else self._tof_bin.load()), self._background.load()


@contextmanager
def cheapest(
    recon: Reconstructor, data: Callable[..., Iterable[np.ndarray]], stream: CountStream, storage: Storage
) -> Iterator[EmBack]:
    """`EmBack` of all images, each from events or from bins.

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

    with EventUpdates(recon, counts, of_events, storage.counts) as by_events:
        yield em_back
