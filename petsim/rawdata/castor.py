"""CASToR list mode (PET): an ASCII header .cdh, its events .cdf, and scanner files (see `petsim.rawdata.castor_scanner`).

An event, little-endian: time (uint32, ms on the clock of "Start time (s)"); attenuation factor; kind (uint8); scatter rate;
random rate; normalization factor; difference of arrival times t1 - t2 (ps, positive nearer to crystal 2); IDs of crystals 1
and 2 (uint32). All but time and IDs are optional by flags of the header, and float32 where nothing is said. Sources: CASToR
general documentation and "Time-of-flight in CASToR"; the kind, written by castor-GATERootToCastor -k, is in the code of
CASToR 3.1.1 only.

Correction factors are not read. CASToR knows prompts only: delayeds are left out. Dose and injection are kept in a comment,
for petsim; CASToR reads the isotope.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_recipes.errors import DataError, UsageError
from data_recipes.subject import Injection
from petsim.cache.store import whole_or_nothing
from petsim.geometry.scanner import Scanner
from petsim.rawdata.castor_scanner import (
    Geometry,
    Keys,
    geometry_of,
    note_line,
    order_by_position,
    own_order,
    read_geometry,
)
from petsim.rawdata.events import (
    AT_ONCE,
    EVENT,
    Block,
    DamagedError,
    Dose,
    Elements,
    Header,
    Listmode,
    Write,
    first_wrong,
)

SUFFIXES = (".cdh",)
TITLE = "CASToR"
HOLDS = frozenset({"time", "tof", "labels", "injection", "dose"})

LIST_MODES = ("list", "listmode", "list-mode", "0")
ISOTOPES = ("Br-75", "C-11", "Cu-62", "Cu-64", "F-18", "Mn-52", "Ga-68", "Ge-68", "N-13", "O-14", "O-15", "Rb-82", "Na-22",
            "Br-76", "K-38", "Zr-89", "Y-90")  # fmt: skip
"""Known to CASToR; another one stops it."""

HEADER_BYTES = 1 << 20
"""No header is longer."""

TOF_BINS_PER_FWHM = 10
"""Of data whose TOF is not quantized, where no scanner says more."""

Encode = Callable[[np.ndarray], np.ndarray]

_FLAGS = (("attenuation", "Attenuation correction flag", "<f4"), ("kind", "Coincidence kind flag", "u1"),
          ("scatter", "Scatter correction flag", "<f4"), ("random", "Random correction flag", "<f4"),
          ("normalization", "Normalization correction flag", "<f4"), ("tof_ps", "TOF information flag", "<f4"))  # fmt: skip
_CORRECTIONS = ("attenuation", "scatter", "random", "normalization")

# Kinds: unknown, true, scattered once, scattered several times, random.
_LABEL_OF_KIND = np.array([0, 1, 2, 2, 3], np.uint8)
_KIND_OF_LABEL = np.array([0, 1, 2, 4], np.uint8)


@dataclass(frozen=True)
class Native:
    """What CASToR's files say beside events."""

    calibration: str | None
    isotope: str | None
    tof_fwhm_ps: float
    geometry: Geometry | None


@dataclass(frozen=True, eq=False)
class _Decoder:
    """From records to events."""

    header: Header
    dtype: np.dtype
    crystal: np.ndarray
    ring: np.ndarray
    tof_range_ps: float

    def events(self, records: np.ndarray) -> tuple[np.ndarray, str]:
        """Events up to the first record that cannot be, and what is wrong with that one ("" if all are right)."""
        elements = np.uint32(len(self.crystal))
        id1, id2 = records["id1"], records["id2"]
        is_wrong = (id1 >= elements) | (id2 >= elements)
        if self.tof_range_ps:
            is_wrong |= ~(np.abs(records["tof_ps"]) <= np.float32(self.tof_range_ps * (1 + 1e-6)))
        if "labels" in self.header.fields:
            is_wrong |= records["kind"] >= len(_LABEL_OF_KIND)
        what = ""
        if is_wrong.any():
            first = int(np.argmax(is_wrong))
            what = self._wrong(records[first])
            records, id1, id2 = records[:first], id1[:first], id2[:first]
        events = np.zeros(len(records), EVENT)
        events["time_ms"] = records["time_ms"]
        events["crystal1"], events["ring1"] = self.crystal[id1], self.ring[id1]
        events["crystal2"], events["ring2"] = self.crystal[id2], self.ring[id2]
        if self.tof_range_ps:
            bins, width = self.header.tof_bins, self.header.tof_bin_ps
            place = records["tof_ps"] * np.float32(1 / width) + np.float32(bins / 2)
            events["tof_bin"] = np.clip(np.floor(place), 0, bins - 1)
        if "labels" in self.header.fields:
            events["label"] = _LABEL_OF_KIND[records["kind"]]
        return events, what

    def _wrong(self, record: np.void) -> str:
        ids = record["id1"], record["id2"]
        if max(ids) >= len(self.crystal):
            return f"crystal IDs {ids[0]} and {ids[1]} are beyond the {len(self.crystal)} of {self.header.scanner.name}"
        if self.tof_range_ps and not abs(record["tof_ps"]) <= self.tof_range_ps:
            return f"TOF {record['tof_ps']:g} ps is beyond the header's measurement range of {self.tof_range_ps:g} ps"
        return f"coincidence kind {record['kind']} is not one of {len(_LABEL_OF_KIND)}"


