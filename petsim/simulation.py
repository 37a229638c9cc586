"""One subject through the scanner: counts and images at every dose."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.resample import resample, resample_labels
from petsim.acquisition import NOT_MODELED, AcquisitionModel
from petsim.counts import CountStream, storage
from petsim.dose import DoseLadder
from petsim.filters import gaussian
from petsim.noise import coefficient_of_variation, liver_sphere, sphere, uniform_sphere
from petsim.physics.attenuation import survival
from petsim.physics.normalization import counts_per_activity, crystal_efficiencies
from petsim.plan import Plan, plan_subject
from petsim.projectors.choose import projector_class
from petsim.recon.osem import osem
from petsim.settings import PRESETS, SimulationSettings

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


def build_model(plan: Plan, settings: SimulationSettings) -> AcquisitionModel:
    """Acquisition model of a planned subject; `--counts` scales the level."""
    subject = plan.subject
    assert subject.mu_per_cm is not None
    efficiencies = crystal_efficiencies(plan.scanner, settings.efficiency_spread)
    level = counts_per_activity(plan.scanner, settings.efficiency_spread) * plan.seconds
    return AcquisitionModel(
        layout=plan.layout,
        grid=plan.simulation_grid,
        center_mm=plan.center_mm,
        activity_bqml=resample(subject.activity_bqml, subject.grid, plan.simulation_grid),
        mu_per_cm=resample(subject.mu_per_cm, subject.grid, plan.simulation_grid),
        fwhm_mm=plan.fwhm_mm,
        efficiencies=efficiencies,
        counts_per_unit=level,
        rays=settings.rays,
        operator=projector_class(settings.backend),
        support_mm=plan.fov_mm / 2,
    )


def simulate_plan(
    plan: Plan,
    settings: SimulationSettings,
    budget_bytes: float = 8e9,
    keep_sinograms: bool = False,
    progress: Progress = lambda what, fraction: None,
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
    model = build_model(plan, settings)
    scale = _count_scale(model, settings)
    level = settings.counts or expected_total(model, plan.layout.views // SAMPLED_VIEWS)
    store = storage(plan, drfs, noise_free_wanted, settings.realizations, level, budget_bytes)
    held: dict[bytes, np.ndarray] = {}

    def expected(views: np.ndarray) -> np.ndarray:
        group = views.tobytes()
        if group in held:
            return held[group]
        fresh = model.expected(views)
        if scale != 1:
            fresh *= np.float32(scale)
        if store.expected_bytes:
            held[group] = fresh
        return fresh

    recon = _Reconstructor(plan, model)
    per_unit = model.counts_per_unit * scale
    total_steps = settings.realizations * plan.preset.iterations * plan.preset.subsets
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress("reconstructing", done / total_steps)

    images, counts, sinograms, noise_free = [], [], [], None
    for realization in range(settings.realizations):
        ladder = DoseLadder(drfs, settings.seed, plan.subject.name, realization, settings.mode)
        with_expected = noise_free_wanted and realization == 0
        with CountStream(ladder, expected, store.counts) as stream:

            def data(
                views: np.ndarray, stream: CountStream = stream, with_expected: bool = with_expected
            ) -> list[np.ndarray]:
                drawn = stream.read(views)
                return [drawn, expected(views)[None]] if with_expected else [drawn]

            raw = recon.run(data, len(drfs) + with_expected, step)
            if keep_sinograms:
                sinogram = np.empty((len(drfs), *plan.layout.shape), np.uint16)
                for subset in range(plan.preset.subsets):
                    for views in recon.groups(subset):
                        sinogram[:, views] = stream.read(views)
                sinograms.append(sinogram)
            totals = stream.totals()
        if with_expected:
            noise_free = recon.finish(raw[-1], 1 / per_unit)
        images.append(np.stack([recon.finish(r, d / per_unit) for r, d in zip(raw, drfs, strict=False)]))
        counts += [
            {"drf": d, "realization": realization, "mode": settings.mode, "seed": settings.seed, "prompts": int(n),
             "trues": int(n), "scatter": 0, "randoms": 0, "nec": float(n)}
            for d, n in zip(drfs, totals, strict=True)
        ]  # fmt: skip
    stack = np.stack(images, axis=1)
    truth = resample(plan.subject.activity_bqml, plan.subject.grid, plan.grid) * recon.inside
    if settings.full_dose == "source":
        stack = insert_noise(truth, stack)
    result = Simulation(
        grid=plan.grid,
        drfs=drfs,
        images=stack,
        noise_free=noise_free,
        activity_bqml=truth,
        mu_per_cm=recon.mu_per_cm,
        labels=None if plan.subject.labels is None else resample_labels(plan.subject.labels, plan.subject.grid, plan.grid),
        counts=counts,
        sinograms=sinograms if keep_sinograms else None,
        provenance=_provenance(plan, settings, scale),
    )
    _add_figures(result, plan)
    if settings.full_dose == "source":
        _compare_noise(result, level)
    return result


SAMPLED_VIEWS = 12
"""Views from which the level of counts is estimated beforehand."""


def check_memory(plan: Plan, settings: SimulationSettings, budget: float) -> None:
    """Refuse a simulation that does not even fit when it is streamed.

    Raises
    ------
    DataError
        The message names a setting that fits.
    """
    doses = len(settings.ladder())
    images = doses + (not plan.subject.is_noisy)
    least = plan.bytes_needed(images, doses)
    if least <= budget:
        return
    others = {p: plan_subject(plan.subject, replace(settings, preset=p)) for p in PRESETS if p != settings.preset}
    fitting = [f"--preset {name}" for name, other in others.items() if other.bytes_needed(images, doses) <= budget]
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


class _Reconstructor:
    """OSEM with the layout, mu-map and normalization of a plan."""

    def __init__(self, plan: Plan, model: AcquisitionModel) -> None:
        self.plan = plan
        support = plan.fov_mm / 2
        self.projector = model.operator(plan.layout, plan.grid, plan.center_mm, support)
        plain = model.operator(plan.layout, plan.grid, plan.center_mm, support, tof=False)
        subject = plan.subject
        assert subject.mu_per_cm is not None
        self.mu_per_cm = resample(subject.mu_per_cm, subject.grid, plan.grid)
        self.psf_mm: tuple[float, float, float] = plan.scanner.given("resolution_fwhm_mm")
        self.inside = plain.support
        self.sensitivities = []
        for subset in range(plan.preset.subsets):
            sums = plain.new_sums(1)
            for views in self.groups(subset):
                factors = survival(plain.forward(self.mu_per_cm, views))
                factors *= model.normalization(views)[:, :, None, :]
                plain.add_back(sums, views, factors[None])
            self.sensitivities.append(self.blur(plain.image_of(sums)[0]))

    def groups(self, subset: int) -> Iterator[np.ndarray]:
        """Views of a subset, a group at a time."""
        views = self.plan.layout.subset_views(subset, self.plan.preset.subsets)
        for first in range(0, len(views), self.plan.views_at_once):
            yield views[first : first + self.plan.views_at_once]

    def blur(self, image: np.ndarray) -> np.ndarray:
        """Point spread function of the model."""
        return gaussian(image, self.psf_mm, self.plan.grid.spacing_mm)

    def run(self, data: Callable[[np.ndarray], list[np.ndarray]], images: int, step: Callable[[], None]) -> np.ndarray:
        """OSEM of `data(views)`, stacks (n, views, ...) of all `images`; the result still carries the counts' constant."""

        def em_back(subset: int, blurred: np.ndarray) -> np.ndarray:
            sums = self.projector.new_sums(images)
            prepared = self.projector.prepare(blurred)
            for views in self.groups(subset):
                first = 0
                for stack in data(views):
                    part = slice(first, first + len(stack))
                    self.projector.add_em_back(sums[part], views, stack, prepared[part])
                    first += len(stack)
            return self.projector.image_of(sums)

        start = np.broadcast_to(self.inside.astype(np.float32), (images, *self.plan.grid.shape))
        return osem(start, em_back, self.sensitivities, self.blur, self.plan.preset.iterations, step)

    def finish(self, image: np.ndarray, scale: float) -> np.ndarray:
        """Scale to Bq/mL and post-filter."""
        width = self.plan.preset.filter_mm
        return gaussian(image * np.float32(scale), (width, width, width), self.plan.grid.spacing_mm)


