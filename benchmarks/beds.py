"""A whole-body scan in several bed positions on a short scanner, and in one on a long one: are there seams?

    python -m benchmarks.beds DICOM_FOLDER [PRESET]

The scan is reconstructed anew at DRF 1, 4 and 20 with the duration that its file tells, that of a bed position; low doses
are shown as noise inserted into the scan. Noise of a slice: standard deviation of DRF 20 - DRF 1 in the body over the
body's mean activity. `recon_over_source`: mean of the new full dose in the body's outline over that of the scan, by slice;
blur takes activity out of the outline on any scanner, so that the two are to be compared (`short_over_long`).
"""

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np

from benchmarks.common import RESULTS, emit
from data_recipes.contour import with_mu
from data_recipes.readers.read import read_source
from data_recipes.resample import resample
from data_recipes.subject import Subject
from petsim.bed_simulation import simulate_beds
from petsim.beds import plan_beds
from petsim.memory import keep_freed_memory
from petsim.plan import plan_subject
from petsim.settings import SimulationSettings
from petsim.simulation import Simulation, insert_noise, simulate_plan

DRFS = (4.0, 20.0)
OVERLAP = 0.25
SHORT, LONG = "discovery_mi_4ring", "biograph_vision_quadra"


def scanned(subject: Subject, scanner: str, preset: str) -> Simulation:
    """The simulated scan, in bed positions where the scanner is the short one."""
    settings = SimulationSettings(scanner=scanner, preset=preset, drf=DRFS)
    if scanner == LONG:
        return simulate_plan(plan_subject(subject, settings), settings)
    settings = replace(settings, beds="auto", bed_overlap=OVERLAP)
    return simulate_beds(plan_beds(subject, settings), settings)


def profiles(subject: Subject, result: Simulation) -> dict[str, np.ndarray]:
    """By slice: noise, mean of the inserted noise, and the new full dose over the scan at the same resolution."""
    assert subject.mu_per_cm is not None
    body = resample(subject.mu_per_cm, subject.grid, result.grid) > 0.05
    voxels = np.maximum(body.sum(axis=(0, 1)), 1)

    def mean(image: np.ndarray) -> np.ndarray:
        return (image * body).sum(axis=(0, 1), dtype=np.float64) / voxels

    source, full, low = mean(result.activity_bqml), mean(result.images[0, 0]), result.images[2, 0] - result.images[0, 0]
    level = source.mean()
    noise = np.sqrt(np.maximum(mean(low**2) - mean(low) ** 2, 0)) / level
    return {"z_mm": result.grid.axis_mm(2), "noise": noise, "noise_mean": mean(low) / level,
            "recon_over_source": full / np.maximum(source, 1e-9)}  # fmt: skip


def short_over_long(z_mm: np.ndarray, short: np.ndarray, z_long_mm: np.ndarray, long: np.ndarray,
                    ends_mm: list[list[float]]) -> dict[str, float]:  # fmt: skip
    """New full dose of the short scanner over that of the long one: mean and spread by slice, in overlaps and elsewhere."""
    both = np.interp(z_mm, z_long_mm, long)
    here = (z_mm > z_long_mm[0] + 30) & (z_mm < min(z_long_mm[-1], ends_mm[-1][1]) - 60)
    overlap = np.any([(z_mm > b[0]) & (z_mm < a[1]) for a, b in pairwise(ends_mm)], axis=0)
    ratio = short / np.maximum(both, 1e-9)
    parts = {"overlaps": ratio[here & overlap], "elsewhere": ratio[here & ~overlap]}
    return {f"{name}_{what}": round(float(value), 4) for name, part in parts.items()
            for what, value in (("mean", part.mean()), ("sd", part.std()))}  # fmt: skip


def borders_mm(result: Simulation) -> list[list[float]]:
    """Ends of every bed position."""
    table = result.provenance.get("beds", {}).get("table", [])
    weights = np.array(result.provenance.get("beds", {}).get("weights", []))
    z = result.grid.axis_mm(2)
    return [[float(z[w > 0][0]), float(z[w > 0][-1])] for w, _ in zip(weights, table, strict=True)]


def picture(results: dict[str, Simulation], lines: dict[str, dict[str, np.ndarray]]) -> None:
    """Coronal maximum intensity projections, and the profiles beside them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 6, figsize=(13, 9.5), width_ratios=[1, 1, 1, 1, 0.7, 0.7], layout="constrained")
    for row, (name, result) in zip(axes, results.items(), strict=True):
        z = lines[name]["z_mm"]
        inserted = insert_noise(result.activity_bqml, result.images)
        shown = [("scan", result.activity_bqml), ("reconstructed anew", result.images[0, 0]),
                 ("DRF 4", inserted[1, 0]), ("DRF 20", inserted[2, 0])]  # fmt: skip
        top = float(np.percentile(result.activity_bqml.max(axis=1), 97))
        extent = [0, result.grid.extent_mm[0], z[0], z[-1]]
        for axis, (title, image) in zip(row, shown, strict=False):
            axis.imshow(image.max(axis=1)[::-1].T, cmap="gray_r", vmin=0, vmax=top, origin="lower", extent=extent, aspect=1)
            axis.set_title(title)
            axis.set_xticks([])
        row[0].set_ylabel(f"{name}\nz in mm")
        for axis, key, title, limits in ((row[4], "noise", "noise, DRF 20", None),
                                         (row[5], "recon_over_source", "anew / scan", (0.6, 1.1))):  # fmt: skip
            axis.plot(lines[name][key], z, lw=1)
            axis.set_title(title)
            axis.set_ylim(z[0], z[-1])
            axis.set_xlim(limits)
            for low, high in borders_mm(result):
                axis.axhline(low, color="0.6", lw=0.6, ls=":")
                axis.axhline(high, color="0.6", lw=0.6, ls="--")
    figure.savefig(RESULTS / "beds.png", dpi=75)


def main(folder: str, preset: str) -> None:
    """Simulate both, draw, and print the JSON line."""
    keep_freed_memory()
    subject = with_mu(read_source(folder))
    results, lines, told = {}, {}, {}
    for scanner in (SHORT, LONG):
        result = scanned(subject, scanner, preset)
        results[scanner], lines[scanner] = result, profiles(subject, result)
        beds = result.provenance.get("beds", {})
        told[scanner] = {
            "beds": len(beds.get("table", [0])), "overlap": beds.get("overlap"), "ends_mm": borders_mm(result),
            "counts": [{k: row[k] for k in ("drf", "prompts", "trues", "scatter", "randoms")} for row in result.counts],
            "by_bed": [{k: b[k] for k in ("center_mm", "start_s", "decay", "counts")} for b in beds.get("table", [])],
            **{key: [round(float(v), 4) for v in values] for key, values in lines[scanner].items()},
            "warnings": result.provenance["warnings"],
        }  # fmt: skip
        print(scanner, told[scanner]["counts"], flush=True)
    picture(results, lines)
    short, long = lines[SHORT], lines[LONG]
    seams = short_over_long(short["z_mm"], short["recon_over_source"], long["z_mm"], long["recon_over_source"],
                            borders_mm(results[SHORT]))  # fmt: skip
    emit("beds", {"preset": preset, "duration_s": subject.injection.duration_s, "short_over_long": seams, "scanners": told})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "fast")