def read(path: Path, scanner: Scanner | None = None) -> Listmode:
    """Open a data file by its header; see `petsim.rawdata.events.Format`.

    IDs are those of the scanner files beside the header. With `scanner` too, elements are found among its crystals by their
    positions; with `scanner` alone, IDs count its real crystals as petsim does.
    """
    with path.open("rb") as file:
        keys = Keys.of(path.name, file.read(HEADER_BYTES))
    mode, kind = keys.text("Data mode"), keys.text("Data type")
    if mode.lower() not in LIST_MODES or kind.upper() not in ("PET", "0"):
        raise DataError(f"{path.name}: holds {kind} data in mode {mode}, no events; give PET data in list mode")
    if keys.number("Maximum number of lines per event", 1) > 1:
        raise DataError(f"{path.name}: an event has several lines here (compressed data); give data with one line an event")
    if any(keys.numbers("POI correction flag", 3, 0)):
        raise DataError(f"{path.name}: points of interaction in events are not read; give data without them")
    optional = [(name, type) for name, key, type in _FLAGS if keys.number(key, 0)]
    dtype = np.dtype([("time_ms", "<u4"), *optional, ("id1", "<u4"), ("id2", "<u4")])
    names = dtype.names or ()
    data, count = _data_file(path, keys), int(keys.number("Number of events"))
    whole, rest = divmod(data.stat().st_size, dtype.itemsize)
    if whole == 0:
        raise DataError(f"{data.name}: holds not one event of {dtype.itemsize} bytes; copy it again")
    if whole > count or (whole == count and rest):
        raise DataError(
            f"{data.name}: holds more than the {count} events of {dtype.itemsize} bytes that its header states; correct the "
            "flags or 'Number of events'"
        )
    detectors, order, geometry = _detectors(path, keys, scanner)
    tof_bins, tof_bin_ps, tof_range_ps = _tof(keys, detectors) if "tof_ps" in names else (1, 0.0, 0.0)
    injection, dose = _notes(keys)
    present = {"time": True, "tof": tof_bins > 1, "labels": "kind" in names, "injection": injection, "dose": dose}
    native = Native(keys.get("Calibration factor"), keys.get("Isotope"), keys.number("TOF resolution (ps)", 0), geometry)
    start_s, duration_s = keys.number("Start time (s)"), keys.number("Duration (s)")
    if start_s < 0 or not duration_s > 0:
        raise DataError(
            f"{path.name}: starts at {start_s:g} s and lasts {duration_s:g} s; correct 'Start time (s)', 'Duration (s)'"
        )
    header = Header(
        detectors, duration_s, start_s, tof_bins, tof_bin_ps, frozenset(f for f, is_there in present.items() if is_there),
        injection or Injection(), dose, native,
    )  # fmt: skip
    warnings = []
    skipped = [name for name in _CORRECTIONS if name in names]
    if skipped:
        warnings.append(f"{path.name}: the correction factors of its events ({', '.join(skipped)}) are not read")
    last = np.fromfile(data, dtype, 1, offset=(whole - 1) * dtype.itemsize)
    last_s = float(last["time_ms"][0]) / 1000
    if last_s > start_s + duration_s:
        warnings.append(
            f"{path.name}: events go on until {last_s:g} s but the header ends at {start_s + duration_s:g} s; correct "
            "'Duration (s)'"
        )
    decoder = _Decoder(header, dtype, *order, tof_range_ps)
    return Listmode(path.name, header, lambda: _blocks(data, count, decoder), tuple(warnings))


def _notes(keys: Keys) -> tuple[Injection | None, Dose | None]:
    """Injection and dose of a file by petsim."""
    note = keys.note("data")
    try:
        if note is None:
            return None, None
        return (
            Injection(**note["injection"]) if "injection" in note else None,
            Dose(**note["dose"]) if "dose" in note else None,
        )
    except TypeError:
        raise DataError(f"{keys.name}: the line '# petsim data' is damaged; take the line out") from None


