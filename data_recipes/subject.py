"""What every source of data yields."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.isotopes import decay_factor, isotope
from data_recipes.units import suv_to_bqml


@dataclass(frozen=True)
class Injection:
    """The tracer and how it was given.

    `None` means that the source does not say; a protocol or a flag then has to.

    Parameters
    ----------
    isotope : str
        Name known to `data_recipes.isotopes`.
    tracer : str
        Such as "FDG".
    injected_mbq : float, optional
        Activity in MBq at the time of injection.
    uptake_s : float, optional
        Seconds from injection to scan start.
    weight_kg : float, optional
        Body weight in kg.
    duration_s : float, optional
        Seconds for which one place of the body was measured (a bed position or the whole scan).
    """

    isotope: str = "F-18"
    tracer: str = "FDG"
    injected_mbq: float | None = None
    uptake_s: float | None = None
    weight_kg: float | None = None
    duration_s: float | None = None


@dataclass(frozen=True)
class Subject:
    """One patient or phantom.

    Parameters
    ----------
    name : str
        A neutral name that identifies nobody, such as "phantom-0003".
    activity_bqml : ndarray
        float32 (x, y, z): activity concentration in Bq/mL, decay-corrected to scan start.
    grid : Grid
        Where the voxels lie; shared by all arrays of the subject.
    injection : Injection
        Tracer, activity, weight and times.
    mu_per_cm : ndarray, optional
        float32 (x, y, z): linear attenuation coefficient at 511 keV in 1/cm; None when the source has none.
    mu_source : str, optional
        How it was found: "phantom", "pet_contour", "ct" or "given".
    labels : ndarray, optional
        uint8 (x, y, z): organ labels.
    label_names : dict
        Label value to organ name.
    is_noisy : bool
        True for measured images: their noise is not truth.
    fwhm_mm : tuple of float, optional
        Resolution that the image already has, by axis, in mm; None for a phantom.
    content_sha256 : str
        Hash of the source's content (never of its path).
    provenance : dict
        How the source was read, JSON types only: kind, license, origin, notes, warnings. No names, dates or paths.
    """

    name: str
    activity_bqml: np.ndarray
    grid: Grid
    injection: Injection
    mu_per_cm: np.ndarray | None = None
    mu_source: str | None = None
    labels: np.ndarray | None = None
    label_names: dict[int, str] = field(default_factory=dict)
    is_noisy: bool = False
    fwhm_mm: tuple[float, float, float] | None = None
    content_sha256: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_activity(self.activity_bqml, self.name)
        for what, array in (("activity", self.activity_bqml), ("mu", self.mu_per_cm), ("labels", self.labels)):
            if array is not None and array.shape != self.grid.shape:
                raise DataError(f"{self.name}: {what} has shape {array.shape} but its grid has {self.grid.shape}")
        if self.mu_per_cm is not None and not (np.isfinite(self.mu_per_cm).all() and self.mu_per_cm.min() >= 0):
            raise DataError(f"{self.name}: the mu-map has NaN, infinite or negative values; it must be in 1/cm, >= 0")

    def activity_at_scan_mbq(self) -> float | None:
        """Injected activity decayed to scan start in MBq, or None when the source does not say."""
        inj = self.injection
        if inj.injected_mbq is None or inj.uptake_s is None:
            return None
        return inj.injected_mbq * decay_factor(isotope(inj.isotope), inj.uptake_s)

    def suv_factor(self) -> float | None:
        """SUV for 1 Bq/mL, or None when weight, activity or uptake time is unknown."""
        at_scan = self.activity_at_scan_mbq()
        if at_scan is None or self.injection.weight_kg is None:
            return None
        return 1.0 / suv_to_bqml(at_scan, self.injection.weight_kg)

    def total_mbq(self) -> float:
        """Activity inside the image in MBq."""
        return float(self.activity_bqml.sum(dtype=np.float64)) * self.grid.voxel_ml * 1e-6


def check_activity(activity_bqml: np.ndarray, where: str) -> None:
    """Refuse activity that no patient can have: not 3D, NaN, infinite, negative, or nothing at all."""
    if activity_bqml.ndim != 3:
        raise DataError(f"{where}: a 3D image is needed, got {activity_bqml.ndim} dimensions; give one frame or volume")
    if not np.isfinite(activity_bqml).all():
        raise DataError(f"{where}: activity has NaN or infinite voxels; replace them before simulating")
    if activity_bqml.min() < 0:
        raise DataError(f"{where}: activity has negative voxels (lowest {activity_bqml.min():g} Bq/mL); clip at 0 first")
    if activity_bqml.max() == 0:
        raise DataError(f"{where}: activity is zero everywhere; check units and file")
