"""The Ultra-low Dose PET Imaging Challenge: real scans at several doses."""

import csv
import re
from pathlib import Path

from data_recipes.collections.folders import files_below
from data_recipes.collections.multi_dose import MultiDose, group_doses
from data_recipes.collections.recipe import DoseCase, Found, Recipe, Wishes, nothing_found
from data_recipes.errors import DataError
from data_recipes.readers.nifti import ENDINGS

# https://udpet-challenge.github.io, page Dataset, section Issues, as of 2026-02-11.
DOTA_CASES = (
    "Anonymous_ANO_20220224_1711567_102845",
    "Anonymous_ANO_20220224_1709580_104139",
    "Anonymous_ANO_20220224_1707578_105431",
    "Anonymous_ANO_20220224_1705576_110625",
    "Anonymous_ANO_20220224_1703593_111906",
    "Anonymous_ANO_20220224_1701584_113106",
    "Anonymous_ANO_20220224_1713571_101453",
)
CORRUPTED = ("Anonymous-06_DRF-50", "Anonymous-48_DRF-50")


def find(folder: Path, wishes: Wishes) -> Found:
    """Subjects with a full and a lower dose; known errors are left out."""
    paths = files_below(folder)
    known = {name.lower() for name in DOTA_CASES}
    notes: dict[str, int] = {}
    kept = []
    for path in paths:
        parts = path.relative_to(folder).parts
        plain = [_stem(part).lower() for part in parts]
        if any(p in known or any(p.startswith(k) for k in known) for p in plain):
            why = "68Ga-DOTA labeled as FDG (known error)"
        elif plain[-1] in {c.lower() for c in CORRUPTED}:
            why = "corrupted at DRF 50 (known error)"
        elif any(part in wishes.skip or _stem(part) in wishes.skip for part in parts):
            why = "left out with --skip"
        else:
            kept.append(path)
            continue
        if path.is_dir() or path.name.lower().endswith(ENDINGS):
            notes[why] = notes.get(why, 0) + 1
    grouped = group_doses(folder, kept)
    table = _table([p for p in kept if p.suffix.lower() == ".csv"])
    cases, unpaired = [], 0
    for key, images in sorted(grouped.items()):
        if 1.0 not in images or len(images) < 2:
            unpaired += 1
            continue
        beside = table if images[1.0].is_file() else None
        cases.append(DoseCase(key[-1] if key else folder.name, MultiDose("/".join(key), images), beside))
    if not cases:
        only = f" ({unpaired} have no full dose or no lower one, such as the challenge's test set)" if unpaired else ""
        raise nothing_found(folder, f"a subject with a full and a lower dose{only}")
    said = [f"{count} files or folders: {why}" for why, count in sorted(notes.items())]
    if unpaired:
        said.append(f"{unpaired} subjects have no full dose or no lower one and were left out")
    counts = {"subjects": len(cases), "images": sum(len(c.doses.paths) for c in cases)}
    for drf in sorted({d for c in cases for d in c.doses.drfs}):
        counts[f"at DRF {drf:g}"] = sum(drf in c.doses.paths for c in cases)
    return Found(tuple(cases), counts, tuple(said))


def _stem(name: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)


def _table(tables: list[Path]) -> Path | None:
    """The one table that tells of NIfTI files."""
    found = []
    for path in tables:
        try:
            with path.open(encoding="utf-8-sig", newline="") as handle:
                header = next(csv.reader(handle), [])
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path.name}: cannot be read as text; check the file") from error
        if "NiftiFileName" in header:
            found.append(path)
    if len(found) > 1:
        raise DataError(
            f"{found[0].name} and {found[1].name}: two tables of the images; keep the newer one (the first had errors)"
        )
    return found[0] if found else None


RECIPE = Recipe(
    name="udpet",
    title="Ultra-low Dose PET Imaging Challenge: 1447 whole-body FDG subjects at DRF 1, 4, 10, 20, 50, 100",
    layout="""DICOM releases of 2022 to 2024: a folder a subject with a folder a dose, "Full_dose", "1-2 dose", ... "1-100
dose". NIfTI with the challenge's CSV: Anonymous-06_DRF-50.nii.gz and a table with NiftiFileName,
PatientWeight_kg, ImageUnits, TimeFromInjectionToAcquisition_s, RadionuclideTotalDose_Bq,
RadionuclideHalfLife_s. Lower doses are windows in the middle of the scan, each corrected for decay to its
own start: every image is put in SUV with its own times, so that doses agree. Left out: the seven cases that
the challenge names as 68Ga-DOTA, test subjects 06 and 48 at DRF 50, subjects without a full dose. The table
of the first test release had wrong slice thicknesses; voxels are taken from the images. One dataset a
scanner: OUT/SCANNER. Numbers of counts are not known and stand as 0; train with --target full.""",
    license="Data Transfer Agreement of the challenge: not to be passed on",
    access="""By agreement: https://udpet-challenge.github.io/dataset has the Data Transfer Agreement; send it signed to
the organizers named there, who answer with a link.""",
    find=find,
    gives="doses",
)
