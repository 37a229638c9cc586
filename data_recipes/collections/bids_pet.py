"""PET-BIDS datasets: _pet.nii.gz with JSON, static or dynamic."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from data_recipes.collections.folders import files_below
from data_recipes.collections.recipe import Case, Found, Recipe, Wishes, nothing_found
from data_recipes.errors import DataError
from data_recipes.readers.common import Stated, to_canonical
from data_recipes.readers.nifti import ENDINGS, MOST_VOXELS, image_stem, load_volume, subject_of
from data_recipes.readers.sidecar import from_fields
from data_recipes.subject import Subject


def find(folder: Path, wishes: Wishes) -> Found:
    """Images of a BIDS dataset, one a subject, session and run; attenuation is theirs to add with --mu or --ct."""
    paths = files_below(folder)
    images = [p for p in paths if p.name.lower().endswith(tuple(f"_pet{e}" for e in ENDINGS)) and p.is_file()]
    kept = [p for p in images if not {p.name, _patient(p)} & set(wishes.skip)]
    if not kept:
        raise nothing_found(folder, "an image whose name ends in _pet.nii.gz")
    weights = _weights(folder)
    cases = tuple(Case(_patient(p), lambda p=p: read_bids(p, folder, weights.get(_patient(p)), wishes)) for p in kept)
    notes = (f"{len(images) - len(kept)} images were left out with --skip",) if len(kept) < len(images) else ()
    return Found(cases, {"patients": len({c.patient for c in cases}), "images": len(cases)}, notes)


def _patient(path: Path) -> str:
    return path.name.split("_")[0]


def read_bids(path: Path, folder: Path, weight_kg: float | None, wishes: Wishes) -> Subject:
    """An image with what its sidecars say; those further up hold for all below them, as BIDS has it.

    Of a dynamic image the wished frames are averaged, weighted with their durations: decay-corrected to one time, that is
    the mean activity while they lasted. Scan start is the start of the first of them.

    Raises
    ------
    DataError
        One line, for a missing or damaged sidecar, a dynamic image without a choice of frames, frames that do not follow
        each other, or what `read_nifti` refuses.
    """
    fields = _fields(path, folder)
    if weight_kg is not None and "BodyWeight" not in fields:
        fields["BodyWeight"] = weight_kg
    image, shape = _header(path)
    notes: list[str] = []
    if len(shape) > 3 and math.prod(shape[3:]) > 1:
        mean = _averaged(image, shape, fields, path, wishes, notes)
        values, grid = to_canonical(mean, np.asarray(image.affine), path.name)
    else:
        if wishes.frames is not None:
            raise DataError(f"{path.name}: --frames: is a static image; leave the flag out, or skip the image")
        values, grid, notes = load_volume(path)
    stated = Stated(None, None, wishes.weight_kg, wishes.injected_mbq, wishes.uptake_s, None)
    return subject_of(values, grid, notes, from_fields(fields, f"{image_stem(path)}.json"), stated, "json", path.name)


def _fields(path: Path, folder: Path) -> dict[str, Any]:
    """Fields of all sidecars that hold for an image, the nearest winning."""
    entities = set(image_stem(path).split("_"))
    fields: dict[str, Any] = {}
    found = False
    for parent in [p for p in reversed(path.parents) if p == folder or p.is_relative_to(folder)]:
        for sidecar in sorted(parent.glob("*pet.json"), key=lambda p: len(p.stem.split("_"))):
            if set(sidecar.stem.split("_")) <= entities:
                found = True
                fields |= _json(sidecar)
    if not found:
        raise DataError(f"{path.name}: no {image_stem(path)}.json beside it; PET-BIDS demands one")
    return fields


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name}: not valid JSON; repair the file") from error
    if not isinstance(fields, dict):
        raise DataError(f"{path.name}: holds no JSON object; PET-BIDS names are needed")
    return fields


def _header(path: Path) -> tuple[nib.Nifti1Image, tuple[int, ...]]:
    try:
        image = nib.Nifti1Image.from_filename(path)
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        raise DataError(f"{path.name}: damaged or no NIfTI file; copy it again") from error
    return image, tuple(image.shape)


def _averaged(image: nib.Nifti1Image, shape: tuple[int, ...], fields: dict[str, Any], path: Path, wishes: Wishes,
              notes: list[str]) -> np.ndarray:  # fmt: skip
    """Mean of the wished frames along the file's axes; `fields` becomes that of a static image."""
    count = shape[3]
    if len(shape) > 4 or math.prod(shape) > 4 * MOST_VOXELS:
        raise DataError(f"{path.name}: {len(shape)}D image of shape {shape}; give one with frames along the fourth axis")
    starts, lasts = (_list(fields, name, count, path) for name in ("FrameTimesStart", "FrameDuration"))
    if wishes.frames is None:
        seconds = starts[-1] + lasts[-1] - starts[0]
        raise DataError(f"{path.name}: {count} frames over {seconds:g} s; choose some with --frames FIRST LAST")
    first, last = wishes.frames
    if not 1 <= first <= last <= count:
        raise DataError(f"{path.name}: --frames {first} {last}: it has the frames 1 to {count}")
    chosen = range(first - 1, last)
    gaps = [starts[k + 1] - starts[k] - lasts[k] for k in chosen[:-1]]
    if any(abs(gap) > 0.1 for gap in gaps):
        raise DataError(f"{path.name}: frames {first} to {last} do not follow each other (FrameTimesStart); choose others")
    total = sum(lasts[k] for k in chosen)
    mean = np.zeros(shape[:3])
    try:
        for k in chosen:
            mean += np.asarray(image.dataobj[..., k], float) * (lasts[k] / total)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path.name}: damaged or no NIfTI file; copy it again") from error
    # Frames of an image that is corrected to its own scan start are corrected to the start of its first frame.
    reference = fields.get("ImageDecayCorrectionTime")
    fields["ImageDecayCorrectionTime"] = fields.get("ScanStart", starts[0]) if reference is None else reference
    fields["ScanStart"], fields["FrameDuration"] = starts[first - 1], [total]
    notes.append(f"mean of the frames {first} to {last} of {count}, {total:g} s")
    return mean.astype(np.float32)


