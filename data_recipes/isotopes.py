"""Radionuclides used in PET, and their decay.

Half-lives and positron branching ratios are those of the Decay Data Evaluation Project (DDEP, Table of Radionuclides,
Bureau International des Poids et Mesures, http://www.lnhb.fr/nuclear-data/nuclear-data-table/).
"""

import math
from dataclasses import dataclass

from data_recipes.errors import DataError


@dataclass(frozen=True)
class Isotope:
    """A positron emitter: `half_life_s` in seconds, `branching` = positrons a decay."""

    name: str
    half_life_s: float
    branching: float

    @property
    def decay_per_s(self) -> float:
        """Decay constant in 1/s."""
        return math.log(2.0) / self.half_life_s


_ISOTOPES = {
    i.name: i
    for i in (
        Isotope("F-18", 6586.2, 0.9686),
        Isotope("C-11", 1221.7, 0.9975),
        Isotope("N-13", 597.9, 0.9982),
        Isotope("O-15", 122.2, 0.9989),
        Isotope("Ga-68", 4070.0, 0.8888),
        Isotope("Cu-64", 45723.0, 0.1752),
        Isotope("Zr-89", 282240.0, 0.227),
        Isotope("Rb-82", 76.38, 0.9545),
    )
}


def isotope(name: str) -> Isotope:
    """The isotope called `name`; `F18`, `18F`, `F-18`, `^18^Fluorine` and `Fluorine 18` all mean F-18."""
    elements = {"FLUORINE": "F", "CARBON": "C", "NITROGEN": "N", "OXYGEN": "O", "GALLIUM": "GA", "COPPER": "CU",
                "ZIRCONIUM": "ZR", "RUBIDIUM": "RB"}  # fmt: skip
    letters = "".join(c for c in name.upper() if c.isalpha())
    digits = "".join(c for c in name if c.isdigit())
    wanted = f"{elements.get(letters, letters)}-{digits}"
    for known in _ISOTOPES.values():
        if known.name.upper() == wanted:
            return known
    raise DataError(f"isotope '{name}' is not known; known are {', '.join(_ISOTOPES)}")


def decay_factor(iso: Isotope, elapsed_s: float) -> float:
    """Fraction of activity that is left after `elapsed_s` seconds: exp(-lambda t)."""
    return math.exp(-iso.decay_per_s * elapsed_s)


def mean_decay_factor(iso: Isotope, duration_s: float) -> float:
    """Mean of exp(-lambda t) over a frame that starts at t = 0: (1 - exp(-lambda T)) / (lambda T)."""
    x = iso.decay_per_s * duration_s
    return -math.expm1(-x) / x if x > 0 else 1.0


def effective_seconds(iso: Isotope, duration_s: float) -> float:
    """Seconds of undecayed F-18 that give as many annihilations as a frame: sensitivity is published for F-18.

    duration x mean decay over the frame x positrons a decay relative to F-18.
    """
    return duration_s * mean_decay_factor(iso, duration_s) * iso.branching / isotope("F-18").branching
