"""What generated patients look like, and whether their numbers are those of people.

    python -m benchmarks.patients

A contact sheet of 24 patients (coronal maximum-intensity projections, SUV 0 to 7; twelve of the default family, six
slender, six heavy) and a table: SUV mean and volume by organ, median and range over the 24, beside the ranges of its tables,
which name their sources; and the budget of activity (image, legs below it, voided urine) over what was injected, decayed,
of 24 patients of each family on coarse voxels.
"""

from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks.common import RESULTS, emit
from data_recipes.phantoms.families import FAMILIES
from data_recipes.phantoms.uptake import TISSUES, excreted_fraction
from data_recipes.phantoms.whole_body import whole_body
from data_recipes.subject import Subject

SHOWN = ("balanced",) * 12 + ("slender",) * 6 + ("heavy",) * 6
SPACING_MM = (5.0, 5.0, 5.0)
COARSE_MM = (8.0, 8.0, 8.0)
PATIENTS = 24
TOP_SUV = 7.0

# Around the reference man and woman of ICRP Publication 89, as in the tests.
VOLUMES_ML = {
    "liver": (850, 2700), "lung": (1900, 6000), "brain": (900, 1750), "spleen": (45, 400), "kidney": (130, 560),
    "bladder": (40, 450), "myocardium": (50, 260), "cerebellum": (70, 200),
}  # fmt: skip
TISSUE = {"brain": "brain_gray"}
SUVS = (
    "liver",
    "spleen",
    "lung",
    "blood_pool",
    "myocardium",
    "brain",
    "cerebellum",
    "kidney",
    "marrow",
    "muscle",
    "fat",
    "bladder",
)


def mask(person: Subject, organ: str) -> np.ndarray:
    """Voxels of an organ."""
    assert person.labels is not None
    return person.labels == next(value for value, name in person.label_names.items() if name == organ)


def measured(person: Subject) -> dict[str, Any]:
    """SUV mean and volume by organ, and the budget, of one patient."""
    factor = person.suv_factor()
    injection = person.injection
    at_scan = person.activity_at_scan_mbq()
    assert factor and at_scan and injection.weight_kg and injection.uptake_s and person.mu_per_cm is not None
    suv = person.activity_bqml * factor
    found: dict[str, Any] = {"suv": {}, "ml": {}}
    for organ in {*SUVS, *VOLUMES_ML}:
        inside = mask(person, organ)
        found["ml"][organ] = float(inside.sum() * person.grid.voxel_ml)
        core = ndimage.binary_erosion(inside)
        # A thin wall has no core.
        found["suv"][organ] = float(suv[core if core.sum() > 50 else inside].mean())
    low = slice(0, round(50 / person.grid.spacing_mm[2]))
    thighs = suv[:, :, low][person.mu_per_cm[:, :, low] > 0.05].mean()
    legs = thighs * (1 - person.provenance["mass_in_image_kg"] / injection.weight_kg)
    urine = suv[mask(person, "bladder")].sum() * person.grid.voxel_ml / (1e3 * injection.weight_kg)
    voided = max(excreted_fraction(injection.uptake_s) - urine, 0.0)
    found["image"] = person.total_mbq() / at_scan
    found["budget"] = float(found["image"] + legs + voided)
    return found


def contact_sheet(people: list[Subject]) -> None:
    """Four rows of six projections."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.8, 14.4), facecolor="white")
    for k, person in enumerate(people):
        axes = figure.add_axes(((k % 6) / 6, 1 - (k // 6 + 1) / 4, 1 / 6, 0.232))
        factor = person.suv_factor()
        assert factor
        # Right of the patient at the left, as radiologists look.
        projection = (person.activity_bqml.max(axis=1) * factor).T[::-1, ::-1]
        axes.imshow(projection, cmap="gray_r", vmin=0, vmax=TOP_SUV, interpolation="bilinear", aspect="equal")
        axes.set_axis_off()
        told = person.provenance
        size = f"{told['sex']} {told['height_cm']:.0f} cm {told['weight_kg']:.0f} kg"
        axes.set_title(f"{told['family']} {told['seed']}: {size}", fontsize=7.5, pad=2)
    figure.savefig(RESULTS / "patients.png", dpi=90)


def spread(values: list[float]) -> list[float]:
    """Lowest, median, highest."""
    return [round(float(v), 3) for v in (min(values), np.median(values), max(values))]


def main() -> None:
    """Generate, draw, and print the JSON line."""
    people = [whole_body(seed, spacing_mm=SPACING_MM, family=family) for seed, family in enumerate(SHOWN)]
    contact_sheet(people)
    found = [measured(person) for person in people]
    organs = {
        organ: {
            "suv": spread([f["suv"][organ] for f in found]), "suv_range": [TISSUES[t].low, TISSUES[t].high],
            "suv_source": TISSUES[t].source,
        }
        for organ in SUVS for t in [TISSUE.get(organ, organ)]
    }  # fmt: skip
    for organ, limits in VOLUMES_ML.items():
        organs.setdefault(organ, {})
        organs[organ] |= {"ml": spread([f["ml"][organ] for f in found]), "ml_range": list(limits)}
    budget = {}
    for family in FAMILIES:
        all_of = [measured(whole_body(seed, spacing_mm=COARSE_MM, family=family)) for seed in range(PATIENTS)]
        budget[family] = {name: spread([f[key] for f in all_of])
                          for name, key in (("image", "image"), ("image_legs_and_urine", "budget"))}  # fmt: skip
    emit("patients", {"spacing_mm": SPACING_MM, "organs": organs, "budget_spacing_mm": COARSE_MM, "budget": budget})


if __name__ == "__main__":
    main()
