"""Sinograms in Interfile: STIR's `.hs` with its data, and Siemens' uncompressed `.s.hdr`, which are read only.

Which bin is which, and the sources, see `petsim.rawdata.interfile_layout`. A file that is written holds timing positions and
segments in ascending order, in them views of axial positions, little endian. What a format of other programs calls corrected
data is read, too, except arc-corrected data, whose bins are no pairs of crystals.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_recipes.errors import DataError, UsageError
from petsim.cache.store import whole_or_nothing
from petsim.geometry.scanner import Scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.rawdata.interfile import (
    Facts,
    Storage,
    fact_lines,
    is_storable,
    number_lines,
    read_facts,
    read_storage,
)
from petsim.rawdata.interfile_header import InterfileHeader, Line, header_bytes, read_header
from petsim.rawdata.interfile_layout import (
    Order,
    layout_lines,
    read_order,
    read_siemens_order,
    view_offset_deg,
    written_name,
)

SUFFIXES = (".hs", ".s.hdr")
"""Endings of the headers that are read; the first is written."""

AT_ONCE = 1 << 22
"""Bins that are worked on at once, or those of one view if they are more."""

_ARC = ("arc correction", "arc corrected", "radial arc-correction", "radial arc correction")
_DELAYEDS = ("randoms", "random", "delayeds", "delayed")

Read = Callable[[np.ndarray], np.ndarray]
"""Indices of views -> values (views, radial, tof, plane)."""


@dataclass(frozen=True)
class SinogramFile:
    """A sinogram file, open for reading.

    Parameters
    ----------
    name : str
        Of the header, without its folder.
    layout : SinogramLayout
    facts : Facts
    dtype : dtype
        Of what `read` gives: as stored, or float where the header has a scale factor.
    read : callable
        Values of some views, a new array; memory does not depend on the size of the file.
    delayeds : SinogramFile, optional
        The delayed coincidences of the same file (Siemens).
    """

    name: str
    layout: SinogramLayout
    facts: Facts
    dtype: np.dtype
    read: Read
    delayeds: "SinogramFile | None" = None

    def counts(self) -> np.ndarray:
        """All values (view, radial, tof, plane)."""
        return self.read(np.arange(self.layout.views))

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """A new pass over all views: the first one of a block, and values (views, radial, tof, plane)."""
        for views in view_blocks(self.layout):
            yield int(views[0]), self.read(views)


def view_blocks(layout: SinogramLayout) -> list[np.ndarray]:
    """Consecutive views that are worked on at once."""
    views, radials, tof, planes = layout.shape
    step = max(1, AT_ONCE // (radials * tof * planes))
    return [np.arange(first, min(first + step, views)) for first in range(0, views, step)]


def read_sinogram(path: Path, scanner: Scanner | None = None) -> SinogramFile:
    """Open a sinogram by its header.

    Parameters
    ----------
    path : Path
        `.hs` of STIR or `.s.hdr` of Siemens; which of both a header is, its keys tell.
    scanner : Scanner, optional
        None: that of "originating system". The header's geometry must fit either within 1 %.

    Returns
    -------
    SinogramFile

    Raises
    ------
    DataError
        In one line: a file that is missing, damaged, too short, arc-corrected or compressed, a scanner that is unknown or
        differs, a number format, an order of axes or bins that cannot be read.
    """
    header = read_header(path)
    is_siemens = header.find("SMS-MI version number") is not None
    facts = read_facts(header)
    kind = header.word("PET data type", "image")
    if kind != "emission":
        raise DataError(f"{header.name}: 'PET data type' is '{kind}'; only sinograms of emission data are read")
    arc_corrected = any(c in _ARC for c in facts.corrections)
    if is_siemens:
        arc_corrected |= header.word("matrix axis label", index=1) == "x"
    elif not arc_corrected and header.find("applied corrections") is None:
        raise DataError(
            f"{header.name}: has no 'applied corrections', which STIR takes for arc-corrected data; if they are not, add "
            "'applied corrections := {None}'"
        )
    if arc_corrected:
        raise DataError(f"{header.name}: its data are arc-corrected, so that bins are no crystal pairs; give raw sinograms")
    order = (read_siemens_order if is_siemens else read_order)(header, scanner)
    facts = replace(facts, view_offset_deg=view_offset_deg(header, order.layout, is_siemens))
    storage = read_storage(header)
    file = _open(header, order, facts, storage)
    kinds = [header.word("scan data type description", index=k) for k in (1, 2)]
    if not is_siemens or kinds[1] not in _DELAYEDS:
        return file
    second = read_storage(header, 2)
    if abs(second.offset - storage.offset) < int(np.prod(order.layout.shape, dtype=np.int64)) * storage.dtype.itemsize:
        raise DataError(
            f"{header.name}: {kinds[0]} and {kinds[1]} overlap; their offsets are those of the compressed file, mend them"
        )
    return replace(file, delayeds=_open(header, order, facts, second))


def _open(header: InterfileHeader, order: Order, facts: Facts, storage: Storage) -> SinogramFile:
    layout = order.layout
    bins = int(np.prod(layout.shape, dtype=np.int64))
    storage.check_size(header, bins)
    if len(set(storage.scale)) > 1:
        raise DataError(f"{header.name}: has several image scaling factors; a sinogram may have only one")

    def read(views: np.ndarray) -> np.ndarray:
        # Mapped anew, so that pages are given back after each call.
        stored = storage.map((bins,))
        out = np.empty((len(views), *layout.shape[1:]), storage.read_dtype)
        start = 0
        for tof in order.tof:
            for segment in order.segments:
                shape = (layout.views, segment.planes) if order.is_by_view else (segment.planes, layout.views)
                size = layout.views * segment.planes * layout.radials
                block = stored[start : start + size].reshape(*shape, layout.radials)
                some = block[views].transpose(0, 2, 1) if order.is_by_view else block[:, views].transpose(1, 2, 0)
                out[:, :, tof, segment.start : segment.start + segment.planes] = some
                start += size
        if storage.scale[0] != 1:
            out *= out.dtype.type(storage.scale[0])
        return out

    return SinogramFile(header.name, layout, facts, storage.read_dtype, read)


def integer_counts(file: SinogramFile) -> int:
    """Make sure, in one pass, that data are recorded counts; returns the largest of a bin.

    Raises
    ------
    DataError
        Corrections were applied, or a value is negative or not a whole number.
    """
    mend = "give the prompts as they were recorded"
    if file.facts.corrections:
        raise DataError(
            f"{file.name}: pre-corrected data cannot be thinned (applied: {', '.join(file.facts.corrections)}): binomial "
            f"thinning needs recorded counts; {mend}"
        )
    largest = 0
    for first, counts in file.blocks():
        wrong = counts < 0
        if counts.dtype.kind == "f":
            wrong |= ~np.isfinite(counts) | (counts != np.rint(counts))
        if wrong.any():
            view, value = first + int(np.argwhere(wrong)[0][0]), counts[wrong][0]
            what = "negative" if value < 0 else "not a whole number"
            raise DataError(
                f"{file.name}: holds {value:g} in view {view}, which is {what}; such pre-corrected data cannot be thinned: "
                f"binomial thinning needs recorded counts; {mend}"
            )
        largest = max(largest, int(counts.max()))
    return largest


@contextmanager
def create_sinogram(
    path: Path, layout: SinogramLayout, dtype: np.dtype, facts: Facts
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """Write `.hs` and `.s` for STIR, some views at a time; both appear when the block ends well, the header last.

    Parameters
    ----------
    path : Path
        Of the header, ending in .hs.
    layout : SinogramLayout
    dtype : dtype
        Integers of 1, 2 or 4 bytes or floats of 4 or 8.
    facts : Facts

    Yields
    ------
    callable
        Takes the index of a view and values (views, radial, tof, plane) of it and those that follow. Every view must be
        given.

    Raises
    ------
    UsageError
        A wrong ending, or what the format cannot hold.
    """
    if path.suffix != SUFFIXES[0]:
        raise UsageError(f"{path.name}: sinograms are written for STIR; let the name end in {SUFFIXES[0]}")
    if not is_storable(dtype):
        raise UsageError(f"{path.name}: {dtype} cannot be written; convert to integers of up to 4 bytes or to float32")
    order, data = Order.written(layout), path.with_suffix(".s")
    text = header_bytes(_lines(order, dtype, facts, data.name))
    stored = dtype.newbyteorder("<")
    with whole_or_nothing(path) as head, whole_or_nothing(data) as temporary:
        head.write_bytes(text)
        with temporary.open("wb") as out:
            out.truncate(int(np.prod(layout.shape, dtype=np.int64)) * stored.itemsize)

            def write(first: int, counts: np.ndarray) -> None:
                start = 0
                for tof in order.tof:
                    for segment in order.segments:
                        some = counts[:, :, tof, segment.start : segment.start + segment.planes].transpose(0, 2, 1)
                        view_size = segment.planes * layout.radials
                        out.seek((start + first * view_size) * stored.itemsize)
                        out.write(np.ascontiguousarray(some, stored).data)
                        start += layout.views * view_size

            yield write
        # A header that was there before does not describe the data that now take their name.
        path.unlink(missing_ok=True)


def write_sinogram(path: Path, counts: np.ndarray | Read, layout: SinogramLayout, facts: Facts) -> None:
    """Write `.hs` and `.s` that STIR reads, whole or not at all.

    Parameters
    ----------
    path : Path
        Of the header, ending in .hs.
    counts : ndarray or callable
        (view, radial, tof, plane), or views -> those of them; its type is kept: integers of 1, 2 or 4 bytes, floats of 4
        or 8.
    layout : SinogramLayout
        Lost are `even_rings` and gaps between rings: STIR places them evenly.
    facts : Facts

    Raises
    ------
    UsageError, DataError
        What the format cannot hold; failures of the file system.
    """
    read = counts if callable(counts) else lambda views: counts[views]
    shape = counts.shape if isinstance(counts, np.ndarray) else layout.shape
    blocks = view_blocks(layout)
    some = read(blocks[0][:1]) if shape == layout.shape else np.empty(0)
    if shape != layout.shape or some.shape[1:] != layout.shape[1:]:
        raise UsageError(f"{path.name}: a sinogram of shape {layout.shape} is needed, got {shape}")
    with create_sinogram(path, layout, some.dtype, facts) as write:
        for views in blocks:
            write(int(views[0]), read(views))


def _lines(order: Order, dtype: np.dtype, facts: Facts, data_name: str) -> list[Line]:
    layout = order.layout
    general, of_type, last = fact_lines(facts)
    merged = layout.merge_transaxial * layout.merge_axial > 1
    corrections = list(facts.corrections) or ["None"]
    return [
        ("!imaging modality", "PT"), ("name of data file", data_name),
        ("originating system", written_name(layout.scanner, merged)), ("!version of keys", "STIR6.0"),
        ("!GENERAL DATA", None), *general, ("!GENERAL IMAGE DATA", None), ("!type of data", "PET"),
        ("imagedata byte order", "LITTLEENDIAN"), *of_type, ("!PET STUDY (General)", None), ("!PET data type", "Emission"),
        ("applied corrections", corrections), *number_lines(dtype), *layout_lines(order, facts.view_offset_deg), *last,
    ]  # fmt: skip
