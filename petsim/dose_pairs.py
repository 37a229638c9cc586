"""Subjects at a full and at lower doses, whether they lie in a dataset of petsim or in a folder of images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_recipes.collections.multi_dose import MultiDose, find_multi_dose, read_dose
from data_recipes.errors import DataError
from petsim.cache.store import INDEX, SubjectFile, read_index

_SAME = 1e-3
"""Voxel edges that differ by less than this part are the same, written with other digits."""


@dataclass(frozen=True)
class Labels:
    """What a subject's voxels are.

    Parameters
    ----------
    values : ndarray
        uint8 (x, y, z).
    names : dict
        Label to name.
    """

    values: np.ndarray
    names: dict[int, str]


@dataclass(frozen=True)
class DoseImages:
    """A subject's images, read when they are asked for.

    Parameters
    ----------
    name : str
        Neutral.
    drfs : tuple of float
        Of the lower doses, ascending.
    realizations : int
    spacing_mm : tuple of float
        Voxel edges (x, y, z).
    labels : callable or None
        () -> `Labels`; None where there are none.
    image : callable
        (DRF, realization) -> float32 (x, y, z), all in one unit, on one grid and finite; DRF 1 is the full dose. Raises
        `DataError`.
    """

    name: str
    drfs: tuple[float, ...]
    realizations: int
    spacing_mm: tuple[float, float, float]
    labels: Callable[[], Labels] | None
    image: Callable[[float, int], np.ndarray]


@dataclass(frozen=True)
class Collection:
    """Subjects of one scanner and one way of reconstruction.

    Parameters
    ----------
    subjects : tuple of DoseImages
    simulated : bool
        They are a dataset that petsim simulated, and neither recorded data nor real images at several doses.
    mode : str
        Dose mode of a dataset, "" else.
    full_prompts, duration_s, filter_mm : float or None
        Of a dataset, as far as its subjects agree and they are known: mean prompts at full dose, scan duration, FWHM
        of the post-filter.
    left_out : tuple of str
        Names of subjects whose body is cut off at the sides of the image: their noise is none of a whole scan.
    """

    subjects: tuple[DoseImages, ...]
    simulated: bool
    mode: str = ""
    full_prompts: float | None = None
    duration_s: float | None = None
    filter_mm: float | None = None
    left_out: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edges of all subjects."""
        return self.subjects[0].spacing_mm

    @property
    def drfs(self) -> list[float]:
        """DRFs of any subject, ascending."""
        return sorted({d for s in self.subjects for d in s.drfs})


def open_collection(folder: Path, units: str | None = None) -> Collection:
    """A dataset of make-dataset, or a folder as `data_recipes.collections.multi_dose` reads it.

    Parameters
    ----------
    folder : Path
    units : str, optional
        "bqml" or "suv", of NIfTI images that do not say.

    Raises
    ------
    DataError
        No such folder, no subject with a full and a lower dose, or voxels of more than one size.
    """
    if (folder / INDEX).is_file():
        found = _dataset(folder)
    else:
        found = Collection(tuple(_of_files(s, units) for s in find_multi_dose(folder)), simulated=False)
    for subject in found.subjects:
        if not np.allclose(subject.spacing_mm, found.spacing_mm, rtol=_SAME):
            raise DataError(
                f"{subject.name}: voxels of {_size(subject.spacing_mm)} mm, those of {found.subjects[0].name} are "
                f"{_size(found.spacing_mm)} mm; calibrate one scanner and one reconstruction at a time"
            )
    return found


def _size(spacing_mm: tuple[float, ...]) -> str:
    return " x ".join(f"{d:.4g}" for d in spacing_mm)


def _dataset(folder: Path) -> Collection:
    subjects, prompts, durations, filters, modes, real, left_out = [], [], set(), set(), set(), False, []
    for entry in read_index(folder)["subjects"]:
        path = folder / entry["file"]
        with SubjectFile(path) as f:
            drfs = f.drfs
            if len(drfs) < 2:
                continue
            if f.is_truncated:
                left_out.append(f.name)
                continue
            subjects.append(_of_hdf5(path, f))
            prompts.append(float(f.doses()["prompts"][0].mean()))
            provenance = f.json("provenance")
            durations.add(provenance.get("duration_s"))
            filters.add(provenance.get("reconstruction", {}).get("post_filter_fwhm_mm"))
            modes.add(str(f.h5["doses"].attrs["mode"]))
            real |= provenance.get("full_dose") in ("recorded", "measured")
    if not subjects and left_out:
        raise DataError(f"{folder.name}: the body of every subject is cut off at the sides of its image, which serves no "
                        "figure of noise; give whole images")  # fmt: skip
    if not subjects:
        raise DataError(f"{folder.name}: no subject with a lower dose; make the dataset with --drf 4 10 20")
    return Collection(
        tuple(subjects), not real, "/".join(sorted(modes)), float(np.mean(prompts)) or None,
        durations.pop() if len(durations) == 1 else None, filters.pop() if len(filters) == 1 else None, tuple(left_out),
    )  # fmt: skip


def _of_hdf5(path: Path, f: SubjectFile) -> DoseImages:
    drfs, name = f.drfs, f.name

    def labels() -> Labels:
        with SubjectFile(path) as opened:
            return Labels(opened.dataset("truth/labels")[()], opened.label_names)

    def image(drf: float, realization: int) -> np.ndarray:
        with SubjectFile(path) as opened:
            return _finite(opened.image(drfs.index(drf), realization), name, drf)

    return DoseImages(name, tuple(drfs[1:]), f.dataset("recon").shape[1], f.spacing_mm,
                      labels if "truth/labels" in f.h5 else None, image)  # fmt: skip


def _of_files(subject: MultiDose, units: str | None) -> DoseImages:
    full = read_dose(subject.paths[1.0], units)
    shape, spacing_mm = full.suv.shape, full.spacing_mm
    del full

    def image(drf: float, _: int) -> np.ndarray:
        found = read_dose(subject.paths[drf], units)
        if found.suv.shape != shape or not np.allclose(found.spacing_mm, spacing_mm, rtol=_SAME):
            raise DataError(
                f"{subject.name}: the image at DRF {drf:g} has {found.suv.shape} voxels of {_size(found.spacing_mm)} mm, "
                f"the full dose {shape} of {_size(spacing_mm)} mm; give images on one grid"
            )
        return _finite(found.suv, subject.name, drf)

    return DoseImages(subject.name, subject.drfs[1:], 1, spacing_mm, None, image)


def _finite(image: np.ndarray, name: str, drf: float) -> np.ndarray:
    if not np.isfinite(image).all():
        raise DataError(f"{name}: the image at DRF {drf:g} has NaN or infinite voxels; leave the subject out")
    return image
