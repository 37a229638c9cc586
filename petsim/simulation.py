"""One subject through the scanner: counts and images at every dose."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.resample import resample, resample_labels
from data_recipes.subject import Subject
from petsim.acquisition import AcquisitionModel
from petsim.corrections import Estimator
from petsim.counts import Storage, storage
from petsim.dose_rates import DoseRates
from petsim.emission import share_in_air
from petsim.geometry.sinogram import SinogramLayout
from petsim.model import SAMPLED_VIEWS, build_model, expected_total
from petsim.noise import TRUNCATED, coefficient_of_variation, noise_region, sphere
from petsim.physics.sensitivity import sensitivity
from petsim.plan import Plan, plan_subject
from petsim.presets import OWN_PRESETS
from petsim.realizations import Realization, Realizations
from petsim.reconstruct import Surroundings
from petsim.settings import SimulationSettings

Progress = Callable[[str, float], None]
"""Told (what is being done, fraction done)."""


@dataclass(frozen=True)
class Simulation:
    """Result for one subject.

    Parameters
    ----------
    grid : Grid
        Of all images, in the subject's millimeters.
    drfs : tuple of float
        Ascending, 1 first.
    images : ndarray
        float32 (dose, realization, x, y, z) in Bq/mL at scan start, all on the full-dose scale.
    noise_free : ndarray, optional
        float32 (x, y, z): the same reconstruction of the expected counts; None for measured images.
    activity_bqml, mu_per_cm, labels : ndarray
        Truth on the grid (labels may be None).
    counts : list of dict
        By dose and realization: drf, realization, prompts, trues, scatter, randoms, nec, mbq_s_per_kg, liver_cov.
    sinograms : list of ndarray, optional
        By realization: integers (dose, view, radial, tof, plane).
    provenance : dict
        What was done, JSON types only.
    """

    grid: Grid
    drfs: tuple[float, ...]
    images: np.ndarray
    noise_free: np.ndarray | None
    activity_bqml: np.ndarray
    mu_per_cm: np.ndarray
    labels: np.ndarray | None
    counts: list[dict[str, Any]]
    sinograms: list[np.ndarray] | None
    provenance: dict[str, Any]


def simulate_plan(
    plan: Plan,
    settings: SimulationSettings,
    budget_bytes: float = 8e9,
    keep_sinograms: bool = False,
    progress: Progress = lambda what, fraction: None,
    listmode: Path | None = None,
    around: Callable[[int], Surroundings] | None = None,
) -> Simulation:
    """Simulate a planned subject.

    Parameters
    ----------
    plan : Plan
    settings : SimulationSettings
    budget_bytes : float
        Memory. Counts that do not fit it go to a temporary file, see `petsim.counts`.
    keep_sinograms : bool
        Return the counts too.
    progress : callable
    listmode : Path, optional
        Folder for list-mode files, `<subject>_r<realization>_drf<D>.lm.h5`.
    around : callable, optional
        Number of a realization -> what other bed positions tell of the subject, for all doses and, with number 0, the
        noise-free image.

    Returns
    -------
    Simulation

    Raises
    ------
    DataError
        Not even a streamed simulation fits the budget.
    """
    drfs = settings.ladder()
    noise_free_wanted = not plan.subject.is_noisy
    check_memory(plan, settings, budget_bytes)
    progress("counting singles and scatter", 0.0)
    model = build_model(plan, settings)
    level = settings.counts or expected_total(model, plan.layout.views // SAMPLED_VIEWS)
    store = storage(plan, settings, noise_free_wanted, level, budget_bytes)
    draws = Realizations(plan, settings, model, store, around)
    updates, done = settings.realizations * draws.updates, 0

    def step() -> None:
        nonlocal done
        done += 1
        progress("reconstructing", done / updates)

    made = [
        draws.make(number, noise_free_wanted and number == 0, keep_sinograms, step, listmode)
        for number in range(settings.realizations)
    ]
    stack = np.stack([one.images for one in made], axis=1)
    true, recon = draws.reconstructor(len(drfs) + noise_free_wanted)
    truth = resample(plan.subject.activity_bqml, plan.subject.grid, plan.grid) * recon.inside
    if settings.full_dose == "source":
        stack = insert_noise(truth, stack)
    subject = plan.subject
    result = Simulation(
        grid=plan.grid,
        drfs=drfs,
        images=stack,
        noise_free=made[0].noise_free,
        activity_bqml=truth,
        mu_per_cm=true.mu_per_cm,
        labels=None if subject.labels is None else resample_labels(subject.labels, subject.grid, plan.grid),
        counts=[row for number, one in enumerate(made) for row in _count_rows(settings, drfs, number, one)],
        sinograms=[one.sinogram for one in made if one.sinogram is not None] if keep_sinograms else None,
        provenance=_provenance(plan, settings, model, draws.estimator, [one.corrections for one in made], store),
    )
    add_figures(result, subject, plan.duration_s)
    if settings.full_dose == "source":
        compare_noise(result, level, lambda factor: f"--counts {level * factor:.2g}")
    return result


def _count_rows(
    settings: SimulationSettings, drfs: tuple[float, ...], number: int, made: Realization
) -> list[dict[str, Any]]:
    """Counts by dose: prompts as drawn, scatter and randoms as expected, trues the rest."""
    rows = []
    for k, (d, drawn, (_, scatter, randoms)) in enumerate(
        zip(drfs, made.prompts.tolist(), made.expected.tolist(), strict=True)
    ):
        rows.append({
            "drf": d, "realization": number, "mode": settings.mode, "seed": settings.seed, "prompts": drawn,
            "trues": drawn - round(scatter) - round(randoms), "scatter": round(scatter), "randoms": round(randoms),
            "nec": made.nec(k),
        })  # fmt: skip
    return rows


def check_memory(plan: Plan, settings: SimulationSettings, budget: float, share: float = 1.0) -> None:
    """Refuse a simulation that does not even fit when it is streamed.

    Parameters
    ----------
    plan, settings
    budget : float
        Bytes that may be used.
    share : float
        Part of them that this simulation may take; where that is not all, no other preset is proposed.

    Raises
    ------
    DataError
        The message names a setting that fits.
    """
    doses = len(settings.ladder())
    images = doses + (not plan.subject.is_noisy)
    least = plan.bytes_needed(images, doses, settings.live_fractions) / share
    if least <= budget:
        return
    others = {
        p: plan_subject(plan.subject, replace(settings, preset=p), plan.scanner)
        for p in OWN_PRESETS
        if p != settings.preset and share == 1
    }
    fitting = [
        f"--preset {name}"
        for name, other in others.items()
        if other.bytes_needed(images, doses, settings.live_fractions) <= budget
    ]
    raise DataError(
        f"{plan.subject.name}: about {least / 1e9:.2g} GB of memory are needed but {budget / 1e9:.2g} GB may be used; "
        f"use {' or '.join([f'--memory-gb {math.ceil(least / 1e8) / 10:g}', *fitting])}"
    )


def insert_noise(source: np.ndarray, reconstructed: np.ndarray) -> np.ndarray:
    """DRF 1 = source; DRF D = source + recon(thinned_D) - recon(full), both from one draw, negatives kept.

    The noise of a real image is in it already. With counts nested, Var(recon_D - recon_1) = (D - 1) Var(recon_1) and
    Cov(recon_D - recon_1, recon_1) = 0, as for real nested data.

    Parameters
    ----------
    source : ndarray
        (x, y, z).
    reconstructed : ndarray
        (dose, realization, x, y, z), DRF 1 first.

    Returns
    -------
    ndarray
        Same shape as `reconstructed`.
    """
    return source + (reconstructed - reconstructed[:1])


def add_figures(result: Simulation, subject: Subject, duration_s: float) -> None:
    """Add dose figures and the measured noise to the count table."""
    box, how = noise_region(result.activity_bqml, result.labels, subject.label_names, result.grid)
    if subject.provenance.get("truncated_fov"):
        box, how = None, TRUNCATED
    elif box is None:
        how = "none found"
    result.provenance["noise_region"] = how
    result.provenance["noise_sphere"] = None if box is None else [[b.start, b.stop] for b in box]
    activity, weight = subject.activity_at_scan_mbq(), subject.injection.weight_kg
    for row in result.counts:
        image = result.images[result.drfs.index(row["drf"]), row["realization"]]
        row["mbq_s_per_kg"] = activity * duration_s / weight / row["drf"] if activity and weight else None
        row["liver_cov"] = coefficient_of_variation(image, box, result.grid) if box is not None else None


def compare_noise(result: Simulation, level: float, mend: Callable[[float], str]) -> None:
    """Warn when a source is much noisier or smoother than a full-dose scan of this scanner would be.

    The inserted noise at DRF D is sqrt(D - 1) times that of a full dose (see `insert_noise`), which gives the latter
    without a second reconstruction.

    Parameters
    ----------
    result : Simulation
        With noise inserted into a source.
    level : float
        Counts of a full dose on this scanner.
    mend : callable
        Factor on the counts that would match the source -> flag that does it.
    """
    place = result.provenance["noise_sphere"]
    if place is None or len(result.drfs) < 2:
        return
    box = tuple(slice(*bounds) for bounds in place)
    inside = sphere(result.grid)
    source = result.images[0, 0][box][inside].astype(np.float64)
    added = result.images[1, 0][box][inside] - source
    if source.mean() <= 0 or source.std() == 0 or added.std() == 0:
        return
    source_cov = source.std() / source.mean()
    full_cov = added.std() / source.mean() / math.sqrt(result.drfs[1] - 1)
    if not 0.5 < source_cov / full_cov < 2:
        result.provenance["warnings"].append(
            f"the source's own noise (COV {100 * source_cov:.1f} %) is not that of a full dose on this scanner "
            f"({100 * full_cov:.1f} %, {level:.2g} counts), so noise does not grow as sqrt(DRF) from DRF 1 on; "
            f"{mend((full_cov / source_cov) ** 2)} would match it"
        )


def describe_layout(layout: SinogramLayout) -> dict[str, Any]:
    """A sinogram layout for the provenance, JSON types."""
    merged = {
        "crystals": f"{layout.merge_transaxial} transaxial x {layout.merge_axial} axial",
        "span": f"{layout.span} in merged rings, maximum ring difference {layout.max_ring_difference}",
        "tof": f"{layout.merge_tof} x {layout.scanner.tof_bin_ps:.2f} ps, {layout.tof_bins} bins"
        if layout.is_tof
        else "no TOF",
    }
    return {"views": layout.views, "radials": layout.radials, "tof_bins": layout.tof_bins, "planes": layout.planes,
            "merged": merged}  # fmt: skip


def describe_rates(rates: tuple[DoseRates, ...]) -> list[dict[str, Any]]:
    """Rates by dose for the provenance, JSON types."""
    return [
        {"drf": r.drf, "seconds": r.seconds, "mean_singles_cps": float(r.singles_cps.mean()),
         "mean_live_fraction": float(r.live.mean())}
        for r in rates
    ]  # fmt: skip


def _provenance(
    plan: Plan, settings: SimulationSettings, model: AcquisitionModel, estimator: Estimator | None,
    found: list[dict[str, Any]], store: Storage,
) -> dict[str, Any]:  # fmt: skip
    preset = plan.preset
    missing = [name for name, off in (("scatter", settings.scatter == "none"), ("randoms", settings.randoms == "none"),
                                      ("dead time", settings.randoms == "none")) if off]  # fmt: skip
    return {
        "scanner": plan.scanner.name,
        "scanner_title": plan.scanner.title,
        "not_modeled": missing,
        "realizations": "independent",
        "sensitivity_cps_per_kbq": plan.scanner.sensitivity_cps_per_kbq or sensitivity(plan.scanner),
        "sensitivity": "published" if plan.scanner.sensitivity_cps_per_kbq else "predicted",
        "layout": describe_layout(plan.layout),
        "reconstruction": {
            **preset.described(),
            "psf_fwhm_mm": list(plan.scanner.given("resolution_fwhm_mm")) if settings.models_psf else None,
            "post_filter_fwhm_mm": preset.filter_mm,
            "corrections": settings.corrections,
            "mu_mismatch": None if estimator is None else estimator.mismatch.describe(),
            "normalization_drift": 0.0 if estimator is None else settings.drift,
            "from_events_drf": store.drfs_from_events(settings.ladder()),
            "by_realization": found,
        },
        "forward": {
            "blur_fwhm_mm": [round(v, 4) for v in plan.fwhm_mm], "rays_per_pair": settings.rays**2,
            "voxel_mm": list(plan.simulation_grid.spacing_mm), "isotope": plan.subject.injection.isotope,
            "scatter": settings.scatter, "randoms": settings.randoms, "respiratory_mm": settings.respiratory_mm,
            "activity_left_out_in_air": round(share_in_air(plan.subject), 5),
        },
        "rates": describe_rates(model.rates),
        "duration_s": plan.duration_s,
        "fov_mm": plan.fov_mm,
        "full_dose": settings.full_dose,
        "mu_source": plan.subject.mu_source,
        "truth_is_noisy": plan.subject.is_noisy,
        "warnings": list(plan.warnings),
    }  # fmt: skip
