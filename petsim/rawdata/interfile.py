"""What the headers of sinograms and images in Interfile have in common: how numbers are stored, and facts about the scan.

Keys and defaults are those of STIR (InterfileHeader.cxx, interfile.cxx; https://github.com/UCL/STIR) and of Siemens'
sinogram headers (InterfileHeaderSiemens.cxx there). Dates, times of day and names are neither kept nor written.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_recipes.errors import DataError
from data_recipes.isotopes import isotope
from petsim.rawdata.events import Dose
from petsim.rawdata.interfile_header import InterfileHeader, Line

_KINDS = {"signed integer": "i", "unsigned integer": "u", "float": "f", "short float": "f", "long float": "f"}
_SIZES = {"i": (1, 2, 4), "u": (1, 2, 4), "f": (4, 8)}
_ORDERS = {"littleendian": "<", "bigendian": ">"}

_ELEMENTS = {"F": "Fluorine", "C": "Carbon", "N": "Nitrogen", "O": "Oxygen", "Ga": "Gallium", "Cu": "Copper",
             "Zr": "Zirconium", "Rb": "Rubidium"}  # fmt: skip

_POSITIONS = {"HFS": ("head_in", "supine"), "HFP": ("head_in", "prone"), "FFS": ("feet_in", "supine"),
              "FFP": ("feet_in", "prone")}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What a header knows of a scan. None: it does not say.

    Parameters
    ----------
    start_s, duration_s : float, optional
        Start of the time frame, counted from scan start, and its length.
    isotope : str, optional
        Name known to `data_recipes.isotopes`.
    injected_mbq : float, optional
        Activity at injection (Siemens' headers).
    energy_window_kev : tuple, optional
        Lower and upper threshold.
    calibration_factor : float, optional
        As the header has it; its meaning is the writer's.
    position : str, optional
        "HFS", "HFP", "FFS" or "FFP": head or feet first, supine or prone.
    bed_mm : tuple of float
        Horizontal and vertical position of the bed at the start.
    corrections : tuple of str
        What was done to recorded counts, in the header's words.
    view_offset_deg : float, optional
        Sinograms only: angle of detector 0 in STIR's terms, from the top towards the right of who looks into the gantry.
        None in a file that is written: that of the scanner.
    dose : Dose, optional
        None: all counts of the scan.
    """

    start_s: float | None = None
    duration_s: float | None = None
    isotope: str | None = None
    injected_mbq: float | None = None
    energy_window_kev: tuple[float, float] | None = None
    calibration_factor: float | None = None
    position: str | None = None
    bed_mm: tuple[float, float] = (0.0, 0.0)
    corrections: tuple[str, ...] = ()
    view_offset_deg: float | None = None
    dose: Dose | None = None


def read_facts(header: InterfileHeader) -> Facts:
    """Facts that a header of either kind states, of STIR or Siemens; `view_offset_deg` is left to who knows the scanner."""
    if header.word("imaging modality", "pt") in ("nm", "nucmed", "spect") or header.word("type of data", "pet") != "pet":
        raise DataError(f"{header.name}: these are no PET data; give a PET sinogram or image")
    if header.find_integer("number of time frames", 1) != 1:
        raise DataError(
            f"{header.name}: holds {header.text('number of time frames')} time frames, only one is read; write one frame"
        )
    lower, upper = (
        header.find_number(f"energy window {what} level", 1) or header.find_number(f"energy window {what} level (keV)", 1)
        for what in ("lower", "upper")
    )
    activity_bq = header.find_number("tracer activity at time of injection (Bq)")
    calibration, duration = header.find_number("calibration factor"), header.find_number("image duration (sec)", 1)
    return Facts(
        start_s=header.find_number("image relative start time (sec)", 1),
        duration_s=duration if duration and duration > 0 else None,
        isotope=_isotope(header.find("radionuclide name", 1) or header.find("isotope name")),
        injected_mbq=activity_bq / 1e6 if activity_bq else None,
        energy_window_kev=(lower, upper) if lower and upper and 0 < lower < upper else None,
        calibration_factor=calibration if calibration and calibration > 0 else None,
        position=_position(header),
        bed_mm=(
            header.find_number("start horizontal bed position (mm)") or 0.0,
            header.find_number("start vertical bed position (mm)") or 0.0,
        ),
        corrections=_corrections(header),
        dose=read_dose(header),
    )


