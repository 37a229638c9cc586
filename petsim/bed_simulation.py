"""A scan of several bed positions: each simulated and reconstructed alone, then knitted.

Photons scatter into a field of view from beyond it as well. Where scatter is estimated, all positions are reconstructed
with few iterations first, and the knitted image tells each of them what lies around it, at its own dose and realization.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from data_recipes.resample import resample, resample_labels
from petsim.beds import Bed, BedPlan, axial_sensitivity, knit, knitting_weights, margin_of
from petsim.plan import Plan
from petsim.projectors.contract import support_mask
from petsim.reconstruct import Surroundings
from petsim.settings import SimulationSettings
from petsim.simulation import Progress, Simulation, add_figures, compare_noise, insert_noise, simulate_plan

ROUGH_ITERATIONS = 2
"""Iterations of the images that tell what lies around a position: one without all scatter known, one with it."""

AROUND_MM = 250.0
"""So far beyond the ends of a position its surroundings are taken into the estimation of scatter."""

_WORST = ("fallback", "bounded", "fitted")


def simulate_beds(
    scan: BedPlan, settings: SimulationSettings, budget_bytes: float = 8e9,
    progress: Progress = lambda what, fraction: None,
) -> Simulation:  # fmt: skip
    """Simulate all positions and knit their images, decay-corrected to the start of the scan.

    Parameters
    ----------
    scan : BedPlan
    settings : SimulationSettings
    budget_bytes : float
        Memory of one position.
    progress : callable

    Returns
    -------
    Simulation
        Counts are sums over positions; those of each stand in the provenance.
    """
    alone = replace(settings, beds=None, bed_overlap=None, full_dose="simulated")
    plan, margin = scan.beds[0].plan, margin_of(scan.beds[0].plan)
    firsts, decays = [bed.first for bed in scan.beds], np.array([[bed.decay] for bed in scan.beds])
    weights = knitting_weights(axial_sensitivity(plan), firsts, scan.grid.shape[2], decays[:, 0].tolist(), margin)
    # Images are in Bq/mL at the start of their own position.
    to_start = weights / decays
    passes = 2 if len(scan.beds) > 1 and settings.finds_scatter else 1
    around = None
    if passes == 2:
        first = [
            simulate_plan(_quick(bed.started()), alone, budget_bytes, progress=_part(progress, k, scan, passes))
            for k, bed in enumerate(scan.beds)
        ]
        around = _Around(scan, first, to_start)
    made = [
        simulate_plan(
            bed.started(), alone, budget_bytes, progress=_part(progress, k + (passes - 1) * len(scan.beds), scan, passes),
            around=None if around is None else partial(around.of, k),
        )
        for k, bed in enumerate(scan.beds)
    ]  # fmt: skip
    images = knit([one.images for one in made], to_start, firsts)
    noise_free = [one.noise_free for one in made if one.noise_free is not None]
    subject = scan.subject
    assert subject.mu_per_cm is not None
    inside = support_mask(scan.grid, plan.center_mm, plan.fov_mm / 2)
    truth = resample(subject.activity_bqml, subject.grid, scan.grid) * inside
    if settings.full_dose == "source":
        images = insert_noise(truth, images)
    result = Simulation(
        grid=scan.grid,
        drfs=made[0].drfs,
        images=images,
        noise_free=knit(noise_free, to_start, firsts) if noise_free else None,
        activity_bqml=truth,
        mu_per_cm=resample(subject.mu_per_cm, subject.grid, scan.grid),
        labels=None if subject.labels is None else resample_labels(subject.labels, subject.grid, scan.grid),
        counts=sum_rows([one.counts for one in made]),
        sinograms=None,
        provenance=_provenance(scan, settings, made, weights, margin),
    )
    add_figures(result, subject, plan.duration_s)
    if settings.full_dose == "source":
        level = float(result.counts[0]["prompts"])
        compare_noise(result, level, lambda factor: f"--duration-s {plan.duration_s * factor:.3g}")
    return result


def _part(progress: Progress, step: int, scan: BedPlan, passes: int) -> Progress:
    """Progress of one position within all."""
    count = len(scan.beds)
    return lambda what, fraction: progress(f"bed {step % count + 1} of {count}, {what}", (step + fraction) / count / passes)


def _quick(plan: Plan) -> Plan:
    """The plan with as many iterations as a smooth image for the estimation of scatter needs."""
    return replace(plan, preset=replace(plan.preset, iterations=min(plan.preset.iterations, ROUGH_ITERATIONS)))


class _Around:
    """Surroundings of every position, from rough images of all.

    Parameters
    ----------
    scan : BedPlan
    rough : sequence of Simulation
        By position.
    weights : ndarray
        (bed, slices), to images at the start of the scan.
    """

    def __init__(self, scan: BedPlan, rough: Sequence[Simulation], weights: np.ndarray) -> None:
        self._scan, firsts = scan, [bed.first for bed in scan.beds]
        self._images = knit([one.images for one in rough], weights, firsts)
        clean = [one.noise_free for one in rough if one.noise_free is not None]
        self._noise_free = knit(clean, weights, firsts) if clean else None

    def of(self, position: int, number: int) -> Surroundings:
        """Of a position and realization: as far as `AROUND_MM` beyond its ends."""
        bed, grid, subject = self._scan.beds[position], self._scan.grid, self._scan.subject
        assert subject.mu_per_cm is not None
        more = math.ceil(AROUND_MM / grid.spacing_mm[2])
        low, high = max(0, bed.first - more), min(grid.shape[2], bed.first + bed.plan.grid.shape[2] + more)
        part = replace(grid, shape=(*grid.shape[:2], high - low),
                       origin_mm=(*grid.origin_mm[:2], float(grid.axis_mm(2)[low])))  # fmt: skip
        images = list(self._images[:, number, ..., low:high])
        if number == 0 and self._noise_free is not None:
            images.append(self._noise_free[..., low:high])
        activity = np.stack(images) * np.float32(bed.decay)
        return Surroundings(activity, resample(subject.mu_per_cm, subject.grid, part), part, bed.first - low)


def true_counts(row: dict[str, Any]) -> float:
    """Expected trues of a row of a count table, from NEC = T^2 / (T + others)."""
    nec, others = row["nec"], row["scatter"] + row["randoms"]
    return (nec + math.sqrt(nec**2 + 4 * nec * others)) / 2


def sum_rows(tables: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Count table of all positions together: sums, and the noise-equivalent counts of the summed expectations."""
    rows = []
    for parts in zip(*tables, strict=True):
        row = {key: parts[0][key] for key in ("drf", "realization", "mode", "seed")}
        row |= {key: sum(p[key] for p in parts) for key in ("prompts", "trues", "scatter", "randoms")}
        trues = sum(true_counts(p) for p in parts)
        total = trues + row["scatter"] + row["randoms"]
        row["nec"] = trues**2 / total if total > 0 else 0.0
        rows.append(row)
    return rows