def _data_file(path: Path, keys: Keys) -> Path:
    stated = keys.text("Data filename").replace("\\", "/")
    # Headers are moved together with their data, whatever path they name.
    for data in (path.parent / Path(stated).name, path.parent / stated):
        if data.is_file():
            return data
    raise DataError(f"{path.name}: its data file {Path(stated).name} is missing; put both into one folder")


def _detectors(
    path: Path, keys: Keys, scanner: Scanner | None
) -> tuple[Scanner | Elements, tuple[np.ndarray, np.ndarray], Geometry | None]:
    """Detectors, crystal and ring of each ID, and the scanner files."""
    name = Path(keys.text("Scanner name").replace("\\", "/")).name
    geometry = read_geometry(path.parent, name)
    if geometry is None:
        if scanner is None:
            raise DataError(
                f"{path.name}: neither {name}.geom nor {name}.hscan with {name}.lut lies beside it; copy them there from "
                "CASToR's config/scanner, or name the scanner with --scanner"
            )
        return scanner, own_order(scanner), None
    if scanner is not None:
        return scanner, order_by_position(geometry, scanner), geometry
    if geometry.scanner is not None:
        return geometry.scanner, own_order(geometry.scanner), geometry
    return geometry.elements(), geometry.element_order(), geometry


def _tof(keys: Keys, detectors: Scanner | Elements) -> tuple[int, float, float]:
    """TOF bins, their width and the range of measurements, ps."""
    range_ps = keys.number("List TOF measurement range (ps)")
    width_ps = keys.number("List TOF quantization bin size (ps)", 0)
    if range_ps > 0 and width_ps > 0:
        bins = max(2, round(range_ps / width_ps))
    elif isinstance(detectors, Scanner) and detectors.tof_bins and detectors.tof_bin_ps:
        bins, width_ps = detectors.tof_bins, detectors.tof_bin_ps
    else:
        width_ps = keys.number("TOF resolution (ps)") / TOF_BINS_PER_FWHM
        # The range may count one direction only, so that differences of both signs reach it.
        bins = 2 * math.ceil(range_ps / width_ps) + 1 if width_ps > 0 else 0
    if not (range_ps > 0 and 1 < bins <= np.iinfo(np.int16).max):
        raise DataError(
            f"{keys.name}: {bins} TOF bins of {width_ps:g} ps in a range of {range_ps:g} ps; correct 'List TOF measurement "
            "range (ps)' and 'TOF resolution (ps)'"
        )
    return bins, width_ps, range_ps


def _blocks(data: Path, count: int, decoder: _Decoder) -> Iterator[Block]:
    total, last_ms, size = 0, 0, decoder.dtype.itemsize
    with data.open("rb") as file:
        while total < count:
            records = np.fromfile(file, decoder.dtype, min(AT_ONCE, count - total))
            if not len(records):
                raise DamagedError(
                    data.name, f"the file ends before the last of its {count} events", f"byte {total * size}", total
                )
            events, what = decoder.events(records)
            wrong, why = first_wrong(events, decoder.header, last_ms)
            if wrong >= 0:
                events, what = events[:wrong], why
            if len(events):
                yield Block(events)
                last_ms = int(events["time_ms"][-1])
            total += len(events)
            if what and not total:
                raise DataError(f"{data.name}: {what} in its first event; check flags, byte order (little) and scanner")
            if what:
                raise DamagedError(data.name, what, f"byte {total * size}", total)


@contextmanager
def create(path: Path, header: Header) -> Iterator[Write]:
    """Write header, events and, beside them, the scanner's files; see `petsim.rawdata.events.Format`.

    Delayeds are left out. CASToR finds the scanner once its files are in CASToR's config/scanner.
    """
    geometry, order = _written_geometry(path, header)
    data = path.with_suffix(".cdf")
    if data.exists() and not path.exists():
        raise UsageError(f"{path.name}: would replace {data.name}, which belongs to another header; choose another name")
    if "#" in path.name + geometry.name:
        raise UsageError(f"{path.name}: '#' begins a comment in CASToR's headers; choose names without it")
    scanner_files = {path.with_name(geometry.name + suffix): content for suffix, content in geometry.files.items()}
    for file in (path.with_name(geometry.name + suffix) for suffix in (".geom", ".hscan", ".lut")):
        if file.is_file() and file.read_bytes() != scanner_files.get(file):
            raise DataError(f"{file.name}: another scanner of this name lies there already; choose another folder")
    encoded = _encoder(path, header, geometry, order)
    text = _header_text(path, header, geometry, data.name)
    written = 0
    with whole_or_nothing(path) as head, whole_or_nothing(data) as temporary:
        with temporary.open("wb") as file:

            def write(block: Block) -> None:
                nonlocal written
                records = encoded(block.events)
                file.write(records.view(np.uint8).data)
                written += len(records)

            yield write
        # Not before the end, as the doses of a scan are written at the same time and share these files.
        for scanner_file, content in scanner_files.items():
            with whole_or_nothing(scanner_file) as new:
                new.write_bytes(content)
        head.write_text(text(written), encoding="ascii", errors="replace")


