"""Single photons of a subject on a scanner: their rates over the detectors, 176Lu background, dead time.

A photon Monte Carlo of the subject (all orders of scatter, activity outside the field of view included) gives the singles
by area of the detectors. A crystal of efficiency e then records singles at the rate e s(phi, z), with s = a / D + b at
the dose reduction factor D: a from the injected activity, b from the 176Lu of the crystals.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data_recipes.grid import Grid
from petsim.geometry.scanner import Scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.physics.monte_carlo import lutetium, photon_pairs
from petsim.physics.multiple_scatter import zone_ratio
from petsim.physics.rates import live_fraction

AREA_MM = (60.0, 40.0)
"""Largest transaxial and axial size of an area of detectors over which singles are averaged."""

SMOOTH_AREAS = 1.0
"""Standard deviation, in areas, of the smoothing that takes the Monte Carlo's noise away."""


@dataclass(frozen=True)
class DetectorAreas:
    """The detectors of a scanner, divided into areas of like angle and axial position.

    Parameters
    ----------
    scanner : Scanner
    across, along : int
        Areas around the ring and along the axis.
    crystals : ndarray
        float64 (across, along): real crystals in an area.
    """

    scanner: Scanner
    across: int
    along: int
    crystals: np.ndarray

    @classmethod
    def of(cls, scanner: Scanner) -> "DetectorAreas":
        """Areas of at most `AREA_MM`."""
        across = math.ceil(2 * math.pi * scanner.radius_mm / AREA_MM[0])
        along = max(2, math.ceil(scanner.axial_length_mm / AREA_MM[1]))
        empty = cls(scanner, across, along, np.zeros((across, along)))
        around, axial = empty.of_crystals()
        around, axial = around[scanner.transaxial_is_real()], axial[scanner.ring_is_real()]
        crystals = np.outer(np.bincount(around, minlength=across), np.bincount(axial, minlength=along)).astype(float)
        return cls(scanner, across, along, crystals)

    def index(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Area (around, along) of places on the detectors, mm from the scanner's center."""
        turn = (np.arctan2(y, x) / (2 * np.pi)) % 1.0
        around = np.minimum((turn * self.across).astype(np.int64), self.across - 1)
        along = (z / self.scanner.axial_length_mm + 0.5) * self.along
        return around, np.clip(along.astype(np.int64), 0, self.along - 1)

    def of_crystals(self) -> tuple[np.ndarray, np.ndarray]:
        """Areas around the ring of all crystals, (crystals_per_ring,), and along the axis of all rings, (rings,)."""
        xy = self.scanner.crystal_xy_mm(np.arange(self.scanner.crystals_per_ring) + 0.5)
        z = self.scanner.ring_z_mm(np.arange(self.scanner.rings))
        return self.index(xy[:, 0], xy[:, 1], np.zeros(len(xy)))[0], self.index(np.ones(len(z)), np.zeros(len(z)), z)[1]

    @property
    def middles_mm(self) -> np.ndarray:
        """Axial middles of the areas, float64 (along,)."""
        return ((np.arange(self.along) + 0.5) / self.along - 0.5) * self.scanner.axial_length_mm

    def per_crystal(self, counts: np.ndarray) -> np.ndarray:
        """Counts (across, along) a real crystal, smoothed over `SMOOTH_AREAS`."""
        smooth = [
            ndimage.gaussian_filter1d(
                ndimage.gaussian_filter1d(a, SMOOTH_AREAS, 0, mode="wrap"), SMOOTH_AREAS, 1, mode="nearest"
            )
            for a in (counts.astype(float), self.crystals)
        ]
        return smooth[0] / np.maximum(smooth[1], 1e-9)

    def mean_at(self, values: np.ndarray) -> np.ndarray:
        """Mean over the real crystals of every area, float64 (across, along), of values (crystals_per_ring, rings)."""
        around, axial = self.of_crystals()
        real = self.scanner.is_real()
        place = (around[:, None] * self.along + axial[None, :])[real]
        sums = np.bincount(place, values[real].astype(np.float64), self.across * self.along)
        count = np.bincount(place, minlength=self.across * self.along)
        mean = (sums / np.maximum(count, 1)).reshape(self.across, self.along)
        return np.where(mean > 0, mean, 1.0)

    def at_crystals(self, values: np.ndarray) -> np.ndarray:
        """A map over the areas (across, along), interpolated at all crystals: float64 (crystals_per_ring, rings)."""
        xy = self.scanner.crystal_xy_mm(np.arange(self.scanner.crystals_per_ring) + 0.5)
        lower, share = self._around(xy)
        by_crystal = (1 - share) * values[lower % self.across] + share * values[(lower + 1) % self.across]
        z = self.scanner.ring_z_mm(np.arange(self.scanner.rings))
        return np.stack([np.interp(z, self.middles_mm, row) for row in by_crystal])

    def _around(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The area before a place around the ring, and the share (n, 1) of the next one."""
        around = (np.arctan2(xy[:, 1], xy[:, 0]) / (2 * np.pi)) % 1.0 * self.across - 0.5
        lower = np.floor(around).astype(np.int64)
        return lower, (around - lower)[:, None]

    def at_ends(self, layout: SinogramLayout, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A map over the areas, at the ends of LORs.

        Parameters
        ----------
        layout : SinogramLayout
        values : ndarray
            (across, along); interpolated between the middles of areas.

        Returns
        -------
        tuple of ndarray
            float32 (merged crystals, planes) each: at end 1 of a plane if the LOR starts at that crystal, and at end 2.
        """
        place = (np.arange(layout.crystals)[:, None] * layout.merge_transaxial + np.arange(layout.merge_transaxial)) + 0.5
        xy = self.scanner.crystal_xy_mm(place).mean(axis=1)
        lower, share = self._around(xy)
        by_crystal = (1 - share) * values[lower % self.across] + share * values[(lower + 1) % self.across]
        plane_z = layout.plane_z_mm()
        ends = []
        for end in range(2):
            at = np.clip(np.interp(plane_z[:, end], self.middles_mm, np.arange(self.along)), 0, self.along - 1)
            low = np.minimum(at.astype(np.int64), self.along - 2)
            part = at - low
            ends.append(((1 - part) * by_crystal[:, low] + part * by_crystal[:, low + 1]).astype(np.float32))
        return ends[0], ends[1]


@dataclass(frozen=True)
class Singles:
    """Rates of single photons, at scan start and full dose.

    Parameters
    ----------
    areas : DetectorAreas
    activity_cps, triggers_cps : ndarray
        (across, along): singles in the energy window, and triggers of blocks, a crystal of efficiency 1.
    lutetium_cps, lutetium_triggers_cps : float
        The same from the 176Lu of the crystals.
    multiple_ratio : ndarray
        (along,): coincidences scattered more than once over those scattered once, by the axial position of their middles.
    """

    areas: DetectorAreas
    activity_cps: np.ndarray
    triggers_cps: np.ndarray
    lutetium_cps: float
    lutetium_triggers_cps: float
    multiple_ratio: np.ndarray

    def rate_cps(self, drf: float, decay: float = 1.0) -> np.ndarray:
        """Singles in the window a crystal of efficiency 1, a decay / D + b, dead time not counted."""
        return self.activity_cps * (decay / drf) + self.lutetium_cps

    def live(self, drf: float, decay: float, tau_area_us_cm2: float) -> np.ndarray:
        """Live fraction of the readout blocks, (across, along).

        Paralyzable, exp(-tau n) with n the triggers of a block; a block of area A has tau = `tau_area_us_cm2` / A, so
        that only the triggers a face area count.
        """
        size = self.areas.scanner.crystal_size_mm
        triggers = self.triggers_cps * (decay / drf) + self.lutetium_triggers_cps
        return live_fraction(triggers / (size[0] * size[1] * 1e-2), tau_area_us_cm2)


def no_singles(scanner: Scanner) -> Singles:
    """No singles at all: no randoms, no dead time."""
    areas = DetectorAreas.of(scanner)
    zero = np.zeros((areas.across, areas.along))
    return Singles(areas, zero, zero, 0.0, 0.0, np.zeros(areas.along))


def subject_singles(
    scanner: Scanner,
    activity_bqml: np.ndarray,
    mu_per_cm: np.ndarray,
    grid: Grid,
    center_mm: tuple[float, float, float],
    fov_mm: float,
    branching: float,
    photon_efficiency: float = 1.0,
    decays: int = 1_000_000,
    seed: int = 0,
    backend: str = "numba",
) -> Singles:
    """Simulate the singles of a subject.

    Parameters
    ----------
    scanner : Scanner
    activity_bqml, mu_per_cm : ndarray
        (x, y, z), all of the subject, also what lies outside the field of view.
    grid : Grid
    center_mm : tuple of float
        The scanner's center in the grid's coordinates.
    fov_mm : float
        Diameter of the transaxial field of view, in which coincidences count for `multiple_ratio`.
    branching : float
        Positrons a decay.
    photon_efficiency : float
        Factor on singles in the window, for what the Monte Carlo does not know of the blocks.
    decays, seed, backend
        Of the Monte Carlo, see `photon_pairs`.
    """
    areas = DetectorAreas.of(scanner)
    counted, triggers = np.zeros((areas.across, areas.along)), np.zeros((areas.across, areas.along))
    orders = np.zeros((areas.along, 3))
    for batch in photon_pairs(scanner, activity_bqml, mu_per_cm, grid, center_mm, decays, seed, backend=backend):
        inside = batch.in_window(scanner)
        x, y, z = np.moveaxis(batch.position_mm.astype(np.float64), -1, 0)
        for weight, into in ((inside, counted), (batch.triggers, triggers)):
            hit = (weight > 0) & (batch.crystal >= 0)
            np.add.at(into, areas.index(x[hit], y[hit], z[hit]), weight[hit].astype(float))
        both = batch.coincident(scanner)
        chord = np.hypot(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0])
        both &= np.abs(x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]) <= fov_mm / 2 * chord
        middle = areas.index(x[both, 0], y[both, 0], z[both].mean(axis=1))[1]
        np.add.at(orders, (middle, np.minimum(batch.scatters[both].sum(axis=1), 2)), 1.0)
    per_decay = float(activity_bqml.sum(dtype=np.float64)) * grid.voxel_ml * branching / decays
    background = lutetium(scanner)
    of_crystal = background.decays_per_s / areas.crystals.sum()
    return Singles(
        areas=areas,
        activity_cps=areas.per_crystal(counted) * per_decay * photon_efficiency,
        triggers_cps=areas.per_crystal(triggers) * per_decay,
        lutetium_cps=of_crystal * background.singles * photon_efficiency,
        lutetium_triggers_cps=of_crystal * background.triggers,
        multiple_ratio=zone_ratio(areas.middles_mm, orders[:, 1], orders[:, 2]),
    )