def fact_lines(facts: Facts) -> tuple[list[Line], list[Line], list[Line]]:
    """Header lines of facts, at the three places where STIR expects them.

    Returns
    -------
    tuple of list
        After "GENERAL DATA"; after "type of data"; after the matrix sizes.
    """
    general: list[Line] = []
    if facts.position is not None:
        orientation, rotation = _POSITIONS[facts.position]
        general += [("patient orientation", orientation), ("patient rotation", rotation)]
    of_type: list[Line] = []
    if facts.calibration_factor is not None:
        of_type.append(("calibration factor", facts.calibration_factor))
    if facts.isotope is not None:
        known = isotope(facts.isotope)
        element, mass = known.name.split("-")
        of_type += [
            ("number of radionuclides", 1), ("radionuclide name[1]", f"^{mass}^{_ELEMENTS[element]}"),
            ("radionuclide halflife (sec)[1]", known.half_life_s), ("radionuclide branching factor[1]", known.branching),
        ]  # fmt: skip
    if facts.injected_mbq is not None:
        of_type.append(("tracer activity at time of injection (Bq)", facts.injected_mbq * 1e6))
    last: list[Line] = [("number of time frames", 1)]
    if facts.duration_s is not None:
        last.append(("image duration (sec)[1]", facts.duration_s))
    if facts.start_s is not None:
        last.append(("image relative start time (sec)[1]", facts.start_s))
    if facts.energy_window_kev is not None:
        lower, upper = facts.energy_window_kev
        last += [
            ("number of energy windows", 1), ("energy window lower level[1]", lower),
            ("energy window upper level[1]", upper),
        ]  # fmt: skip
    last += [
        ("start horizontal bed position (mm)", facts.bed_mm[0]), ("start vertical bed position (mm)", facts.bed_mm[1]),
    ]  # fmt: skip
    last += [(f"%{key}", value) for key, value in dose_lines(facts.dose)]
    return general, of_type, last


def _isotope(text: str | None) -> str | None:
    try:
        return None if text is None else isotope(text).name
    except DataError:
        return None


def _position(header: InterfileHeader) -> str | None:
    code = header.find("patient orientation") or ""
    if code.upper() in _POSITIONS:
        return code.upper()
    pair = header.word("patient orientation"), header.word("patient rotation")
    return next((p for p, words in _POSITIONS.items() if pair == tuple(w.replace("_", " ") for w in words)), None)


def _corrections(header: InterfileHeader) -> tuple[str, ...]:
    """Applied corrections: of the list, and of Siemens' keys of their own."""
    found = [t for text in header.texts("applied corrections") for t in re.split(r"[,;]\s*", text)]
    for what in ("attenuation", "scatter", "random"):
        method = header.word(f"method of {what} correction")
        found += [f"{what} correction ({method})"] if method not in ("", "none") else []
    if header.word("decay correction") not in ("", "none"):
        found.append("decay correction")
    return tuple(f for f in (text.strip().lower() for text in found) if f not in ("", "none"))


def dose_lines(dose: Dose | None) -> list[tuple[str, str]]:
    """Keys and values, in a header of any kind, that tell of a dose."""
    if dose is None:
        return []
    return [
        ("petsim dose reduction factor", repr(float(dose.drf))), ("petsim dose mode", dose.mode),
        ("petsim dose seed", str(dose.seed)), ("petsim complement", str(int(dose.is_complement))),
    ]  # fmt: skip


