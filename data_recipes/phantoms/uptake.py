"""What tissues take up of FDG and how they attenuate: the two tables behind the whole-body phantom.

SUV by body weight, about one hour after injection. Rows that carry a DOI take their value (or one inside the range)
from that text; rows marked "assumed" are usual clinical values that were not checked against a source.

Linear attenuation coefficients are for 511 keV: water 0.096 and bone of 1.8 g/mL 0.155 /cm, calculated without coherent
scatter in https://jnm.snmjournals.org/highwire/markup/57366/expansion; tissue compositions are those of ICRU Report 44
(https://physics.nist.gov/PhysRefData/XrayMassCoef/tab4.html). Compton scatter dominates, so that mass attenuation is
0.096 cm2/g within some ten per cent for every tissue: lung of 0.28 g/mL has 0.027 and fat of 0.95 g/mL 0.090 /cm.
"""

from dataclasses import dataclass

import numpy as np

from data_recipes.errors import DataError

MASS_ATTENUATION_CM2_PER_G = 0.096

_ATLAS = "doi 10.1007/s11307-006-0075-y"
_LIVER = "mean between doi 10.5812/iranjradiol.84881 (1.87 +- 0.41) and doi 10.2967/jnmt.119.233353 (3.0 +- 0.5)"
_BLOOD = "liver/blood ratio of doi 10.2967/jnmt.119.233353 (3.0 : 2.4) and usual 1.4-2.2"
_ASSUMED = "assumed"
_SKIN = (_ASSUMED + "; as connective tissue, below the maxima 2.07 +- 0.53 (scalp) and 3.09 +- 1.04 (face) in "
         "doi 10.1371/journal.pone.0249304; mu of 1.09 g/mL")  # fmt: skip


@dataclass(frozen=True)
class Tissue:
    """One row: mean SUV, relative SD between subjects, allowed range, relative SD inside the organ, mu, origin."""

    suv: float
    spread: float
    low: float
    high: float
    texture: float
    mu_per_cm: float
    source: str


TISSUES: dict[str, Tissue] = {
    "fat": Tissue(0.25, 0.15, 0.15, 0.40, 0.05, 0.090, _ASSUMED + "; below visceral fat, doi 10.1002/oby.20957"),
    "visceral_fat": Tissue(0.48, 0.15, 0.30, 0.70, 0.06, 0.091, _ASSUMED + "; above fat, doi 10.1002/oby.20957"),
    "muscle": Tissue(0.68, 0.15, 0.40, 0.95, 0.06, 0.096, _ASSUMED),
    "body": Tissue(0.95, 0.12, 0.60, 1.20, 0.05, 0.096, _ASSUMED + " (mediastinal and connective tissue)"),
    "lung": Tissue(0.45, 0.18, 0.28, 0.70, 0.06, 0.027, _ASSUMED + "; 0.28 g/mL"),
    "liver": Tissue(2.20, 0.16, 1.40, 3.20, 0.010, 0.096, _LIVER),
    "spleen": Tissue(1.80, 0.15, 1.15, 2.60, 0.02, 0.096, "range 1.2-1.8 in doi 10.1155/2022/3804673, mean assumed"),
    "kidney": Tissue(2.60, 0.20, 1.60, 4.00, 0.05, 0.096, _ASSUMED),
    "renal_pelvis": Tissue(7.0, 0.50, 2.0, 18.0, 0.0, 0.096, _ASSUMED),
    "stomach": Tissue(1.90, 0.25, 1.00, 3.50, 0.06, 0.096, _ASSUMED),
    "stomach_lumen": Tissue(0.60, 0.20, 0.30, 1.00, 0.0, 0.090, _ASSUMED),
    "colon": Tissue(1.50, 0.35, 0.80, 3.50, 0.15, 0.094, _ASSUMED),
    "small_bowel": Tissue(1.20, 0.25, 0.70, 2.20, 0.12, 0.096, _ASSUMED),
    "pancreas": Tissue(1.50, 0.15, 1.00, 2.20, 0.04, 0.096, _ASSUMED),
    "blood_pool": Tissue(1.60, 0.14, 1.10, 2.30, 0.01, 0.098, _BLOOD),
    "myocardium": Tissue(4.0, 0.75, 1.5, 12.0, 0.05, 0.098, _ASSUMED + " (fasting state decides; lognormal)"),
    "marrow": Tissue(1.20, 0.18, 0.75, 1.90, 0.06, 0.107, _ASSUMED + "; spongiosa of 1.1-1.15 g/mL"),
    "marrow_limb": Tissue(0.65, 0.18, 0.40, 1.00, 0.06, 0.112, _ASSUMED + "; mostly yellow marrow"),
    "bone": Tissue(0.60, 0.18, 0.35, 1.00, 0.04, 0.130, _ASSUMED + "; cortex and spongiosa mixed"),
    "skull": Tissue(0.60, 0.18, 0.35, 1.00, 0.03, 0.145, _ASSUMED + "; diploe between two tables of 0.155-0.17 /cm"),
    "cortical_bone": Tissue(0.35, 0.18, 0.20, 0.60, 0.0, 0.155, "mu: bone of 1.8 g/mL; SUV " + _ASSUMED),
    "disc": Tissue(0.55, 0.15, 0.35, 0.85, 0.02, 0.100, _ASSUMED),
    "brain_gray": Tissue(8.20, 0.17, 5.00, 12.0, 0.05, 0.099, "a little above cerebellum, " + _ATLAS),
    "brain_white": Tissue(3.00, 0.17, 1.90, 4.50, 0.03, 0.099, _ASSUMED + " (gray to white about 2.7)"),
    "cerebellum": Tissue(7.60, 0.17, 4.50, 11.0, 0.05, 0.099, "8.0 +- 2.2 in " + _ATLAS),
    "spinal_cord": Tissue(1.60, 0.15, 1.10, 2.30, 0.02, 0.099, _ASSUMED),
    "fluid": Tissue(0.50, 0.15, 0.30, 0.80, 0.0, 0.096, _ASSUMED),
    "gland": Tissue(1.90, 0.25, 1.00, 3.50, 0.04, 0.096, _ASSUMED + " (parotid, submandibular)"),
    "tonsil": Tissue(3.20, 0.30, 1.60, 6.0, 0.04, 0.096, "palatine 3.45 +- 1.4, lingual 3.08 +- 1.05 in " + _ATLAS),
    "testis": Tissue(2.57, 0.22, 1.40, 4.0, 0.02, 0.096, "2.57 +- 0.56 in " + _ATLAS),
    "pelvic_organ": Tissue(1.20, 0.20, 0.80, 2.0, 0.04, 0.096, _ASSUMED + " (prostate, uterus)"),
    "breast": Tissue(0.70, 0.25, 0.40, 1.2, 0.08, 0.093, _ASSUMED),
    "skin": Tissue(0.90, 0.12, 0.50, 1.50, 0.04, 0.105, _SKIN),
    "bladder": Tissue(14.0, 0.60, 5.0, 30.0, 0.0, 0.097, _ASSUMED + "; only its range is used, by `urine_suv`"),
    "air": Tissue(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, "exact"),
}

