"""What a simulation of a subject needs: layout, grids, positions, seconds, memory."""

import math
from dataclasses import dataclass, replace

import numpy as np

from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from data_recipes.resample import crop_axially
from data_recipes.subject import Subject
from petsim.emission import share_in_air
from petsim.geometry.scanner import Scanner, load_scanner, scanner_names
from petsim.geometry.sinogram import SinogramLayout, fitting_grid, preset_layout
from petsim.physics.resolution import blur_left_mm
from petsim.presets import Preset
from petsim.projectors.sinogram import PARTS
from petsim.settings import SimulationSettings

MOST_IN_AIR = 0.05
"""Part of the activity in air from which on the mu-map is doubted."""

PHANTOM_FOV_MM = 480.0
"""Transaxial field of view for generated subjects, equal for all of them so that their volumes have one shape."""

VIEW_CHUNK_BYTES = 32e6
"""Views are worked on in groups of about this many bytes of float32 data."""

STACK_BYTES = 256e6
"""Counts of a group are read for so many images together that they take about as many bytes."""


@dataclass(frozen=True)
class Plan:
    """How one subject is simulated.

    Parameters
    ----------
    subject : Subject
        Cropped to what is scanned.
    whole_subject : Subject
        All of it: what lies outside the field of view still emits and scatters. Of a slab, only the slab.
    scanner, layout, preset
    simulation_grid, grid : Grid
        Grids of the forward model and of the reconstruction, in the subject's millimeters.
    center_mm : tuple of float
        The scanner's center in the subject's millimeters.
    fov_mm : float
        Diameter of the cylinder that is simulated and reconstructed.
    duration_s : float
        Frame duration.
    fwhm_mm : tuple of float
        Blur that the forward model still applies.
    warnings : tuple of str
    bed : int, optional
        Number of the bed position, of a scan of several: each has noise of its own.
    """

    subject: Subject
    whole_subject: Subject
    scanner: Scanner
    layout: SinogramLayout
    preset: Preset
    simulation_grid: Grid
    grid: Grid
    center_mm: tuple[float, float, float]
    fov_mm: float
    duration_s: float
    fwhm_mm: tuple[float, float, float]
    warnings: tuple[str, ...]
    bed: int | None = None

    @property
    def noise_name(self) -> str:
        """What keys the noise, beside seed and realization."""
        return self.subject.name if self.bed is None else f"{self.subject.name}/bed-{self.bed}"

    @property
    def views_at_once(self) -> int:
        """Views of a group."""
        return max(1, int(VIEW_CHUNK_BYTES / (4 * math.prod(self.layout.shape[1:]))))

    @property
    def images_at_once(self) -> int:
        """Images whose counts of a group of views are held as float32 data together."""
        return max(1, int(STACK_BYTES / (4 * math.prod(self.layout.shape[1:]) * self.views_at_once)))

    def bytes_needed(self, images: int, doses: int, live_fractions: int, simulated: bool = True) -> float:
        """Estimated peak memory in bytes when neither counts nor expected counts are held.

        Parameters
        ----------
        images : int
            Reconstructed together.
        doses : int
        live_fractions : int
            That images differ by, see `SimulationSettings.live_fractions`: each has sensitivities of its own.
        simulated : bool
            Counts are simulated; else they are a scanner's, and there is no forward model.
        """
        view = 4 * math.prod(self.layout.shape[1:]) * self.views_at_once
        voxels = math.prod(self.grid.shape)
        fine, subsets = math.prod(self.simulation_grid.shape), self.preset.subsets
        shared = (1 + live_fractions) * subsets + 10 if simulated else live_fractions * subsets + 2
        held = PARTS + (8 if self.preset.algorithm == "bsrem" else 6)
        return (
            350e6
            + view * (4 + doses / 2 + 2 * min(images, self.images_at_once))
            + 4 * voxels * (images * held + shared)
            + (4 * fine * (4 + 2 * 4) if simulated else 0)
        )


def plan_subject(subject: Subject, settings: SimulationSettings, scanner: Scanner | None = None) -> Plan:
    """Work out everything that can be known before simulating.

    Parameters
    ----------
    subject : Subject
    settings : SimulationSettings
    scanner : Scanner, optional
        Instead of the one that the settings name.

    Raises
    ------
    DataError, UsageError
        A subject that does not fit the scanner, or settings that do not fit together.
    """
    scanner = scanner or load_scanner(settings.scanner)
    preset = settings.resolved_preset()
    warnings: list[str] = list(subject.provenance.get("warnings", []))
    whole = subject
    subject, center_z = _scanned_part(subject, scanner, settings)
    if settings.slab_mm is not None:
        whole = subject
    if subject.mu_per_cm is None:
        raise DataError(f"{subject.name}: no mu-map; give --ct or --mu, or let the PET contour make one")
    x, y, _ = subject.grid.center_mm
    center = (x, y, center_z)
    fov = settings.fov_mm or fov_of(subject, center)
    layout = preset_layout(scanner, preset, fov)
    if preset.subsets > layout.views:
        raise UsageError(f"--subsets: {preset.subsets} subsets are more than the {layout.views} views")
    all_rings = not subject.is_noisy and settings.slab_mm is None
    length = scanner.axial_length_mm if all_rings else subject.grid.extent_mm[2]
    grid = fitting_grid(layout, preset.voxel_mm, preset.voxel_mm, fov, length, center)
    fine = preset.voxel_mm if subject.is_noisy else preset.simulation_voxel_mm
    simulation_grid = fitting_grid(layout, fine, fine, fov, length, center)

    outside = 1 - _inside_fraction(subject, center, fov)
    if outside > 0.005:
        warnings.append(f"{100 * outside:.1f} % of the activity lies outside the {fov:g} mm field of view and is lost")
    resolution: tuple[float, float, float] = scanner.given("resolution_fwhm_mm")
    if subject.fwhm_mm is not None and max(subject.fwhm_mm) > max(resolution):
        warnings.append(
            f"the source's resolution ({max(subject.fwhm_mm):.1f} mm) is coarser than that of the scanner "
            f"({max(resolution):.1f} mm); small structures stay as blurred as they came"
        )
    in_air = share_in_air(whole)
    if in_air > MOST_IN_AIR:
        warnings.append(
            f"{100 * in_air:.0f} % of the activity lies in air by the mu-map and is left out of the simulation; check that "
            "the mu-map holds all of the body"
        )
    duration = scan_duration_s(subject, settings, scanner)
    fwhm = forward_blur_mm(scanner, simulation_grid, settings.rays, subject.fwhm_mm)
    return Plan(subject, whole, scanner, layout, preset, simulation_grid, grid, center, fov, duration, fwhm,
                tuple(warnings))  # fmt: skip