def _encoder(path: Path, header: Header, geometry: Geometry, order: tuple[np.ndarray, np.ndarray]) -> Encode:
    """From events to records, delayeds left out."""
    # Crystals that are no elements have no ID.
    ids = np.full((header.scanner.crystals_per_ring, header.scanner.rings), -1, np.int32)
    ids[order] = np.arange(len(order[0]))
    kind, tof = "labels" in header.fields, "tof" in header.fields
    optional = [*([("kind", "u1")] if kind else []), *([("tof_ps", "<f4")] if tof else [])]
    dtype = np.dtype([("time_ms", "<u4"), *optional, ("id1", "<u4"), ("id2", "<u4")])

    def encoded(events: np.ndarray) -> np.ndarray:
        events = events[events["is_delayed"] == 0]
        records = np.empty(len(events), dtype)
        records["time_ms"] = events["time_ms"]
        if kind:
            records["kind"] = _KIND_OF_LABEL[events["label"]]
        if tof:
            records["tof_ps"] = (events["tof_bin"] - (header.tof_bins - 1) / 2) * header.tof_bin_ps
        for end in ("1", "2"):
            found = ids[events[f"crystal{end}"], events[f"ring{end}"]]
            if (found < 0).any():
                e = events[int(np.argmax(found < 0))]
                raise DataError(
                    f"{path.name}: crystal {e[f'crystal{end}']} of ring {e[f'ring{end}']} is none of {geometry.name}; "
                    "virtual crystals detect nothing, check the source of the events"
                )
            records[f"id{end}"] = found
        return records

    return encoded


def _written_geometry(path: Path, header: Header) -> tuple[Geometry, tuple[np.ndarray, np.ndarray]]:
    if isinstance(header.scanner, Scanner):
        return geometry_of(header.scanner), own_order(header.scanner)
    geometry = header.native.geometry if isinstance(header.native, Native) else None
    if geometry is None or geometry.elements() != header.scanner:
        raise UsageError(f"{path.name}: where the elements of {header.scanner.name} lie is not known; choose another format")
    return geometry, geometry.element_order()


def _header_text(path: Path, header: Header, geometry: Geometry, data: str) -> Callable[[int], str]:
    native = header.native if isinstance(header.native, Native) else None
    scanner = header.scanner
    lines = [
        f"Data filename: {data}", "Data mode: list-mode", "Data type: PET", f"Start time (s): {header.start_s:.10g}",
        f"Duration (s): {header.duration_s:.10g}", f"Scanner name: {geometry.name}",
        f"Calibration factor: {(native and native.calibration) or 1}",
    ]  # fmt: skip
    isotope = header.injection.isotope if "injection" in header.fields else native and native.isotope
    if isotope in ISOTOPES:
        lines.append(f"Isotope: {isotope}")
    if isinstance(scanner, Scanner) and scanner.max_ring_difference < scanner.rings - 1:
        z, farthest = scanner.ring_z_mm(np.arange(scanner.rings)), scanner.max_ring_difference
        lines.append(f"Maximum axial difference mm: {np.max(z[farthest:] - z[: len(z) - farthest]) + 0.01:.2f}")
    if "labels" in header.fields:
        lines.append("Coincidence kind flag: 1")
    if "tof" in header.fields:
        resolution = (native and native.tof_fwhm_ps) or (isinstance(scanner, Scanner) and scanner.tof_fwhm_ps)
        if not resolution:
            raise UsageError(f"{path.name}: CASToR needs the timing resolution, which {scanner.name} has not; leave out TOF")
        lines += [
            "TOF information flag: 1", f"TOF resolution (ps): {resolution:.10g}",
            f"List TOF measurement range (ps): {header.tof_bins * header.tof_bin_ps:.10g}",
            f"List TOF quantization bin size (ps): {header.tof_bin_ps:.10g}",
        ]  # fmt: skip
    note = {}
    if "injection" in header.fields:
        note["injection"] = dataclasses.asdict(header.injection)
    if header.dose is not None:
        note["dose"] = dataclasses.asdict(header.dose)
    if note:
        lines.append(note_line("data", note))
    return lambda events: "\n".join([*lines, f"Number of events: {events}"]) + "\n"
