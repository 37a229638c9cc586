"""Folders that hold the same subjects at several doses, as the Ultra-low Dose PET Imaging Challenge gives them out."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_recipes.errors import DataError
from data_recipes.readers.nifti import ENDINGS, image_stem
from data_recipes.readers.read import read_suv_per_value
from data_recipes.writers.like import read_volume, to_canonical

_FULL = re.compile(r"(?<![a-z])full[ _-]?dose(?![a-z])")
_FRACTION = re.compile(r"(?<![\d.])1[-_/](\d+(?:\.\d+)?)[ _-]?dose(?![a-z])")
_FACTOR = re.compile(r"(?<![a-z])drf[ _-]?(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class MultiDose:
    """One subject's images.

    Parameters
    ----------
    name : str
        Its number in the folder, "subject-0001" for the first: names of folders can be names of people.
    paths : dict
        DRF -> NIfTI file or DICOM folder; 1 is the full dose.
    """

    name: str
    paths: dict[float, Path]

    @property
    def drfs(self) -> tuple[float, ...]:
        """Its doses, full dose first."""
        return tuple(sorted(self.paths))


@dataclass(frozen=True)
class DoseImage:
    """An image of a subject.

    Parameters
    ----------
    suv : ndarray
        float32 (x, y, z) along the nearest RAS+ axes.
    spacing_mm : tuple of float
    """

    suv: np.ndarray
    spacing_mm: tuple[float, float, float]


def dose_in(name: str) -> float | None:
    """DRF that a file's or folder's name tells: "Full_dose", "1-20 dose", "drf20"; None if it tells none.

    The first two are the names in the challenge's releases of 2022 to 2024, in any capitals.
    """
    plain = name.lower()
    if _FULL.search(plain):
        return 1.0
    found = _FRACTION.search(plain) or _FACTOR.search(plain)
    drf = float(found.group(1)) if found else 0.0
    return drf if drf >= 1 else None


def find_multi_dose(folder: Path) -> list[MultiDose]:
    """Subjects with a full dose and at least one lower one, in the order of their names.

    A subject is a folder with a NIfTI file or a DICOM folder for each dose, named by the dose (`dose_in`), at any depth; or
    each dose is a folder, with a NIfTI file or a DICOM folder of the same name for each subject.

    Raises
    ------
    DataError
        No such folder, no such subject, or two images for one dose.
    """
    if not folder.is_dir():
        raise DataError(f"{folder.name}: no such folder; check the name")
    found: dict[tuple[str, ...], dict[float, Path]] = {}
    for path in sorted(folder.rglob("*")):
        drf = dose_in(path.name) if path.is_dir() or _is_nifti(path) else None
        if drf is None:
            continue
        above = path.relative_to(folder).parts[:-1]
        if any(dose_in(part) is not None for part in above):
            continue
        inside = _images(path)
        if not inside:
            own = {above: path}
        elif above and len(inside) == 1:
            # A series in a folder of its own below the dose's, whose name says nothing.
            own = {above: next(iter(inside.values()))}
        else:
            own = {(*above, name): image for name, image in inside.items()}
        for subject, image in own.items():
            if drf in found.setdefault(subject, {}):
                raise DataError(f"{image.name}: a second image at DRF {drf:g} of one subject; keep one of them")
            found[subject][drf] = image
    whole = [paths for _, paths in sorted(found.items()) if 1.0 in paths and len(paths) > 1]
    if not whole:
        raise DataError(
            f"{folder.name}: no subject with a full and a lower dose; name images 'Full_dose' and '1-20 dose', or "
            "'drf1' and 'drf20', in a folder for each subject"
        )
    return [MultiDose(f"subject-{k + 1:04d}", paths) for k, paths in enumerate(whole)]


def read_dose(path: Path, units: str | None = None) -> DoseImage:
    """An image in SUV.

    Parameters
    ----------
    path : Path
    units : str, optional
        "bqml" or "suv"; None: what the file says.

    Raises
    ------
    DataError
        As `read_volume` and `read_suv_per_value`.
    """
    volume = read_volume(path)
    factor = read_suv_per_value(path, units=units)
    order = np.argmax(np.abs(volume.affine[:3, :3] / np.array(volume.spacing_mm)), axis=1)
    x, y, z = (volume.spacing_mm[k] for k in order)
    return DoseImage(to_canonical(volume.values, volume) * np.float32(factor), (x, y, z))


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS) and path.is_file()


def _images(dose: Path) -> dict[str, Path]:
    """Images in a dose's folder by name; none where it is an image itself."""
    inside = sorted(dose.iterdir()) if dose.is_dir() else []
    niftis = {image_stem(path): path for path in inside if _is_nifti(path)}
    return {**niftis, **{path.name: path for path in inside if path.is_dir()}}
