"""Folders that hold the same subjects at several doses, as the Ultra-low Dose PET Imaging Challenge gives them out."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_recipes.errors import DataError
from data_recipes.readers.nifti import ENDINGS, image_stem
from data_recipes.readers.read import read_suv_per_value
from data_recipes.readers.series import find_slices, text
from data_recipes.writers.like import read_volume, to_canonical

_FULL = re.compile(r"(?<![a-z])full[ _-]?dose(?![a-z])")
_FRACTION = re.compile(r"(?<![\d.])1[-_/](\d+(?:\.\d+)?)[ _-]?dose(?![a-z])")
_FACTOR = re.compile(r"(?<![a-z])drf[ _-]?(\d+(?:[.p]\d+)?)")
_LATER = re.compile(r"_real-[1-9]")


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
    def scanner(self) -> str:
        """Model as a DICOM series names it; "unknown" otherwise."""
        folder = self.paths[min(self.paths)]
        found = find_slices(folder)[0] if folder.is_dir() else []
        return (text(found[0], "ManufacturerModelName") if found else "") or "unknown"

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
    """DRF that a file's or folder's name tells: "Full_dose", "1-20 dose", "drf20", "drf-002p5"; None if it tells none.

    The first two are the names in the challenge's releases of 2022 to 2024, in any capitals, the last that of petsim export.
    """
    return _parsed(name)[0]


def _parsed(name: str) -> tuple[float | None, str]:
    """DRF, and the name without it."""
    plain = name.lower()
    found = _FULL.search(plain) or _FRACTION.search(plain) or _FACTOR.search(plain)
    if found is None:
        return None, plain
    drf = float(found.group(1).replace("p", ".")) if found.groups() else 1.0
    return (drf if drf >= 1 else None), (plain[: found.start()] + plain[found.end() :]).strip(" _-.")


def find_multi_dose(folder: Path, paired: bool = True) -> list[MultiDose]:
    """Subjects of a folder, in the order of their names.

    A subject is a folder with a NIfTI file or a DICOM folder for each dose, named by the dose (`dose_in`), at any depth; or
    each dose is a folder, with a NIfTI file or a DICOM folder of the same name for each subject; or all are NIfTI files in
    one folder, whose names are the same but for the dose. Of the realizations of petsim export the first is taken.

    Parameters
    ----------
    folder : Path
    paired : bool
        Leave out subjects without a full and a lower dose.

    Raises
    ------
    DataError
        No such folder, no such subject, or two images for one dose.
    """
    if not folder.is_dir():
        raise DataError(f"{folder.name}: no such folder; check the name")
    named = group_doses(folder, sorted(folder.rglob("*")))
    whole = [paths for _, paths in sorted(named.items()) if not paired or (1.0 in paths and len(paths) > 1)]
    if not whole:
        raise DataError(
            f"{folder.name}: no subject with a full and a lower dose; name images 'Full_dose' and '1-20 dose', or "
            "'drf1' and 'drf20', in a folder for each subject"
        )
    return [MultiDose(f"subject-{k + 1:04d}", paths) for k, paths in enumerate(whole)]


def group_doses(folder: Path, paths: list[Path]) -> dict[tuple[str, ...], dict[float, Path]]:
    """Images by subject and DRF, as of `find_multi_dose`; a subject is what its place below the folder says.

    Parameters
    ----------
    folder : Path
    paths : list of Path
        Files and folders below it that are looked at, in the order of their names.

    Raises
    ------
    DataError
        Two images for one dose of a subject.
    """
    found: dict[tuple[str, ...], dict[float, Path]] = {}
    for path in paths:
        drf, rest = _parsed(image_stem(path) if _is_nifti(path) else path.name)
        if drf is None or not (path.is_dir() or _is_nifti(path)) or _LATER.search(rest):
            continue
        above = path.relative_to(folder).parts[:-1]
        if any(dose_in(part) is not None for part in above):
            continue
        inside = _images(path)
        if not inside:
            own = {(*above, rest) if rest and path.is_file() else above: path}
        elif above and len(inside) == 1:
            # A series in a folder of its own below the dose's, whose name says nothing.
            own = {above: next(iter(inside.values()))}
        else:
            own = {(*above, name): image for name, image in inside.items()}
        for subject, image in own.items():
            if drf in found.setdefault(subject, {}):
                raise DataError(f"{image.name}: a second image at DRF {drf:g} of one subject; keep one of them")
            found[subject][drf] = image
    return found


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
    return DoseImage(to_canonical(volume.values, volume) * np.float32(factor), volume.canonical_spacing_mm)


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS) and path.is_file()


def _images(dose: Path) -> dict[str, Path]:
    """Images in a dose's folder by name; none where it is an image itself."""
    inside = sorted(dose.iterdir()) if dose.is_dir() else []
    niftis = {image_stem(path): path for path in inside if _is_nifti(path)}
    return {**niftis, **{path.name: path for path in inside if path.is_dir()}}
