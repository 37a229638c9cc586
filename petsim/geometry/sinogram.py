"""Which line of response lies in which sinogram bin.

Data are `(view, radial, tof, plane)` (or `(view, radial, plane)` without TOF), plane contiguous.
"""

import math
from dataclasses import dataclass

import numpy as np

from data_recipes.errors import UsageError
from data_recipes.grid import Grid
from petsim.geometry.scanner import Scanner, tof_ps_to_mm
from petsim.presets import Preset

TOF_SIGMAS = 3.0
"""The TOF kernel is cut at this many standard deviations and normalized to 1."""

PRESET_TOF_BINS_PER_FWHM = 11.95
"""Finest TOF bins in the timing resolution of the Vision 600 (214 ps / 17.9 ps), for which presets are made."""

MERGED_RINGS_PER_FWHM = 3.8
"""Largest axial size of merged crystals relative to the axial resolution: that of the Vision 600 in preset fast."""


@dataclass(frozen=True)
class Segment:
    """Planes that share a mean ring difference.

    Parameters
    ----------
    ring_difference : float
        Mean of ring2 - ring1 over the segment, in merged rings.
    lowest, highest : int
        The ring differences that it sums.
    first_sum, step, planes : int
        Plane p holds the ring pairs with ring1 + ring2 = first_sum + p x step.
    start : int
        Index of its first plane in the sinogram.
    """

    ring_difference: float
    lowest: int
    highest: int
    first_sum: int
    step: int
    planes: int
    start: int