# Liver and blood vary together (r = 0.82 over 1018 subjects: "Effect of blood pool 18F-FDG activity on liver SUV: a
# calibration methodology study", abstract): the shared part stands for glucose, uptake time and the injection itself.
_SHARED = ("liver", "blood_pool", "spleen", "marrow", "body", "kidney", "pancreas")
_SHARED_WEIGHT = 0.82**0.5


def draw_suv(rng: np.random.Generator, bmi: float) -> dict[str, float]:
    """SUV of every tissue for one subject.

    Lean tissue of heavy people has a higher SUV by body weight, since fat takes up little: liver 3.0 at normal and 4.1
    at high body mass index (doi 10.2967/jnmt.119.233353), which is bmi**0.6 when the groups' means are 22 and 35 kg/m2.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    bmi : float
        Body mass index in kg/m2.

    Returns
    -------
    dict
        Tissue name to SUV (g/mL).
    """
    stature = (bmi / 25.0) ** 0.6
    shared = rng.standard_normal()
    drawn = {}
    for name, tissue in TISSUES.items():
        if name == "skin":
            # Collagen and blood, as other connective tissue: no draw of its own.
            drawn[name] = float(np.clip(tissue.suv * drawn["body"] / TISSUES["body"].suv, tissue.low, tissue.high))
            continue
        own = rng.standard_normal()
        z = _SHARED_WEIGHT * shared + (1.0 - _SHARED_WEIGHT**2) ** 0.5 * own if name in _SHARED else own
        sigma = np.log1p(tissue.spread**2) ** 0.5
        lean = 1.0 if name in ("fat", "visceral_fat", "air", "bladder") else stature
        drawn[name] = float(np.clip(tissue.suv * lean * np.exp(sigma * z - 0.5 * sigma**2), tissue.low, tissue.high))
    return drawn


def urine_suv(excreted_fraction: float, volume_ml: float, weight_kg: float) -> float:
    """SUV of bladder urine that holds `excreted_fraction` of the injected activity, kept within 5 to 30."""
    tissue = TISSUES["bladder"]
    return float(np.clip(excreted_fraction * weight_kg * 1e3 / volume_ml, tissue.low, tissue.high))


def excreted_fraction(uptake_s: float) -> float:
    """Part of the injected activity (decay-corrected) that has gone to urine.

    0.24 in the end, a quarter of it with a half-life of 12 and three quarters with one of 90 minutes: the model of ICRP
    Publication 128, not verified at its source; its successor is doi 10.1186/s40658-023-00528-9.
    """
    minutes = uptake_s / 60.0
    return 0.24 * (0.25 * (1 - 0.5 ** (minutes / 12.0)) + 0.75 * (1 - 0.5 ** (minutes / 90.0)))


# Names of labels that stand for several tissues.
_TISSUE_OF_LABEL = {
    "outside": "air", "airway": "air", "background": "body", "lungs": "lung", "brain": "brain_gray", "bowel": "small_bowel",
}  # fmt: skip
_SOFT = "body"


def mu_from_labels(labels: np.ndarray, names: dict[int, str]) -> np.ndarray:
    """A mu-map from organ labels, by the table of tissues.

    Parameters
    ----------
    labels : ndarray
        Integers, any shape.
    names : dict
        Label value to organ: a name in `TISSUES`, "outside", "airway", "background", "lungs", "brain" or "bowel". A lesion
        ("lesion_3_bone") counts as marrow in bone, else as soft tissue.

    Returns
    -------
    ndarray
        float32 in 1/cm, same shape.

    Raises
    ------
    DataError
        A label without a name, or a name without a tissue.
    """
    present = [int(value) for value in np.unique(labels)]
    table = np.zeros(max(present) + 1, np.float32)
    for value in present:
        name = "outside" if value == 0 else names.get(value)
        if name is None:
            raise DataError(f"label {value} has no name, so that its attenuation is not known; name it or give a mu-map")
        if name.startswith("lesion_"):
            name = "marrow" if name.endswith("_bone") else _SOFT
        tissue = _TISSUE_OF_LABEL.get(name, name)
        if tissue not in TISSUES:
            raise DataError(f"label {value}: no attenuation is known for '{name}'; known are {', '.join(TISSUES)}")
        table[value] = TISSUES[tissue].mu_per_cm
    return table[labels]
