"""How photons of 25 to 600 keV interact: Klein-Nishina scattering, and cross sections of the crystals.

Units are keV, cm and barn. Crystal values are those of xraydb 4.5.8 (https://xraypy.github.io/XrayDB), which holds the
tables of Elam, Ravel and Sieber, Radiat Phys Chem 2002;63:121, doi 10.1016/S0969-806X(01)00227-4; coherent scattering is
left out.
"""

import math
from functools import lru_cache

import numba as nb
import numpy as np

from data_recipes.errors import DataError

ELECTRON_KEV = 510.99895
"""Rest energy of the electron, and energy of an annihilation photon (CODATA 2018)."""

CUTOFF_KEV = 25.0
"""Below this energy a photon is not followed any more."""

HIGHEST_KEV = 600.0

POLYETHYLENE_G_CM3 = 0.96
POLYETHYLENE_PER_CM = 0.0945
"""Incoherent attenuation of polyethylene at 511 keV (xraydb)."""

_BARN_PER_ELECTRON = 0.0794078
"""Classical electron radius squared in barn (CODATA 2018)."""

_EDGE = 1e-6
_ABOVE_KEV = [100, 120, 150, 200, 250, 300, 350, 400, 450, 511, 550, 600]
_LUTETIUM_KEV = [25, 30, 40, 50, 63.314 - _EDGE, 63.314, 70, 80, *_ABOVE_KEV]
_BISMUTH_KEV = [25, 30, 40, 50, 60, 70, 80, 90.526 - _EDGE, 90.526, *_ABOVE_KEV]

_CRYSTALS = {
    # Lu2SiO5, 7.4 g/cm3: energies, photoelectric, incoherent.
    "LSO": (
        _LUTETIUM_KEV,
        [177.2, 108.2, 49.08, 26.44, 13.68, 71.23, 54.75, 38.52, 21.26, 13.0, 7.082, 3.228, 1.763, 1.084, 0.7241, 0.5143,
         0.3828, 0.2806, 0.2354, 0.1919],
        [0.7376, 0.7765, 0.823, 0.8452, 0.8556, 0.8556, 0.8559, 0.8527, 0.8385, 0.8193, 0.7878, 0.737, 0.6925, 0.6541,
         0.6209, 0.5918, 0.5662, 0.5389, 0.5232, 0.5047],
    ),
    # Lu1.8Y0.2SiO5, 7.1 g/cm3; the share of yttrium is assumed and differs between vendors.
    "LYSO": (
        _LUTETIUM_KEV,
        [169.8, 103.7, 46.98, 25.28, 13.07, 64.7, 49.72, 34.97, 19.29, 11.79, 6.416, 2.923, 1.596, 0.9807, 0.655, 0.4651,
         0.3462, 0.2537, 0.2128, 0.1735],
        [0.719, 0.756, 0.8, 0.8206, 0.8297, 0.8297, 0.8297, 0.8261, 0.8116, 0.7925, 0.7616, 0.7121, 0.6688, 0.6315, 0.5993,
         0.5712, 0.5464, 0.5199, 0.5048, 0.487],
    ),
    # Bi4Ge3O12, 7.13 g/cm3.
    "BGO": (
        _BISMUTH_KEV,
        [260.0, 160.5, 73.95, 40.26, 24.4, 15.94, 11.03, 7.83, 34.25, 26.41, 16.41, 9.134, 4.266, 2.371, 1.478, 0.9983,
         0.7155, 0.5367, 0.3964, 0.3338, 0.2733],
        [0.6786, 0.7158, 0.7629, 0.7864, 0.7967, 0.7993, 0.7973, 0.792, 0.792, 0.7857, 0.7689, 0.7408, 0.6946, 0.6533,
         0.6174, 0.5863, 0.5591, 0.5352, 0.5095, 0.4947, 0.4773],
    ),
}  # fmt: skip


def crystal_attenuation(material: str, energy_kev: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Photoelectric and incoherent attenuation of a crystal, interpolated in log energy and log attenuation.

    Parameters
    ----------
    material : str
        LSO, LYSO or BGO.
    energy_kev : array_like
        25 to 600 keV.

    Returns
    -------
    photoelectric, incoherent : ndarray
        float64, 1/cm.

    Raises
    ------
    DataError
        An unknown material, or an energy outside the tables.
    """
    if material not in _CRYSTALS:
        raise DataError(f"no cross sections for crystal '{material}'; known are {', '.join(_CRYSTALS)}")
    energy = np.asarray(energy_kev, float)
    if np.any(energy < CUTOFF_KEV) or np.any(energy > HIGHEST_KEV):
        raise DataError(f"cross sections are tabulated from {CUTOFF_KEV:g} to {HIGHEST_KEV:g} keV; keep energies inside")
    energies, *columns = (np.log(c) for c in _CRYSTALS[material])
    photoelectric, incoherent = (np.exp(np.interp(np.log(energy), energies, c)) for c in columns)
    return photoelectric, incoherent


@nb.njit(cache=True, nogil=True)
def klein_nishina_total(e_kev):
    """Total Klein-Nishina cross section of a free electron at `e_kev`, in barn.

    Klein and Nishina, Z Phys 1929;52:853, doi 10.1007/BF01366453.
    """
    k = e_kev / ELECTRON_KEV
    grown = math.log(1 + 2 * k)
    first = (1 + k) / k**2 * (2 * (1 + k) / (1 + 2 * k) - grown / k)
    return 2 * math.pi * _BARN_PER_ELECTRON * (first + grown / (2 * k) - (1 + 3 * k) / (1 + 2 * k) ** 2)


@nb.njit(cache=True, nogil=True)
def klein_nishina_differential(e_kev, cos):
    """Klein-Nishina cross section per solid angle at `e_kev` and scattering angle cosine `cos`, in barn/sr."""
    ratio = 1 / (1 + e_kev / ELECTRON_KEV * (1 - cos))
    return 0.5 * _BARN_PER_ELECTRON * ratio * ratio * (ratio + 1 / ratio - 1 + cos * cos)


@nb.njit(cache=True, nogil=True)
def scattered_energy(e_kev, cos):
    """Energy in keV of a photon of `e_kev` after Compton scattering by an angle of cosine `cos`."""
    return e_kev / (1 + e_kev / ELECTRON_KEV * (1 - cos))


@nb.njit(cache=True, nogil=True)
def attenuation_ratio(e_kev):
    """Attenuation of tissue at `e_kev` relative to 511 keV: ratio of the total Klein-Nishina cross sections.

    Coherent scattering (forward, no energy lost) and the photoelectric effect (1 % of water at 100 keV) are left out.
    """
    return klein_nishina_total(e_kev) / klein_nishina_total(ELECTRON_KEV)


@lru_cache
def attenuation_ratio_table() -> np.ndarray:
    """`attenuation_ratio` at 0, 1, ..., 600 keV (entries below `CUTOFF_KEV` hold the one there), read-only."""
    table = np.array([attenuation_ratio(max(float(e), CUTOFF_KEV)) for e in range(int(HIGHEST_KEV) + 1)])
    table.flags.writeable = False
    return table
