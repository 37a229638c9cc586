"""Families of generated patients: who is drawn, and how far anatomy strays; some are for tests only."""

from dataclasses import dataclass

from data_recipes.errors import UsageError


@dataclass(frozen=True)
class Family:
    """How the patients of a family are drawn.

    Parameters
    ----------
    name : str
    bmi : float
        Median body mass index in kg/m2.
    warp_mm, warp_knot_mm : float
        Standard deviation of the shift of outlines across, and the length over which it changes.
    texture : float
        Factor of the texture inside organs.
    mirrored : bool
        Situs inversus: right and left are exchanged.
    closed : bool
        Uptake of tissues that are no organ is shifted for each patient, within its ranges, so that activity in the image,
        in the legs below it and in voided urine is what was injected, less decay (`data_recipes.phantoms.budget`).
    skin : bool
        There is skin over the fat. The family "reference", older than both, is not closed and has none.
    held_out : bool
        Not for training: later tests ask for transfer to it.
    """

    name: str
    bmi: float = 25.0
    warp_mm: float = 3.0
    warp_knot_mm: float = 95.0
    texture: float = 1.0
    mirrored: bool = False
    closed: bool = True
    skin: bool = True
    held_out: bool = False


REFERENCE = Family("reference", closed=False, skin=False)
FAMILIES = {
    family.name: family
    for family in (
        REFERENCE,
        Family("balanced"),
        Family("slender", bmi=19.5),
        Family("heavy", bmi=33.0),
        Family("warped", warp_mm=5.5, warp_knot_mm=60.0, texture=2.0, held_out=True),
        Family("mirrored", mirrored=True, held_out=True),
    )
}
DEFAULT = "balanced"
"""The family that is drawn where none is named."""
HELD_OUT_SHAPES = ("necrotic",)
"""Lesion shapes that are not for training."""


def family_named(name: str) -> Family:
    """A family; `UsageError` where there is none of that name."""
    if name not in FAMILIES:
        raise UsageError(f"--family: '{name}' is not known; give one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
