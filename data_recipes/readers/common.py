"""What the readers of images share: orientation, stated values, and the making of the `Subject`."""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from data_recipes.isotopes import decay_factor, isotope
from data_recipes.subject import Injection, Subject, check_activity
from data_recipes.units import suv_to_bqml

UNITS = ("bqml", "suv")
# A subject's image holds less than what was injected (excretion, parts outside the field of view).
PLAUSIBLE_FRACTION = (0.3, 1.05)
# Clinical PET images are sampled at about two thirds of their resolution.
FWHM_PER_VOXEL = 1.5


@dataclass(frozen=True)
class Stated:
    """What the user states about a source; it wins over tags and sidecars. Units as in `Injection`."""

    units: str | None = None
    fwhm_mm: float | tuple[float, float, float] | None = None
    weight_kg: float | None = None
    injected_mbq: float | None = None
    uptake_s: float | None = None
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if self.units is not None and self.units not in UNITS:
            raise UsageError(f"--source-units: '{self.units}' is not known; give bqml or suv")
        for flag, value in (("--weight-kg", self.weight_kg), ("--activity-mbq", self.injected_mbq),
                            ("--duration-s", self.duration_s)):  # fmt: skip
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{flag}: {value} is not a positive number")
        if self.uptake_s is not None and not (math.isfinite(self.uptake_s) and self.uptake_s >= 0):
            raise UsageError(f"--uptake-s: {self.uptake_s} is not a number of seconds, 0 or more")
        if self.fwhm_mm is not None:
            widths = np.ravel(self.fwhm_mm)
            if widths.size not in (1, 3) or not np.isfinite(widths).all() or widths.min() < 0:
                raise UsageError(f"--source-fwhm-mm: {self.fwhm_mm} is not one or three widths in mm, 0 or more")

    def over(self, injection: Injection) -> Injection:
        """`injection` with the stated values in place of its own."""
        given = {
            name: value
            for name in ("weight_kg", "injected_mbq", "uptake_s", "duration_s")
            if (value := getattr(self, name)) is not None
        }
        return replace(injection, **given)


def to_canonical(values: np.ndarray, affine: np.ndarray, where: str) -> tuple[np.ndarray, Grid]:
    """Reorder and flip axes to RAS+ with positive spacing.

    Parameters
    ----------
    values : ndarray
        3D image.
    affine : ndarray
        4 x 4, voxel index to RAS+ mm.
    where : str
        File name for messages.

    Returns
    -------
    tuple
        float32 (x, y, z) and its `Grid`.

    Raises
    ------
    DataError
        When the axes are oblique: over the whole image a voxel would be off by more than half its size.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"{where}: the affine is not invertible; write the image with a valid orientation")
    turn = io_orientation(affine)
    upright = affine @ inv_ornt_aff(turn, values.shape)
    turned = apply_orientation(values, turn)
    matrix = upright[:3, :3]
    spacing = np.diag(matrix)
    drift = np.abs(matrix - np.diag(spacing)) * np.asarray(turned.shape)
    if (drift > 0.5 * np.abs(spacing)[:, None]).any():
        raise DataError(
            f"{where}: the image axes are oblique to the patient axes (affine); resample it to an upright grid first"
        )
    x, y, z = (float(v) for v in spacing)
    ox, oy, oz = (float(v) for v in upright[:3, 3])
    nx, ny, nz = turned.shape
    return np.ascontiguousarray(turned, np.float32), Grid((nx, ny, nz), (x, y, z), (ox, oy, oz))


def suv_scale(injection: Injection, where: str) -> float:
    """Bq/mL at scan start that one SUV stands for; refused when weight, activity or uptake time is unknown."""
    missing = [
        f"{what} ({flag})"
        for what, flag, value in (
            ("body weight", "--weight-kg", injection.weight_kg),
            ("injected activity", "--activity-mbq", injection.injected_mbq),
            ("uptake time", "--uptake-s", injection.uptake_s),
        )
        if value is None
    ]
    if missing or injection.injected_mbq is None or injection.uptake_s is None or injection.weight_kg is None:
        raise DataError(f"{where}: SUV becomes Bq/mL only with {', '.join(missing)}; give what is missing")
    left = decay_factor(isotope(injection.isotope), injection.uptake_s)
    return suv_to_bqml(injection.injected_mbq * left, injection.weight_kg)


def content_hash(values: np.ndarray, facts: dict[str, Any]) -> str:
    """SHA-256 of the voxels (little-endian float32, C order) and of the facts that give them meaning."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(values, "<f4").tobytes())
    return digest.hexdigest()


def make_subject(activity_bqml: np.ndarray, grid: Grid, injection: Injection, stated: Stated, sha256: str,
                 provenance: dict[str, Any], where: str) -> Subject:  # fmt: skip
    """The `Subject` of a measured image.

    Adds to `provenance`: `source_fwhm` (given or estimated), `fraction_in_image` (activity in the image over injected
    activity decayed to scan start), and a warning where that fraction is implausible.

    Parameters
    ----------
    activity_bqml : ndarray
        float32 (x, y, z), Bq/mL at scan start.
    grid : Grid
        Its grid.
    injection : Injection
        After the user's statements.
    stated : Stated
        For the resolution.
    sha256 : str
        Hash of the content.
    provenance : dict
        JSON types only; `notes` and `warnings` are lists of strings.
    where : str
        File name for messages.
    """
    check_activity(activity_bqml, where)
    if stated.fwhm_mm is None:
        across = FWHM_PER_VOXEL * max(grid.spacing_mm[:2])
        fwhm = (across, across, FWHM_PER_VOXEL * grid.spacing_mm[2])
        provenance = provenance | {"source_fwhm": "estimated from the voxel size"}
    else:
        x, y, z = (float(v) for v in np.broadcast_to(np.ravel(stated.fwhm_mm), 3))
        fwhm = (x, y, z)
        provenance = provenance | {"source_fwhm": "given"}
    subject = Subject(
        name=f"subject-{sha256[:8]}",
        activity_bqml=activity_bqml,
        grid=grid,
        injection=injection,
        is_noisy=True,
        fwhm_mm=fwhm,
        content_sha256=sha256,
        provenance=provenance,
    )
    at_scan = subject.activity_at_scan_mbq()
    if at_scan is None:
        return subject
    fraction = subject.total_mbq() / at_scan
    warnings = list(provenance.get("warnings", []))
    low, high = PLAUSIBLE_FRACTION
    if not low <= fraction <= high:
        warnings.append(
            f"the image holds {fraction:.3g} of the injected activity (decayed to scan start), not {low} to {high}: "
            "check units, injected activity and times, unless the image shows a part of the body only"
        )
    return replace(subject, provenance=provenance | {"fraction_in_image": fraction, "warnings": warnings})
