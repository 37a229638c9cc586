"""One way in for image sources: the reader is chosen by what the path is."""

from dataclasses import replace
from pathlib import Path

from data_recipes import subject_file
from data_recipes.errors import DataError, UsageError
from data_recipes.readers import dicom, nifti
from data_recipes.readers.common import Stated
from data_recipes.readers.dicom import read_dicom
from data_recipes.readers.nifti import ENDINGS, read_nifti
from data_recipes.readers.series import check_kind, find_slices, sort_slices
from data_recipes.subject import Subject
from data_recipes.subject_file import read_subject_file


def read_source(path: str | Path, *, units: str | None = None, sidecar: str | Path | None = None,
                fwhm_mm: float | tuple[float, float, float] | None = None, weight_kg: float | None = None,
                injected_mbq: float | None = None, uptake_s: float | None = None,
                duration_s: float | None = None) -> Subject:  # fmt: skip
    """Read a folder with a PET DICOM series, a NIfTI file, or a subject file.

    Parameters
    ----------
    path : path
        Folder, .nii or .nii.gz, or .subject.h5 (`data_recipes.subject_file`), which says all of itself.
    sidecar : path, optional
        For NIfTI only.
    units, fwhm_mm, weight_kg, injected_mbq, uptake_s, duration_s
        As in `read_dicom` and `read_nifti`.

    Returns
    -------
    Subject
        Without mu, but for a subject file; see `data_recipes.contour.with_mu`.

    Raises
    ------
    DataError
        When there is no such path, or it is neither; and as the readers raise.
    """
    source = _known(path, sidecar)
    if source.name.endswith(subject_file.ENDING):
        stated = Stated(units, fwhm_mm, weight_kg, injected_mbq, uptake_s, duration_s)
        if stated != Stated(duration_s=duration_s):
            raise UsageError(f"SOURCE: {source.name} has its units, injection and resolution; leave the flags for them out")
        subject = read_subject_file(source)
        return replace(subject, injection=stated.over(subject.injection))
    if source.is_dir():
        return read_dicom(source, units=units, fwhm_mm=fwhm_mm, weight_kg=weight_kg, injected_mbq=injected_mbq,
                          uptake_s=uptake_s, duration_s=duration_s)  # fmt: skip
    return read_nifti(source, units=units, sidecar=sidecar, fwhm_mm=fwhm_mm, weight_kg=weight_kg,
                      injected_mbq=injected_mbq, uptake_s=uptake_s, duration_s=duration_s)  # fmt: skip


def read_suv_per_value(path: str | Path, *, units: str | None = None, sidecar: str | Path | None = None,
                       weight_kg: float | None = None, injected_mbq: float | None = None,
                       uptake_s: float | None = None) -> float:  # fmt: skip
    """SUV by body weight that a value of 1 of an image source stands for, its unit and decay correction taken into account.

    Unlike `read_source` it asks nothing of the values, which may be negative, or of the axes.

    Parameters
    ----------
    path, units, sidecar, weight_kg, injected_mbq, uptake_s
        As in `read_source`.

    Returns
    -------
    float

    Raises
    ------
    DataError
        As `read_source`, or where weight, activity or uptake time is unknown.
    """
    source = _known(path, sidecar)
    if source.name.endswith(subject_file.ENDING):
        raise UsageError(f"{source.name}: a subject file is for make-dataset; give an image")
    stated = Stated(units, None, weight_kg, injected_mbq, uptake_s, None)
    if not source.is_dir():
        return nifti.suv_per_value(source, sidecar, stated)
    found, _ = find_slices(source)
    check_kind(found, "PT")
    slices, _, _ = sort_slices(found)
    return dicom.suv_per_value(tuple(slices), stated)


def _known(path: str | Path, sidecar: str | Path | None) -> Path:
    source = Path(path)
    if source.is_dir():
        if sidecar is not None:
            raise UsageError("--sidecar: a DICOM series has its tags and takes no sidecar; leave the flag out")
        return source
    if not source.exists():
        raise DataError(f"{source.name}: no such file or folder; check the name")
    if source.name.endswith(subject_file.ENDING):
        if sidecar is not None:
            raise UsageError("--sidecar: a subject file takes no sidecar; leave the flag out")
        return source
    if not source.name.lower().endswith(ENDINGS):
        raise DataError(f"{source.name}: neither a NIfTI file (.nii, .nii.gz) nor a folder with a DICOM series")
    return source
