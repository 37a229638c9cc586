"""What a recipe is: a public layout of files, how to get them, and what they become."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_recipes.collections.multi_dose import MultiDose
from data_recipes.errors import DataError
from data_recipes.subject import Subject


@dataclass(frozen=True)
class Download:
    """An open file.

    Parameters
    ----------
    url : str
        https.
    file : str
        Name that it gets.
    checksum : str
        "sha256:..." or "md5:...", as its source publishes it.
    bytes : int, optional
        Its size; None where the source was not seen to tell it.
    """

    url: str
    file: str
    checksum: str
    bytes: int | None = None


@dataclass(frozen=True)
class Wishes:
    """What the user states for a whole folder; None or empty where nothing. Units as in `Injection`.

    Parameters
    ----------
    weight_kg, injected_mbq, uptake_s : float, optional
        For sources that do not tell them.
    ct_kvp : float, optional
        Tube voltage of CTs that do not tell theirs.
    voxel_mm : float, optional
        Voxel of phantoms, which come finer than any image.
    frames : tuple of int, optional
        First and last frame, from 1 on, that are averaged of a dynamic image.
    skip : tuple of str
        Folders or files that are left out, by name.
    """

    weight_kg: float | None = None
    injected_mbq: float | None = None
    uptake_s: float | None = None
    ct_kvp: float | None = None
    voxel_mm: float | None = None
    frames: tuple[int, int] | None = None
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One subject of a folder, not read yet.

    Parameters
    ----------
    patient : str
        What the source calls the patient: it decides on the split, and is stored nowhere.
    load : callable
        Gives the `Subject`.
    """

    patient: str
    load: Callable[[], Subject]


@dataclass(frozen=True)
class DoseCase:
    """One patient's scan at several doses, not read yet.

    Parameters
    ----------
    patient : str
        As of `Case`.
    doses : MultiDose
    sidecar : Path, optional
        Table or JSON that goes with its images.
    """

    patient: str
    doses: MultiDose
    sidecar: Path | None = None


@dataclass(frozen=True)
class Found:
    """What a folder was found to hold.

    Parameters
    ----------
    cases : tuple
        `Case` or `DoseCase`, in the order of their names.
    counts : dict
        What was counted, by name.
    notes : tuple of str
        What was left out and why, what is assumed.
    """

    cases: tuple[Case, ...] | tuple[DoseCase, ...]
    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A public collection or layout.

    Parameters
    ----------
    name : str
        On the command line.
    title, layout, license, access : str
        For people; `access` tells how to get the files. What was not verified says so.
    find : callable, optional
        (folder, wishes) -> `Found`; raises `DataError` for what the layout does not allow. None: raw data, which
        `petsim thin` and make-dataset read as they are.
    gives : str
        "subjects" or "doses"; "raw" without `find`.
    downloads : tuple of Download
        Empty where files come by agreement, or where no checksum of them is known.
    """

    name: str
    title: str
    layout: str
    license: str
    access: str
    find: Callable[[Path, Wishes], Found] | None
    gives: Literal["subjects", "doses", "raw"] = "subjects"
    downloads: tuple[Download, ...] = ()


def nothing_found(folder: Path, wanted: str) -> DataError:
    """The error of a folder that holds nothing of a layout."""
    return DataError(
        f"{folder.name}: {wanted} was not found in it; give the folder that holds the data (petsim recipes show)"
    )
