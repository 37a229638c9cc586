"""Radionuclides used in PET: their decay, and how far their positrons travel.

Half-lives and positron branching ratios are those of the Decay Data Evaluation Project (DDEP, Table of Radionuclides,
Bureau International des Poids et Mesures, http://www.lnhb.fr/nuclear-data/nuclear-data-table/).

End points of the beta spectra and positrons a decay by branch are those of Conti and Eriksson 2016
(doi 10.1186/s40658-016-0144-5), read in a table that quotes them (doi 10.2967/jnumed.121.263506, table 3); mean energies are
theirs too, but for Ga-68 and Rb-82 not verified. Gamma rays that come with the positrons (Cu-64 1346 keV, Ga-68 1077 keV,
Rb-82 777 keV; Zr-89 909 keV, delayed by 16 s) are not modeled: their coincidences would add a background.
"""

import math
from dataclasses import dataclass

from data_recipes.errors import DataError


@dataclass(frozen=True)
class Beta:
    """One branch of positron decay: positrons a decay, end point and mean of their energy in MeV."""

    per_decay: float
    end_point_mev: float
    mean_mev: float


@dataclass(frozen=True)
class Isotope:
    """A positron emitter: `half_life_s` in seconds, `branching` = positrons a decay, `betas` the branches that matter."""

    name: str
    half_life_s: float
    branching: float
    betas: tuple[Beta, ...] = ()

    @property
    def decay_per_s(self) -> float:
        """Decay constant in 1/s."""
        return math.log(2.0) / self.half_life_s


_ISOTOPES = {
    i.name: i
    for i in (
        Isotope("F-18", 6586.2, 0.9686, (Beta(0.969, 0.634, 0.250),)),
        Isotope("C-11", 1221.7, 0.9975, (Beta(0.998, 0.960, 0.386),)),
        Isotope("N-13", 597.9, 0.9982, (Beta(0.998, 1.199, 0.492),)),
        Isotope("O-15", 122.2, 0.9989, (Beta(0.999, 1.732, 0.735),)),
        Isotope("Ga-68", 4070.0, 0.8888, (Beta(0.877, 1.899, 0.836), Beta(0.012, 0.821, 0.352))),
        Isotope("Cu-64", 45723.0, 0.1752, (Beta(0.175, 0.653, 0.278),)),
        Isotope("Zr-89", 282240.0, 0.227, (Beta(0.227, 0.902, 0.396),)),
        Isotope("Rb-82", 76.38, 0.9545, (Beta(0.818, 3.378, 1.535), Beta(0.131, 2.601, 1.168))),
    )
}

# C, k1 and k2 (1/mm) of the distances along one axis in water, C exp(-k1 |x|) + (1 - C) exp(-k2 |x|).
_DISTANCES = {
    "F-18": (0.519, 27.9, 2.91),
    "C-11": (0.501, 24.5, 1.76),
    "N-13": (0.433, 25.4, 1.44),
    "O-15": (0.263, 33.2, 1.00),
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


def mean_range_mm(iso: Isotope) -> float:
    """Mean straight distance in mm from decay to annihilation in water: 1.08 mm x (end point in MeV)^1.14 a branch.

    Blanco 2006 (IEEE NSS, "Positron range effects on the spatial resolution of RPC-PET") as quoted by Lehnert et al. 2011,
    doi 10.1088/0031-9155/56/11/009; both not verified, the formula was read in the code of GATE's tests. It agrees
    with the fits behind `range_terms` to some 6 %.

    Raises
    ------
    DataError
        An isotope without positron energies.
    """
    if not iso.betas:
        raise DataError(
            f"isotope {iso.name}: its positron energies are not known, so that its positron range cannot be; "
            f"isotopes that have them are {', '.join(_ISOTOPES)}"
        )
    weighted = sum(b.per_decay * 1.08 * b.end_point_mev**1.14 for b in iso.betas)
    return weighted / sum(b.per_decay for b in iso.betas)


def range_terms(iso: Isotope) -> tuple[tuple[float, float], ...]:
    """Where positrons annihilate in water: pairs (weight, k in 1/mm) of an isotropic distribution around the decay.

    The density at distance r is the sum of weight k^2 exp(-k r) / (4 pi r); along any axis it is then
    weight k exp(-k |x|) / 2, with the variance 2 weight / k^2, and its Fourier transform is weight k^2 / (k^2 + q^2).
    Its mean distance is the sum of 2 weight / k. That is the only isotropic distribution whose projection is the sum of
    two exponentials that Levin and Hoffman 1999 (doi 10.1088/0031-9155/44/3/019, table 2; not verified, coefficients read in
    the code of their group's simulator) fitted for F-18, C-11, N-13 and O-15. Other isotopes get the shape of that one of
    these whose mean range is nearest, scaled to their own `mean_range_mm`: such scaling is good to 5 %
    (Cal-Gonzalez et al. 2013, AIP Conf Proc 1541:169, abstract).

    Raises
    ------
    DataError
        As `mean_range_mm`.
    """
    own = mean_range_mm(iso)
    nearest = min(_DISTANCES, key=lambda name: abs(math.log(mean_range_mm(_ISOTOPES[name]) / own)))
    fraction, k1, k2 = _DISTANCES[nearest]
    scale = mean_range_mm(_ISOTOPES[nearest]) / own
    areas = (fraction / k1, (1 - fraction) / k2)
    return (areas[0] / sum(areas), k1 * scale), (areas[1] / sum(areas), k2 * scale)
