"""Names of tracers and isotopes as files write them."""

from dataclasses import replace

from data_recipes.errors import DataError
from data_recipes.isotopes import Isotope, isotope

# Half-lives in files are rounded (F-18: 6582 to 6600 s); the isotopes lie further apart.
HALF_LIFE_TOLERANCE = 0.02

_PET = ("F-18", "C-11", "N-13", "O-15", "Ga-68", "Cu-64", "Zr-89", "Rb-82")
_SINGLE_PHOTON = ("99mtc", "tc99m", "technetium", "123i", "i123", "iodine123", "123iodine", "131i", "i131", "iodine131",
                  "131iodine", "111in", "in111", "indium", "177lu", "lu177", "lutetium", "201tl", "tl201", "thallium",
                  "67ga", "ga67", "gallium67", "67gallium", "133xe", "xe133", "xenon", "81mkr", "kr81m", "krypton",
                  "153sm", "sm153", "samarium")  # fmt: skip
_TRACERS = (
    ("FDG", ("fdg", "deoxyglucose", "fludeoxyglucose")),
    ("PSMA", ("psma", "piflufolastat")),
    ("DOTATATE", ("dotatate",)),
    ("DOTATOC", ("dotatoc",)),
    ("FAPI", ("fapi",)),
    ("FET", ("fluoroethyl", "fet")),
    ("FLT", ("fluorothymidine", "flt")),
    ("florbetapir", ("florbetapir",)),
    ("choline", ("choline",)),
    ("NaF", ("fluoride", "naf")),
)


def is_single_photon(words: str) -> bool:
    """Whether a single-photon emitter (Tc-99m, I-123, In-111, Lu-177, ...) is named."""
    told = _plain(words)
    return any(name in told for name in _SINGLE_PHOTON)


def tracer_name(words: str) -> str:
    """A known tracer's short name, or "unknown": free text of a file is never passed on."""
    told = _plain(words)
    return next((name for name, parts in _TRACERS if any(part in told for part in parts)), "unknown")


def resolve_isotope(name: str, half_life_s: float | None) -> Isotope | None:
    """The isotope of that name with the file's half-life; by the half-life alone where `name` is empty.

    Parameters
    ----------
    name : str
        As the file writes it, such as "^18^Fluorine".
    half_life_s : float, optional
        In seconds.

    Returns
    -------
    Isotope or None
        None when neither is given.

    Raises
    ------
    DataError
        For a single-photon emitter, an unknown isotope, or a half-life that is not that of the isotope.
    """
    if is_single_photon(name):
        raise DataError(f"'{name}' is a single-photon emitter: this is SPECT, not PET")
    if name:
        known = isotope(name)
    elif half_life_s is None:
        return None
    else:
        near = [iso for iso in map(isotope, _PET) if _same(iso.half_life_s, half_life_s)]
        if not near:
            raise DataError(f"a half-life of {half_life_s:g} s belongs to no known PET isotope (SPECT is not read)")
        known = near[0]
    if half_life_s is None:
        return known
    if not _same(known.half_life_s, half_life_s):
        raise DataError(f"the half-life is {half_life_s:g} s but {known.name} has {known.half_life_s:g} s; repair it")
    return replace(known, half_life_s=half_life_s)


def _same(one: float, other: float) -> bool:
    return abs(other / one - 1) < HALF_LIFE_TOLERANCE


def _plain(words: str) -> str:
    return "".join(c for c in words.lower() if c.isalnum())
