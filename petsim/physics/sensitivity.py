"""Sensitivity to a line of 70 cm on the axis, predicted from geometry and global constants."""

import math
from functools import lru_cache

import numpy as np

from data_recipes.grid import Grid
from data_recipes.isotopes import isotope
from petsim.geometry.scanner import Scanner
from petsim.physics.monte_carlo import BORE_COVER_G_CM2, photon_pairs
from petsim.physics.photons import ELECTRON_KEV, POLYETHYLENE_G_CM3, POLYETHYLENE_PER_CM, crystal_attenuation
from petsim.physics.rates import LIGHT_SHARING, light_sharing

LINE_MM = 700
DECAYS = 2_000_000


@lru_cache(maxsize=32)
def sensitivity(scanner: Scanner, decays: int = DECAYS, seed: int = 0) -> float:
    """Sensitivity by Monte Carlo, cps/kBq of F-18 in the whole line.

    The sleeves of the standard are extrapolated away, the bore cover is part of the scanner. Randoms, dead time and the
    background of lutetium are zero: the standard measures at low activity and takes randoms off.

    Parameters
    ----------
    scanner : Scanner
    decays : int
        Simulated annihilations.
    seed : int

    Returns
    -------
    float
        cps/kBq.
    """
    accepted, _ = _accepted(scanner, decays, seed, BORE_COVER_G_CM2)
    return 1000 * isotope("F-18").branching * accepted


def _accepted(scanner: Scanner, decays: int, seed: int, cover_g_cm2: float) -> tuple[float, float]:
    """Share of annihilations that make a coincidence, and share of the interacting photons in the energy window."""
    grid = Grid.centered((1, 1, LINE_MM), (1.0, 1.0, 1.0))
    line, nothing = np.ones(grid.shape, np.float32), np.zeros(grid.shape, np.float32)
    pairs = photons = inside = 0
    for batch in photon_pairs(scanner, line, nothing, grid, (0.0, 0.0, 0.0), decays, seed, cover_g_cm2=cover_g_cm2):
        pairs += int(np.count_nonzero(batch.coincident(scanner)))
        photons += int(np.count_nonzero(batch.energy_kev))
        inside += int(np.count_nonzero(batch.in_window(scanner)))
    return pairs / decays, inside / photons


def closed_form_sensitivity(scanner: Scanner, decays: int = 200_000, seed: int = 0) -> float:
    """Sensitivity without following pairs, as a check of the Monte Carlo; cps/kBq.

    Both ends of a LOR at polar angle theta from the line must lie inside the rings; each photon is detected with
    q (1 - exp(-mu f depth / sin(theta))) and survives the cover. f is the share of the ring's volume that is crystal, q the
    share of the interacting photons in the energy window, which is the only number taken from a simulation. Within 7 % of
    the Monte Carlo where gaps are small against the crystals' depth; 24 % off with the gaps of 7.6 cm of the PennPET.

    Parameters
    ----------
    scanner : Scanner
    decays : int
        For q.
    seed : int

    Returns
    -------
    float
    """
    _, q = _accepted(scanner, decays, seed, 0.0)
    width, height, depth = scanner.crystal_size_mm
    around = int(scanner.transaxial_is_real().sum()) * width / (2 * math.pi * (scanner.inner_radius_mm + depth / 2))
    along = int(scanner.ring_is_real().sum()) * height / scanner.axial_length_mm
    photo, incoherent = crystal_attenuation(scanner.crystal_material, np.array(ELECTRON_KEV))
    mu = float(photo + incoherent) / 10
    cos = (np.arange(1000) + 0.5) / 1000
    sin = np.sqrt(1 - cos**2)
    half_mm = (scanner.inner_radius_mm + 0.4 * depth) * cos / sin
    detected = q * (1 - np.exp(-mu * around * along * depth / sin))
    detected *= np.exp(-POLYETHYLENE_PER_CM * BORE_COVER_G_CM2 / POLYETHYLENE_G_CM3 / sin)
    z = (np.arange(350) + 0.5)[:, None]
    acceptance_mm = (scanner.max_ring_difference + 0.5) * scanner.ring_spacing_mm
    both = (z + half_mm < scanner.axial_length_mm / 2) & (2 * half_mm <= acceptance_mm)
    return 1000 * isotope("F-18").branching * float((both * detected**2).mean())


def photons_kept(scanner: Scanner) -> float:
    """Share of the photons in the window that blocks with light sharing keep (calibrated); 1 for other blocks."""
    if scanner.photosensor not in LIGHT_SHARING or scanner.sensitivity_cps_per_kbq is None:
        return 1.0
    return light_sharing(scanner, sensitivity(scanner))
