"""Several bed positions for a subject longer than the scanner: where they lie, when, and how their images are knitted.

A position of the table puts another part of the subject at the scanner's center. Positions follow one another from the
feet's end to the head's end, each begins when the one before has ended, and neighbors overlap. Where two overlap, their
images are averaged with the inverse of their variances as weights, which for images on one scale is in proportion to the
expected counts: to the axial sensitivity of the position at that slice, times the decay until it began (Schubert, Pajevic
and Carson, "Whole body PET using overlapped 3D acquisition and weighted image summation", IEEE NSS/MIC, abstract, weigh by
noise-equivalent counts).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d

from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from data_recipes.isotopes import decay_factor, isotope
from data_recipes.subject import Subject
from petsim.geometry.scanner import Scanner, load_scanner
from petsim.geometry.sinogram import SinogramLayout, fitting_grid, preset_layout
from petsim.plan import Plan, fov_of, plan_subject
from petsim.settings import SimulationSettings

EXTENT_SHARE = 0.01
"""Slices with more than this part of the activity of the fullest slice belong to the subject's extent."""

USUAL_OVERLAP = 0.25
"""Overlap, in axial fields of view, where neither the user nor the scanner's file names one; assumed."""

BEYOND_MM = 20.0
"""So far beyond the field of view subjects are simulated at each end, for what the resolution blurs into it."""

ALONE = 1e-6
"""Weight of the slices at a position's ends, which count where no other position has them."""


@dataclass(frozen=True)
class Bed:
    """One position.

    Parameters
    ----------
    plan : Plan
        Of the subject as it is at the start of the scan.
    start_s : float
        After the start of the scan.
    decay : float
        Activity at its start over that at the start of the scan.
    first : int
        Slice of the knitted image at which its image begins.
    """

    plan: Plan
    start_s: float
    decay: float
    first: int

    def started(self) -> Plan:
        """The plan with the subject as it is at this position's start."""
        subject = self.plan.whole_subject
        injection, uptake = subject.injection, subject.injection.uptake_s
        later = replace(
            subject,
            activity_bqml=subject.activity_bqml * np.float32(self.decay),
            injection=replace(injection, uptake_s=None if uptake is None else uptake + self.start_s),
        )
        return replace(self.plan, subject=later, whole_subject=later)


@dataclass(frozen=True)
class BedPlan:
    """All positions of a scan.

    Parameters
    ----------
    subject : Subject
        At the start of the scan.
    beds : tuple of Bed
        In the order in which they are scanned.
    grid : Grid
        Of the knitted image.
    extent_mm : tuple of float
        Axial extent of the subject's activity.
    overlap : float
        Of neighboring positions, in axial fields of view.
    warnings : tuple of str
    """

    subject: Subject
    beds: tuple[Bed, ...]
    grid: Grid
    extent_mm: tuple[float, float]
    overlap: float
    warnings: tuple[str, ...]

    @property
    def layout(self) -> SinogramLayout:
        """Sinogram bins of a position."""
        return self.beds[0].plan.layout


def activity_extent_mm(subject: Subject) -> tuple[float, float]:
    """Axial extent of the slices that hold more than `EXTENT_SHARE` of the activity of the fullest one."""
    total = subject.activity_bqml.sum(axis=(0, 1), dtype=np.float64)
    z = subject.grid.axis_mm(2)[total > EXTENT_SHARE * total.max()]
    half = subject.grid.spacing_mm[2] / 2
    return float(z[0]) - half, float(z[-1]) + half


def count_beds(extent_mm: float, length_mm: float, step_mm: float) -> int:
    """Least number of positions of an axial field of view that cover an extent."""
    return 1 + max(0, math.ceil((extent_mm - length_mm) / step_mm - 1e-6))


def usual_overlap(scanner: Scanner, settings: SimulationSettings) -> float:
    """Overlap in axial fields of view: the user's, else that of the scanner's file, else `USUAL_OVERLAP`."""
    given = (settings.bed_overlap, scanner.protocol_bed_overlap, USUAL_OVERLAP)
    return next(value for value in given if value is not None)


def plan_beds(subject: Subject, settings: SimulationSettings, scanner: Scanner | None = None) -> BedPlan:
    """Positions that cover the subject, or as many as the settings name around the middle of its extent.

    Parameters
    ----------
    subject : Subject
    settings : SimulationSettings
        With `beds`.
    scanner : Scanner, optional
        Instead of the one that the settings name.

    Raises
    ------
    DataError, UsageError
        As `petsim.plan.plan_subject`, and more positions than the subject has room for.
    """
    scanner = scanner or load_scanner(settings.scanner)
    if subject.mu_per_cm is None:
        raise DataError(f"{subject.name}: no mu-map; give --ct or --mu, or let the PET contour make one")
    x, y, middle = subject.grid.center_mm
    fov = settings.fov_mm or fov_of(subject, (x, y, middle))
    preset, length = settings.resolved_preset(), scanner.axial_length_mm
    layout = preset_layout(scanner, preset, fov)
    # Whole slices apart, so that all images lie on one grid.
    slice_mm = fitting_grid(layout, preset.voxel_mm, preset.voxel_mm, fov, length, (x, y, middle)).spacing_mm[2]
    apart = max(1, round((1 - usual_overlap(scanner, settings)) * length / slice_mm))
    low, high = activity_extent_mm(subject)
    enough = count_beds(high - low, length, apart * slice_mm)
    count = enough if settings.beds in (None, "auto") else int(settings.beds)
    if count > enough:
        raise UsageError(
            f"--beds: {count} positions are more than the {enough} that hold {subject.name}, {high - low:.0f} mm long, on "
            f"{scanner.name} with this overlap"
        )
    alone = replace(settings, beds=None, bed_overlap=None, fov_mm=fov)
    iso = isotope(subject.injection.isotope)
    beds, start_s, warnings = [], 0.0, []
    for k in range(count):
        center = (low + high) / 2 + (k - (count - 1) / 2) * apart * slice_mm
        plan = _whole_position(plan_subject(subject, replace(alone, center_mm=center), scanner), k)
        beds.append(Bed(plan, start_s, decay_factor(iso, start_s), k * apart))
        warnings += plan.warnings
        start_s += plan.duration_s
    first = beds[0].plan.grid
    grid = replace(first, shape=(*first.shape[:2], first.shape[2] + apart * (count - 1)))
    if count < enough:
        covered = grid.extent_mm[2]
        warnings.append(f"{count} bed positions cover {covered:.0f} mm of the {high - low:.0f} mm that hold activity")
    overlap = 1 - apart * slice_mm / length
    return BedPlan(subject, tuple(beds), grid, (low, high), overlap, tuple(dict.fromkeys(warnings)))


