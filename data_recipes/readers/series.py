"""A DICOM series as one volume: slices found, checked, sorted by position and stacked."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.uid import MediaStorageDirectoryStorage

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.readers.common import to_canonical

# A step longer than this many median steps is a missing slice, one shorter than its inverse tenth a repeated one.
GAP = 1.5
REPEATED = 0.1
# Deviation from an even step, in steps, below which slices are not resampled.
EVEN = 0.01

_SOP_ENHANCED = {
    "1.2.840.10008.5.1.4.1.1.2.1": "enhanced multi-frame CT",
    "1.2.840.10008.5.1.4.1.1.130": "enhanced multi-frame PET",
}
_SOP_NM = "1.2.840.10008.5.1.4.1.1.20"
_SAME_IN_ALL = (
    "Modality", "SOPClassUID", "SeriesInstanceUID", "PatientID", "Rows", "Columns", "PixelSpacing", "Units",
    "DecayCorrection", "CorrectedImage", "RescaleType", "KVP",
)  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """One file of a series: its name without folder, and its tags."""

    file: str
    tags: pydicom.Dataset


@dataclass(frozen=True)
class Series:
    """A stacked series.

    Parameters
    ----------
    slices : tuple of Slice
        Ordered along the slice normal.
    values : ndarray
        float32 (x, y, z), RAS+, rescaled by every slice's own slope and intercept, on an even grid.
    measured : ndarray
        float32 (i, j, slice): the same before reordering and resampling.
    grid : Grid
        Grid of `values`.
    positions_mm : tuple of float
        Slice positions along the normal.
    notes : tuple of str
        What was done to the data.
    """

    slices: tuple[Slice, ...]
    values: np.ndarray
    measured: np.ndarray
    grid: Grid
    positions_mm: tuple[float, ...]
    notes: tuple[str, ...]


def number(item: Slice, tag: str, source: pydicom.Dataset | None = None) -> float | None:
    """The tag as a finite number; None when it is absent or empty."""
    tags = item.tags if source is None else source
    try:
        value = tags.get(tag)
        if value is None or str(value) == "":
            return None
        result = float(value)
    except (ValueError, TypeError) as error:
        raise DataError(f"{item.file}: tag {tag} is not a number; repair the file") from error
    if not np.isfinite(result):
        raise DataError(f"{item.file}: tag {tag} is not finite; repair the file")
    return result


def text(item: Slice, tag: str, source: pydicom.Dataset | None = None) -> str:
    """The tag as upper-case text without blanks around it; several values joined by backslashes; "" when absent."""
    value = (item.tags if source is None else source).get(tag)
    if value is None:
        return ""
    parts = value if isinstance(value, MultiValue) else [value]
    return "\\".join(str(part).strip() for part in parts).upper()


def read_series(folder: Path, modality: str) -> Series:
    """Read the one series of `modality` ("PT" or "CT") that lies in a folder.

    Slices are sorted by ImagePositionPatient projected on the slice normal and stacked with their own RescaleSlope and
    RescaleIntercept. Uneven steps are resampled linearly to an even grid from the first to the last slice.

    Raises
    ------
    DataError
        No DICOM file, mixed series or modalities, repeated or missing slices, oblique or sheared stacks, pixel data
        that cannot be decoded.
    """
    found, others = find_slices(folder)
    check_kind(found, modality)
    slices, positions, normal = sort_slices(found)
    stack = stack_slices(slices)
    notes = [f"{others} files in the folder are not DICOM images and were left out"] if others else []
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    even = positions[0] + step * np.arange(len(positions))
    off = float(np.abs(positions - even).max())
    resampled = stack
    if off > EVEN * step:
        resampled = _interpolate_slices(stack, positions, even)
        steps = np.diff(positions)
        notes.append(
            f"slice steps of {steps.min():.2f} to {steps.max():.2f} mm were resampled linearly to {step:.4f} mm "
            f"(largest shift {off:.2f} mm)"
        )
    values, grid = to_canonical(resampled, slice_affine(slices[0], normal, step), slices[0].file)
    return Series(tuple(slices), values, stack, grid, tuple(float(p) for p in positions), tuple(notes))


def scaled(series: Series, factors: list[float]) -> Series:
    """The series with every slice's values multiplied by its factor before slices are resampled."""
    measured = series.measured * np.asarray(factors, np.float32)
    positions = np.asarray(series.positions_mm)
    even = np.linspace(positions[0], positions[-1], len(positions))
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    stack = measured if np.abs(positions - even).max() <= EVEN * step else _interpolate_slices(measured, positions, even)
    first = series.slices[0]
    orientation = _vector(first, "ImageOrientationPatient", 6)
    normal = np.cross(orientation[:3], orientation[3:])
    values, grid = to_canonical(stack, slice_affine(first, normal, step), first.file)
    return replace(series, values=values, measured=measured, grid=grid)


