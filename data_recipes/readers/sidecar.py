"""What stands beside a NIfTI image: a JSON with PET-BIDS names, or a CSV table with a row per file."""

import csv
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_recipes.errors import DataError
from data_recipes.isotopes import Isotope
from data_recipes.readers.tracers import resolve_isotope, tracer_name

_SUV = ("suv", 1.0)
_UNITS = {"bqml": ("bqml", 1.0), "kbqml": ("bqml", 1e3), "suv": _SUV, "suvbw": _SUV, "gml": _SUV}
_ACTIVITY = {"bq": 1e-6, "kbq": 1e-3, "mbq": 1.0, "gbq": 1e3, "mci": 37.0}
_SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}
_WEIGHT = {"kg": 1.0, "g": 1e-3}

# Quantity -> the names a column may have before its unit ("Weight [kg]" reads as weight_kg), and the units known.
_COLUMNS = {
    "weight_kg": (("weight", "body_weight", "patient_weight", "patientweight"), _WEIGHT),
    "injected_mbq": (
        ("injected_activity", "injected_dose", "activity", "dose", "injected", "radionuclidetotaldose"),
        _ACTIVITY,
    ),
    "uptake_s": (
        ("uptake", "uptake_time", "delay", "injection_delay", "injection_to_scan", "timefrominjectiontoacquisition"),
        _SECONDS,
    ),
    "half_life_s": (("half_life", "halflife", "radionuclidehalflife"), _SECONDS),
    "duration_s": (("duration", "frame_duration", "scan_duration"), _SECONDS),
}
# DICOM keywords carry their unit by definition.
_DICOM_COLUMNS = {
    "patientweight": ("weight_kg", 1.0),
    "radionuclidetotaldose": ("injected_mbq", 1e-6),
    "radionuclidehalflife": ("half_life_s", 1.0),
}
# A short word after a quantity is taken for its unit; a longer one ("dose_calibration") makes it another quantity.
LONGEST_UNIT = 3
_FILE_COLUMNS = ("file", "filename", "file_name", "image", "niftifilename")
_WORDS = {
    "units": "units", "imageunits": "units", "isotope": "isotope", "tracer": "tracer", "radiopharmaceuticalname": "tracer",
    "decaycorrection": "decay_correction", "manufacturermodelname": "scanner",
}  # fmt: skip


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar says; None where it says nothing. Units as in `Injection`.

    Parameters
    ----------
    units : str, optional
        "bqml" or "suv".
    scale : float
        Factor from the image's values to these units.
    isotope : Isotope, optional
        With the sidecar's half-life.
    tracer : str
        Known name or "unknown".
    corrected_before_scan_s : float
        Seconds from the time to which the image is decay-corrected, until scan start.
    scanner : str
        The manufacturer's name of the model.
    """

    units: str | None = None
    scale: float = 1.0
    isotope: Isotope | None = None
    tracer: str = "unknown"
    weight_kg: float | None = None
    injected_mbq: float | None = None
    uptake_s: float | None = None
    duration_s: float | None = None
    corrected_before_scan_s: float = 0.0
    scanner: str = ""


def find_sidecar(image: Path, stem: str) -> Path | None:
    """`stem`.json or `stem`.csv beside the image, in this order."""
    for ending in (".json", ".csv"):
        path = image.with_name(stem + ending)
        if path.is_file():
            return path
    return None


def read_sidecar(path: Path, image: Path, stem: str) -> Sidecar:
    """Read a JSON or CSV sidecar.

    JSON: the PET-BIDS names Units, TracerName, TracerRadionuclide, InjectedRadioactivity with
    InjectedRadioactivityUnits, InjectionStart and ScanStart (s after TimeZero), FrameDuration (s),
    ImageDecayCorrected, ImageDecayCorrectionTime (s after TimeZero), and BodyWeight or PatientWeight (kg). CSV: a row
    per file, found by a column file, filename or image; columns weight, injected_activity, delay (or uptake),
    half_life and duration, each with its unit ("weight_kg", "Injected activity [MBq]", "delay_min"), the DICOM
    keywords PatientWeight, RadionuclideTotalDose and RadionuclideHalfLife, and units, isotope, tracer; also the columns of
    the UDPET challenge (NiftiFileName, ImageUnits, TimeFromInjectionToAcquisition_s, DecayCorrection, which must be START).

    Parameters
    ----------
    path : Path
        The sidecar.
    image : Path
        The image that it describes.
    stem : str
        The image's name without .nii or .nii.gz.

    Raises
    ------
    DataError
        When it cannot be parsed, or a unit is missing or unknown.
    """
    if path.suffix.lower() not in (".json", ".csv"):
        raise DataError(f"{path.name}: a sidecar is a .json or .csv file")
    try:
        written = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path.name}: no such sidecar file; check the name") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: cannot be read as text; check the file") from error
    if path.suffix.lower() == ".json":
        return _from_json(written, path.name)
    return _from_csv(written, path.name, {image.name, stem})


def _from_json(written: str, where: str) -> Sidecar:
    try:
        fields = json.loads(written)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON (line {error.lineno}); repair the file") from error
    if not isinstance(fields, dict):
        raise DataError(f"{where}: holds no JSON object; PET-BIDS names are needed")
    return from_fields(fields, where)


def from_fields(fields: dict[str, Any], where: str) -> Sidecar:
    """What PET-BIDS fields say, see `read_sidecar`; `where` names their file in errors (`DataError`)."""
    if fields.get("ImageDecayCorrected") is False:
        raise DataError(f"{where}: ImageDecayCorrected is false; give an image corrected for decay to scan start")
    units, scale = _units(fields.get("Units"), where)
    injected = _number(fields, "InjectedRadioactivity", where)
    if injected is not None:
        injected *= _unit(fields, "InjectedRadioactivityUnits", _ACTIVITY, where)
    weight = _number(fields, "BodyWeight", where)
    weight = _number(fields, "PatientWeight", where) if weight is None else weight
    if weight is not None and "BodyWeightUnits" in fields:
        weight *= _unit(fields, "BodyWeightUnits", _WEIGHT, where)
    injection, scan = _number(fields, "InjectionStart", where), _number(fields, "ScanStart", where)
    uptake = None if injection is None or scan is None else scan - injection
    if uptake is not None and uptake < 0:
        raise DataError(f"{where}: ScanStart lies before InjectionStart; repair the sidecar")
    corrected_to = _number(fields, "ImageDecayCorrectionTime", where)
    if corrected_to is not None and scan is None:
        raise DataError(f"{where}: ImageDecayCorrectionTime needs ScanStart; add it to the sidecar")
    return Sidecar(
        units,
        scale,
        _isotope(str(fields.get("TracerRadionuclide") or ""), None, where),
        tracer_name(str(fields.get("TracerName") or "")),
        _positive(weight, "BodyWeight", where),
        _positive(injected, "InjectedRadioactivity", where),
        uptake,
        _positive(_frame_duration(fields, where), "FrameDuration", where),
        0.0 if corrected_to is None or scan is None else scan - corrected_to,
        str(fields.get("ManufacturersModelName") or ""),
    )


def _frame_duration(fields: dict[str, Any], where: str) -> float | None:
    durations = fields.get("FrameDuration")
    if isinstance(durations, list):
        if len(durations) != 1:
            raise DataError(f"{where}: FrameDuration has {len(durations)} frames; give one 3D frame and its duration")
        return _number({"FrameDuration": durations[0]}, "FrameDuration", where)
    return _number(fields, "FrameDuration", where)


def _from_csv(written: str, where: str, names: set[str]) -> Sidecar:
    rows = list(csv.DictReader(written.splitlines()))
    if not rows:
        raise DataError(f"{where}: the table has no row; a row per file is needed")
    columns = {column: re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_") for column in rows[0] if column}
    key = next((column for column, plain in columns.items() if plain in _FILE_COLUMNS), None)
    if key is None:
        raise DataError(f"{where}: no column names the file; call it file")
    row = [r for r in rows if Path(str(r[key] or "").strip()).name in names]
    if len(row) != 1:
        raise DataError(f"{where}: {len(row)} rows name this image in column {key}; one is needed")
    found: dict[str, float] = {}
    told = {"units": "", "isotope": "", "tracer": "", "decay_correction": "", "scanner": ""}
    for column, plain in columns.items():
        if plain in _WORDS:
            told[_WORDS[plain]] = str(row[0][column] or "").strip()
            continue
        quantity = _quantity(plain, column, where)
        if quantity is None:
            continue
        name, factor = quantity
        value = _number(row[0], column, where)
        if value is None:
            continue
        if name in found:
            raise DataError(f"{where}: two columns give {name}; leave one")
        found[name] = value * factor
        if name != "uptake_s":
            _positive(value, column, where)
        elif value < 0:
            raise DataError(f"{where}: {column} is negative; repair the table")
    if told["decay_correction"].upper() not in ("", "START"):
        raise DataError(
            f"{where}: DecayCorrection is {told['decay_correction']}; give images corrected for decay to scan start"
        )
    units, scale = _units(told["units"] or None, where)
    return Sidecar(
        units,
        scale,
        _isotope(told["isotope"], found.get("half_life_s"), where),
        tracer_name(told["tracer"]),
        found.get("weight_kg"),
        found.get("injected_mbq"),
        found.get("uptake_s"),
        found.get("duration_s"),
        scanner=told["scanner"],
    )


def _quantity(plain: str, column: str, where: str) -> tuple[str, float] | None:
    if plain in _DICOM_COLUMNS:
        return _DICOM_COLUMNS[plain]
    for name, (stems, units) in _COLUMNS.items():
        for stem in stems:
            unit = plain.removeprefix(stem).removeprefix("_")
            if plain not in (stem, f"{stem}_{unit}"):
                continue
            if unit in units:
                return name, units[unit]
            if len(unit) <= LONGEST_UNIT:
                raise DataError(
                    f"{where}: column '{column}' has no known unit; name it {stem}_{next(iter(units))} "
                    f"(units known: {', '.join(units)})"
                )
    return None


def _units(value: Any, where: str) -> tuple[str | None, float]:
    if value is None:
        return None, 1.0
    plain = "".join(c for c in str(value).lower() if c.isalnum())
    if plain not in _UNITS:
        raise DataError(f"{where}: Units '{value}' is not known; give Bq/mL, kBq/mL or SUV")
    return _UNITS[plain]


def _unit(fields: dict[str, Any], name: str, units: dict[str, float], where: str) -> float:
    written = str(fields.get(name) or "").strip().lower()
    if written not in units:
        raise DataError(f"{where}: {name} is '{written or 'missing'}'; give one of {', '.join(units)}")
    return units[written]


def _isotope(name: str, half_life_s: float | None, where: str) -> Isotope | None:
    try:
        return resolve_isotope(name, half_life_s)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _number(fields: dict[str, Any], name: str, where: str) -> float | None:
    value = fields.get(name)
    if value is None or str(value).strip().lower() in ("", "n/a"):
        return None
    try:
        number = float(value)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: {name} is not a number; repair the sidecar") from error
    if not math.isfinite(number):
        raise DataError(f"{where}: {name} is not finite; repair the sidecar")
    return number


def _positive(value: float | None, name: str, where: str) -> float | None:
    if value is not None and value <= 0:
        raise DataError(f"{where}: {name} is {value:g}, not positive; repair the sidecar")
    return value
