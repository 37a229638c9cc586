"""PET volumes in the file's own orientation and unit, and results back into the same kind of file."""

import gzip
import os
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Extensions, Nifti1Header, Nifti1Image
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from pydicom.config import disable_value_validation

from data_recipes.errors import DataError
from data_recipes.readers.dicom import check_complete, check_image
from data_recipes.readers.nifti import ENDINGS, image_stem, open_nifti
from data_recipes.readers.series import Slice, check_kind, find_slices, slice_affine, sort_slices, stack_slices, text
from data_recipes.readers.sidecar import find_sidecar, read_sidecar
from data_recipes.writers.derived import FILE_PATTERN, strip_source, write_derived

NIFTI_DESCRIPTION = "petsim denoised"
_RAS = np.array([[0, 1], [1, 1], [2, 1]])


@dataclass(frozen=True)
class Volume:
    """A PET image as its file has it.

    Parameters
    ----------
    path : Path
        NIfTI file or DICOM folder.
    values : ndarray
        float32 (x, y, z) along the file's own axes, in the file's own unit. DICOM: column, row, slice along the normal,
        at the positions at which they were measured, even or not.
    affine : ndarray
        float64 4 x 4, index into `values` to RAS+ mm. DICOM: with the mean slice step.
    unit : str
        "bqml", "kbqml", "suv" (by body weight) or "unknown".
    header : Nifti1Header or tuple of Slice
        What `write_like` keeps of the source.
    """

    path: Path
    values: np.ndarray
    affine: np.ndarray
    unit: str
    header: Nifti1Header | tuple[Slice, ...]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edges in mm along the axes of `values`."""
        x, y, z = (float(v) for v in voxel_sizes(self.affine))
        return x, y, z

    @property
    def canonical_spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edges in mm along the axes of `to_canonical`."""
        order = np.argmax(np.abs(self.affine[:3, :3] / np.array(self.spacing_mm)), axis=1)
        x, y, z = (self.spacing_mm[k] for k in order)
        return x, y, z


def read_volume(path: str | Path) -> Volume:
    """Read one PET volume without reordering, resampling or rescaling it.

    Parameters
    ----------
    path : path
        .nii or .nii.gz (its unit is taken from a sidecar beside it), or a folder that holds one PET DICOM series.

    Raises
    ------
    DataError
        One line, for a damaged file, anything but one 3D volume, NaN, an affine that cannot be inverted, and for what
        the readers refuse of series and sidecars; oblique axes are read.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(f"{source.name}: no such file or folder; check the name")
    if source.is_dir():
        with disable_value_validation():
            volume = _read_dicom(source)
    else:
        volume = _read_nifti(source)
    if not np.isfinite(volume.affine).all() or abs(np.linalg.det(volume.affine[:3, :3])) < 1e-9:
        raise DataError(f"{source.name}: the affine is not invertible; write the image with a valid orientation")
    if not np.isfinite(volume.values).all():
        raise DataError(f"{source.name}: the image has NaN or infinite voxels; replace them first")
    return volume


def to_canonical(values: np.ndarray, volume: Volume) -> np.ndarray:
    """Values along the file's axes as a C-order array along the nearest RAS+ axes: flips and permutations only."""
    return np.ascontiguousarray(apply_orientation(values, io_orientation(volume.affine)))


def from_canonical(values: np.ndarray, volume: Volume) -> np.ndarray:
    """The inverse of `to_canonical`: values along RAS+ axes as a C-order array along the file's axes."""
    return np.ascontiguousarray(apply_orientation(values, ornt_transform(_RAS, io_orientation(volume.affine))))


