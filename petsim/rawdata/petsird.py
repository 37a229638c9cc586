"""PETSIRD 0.12, the list mode of the Emission Tomography Standardization Initiative, in its binary form.

Source: the docstrings of the model in the package petsird (https://github.com/ETSInitiative/PETSIRD), which reads and writes
the header; `petsim.rawdata.varints` does the time blocks of events. They are taken as follows.

- TOF bins are edges of (t1 - t2) c/2 in mm, negative where the first detector detected first: higher bins lie nearer to the
  second, as in `EVENT`, and the first detection bin is end 1. Where not all pairs of module types have the same bins, even
  and symmetric about 0, bins keep the numbers they have there, `tof_bins` is the largest count and `tof_bin_ps` is 0.
- Events have the time at which their time block starts, prompts before delayeds; a file with one time block has no times.
- Energies are the centers of their bins; where no module type has two bins they are not known.
- Gantry coordinates are ours, but for the origin along the axis. Movements of bed and gantry are not applied.
- A block of singles is a singles unit; in what we write for a scanner of ours it is a module. Singles of elements are added
  up to those of their modules, singles of energy bins to one. A unit has no records before its first count.
- What we write says that the injection was at the epoch (1970), so that times tell the uptake and no date. Dates, patient
  and free texts of a file are dropped, but for the scanner's name.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from data_recipes.errors import DataError, UsageError
from data_recipes.readers.tracers import resolve_isotope, tracer_name
from data_recipes.subject import Injection
from petsim.cache.store import whole_or_nothing
from petsim.geometry.scanner import Scanner
from petsim.rawdata import petsird_geometry as geometry
from petsim.rawdata import varints
from petsim.rawdata.events import AT_ONCE, EVENT, SINGLES, Block, DamagedError, Header, Listmode, Write, first_wrong
from petsim.rawdata.varints import Source, Tables

if TYPE_CHECKING:
    import petsird

SUFFIXES = (".petsird", ".bin")
TITLE = "PETSIRD"
HOLDS = frozenset({"time", "tof", "delayeds", "energies", "singles", "injection"})

RADIONUCLIDES = {
    "F-18": ("77004003", "^18^Fluorine"), "C-11": ("40565003", "^11^Carbon"), "N-13": ("21576001", "^13^Nitrogen"),
    "O-15": ("129504001", "^15^Oxygen"), "Ga-68": ("35337001", "^68^Gallium"), "Cu-64": ("3932008", "^64^Copper"),
    "Zr-89": ("63360001", "^89^Zirconium"), "Rb-82": ("79197006", "^82^Rubidium"),
}  # fmt: skip
"""SNOMED CT codes and their meanings, DICOM PS3.16 CID 4020."""

FDG = ("35321007", "Fluorodeoxyglucose F^18^")
"""DICOM PS3.16 CID 4021."""

ENCODED_AT_ONCE = 1 << 14
"""Events for which there is room when they are written."""

LONGEST_UPTAKE_S = 30 * 86400
"""Times that lie farther apart were not both given."""

_LISTS = ("single events", "", "", "triples", "quadruples", "coincidences of module types that the scanner does not have")
_KINDS = ("", "external signal", "bed movement", "gantry movement", "dead time")


@dataclass(frozen=True)
class Native:
    """What a PETSIRD file knows besides.

    Parameters
    ----------
    information : petsird.ScannerInformation
    crystal, ring : ndarray
        uint16 (elements,): numbers that its detecting elements have in events.
    left_out : dict
        How many records of the file were left out, by their kind.
    """

    information: "petsird.ScannerInformation"
    crystal: np.ndarray
    ring: np.ndarray
    left_out: dict[str, int]


@dataclass(frozen=True)
class _Content:
    first_ms: int
    last_ms: int
    has_times: bool
    has_delayeds: bool
    has_singles: bool
    left_out: dict[str, int]


def read(path: Path, scanner: Scanner | None = None) -> Listmode:
    """Open a file; see `petsim.rawdata.events.Format`. It is passed over once, for its times and what is left out."""
    name = path.name
    try:
        information, exam, start = _header(path)
        geometry.check(name, information)
        detectors, crystal, ring = geometry.detectors(name, information, scanner)
        tables = geometry.tables(information, crystal, ring, detectors)
        modules = geometry.modules_by_type(information)
        content = _content(path, start, tables, modules)
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or 'cannot be read'}; give a file that can be read") from None
    tof_bins, tof_bin_ps = geometry.tof(information)
    injection, warnings = _injection(exam)
    held = {
        "time": content.has_times, "tof": tof_bins > 1, "delayeds": content.has_delayeds, "energies": tables.has_energies,
        "singles": content.has_singles, "injection": injection is not None,
    }  # fmt: skip
    if tof_bins > 1 and tof_bin_ps == 0:
        warnings.append(
            f"TOF bins are not the same and even for all module types; they keep their numbers, up to {tof_bins}"
        )
    if content.left_out:
        warnings.append("left out are " + ", ".join(f"{count} {what}" for what, count in content.left_out.items()))
    header = Header(
        detectors, max(content.last_ms - content.first_ms, 1) / 1000, content.first_ms / 1000, tof_bins, tof_bin_ps,
        frozenset(field for field, is_held in held.items() if is_held), injection or Injection(),
        native=Native(information, crystal, ring, content.left_out),
    )  # fmt: skip
    lines = tuple(f"{name}: {text}" for text in warnings)
    return Listmode(name, header, lambda: _blocks(path, start, header, tables, modules), lines)


def _number(value: int) -> bytes:
    """A varint."""
    low = []
    while value > 127:
        low.append(value & 127 | 128)
        value >>= 7
    return bytes([*low, value])


def _header(path: Path) -> "tuple[petsird.ScannerInformation, petsird.ExamInformation | None, int]":
    """Scanner and exam, and the byte at which time blocks begin."""
    from petsird import BinaryPETSIRDReader, _binary, binary

    schema = BinaryPETSIRDReader.schema.encode()
    expected = b"yardl\1\0\0\0" + _number(len(schema)) + schema
    with path.open("rb") as file:
        begin = file.read(len(expected))
        if not begin.startswith(b"yardl"):
            raise DataError(
                f"{path.name}: is no binary PETSIRD file, it does not begin with 'yardl'; give another, or copy it again"
            )
        if begin != expected and not expected.startswith(begin):
            raise DataError(
                f"{path.name}: is of another model or version than PETSIRD 0.12; convert it with the package petsird"
            )
        stream = _binary.CodedInputStream(file)
        try:
            header = binary.HeaderSerializer().read(stream)
        except (EOFError, BufferError, ValueError, TypeError, IndexError, OverflowError, MemoryError):
            raise DataError(f"{path.name}: its header is damaged or ends too early; copy the file again") from None
        start = file.tell() - (stream._last_read_count - stream._offset)
    header.scanner.detection_efficiencies.method_description = ""
    return header.scanner, header.exam, start


def _injection(exam: "petsird.ExamInformation | None") -> tuple[Injection | None, list[str]]:
    """What was injected, None where nothing is told, and warnings."""
    if exam is None:
        return None, []
    weight = geometry.told(exam.patient.patients_weight)
    unknown = Injection(tracer="unknown", weight_kg=weight) if weight else None
    if len(exam.radiopharmaceuticals) != 1:
        return unknown, ["it names several injections; they are left out"] if exam.radiopharmaceuticals else []
    given = exam.radiopharmaceuticals[0]
    codes = dict(RADIONUCLIDES.values())
    nuclide = given.radionuclide_code_sequence
    try:
        isotope = resolve_isotope(codes.get(nuclide.code_value) or nuclide.code_meaning, None)
    except DataError:
        return unknown, ["the isotope of its injection is not known; the injection is left out"]
    uptake = None
    if exam.start_of_acquisition is not None:
        since = exam.start_of_acquisition.numpy_value - given.radiopharmaceutical_start_date_time.numpy_value
        uptake = float(since / np.timedelta64(1, "s"))
        uptake = uptake if 0 <= uptake < LONGEST_UPTAKE_S else None
    name = "F-18" if isotope is None else isotope.name
    tracer = tracer_name(given.radiopharmaceutical_code_sequence.code_meaning)
    return Injection(name, tracer, geometry.told(given.radionuclide_total_dose), uptake, weight), []


def _content(path: Path, start: int, tables: Tables, modules: list[int]) -> _Content:
    """Pass over a file without looking at its coincidences, up to its end or a damage."""
    state, kinds, has_singles = np.zeros(varints.STATE, np.int64), Counter(), False
    state[varints.SCAN] = 1
    none = np.zeros(0, EVENT)
    with path.open("rb") as file:
        source, code = Source(file, start), varints.OTHER
        while code == varints.OTHER:
            code, _, singles = _advance(source, state, tables, modules, none, 0)
            if code == varints.OTHER:
                kinds[int(state[varints.KIND])] += 1
                has_singles |= bool((singles["cps"] > 0).any())
    if not state[varints.BLOCKS]:
        if code == varints.END:
            raise DataError(f"{path.name}: holds no time block of events; give a file with events")
        raise DamagedError(path.name, _damage(code, state), f"byte {source.place}", 0)
    lists = dict(zip(_LISTS, state[varints.COUNTS :].tolist(), strict=False))
    left_out = {what: count for what, count in lists.items() if what and count}
    left_out |= {f"{what} time blocks": kinds[kind] for kind, what in enumerate(_KINDS) if kinds[kind]}
    return _Content(
        int(state[varints.FIRST]), int(state[varints.LAST]), bool(state[varints.VARIED]),
        bool(state[varints.COUNTS + 2]), has_singles, left_out,
    )  # fmt: skip


def _advance(
    source: Source, state: np.ndarray, tables: Tables, modules: list[int], events: np.ndarray, count: int
) -> tuple[int, int, np.ndarray]:
    """Decode until `events` are full, a time block of another kind was read, or the end: code, count of events, singles."""
    none = np.zeros(0, SINGLES)
    while True:
        code, source.pos, count = varints.decode(
            source.data, source.pos, source.end, source.at_end, state, tables, events, count
        )
        if code == varints.MORE:
            source.fill()
        elif code != varints.OTHER:
            return code, count, none
        else:
            try:
                return code, count, _other_block(source, int(state[varints.KIND]), modules)
            except EOFError:
                return varints.TRUNCATED, count, none
            except ValueError:
                return varints.BAD_LENGTH, count, none


def _other_block(source: Source, kind: int, modules: list[int]) -> np.ndarray:
    """Read singles, or pass over a time block of another kind; `ValueError` for numbers that cannot be."""
    start, stop = source.numbers(2).tolist()
    if not start <= stop < 1 << 32:
        raise ValueError
    if kind == 1:
        source.number()
        source.skip(4 * source.number())
    elif kind == 2:
        source.skip(48)
    elif kind == 3:
        source.skip(48 * source.number())
    elif kind == 4:
        for _ in range(source.number()):
            source.skip(4 * source.number())
        for _ in range(source.number()):
            for _ in range(source.number()):
                for _ in range(int(np.prod(source.numbers(source.number())))):
                    for _ in range(source.number()):
                        source.skip(4 * source.number())
    else:
        by_unit = [source.numbers(source.number()).sum() for _ in range(source.number())]
        by_bin = [source.numbers(source.number()) for _ in range(source.number())]
        by_module = [v.reshape(m, -1).sum(1) for v, m in zip(by_bin, modules, strict=False)]
        counts = np.array(by_unit) if by_unit else np.concatenate([np.zeros(0), *by_module])
        if len(counts) > 1 << 16:
            raise ValueError
        singles = np.zeros(len(counts), SINGLES)
        singles["time_ms"], singles["block"] = start, np.arange(len(counts))
        singles["cps"] = counts * (1000 / max(stop - start, 1))
        return singles
    return np.zeros(0, SINGLES)


def _damage(code: int, state: np.ndarray) -> str:
    wrong, of = state[varints.WRONG], state[varints.WRONG_OF]
    return {
        varints.TRUNCATED: "the file ends too early",
        varints.BAD_KIND: f"{wrong} is no kind of time block",
        varints.BAD_LENGTH: "a length or number cannot be",
        varints.BACKWARDS: f"time runs backwards to {wrong} ms",
        varints.BAD_BIN: f"detection bin {wrong} is beyond the scanner's for module type {of}",
        varints.BAD_TOF: f"TOF bin {wrong} is not one of {of}",
    }[code]


def _blocks(path: Path, start: int, header: Header, tables: Tables, modules: list[int]) -> Iterator[Block]:
    state, total, waiting = np.zeros(varints.STATE, np.int64), 0, 0
    events, count, singles = np.empty(AT_ONCE, EVENT), 0, [np.zeros(0, SINGLES)]
    counted = np.zeros(1 << 16, bool)
    with path.open("rb") as file:
        source, code = Source(file, start), varints.FULL
        while code in (varints.FULL, varints.OTHER):
            code, count, found = _advance(source, state, tables, modules, events, count)
            counted[found["block"][found["cps"] > 0]] = True
            singles.append(found[counted[found["block"]]])
            waiting += len(singles[-1])
            if code == varints.OTHER and waiting < AT_ONCE:
                continue
            if "time" not in header.fields:
                events["time_ms"][:count] = 0
            total += count
            yield Block(events[:count], np.concatenate(singles))
            if code in (varints.FULL, varints.OTHER):
                events, count, singles, waiting = np.empty(AT_ONCE, EVENT), 0, singles[:1], 0
        if code != varints.END:
            pair = code == varints.BAD_PAIR
            what = first_wrong(events[count : count + 1], header, 0)[1] if pair else _damage(code, state)
            raise DamagedError(path.name, what, f"byte {source.place}", total)


@contextmanager
def create(path: Path, header: Header) -> Iterator[Write]:
    """Write a file; see `petsim.rawdata.events.Format`.

    Events have a time block every millisecond, the higher detection bin is first and TOF bins match that; blocks without
    events fill the scan. Rates of singles hold until their block comes again and are rounded to counts. Energies of a
    scanner of ours are written in bins of at most 1 keV between its thresholds.
    """
    import petsird

    information, crystal, ring = _information(path.name, header)
    tables = geometry.tables(information, crystal, ring, header.scanner)
    types = len(tables.energies)
    start, end = round(1000 * header.start_s), round(1000 * (header.start_s + header.duration_s))
    length = 1 if "time" in header.fields else max(end - start, 1)
    rule = np.array([start, length, start, "delayeds" in header.fields, geometry.is_symmetric(information)], np.int64)
    has_singles = "singles" in header.fields
    units = max((unit for table in information.module_singles_unit_idx_lu_ts for unit in table), default=-1) + 1
    with whole_or_nothing(path) as temporary, temporary.open("wb") as file:
        with petsird.BinaryPETSIRDWriter(file) as writer:
            writer.write_header(petsird.Header(scanner=information, exam=_exam(header)))
            writer.write_time_blocks([])
        # Over the mark of the end, which comes after the time blocks.
        file.seek(-1, os.SEEK_END)
        turn = _Turn(path.name, file, units)
        scratch = np.empty((5, ENCODED_AT_ONCE), np.int64)
        data = np.empty(64 * ENCODED_AT_ONCE + 2 * varints.block_bytes(types), np.uint8)
        waiting = np.zeros(0, EVENT)

        def encode(events: np.ndarray) -> None:
            place = 0
            while place < len(events):
                used, place, code = varints.encode(events, place, tables, rule, scratch, data)
                file.write(data[:used].data)
                if code:
                    raise DataError(
                        f"{path.name}: {_unwritable(code, events[place:], header, tables)}; choose another format"
                    )

        def write(block: Block) -> None:
            nonlocal waiting
            events = np.concatenate((waiting, block.events)) if len(waiting) else block.events
            # The last millisecond may go on in the next block.
            whole = int(np.searchsorted(events["time_ms"], events["time_ms"][-1])) if len(events) else 0
            whole = len(events) if len(events) - whole > AT_ONCE else whole
            encode(events[:whole])
            waiting = events[whole:].copy()
            if has_singles:
                turn.add(block.singles)

        yield write
        encode(waiting)
        turn.end(end)
        if rule[0] < end:
            starts = np.zeros(types * (types + 1) + 1, np.int64)
            used = varints.put_block(data, 0, rule[0], end, types, rule[3], starts, scratch[4], scratch[:3])
            file.write(data[:used].data)
        file.write(b"\0")


class _Turn:
    """Singles as they are written: a histogram whenever a block comes a second time."""

    def __init__(self, name: str, file: BinaryIO, units: int) -> None:
        self.name, self.file = name, file
        self.cps, self.blocks, self.since = np.zeros(units), set(), 0

    def add(self, singles: np.ndarray) -> None:
        for time, block, cps in singles.tolist():
            if block >= len(self.cps):
                raise DataError(
                    f"{self.name}: singles block {block} is not one of {len(self.cps)} modules; choose another format"
                )
            if block in self.blocks:
                self.end(time)
            if not self.blocks:
                self.since = time
            self.blocks.add(block)
            self.cps[block] = cps

    def end(self, until: int) -> None:
        """Write what was gathered, if anything, for the time until then."""
        if self.blocks:
            stop = max(until, self.since + 1)
            counts = np.rint(self.cps * ((stop - self.since) / 1000)).astype(np.int64).tolist()
            rows = b"".join(b"\1" + _number(count) for count in counts)
            self.file.write(b"\1\5" + _number(self.since) + _number(stop) + _number(len(counts)) + rows + b"\0")
            self.blocks.clear()


def _unwritable(code: int, events: np.ndarray, header: Header, tables: Tables) -> str:
    e = events[0]
    if code == varints.UNPLACED:
        return (
            f"crystals {e['crystal1']} and {e['crystal2']} of rings {e['ring1']} and {e['ring2']} are not both detecting "
            f"elements of {header.scanner.name}"
        )
    if code == varints.TOF_BEYOND:
        return f"TOF bin {e['tof_bin']} is not one of {header.tof_bins}"
    if code == varints.NO_TURN:
        return "an event's ends must change places, for which its TOF bins are not symmetric"
    low, high = tables.edges_kev.min(), tables.edges_kev.max()
    return (
        f"energies {e['energy1_kev']:g} and {e['energy2_kev']:g} keV are not both in the window of {low:g} to {high:g} keV"
    )


def _information(name: str, header: Header) -> "tuple[petsird.ScannerInformation, np.ndarray, np.ndarray]":
    """Scanner information that goes with a header, and crystal and ring of every detecting element."""
    if isinstance(header.native, Native):
        information, crystal, ring = header.native.information, header.native.crystal, header.native.ring
    elif isinstance(header.scanner, Scanner):
        information, crystal, ring = geometry.information_of(header.scanner)
        geometry.set_edges(name, information, header, header.scanner)
    else:
        raise UsageError(
            f"{name}: PETSIRD tells where detecting elements lie, but that is not known of {header.scanner.name}; choose "
            "another format"
        )
    return geometry.with_fields(information, header.fields), crystal, ring


def _exam(header: Header) -> "petsird.ExamInformation | None":
    """The injection; times are counted from it."""
    import petsird

    if "injection" not in header.fields:
        return None
    injection = header.injection

    def coded(code: str, meaning: str) -> "petsird.DICOMBasicCodeSequence":
        scheme = "SCT" if code else ""
        return petsird.DICOMBasicCodeSequence(code_value=code, coding_scheme_designator=scheme, code_meaning=meaning)

    tracer = FDG if injection.tracer == "FDG" else ("", tracer_name(injection.tracer))
    given = petsird.DICOMRadiopharmaceuticalInformation(
        radionuclide_total_dose=injection.injected_mbq or 0.0,
        radionuclide_code_sequence=coded(*RADIONUCLIDES.get(injection.isotope, ("", injection.isotope))),
        radiopharmaceutical_code_sequence=coded(*tracer),
    )
    after = injection.uptake_s
    start = None if after is None else petsird.yardl_types.DateTime(round(after * 1e9))
    return petsird.ExamInformation(
        modality="PT", start_of_acquisition=start, radiopharmaceuticals=[given],
        patient=petsird.DICOMPatientInformation(patients_weight=injection.weight_kg or 0.0),
    )  # fmt: skip
