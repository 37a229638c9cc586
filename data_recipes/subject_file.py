"""A whole subject in one HDF5 file (NAME.subject.h5): what recipes make and make-dataset takes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.subject import Injection, Subject

ENDING = ".subject.h5"
_FORMAT = "petsim subject 1"
_MOST_VOXELS = 1 << 30


def write_subject_file(path: Path, subject: Subject) -> None:
    """Write a subject; all of its fields come back bit by bit."""
    told = {
        "name": subject.name, "shape": subject.grid.shape, "spacing_mm": subject.grid.spacing_mm,
        "origin_mm": subject.grid.origin_mm, "injection": dataclasses.asdict(subject.injection),
        "mu_source": subject.mu_source, "label_names": subject.label_names, "is_noisy": subject.is_noisy,
        "fwhm_mm": subject.fwhm_mm, "content_sha256": subject.content_sha256, "provenance": subject.provenance,
    }  # fmt: skip
    with h5py.File(path, "w") as f:
        f.attrs["format"] = _FORMAT
        # A dataset, since attributes end at 64 KB.
        f["subject"] = json.dumps(told, sort_keys=True, allow_nan=False)
        for name, values in (("activity", subject.activity_bqml), ("mu", subject.mu_per_cm), ("labels", subject.labels)):
            if values is not None:
                f.create_dataset(name, data=values, compression="gzip", compression_opts=1, shuffle=True)


def read_subject_file(path: Path) -> Subject:
    """The subject that a file holds.

    Raises
    ------
    DataError
        One line, for a file that is damaged or no subject.
    """
    try:
        with h5py.File(path, "r") as f:
            if f.attrs.get("format") != _FORMAT:
                raise DataError(f"{path.name}: no subject file of this petsim; make it again with petsim recipes prepare")
            told: dict[str, Any] = json.loads(f["subject"][()])  # pyright: ignore
            arrays = {name: _array(f, name, path) for name in ("activity", "mu", "labels")}
            grid = Grid(tuple(told["shape"]), tuple(told["spacing_mm"]), tuple(told["origin_mm"]))
            activity = arrays["activity"]
            if activity is None:
                raise KeyError("activity")
            return Subject(
                name=told["name"], activity_bqml=activity, grid=grid, injection=Injection(**told["injection"]),
                mu_per_cm=arrays["mu"], mu_source=told["mu_source"], labels=arrays["labels"],
                label_names={int(k): v for k, v in told["label_names"].items()}, is_noisy=told["is_noisy"],
                fwhm_mm=None if told["fwhm_mm"] is None else tuple(told["fwhm_mm"]),
                content_sha256=told["content_sha256"], provenance=told["provenance"],
            )  # fmt: skip
    except DataError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path.name}: damaged or no subject file; make it again with petsim recipes prepare") from error


def is_noisy_file(path: Path) -> bool:
    """Whether a subject file holds a measured image; False for phantoms.

    Raises
    ------
    DataError
        As of `read_subject_file`.
    """
    try:
        with h5py.File(path, "r") as f:
            return bool(json.loads(f["subject"][()])["is_noisy"])  # pyright: ignore
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path.name}: damaged or no subject file; make it again with petsim recipes prepare") from error


def _array(f: h5py.File, name: str, path: Path) -> np.ndarray | None:
    if name not in f:
        return None
    stored = f[name]
    if not isinstance(stored, h5py.Dataset) or (stored.size or 0) > _MOST_VOXELS:
        raise DataError(
            f"{path.name}: /{name} is no image of a size that any has; make it again with petsim recipes prepare"
        )
    return stored[()]