def _count_scale(model: AcquisitionModel, settings: SimulationSettings) -> float:
    """Factor that brings the expected prompts to `--counts`."""
    if settings.counts is None:
        return 1.0
    total = expected_total(model)
    if total <= 0:
        raise DataError("no counts are expected at all; the activity lies outside the field of view")
    return settings.counts / total


def expected_total(model: AcquisitionModel, every: int = 1) -> float:
    """Expected prompts at full dose, from one view in `every`, scaled up.

    Views are picked in golden-ratio steps: a constant step would beat with the period of the block gaps.
    """
    count = max(1, model.layout.views // every)
    step = next(
        s for s in range(round(model.layout.views * 0.618), 2 * model.layout.views) if math.gcd(s, model.layout.views) == 1
    )
    views = np.sort(np.arange(count) * step % model.layout.views)
    total = sum(float(model.expected(np.array([v])).sum(dtype=np.float64)) for v in views)
    return total * model.layout.views / len(views)


def noise_region(simulation_like: np.ndarray, labels: np.ndarray | None, names: dict[int, str], grid: Grid) -> tuple[
    tuple[slice, slice, slice] | None, str]:  # fmt: skip
    """Where noise is measured, and how that place was found."""
    liver = next((k for k, v in names.items() if v == "liver"), None)
    if labels is not None and liver is not None:
        box = liver_sphere(labels, liver, grid)
        if box is not None:
            return box, "30 mm sphere deepest in the labeled liver"
    return uniform_sphere(simulation_like, grid), "most uniform 30 mm sphere of above-average uptake (liver not labeled)"


def _add_figures(result: Simulation, plan: Plan) -> None:
    """Add dose figures and the measured noise to the count table."""
    box, how = noise_region(result.activity_bqml, result.labels, plan.subject.label_names, result.grid)
    result.provenance["noise_region"] = how if box is not None else "none found"
    result.provenance["noise_sphere"] = None if box is None else [[b.start, b.stop] for b in box]
    activity, weight = plan.subject.activity_at_scan_mbq(), plan.subject.injection.weight_kg
    for row in result.counts:
        image = result.images[result.drfs.index(row["drf"]), row["realization"]]
        row["mbq_s_per_kg"] = activity * plan.duration_s / weight / row["drf"] if activity and weight else None
        row["liver_cov"] = coefficient_of_variation(image, box, result.grid) if box is not None else None


def _compare_noise(result: Simulation, level: float) -> None:
    """Warn when a source is much noisier or smoother than a full-dose scan of this scanner would be.

    The inserted noise at DRF D is sqrt(D - 1) times that of a full dose (see `insert_noise`), which gives the latter
    without a second reconstruction.
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
            f"--counts {level * (full_cov / source_cov) ** 2:.2g} would match it"
        )


def _provenance(plan: Plan, settings: SimulationSettings, scale: float) -> dict[str, Any]:
    layout, preset = plan.layout, plan.preset
    merged = {
        "crystals": f"{layout.merge_transaxial} transaxial x {layout.merge_axial} axial",
        "span": f"{layout.span} in merged rings, maximum ring difference {layout.max_ring_difference}",
        "tof": f"{layout.merge_tof} x {layout.scanner.tof_bin_ps:.2f} ps, {layout.tof_bins} bins"
        if layout.is_tof
        else "no TOF",
    }
    return {
        "scanner": plan.scanner.name,
        "scanner_title": plan.scanner.title,
        "not_modeled": list(NOT_MODELED),
        "realizations": "independent",
        "sensitivity_cps_per_kbq": plan.scanner.sensitivity_cps_per_kbq,
        "layout": {"views": layout.views, "radials": layout.radials, "tof_bins": layout.tof_bins,
                   "planes": layout.planes, "merged": merged},
        "reconstruction": {
            "algorithm": "OSEM", "iterations": preset.iterations, "subsets": preset.subsets,
            "psf_fwhm_mm": list(plan.scanner.given("resolution_fwhm_mm")), "post_filter_fwhm_mm": preset.filter_mm,
            "corrections": "true normalization; attenuation from the subject's mu-map on the reconstruction grid",
        },
        "forward": {
            "blur_fwhm_mm": [round(v, 4) for v in plan.fwhm_mm], "rays_per_pair": settings.rays**2,
            "voxel_mm": list(plan.simulation_grid.spacing_mm),
        },
        "duration_s": plan.duration_s,
        "fov_mm": plan.fov_mm,
        "count_scale": scale,
        "full_dose": settings.full_dose,
        "mu_source": plan.subject.mu_source,
        "truth_is_noisy": plan.subject.is_noisy,
        "warnings": list(plan.warnings),
    }  # fmt: skip