def read_dose(header: InterfileHeader) -> Dose | None:
    """What `dose_lines` wrote."""
    drf = header.find_number("petsim dose reduction factor")
    if drf is None:
        return None
    is_complement = bool(header.integer("petsim complement"))
    return Dose(drf, header.text("petsim dose mode"), header.integer("petsim dose seed"), is_complement)


@dataclass(frozen=True)
class Storage:
    """Where and how the numbers of a header's data are stored.

    Parameters
    ----------
    path : Path
    dtype : dtype
        With its byte order.
    offset : int
        Bytes before the first number.
    scale : tuple of float
        What numbers are multiplied by; more than one: one for each item of the last axis.
    """

    path: Path
    dtype: np.dtype
    offset: int
    scale: tuple[float, ...]

    @property
    def read_dtype(self) -> np.dtype:
        """Of numbers that were scaled, in this machine's byte order."""
        stored = self.dtype.newbyteorder("=")
        return stored if set(self.scale) == {1.0} else np.result_type(stored, np.float32)

    def check_size(self, header: InterfileHeader, numbers: int) -> None:
        """Refuse a file that ends before the last number; there may be more behind it."""
        stored, needed = self.path.stat().st_size, self.offset + numbers * self.dtype.itemsize
        if stored < needed:
            raise DataError(
                f"{self.path.name}: holds {stored} bytes but {header.name} describes {needed}; the file was cut short, copy "
                "it again"
            )

    def map(self, shape: tuple[int, ...]) -> np.memmap:
        """The numbers as they are stored; memory is taken for what is looked at."""
        try:
            return np.memmap(self.path, self.dtype, "r", self.offset, shape)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path.name}: cannot be read ({error}); copy it again") from None


def read_storage(header: InterfileHeader, data_set: int = 1) -> Storage:
    """Where a header's data lie.

    Raises
    ------
    DataError
        A missing data file, an unknown number format or byte order.
    """
    first = data_set == 1
    offset = header.find_integer("data offset in bytes", 0, 1) if first else header.integer("data offset in bytes", data_set)
    if offset < 0:
        raise DataError(f"{header.name}: 'data offset in bytes' is {offset}; it cannot be negative, mend the header")
    scale = header.numbers("image scaling factor", 1) or header.numbers("quantification units") or [1.0]
    return Storage(_data_file(header), _dtype(header), offset, tuple(scale))


def _dtype(header: InterfileHeader) -> np.dtype:
    format = header.word("number format", "unsigned integer")
    size = header.integer("number of bytes per pixel")
    kind = _KINDS.get(format)
    if kind is None or size not in _SIZES[kind]:
        raise DataError(
            f"{header.name}: number format '{format}' of {size} bytes is not read; signed and unsigned integers of 1, 2 or "
            "4 bytes and floats of 4 or 8 are"
        )
    order = header.word("imagedata byte order") or header.word("image data byte order", "bigendian")
    if order not in _ORDERS:
        raise DataError(f"{header.name}: byte order '{order}' is not known; it must be LITTLEENDIAN or BIGENDIAN")
    return np.dtype(f"{_ORDERS[order]}{kind}{size}")


def number_lines(dtype: np.dtype) -> list[Line]:
    """Header lines of a number format."""
    words = {"i": "signed integer", "u": "unsigned integer", "f": "float"}
    return [("!number format", words[dtype.kind]), ("!number of bytes per pixel", dtype.itemsize)]


def is_storable(dtype: np.dtype) -> bool:
    """Whether Interfile has a number format for a type."""
    return dtype.itemsize in _SIZES.get(dtype.kind, ())


def _data_file(header: InterfileHeader) -> Path:
    named = header.text("name of data file")
    beside = header.path.with_name(re.split(r"[\\/]", named)[-1] or named)
    for path in (header.path.parent / named, beside):
        if path.is_file():
            return path
    raise DataError(f"{header.name}: its data file {beside.name} is missing; put both into one folder")