@dataclass(frozen=True)
class SinogramLayout:
    """Sinogram bins of a scanner.

    Crystals can be merged into larger ones (`merge_transaxial` x `merge_axial`); a merged bin sums the counts of its
    elementary bins and its LOR joins the centers of the merged crystals. Numbers below are in merged crystals.

    With an even number N of crystals a ring, view v and tangential index t join the crystals v + floor(t/2) and
    v - floor((t + 1)/2) + N/2, the usual interleaved sinogram of N/2 views. With an odd N (798 / 2 = 399, say) there
    are N views; view v joins crystals (v + d)/2 and (v - d)/2 with d = 2 t - (N +- 1)/2 of the parity of v, so that
    every pair of crystals lies in one bin only here too.

    Parameters
    ----------
    scanner : Scanner
    radials : int
        Radial bins, t = -radials/2 ... radials/2 - 1.
    merge_transaxial, merge_axial : int
        Crystals merged; the first must divide the crystals a ring, the second may leave the last merged ring part empty.
    mash : int
        Neighboring views summed into one.
    span : int
        Odd; ring differences summed in a segment. 1 keeps every ring pair in a plane of its own.
    max_ring_difference : int
        The outermost segments hold fewer ring differences than the others where it is not (span - 1)/2 + k span.
    merge_tof, tof_bins : int
        Finest TOF bins summed into one, and the (odd) number of such bins; 0 and 1 for data without TOF.
    even_rings : bool
        Place rings at one effective pitch, as vendors' sinograms do, in spite of axial gaps between blocks.
    """

    scanner: Scanner
    radials: int
    merge_transaxial: int = 1
    merge_axial: int = 1
    mash: int = 1
    span: int = 1
    max_ring_difference: int = 0
    merge_tof: int = 0
    tof_bins: int = 1
    even_rings: bool = False

    def __post_init__(self) -> None:
        s = self.scanner
        if self.merge_transaxial < 1 or s.crystals_per_ring % self.merge_transaxial:
            raise UsageError(f"merge_transaxial {self.merge_transaxial} does not divide {s.crystals_per_ring} crystals")
        if not 1 <= self.merge_axial <= s.rings:
            raise UsageError(f"merge_axial must be 1 to {s.rings}, got {self.merge_axial}")
        if self.span < 1 or self.span % 2 == 0:
            raise UsageError(f"span must be odd and positive, got {self.span}")
        if not (self.span - 1) // 2 <= self.max_ring_difference < self.rings:
            raise UsageError(
                f"max_ring_difference must be {(self.span - 1) // 2} to {self.rings - 1} for span {self.span}, "
                f"got {self.max_ring_difference}"
            )
        if self.mash != 1 and (self.crystals % 2 or self.mash < 1 or self.crystals // 2 % self.mash):
            raise UsageError(f"mash {self.mash} must divide half the crystals a ring, {self.crystals} / 2")
        limit = self.crystals // 2 if self.crystals % 2 else self.crystals
        if not 1 <= self.radials < limit:
            raise UsageError(f"radials must be 1 to {limit - 1}, got {self.radials}")
        if self.is_tof and (s.tof_bin_ps is None or self.tof_bins % 2 == 0):
            raise UsageError(f"TOF needs a scanner that has it and an odd number of bins; {s.name}, {self.tof_bins}")

    @property
    def crystals(self) -> int:
        """Merged crystals a ring."""
        return self.scanner.crystals_per_ring // self.merge_transaxial

    @property
    def rings(self) -> int:
        """Merged rings."""
        return -(-self.scanner.rings // self.merge_axial)

    @property
    def ring_pitch_mm(self) -> float:
        """Distance of neighboring merged rings; the mean one where blocks have gaps."""
        s = self.scanner
        gaps = -(-s.rings // s.axial_block) - 1
        return (s.ring_spacing_mm + gaps * s.axial_gap_mm / max(s.rings - 1, 1)) * self.merge_axial

    @property
    def views(self) -> int:
        """Number of views over 180 degrees."""
        return (self.crystals if self.crystals % 2 else self.crystals // 2) // self.mash

    @property
    def is_tof(self) -> bool:
        """Whether bins are split by time of flight."""
        return self.merge_tof > 0

    @property
    def tof_bin_mm(self) -> float:
        """Width of a TOF bin along the LOR."""
        return tof_ps_to_mm(self.merge_tof * (self.scanner.tof_bin_ps or 0.0))

    @property
    def tof_sigma_mm(self) -> float:
        """Standard deviation of the TOF kernel along the LOR."""
        return tof_ps_to_mm(self.scanner.tof_fwhm_ps or 0.0) / math.sqrt(8 * math.log(2))

    @property
    def radial_pitch_mm(self) -> float:
        """Distance of neighboring LORs of a view near the center."""
        return self.scanner.radius_mm * math.pi / self.crystals * (2 if self.crystals % 2 else 1)

    def segments(self) -> list[Segment]:
        """Segments in the order 0, +1, -1, +2, -2, ... with the planes that each holds."""
        half = (self.span - 1) // 2
        count = -(-(self.max_ring_difference - half) // self.span)
        out, start = [], 0
        for k in range(count + 1):
            nearest = max(0, k * self.span - half)
            farthest = min(k * self.span + half, self.max_ring_difference)
            low = -farthest if k == 0 else nearest
            step = 2 if low == farthest else 1
            planes = (2 * (self.rings - 1 - nearest)) // step + 1
            for sign in (1, -1) if k else (1,):
                first, last = sorted((sign * low, sign * farthest))
                out.append(Segment((first + last) / 2, first, last, nearest, step, planes, start))
                start += planes
        return out

    def planes_of_ring_pairs(self) -> np.ndarray:
        """int32 (rings, rings), merged ones: plane of the ring at end 1 and the ring at end 2; -1 where there is none."""
        rings = np.arange(self.rings)
        sums, differences = rings[:, None] + rings[None, :], rings[None, :] - rings[:, None]
        planes = np.full(sums.shape, -1, np.int32)
        for seg in self.segments():
            inside = (differences >= seg.lowest) & (differences <= seg.highest)
            planes[inside] = seg.start + (sums[inside] - seg.first_sum) // seg.step
        return planes

    @property
    def planes(self) -> int:
        """Planes of all segments."""
        last = self.segments()[-1]
        return last.start + last.planes

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(view, radial, tof, plane)."""
        return self.views, self.radials, self.tof_bins, self.planes

    @property
    def lors(self) -> int:
        """Number of bins, TOF bins not counted."""
        return self.views * self.radials * self.planes

    def ring_z_mm(self) -> np.ndarray:
        """Axial centers of the merged rings relative to the middle of the scanner, in mm (float64)."""
        return self._ring_place_z_mm(np.arange(self.rings))

    def _ring_place_z_mm(self, place: np.ndarray) -> np.ndarray:
        """Axial position at a place counted in merged rings; half a ring is the middle of two."""
        s = self.scanner
        if self.even_rings:
            first = s.ring_z_mm(np.arange(self.merge_axial)).mean()
            return first + place * self.ring_pitch_mm
        lower, rings = np.floor(place), np.arange(self.merge_axial)
        here, above = (s.ring_z_mm((lower + k)[..., None] * self.merge_axial + rings).mean(axis=-1) for k in (0, 1))
        return here + (place - lower) * (above - here)

    def plane_z_mm(self, shift: float = 0.0) -> np.ndarray:
        """Axial positions of the two ends of the LORs of every plane.

        A plane that sums ring pairs has the mean ring difference of its segment.

        Parameters
        ----------
        shift : float
            Axial shift of the LORs as a fraction of the merged ring pitch.

        Returns
        -------
        ndarray
            float64 (planes, 2): z of end 1 and of end 2 in mm from the middle of the scanner.
        """
        places = np.empty((self.planes, 2))
        for seg in self.segments():
            ring_sums = seg.first_sum + np.arange(seg.planes) * seg.step
            for end, sign in enumerate((-1, 1)):
                places[seg.start : seg.start + seg.planes, end] = (ring_sums + sign * seg.ring_difference) / 2
        return self._ring_place_z_mm(places) + shift * self.ring_pitch_mm

    def crystal_pairs(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Merged crystals (int64, shape (mash, radials)) that the bins of a view join, one pair for each mashed view."""
        n = self.crystals
        v = view * self.mash + np.arange(self.mash)[:, None]
        t = np.arange(self.radials)[None, :] - self.radials // 2
        if n % 2 == 0:
            return (v + (t >> 1)) % n, (v - ((t + 1) >> 1) + n // 2) % n
        middle = (n + 1) // 2
        d = 2 * t - (middle - (middle - v) % 2)
        return ((v + d) // 2) % n, ((v - d) // 2) % n

    def transaxial_ends(self, views: np.ndarray, shift: float = 0.0, depth_mm: float = 0.0) -> np.ndarray:
        """Transaxial end points of the LORs of some views.

        Parameters
        ----------
        views : ndarray of int
        shift : float
            Parallel shift of the LORs as a fraction of a merged crystal's pitch: one end moves by +shift along the ring,
            the other by -shift.
        depth_mm : float
            Both ends move outward by this much along the axes of their crystals, which shifts a LOR sideways in proportion
            to its distance from the center.

        Returns
        -------
        ndarray
            float64 (len(views), radials, 4): x1, y1, x2, y2 in mm from the scanner's axis.
        """
        ends = np.empty((len(views), self.radials, 4))
        for k, view in enumerate(views):
            for end, (crystals, sign) in enumerate(zip(self.crystal_pairs(int(view)), (1, -1), strict=True)):
                if self.scanner.transaxial_pitch_mm is None:
                    # The middle of mashed views, in which both crystals advance by one a view.
                    place = (crystals[:1, :, None] + (self.mash - 1) / 2 + 0.5) * self.merge_transaxial
                else:
                    # Merged crystals may reach around a corner.
                    place = crystals[..., None] * self.merge_transaxial + np.arange(self.merge_transaxial) + 0.5
                xy = self.scanner.crystal_xy_mm(place, sign * shift * self.merge_transaxial)
                if depth_mm:
                    xy += depth_mm * self._crystal_axes(place)
                ends[k, :, 2 * end : 2 * end + 2] = xy.mean(axis=(0, 2))
        return ends

    def _crystal_axes(self, place: np.ndarray) -> np.ndarray:
        """Unit vectors (..., 2) along crystals, outward: radial on a round scanner, across the side on a polygonal one."""
        s = self.scanner
        if s.transaxial_pitch_mm is not None:
            place = (np.floor(place / s.transaxial_block) + 0.5) * s.transaxial_block
        angle = place * (2 * math.pi / s.crystals_per_ring) + s.view_offset_rad
        return np.stack([np.cos(angle), np.sin(angle)], axis=-1)

    def subset_views(self, subset: int, subsets: int) -> np.ndarray:
        """Views of an ordered subset: every `subsets`-th one."""
        return np.arange(subset, self.views, subsets)


def covering_ring_difference(scanner: Scanner, merge_axial: int) -> int:
    """Smallest difference in merged rings that holds every accepted pair of elementary rings."""
    rings = -(-scanner.rings // merge_axial)
    return min(-(-scanner.max_ring_difference // merge_axial), rings - 1)


def radials_for(scanner: Scanner, merge_transaxial: int, fov_mm: float) -> int:
    """Even number of radial bins whose LORs cover a centered circle of diameter `fov_mm`."""
    n = scanner.crystals_per_ring // merge_transaxial
    if not 0 < fov_mm < 2 * scanner.inner_radius_mm:
        raise UsageError(f"--fov-mm must lie between 0 and the bore of {2 * scanner.inner_radius_mm:g} mm, got {fov_mm:g}")
    per_bin = math.pi / n * (2 if n % 2 else 1)
    half = math.ceil(math.asin(fov_mm / 2 / scanner.radius_mm) / per_bin) + 2
    return min(2 * half, (n // 2 if n % 2 else n) - 1)


def preset_merges(scanner: Scanner, preset: Preset) -> tuple[int, int, int]:
    """Crystals a ring, rings and finest TOF bins that a preset merges on a scanner.

    As many as the preset names, which is made for the Vision 600, or fewer: transaxially the largest number that divides
    the crystals a ring; axially and in TOF so many that merged ones are, relative to the scanner's resolution, about as
    large as there.

    Returns
    -------
    tuple of int
        merge_transaxial, merge_axial, merge_tof; the last is 0 for a scanner or a preset without TOF.
    """
    transaxial = max(m for m in range(1, preset.merge_transaxial + 1) if scanner.crystals_per_ring % m == 0)
    axial = min(preset.merge_axial, scanner.rings)
    if scanner.resolution_fwhm_mm is not None:
        alike = round(MERGED_RINGS_PER_FWHM * scanner.resolution_fwhm_mm[2] / scanner.ring_spacing_mm)
        axial = max(1, min(axial, alike))
    if not preset.tof or scanner.tof_fwhm_ps is None or scanner.tof_bin_ps is None:
        return transaxial, axial, 0
    alike = round(preset.merge_tof * scanner.tof_fwhm_ps / scanner.tof_bin_ps / PRESET_TOF_BINS_PER_FWHM)
    return transaxial, axial, max(1, min(preset.merge_tof, alike))


def preset_layout(scanner: Scanner, preset: Preset, fov_mm: float) -> SinogramLayout:
    """Layout of a preset that covers a centered circle of diameter `fov_mm` and every accepted ring pair."""
    transaxial, axial, tof = preset_merges(scanner, preset)
    farthest = covering_ring_difference(scanner, axial)
    return SinogramLayout(
        scanner,
        radials=radials_for(scanner, transaxial, fov_mm),
        merge_transaxial=transaxial,
        merge_axial=axial,
        span=min(preset.span, 2 * farthest + 1),
        max_ring_difference=farthest,
        merge_tof=tof,
        tof_bins=tof_bins_for(scanner, tof, fov_mm, TOF_SIGMAS),
    )


def fitting_grid(
    layout: SinogramLayout,
    voxel_mm: float,
    axial_mm: float,
    fov_mm: float,
    length_mm: float,
    center_mm: tuple[float, float, float],
) -> Grid:
    """Grid whose axial voxel divides the ring pitch and is no larger than `axial_mm`.

    An even number of voxels a ring keeps all planes of a segment in one vector loop of the projector.
    """
    across = 2 * math.ceil(fov_mm / voxel_mm / 2)
    per_ring = math.ceil(layout.ring_pitch_mm / axial_mm - 1e-6)
    z = layout.ring_pitch_mm / (per_ring + (per_ring > 1 and per_ring % 2))
    return Grid.centered((across, across, max(1, round(length_mm / z))), (voxel_mm, voxel_mm, z), center_mm)


def tof_bins_for(scanner: Scanner, merge_tof: int, fov_mm: float, sigmas: float) -> int:
    """Odd number of TOF bins that catches what is emitted within `fov_mm` to `sigmas` standard deviations."""
    if merge_tof == 0 or scanner.tof_bin_ps is None or scanner.tof_fwhm_ps is None or scanner.tof_bins is None:
        return 1
    sigma = tof_ps_to_mm(scanner.tof_fwhm_ps) / math.sqrt(8 * math.log(2))
    half = math.ceil((fov_mm / 2 + sigmas * sigma) / tof_ps_to_mm(merge_tof * scanner.tof_bin_ps) - 0.5)
    available = (scanner.tof_bins // merge_tof - 1) // 2
    return 2 * min(half, available) + 1