def _provenance(
    scan: BedPlan, settings: SimulationSettings, made: Sequence[Simulation], weights: np.ndarray, margin: int
) -> dict[str, Any]:
    first = made[0].provenance
    found = [one.provenance["reconstruction"]["by_realization"] for one in made]
    table = [_bed_row(bed, one) for bed, one in zip(scan.beds, made, strict=True)]
    warnings = [*scan.warnings, *(w for one in made for w in one.provenance["warnings"])]
    return {
        **first,
        "reconstruction": {
            **first["reconstruction"],
            "from_events_drf": sorted({d for one in made for d in one.provenance["reconstruction"]["from_events_drf"]}),
            "by_realization": [_over_beds(parts) for parts in zip(*found, strict=True)],
        },
        "rates": [_mean_rates(rates) for rates in zip(*(one.provenance["rates"] for one in made), strict=True)],
        "full_dose": settings.full_dose,
        "warnings": list(dict.fromkeys(warnings)),
        "beds": {
            "order": "from the feet's end to the head's end, each beginning when the one before has ended",
            "extent_mm": list(scan.extent_mm), "overlap": round(scan.overlap, 4),
            "knitting": "weights in proportion to axial sensitivity and decay; images decay-corrected to the first start",
            "end_slices_left_out": margin, "weights": np.round(weights, 4).tolist(), "table": table,
        },
    }  # fmt: skip


def _bed_row(bed: Bed, made: Simulation) -> dict[str, Any]:
    """A position for the provenance, JSON types."""
    names = ("drf", "realization", "prompts", "trues", "scatter", "randoms", "nec")
    return {
        "center_mm": bed.plan.center_mm[2], "start_s": bed.start_s, "duration_s": bed.plan.duration_s, "decay": bed.decay,
        "mean_live_fraction": made.provenance["rates"][0]["mean_live_fraction"],
        "counts": [{name: row[name] for name in names} for row in made.counts],
        "scatter_scales": [found["scatter_scales"] for found in made.provenance["reconstruction"]["by_realization"]],
    }  # fmt: skip


def _mean_rates(rates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = ("mean_singles_cps", "mean_live_fraction")
    return {**rates[0], **{name: sum(r[name] for r in rates) / len(rates) for name in names}}


def _over_beds(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How corrections came out, over all positions: scatter scales weighed by their counts, root mean squares of errors."""
    differences = [f["estimated_minus_true"] for f in found]

    def rms(values: Sequence[float]) -> float:
        return math.sqrt(sum(v**2 for v in values) / len(values))

    return {
        "scatter_scales": [_mean_scale(scales) for scales in zip(*(f["scatter_scales"] for f in found), strict=True)],
        "estimated_minus_true": {
            "mu_per_cm": rms([d["mu_per_cm"] for d in differences]),
            "normalization": rms([d["normalization"] for d in differences]),
            "singles": [rms(singles) for singles in zip(*(d["singles"] for d in differences), strict=True)],
        },
    }


def _mean_scale(scales: Sequence[dict[str, Any]]) -> dict[str, Any]:
    shares = np.array([max(s["counts"], 0.0) for s in scales])
    shares = shares / shares.sum() if shares.any() else np.full(len(scales), 1 / len(scales))
    return {
        "scale": float(shares @ [s["scale"] for s in scales]),
        "how": min((s["how"] for s in scales), key=_WORST.index),
        "counts": sum(s["counts"] for s in scales),
        "deviation": float(np.sqrt(shares**2 @ np.square([s["deviation"] for s in scales]))),
    }
