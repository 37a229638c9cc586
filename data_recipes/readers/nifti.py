"""NIfTI images as subjects, and as plain volumes (mu-maps, CTs)."""

import math
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.isotopes import decay_factor, isotope
from data_recipes.readers.common import Stated, content_hash, make_subject, suv_scale, to_canonical
from data_recipes.readers.sidecar import Sidecar, find_sidecar, read_sidecar
from data_recipes.subject import Injection, Subject

ENDINGS = (".nii.gz", ".nii")

MOST_VOXELS = 1 << 30
"""Of a volume: a CT of 512 x 512 x 2000 has half as many. A header that says more is damaged, or a bomb when unpacked."""


def read_nifti(path: str | Path, *, units: str | None = None, sidecar: str | Path | None = None,
               fwhm_mm: float | tuple[float, float, float] | None = None, weight_kg: float | None = None,
               injected_mbq: float | None = None, uptake_s: float | None = None,
               duration_s: float | None = None) -> Subject:  # fmt: skip
    """Read a PET image in Bq/mL at scan start, or in SUV by body weight.

    Parameters
    ----------
    path : path
        .nii or .nii.gz with three axes (a fourth of length 1 is dropped).
    units : {"bqml", "suv"}, optional
        Units of the values where the sidecar has none.
    sidecar : path, optional
        JSON or CSV (see `sidecar.read_sidecar`); by default the file of the same name ending in .json or .csv.
    fwhm_mm : float or tuple of float, optional
        Resolution of the image in mm; estimated from the voxel size when not given.
    weight_kg, injected_mbq, uptake_s, duration_s : float, optional
        As in `Injection`; they win over the sidecar.

    Returns
    -------
    Subject
        Without mu.

    Raises
    ------
    UsageError
        For a stated value that cannot be.
    DataError
        One line, for a damaged file, 2D or 4D images, oblique axes, unknown units, or SUV without weight, activity
        or uptake time.
    """
    stated = Stated(units, fwhm_mm, weight_kg, injected_mbq, uptake_s, duration_s)
    image = Path(path)
    values, grid, notes = load_volume(image)
    beside = _beside(image, sidecar)
    said = _said(image, beside)
    kind = "none" if beside is None else beside.suffix.lower().removeprefix(".")
    return subject_of(values, grid, notes, said, stated, kind, image.name)


def subject_of(values: np.ndarray, grid: Grid, notes: list[str], said: Sidecar, stated: Stated, sidecar: str,
               where: str) -> Subject:  # fmt: skip
    """The `Subject` of values whose meaning a sidecar and the user tell.

    Parameters
    ----------
    values : ndarray
        float32 (x, y, z) in the sidecar's unit.
    grid : Grid
    notes : list of str
        What was done to the values.
    said : Sidecar
    stated : Stated
    sidecar : str
        Kind of the sidecar, for the provenance.
    where : str
        File name for messages.

    Raises
    ------
    DataError
        As of `read_nifti`.
    """
    unit, tagged, injection = _interpret(where, said, stated)
    warnings = ["the isotope is not stated: F-18 is assumed"] if said.isotope is None else []
    factor = said.scale
    notes = list(notes)
    if unit == "suv":
        factor *= suv_scale(injection, where)
    elif said.corrected_before_scan_s:
        factor *= _decay(said, injection)
        notes.append("decay correction moved to scan start")
    provenance: dict[str, Any] = {
        "kind": "nifti",
        "units": unit,
        "sidecar": sidecar,
        "notes": notes,
        "warnings": warnings,
    }
    facts = {
        "shape": grid.shape,
        "spacing_mm": grid.spacing_mm,
        "origin_mm": grid.origin_mm,
        "units": said.units,
        "scale": said.scale,
        "isotope": tagged.isotope,
        "injected_mbq": tagged.injected_mbq,
        "uptake_s": tagged.uptake_s,
        "weight_kg": tagged.weight_kg,
        "duration_s": tagged.duration_s,
        "corrected_before_scan_s": said.corrected_before_scan_s,
    }
    sha256 = content_hash(values, facts)
    return make_subject(values * np.float32(factor), grid, injection, stated, sha256, provenance, where)


def _beside(image: Path, sidecar: str | Path | None) -> Path | None:
    stem = image_stem(image)
    return Path(sidecar) if sidecar is not None else find_sidecar(image, stem)