def _list(fields: dict[str, Any], name: str, count: int, path: Path) -> list[float]:
    value = fields.get(name)
    if not (isinstance(value, list) and len(value) == count and all(isinstance(v, int | float) for v in value)):
        raise DataError(
            f"{image_stem(path)}.json: {name} has not one number for each of the {count} frames; repair the file"
        )
    return [float(v) for v in value]


def _weights(folder: Path) -> dict[str, float]:
    """Body weight by participant, where participants.tsv has a column weight_kg or body_weight_kg."""
    path = folder / "participants.tsv"
    if not path.is_file():
        return {}
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: cannot be read as text; check the file") from error
    column = next((c for c in (rows[0] if rows else {}) if c in ("weight_kg", "body_weight_kg")), None)
    found = {}
    for row in rows if column else []:
        written = str(row[column] or "n/a").strip()
        if written.lower() in ("n/a", ""):
            continue
        try:
            found[str(row.get("participant_id") or "")] = float(written)
        except ValueError:
            raise DataError(f"{path.name}: {column} of a participant is not a number; repair the table") from None
    return found


RECIPE = Recipe(
    name="bids-pet",
    title="PET-BIDS: NIfTI images with JSON sidecars",
    layout="""sub-*/[ses-*/]pet/*_pet.nii.gz with *_pet.json: Units, InjectedRadioactivity with its unit, InjectionStart,
ScanStart, ImageDecayCorrected, ImageDecayCorrectionTime, and of dynamic images FrameTimesStart and
FrameDuration. Sidecars further up hold for all below. Body weight: BodyWeight (kg) in the JSON, weight_kg
in participants.tsv, or --weight-kg. Dynamic images: --frames FIRST LAST are averaged. Attenuation is
guessed from the PET unless make-dataset gets --mu or --ct.""",
    license="that of the dataset (dataset_description.json)",
    access="Such as https://openneuro.org (modality PET); each dataset tells its license.",
    find=find,
)
