"""What a new realization of a subject starts from, kept on disk: line integrals, singles and scatter."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_recipes.errors import DataError
from petsim.acquisition import AcquisitionModel
from petsim.cache.store import canonical_json, whole_or_nothing
from petsim.geometry.scanner import Scanner
from petsim.model import Photons
from petsim.physics.scatter import ScatterTable
from petsim.physics.singles import DetectorAreas, Singles

_SINGLES = ("activity_cps", "triggers_cps", "multiple_ratio")
_RATES = ("lutetium_cps", "lutetium_triggers_cps")
_TABLE = ("factors", "first_difference", "detector_z_mm", "tof_bin_mm", "radius_mm")


@dataclass(frozen=True)
class Forward:
    """The forward model's results for one subject.

    Parameters
    ----------
    photons : Photons
    scale : float
        Factor on the duration, see `petsim.model.duration_scale`.
    integrals : ndarray, optional
        float32 (view, radial, tof, plane), mapped from disk: `AcquisitionModel.line_integrals`; None where not kept.
    """

    photons: Photons
    scale: float
    integrals: np.ndarray | None

    def line_integrals(self, views: np.ndarray) -> np.ndarray:
        """Those of some views, in an array of their own."""
        assert self.integrals is not None
        return self.integrals[views]


def write_forward(
    path: Path, key: str, photons: Photons, scale: float, model: AcquisitionModel, groups: Iterable[np.ndarray]
) -> None:
    """Keep what was found for a subject.

    Parameters
    ----------
    path : Path
    key : str
        Of everything that it depends on.
    photons, scale
        See `Forward`.
    model : AcquisitionModel
    groups : iterable of ndarray
        Groups of views whose line integrals are made and kept; none: they are not.
    """
    with whole_or_nothing(path) as temporary, h5py.File(temporary, "w") as f:
        table = photons.scatter
        f.attrs["key"] = key
        f.attrs["values"] = canonical_json({
            "scale": scale,
            "rates": {name: float(getattr(photons.singles, name)) for name in _RATES},
            "table": None if table is None else {name: getattr(table, name) for name in _TABLE},
        })  # fmt: skip
        for name in _SINGLES:
            f[f"singles/{name}"] = getattr(photons.singles, name)
        if table is not None:
            f["scatter"] = table.values
        integrals = None
        for views in groups:
            if integrals is None:
                integrals = f.create_dataset("line_integrals", model.layout.shape, np.float32)
            for view, values in zip(views.tolist(), model.line_integrals(views), strict=True):
                integrals[view] = values
        for dataset in _datasets(f).values():
            dataset.attrs["sha256"] = _sha256(dataset)


def read_forward(path: Path, key: str, scanner: Scanner) -> Forward | None:
    """What was kept under this key; None when it is not there, damaged, or of another key."""
    try:
        with h5py.File(path, "r") as f:
            if f.attrs["key"] != key:
                return None
            values = json.loads(str(f.attrs["values"]))
            arrays = {name: np.asarray(f[f"singles/{name}"]) for name in _SINGLES}
            singles = Singles(areas=DetectorAreas.of(scanner), **arrays, **values["rates"])
            scatter = None
            if values["table"] is not None:
                plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["table"].items()}
                scatter = ScatterTable(values=np.asarray(f["scatter"]), **plain)
            integrals = _mapped(path, f["line_integrals"]) if "line_integrals" in f else None
    except (OSError, KeyError, ValueError, TypeError, DataError):
        return None
    return Forward(Photons(singles, scatter), values["scale"], integrals)


def forward_problem(path: Path) -> str | None:
    """What is wrong with a file of `write_forward`; None for nothing."""
    try:
        with h5py.File(path, "r") as f:
            changed = [name for name, dataset in _datasets(f).items() if dataset.attrs.get("sha256") != _sha256(dataset)]
    except (OSError, KeyError):
        return "cannot be read"
    return f"/{changed[0]} differs from its hash" if changed else None


def _datasets(f: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}
    f.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


def _sha256(dataset: h5py.Dataset) -> str:
    """Hash of all values, a slice of the first axis at a time."""
    digest = hashlib.sha256()
    for part in dataset:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _mapped(path: Path, dataset: Any) -> np.ndarray:
    offset = dataset.id.get_offset()
    if offset is None:
        raise DataError(f"{path.name}: line integrals are missing")
    return np.memmap(path, np.float32, "r", offset, dataset.shape)