def _whole_position(plan: Plan, number: int) -> Plan:
    """The plan with grids as long as the scanner, and what lies beyond its ends."""
    preset, scanner, subject = plan.preset, plan.scanner, plan.whole_subject
    grid = fitting_grid(plan.layout, preset.voxel_mm, preset.voxel_mm, plan.fov_mm, scanner.axial_length_mm, plan.center_mm)
    fine = plan.simulation_grid
    more = 2 * math.ceil(BEYOND_MM / fine.spacing_mm[2])
    planes = round(scanner.axial_length_mm / fine.spacing_mm[2]) + more
    simulated = Grid.centered((*fine.shape[:2], planes), fine.spacing_mm, plan.center_mm)
    return replace(plan, subject=subject, grid=grid, simulation_grid=simulated, bed=number)


def axial_sensitivity(plan: Plan) -> np.ndarray:
    """Sensitivity of a position on the scanner's axis by slice of its image, relative to the highest, float64 (z,).

    The two rings of a pair see the point of the axis midway between them, in proportion to cos(theta)^3: the normalization
    cos(theta)^4 (see `petsim.physics.normalization`) over the cosine that lengthens the LOR in a slice. Pairs are summed by
    their ring numbers' sum, interpolated, and blurred by the scanner's axial resolution.
    """
    scanner = plan.scanner
    rings = np.flatnonzero(scanner.ring_is_real())
    one, two = np.meshgrid(rings, rings)
    near = np.abs(one - two) <= scanner.max_ring_difference
    one, two = one[near], two[near]
    z1, z2 = scanner.ring_z_mm(one), scanner.ring_z_mm(two)
    weight = (1 + ((z2 - z1) / (2 * scanner.radius_mm)) ** 2) ** -1.5
    # Of a sum without a pair of real rings the place is known all the same.
    at = scanner.ring_z_mm(np.arange(2 * scanner.rings - 1) / 2)
    sums = np.bincount(one + two, weight, at.size)
    profile = np.interp(plan.grid.axis_mm(2) - plan.center_mm[2], at, sums)
    sigma = scanner.given("resolution_fwhm_mm")[2] / math.sqrt(8 * math.log(2)) / plan.grid.spacing_mm[2]
    profile = gaussian_filter1d(profile, sigma, mode="nearest")
    return profile / profile.max()


def knitting_weights(
    profile: np.ndarray, firsts: Sequence[int], slices: int, strengths: Sequence[float], margin: int = 0
) -> np.ndarray:
    """Weights with which the images of all positions are averaged, float64 (bed, slices); each slice's sum to 1.

    Parameters
    ----------
    profile : ndarray
        (z,): sensitivity of a position by slice, positive.
    firsts : sequence of int
        Slice of the knitted image at which each position begins.
    slices : int
        Of the knitted image, each of which lies in a position.
    strengths : sequence of float
        By position: factor on its counts, its decay.
    margin : int
        Slices at each end of a position that count only where no other position has them: resolution and post-filter
        have mixed them with the nothing beyond.
    """
    weights = np.zeros((len(firsts), slices))
    inner = profile.copy()
    if margin:
        inner[:margin] *= ALONE
        inner[-margin:] *= ALONE
    for row, first, strength in zip(weights, firsts, strengths, strict=True):
        row[first : first + profile.size] = strength * inner
    return weights / weights.sum(axis=0)


def knit(images: Sequence[np.ndarray], weights: np.ndarray, firsts: Sequence[int]) -> np.ndarray:
    """Weighted sum of the images (..., x, y, z) of all positions, float32 (..., x, y, slices)."""
    out = np.zeros((*images[0].shape[:-1], weights.shape[1]), np.float32)
    for image, row, first in zip(images, weights, firsts, strict=True):
        part = slice(first, first + image.shape[-1])
        out[..., part] += image * row[part].astype(np.float32)
    return out


def margin_of(plan: Plan) -> int:
    """Slices at the ends of a position's image that resolution and post-filter reach from beyond (to 1 %)."""
    reach = math.hypot(plan.preset.filter_mm, plan.scanner.given("resolution_fwhm_mm")[2])
    return min(math.ceil(reach / plan.grid.spacing_mm[2]), (plan.grid.shape[2] - 1) // 2)