def _said(image: Path, beside: Path | None) -> Sidecar:
    return Sidecar() if beside is None else read_sidecar(beside, image, image_stem(image))


def _interpret(where: str, said: Sidecar, stated: Stated) -> tuple[str, Injection, Injection]:
    """Unit, and the injection as the sidecar has it and with the user's statements over it."""
    unit = said.units or stated.units
    if unit is None:
        raise DataError(f"{where}: units are not known (no Units beside it); give --source-units bqml or suv")
    if stated.units not in (None, unit):
        raise DataError(f"{where}: the sidecar says {unit}, --source-units {stated.units}; leave the flag out")
    tagged = Injection(
        isotope="F-18" if said.isotope is None else said.isotope.name,
        tracer=said.tracer,
        injected_mbq=said.injected_mbq,
        uptake_s=said.uptake_s,
        weight_kg=said.weight_kg,
        duration_s=said.duration_s,
    )
    return unit, tagged, stated.over(tagged)


def _decay(said: Sidecar, injection: Injection) -> float:
    """Activity at scan start over what values that are corrected to an earlier time say."""
    if not said.corrected_before_scan_s:
        return 1.0
    return decay_factor(said.isotope or isotope(injection.isotope), said.corrected_before_scan_s)


def suv_per_value(image: Path, sidecar: str | Path | None, stated: Stated) -> float:
    """SUV by body weight that a value of 1 stands for.

    Raises
    ------
    DataError
        As of `read_nifti`, or where weight, activity or uptake time is unknown; values are not looked at.
    """
    said = _said(image, _beside(image, sidecar))
    unit, _, injection = _interpret(image.name, said, stated)
    if unit == "suv":
        return said.scale
    return said.scale * _decay(said, injection) / suv_scale(injection, image.name)


def image_stem(path: Path) -> str:
    """File name without .nii or .nii.gz.

    Raises
    ------
    DataError
        For any other ending.
    """
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    raise DataError(f"{path.name}: not a NIfTI file; give a .nii or .nii.gz")


def load_volume(path: Path) -> tuple[np.ndarray, Grid, list[str]]:
    """A NIfTI volume in RAS+ axes.

    Parameters
    ----------
    path : Path
        .nii or .nii.gz.

    Returns
    -------
    tuple
        float32 (x, y, z), its `Grid`, and notes.

    Raises
    ------
    DataError
        For a missing or damaged file, 2D or 4D, oblique axes, or voxel sizes not in mm.
    """
    image, data, affine = open_nifti(path)
    notes = []
    if not (int(image.header["sform_code"]) or int(image.header["qform_code"])):
        notes.append("the NIfTI header states no orientation (sform and qform codes are 0)")
    values, grid = to_canonical(data, affine, path.name)
    return values, grid, notes


def open_nifti(path: Path) -> tuple[nib.Nifti1Image, np.ndarray, np.ndarray]:
    """Image, data (x, y, z) as stored, and affine of a NIfTI file with one volume in mm.

    Raises
    ------
    DataError
        As of `load_volume`, but oblique axes are left to the caller.
    """
    image_stem(path)
    try:
        image = nib.Nifti1Image.from_filename(path)
        shape = image.shape
        if math.prod(shape) > MOST_VOXELS:
            raise DataError(
                f"{path.name}: its header says {shape} voxels, more than {MOST_VOXELS:,}; copy it again, or crop it"
            )
        data = np.asarray(image.dataobj)
    except FileNotFoundError as error:
        raise DataError(f"{path.name}: no such file; check the name") from error
    except DataError:
        raise
    except (ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path.name}: damaged or no NIfTI file; copy it again") from error
    if len(shape) > 3 and all(n == 1 for n in shape[3:]):
        data = data.reshape(shape[:3])
    if data.ndim > 3:
        raise DataError(f"{path.name}: {data.ndim}D image of shape {shape}; give one 3D volume or frame")
    if data.ndim < 3 or min(data.shape) < 2:
        raise DataError(f"{path.name}: 2D image of shape {shape}; give a 3D volume")
    if data.dtype.kind not in "iuf":
        raise DataError(f"{path.name}: voxels are not real numbers ({data.dtype}); give a gray-scale image")
    unit = image.header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise DataError(f"{path.name}: voxel sizes are in {unit} (xyzt_units), not mm; repair the header")
    if image.affine is None:
        raise DataError(f"{path.name}: no affine; write the image with a valid orientation")
    return image, data, image.affine
