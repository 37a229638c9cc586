"""Voxel phantoms as raw labels with a table of organs: XCAT, the reference phantoms of ICRP, and one's own."""

import csv
import hashlib
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.collections.folders import files_below, read_gzipped
from data_recipes.collections.recipe import Case, Found, Recipe, Wishes, nothing_found
from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.isotopes import decay_factor, isotope
from data_recipes.phantoms.uptake import MASS_ATTENUATION_CM2_PER_G
from data_recipes.resample import resample, resample_labels
from data_recipes.subject import Injection, Subject
from data_recipes.units import suv_to_bqml

WEIGHT_KG, MBQ_PER_KG, UPTAKE_S = 75.0, 3.0, 3600.0
"""Of a phantom that does not say: they set the scale of its activity, which is given in SUV."""

_TYPES = {"uint8": "<u1", "uint16": "<u2", "int16": "<i2", "float32": "<f4"}
_AXES = (("right", "left"), ("front", "back"), ("head", "feet"))
_DESCRIPTION = "phantom.toml"
_MOST_LABEL = 255


@dataclass(frozen=True)
class Organ:
    """A label's row: SUV by body weight and linear attenuation at 511 keV in 1/cm."""

    name: str
    suv: float
    mu_per_cm: float


def phantom_subject(name: str, labels: np.ndarray, grid: Grid, organs: dict[int, Organ], wishes: Wishes,
                    provenance: dict[str, Any]) -> Subject:  # fmt: skip
    """A labeled volume as a subject: activity and attenuation from a table of organs.

    Parameters
    ----------
    name : str
    labels : ndarray
        uint8 (x, y, z), RAS+.
    grid : Grid
        Of the labels.
    organs : dict
        Label to organ; every label has one.
    wishes : Wishes
        Weight, injected activity and uptake time (else `WEIGHT_KG`, `MBQ_PER_KG`, `UPTAKE_S`), and the voxel: activity and
        mu are then means over it, labels those of its center.
    provenance : dict
    """
    weight = WEIGHT_KG if wishes.weight_kg is None else wishes.weight_kg
    injected = MBQ_PER_KG * weight if wishes.injected_mbq is None else wishes.injected_mbq
    uptake = UPTAKE_S if wishes.uptake_s is None else wishes.uptake_s
    bqml = suv_to_bqml(injected * decay_factor(isotope("F-18"), uptake), weight)
    table = np.zeros((2, _MOST_LABEL + 1), np.float32)
    for label, organ in organs.items():
        table[:, label] = organ.suv * bqml, organ.mu_per_cm
    target = grid
    if wishes.voxel_mm is not None:
        shape = [max(1, math.ceil(extent / wishes.voxel_mm - 1e-6)) for extent in grid.extent_mm]
        target = Grid.centered(
            (shape[0], shape[1], shape[2]), (wishes.voxel_mm, wishes.voxel_mm, wishes.voxel_mm), grid.center_mm
        )
    activity, mu = (resample(values[labels], grid, target) for values in table)
    digest = hashlib.sha256()
    small = labels if target == grid else resample_labels(labels, grid, target)
    for array in (activity, mu, small):
        digest.update(np.ascontiguousarray(array).tobytes())
    stated = {k: getattr(wishes, k) for k in ("weight_kg", "injected_mbq", "uptake_s") if getattr(wishes, k) is not None}
    assumed = "" if len(stated) == 3 else f"{weight:g} kg, {injected:g} MBq and {uptake:g} s are assumed where not stated"
    return Subject(
        name=name, activity_bqml=activity, grid=target, mu_per_cm=mu, mu_source="phantom", labels=small,
        label_names={label: organ.name for label, organ in organs.items()}, content_sha256=digest.hexdigest(),
        injection=Injection("F-18", "FDG", injected, uptake, weight),
        provenance={**provenance, "notes": [*provenance.get("notes", []), *([assumed] if assumed else [])]},
    )  # fmt: skip


def read_organs(path: Path) -> dict[int, Organ]:
    """A table of organs: CSV with the columns label, name, suv, and mu_per_cm or density_g_ml.

    Density becomes mu with 0.096 cm2/g, the mass attenuation of water at 511 keV, from which tissues differ by a few per
    cent (NIST XCOM, doi 10.18434/T48G6X).

    Raises
    ------
    DataError
        A missing column, a value that is none or cannot be, or a label twice.
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: cannot be read as text; check the file") from error
    columns = set(rows[0]) if rows else set()
    attenuation = "mu_per_cm" if "mu_per_cm" in columns else "density_g_ml"
    missing = [c for c in ("label", "name", "suv", attenuation) if c not in columns]
    if missing:
        raise DataError(
            f"{path.name}: no column {missing[0]}; a table of organs has label, name, suv, and mu_per_cm or density_g_ml"
        )
    organs: dict[int, Organ] = {}
    for number, row in enumerate(rows, start=2):
        label = _value(row["label"], path, number, "label", _MOST_LABEL)
        if label != int(label) or int(label) in organs:
            raise DataError(f"{path.name}: line {number}: label {row['label']} is no whole number, or is there twice")
        mu = _value(row[attenuation], path, number, attenuation, 25.0)
        mu *= MASS_ATTENUATION_CM2_PER_G if attenuation == "density_g_ml" else 1.0
        organs[int(label)] = Organ(str(row["name"]).strip(), _value(row["suv"], path, number, "suv", 1000.0), mu)
    return organs


def _value(written: str | None, path: Path, line: int, column: str, most: float) -> float:
    try:
        value = float(str(written))
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise DataError(
            f"{path.name}: line {line}: {column} is '{written}', not a number from 0 to {most:g}; repair the table"
        )
    return value


def find(folder: Path, wishes: Wishes) -> Found:
    """Phantoms described by a phantom.toml each, see the recipe's layout."""
    found = [p for p in files_below(folder) if p.name == _DESCRIPTION]
    if not found:
        raise nothing_found(folder, f"no {_DESCRIPTION}, which tells shape, voxels and axes of a raw volume,")
    cases = []
    for path in found:
        described = _described(path)
        name = "phantom-" + hashlib.sha256(described["name"].encode()).hexdigest()[:8]
        cases.append(Case(described["name"], lambda path=path, name=name: _load(path, name, wishes)))
    return Found(tuple(cases), {"phantoms": len(cases)})


