"""Does noise behave as dose physics demands, on a generated patient and on a real scan with noise inserted?

    python -m benchmarks.noise [SOURCE]

SOURCE is a PET DICOM folder or NIfTI file; without it only the generated patient is done. Twelve realizations of a
slab around the liver on the Quadra, `fast` layout.
"""

import sys
from typing import Any

import numpy as np

from benchmarks.common import emit
from data_recipes.contour import with_mu
from data_recipes.errors import DataError
from data_recipes.phantoms.families import REFERENCE
from data_recipes.phantoms.whole_body import whole_body
from data_recipes.readers.read import read_source
from data_recipes.subject import Subject
from petsim.noise import NO_FIGURE, noise_region, sphere
from petsim.plan import plan_subject
from petsim.settings import SimulationSettings
from petsim.simulation import simulate_plan

REALIZATIONS = 12
DRFS = (4.0, 10.0, 20.0, 100.0)


def measure(subject: Subject) -> dict[str, Any]:
    """Noise over realizations in the liver sphere, at every dose."""
    if subject.provenance.get("truncated_fov"):
        raise DataError(f"{NO_FIGURE}; give a whole image")
    box, how = noise_region(subject.activity_bqml, subject.labels, subject.label_names, subject.grid)
    assert box is not None
    middle = float(subject.grid.axis_mm(2)[(box[2].start + box[2].stop) // 2])
    settings = SimulationSettings(preset="fast", drf=DRFS, realizations=REALIZATIONS, center_mm=middle, slab_mm=80.0)
    result = simulate_plan(plan_subject(subject, settings), settings)
    place = result.provenance["noise_sphere"]
    inside = (slice(None), slice(None), *(slice(*p) for p in place))
    liver = result.images[inside][:, :, sphere(result.grid)].astype(np.float64)
    spread = liver.std(axis=1, ddof=1).mean(axis=1)
    full = liver[0] - liver[0].mean(axis=0)
    rows = []
    for k, d in enumerate(result.drfs):
        added = liver[k] - liver[0]
        added -= added.mean(axis=0)
        rows.append({
            "drf": d,
            "sd_over_full": round(float(spread[k] / spread[0]), 4),
            "sd_over_full_expected": round(float(np.sqrt(d)), 4),
            "mean_over_full": round(float(liver[k].mean() / liver[0].mean()), 4),
            "inserted_variance_over_full": round(float((added**2).sum() / (full**2).sum()), 4) if k else None,
            "inserted_variance_expected": d - 1 if k else None,
            "correlation_with_full_draw": round(
                float((added * full).sum() / np.sqrt((added**2).sum() * (full**2).sum())), 4) if k else None,
        })  # fmt: skip
    return {"region": how, "voxels": liver.shape[2], "full_dose_sd_percent": round(
        100 * float(spread[0] / liver[0].mean()), 3), "doses": rows}  # fmt: skip


def main() -> None:
    """Measure and print the JSON line."""
    result = {"realizations": REALIZATIONS, "generated": measure(whole_body(3, family=REFERENCE.name))}
    if len(sys.argv) > 1:
        result["real_scan"] = measure(with_mu(read_source(sys.argv[1])))
    emit("noise", result)


if __name__ == "__main__":
    main()