def forward_blur_mm(
    scanner: Scanner, grid: Grid, rays: int, source_mm: tuple[float, float, float] | None = None
) -> tuple[float, float, float]:
    """FWHM by axis of the Gaussian with which the forward model is as sharp as the scanner's published resolution.

    Parameters
    ----------
    scanner : Scanner
    grid : Grid
        Of the forward model, which blurs too, as crystals do: see `petsim.physics.resolution.blur_left_mm`.
    rays : int
        In each direction of a crystal pair.
    source_mm : tuple of float, optional
        Resolution that the source has already.
    """
    published = scanner.given("resolution_fwhm_mm")
    x, y, z = (math.sqrt(max(0.0, a * a - b * b)) for a, b in zip(published, source_mm or (0, 0, 0), strict=True))
    crystal = 2 * math.pi * scanner.radius_mm / scanner.crystals_per_ring
    return blur_left_mm((x, y, z), grid.spacing_mm, (crystal, scanner.ring_spacing_mm) if rays > 1 else (0.0, 0.0))


def scan_duration_s(subject: Subject, settings: SimulationSettings, scanner: Scanner | None = None) -> float:
    """Duration of the settings, else of the source, else of the scanner's protocol."""
    known = settings.duration_s or subject.injection.duration_s
    return known or (scanner or load_scanner(settings.scanner)).given("protocol_duration_s")


def _scanned_part(subject: Subject, scanner: Scanner, settings: SimulationSettings) -> tuple[Subject, float]:
    """The axial part of the subject that is scanned, and the scanner's center."""
    bottom = subject.grid.origin_mm[2] - subject.grid.spacing_mm[2] / 2
    top = bottom + subject.grid.extent_mm[2]
    center = subject.grid.center_mm[2] if settings.center_mm is None else settings.center_mm
    if not bottom < center < top:
        raise UsageError(f"--center-mm: {center:g} lies outside the subject, which spans {bottom:.0f} to {top:.0f} mm")
    length = scanner.axial_length_mm if settings.slab_mm is None else settings.slab_mm
    if settings.slab_mm is not None and settings.slab_mm > scanner.axial_length_mm:
        raise UsageError(f"--slab: {settings.slab_mm:g} mm is longer than the scanner's {scanner.axial_length_mm:.0f} mm")
    fits = bottom >= center - length / 2 - 1e-6 and top <= center + length / 2 + 1e-6
    if fits:
        return subject, center
    if settings.center_mm is None and settings.slab_mm is None:
        holders = [n for n in scanner_names() if load_scanner(n).axial_length_mm >= subject.grid.extent_mm[2]]
        raise DataError(
            f"{subject.name} is {subject.grid.extent_mm[2]:.0f} mm long, more than the {scanner.axial_length_mm:.0f} mm of "
            f"{scanner.name}; use --beds auto for several bed positions, --scanner "
            f"{' or '.join(holders) or 'with a longer field of view'}, or --center-mm Z ({bottom:.0f} to {top:.0f}) to scan "
            "a part"
        )
    half_slice = subject.grid.spacing_mm[2] / 2
    low, high = center - length / 2 + half_slice - 1e-6, center + length / 2 - half_slice + 1e-6
    activity, grid = crop_axially(subject.activity_bqml, subject.grid, low, high)
    assert activity is not None
    part = replace(
        subject, activity_bqml=activity, grid=grid,
        mu_per_cm=crop_axially(subject.mu_per_cm, subject.grid, low, high)[0],
        labels=crop_axially(subject.labels, subject.grid, low, high)[0],
    )  # fmt: skip
    return part, center


def fov_of(subject: Subject, center: tuple[float, float, float]) -> float:
    """Field of view that holds the body, in steps of 20 mm, within that of the source; one for all generated subjects."""
    if not subject.is_noisy:
        return PHANTOM_FOV_MM
    assert subject.mu_per_cm is not None
    body = (subject.mu_per_cm > 0).any(axis=2)
    radius = np.hypot((subject.grid.axis_mm(0) - center[0])[:, None], (subject.grid.axis_mm(1) - center[1])[None, :])
    if not body.any():
        raise DataError(f"{subject.name}: the mu-map is empty; no body was found")
    widest = float(radius[body].max()) + max(subject.grid.spacing_mm[:2])
    return min(math.ceil(2 * widest / 20) * 20.0, *subject.grid.extent_mm[:2])


def _inside_fraction(subject: Subject, center: tuple[float, float, float], fov: float) -> float:
    radius = np.hypot((subject.grid.axis_mm(0) - center[0])[:, None], (subject.grid.axis_mm(1) - center[1])[None, :])
    column = subject.activity_bqml.sum(axis=2, dtype=np.float64)
    return float(column[radius <= fov / 2].sum() / column.sum())
