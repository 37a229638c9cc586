"""Siemens PETLINK list mode, 32-bit bin addresses (Biograph mMR and alike): an Interfile header and its words.

A word is, from its highest bit: 0 and 1 for a prompt or 0 for a delayed, then 30 bits of the address of a span 1 sinogram
(plane, view, projection); or 1 and a tag: 00 elapsed time, 01 singles of a block, 1 others (PETLINK guideline J1, Siemens;
bits and the order of segments, 0 -1 +1 -2 +2 ..., as in STIR's CListRecordECAT8_32bit and stir_ecat_common). Ring 0 of an
address lies deepest in the gantry (STIR, DiscretisedDensity.inl), at the head of a patient who lies head first, so that
our rings, which rise towards the head, run the other way. Whether singles are stored in units of the header's "singles scale
factor" is assumed. Dates and times of day are not kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numba as nb
import numpy as np

from data_recipes.errors import DataError, UsageError
from data_recipes.subject import Injection
from petsim.cache.store import whole_or_nothing
from petsim.geometry.pair_bins import PairBins
from petsim.geometry.scanner import Scanner, load_scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.rawdata.events import (
    AT_ONCE,
    EVENT,
    SINGLES,
    Block,
    DamagedError,
    Header,
    Listmode,
    Write,
    rings_of,
)
from petsim.rawdata.interfile import dose_lines, read_dose
from petsim.rawdata.interfile_header import InterfileHeader, read_header

SUFFIXES = (".l.hdr", ".l.hdr.STIR")
TITLE = "Siemens PETLINK 32-bit"
HOLDS = frozenset({"time", "delayeds", "singles", "injection", "dose"})

SYSTEMS = {"2008": "biograph_mmr"}
"""Our names of "originating system"."""

SINGLES_SCALE = 8.0
"""Unit of singles rates in written files, so that 19 bits hold them."""

VIRTUAL_FIRST = {"biograph_mmr": 1}
"""Virtual crystals that come before the real ones of a block in the vendor's numbering, by scanner (mMR: measured, no count
lies in them, see the test with real data); in ours they come last, so that crystal 1 of an address is our crystal 0."""

_TIME, _SINGLES = 4, 5


def read(path: Path, scanner: Scanner | None = None) -> Listmode:
    """Open a list-mode file by its header; see `petsim.rawdata.events.Format`."""
    keys = read_header(path)
    bits = keys.integer("LM event and tag words format (bits)")
    if bits != 32:
        raise DataError(f"{path.name}: {bits}-bit list mode is not read, its layout is not public; only 32-bit words are")
    if keys.find_integer("number of TOF time bins", 1) > 1 or keys.integer("axial compression") != 1:
        raise DataError(
            f"{path.name}: only bin addresses of span 1 without TOF are read; export the list mode without mashing"
        )
    if scanner is None:
        system = keys.text("originating system")
        if system not in SYSTEMS:
            raise DataError(f"{path.name}: 'originating system' {system!r} is not known; name the scanner with --scanner")
        scanner = load_scanner(SYSTEMS[system])
    views, projections = keys.integer("number of views"), keys.integer("number of projections")
    for what, stated, own in (
        ("number of rings", keys.integer("number of rings"), scanner.rings),
        ("number of views", views, scanner.crystals_per_ring / 2),
    ):
        if stated != own:
            raise DataError(f"{path.name}: '{what}' is {stated:g} but {scanner.name} has {own:g}; name another --scanner")
    layout = SinogramLayout(scanner, projections, max_ring_difference=keys.integer("maximum ring difference"))
    # Vendors write folders of their own machine before it.
    named = Path((keys.find("name of data file") or "").replace("\\", "/")).name
    data = path.with_name(named or path.name.split(".hdr")[0])
    if keys.find_integer("data offset in bytes", 0):
        raise DataError(f"{path.name}: 'data offset in bytes' is not 0; write the events into a file of their own")
    if not data.is_file():
        raise DataError(f"{path.name}: its data file {data.name} is missing; put both into one folder")
    words = data.stat().st_size // 4
    if words == 0:
        raise DataError(f"{data.name}: the file is empty; copy it again")
    tick_ms = keys.number("timing tagwords interval (msec)")
    blocks = keys.find_integer("total number of singles blocks", 0)
    scale = keys.find_number("singles scale factor") or 1.0
    first_ms, last_ms = _time_span(data, words)
    warnings = []
    stated = keys.find_integer("total listmode word counts", words)
    if stated != words:
        warnings.append(f"{data.name}: holds {words} words but its header says {stated}; the rest of the scan is missing")
    position = keys.find("patient orientation") or "HFS"
    if position != "HFS":
        warnings.append(f"{path.name}: the patient lies {position}; axes of images are right for one who lies HFS")
    injection, known = _injection(keys)
    dose = read_dose(keys)
    fields = {"time", "delayeds"} | ({"singles"} if blocks else set()) | ({"injection"} if known else set())
    header = Header(
        scanner, (last_ms + tick_ms - first_ms) / 1000, first_ms / 1000,
        fields=frozenset(fields | ({"dose"} if dose else set())), injection=injection, dose=dose,
    )  # fmt: skip

    def passes() -> Iterator[Block]:
        return _blocks(data, layout, blocks, scale)

    return Listmode(path.name, header, passes, tuple(warnings))


def clock_s(text: str | None) -> float | None:
    """Seconds of a time of day such as 17:00:35; None where there is none."""
    parts = (text or "").split(":")
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + seconds


def _time_span(data: Path, words: int) -> tuple[int, int]:
    """First and last elapsed time in the file, ms; `DataError` without any."""
    mapped = np.memmap(data, "<u4", "r", shape=(words,))
    some = np.array(mapped[:AT_ONCE])
    if not _in_order(some) and _in_order(some.byteswap()):
        raise DataError(f"{data.name}: the bytes of its words are swapped; write it as little-endian")
    ends = []
    for piece in (range(0, words, AT_ONCE), range((words - 1) // AT_ONCE * AT_ONCE, -1, -AT_ONCE)):
        for start in piece:
            some = mapped[start : start + AT_ONCE]
            tags = some[some >> 29 == _TIME]
            if tags.size:
                ends.append(int(tags[0 if not ends else -1]) & 0x1FFFFFFF)
                break
        else:
            raise DataError(f"{data.name}: no time tag in it; it is no 32-bit list mode")
    if ends[1] < ends[0]:
        ends[1] = ends[0]
    return ends[0], ends[1]


def _in_order(words: np.ndarray) -> bool:
    """Whether there are time tags, and their time never runs backwards."""
    tags = words[words >> 29 == _TIME]
    return tags.size > 0 and bool((tags[1:] >= tags[:-1]).all())


def _injection(keys: InterfileHeader) -> tuple[Injection, bool]:
    """The injection, and whether the header tells of one. Times of day are kept as their difference only."""
    activity_bq = keys.find_number("tracer activity at time of injection (Bq)")
    scan = clock_s(keys.find("study time (hh:mm:ss GMT+00:00)"))
    given = clock_s(keys.find("tracer injection time (hh:mm:ss GMT+00:00)"))
    after = keys.find_number("relative time of tracer injection (sec)")
    uptake = (scan - given) % 86400 if scan is not None and given is not None else None if after is None else -after
    isotope, tracer = keys.find("isotope name"), keys.find("radiopharmaceutical")
    injection = Injection(isotope or "F-18", tracer or "FDG", activity_bq and activity_bq / 1e6, uptake)
    return injection, bool(isotope or activity_bq)


def _siemens_planes(layout: SinogramLayout) -> tuple[np.ndarray, np.ndarray]:
    """Rings uint16 (planes, 2) of the planes of an address, and those planes int32 (rings, rings) of a ring pair."""
    rings, of_pair = [], np.full((layout.rings, layout.rings), -1, np.int32)
    for segment in range(layout.max_ring_difference + 1):
        for difference in (-segment, segment) if segment else (0,):
            for place in range(layout.rings - segment):
                ring1, ring2 = place - min(difference, 0), place + max(difference, 0)
                pair = (layout.rings - 1 - ring1, layout.rings - 1 - ring2)
                of_pair[pair] = len(rings)
                rings.append(pair)
    return np.array(rings, np.uint16), of_pair


def _pairs_of_lines(layout: SinogramLayout) -> np.ndarray:
    """Our crystals uint16 (views x projections, 2) of the lines of an address."""
    pairs = np.concatenate([np.stack(layout.crystal_pairs(v), axis=-1)[0] for v in range(layout.views)])
    return ((pairs - VIRTUAL_FIRST.get(layout.scanner.name, 0)) % layout.crystals).astype(np.uint16)


def _bins_of_pairs(layout: SinogramLayout) -> PairBins:
    """The inverse: bins of our crystal pairs, planes in the order of an address."""
    pairs, first = PairBins.of(layout), VIRTUAL_FIRST.get(layout.scanner.name, 0)
    line, swapped = (np.roll(table, (-first, -first), (0, 1)) for table in (pairs.line, pairs.is_swapped))
    return PairBins(layout, line, swapped, _siemens_planes(layout)[1])


def _blocks(data: Path, layout: SinogramLayout, blocks: int, scale: float) -> Iterator[Block]:
    crystals, rings = _pairs_of_lines(layout), _siemens_planes(layout)[0]
    buffer, state = np.empty(AT_ONCE, "<u4"), np.zeros(3, np.int64)
    total = 0
    with data.open("rb") as file:
        while True:
            size = file.readinto(buffer.view(np.uint8).data)
            read = size // 4
            events, singles = np.zeros(read, EVENT), np.zeros(read if blocks else 0, SINGLES)
            state[:2] = 0
            done = _decode(buffer[:read], crystals, rings, blocks, np.float32(scale), events, singles, state)
            yield Block(events[: state[0]], singles[: state[1]])
            total += int(state[0])
            at = f"byte {file.tell() - size + 4 * done}"
            if done < read:
                word = int(buffer[done])
                bins = len(crystals) * len(rings)
                what = f"bin address {word & 0x3FFFFFFF} is beyond the {bins} bins of {layout.scanner.name}"
                if word >> 31:
                    what = f"time runs backwards to {word & 0x1FFFFFFF} ms"
                raise DamagedError(data.name, what, at, total)
            if size % 4:
                raise DamagedError(data.name, "the file ends within a word", at, total)
            if size < buffer.nbytes:
                return


@nb.njit(cache=True, nogil=True)
def _decode(words, crystals, rings, blocks, scale, events, singles, state):
    """Fill events and singles; returns the place of the first word that cannot be, or how many words there are.

    state: events and singles found here; time in ms, kept from call to call.
    """
    lines = np.uint32(crystals.shape[0])
    count, found, time = 0, 0, state[2]
    for k in range(words.size):
        word = words[k]
        if word >> 31 == 0:
            address = word & np.uint32(0x3FFFFFFF)
            plane = address // lines
            if plane >= rings.shape[0]:
                break
            line = address - plane * lines
            e = events[count]
            e.time_ms = time
            e.crystal1, e.crystal2 = crystals[line, 0], crystals[line, 1]
            e.ring1, e.ring2 = rings[plane, 0], rings[plane, 1]
            e.is_delayed = 1 - (word >> 30)
            count += 1
        elif word >> 29 == _TIME:
            new = np.int64(word & np.uint32(0x1FFFFFFF))
            if new < time:
                break
            time = new
        elif word >> 29 == _SINGLES:
            block = (word >> 19) & np.uint32(0x3FF)
            if block < blocks:
                s = singles[found]
                s.time_ms, s.block, s.cps = time, block, scale * np.float32(word & np.uint32(0x7FFFF))
                found += 1
    else:
        k = words.size
    state[0], state[1], state[2] = count, found, time
    return k


@contextmanager
def create(path: Path, header: Header) -> Iterator[Write]:
    """Write words and header; a time tag is written for every millisecond. See `petsim.rawdata.events.Format`."""
    scanner = rings_of(header)
    if "time" not in header.fields:
        raise UsageError(f"{path.name}: PETLINK cannot do without times, which the data do not have; choose another format")
    if scanner.radial_bins is None or scanner.crystals_per_ring % 2:
        raise UsageError(f"{path.name}: {scanner.name} has no bin addresses of PETLINK; choose another format")
    farthest = scanner.max_ring_difference
    layout = SinogramLayout(scanner, scanner.radial_bins, max_ring_difference=farthest)
    pairs = _bins_of_pairs(layout)
    data = path.with_name(path.name.split(".hdr")[0])
    start, end = round(1000 * header.start_s), round(1000 * (header.start_s + header.duration_s))
    if data.exists() and not path.exists():
        raise UsageError(f"{path.name}: would replace {data.name}, which belongs to another header; choose another name")
    state = np.array([start, 0, 0], np.int64)
    with whole_or_nothing(path) as head, whole_or_nothing(data) as temporary:
        with temporary.open("wb") as file:

            def write(block: Block) -> None:
                lines = pairs.of_events(block.events)
                outside = np.flatnonzero(lines < 0)
                if outside.size:
                    e = block.events[outside[0]]
                    raise DataError(
                        f"{path.name}: crystals {e['crystal1']} and {e['crystal2']} of rings {e['ring1']} and {e['ring2']} "
                        f"have no bin address ({layout.radials} projections, ring differences up to {farthest}); choose "
                        "another format"
                    )
                last = max((int(a["time_ms"][-1]) for a in (block.events, block.singles) if len(a)), default=0)
                room = len(lines) + len(block.singles) + max(0, last + 1 - int(state[0]))
                words = np.empty(room, "<u4")
                used = _encode(block.events, lines, layout.planes, layout.views * layout.radials, block.singles,
                               np.float32(SINGLES_SCALE), state, words)  # fmt: skip
                file.write(words[:used].data)
                state[1] += used
                state[2] = max(state[2], block.singles["block"].max(initial=0) + len(block.singles[:1]))

            yield write
            ticks = np.arange(state[0], end, dtype="<u4") | np.uint32(_TIME << 29)
            file.write(ticks.data)
        head.write_text(_header_text(header, layout, data.name, int(state[1]) + len(ticks), int(state[2])))


@nb.njit(cache=True, nogil=True)
def _encode(events, lines, planes, lors, singles, scale, state, words):
    """Words of events and singles in the order of their times, each after the tag of its millisecond; returns how many.

    state[0]: the next tag to be written.
    """
    used, s, tick = 0, 0, state[0]
    for k in range(events.size + 1):
        here = np.int64(events[k].time_ms) if k < events.size else np.int64(1 << 40)
        while s < singles.size and np.int64(singles[s].time_ms) <= here:
            at = np.int64(singles[s].time_ms)
            while tick <= at:
                words[used] = np.uint32(0x80000000) | np.uint32(tick)
                used, tick = used + 1, tick + 1
            rate = np.uint32(min(np.round(singles[s].cps / scale), 0x7FFFF))
            words[used] = np.uint32(0xA0000000) | np.uint32(singles[s].block) << np.uint32(19) | rate
            used, s = used + 1, s + 1
        if k < events.size:
            while tick <= here:
                words[used] = np.uint32(0x80000000) | np.uint32(tick)
                used, tick = used + 1, tick + 1
            # Without TOF a flat index is line x planes + plane.
            address = lines[k] % planes * lors + lines[k] // planes
            words[used] = np.uint32(address) | np.uint32(1 - events[k].is_delayed) << np.uint32(30)
            used += 1
    state[0] = tick
    return used


def _header_text(header: Header, layout: SinogramLayout, data: str, words: int, blocks: int) -> str:
    scanner, injection = layout.scanner, header.injection
    systems = {name: system for system, name in SYSTEMS.items()}
    lines = [
        "!INTERFILE:=", f"!originating system:={systems.get(scanner.name, scanner.name)}",
        "%SMS-MI header name space:=PETLINK bin address", "%SMS-MI version number:=3.4", "!GENERAL DATA:=",
        "!data offset in bytes:=0", f"name of data file:={data}", "!GENERAL IMAGE DATA:=", "!type of data:=PET",
    ]  # fmt: skip
    if "injection" in header.fields:
        lines += [f"isotope name:={injection.isotope}", f"radiopharmaceutical:={injection.tracer}"]
        if injection.uptake_s is not None:
            lines.append(f"relative time of tracer injection (sec):={-injection.uptake_s:.10g}")
        if injection.injected_mbq is not None:
            lines.append(f"tracer activity at time of injection (Bq):={injection.injected_mbq * 1e6:.10g}")
    lines += [
        "PET data type:=Emission", "data format:=CoincidenceList", "!PET STUDY (Emission data):=",
        f"number of rings:={scanner.rings}", f"distance between rings (cm):={scanner.ring_spacing_mm / 10:.10g}",
        f"gantry crystal radius (cm):={scanner.inner_radius_mm / 10:.10g}", "%number of TOF time bins:=1",
        "%TOF mashing factor:=1", "!IMAGE DATA DESCRIPTION:=", f"image duration (sec):={header.duration_s:.10g}",
        f"%total listmode word counts:={words}", "%COINCIDENCE LIST DATA:=", "%LM event and tag words format (bits):=32",
        "%timing tagwords interval (msec):=1", f"%singles scale factor:={SINGLES_SCALE:g}",
        f"%total number of singles blocks:={blocks}", "%axial compression:=1",
        f"%maximum ring difference:={layout.max_ring_difference}", f"%number of projections:={layout.radials}",
        f"%number of views:={layout.views}",
    ]  # fmt: skip
    lines += [f"%{key}:={value}" for key, value in dose_lines(header.dose)]
    return "\n".join(lines) + "\n"
