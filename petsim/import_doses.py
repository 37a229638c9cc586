"""Real scans at several doses as files of a dataset, which denoisers read like simulated ones."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.collections.petct import check_grid
from data_recipes.collections.recipe import DoseCase
from data_recipes.errors import DataError
from data_recipes.readers.common import suv_scale
from data_recipes.readers.nifti import image_stem
from data_recipes.readers.read import read_source
from data_recipes.readers.sidecar import find_sidecar, read_sidecar
from data_recipes.splits import bucket_of
from data_recipes.subject import Subject
from petsim.cache.schema import FLOAT_ROWS, INTEGER_ROWS, SubjectRecord
from petsim.cache.store import sha256_of
from petsim.dataset import versions

KIND = "measured doses"

# What manufacturers call the scanners whose public multi-dose scans there are.
_SCANNERS = (("uexplorer", "uexplorer"), ("quadra", "biograph_vision_quadra"))


def scanner_of(case: DoseCase) -> str:
    """Name of a case's scanner: petsim's own where it is known, else the model as the source writes it, in small letters."""
    path = case.doses.paths[1.0]
    model = case.doses.scanner
    beside = None if path.is_dir() else case.sidecar or find_sidecar(path, image_stem(path))
    if beside is not None:
        model = read_sidecar(beside, path, image_stem(path)).scanner
    plain = re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_")[:40] or "unknown"
    return next((name for part, name in _SCANNERS if part in plain), plain)


def import_doses(case: DoseCase, recipe: str, license: str,
                 report: Callable[[str, float], None] = lambda what, fraction: None) -> SubjectRecord:  # fmt: skip
    """A case as the record of a subject's file.

    Every dose is read with its own times, since a window in the middle of a scan is corrected for decay to its own start:
    images agree in SUV. They are stored in Bq/mL at the start of the full dose. Numbers of counts, which no such
    collection tells, are 0, and NEC is not a number. There is no mu-map: it is 0.

    Parameters
    ----------
    case : DoseCase
    recipe, license : str
    report : callable
        Told what is being read, and the fraction done.

    Raises
    ------
    DataError
        One line: weight, activity or uptake time unknown, doses on different grids or of different isotopes, or what the
        readers refuse.
    """
    drfs = case.doses.drfs
    full = _read(case, 1.0)
    bqml_per_suv = suv_scale(full.injection, case.doses.paths[1.0].name)
    images = np.empty((len(drfs), 1, *full.grid.shape), np.float32)
    images[0, 0] = full.activity_bqml
    warnings = list(full.provenance["warnings"])
    for k, drf in enumerate(drfs[1:], start=1):
        path = case.doses.paths[drf]
        report(path.name, k / len(drfs))
        low = _read(case, drf)
        check_grid(low.grid, full.grid, path.name, "the full dose")
        if low.injection.isotope != full.injection.isotope:
            raise DataError(
                f"{path.name}: isotope {low.injection.isotope}, that of the full dose is {full.injection.isotope}"
            )
        images[k, 0] = low.activity_bqml * np.float32(bqml_per_suv / suv_scale(low.injection, path.name))
        warnings += [w for w in low.provenance["warnings"] if w not in warnings]
    told = {
        "kind": KIND, "recipe": recipe, "license": license, "split_bucket": bucket_of(case.patient),
        "notes": full.provenance["notes"], "warnings": warnings,
    }  # fmt: skip
    shape = (len(drfs), 1)
    doses = {name: np.full(shape, np.nan) for name in FLOAT_ROWS} | {n: np.zeros(shape, np.int64) for n in INTEGER_ROWS}
    configuration: dict[str, Any] = {
        "source": KIND, "recipe": recipe, "scanner": scanner_of(case), "drf": list(drfs), "mode": "window",
        "realizations": 1, "seed": 0,
    }  # fmt: skip
    return SubjectRecord(
        name=full.name,
        shape=full.grid.shape,
        spacing_mm=full.grid.spacing_mm,
        origin_mm=full.grid.origin_mm,
        suv_factor=1.0 / bqml_per_suv,
        drfs=drfs,
        images=images,
        noise_free=None,
        activity=full.activity_bqml,
        mu=np.zeros(full.grid.shape, np.float32),
        labels=None,
        sinogram=None,
        doses=doses,
        label_names={},
        mode="window",
        seed=0,
        configuration=configuration,
        configuration_sha256=sha256_of(configuration),
        provenance={
            "scanner": configuration["scanner"], "full_dose": "measured", "realizations": "measured", "truth_is_noisy": True,
            "counts": "unknown", "mu_source": "none", "duration_s": full.injection.duration_s, "warnings": warnings,
            "source": told, "source_sha256": full.content_sha256, "injection": dataclasses.asdict(full.injection),
        },
        versions=versions(),
        license=license,
        origin=KIND,
    )  # fmt: skip


def _read(case: DoseCase, drf: float) -> Subject:
    path: Path = case.doses.paths[drf]
    return read_source(path, sidecar=None if path.is_dir() else case.sidecar)