def write_like(volume: Volume, values: np.ndarray, out: str | Path, *, series_description: str,
               derivation_description: str, uid_key: str, overwrite: bool = False) -> None:  # fmt: skip
    """Write values as the same kind of file as the volume, on the same grid and in the same unit.

    NIfTI: float32, with the header's orientation and units to the bit, a neutral description, and without extensions
    and free text. DICOM: a derived series with new UIDs, a file per slice, that refers to its source.

    Parameters
    ----------
    volume : Volume
        The source.
    values : ndarray
        (x, y, z) along the volume's axes, in its unit.
    out : path
        .nii or .nii.gz for a NIfTI volume, a folder for a DICOM series. Missing parent folders are made.
    series_description, derivation_description, uid_key : str
        For DICOM; see `derived.write_derived`.
    overwrite : bool
        Replace a file, or a folder that holds nothing but a series written here.

    Raises
    ------
    UsageError
        For a description that its tag cannot hold.
    DataError
        One line, for another shape than the volume's, NaN, an output that exists or is the input, or a failure of the
        file system; nothing is left behind then.
    """
    final = Path(out)
    _check_out(volume, final, overwrite)
    if np.shape(values) != volume.values.shape:
        raise DataError(
            f"{volume.path.name}: the result has shape {np.shape(values)}, not {volume.values.shape}; "
            "give it along the axes of the file"
        )
    with np.errstate(over="ignore"):
        plain = np.asarray(values, np.float32)
    if not np.isfinite(plain).all():
        raise DataError(f"{volume.path.name}: the result has NaN or infinite voxels; nothing was written")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as beside:
            new = Path(beside) / "new"
            if isinstance(volume.header, Nifti1Header):
                _write_nifti(new, volume.header, plain, packed=final.name.lower().endswith(".gz"))
            else:
                new.mkdir()
                with disable_value_validation():
                    write_derived(new, volume.header, plain, series_description=series_description,
                                  derivation_description=derivation_description, uid_key=uid_key)  # fmt: skip
            _put(new, final)
    except OSError as error:
        raise DataError(
            f"cannot write {final.name}: {error.strerror or error}; free some space or choose a folder that can be written"
        ) from None


def _read_nifti(path: Path) -> Volume:
    stem = image_stem(path)
    image, data, affine = open_nifti(path)
    beside = find_sidecar(path, stem)
    unit = "unknown"
    if beside is not None:
        said = read_sidecar(beside, path, stem)
        unit = "kbqml" if said.scale == 1e3 else said.units or "unknown"
    with np.errstate(over="ignore"):
        values = data.astype(np.float32)
    return Volume(path, values, affine, unit, image.header.copy())


def _read_dicom(folder: Path) -> Volume:
    found, _ = find_slices(folder)
    check_kind(found, "PT")
    slices, positions, normal = sort_slices(found)
    first = slices[0]
    check_image(first)
    check_complete(slices)
    values = stack_slices(slices)
    affine = slice_affine(first, normal, float(positions[-1] - positions[0]) / (len(positions) - 1))
    unit = {"BQML": "bqml", "GML": "suv"}.get(text(first, "Units"), "unknown")
    if unit == "suv" and text(first, "SUVType") not in ("", "BW"):
        unit = "unknown"
    return Volume(folder, values, affine, unit, strip_source(slices))


def _check_out(volume: Volume, out: Path, overwrite: bool) -> None:
    is_nifti = isinstance(volume.header, Nifti1Header)
    if is_nifti:
        image_stem(out)
    elif out.name.lower().endswith(ENDINGS):
        raise DataError(f"--out {out.name}: {volume.path.name} is a DICOM series, which becomes a folder; name a folder")
    source, target = volume.path.resolve(), out.resolve()
    if target == source or source in target.parents:
        raise DataError(f"--out {out.name}: this is the input or lies in it; choose another output")
    if not out.exists():
        return
    if not overwrite:
        raise DataError(f"--out {out.name}: exists; choose another output, or add --overwrite")
    # Replacing a folder deletes all that it holds.
    if out.is_dir() == is_nifti or (not is_nifti and not all(re.fullmatch(FILE_PATTERN, p.name) for p in out.iterdir())):
        raise DataError(f"--out {out.name}: exists and is no earlier result of this kind; choose another output")


def _write_nifti(path: Path, source: Nifti1Header, values: np.ndarray, packed: bool) -> None:
    header = source.copy()
    header.extensions = Nifti1Extensions()
    header.set_data_dtype(np.float32)
    header["descrip"] = NIFTI_DESCRIPTION
    # Converters leave patient and study names here.
    header["aux_file"] = header["db_name"] = b""
    # Without an affine, nibabel leaves the orientation in the header alone.
    image = Nifti1Image(values.reshape(header.get_data_shape()), None, header)
    with path.open("wb") as raw:
        if packed:
            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as handle:
                handle.write(image.to_bytes())
        else:
            raw.write(image.to_bytes())


def _put(new: Path, final: Path) -> None:
    if not final.is_dir():
        os.replace(new, final)
        return
    old = new.with_name("old")
    os.replace(final, old)
    try:
        os.replace(new, final)
    except OSError:
        os.replace(old, final)
        raise
