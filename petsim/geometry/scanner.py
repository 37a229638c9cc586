"""PET scanners, read from TOML files that cite a source for every field."""

import difflib
import math
import tomllib
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError, UsageError

SPEED_OF_LIGHT_MM_PER_PS = 0.299792458

CRYSTAL_MATERIALS = ("LSO", "LYSO", "BGO")
PHOTOSENSORS = ("SiPM", "PMT", "APD")

CONTRAST_FIELDS = (
    "contrast_recovery_percent", "contrast_cold_mm", "contrast_background_bqml", "contrast_duration_s", "contrast_preset",
)  # fmt: skip
"""Of a published image quality test. No simulation depends on them."""


@dataclass(frozen=True)
class Scanner:
    """A PET scanner whose crystals lie on rings, round or polygonal.

    Gaps between blocks count as virtual crystals: they take part in every index but detect nothing, so that vendors'
    bin addresses map one to one. In a block the real crystals come first.

    Parameters
    ----------
    name, title : str
        Name on the command line, and in full.
    inner_radius_mm, interaction_depth_mm : float
        Distance of the crystals' front face from the axis, and mean depth of interaction; LOR ends lie at the sum of both.
    crystals_per_ring, rings : int
        Virtual crystals included.
    ring_spacing_mm : float
        Axial distance of neighboring rings in mm.
    transaxial_block, transaxial_block_real, axial_block, axial_block_real : int
        Crystals (rings) from one gap to the next, and how many of them are real.
    view_offset_rad : float
        Angle at which crystal 0 begins.
    transaxial_pitch_mm : float, optional
        Distance of neighboring crystals on a flat side of a polygonal scanner, one side a transaxial block; None: the
        crystals are spread evenly over a circle.
    axial_gap_mm : float
        What neighboring rings of two axial blocks are farther apart than `ring_spacing_mm`, where no virtual ring fills it.
    crystal_size_mm : tuple
        Transaxial, axial and radial size of a crystal.
    crystal_material : str
        A key of `CRYSTAL_MATERIALS`.
    max_ring_difference : int
        Acceptance for which `sensitivity_cps_per_kbq` holds, in rings (virtual ones counted).
    readout_block : tuple of int, optional
        Crystals (transaxial, axial) that are read out together.
    energy_block : tuple of int, optional
        Crystals (transaxial, axial) whose energies are added before the window is applied; None: those of
        `readout_block`.
    photosensor : str, optional
        A key of `PHOTOSENSORS`.
    axial_fov_mm : float, optional
        Published axial field of view; `axial_length_mm` is that of the rings.
    radial_bins : int, optional
        Radial bins of the vendor's sinogram.
    energy_resolution : float, optional
        Relative full width at half maximum at 511 keV.
    energy_window_kev : tuple, optional
        Lower and upper threshold.
    coincidence_window_ns : float, optional
        Full width: the largest difference of the two arrival times, counted in both directions.
    tof_fwhm_ps : float, optional
        Coincidence timing resolution; None for a scanner without TOF.
    tof_bin_ps, tof_bins : float and int, optional
        Finest TOF bin (time difference of the two photons) and the number of such bins.
    resolution_fwhm_mm : tuple, optional
        NEMA NU 2 resolution at 1 cm along x, y (mean of radial and tangential) and z.
    sensitivity_cps_per_kbq : float, optional
        NEMA NU 2 sensitivity of a 70 cm line source at the center.
    scatter_fraction : float, optional
        NEMA NU 2 scatter fraction, between 0 and 1.
    peak_necr_kcps, peak_necr_kbqml : float, optional
        Peak of the NEMA NU 2 noise equivalent count rate (70 cm phantom), and the activity concentration of the peak. None
        as well where no peak was reached.
    contrast_recovery_percent : tuple, optional
        NEMA NU 2 contrast recovery of the spheres of 10, 13, 17, 22, 28 and 37 mm at 4:1. Only with the reconstruction that
        gave it; what follows goes with it.
    contrast_cold_mm : tuple, optional
        Diameters of spheres that held water without activity, as before NU 2-2018.
    contrast_background_bqml, contrast_duration_s : float, optional
        Concentration in the background at scan start, and scan duration.
    contrast_preset : str, optional
        Preset that copies the reconstruction.
    protocol_mbq_per_kg, protocol_uptake_s, protocol_duration_s : float, optional
        Clinical FDG protocol used where neither source nor user says otherwise.
    protocol_bed_overlap : float, optional
        Usual overlap of neighboring bed positions, as a fraction of the axial field of view.
    sources : dict
        Citation by field name. A text that holds "not verified" or begins with "assumed" says so of its fields.
    """

    name: str
    title: str = field(compare=False)
    inner_radius_mm: float
    interaction_depth_mm: float
    crystals_per_ring: int
    rings: int
    ring_spacing_mm: float
    transaxial_block: int
    transaxial_block_real: int
    axial_block: int
    axial_block_real: int
    crystal_size_mm: tuple[float, float, float]
    crystal_material: str
    max_ring_difference: int
    view_offset_rad: float = 0.0
    transaxial_pitch_mm: float | None = None
    axial_gap_mm: float = 0.0
    readout_block: tuple[int, int] | None = None
    energy_block: tuple[int, int] | None = None
    photosensor: str | None = None
    axial_fov_mm: float | None = None
    radial_bins: int | None = None
    energy_resolution: float | None = None
    energy_window_kev: tuple[float, float] | None = None
    coincidence_window_ns: float | None = None
    tof_fwhm_ps: float | None = None
    tof_bin_ps: float | None = None
    tof_bins: int | None = None
    resolution_fwhm_mm: tuple[float, float, float] | None = None
    sensitivity_cps_per_kbq: float | None = None
    scatter_fraction: float | None = None
    peak_necr_kcps: float | None = None
    peak_necr_kbqml: float | None = None
    contrast_recovery_percent: tuple[float, ...] | None = field(default=None, compare=False)
    contrast_cold_mm: tuple[float, ...] | None = field(default=None, compare=False)
    contrast_background_bqml: float | None = field(default=None, compare=False)
    contrast_duration_s: float | None = field(default=None, compare=False)
    contrast_preset: str | None = field(default=None, compare=False)
    protocol_mbq_per_kg: float | None = None
    protocol_uptake_s: float | None = None
    protocol_duration_s: float | None = None
    protocol_bed_overlap: float | None = None
    sources: dict[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.crystals_per_ring % self.transaxial_block:
            raise DataError(
                f"scanner {self.name}: crystals_per_ring {self.crystals_per_ring} is not a multiple of "
                f"transaxial_block {self.transaxial_block}; virtual crystals count in both"
            )
        if self.transaxial_pitch_mm is not None:
            sides = self.crystals_per_ring // self.transaxial_block
            side_mm = 2 * self.radius_mm * math.tan(math.pi / sides) if sides > 2 else 0.0
            if self.transaxial_block * self.transaxial_pitch_mm > side_mm:
                raise DataError(
                    f"scanner {self.name}: {self.transaxial_block} crystals of {self.transaxial_pitch_mm:g} mm do not fit "
                    f"a side of {side_mm:g} mm; check transaxial_pitch_mm"
                )
        if not 0 <= self.max_ring_difference < self.rings:
            raise DataError(f"scanner {self.name}: max_ring_difference must be 0 to {self.rings - 1}")
        if (self.tof_fwhm_ps is None) != (self.tof_bin_ps is None) or (self.tof_bin_ps is None) != (self.tof_bins is None):
            raise DataError(f"scanner {self.name}: tof_fwhm_ps, tof_bin_ps and tof_bins go together")
        if (self.peak_necr_kcps is None) != (self.peak_necr_kbqml is None):
            raise DataError(f"scanner {self.name}: peak_necr_kcps and peak_necr_kbqml go together")
        known = {name: getattr(self, name) is not None for name in CONTRAST_FIELDS if name != "contrast_cold_mm"}
        if len(set(known.values())) > 1:
            raise DataError(f"scanner {self.name}: {', '.join(known)} go together")
        if self.scatter_fraction is not None and not 0 < self.scatter_fraction < 1:
            raise DataError(f"scanner {self.name}: scatter_fraction must lie between 0 and 1, got {self.scatter_fraction:g}")
        if self.energy_window_kev is not None and not 0 < self.energy_window_kev[0] < self.energy_window_kev[1]:
            raise DataError(f"scanner {self.name}: energy_window_kev must be [lower, upper] thresholds in keV")
        if self.crystal_material not in CRYSTAL_MATERIALS:
            raise DataError(
                f"scanner {self.name}: crystal_material '{self.crystal_material}' is not known; "
                f"known are {', '.join(CRYSTAL_MATERIALS)}"
            )
        if self.photosensor is not None and self.photosensor not in PHOTOSENSORS:
            raise DataError(
                f"scanner {self.name}: photosensor '{self.photosensor}' is not known; known are {', '.join(PHOTOSENSORS)}"
            )

    def given(self, field_name: str) -> Any:
        """Value of an optional field, for code that cannot do without it; `DataError` where the file leaves it out."""
        value = getattr(self, field_name)
        if value is None:
            raise DataError(
                f"scanner {self.name}: its file has no {field_name}, which is needed here; "
                f"add it to a copy of the file and give that as --scanner FILE.toml"
            )
        return value

    def is_verified(self, field_name: str) -> bool:
        """Whether the file gives a field, with a source that was read: neither "not verified" nor "assumed"."""
        source = self.sources.get(field_name, "assumed")
        return "not verified" not in source and not source.startswith("assumed")

    @property
    def radius_mm(self) -> float:
        """Distance of the LOR ends from the axis."""
        return self.inner_radius_mm + self.interaction_depth_mm

    @property
    def axial_length_mm(self) -> float:
        """Axial field of view."""
        return self.rings * self.ring_spacing_mm + (-(-self.rings // self.axial_block) - 1) * self.axial_gap_mm

    def crystal_xy_mm(self, place: np.ndarray, shift: float = 0.0) -> np.ndarray:
        """Transaxial positions on the ring.

        Parameters
        ----------
        place : ndarray
            In crystals from the edge of crystal 0: crystal c has its center at c + 1/2.
        shift : float
            Added to `place`; on a polygonal scanner the side goes straight on.

        Returns
        -------
        ndarray
            float64 (..., 2), mm from the axis.
        """
        if self.transaxial_pitch_mm is None:
            angle = (place + shift) * (2 * math.pi / self.crystals_per_ring) + self.view_offset_rad
            return self.radius_mm * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        side = np.floor(place / self.transaxial_block)
        along = (place + shift - (side + 0.5) * self.transaxial_block) * self.transaxial_pitch_mm
        angle = (side + 0.5) * (2 * math.pi * self.transaxial_block / self.crystals_per_ring) + self.view_offset_rad
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([self.radius_mm * cos - along * sin, self.radius_mm * sin + along * cos], axis=-1)

    def ring_z_mm(self, place: np.ndarray) -> np.ndarray:
        """Axial positions from the middle of the scanner.

        Parameters
        ----------
        place : ndarray
            Ring numbers; between two rings (and beyond the last) the position is interpolated.

        Returns
        -------
        ndarray
            float64, mm.
        """
        lower = np.floor(place)
        blocks = np.floor(lower / self.axial_block)
        here = lower * self.ring_spacing_mm + blocks * self.axial_gap_mm
        crosses = np.floor((lower + 1) / self.axial_block) > blocks
        z = here + (place - lower) * (self.ring_spacing_mm + crosses * self.axial_gap_mm)
        return z - (self.axial_length_mm - self.ring_spacing_mm) / 2

    def transaxial_is_real(self) -> np.ndarray:
        """bool (crystals_per_ring,): False for virtual crystals."""
        return np.arange(self.crystals_per_ring) % self.transaxial_block < self.transaxial_block_real

    def is_real(self) -> np.ndarray:
        """bool (crystals_per_ring, rings): False for virtual crystals."""
        return np.outer(self.transaxial_is_real(), self.ring_is_real())

    def ring_is_real(self) -> np.ndarray:
        """bool (rings,): False for virtual rings."""
        return np.arange(self.rings) % self.axial_block < self.axial_block_real


def tof_ps_to_mm(ps: float) -> float:
    """Shift along the LOR for a time difference: c/2 t (1 ps of time difference is 0.15 mm)."""
    return ps * SPEED_OF_LIGHT_MM_PER_PS / 2


def scanner_names() -> list[str]:
    """Names of the scanners that come with petsim."""
    folder = resources.files("petsim.geometry") / "scanners"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


@lru_cache
def load_scanner(name: str) -> Scanner:
    """A scanner by name, or from a TOML file of one's own.

    Parameters
    ----------
    name : str
        One of `scanner_names()`, or the path of a file that ends in .toml.

    Returns
    -------
    Scanner

    Raises
    ------
    UsageError
        Unknown name (the nearest are suggested).
    DataError
        A file that cannot be read, lacks a field, has an unknown one, or one without a source.
    """
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"--scanner {name}: {error.strerror}; give a readable TOML file or a known name") from None
        return parse_scanner(Path(name).stem, text)
    known = scanner_names()
    if name not in known:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=3, cutoff=0.3) or known
        raise UsageError(f"--scanner: '{name}' is not known; did you mean {', '.join(near)}?")
    path = resources.files("petsim.geometry") / "scanners" / f"{name}.toml"
    return parse_scanner(name, path.read_text(encoding="utf-8"))


def parse_scanner(name: str, text: str) -> Scanner:
    """Scanner from the text of its TOML file: `[sources]` and `[fields]` of `{ value, source }`.

    A file that names another scanner of the library as `base` gives what differs from it.
    """
    try:
        doc = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"scanner {name}: not a TOML file: {error}") from None
    kinds = {f.name: f for f in fields(Scanner) if f.name not in ("name", "title", "sources")}
    values, sources = {}, {}
    if "base" in doc:
        base = load_scanner(str(doc["base"]))
        values, sources = {key: getattr(base, key) for key in base.sources}, dict(base.sources)
    for key, entry in doc.get("fields", {}).items():
        if key not in kinds:
            raise DataError(f"scanner {name}: unknown field '{key}'; known are {', '.join(kinds)}")
        if not isinstance(entry, dict) or entry.get("source") not in doc.get("sources", {}):
            raise DataError(f"scanner {name}: field '{key}' needs {{ value = ..., source = ... }} with a listed source")
        value = entry["value"]
        values[key] = tuple(value) if isinstance(value, list) else value
        sources[key] = doc["sources"][entry["source"]]
    missing = [k for k, f in kinds.items() if f.default is MISSING and k not in values]
    if missing:
        raise DataError(f"scanner {name}: the file lacks {', '.join(missing)}")
    return Scanner(name=name, title=doc.get("title", name), sources=sources, **values)
