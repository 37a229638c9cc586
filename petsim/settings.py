"""Settings that change numbers. Nothing heavy is imported here, so that `--help` is instant."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from data_recipes.errors import UsageError
from petsim.presets import GRIDS, PRESETS, Preset

DoseMode = Literal["thin", "window", "dose"]
ScatterModel = Literal["simulated", "monte-carlo", "none"]
RandomsModel = Literal["simulated", "none"]
CorrectionKind = Literal["estimated", "oracle"]
FullDose = Literal["source", "simulated"]


DRF_SETS = {
    "map-diff": (2.0, 4.0, 10.0, 20.0),
    "udpet": (4.0, 10.0, 20.0, 50.0, 100.0),
    "unipet": (2.0, 3.0, 6.0, 12.0),
}


def check_drfs(drfs: Sequence[float]) -> None:
    """Refuse dose reduction factors below 1, not finite, or given twice: files and tables name them with six digits."""
    for d in drfs:
        if not math.isfinite(d) or d < 1:
            raise UsageError(f"--drf: {d:g} is not a dose reduction factor; it must be 1 (full dose) or more")
    names = [f"{d:g}" for d in drfs]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise UsageError(f"--drf: {', '.join(twice)} is given twice; name every factor once")


@dataclass(frozen=True)
class SimulationSettings:
    """Everything besides the subject that the numbers depend on.

    Parameters
    ----------
    drf : tuple of float
        Dose reduction factors; 1 is always added.
    scanner : str
        Name of a scanner, or a TOML file.
    mode : str
        How counts are reduced: "thin" (a shorter scan at the rates of the full dose), "window" (the middle of the scan) or
        "dose" (a lower injected activity).
    preset : str
        Name in `PRESETS`.
    seed : int
    realizations : int
        Independent noise realizations a dose.
    full_dose : str
        "source": DRF 1 is the source image and noise is inserted for lower doses; "simulated": DRF 1 is reconstructed.
    duration_s : float, optional
        Scan duration; None: the source's, else the scanner's protocol.
    counts : float, optional
        Expected prompts at full dose; None: from activity, duration and sensitivity.
    fov_mm : float, optional
        Transaxial field of view; None: what the subject needs.
    voxel_mm, iterations, subsets, filter_mm : optional
        Override the preset.
    center_mm, slab_mm : float, optional
        Axial position (the subject's coordinates) that lies at the scanner's center, and the axial length simulated.
    efficiency_spread : float
        Relative standard deviation of crystal efficiencies.
    rays : int
        Rays a crystal pair in each direction, transaxial and axial, in the simulation.
    scatter : str
        Scatter in the data: "simulated" (single scatter simulation plus multiple scatter), "monte-carlo", or "none".
    randoms : str
        Randoms, 176Lu background and dead time in the data: "simulated" or "none".
    corrections : str
        Randoms, scatter, normalization and mu-map in the reconstruction: "estimated" from the noisy data of each dose and
        realization, as a scanner does, or "oracle" for the true ones.
    photons : int
        Decays of the photon Monte Carlo that gives singles, dead time and multiple scatter.
    drift : float
        Relative standard deviation between the true crystal efficiencies and those used.
    mu_shift : float
        Scale of the random shift between the true mu-map and the one used; 0 for none, 1 for the usual one.
    truncation_mm : float, optional
        Diameter beyond which the mu-map in use knows nothing.
    psf : bool
        Model the point spread function in the reconstruction.
    respiratory_mm : float
        Amplitude of breathing, from end of expiration to end of inspiration, that blurs the data along the axis; see
        `petsim.physics.breathing`.
    vary : bool
        Draw a way of scanning and reconstruction for every subject, see `petsim.vary`.
    backend : str
        What projects: "auto", "numba", "cuda" (equal but for rounding) or "parallelproj". With "cuda" the photon Monte
        Carlo runs on the GPU too, else on the CPU.
    beds : int or "auto", optional
        Bed positions, see `petsim.beds`; "auto": as many as hold the subject. None: one field of view.
    bed_overlap : float, optional
        Of neighboring positions, as a fraction of the axial field of view; None: the scanner's usual one.
    grid : str, optional
        Public grid (`petsim.presets.GRIDS`) to which images are resampled; None: that of the reconstruction.
    """

    drf: tuple[float, ...] = (4.0, 10.0, 20.0, 100.0)
    scanner: str = "biograph_vision_quadra"
    mode: DoseMode = "thin"
    preset: str = "standard"
    seed: int = 0
    realizations: int = 1
    full_dose: FullDose = "simulated"
    duration_s: float | None = None
    counts: float | None = None
    fov_mm: float | None = None
    voxel_mm: float | None = None
    iterations: int | None = None
    subsets: int | None = None
    filter_mm: float | None = None
    center_mm: float | None = None
    slab_mm: float | None = None
    efficiency_spread: float = 0.05
    rays: int = 2
    scatter: ScatterModel = "simulated"
    randoms: RandomsModel = "simulated"
    corrections: CorrectionKind = "estimated"
    photons: int = 500_000
    drift: float = 0.01
    mu_shift: float = 1.0
    truncation_mm: float | None = None
    psf: bool = True
    respiratory_mm: float = 0.0
    vary: bool = False
    backend: str = "auto"
    beds: int | Literal["auto"] | None = None
    bed_overlap: float | None = None
    grid: str | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UsageError(f"--preset: '{self.preset}' is not known; known are {', '.join(PRESETS)}")
        positive = ("duration_s", "counts", "fov_mm", "voxel_mm", "iterations", "subsets", "slab_mm", "realizations", "rays",
                    "photons", "truncation_mm")  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"--{name.removesuffix('_mm' if name == 'slab_mm' else '').replace('_', '-')}: "
                                 f"must be positive, got {value:g}")  # fmt: skip
        if self.filter_mm is not None and self.filter_mm < 0:
            raise UsageError(f"--filter-mm: must be 0 or more, got {self.filter_mm:g}")
        for name in ("efficiency_spread", "drift", "mu_shift", "respiratory_mm"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name.replace('_', '-')}: must be 0 or more, got {getattr(self, name):g}")
        self._check_beds()
        if self.grid is not None and self.grid not in GRIDS:
            raise UsageError(f"--grid: '{self.grid}' is not known; known are {', '.join(GRIDS)}")

    def _check_beds(self) -> None:
        if self.beds is None:
            if self.bed_overlap is not None:
                raise UsageError("--bed-overlap: says nothing without --beds; give --beds auto, or leave it out")
            return
        if self.beds != "auto" and (not isinstance(self.beds, int) or self.beds < 1):
            raise UsageError(f"--beds: must be auto or a number of bed positions, got {self.beds}")
        if self.bed_overlap is not None and not 0 <= self.bed_overlap <= 0.9:
            raise UsageError(f"--bed-overlap: must be a part of the field of view, 0 to 0.9, got {self.bed_overlap:g}")
        given = [flag for flag, value in (("--center-mm", self.center_mm), ("--slab", self.slab_mm)) if value is not None]
        if given:
            raise UsageError(f"{' and '.join(given)}: --beds lays out the bed positions itself; leave one of them out")
        if self.counts is not None:
            raise UsageError("--counts: with --beds, say how long each position takes with --duration-s instead")

    def as_json(self) -> dict[str, Any]:
        """Fields by name; those that came later are left out at their default, so that hashes of older datasets hold."""
        later = ("beds", "bed_overlap", "grid")
        return {k: v for k, v in asdict(self).items() if k not in later or v is not None}

    def ladder(self) -> tuple[float, ...]:
        """DRFs in ascending order, 1 first."""
        return tuple(sorted({1.0, *self.drf}))

    @property
    def live_fractions(self) -> int:
        """How many different live fractions the doses have: one each where singles fall with the dose."""
        return len(self.ladder()) if self.mode == "dose" and self.randoms != "none" else 1

    def resolved_preset(self) -> Preset:
        """The preset with the overrides put in."""
        p = PRESETS[self.preset]
        voxel = self.voxel_mm or p.voxel_mm
        return replace(
            p, voxel_mm=voxel, simulation_voxel_mm=min(p.simulation_voxel_mm, voxel),
            iterations=self.iterations or p.iterations, subsets=self.subsets or p.subsets,
            filter_mm=p.filter_mm if self.filter_mm is None else self.filter_mm,
        )  # fmt: skip

    @property
    def finds_scatter(self) -> bool:
        """Whether the reconstruction of simulated counts finds scatter for itself, in its first iteration."""
        return self.corrections == "estimated" and self.scatter != "none"

    @property
    def models_psf(self) -> bool:
        """Whether the reconstruction models the point spread function: where settings and preset both want it."""
        return self.psf and PRESETS[self.preset].psf


ESTIMATE = "estimate"
"""Normalization of raw data that is estimated from its delayeds."""


@dataclass(frozen=True)
class ReadOptions:
    """How sources are read; `None` leaves a value to the source.

    Parameters
    ----------
    units : str, optional
        "bqml" or "suv".
    sidecar : str, optional
        JSON or CSV beside a NIfTI file.
    fwhm_mm : float, optional
        Resolution that the image has.
    weight_kg, injected_mbq, uptake_s : float, optional
    ct, mu : str, optional
        CT or mu-map of the subject; for raw data in the scanner's coordinates, whose origin is its center.
    ct_kvp : float, optional
    ct_without_table : bool
        Take the couch out of the CT.
    normalization : str, optional
        Of raw data: NumPy file (.npy) of crystal efficiencies (crystals_per_ring, rings), or "estimate" for those from the
        delayeds; None: all crystals alike.
    """

    units: str | None = None
    sidecar: str | None = None
    fwhm_mm: float | None = None
    weight_kg: float | None = None
    injected_mbq: float | None = None
    uptake_s: float | None = None
    ct: str | None = None
    mu: str | None = None
    ct_kvp: float | None = None
    ct_without_table: bool = False
    normalization: str | None = None

    def files(self) -> dict[str, str]:
        """Paths that are read beside the source, by option."""
        names = ("sidecar", "ct", "mu") + (() if self.normalization == ESTIMATE else ("normalization",))
        return {name: path for name in names if (path := getattr(self, name))}
