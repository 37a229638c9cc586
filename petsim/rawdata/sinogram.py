"""Interfile sinograms as list mode: every count is an event of its bin, so that what takes events takes sinograms too.

A bin of several crystal pairs (span, mashing, merged crystals) gives its counts to its pairs of real crystals at random.
There are no times. Rings run the other way than ours, as in PETLINK, and crystals are renumbered so that gaps lie where ours
do and crystal 0 as near as that allows to where the file has it; what is left of the angle is told.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numba as nb
import numpy as np

from data_recipes.errors import DataError, UsageError
from data_recipes.subject import Injection
from petsim.geometry.scanner import Scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.philox import philox, stream_key
from petsim.physics.normalization import ring_pairs_by_plane
from petsim.rawdata.events import EVENT, Block, Header, Listmode, Write
from petsim.rawdata.interfile_sinogram import SUFFIXES, SinogramFile, integer_counts, read_sinogram
from petsim.rawdata.petlink import VIRTUAL_FIRST

__all__ = ["HOLDS", "SUFFIXES", "TITLE", "create", "read"]

TITLE = "STIR and Siemens Interfile sinogram"
HOLDS: frozenset[str] = frozenset()

TOLERATED_DEG = 0.2
"""Turn of images that is not worth a word."""


def read(path: Path, scanner: Scanner | None = None) -> Listmode:
    """Open a sinogram of recorded counts; see `petsim.rawdata.events.Format`."""
    file = read_sinogram(path, scanner)
    integer_counts(file)
    facts, layout = file.facts, file.layout
    if facts.duration_s is None:
        raise DataError(f"{path.name}: has no 'image duration (sec)[1]', without which counts are no rates; add it")
    shift, rest_deg = crystal_shift(layout, facts.view_offset_deg or 0.0)
    warnings = []
    if abs(rest_deg) > TOLERATED_DEG:
        warnings.append(f"{path.name}: images are turned by {-rest_deg:+.1f} degrees, since gaps between blocks come first")
    if facts.position not in (None, "HFS"):
        warnings.append(f"{path.name}: the patient lies {facts.position}; axes of images are right for one who lies HFS")
    known = facts.isotope is not None or facts.injected_mbq is not None
    fields = ({"tof"} if layout.tof_bins > 1 else set()) | ({"delayeds"} if file.delayeds else set())
    fields |= ({"injection"} if known else set()) | ({"dose"} if facts.dose else set())
    header = Header(
        layout.scanner, facts.duration_s, facts.start_s or 0.0, layout.tof_bins,
        layout.merge_tof * (layout.scanner.tof_bin_ps or 0.0) if layout.tof_bins > 1 else 0.0, frozenset(fields),
        Injection(facts.isotope or "F-18", injected_mbq=facts.injected_mbq), facts.dose,
    )  # fmt: skip
    return Listmode(path.name, header, lambda: _blocks(file, shift), tuple(warnings))


def create(path: Path, header: Header) -> AbstractContextManager[Write]:
    """Refused: events become a sinogram where a layout is chosen, which a list-mode file does not."""
    raise UsageError(f"{path.name}: list mode is not written as a sinogram; choose another format")


def crystal_shift(layout: SinogramLayout, view_offset_deg: float) -> tuple[int, float]:
    """What is added to the number of a crystal, and the angle in degrees that its place then lacks.

    STIR has detector d at the angle `view_offset_deg` + 360 d / N from the top, towards the left of a patient who lies on
    the back with the head first; that is 90 degrees more from the patient's right.
    """
    scanner = layout.scanner
    step = 360 / scanner.crystals_per_ring
    # The file's crystals may be merged; the angle is that of the middle of the first.
    first = 90 + view_offset_deg - step * (layout.merge_transaxial - 1) / 2
    wanted = (first - math.degrees(scanner.view_offset_rad)) / step - 0.5
    block = scanner.transaxial_block
    starts = {0, -VIRTUAL_FIRST.get(scanner.name, 0)}
    fitting = [s + block * round((wanted - s) / block) for s in starts]
    shift = min(fitting, key=lambda s: abs(s - wanted))
    return shift % scanner.crystals_per_ring, (wanted - shift) * step


def _blocks(file: SinogramFile, shift: int) -> Iterator[Block]:
    layout = file.layout
    scanner = layout.scanner
    pairs_of_rings, starts = ring_pairs_by_plane(layout)
    rings = scanner.rings - 1 - pairs_of_rings[:, :2]
    is_real = scanner.is_real()
    for late, source in ((0, file), (1, file.delayeds)):
        if source is None:
            continue
        key = np.uint64(stream_key("bins to pairs", late))
        for first, values in source.blocks():
            counts = np.rint(values).astype(np.uint32)
            pairs = np.stack([np.stack(layout.crystal_pairs(first + k), axis=-1) for k in range(len(counts))]).astype(
                np.int64
            )
            events = np.zeros(int(counts.sum(dtype=np.int64)), EVENT)
            _expand(counts, first, pairs, rings, starts, shift, layout.merge_transaxial, is_real, key, late, events)
            yield Block(events)


@nb.njit(cache=True, nogil=True)
def _expand(counts, first, pairs, rings, starts, shift, merge, is_real, key, late, events):
    views, radials, tofs, planes = counts.shape
    at, across = 0, is_real.shape[0]
    for v in range(views):
        for r in range(radials):
            for t in range(tofs):
                for p in range(planes):
                    place = (np.uint64(first + v) * np.uint64(radials) + np.uint64(r)) * np.uint64(tofs) + np.uint64(t)
                    place = place * np.uint64(planes) + np.uint64(p)
                    for k in range(counts[v, r, t, p]):
                        e = events[at]
                        for attempt in range(100):
                            a, b, c, d = philox(place & np.uint64(0xFFFFFFFF), place >> np.uint64(32), k, attempt, key)
                            m = np.int64(a % np.uint64(pairs.shape[1]))
                            pair = starts[p] + np.int64(b % np.uint64(starts[p + 1] - starts[p]))
                            c1 = (pairs[v, m, r, 0] * merge + np.int64(c % np.uint64(merge)) + shift) % across
                            c2 = (pairs[v, m, r, 1] * merge + np.int64(d % np.uint64(merge)) + shift) % across
                            if is_real[c1, rings[pair, 0]] and is_real[c2, rings[pair, 1]]:
                                break
                        e.crystal1, e.crystal2, e.ring1, e.ring2 = c1, c2, rings[pair, 0], rings[pair, 1]
                        e.tof_bin, e.is_delayed = t, late
                        at += 1
