"""--dry-run: what a request would do, with nothing written."""

import dataclasses
import time
from typing import Any

import numpy as np

from petsim.counts import storage
from petsim.dataset import Request, bytes_on_disk, jobs_of, load_subject
from petsim.plan import Plan, memory_budget, plan_subject
from petsim.simulation import SAMPLED_VIEWS, build_model, check_memory, expected_total, noise_region, simulate_plan

NOISE_SLAB_MM = 60.0
"""Axial length simulated around the liver to measure its noise."""


def preview(request: Request) -> dict[str, Any]:
    """Expected counts, noise, time, memory and disk of a request's first subject.

    Counts come from a sample of views. Noise is measured in a simulation of a short slab around the liver, alone in the
    scanner: counts that oblique LORs would add from elsewhere are missing.

    Returns
    -------
    dict
        JSON types.
    """
    jobs = jobs_of(request)
    subject = load_subject(jobs[0], request)
    plan = plan_subject(subject, request.settings)
    settings = request.settings
    doses = settings.ladder()
    model = build_model(plan, settings)
    budget = memory_budget(request.memory_gb)
    noise_free = not subject.is_noisy
    check_memory(plan, settings, budget)
    total = settings.counts or expected_total(model, plan.layout.views // SAMPLED_VIEWS)
    held = storage(plan, doses, noise_free, settings.realizations, total, budget)
    least = plan.bytes_needed(len(doses) + noise_free, len(doses))
    seconds = _estimated_seconds(plan, model, settings, held.counts != "redrawn")
    noise, region = _noise(plan, settings, budget)
    inj = plan.subject.injection
    return {
        "subject": subject.name,
        "subjects": len(jobs),
        "read": {k: v for k, v in subject.provenance.items() if k != "lesions"},
        "injection": dataclasses.asdict(inj),
        "mu_source": subject.mu_source,
        "scanner": plan.scanner.name,
        "duration_s": plan.duration_s,
        "grid": {"shape": list(plan.grid.shape), "voxel_mm": [round(v, 4) for v in plan.grid.spacing_mm]},
        "layout": {"bins": list(plan.layout.shape), "lors": plan.layout.lors},
        "expected_prompts": {f"{d:g}": round(total / d) for d in doses},
        "liver_cov": {f"{d:g}": round(noise[k], 4) if noise else None for k, d in enumerate(doses)},
        "noise_region": region,
        "seconds_per_subject": round(seconds, 1),
        "memory_gb": round((least + held.counts_bytes + held.expected_bytes) / 1e9, 2),
        "counts_held_in": held.counts,
        "disk_mb_per_subject": round(bytes_on_disk(plan, request) / 1e6, 1),
        "warnings": list(plan.warnings),
    }


def _estimated_seconds(plan: Plan, model: Any, settings: Any, keep_counts: bool) -> float:
    """Time of a subject on this machine, from a few views that are done now."""
    views = np.linspace(0, plan.layout.views - 1, 4).astype(int)
    projector = model.operator(plan.layout, plan.grid, plan.center_mm, plan.fov_mm / 2)
    sums = projector.new_sums(1)
    prepared = projector.prepare(np.ones((1, *plan.grid.shape), np.float32))
    model.expected(views[:1])
    counts = np.ones((1, 1, *plan.layout.shape[1:]), np.uint8)
    projector.add_em_back(sums, views[:1], counts, prepared)

    start = time.perf_counter()
    model.expected(views)
    forward = (time.perf_counter() - start) / len(views)
    start = time.perf_counter()
    for view in views:
        projector.add_em_back(sums, np.array([view]), counts, prepared)
    back = (time.perf_counter() - start) / len(views)
    images = len(settings.ladder()) + (not plan.subject.is_noisy)
    passes = 1 if keep_counts else plan.preset.iterations
    # Drawing and moving counts costs about as much again as the forward projection.
    a_view = 2 * forward * passes + back * images * plan.preset.iterations
    return settings.realizations * plan.layout.views * a_view


def _noise(plan: Plan, settings: Any, budget: float) -> tuple[list[float] | None, str]:
    """Coefficient of variation by dose in a slab around the liver."""
    subject = plan.subject
    box, how = noise_region(subject.activity_bqml, subject.labels, subject.label_names, subject.grid)
    if box is None:
        return None, "none found"
    middle = float(subject.grid.axis_mm(2)[(box[2].start + box[2].stop - 1) // 2])
    slab = dataclasses.replace(settings, center_mm=middle, slab_mm=NOISE_SLAB_MM, counts=None, realizations=1)
    result = simulate_plan(plan_subject(subject, slab), slab, budget)
    return [float(row["liver_cov"] or float("nan")) for row in result.counts], how