def find_slices(folder: Path) -> tuple[list[Slice], int]:
    """DICOM images of a folder by file name, at least one (`DataError`), and the number of other files."""
    found: list[Slice] = []
    others = 0
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            tags = pydicom.dcmread(path)
        except InvalidDicomError:
            others += 1
            continue
        except (OSError, EOFError, ValueError, AttributeError, NotImplementedError) as error:
            raise DataError(f"{path.name}: damaged DICOM file; copy it again or remove it") from error
        if tags.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
            others += 1
            continue
        found.append(Slice(path.name, tags))
    if not found:
        raise DataError(f"{folder.name}: no DICOM file in this folder; give the folder that holds the slices")
    return found, others


def check_kind(found: list[Slice], modality: str) -> None:
    """Refuse anything but one series of one modality in slices of one size and orientation (`DataError`)."""
    first = found[0]
    for item in found:
        kind = text(item, "Modality")
        sop = text(item, "SOPClassUID")
        if modality == "PT" and (kind in ("NM", "ST") or sop == _SOP_NM):
            tag = "Modality" if kind != "PT" else "SOPClassUID"
            raise DataError(f"{item.file}: {tag} says SPECT (nuclear medicine), not PET; give a PET series")
        if kind != modality:
            raise DataError(
                f"{item.file}: Modality is '{kind or 'missing'}' where {modality} is needed; "
                f"give a folder with one {modality} series only"
            )
        frames = number(item, "NumberOfFrames")
        if sop in _SOP_ENHANCED or (frames is not None and frames > 1):
            raise DataError(
                f"{item.file}: {_SOP_ENHANCED.get(sop, 'multi-frame')} DICOM (SOPClassUID) is not read; "
                "convert it to a classic series with a file per slice, or to NIfTI"
            )
        for tag in _SAME_IN_ALL:
            if text(item, tag) != text(first, tag):
                raise DataError(
                    f"{item.file}: {tag} differs from that of {first.file} (mixed series); "
                    "give a folder with one series only"
                )
        if "PixelData" not in item.tags:
            raise DataError(f"{item.file}: no PixelData; give a folder with one image series only")


def _vector(item: Slice, tag: str, length: int) -> np.ndarray:
    value = item.tags.get(tag)
    try:
        vector = np.array([float(v) for v in value], float) if value is not None else np.zeros(0)
    except (ValueError, TypeError) as error:
        raise DataError(f"{item.file}: tag {tag} is not a list of numbers; repair the file") from error
    if vector.shape != (length,) or not np.isfinite(vector).all():
        raise DataError(f"{item.file}: tag {tag} is missing or has not {length} finite values; repair the file")
    return vector


