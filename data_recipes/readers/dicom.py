"""PET DICOM series as subjects."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.config import disable_value_validation

from data_recipes.errors import DataError
from data_recipes.isotopes import Isotope, decay_factor
from data_recipes.readers.common import Stated, content_hash, make_subject, suv_scale
from data_recipes.readers.pet_tags import (
    DECAY_TOLERANCE,
    body_for_suv,
    check_decay_factors,
    decay_corrections,
    duration_s,
    find_dose_mbq,
    find_isotope,
    find_timing,
    find_tracer,
    find_weight_kg,
    injected_item,
    philips_factor,
)
from data_recipes.readers.series import Series, Slice, number, read_series, scaled, text
from data_recipes.splits import bucket_of
from data_recipes.subject import Injection, Subject


def read_dicom(folder: str | Path, *, units: str | None = None,
               fwhm_mm: float | tuple[float, float, float] | None = None, weight_kg: float | None = None,
               injected_mbq: float | None = None, uptake_s: float | None = None,
               duration_s: float | None = None) -> Subject:  # fmt: skip
    """Read the PET series that lies in a folder.

    Slices are sorted by position and stacked with their own slope; uneven steps are resampled to an even one. Values
    become Bq/mL at scan start, whatever DecayCorrection says (START, ADMIN, or NONE where times of all slices are known) and
    Units: BQML, GML and CM2ML (SUV by body weight, by the lean body mass of Janmahasatian or James, or by surface), CNTS
    with the scale factors of Philips. Every slice's DecayFactor is checked; what cannot be interpreted is refused. Nothing
    that identifies a patient is passed on.

    Parameters
    ----------
    folder : path
        Holds the files of one series; files that are not DICOM are left out.
    units : {"bqml", "suv"}, optional
        Units of the values where the tag Units is missing: Bq/mL decay-corrected to scan start, or SUV by body weight.
    fwhm_mm : float or tuple of float, optional
        Resolution of the image in mm; estimated from the voxel size when not given.
    weight_kg, injected_mbq, uptake_s, duration_s : float, optional
        As in `Injection`; they win over the tags.

    Returns
    -------
    Subject
        Without mu.

    Raises
    ------
    UsageError
        For a stated value that cannot be.
    DataError
        One line with file and tag, for missing Units, mixed series, missing or repeated slices, SPECT, oblique slices,
        DecayCorrection NONE without times, a DecayFactor that disagrees with half-life, frame start and duration, or times,
        dose and weight that cannot be.
    """
    stated = Stated(units, fwhm_mm, weight_kg, injected_mbq, uptake_s, duration_s)
    # Values that break a format rule are common in the field; those that matter are checked here, with the file's name.
    with disable_value_validation():
        return _subject(read_series(Path(folder), "PT"), stated)


@dataclass(frozen=True)
class _Meaning:
    """What tags and statements say of the values of a series; they are in `unit` times `scale` at scan start.

    Slices of a series without decay correction are multiplied by `by_slice` first.
    """

    unit: str
    scale: float
    correction: str
    iso: Isotope | None
    tagged: Injection
    injection: Injection
    durations_s: list[float]
    decay_factors: list[float]
    by_slice: list[float]
    notes: list[str]
    warnings: list[str]


def _interpret(slices: tuple[Slice, ...], stated: Stated) -> _Meaning:
    first = slices[0]
    check_complete(slices)
    check_image(first)
    info = injected_item(first)
    iso = find_isotope(first, info)
    unit, scale = _units(slices, stated)
    correction = _decay_correction(first, stated)
    timing = find_timing(slices, info, iso, uptake_stated=stated.uptake_s is not None)
    frames = sorted({d for item in slices if (d := duration_s(item)) is not None})
    notes, warnings = list(timing.notes), []
    tagged = Injection(
        isotope="F-18" if iso is None else iso.name,
        tracer=find_tracer(first, info),
        injected_mbq=find_dose_mbq(first, info) if stated.injected_mbq is None else None,
        uptake_s=timing.uptake_s,
        weight_kg=find_weight_kg(first) if stated.weight_kg is None else None,
        duration_s=frames[0] if len(frames) == 1 else None,
    )
    if iso is None:
        warnings.append("the isotope is not stated (RadiopharmaceuticalInformationSequence): F-18 is assumed")
    if len(frames) > 1 and stated.duration_s is None:
        warnings.append("bed positions have different ActualFrameDuration: no single duration can be given")
    injection = stated.over(tagged)
    by_slice: list[float] = []
    if correction == "NONE":
        by_slice = decay_corrections(slices, iso, timing.scan_start)
        factors = []
        notes.append("no decay correction in the source: corrected to scan start by the times of its slices")
    else:
        factors = _check_decay(slices, iso, correction, timing.scan_start, injection.uptake_s)
        if not factors:
            warnings.append("DecayFactor could not be checked: it, or the half-life, is missing")
    if unit == "suv" and scale != 1:
        notes.append(f"values times {scale:.6g} are SUV by body weight")
    decay = 1.0
    if unit != "suv" and correction == "ADMIN" and injection.uptake_s is not None and iso is not None:
        decay = decay_factor(iso, injection.uptake_s)
        notes.append("decay correction moved from administration to scan start")
    return _Meaning(unit, scale * decay, correction, iso, tagged, injection, frames, factors, by_slice, notes, warnings)


def suv_per_value(slices: tuple[Slice, ...], stated: Stated) -> float:
    """SUV by body weight that a value of 1 stands for.

    Raises
    ------
    DataError
        As of `read_dicom`, or where weight, activity or uptake time is unknown; values are not looked at.
    """
    with disable_value_validation():
        said = _interpret(slices, stated)
    if said.by_slice and max(said.by_slice) > (1 + DECAY_TOLERANCE) * min(said.by_slice):
        raise DataError(
            f"{slices[0].file}: DecayCorrection is NONE and slices have different times; correct the series first"
        )
    scale = said.scale * (said.by_slice[0] if said.by_slice else 1.0)
    return scale if said.unit == "suv" else scale / suv_scale(said.injection, slices[0].file)


def _subject(series: Series, stated: Stated) -> Subject:
    first = series.slices[0]
    said = _interpret(series.slices, stated)
    iso = said.iso
    if said.by_slice:
        series = scaled(series, said.by_slice)
    factor = said.scale * (suv_scale(said.injection, first.file) if said.unit == "suv" else 1.0)
    values = series.values if factor == 1 else series.values * np.float32(factor)
    facts = {
        "positions_mm": series.positions_mm,
        "shape": series.grid.shape,
        "spacing_mm": series.grid.spacing_mm,
        "origin_mm": series.grid.origin_mm,
        "units": text(first, "Units"),
        "decay_correction": said.correction,
        "decay_factors": said.decay_factors,
        "isotope": said.tagged.isotope,
        "half_life_s": None if iso is None else iso.half_life_s,
        "dose": "" if (info := injected_item(first)) is None else text(first, "RadionuclideTotalDose", info),
        "weight": text(first, "PatientWeight"),
        "durations_s": said.durations_s,
    }
    provenance: dict[str, Any] = {
        "kind": "dicom",
        "units": "stated by the user" if not text(first, "Units") else text(first, "Units"),
        "decay_correction": said.correction,
        "decay_factors": sorted(set(said.decay_factors)),
        "slices": len(series.slices),
        "notes": [*series.notes, *said.notes],
        "warnings": said.warnings,
    }
    # Scans of one patient stay in one split.
    patient = text(first, "PatientID")
    if patient:
        provenance["split_bucket"] = bucket_of(patient)
    sha256 = content_hash(series.measured, facts)
    return make_subject(values, series.grid, said.injection, stated, sha256, provenance, first.file)


def check_complete(slices: Sequence[Slice]) -> None:
    """Refuse a series that says it has more slices (`DataError`)."""
    first = slices[0]
    told = number(first, "NumberOfSlices")
    if told is not None and len(slices) < told:
        raise DataError(f"{first.file}: NumberOfSlices is {told:g} but {len(slices)} were found; copy the whole series")


def check_image(first: Slice) -> None:
    """Refuse what is no static or whole-body image (`DataError`)."""
    kind = text(first, "SeriesType").split("\\")
    if kind[0] and kind[0] not in ("STATIC", "WHOLE BODY"):
        raise DataError(f"{first.file}: SeriesType is {kind[0]}; give a static or whole-body series")
    if "REPROJECTION" in kind:
        raise DataError(f"{first.file}: SeriesType is REPROJECTION, not slices; give the reconstructed image")
    if text(first, "CountsSource") == "TRANSMISSION":
        raise DataError(f"{first.file}: CountsSource is TRANSMISSION; give the emission image")
    corrected = text(first, "CorrectedImage").split("\\")
    if corrected[0] and "ATTN" not in corrected:
        raise DataError(
            f"{first.file}: CorrectedImage has no ATTN: without attenuation correction values are no activity; "
            "give the corrected series"
        )
    collimator = text(first, "CollimatorType")
    if collimator in ("PARA", "PINH", "FANB", "CONE", "SLNT", "ASTG"):
        raise DataError(f"{first.file}: CollimatorType {collimator} is that of SPECT, not PET; give a PET series")


def _units(slices: tuple[Slice, ...], stated: Stated) -> tuple[str, float]:
    """Unit of the values ("bqml", or "suv" by body weight), and what they are multiplied with to be in it."""
    first = slices[0]
    tag = text(first, "Units")
    if not tag:
        if stated.units is None:
            raise DataError(f"{first.file}: tag Units is missing; state it with --source-units bqml or suv")
        return stated.units, 1.0
    unit, scale = _known_unit(slices, tag, stated.weight_kg)
    if stated.units not in (None, unit):
        raise DataError(f"{first.file}: Units is {tag}, but --source-units is {stated.units}; leave the flag out")
    return unit, scale


def _known_unit(slices: tuple[Slice, ...], tag: str, weight_kg: float | None) -> tuple[str, float]:
    first = slices[0]
    if tag == "BQML":
        return "bqml", 1.0
    if tag == "CNTS":
        return philips_factor(slices)
    if tag in ("GML", "CM2ML"):
        kind = text(first, "SUVType") or ("BW" if tag == "GML" else "BSA")
        if (kind == "BSA") != (tag == "CM2ML"):
            raise DataError(f"{first.file}: Units is {tag} but SUVType is {kind}; repair the tags")
        return "suv", body_for_suv(first, kind, weight_kg)
    raise DataError(f"{first.file}: Units is {tag}; export the series in BQML (Bq/mL)")


def _decay_correction(first: Slice, stated: Stated) -> str:
    correction = text(first, "DecayCorrection")
    if correction in ("START", "ADMIN", "NONE"):
        return correction
    if not correction and stated.units is not None:
        return "START"
    raise DataError(
        f"{first.file}: DecayCorrection is {correction or 'missing'}; export the series decay-corrected to scan start"
    )


def _check_decay(slices: tuple[Slice, ...], iso: Isotope | None, correction: str, start: datetime | None,
                 uptake: float | None) -> list[float]:  # fmt: skip
    first = slices[0]
    if correction == "ADMIN" and (uptake is None or iso is None):
        what = "the uptake time is unknown; give --uptake-s" if uptake is None else "the isotope is unknown"
        raise DataError(f"{first.file}: DecayCorrection is ADMIN but {what}")
    if iso is None:
        return []
    return check_decay_factors(slices, iso, start, uptake if correction == "ADMIN" and uptake else 0.0)
