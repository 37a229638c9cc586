"""Where the injected activity is: uptake of one patient, shifted within its ranges until none is lost or made.

Tissues are drawn one by one, so that their activity rarely adds up. What is known then is, of each tissue i with
activity A_i, that ln SUV_i was drawn with a spread s_i, and that the sum is T. The most likely shifts f_i given
that sum minimize sum((ln f_i)**2 / s_i**2) where sum(A_i f_i) = T; to first order ln f_i = t A_i s_i**2, with one t for
all: what holds much activity and is known badly gives way most. No tissue leaves its range, which can leave a rest. Organs
keep their draw; muscle, fat, connective tissue, bone and skin, whose means are assumed, give way.
"""

import numpy as np

from data_recipes.phantoms.anatomy import LABEL
from data_recipes.phantoms.shapes import Canvas
from data_recipes.phantoms.uptake import MASS_ATTENUATION_CM2_PER_G, TISSUES, excreted_fraction

_TISSUES_OF_LABEL = {
    "fat": ("fat",), "visceral_fat": ("visceral_fat",), "muscle": ("muscle",), "breast": ("breast",), "body": ("body",),
    "bone": ("bone", "marrow_limb", "cortical_bone"), "marrow": ("marrow",), "skull": ("skull",), "skin": ("skin",),
}  # fmt: skip
"""What gives way, by label, and the tissues whose ranges bind it."""
_THIGHS_MM = 50.0


def close_budget(canvas: Canvas, suv: dict[str, float], weight_kg: float, mass_kg: float, uptake_s: float) -> None:
    """Shift uptake so that the image, the legs below it and voided urine hold what was injected, less decay.

    Parameters
    ----------
    canvas : Canvas
        Of the whole patient; its `suv` is changed.
    suv : dict
        What was drawn, by tissue.
    weight_kg, mass_kg : float
        Of the patient, and of its part in the image. The rest is taken to be as the lowest 50 mm of the image, the thighs.
    uptake_s : float
        From injection to scan.
    """
    per_voxel = canvas.grid.voxel_ml / (weight_kg * 1e3)
    image = _activity(canvas, slice(None)) * per_voxel
    thighs = slice(0, max(1, round(_THIGHS_MM / canvas.grid.spacing_mm[2])))
    thighs_kg = canvas.mu[:, :, thighs].sum(dtype=np.float64) / MASS_ATTENUATION_CM2_PER_G * canvas.grid.voxel_ml * 1e-3
    legs = _activity(canvas, thighs) * per_voxel * (weight_kg - mass_kg) / thighs_kg
    voided = max(excreted_fraction(uptake_s) - image[LABEL["bladder"]], 0.0)

    names = list(_TISSUES_OF_LABEL)
    labels = [LABEL[name] for name in names]
    held = (image + legs)[labels]
    spread = np.array([TISSUES[_TISSUES_OF_LABEL[name][0]].spread for name in names])
    low = np.array([max(TISSUES[t].low / suv[t] for t in _TISSUES_OF_LABEL[name]) for name in names])
    high = np.array([min(TISSUES[t].high / suv[t] for t in _TISSUES_OF_LABEL[name]) for name in names])
    wanted = 1.0 - voided - ((image + legs).sum() - held.sum())

    def shifts(t: float) -> np.ndarray:
        # The exponent is bounded well beyond any range, so that it cannot overflow.
        return np.clip(np.exp(np.clip(t * held * spread**2, -5.0, 5.0)), low, high)

    below, above = -1e5, 1e5
    for _ in range(60):
        t = (below + above) / 2
        below, above = (below, t) if float(held @ shifts(t)) > wanted else (t, above)
    factors = np.ones(256, dtype=np.float32)
    factors[labels] = shifts((below + above) / 2)
    canvas.suv *= factors[canvas.labels]


def _activity(canvas: Canvas, slices: slice) -> np.ndarray:
    """Sum of SUV by label over some slices, in voxels."""
    labels, suv = canvas.labels[:, :, slices].ravel(), canvas.suv[:, :, slices].ravel()
    return np.bincount(labels, weights=suv, minlength=256)
