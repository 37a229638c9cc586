"""DICOM studies: a PET series and its CT by patient."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from data_recipes.collections.folders import files_below
from data_recipes.collections.recipe import Case, Found, Recipe, Wishes, nothing_found
from data_recipes.contour import with_mu
from data_recipes.errors import DataError
from data_recipes.readers.dicom import read_dicom
from data_recipes.subject import Subject

_WORDS = ("Modality", "StudyInstanceUID", "PatientID", "FrameOfReferenceUID")


@dataclass(frozen=True)
class _Folder:
    path: Path
    modality: str
    study: str
    patient: str
    frame: str


def find(folder: Path, wishes: Wishes) -> Found:
    """Studies with one PET series each, and the CT in the same frame of reference where there is one."""
    studies: dict[str, list[_Folder]] = defaultdict(list)
    left = 0
    for path in [folder, *(p for p in files_below(folder) if p.is_dir())]:
        if path.name in wishes.skip:
            left += 1
            continue
        if any(part in wishes.skip for part in path.relative_to(folder).parts):
            continue
        told = _first(path)
        if told is not None and told.modality in ("PT", "CT", "NM"):
            studies[told.study].append(told)
    cases, without = [], 0
    for series in studies.values():
        pets = [s for s in series if s.modality == "PT"]
        if not pets:
            continue
        if len(pets) > 1:
            raise DataError(
                f"{pets[0].path.name} and {pets[1].path.name}: two PET series of one study ({len(pets)} in all); leave all "
                "but one out with --skip"
            )
        cts = [s for s in series if s.modality == "CT" and s.frame == pets[0].frame and s.frame]
        if len(cts) > 1:
            raise DataError(
                f"{cts[0].path.name} and {cts[1].path.name}: two CT series beside one PET; leave all but one out with --skip"
            )
        without += not cts
        ct = cts[0].path if cts else None
        cases.append(Case(pets[0].patient or pets[0].study, lambda pet=pets[0].path, ct=ct: _load(pet, ct, wishes)))
    if not cases:
        raise nothing_found(folder, "a folder with a PET DICOM series")
    notes = []
    if without:
        notes.append(
            f"{without} studies have no CT in the PET's frame of reference: their attenuation is guessed from the PET"
        )
    if left:
        notes.append(f"{left} folders were left out with --skip")
    return Found(tuple(cases), {"patients": len({c.patient for c in cases}), "studies": len(cases)}, tuple(notes))


def _first(folder: Path) -> _Folder | None:
    """What the first DICOM image of a folder tells; None where there is none."""
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        try:
            tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_WORDS))
        except InvalidDicomError:
            continue
        except (OSError, EOFError, ValueError, AttributeError, NotImplementedError) as error:
            raise DataError(f"{path.name}: damaged DICOM file; copy it again or remove it") from error
        if "Modality" not in tags:
            continue
        modality, study, patient, frame = (str(tags.get(word) or "").strip() for word in _WORDS)
        return _Folder(folder, modality, study or str(folder), patient, frame)
    return None


def _load(pet: Path, ct: Path | None, wishes: Wishes) -> Subject:
    subject = read_dicom(pet, weight_kg=wishes.weight_kg, injected_mbq=wishes.injected_mbq, uptake_s=wishes.uptake_s)
    return with_mu(subject, ct=ct, kvp=wishes.ct_kvp if ct is not None else None)


RECIPE = Recipe(
    name="dicom-pet",
    title="PET DICOM studies with their CT series",
    layout="""A folder a series, at any depth. Series belong together by StudyInstanceUID; the CT is the one in the PET's
frame of reference. A study with two PET or two CT series is refused: --skip FOLDER leaves one out. Units
BQML, GML or CNTS of Philips.""",
    license="that of the data",
    access="Such as https://www.cancerimagingarchive.net; each collection tells its license.",
    find=find,
)