def _described(path: Path) -> dict[str, Any]:
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path.name}: not readable as TOML; repair the file") from error
    wanted = {"name", "labels", "organs", "shape", "spacing_mm", "type", "axes"}
    missing = sorted(wanted - set(said))
    if missing:
        raise DataError(f"{path.name}: {missing[0]} is missing; it needs {', '.join(sorted(wanted))}")
    for key in ("labels", "organs"):
        # No path: what a description names lies beside it.
        if Path(str(said[key])).name != said[key]:
            raise DataError(f"{path.name}: {key} is '{said[key]}', not the name of a file beside it; name one")
    return said


def _numbers(said: dict[str, Any], key: str, path: Path) -> list[float]:
    value = said[key]
    if not (isinstance(value, list) and len(value) == 3 and all(isinstance(v, int | float) and v > 0 for v in value)):
        raise DataError(f"{path.name}: {key} has not three positive numbers; repair it")
    return [float(v) for v in value]


def _load(path: Path, name: str, wishes: Wishes) -> Subject:
    said = _described(path)
    shape = [int(n) for n in _numbers(said, "shape", path)]
    spacing = _numbers(said, "spacing_mm", path)
    if math.prod(shape) > 1 << 30:
        raise DataError(f"{path.name}: {shape} voxels are more than any phantom has; check shape")
    axes = said["axes"]
    if not (isinstance(axes, list) and len(axes) == 3 and all(a in pair for a, pair in zip(axes, _AXES, strict=True))):
        raise DataError(
            f'{path.name}: axes tells where x, y and z grow to, such as ["left", "back", "head"]: left or right, front or '
            "back, head or feet"
        )
    labels = _read_labels(path.with_name(said["labels"]), said["type"], shape)
    labels = labels.reshape(shape[::-1]).transpose(2, 1, 0)
    flipped = tuple(slice(None) if a == pair[0] else slice(None, None, -1) for a, pair in zip(axes, _AXES, strict=True))
    organs = read_organs(path.with_name(said["organs"]))
    unknown = sorted(set(np.unique(labels).tolist()) - set(organs))
    if unknown:
        raise DataError(
            f"{path.with_name(said['organs']).name}: no row for label {unknown[0]} ({len(unknown)} are missing); add it"
        )
    grid = Grid.centered((shape[0], shape[1], shape[2]), (spacing[0], spacing[1], spacing[2]))
    provenance = {"kind": "voxel phantom", "license": str(said.get("license", "unknown: ask whoever gave the source"))}
    return phantom_subject(name, np.ascontiguousarray(labels[flipped]), grid, organs, wishes, provenance)


def _read_labels(path: Path, kind: str, shape: Sequence[int]) -> np.ndarray:
    """Labels in the order of the file, x fastest."""
    count = math.prod(shape)
    if not path.is_file():
        raise DataError(f"{path.name}: no such file beside {_DESCRIPTION}; check the name")
    if kind == "text":
        try:
            values = np.fromstring(path.read_text(encoding="ascii"), sep=" ")
        except (OSError, UnicodeDecodeError, ValueError, DeprecationWarning) as error:
            raise DataError(f"{path.name}: is not text of whole numbers; check type") from error
        if values.size != count:
            raise DataError(f"{path.name}: {values.size:,} labels where {count:,} are expected; check shape and file")
    elif kind in _TYPES:
        dtype = np.dtype(_TYPES[kind])
        values = np.frombuffer(read_gzipped(path, (count * dtype.itemsize,)), dtype)
    else:
        raise DataError(f"{_DESCRIPTION}: type '{kind}' is not known; give text, {', '.join(_TYPES)}")
    if not (
        np.isfinite(values).all() and values.min() >= 0 and values.max() <= _MOST_LABEL and (values == np.rint(values)).all()
    ):
        raise DataError(
            f"{path.name}: has values that are no label from 0 to {_MOST_LABEL}; check type, and the order of bytes"
        )
    return values.astype(np.uint8)


RECIPE = Recipe(
    name="voxel-phantom",
    title="XCAT, ICRP reference phantoms and other raw voxel phantoms with a table of organs",
    layout="""A folder a phantom, with
  phantom.toml   name, labels (file), organs (file), shape [x, y, z], spacing_mm [x, y, z], type (uint8, uint16, int16,
                 float32, little-endian, or text), axes (where x, y and z grow to, such as ["left", "back", "head"]), license
  labels         raw labels from 0 to 255, x fastest, also gzipped (XCAT: organ numbers as values)
  organs         CSV: label, name, suv, and mu_per_cm (1/cm at 511 keV) or density_g_ml; a row for every label
Nothing of this is guessed. Weight, activity and uptake time: --weight-kg, --activity-mbq, --uptake-s.""",
    license="XCAT: by license from its authors' university. ICRP 110: terms of its publisher (not verified here)",
    access="""XCAT: ask its authors (Segars et al. 2010, doi 10.1118/1.3480985) for a license and make label volumes with
its program. ICRP 110 (adult reference voxel phantoms): the electronic supplement of the publication.
Neither can be downloaded by petsim.""",
    find=find,
)
