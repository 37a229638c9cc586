"""--dry-run: what a request would do, with nothing written."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from petsim.acquisition import COMPONENTS, AcquisitionModel
from petsim.beds import BedPlan, plan_beds
from petsim.counts import Storage, storage
from petsim.dataset import Request, bytes_on_disk, jobs_of, load_subject, settings_for
from petsim.memory import memory_budget
from petsim.model import SAMPLED_VIEWS, build_model, sampled_views
from petsim.noise import TRUNCATED, noise_region
from petsim.plan import Plan, plan_subject
from petsim.recon.cost import event_cost
from petsim.settings import SimulationSettings
from petsim.simulation import check_memory, simulate_plan

NOISE_SLAB_MM = 60.0
"""Axial length simulated around the liver to measure its noise."""

PHOTONS = 100_000
"""Decays of the photon Monte Carlo, at most: enough for the mean singles rate, in a tenth of the time."""

SCATTER_ESTIMATES = 2
"""Times that estimated corrections simulate scatter in the first iteration."""


def preview(request: Request) -> dict[str, Any]:
    """Expected counts, noise, time, memory and disk of a request's first subject.

    Counts come from a sample of views. Noise is measured in a simulation of a short slab around the liver, alone in the
    scanner and with true corrections: counts that oblique LORs would add from elsewhere are missing.

    Returns
    -------
    dict
        JSON types. expected_prompts, expected_trues, expected_scatter, expected_randoms, nec (NEMA NU 2-2018, k = 1) and
        live_fraction (mean over blocks; a pair of photons passes two) are by DRF.
    """
    jobs = jobs_of(request)
    subject, asked = settings_for(load_subject(jobs[0], request), request)
    scan = plan_subject(subject, asked) if asked.beds is None else plan_beds(subject, asked)
    plans = [bed.started() for bed in scan.beds] if isinstance(scan, BedPlan) else [scan]
    plan = plans[0]
    settings = dataclasses.replace(asked, photons=min(asked.photons, PHOTONS), beds=None, bed_overlap=None)
    doses = settings.ladder()
    started = time.perf_counter()
    model = build_model(plan, settings)
    building = time.perf_counter() - started
    budget = memory_budget(request.memory_gb)
    noise_free = not subject.is_noisy
    check_memory(plan, settings, budget)
    expected = expected_counts(model, settings.mode)
    for other in plans[1:]:
        expected = expected + expected_counts(build_model(other, settings), settings.mode)
    prompts = expected.sum(axis=1)
    level = float(prompts[0]) / len(plans)
    held = storage(plan, settings, noise_free, level, budget)
    least = plan.bytes_needed(len(doses) + noise_free, len(doses), settings.live_fractions)
    seconds = _estimated_seconds(plan, model, settings, held, level, building)
    # Estimated corrections take a rough reconstruction of all positions first.
    seconds *= len(plans) * (2 if len(plans) > 1 and settings.corrections == "estimated" else 1)
    noise, region = None, "not measured for several bed positions"
    if asked.beds is None:
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
        "grid": {"shape": list(scan.grid.shape), "voxel_mm": [round(v, 4) for v in scan.grid.spacing_mm]},
        "beds": len(plans),
        "layout": {"bins": list(plan.layout.shape), "lors": plan.layout.lors},
        "mode": settings.mode,
        "expected_prompts": _by_dose(doses, np.rint(prompts).astype(int)),
        **{f"expected_{name}": _by_dose(doses, np.rint(expected[:, k]).astype(int)) for k, name in enumerate(COMPONENTS)},
        "nec": _by_dose(doses, np.rint(expected[:, 0] ** 2 / np.maximum(prompts, 1e-9)).astype(int)),
        "live_fraction": _by_dose(doses, np.round([r.live.mean() for r in model.rates], 4)),
        "liver_cov": {f"{d:g}": round(noise[k], 4) if noise else None for k, d in enumerate(doses)},
        "noise_region": region,
        "seconds_per_subject": round(seconds, 1),
        "memory_gb": round((least + held.counts_bytes + held.expected_bytes) / 1e9, 2),
        "counts_held_in": held.counts,
        "from_events_drf": held.drfs_from_events(doses),
        "disk_mb_per_subject": round(bytes_on_disk(scan, request) / 1e6, 1),
        "warnings": list(scan.warnings),
    }


def _by_dose(doses: tuple[float, ...], values: np.ndarray) -> dict[str, Any]:
    return {f"{d:g}": v for d, v in zip(doses, values.tolist(), strict=True)}


def expected_counts(model: AcquisitionModel, mode: str) -> np.ndarray:
    """Expected counts by dose and component, from a sample of views scaled up.

    Parameters
    ----------
    model : AcquisitionModel
    mode : str
        Of the dose ladder.

    Returns
    -------
    ndarray
        float64 (dose, component) in the order of `petsim.acquisition.COMPONENTS`.
    """
    total = np.zeros((len(model.rates), len(COMPONENTS)))
    views = sampled_views(model.layout.views, SAMPLED_VIEWS)[:, None]
    for view in views:
        if mode == "thin":
            sums = model.expected_and_totals(view)[1].sum(axis=0)
            total += np.stack([sums / r.drf for r in model.rates])
            continue
        for k, (name, counts) in enumerate(model.components(view).items()):
            over_tof = counts.sum(axis=2, dtype=np.float64)
            total[:, k] += [(over_tof * model.kept(view, name, d)).sum() for d in range(len(model.rates))]
    return total * model.layout.views / len(views)


def _estimated_seconds(
    plan: Plan, model: AcquisitionModel, settings: SimulationSettings, held: Storage, level: float, building: float
) -> float:
    """Time of a subject on this machine, from a few views that are done now and the time that the model took."""
    views = np.linspace(0, plan.layout.views - 1, 4).astype(int)
    projector = model.operator(plan.layout, plan.grid, plan.center_mm, plan.fov_mm / 2)
    sums = projector.new_sums(1)
    prepared = projector.prepare(np.ones((1, *plan.grid.shape), np.float32))
    counts = np.ones((1, 1, *plan.layout.shape[1:]), np.uint8)

    def background(view: np.ndarray) -> None:
        model.factors(view)
        if model.scatter is not None:
            model.scatter.at(plan.layout, view, 0)

    forward = _seconds(model.expected, views)
    back = _seconds(lambda view: projector.add_em_back(sums, view, counts, prepared), views)
    behind = _seconds(background, views)
    images = len(settings.ladder()) + (not plan.subject.is_noisy)
    estimates = SCATTER_ESTIMATES if settings.finds_scatter else 0
    iterations = max(2, plan.preset.iterations) if settings.finds_scatter else plan.preset.iterations
    passes = iterations if held.counts == "redrawn" else 1
    # A dose that is updated from events goes through all bins only while scatter is found.
    left = iterations - settings.finds_scatter
    saved = sum(1 - event_cost(plan.layout, level / drf, left) for drf in held.drfs_from_events(settings.ladder()))
    # Drawing and moving counts costs about as much again as the forward projection.
    a_view = 2 * forward * passes + (back + behind) * (images * iterations - saved * left)
    return building + settings.realizations * (plan.layout.views * a_view + estimates * building)


def _seconds(work: Callable[[np.ndarray], Any], views: np.ndarray) -> float:
    """Time of a view, without what is done or compiled only once."""
    work(views[:1])
    start = time.perf_counter()
    for view in views:
        work(np.array([view]))
    return (time.perf_counter() - start) / len(views)


def _noise(plan: Plan, settings: SimulationSettings, budget: float) -> tuple[list[float] | None, str]:
    """Coefficient of variation by dose in a slab around the liver."""
    subject = plan.subject
    if subject.provenance.get("truncated_fov"):
        return None, TRUNCATED
    box, how = noise_region(subject.activity_bqml, subject.labels, subject.label_names, subject.grid)
    if box is None:
        return None, "none found"
    middle = float(subject.grid.axis_mm(2)[(box[2].start + box[2].stop - 1) // 2])
    slab = dataclasses.replace(settings, center_mm=middle, slab_mm=NOISE_SLAB_MM, counts=None, realizations=1,
                               corrections="oracle")  # fmt: skip
    result = simulate_plan(plan_subject(subject, slab), slab, budget)
    return [float(row["liver_cov"] or float("nan")) for row in result.counts], how
