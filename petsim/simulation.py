"""One subject through the scanner: counts and images at every dose."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.isotopes import isotope
from data_recipes.resample import resample, resample_labels
from petsim.acquisition import COMPONENTS, AcquisitionModel
from petsim.corrections import Estimator, differences, oracle
from petsim.counts import CountStream, draw_by_component, draw_thinned, storage
from petsim.dose import DoseLadder
from petsim.dose_rates import DoseRates, dose_rates
from petsim.filters import gaussian
from petsim.noise import coefficient_of_variation, liver_sphere, sphere, uniform_sphere
from petsim.physics.monte_carlo import acceptance
from petsim.physics.multiple_scatter import add_multiple
from petsim.physics.normalization import counts_per_activity, crystal_efficiencies
from petsim.physics.randoms import DelayedWindow
from petsim.physics.resolution import add_positron_range
from petsim.physics.scatter import single_scatter
from petsim.physics.scatter_monte_carlo import monte_carlo_scatter
from petsim.physics.sensitivity import photons_kept, sensitivity
from petsim.physics.singles import Singles, no_singles, subject_singles
from petsim.plan import Plan, plan_subject
from petsim.projectors.choose import projector_class
from petsim.reconstruct import Corrections, Reconstructor
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
    """Acquisition model of a planned subject at the doses of the settings; `--counts` scales the duration."""
    scanner, subject = plan.scanner, plan.subject
    assert subject.mu_per_cm is not None
    singles = _singles(plan, settings)
    isotope_name = subject.injection.isotope

    def blur(image: np.ndarray) -> np.ndarray:
        spacing = plan.simulation_grid.spacing_mm
        sharp = image if subject.is_noisy else add_positron_range(image, spacing, isotope_name)
        return gaussian(sharp, plan.fwhm_mm, spacing)

    model = AcquisitionModel(
        layout=plan.layout,
        grid=plan.simulation_grid,
        center_mm=plan.center_mm,
        activity_bqml=resample(subject.activity_bqml, subject.grid, plan.simulation_grid),
        mu_per_cm=resample(subject.mu_per_cm, subject.grid, plan.simulation_grid),
        blur=blur,
        efficiencies=crystal_efficiencies(scanner, settings.efficiency_spread),
        rates=_rates(plan, settings, singles, 1.0),
        areas=singles.areas,
        scatter=_scatter(plan, settings, singles),
        rays=settings.rays,
        operator=projector_class(settings.backend),
        support_mm=plan.fov_mm / 2,
    )
    if settings.counts is None:
        return model
    total = expected_total(model)
    if total <= 0:
        raise DataError("no counts are expected at all; the activity lies outside the field of view")
    return replace(model, rates=_rates(plan, settings, singles, settings.counts / total))


def _rates(plan: Plan, settings: SimulationSettings, singles: Singles, scale: float) -> tuple[DoseRates, ...]:
    published = plan.scanner.sensitivity_cps_per_kbq is not None
    scanner = plan.scanner if published else replace(plan.scanner, sensitivity_cps_per_kbq=sensitivity(plan.scanner))
    level = counts_per_activity(scanner, settings.efficiency_spread)
    name = plan.subject.injection.isotope
    rates = tuple(dose_rates(singles, d, settings.mode, plan.duration_s, name, level, scale) for d in settings.ladder())
    live = float(rates[0].live.min())
    if live < LEAST_LIVE:
        raise DataError(
            f"{plan.subject.name}: {plan.subject.total_mbq():.0f} MBq in the image leave the detector blocks of "
            f"{scanner.name} live {100 * live:.0f} % of the time, beyond the range of the dead-time model "
            f"({100 * LEAST_LIVE:.0f} %); check units and "
            "--activity-mbq, or leave dead time out with --randoms none"
        )
    return rates


def _singles(plan: Plan, settings: SimulationSettings) -> Singles:
    """Singles of all of the subject, what lies outside the field of view included."""
    if settings.randoms == "none" and settings.scatter == "none":
        return no_singles(plan.scanner)
    whole = plan.whole_subject
    assert whole.mu_per_cm is not None
    singles = subject_singles(
        plan.scanner, whole.activity_bqml, whole.mu_per_cm, whole.grid, plan.center_mm, plan.fov_mm,
        isotope(whole.injection.isotope).branching, photons_kept(plan.scanner), settings.photons, settings.seed,
    )  # fmt: skip
    return (
        singles
        if settings.randoms == "simulated"
        else replace(no_singles(plan.scanner), multiple_ratio=singles.multiple_ratio)
    )


def _scatter(plan: Plan, settings: SimulationSettings, singles: Singles) -> Any:
    if settings.scatter == "none":
        return None
    whole = plan.whole_subject
    assert whole.mu_per_cm is not None
    if settings.scatter == "monte-carlo":
        return monte_carlo_scatter(
            plan.layout, whole.activity_bqml, whole.mu_per_cm, whole.grid, plan.center_mm, acceptance(plan.scanner),
            SCATTER_DECAYS * settings.photons, settings.seed,
        )  # fmt: skip
    single = single_scatter(
        plan.layout, whole.activity_bqml[None], whole.mu_per_cm, whole.grid, plan.center_mm, acceptance(plan.scanner)
    )
    return add_multiple(single, singles.multiple_ratio, singles.areas.middles_mm)


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
    progress("counting singles and scatter", 0.0)
    model = build_model(plan, settings)
    level = settings.counts or expected_total(model, plan.layout.views // SAMPLED_VIEWS)
    store = storage(plan, drfs, noise_free_wanted, settings.realizations, level, budget_bytes)
    recording = _Recording(model, settings.mode, hold=bool(store.expected_bytes))
    estimator = Estimator.of(plan, settings, model) if settings.corrections == "estimated" else None
    finds_scatter = estimator is not None and model.scatter is not None
    # Scatter is found in the first iteration; where that is the only one, it is done again with it.
    iterations = max(2, plan.preset.iterations) if finds_scatter else plan.preset.iterations
    order = list(range(plan.preset.subsets))
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress("reconstructing", done / (settings.realizations * iterations * len(order)))

    reconstructors: dict[int, tuple[Corrections, Reconstructor]] = {}
    window = DelayedWindow.of(plan.layout) if settings.randoms == "simulated" else None
    images, counts, sinograms, found, noise_free = [], [], [], [], None
    for realization in range(settings.realizations):
        ladder = DoseLadder(drfs, settings.seed, plan.subject.name, realization)
        with_expected = noise_free_wanted and realization == 0
        wanted = len(drfs) + with_expected
        with CountStream(partial(recording.draw, ladder), store.counts, plan.images_at_once) as stream:

            def data(
                views: np.ndarray, stream: CountStream = stream, with_expected: bool = with_expected
            ) -> Iterator[np.ndarray]:
                yield from stream.read(views)
                if with_expected:
                    yield recording.expected(views)[None]

            if wanted not in reconstructors:
                true = oracle(plan, model, wanted)
                start = true if estimator is None else estimator.start(true)
                reconstructors[wanted] = true, Reconstructor(plan, model.operator, start)
            true, recon = reconstructors[wanted]
            if estimator is not None and window is not None:
                rates = estimator.randoms(window, ladder, wanted)
                recon = recon.believing(replace(recon.corrections, rates=rates))
            raw, left = None, plan.preset.iterations
            if estimator is not None and model.scatter is not None:
                recon, first = estimator.first_iteration(recon, data, step)
                if left > 1:
                    raw, left = first, left - 1
            found.append({
                "scatter_scales": list(recon.corrections.scatter_scales),
                "estimated_minus_true": differences(recon.corrections, true),
            })  # fmt: skip
            raw = recon.finish(recon.run(data, order * left, step, raw))
            if keep_sinograms:
                sinogram = np.empty((len(drfs), *plan.layout.shape), np.uint16)
                for subset in range(plan.preset.subsets):
                    for views in recon.groups(subset):
                        first = 0
                        for stack in stream.read(views):
                            sinogram[first : first + len(stack), views] = stack
                            first += len(stack)
                sinograms.append(sinogram)
            totals = stream.totals()
        if with_expected:
            noise_free = raw[-1]
        images.append(raw[: len(drfs)])
        counts += _count_rows(settings, drfs, realization, totals, recording.sums())
    stack = np.stack(images, axis=1)
    true, recon = next(iter(reconstructors.values()))
    truth = resample(plan.subject.activity_bqml, plan.subject.grid, plan.grid) * recon.inside
    if settings.full_dose == "source":
        stack = insert_noise(truth, stack)
    subject = plan.subject
    result = Simulation(
        grid=plan.grid,
        drfs=drfs,
        images=stack,
        noise_free=noise_free,
        activity_bqml=truth,
        mu_per_cm=true.mu_per_cm,
        labels=None if subject.labels is None else resample_labels(subject.labels, subject.grid, plan.grid),
        counts=counts,
        sinograms=sinograms if keep_sinograms else None,
        provenance=_provenance(plan, settings, model, estimator, found),
    )
    _add_figures(result, plan)
    if settings.full_dose == "source":
        _compare_noise(result, level)
    return result


class _Recording:
    """Expected counts at full dose, held where memory allows, and the counts drawn from them.

    Parameters
    ----------
    model : AcquisitionModel
    mode : str
        Of the dose ladder.
    hold : bool
        Keep expected counts.
    """

    def __init__(self, model: AcquisitionModel, mode: str, hold: bool) -> None:
        self._model, self._mode, self._hold = model, mode, hold
        self._held: dict[bytes, np.ndarray] = {}
        self._sums: dict[bytes, np.ndarray] = {}
        self._buffer: np.ndarray | None = None

    def expected(self, views: np.ndarray) -> np.ndarray:
        """Expected prompts at full dose, float32 (views, radial, tof, plane)."""
        group = views.tobytes()
        if group in self._held:
            return self._held[group]
        counts, sums = self._model.expected_and_totals(views)
        if self._mode == "thin":
            self._sums[group] = np.stack([sums.sum(axis=0) / r.drf for r in self._model.rates])
        if self._hold:
            self._held[group] = counts
        return counts

    def draw(self, ladder: DoseLadder, views: np.ndarray) -> np.ndarray:
        """Counts at all doses, uint16 (dose, views, radial, tof, plane); the next call may overwrite them."""
        if self._mode == "thin":
            expected = self.expected(views)
            shape = (len(ladder.drfs), *expected.shape)
            if self._buffer is None or self._buffer.shape != shape:
                self._buffer = np.empty(shape, np.uint16)
            return draw_thinned(ladder, expected, views, self._buffer)
        components = self._model.components(views)
        kept = {name: [self._model.kept(views, name, d) for d in range(len(ladder.drfs))] for name in COMPONENTS}
        over_tof = {name: c.sum(axis=2, dtype=np.float64) for name, c in components.items()}
        self._sums[views.tobytes()] = np.array(
            [[(over_tof[name] * kept[name][d]).sum() for name in COMPONENTS] for d in range(len(ladder.drfs))]
        )
        return draw_by_component(ladder, components, kept, views)

    def sums(self) -> np.ndarray:
        """Expected counts by dose and component, float64 (dose, 3), in all views that were drawn."""
        return np.sum(list(self._sums.values()), axis=0)


def _count_rows(
    settings: SimulationSettings, drfs: tuple[float, ...], realization: int, prompts: np.ndarray, sums: np.ndarray
) -> list[dict[str, Any]]:
    """Counts by dose: prompts as drawn, scatter and randoms as expected, trues the rest.

    NEC = T^2 / (T + S + R) with T, S and R as expected, randoms from a smooth estimate (NEMA NU 2-2018, k = 1).
    """
    rows = []
    for d, drawn, (trues, scatter, randoms) in zip(drfs, prompts.tolist(), sums.tolist(), strict=True):
        total = trues + scatter + randoms
        rows.append({
            "drf": d, "realization": realization, "mode": settings.mode, "seed": settings.seed, "prompts": drawn,
            "trues": drawn - round(scatter) - round(randoms), "scatter": round(scatter), "randoms": round(randoms),
            "nec": trues**2 / total if total > 0 else 0.0,
        })  # fmt: skip
    return rows


SCATTER_DECAYS = 40
"""Decays of the Monte Carlo for `--scatter monte-carlo` by decay of that for singles: scattered coincidences are few."""

LEAST_LIVE = math.exp(-1)
"""Where the rate of a paralyzable block is highest; beyond it, it falls with more activity."""

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
    others = {
        p: plan_subject(plan.subject, replace(settings, preset=p), plan.scanner) for p in PRESETS if p != settings.preset
    }
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


def sampled_views(views: int, count: int) -> np.ndarray:
    """`count` of `views` views in golden-ratio steps: a constant step would beat with the period of the block gaps."""
    step = next(s for s in range(round(views * 0.618), 2 * views) if math.gcd(s, views) == 1)
    return np.sort(np.arange(count) * step % views)


def expected_total(model: AcquisitionModel, every: int = 1) -> float:
    """Expected prompts at full dose, from one view in `every`, scaled up."""
    views = sampled_views(model.layout.views, max(1, model.layout.views // every))
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


def _provenance(
    plan: Plan, settings: SimulationSettings, model: AcquisitionModel, estimator: Estimator | None,
    found: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    layout, preset = plan.layout, plan.preset
    merged = {
        "crystals": f"{layout.merge_transaxial} transaxial x {layout.merge_axial} axial",
        "span": f"{layout.span} in merged rings, maximum ring difference {layout.max_ring_difference}",
        "tof": f"{layout.merge_tof} x {layout.scanner.tof_bin_ps:.2f} ps, {layout.tof_bins} bins"
        if layout.is_tof
        else "no TOF",
    }
    missing = [name for name, off in (("scatter", settings.scatter == "none"), ("randoms", settings.randoms == "none"),
                                      ("dead time", settings.randoms == "none")) if off]  # fmt: skip
    rates = [
        {"drf": r.drf, "seconds": r.seconds, "mean_singles_cps": float(r.singles_cps.mean()),
         "mean_live_fraction": float(r.live.mean())}
        for r in model.rates
    ]  # fmt: skip
    return {
        "scanner": plan.scanner.name,
        "scanner_title": plan.scanner.title,
        "not_modeled": missing,
        "realizations": "independent",
        "sensitivity_cps_per_kbq": plan.scanner.sensitivity_cps_per_kbq or sensitivity(plan.scanner),
        "sensitivity": "published" if plan.scanner.sensitivity_cps_per_kbq else "predicted",
        "layout": {"views": layout.views, "radials": layout.radials, "tof_bins": layout.tof_bins,
                   "planes": layout.planes, "merged": merged},
        "reconstruction": {
            "algorithm": "OSEM", "iterations": preset.iterations, "subsets": preset.subsets,
            "psf_fwhm_mm": list(plan.scanner.given("resolution_fwhm_mm")), "post_filter_fwhm_mm": preset.filter_mm,
            "corrections": settings.corrections,
            "mu_mismatch": None if estimator is None else estimator.mismatch.describe(),
            "normalization_drift": 0.0 if estimator is None else settings.drift,
            "by_realization": found,
        },
        "forward": {
            "blur_fwhm_mm": [round(v, 4) for v in plan.fwhm_mm], "rays_per_pair": settings.rays**2,
            "voxel_mm": list(plan.simulation_grid.spacing_mm), "isotope": plan.subject.injection.isotope,
            "scatter": settings.scatter, "randoms": settings.randoms,
        },
        "rates": rates,
        "duration_s": plan.duration_s,
        "fov_mm": plan.fov_mm,
        "full_dose": settings.full_dose,
        "mu_source": plan.subject.mu_source,
        "truth_is_noisy": plan.subject.is_noisy,
        "warnings": list(plan.warnings),
    }  # fmt: skip