def sort_slices(found: list[Slice]) -> tuple[list[Slice], np.ndarray, np.ndarray]:
    """Slices in the order of their positions along the normal, those positions [mm], and the normal."""
    if len(found) < 2:
        raise DataError(f"{found[0].file}: a single slice (2D) is not enough; give the whole series")
    orientation = _vector(found[0], "ImageOrientationPatient", 6)
    normal = np.cross(orientation[:3], orientation[3:])
    if abs(np.linalg.norm(normal) - 1) > 1e-3:
        raise DataError(f"{found[0].file}: ImageOrientationPatient is not two perpendicular unit vectors")
    for item in found:
        if np.abs(_vector(item, "ImageOrientationPatient", 6) - orientation).max() > 1e-4:
            raise DataError(
                f"{item.file}: ImageOrientationPatient differs from that of {found[0].file}; give one stack of slices"
            )
    corners = np.array([_vector(item, "ImagePositionPatient", 3) for item in found])
    along = corners @ normal
    order = np.argsort(along, kind="stable")
    positions = along[order]
    slices = [found[i] for i in order]
    steps = np.diff(positions)
    # Of an even number the lower middle one: of three slices one of which is twice as far, the step is the shorter.
    median = float(np.percentile(steps, 50, method="lower"))
    repeated = int(np.argmin(steps))
    if steps[repeated] <= REPEATED * median or median <= 0:
        raise DataError(
            f"{slices[repeated + 1].file} and {slices[repeated].file}: both at {positions[repeated]:.2f} mm "
            "(ImagePositionPatient); give one frame or volume of a dynamic or gated series"
        )
    gap = int(np.argmax(steps))
    if steps[gap] > GAP * median:
        raise DataError(
            f"missing slice between {slices[gap].file} at {positions[gap]:.2f} mm and {slices[gap + 1].file} at "
            f"{positions[gap + 1]:.2f} mm (ImagePositionPatient, step {median:.2f} mm); copy the whole series"
        )
    across = corners[order] - positions[:, None] * normal
    spacing = _vector(found[0], "PixelSpacing", 2)
    if np.abs(across - across[0]).max() > 0.1 * spacing.min():
        raise DataError(
            f"{slices[0].file}: slices are shifted sideways against each other (ImagePositionPatient, tilted gantry); "
            "resample the series to an upright grid first"
        )
    return slices, positions, normal


def stack_slices(slices: list[Slice]) -> np.ndarray:
    """float32 (column, row, slice): stored values times slope plus intercept."""
    planes = []
    for item in slices:
        slope, intercept = number(item, "RescaleSlope"), number(item, "RescaleIntercept")
        if slope is None or slope <= 0:
            raise DataError(f"{item.file}: RescaleSlope is missing or not positive; repair the file")
        try:
            pixels = item.tags.pixel_array
        except (ValueError, RuntimeError, NotImplementedError, AttributeError, EOFError) as error:
            raise DataError(f"{item.file}: PixelData cannot be decoded; copy the file again, or uncompress it") from error
        if pixels.ndim != 2:
            raise DataError(f"{item.file}: PixelData has {pixels.ndim} dimensions where 2 are needed (no color)")
        planes.append((pixels.T * slope + (intercept or 0.0)).astype(np.float32))
    return np.stack(planes, axis=-1)


def slice_affine(first: Slice, normal: np.ndarray, step: float) -> np.ndarray:
    """Index (column, row, slice) to RAS+ mm, with `step` mm between slices."""
    orientation = _vector(first, "ImageOrientationPatient", 6)
    between_rows, between_columns = _vector(first, "PixelSpacing", 2)
    lps = np.eye(4)
    lps[:3, 0] = orientation[:3] * between_columns
    lps[:3, 1] = orientation[3:] * between_rows
    lps[:3, 2] = normal * step
    lps[:3, 3] = _vector(first, "ImagePositionPatient", 3)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _interpolate_slices(stack: np.ndarray, positions: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    lower = np.clip(np.searchsorted(positions, wanted, side="right") - 1, 0, len(positions) - 2)
    weight = ((wanted - positions[lower]) / (positions[lower + 1] - positions[lower])).astype(np.float32)
    weight = np.clip(weight, 0, 1)
    return stack[:, :, lower] * (1 - weight) + stack[:, :, lower + 1] * weight
