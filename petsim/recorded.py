"""Raw data of a scanner as a subject: its counts at every dose, reconstructed with corrections from each dose's own data."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from data_recipes.contour import read_ct, read_mu
from data_recipes.errors import DataError, UsageError
from data_recipes.subject import Injection, Subject
from petsim.corrections import first_iteration
from petsim.counts import EVENT_BYTES, CountStream, Storage, doses_from_events, place_for
from petsim.dose_rates import DoseRates, dose_rates
from petsim.event_updates import cheapest
from petsim.geometry.pair_bins import PairBins
from petsim.geometry.scanner import scanner_names
from petsim.geometry.sinogram import TOF_SIGMAS, SinogramLayout, fitting_grid, preset_layout, tof_bins_for
from petsim.model import with_sensitivity
from petsim.physics.normalization import counts_per_activity, normalization
from petsim.physics.randoms import DelayedWindow
from petsim.physics.singles import no_singles
from petsim.plan import Plan
from petsim.projectors.choose import projector_class
from petsim.rawdata.efficiencies import FanCounts, estimate_efficiencies
from petsim.rawdata.events import Header, Listmode, rings_of
from petsim.rawdata.formats import open_listmode
from petsim.rawdata.lower_dose import Delayeds, acceptance, merged_tof, singles_of, within
from petsim.rawdata.recorded_counts import RECORDED_BYTES, RecordedCounts
from petsim.rawdata.thin import Ladder, levels_of, select
from petsim.reconstruct import Corrections, Reconstructor
from petsim.settings import ESTIMATE, ReadOptions, SimulationSettings
from petsim.simulation import Progress, Simulation, add_figures, describe_layout, describe_rates

FLUX_AREAS = 2.0
"""Standard deviation, in areas of detectors, over which singles are smoothed before they tell efficiencies."""

FOV_MM = 600.0
"""Largest transaxial field of view where none is given: it holds a patient's arms."""


LOST_SHARE = 0.001
"""Part of the prompts outside the field of view from which on it is told."""


def preview_recorded(path: Path, settings: SimulationSettings, options: ReadOptions) -> dict[str, Any]:
    """What `make-dataset` would make of a list-mode file, without reconstruction; JSON types."""
    source = open_listmode(path, settings.scanner)
    plan = plan_recorded(source, settings, options)
    header, doses = source.header, settings.ladder()
    counts = np.zeros(2, np.int64)
    for block in source.blocks():
        late = np.count_nonzero(block.events["is_delayed"])
        counts += len(block.events) - late, late
    memory = plan.bytes_needed(len(doses), len(doses), settings.live_fractions, simulated=False)
    memory += RECORDED_BYTES * int(counts[0])
    return {
        "subject": plan.subject.name, "scanner": plan.scanner.name, "fields": sorted(header.fields),
        "start_s": header.start_s, "duration_s": header.duration_s, "prompts": int(counts[0]), "delayeds": int(counts[1]),
        "layout": describe_layout(plan.layout), "images": list(plan.grid.shape), "voxel_mm": list(plan.grid.spacing_mm),
        "mu": plan.subject.mu_source, "memory_gb": round(memory / 1e9, 2), "warnings": [*source.warnings, *plan.warnings],
    }  # fmt: skip


def scanner_of(path: Path, given: str | None) -> str:
    """Name (or TOML file) of the scanner that made a raw file: the given one, else what the file says.

    Raises
    ------
    DataError
        The file does not name a scanner of the library.
    """
    scanner = rings_of(open_listmode(path, given).header)
    if given is not None:
        return given
    if scanner.name not in scanner_names():
        raise DataError(
            f"{path.name}: was made with {scanner.name}, which the library lacks; describe it with --scanner FILE.toml"
        )
    return scanner.name


def reconstruct_recorded(
    source: Listmode,
    plan: Plan,
    settings: SimulationSettings,
    options: ReadOptions,
    budget_bytes: float = 8e9,
    keep_sinograms: bool = False,
    progress: Progress = lambda what, fraction: None,
) -> tuple[Subject, Simulation]:
    """Reconstruct a list-mode file at every dose.

    Randoms come from the delayeds of each dose and realization, scatter from its own image where there is attenuation.

    Parameters
    ----------
    source : Listmode
    plan : Plan
        Of `plan_recorded`.
    settings : SimulationSettings
    options : ReadOptions
    budget_bytes : float
    keep_sinograms : bool
    progress : callable

    Returns
    -------
    tuple
        The subject, whose activity is the reconstruction of all counts; and its images, counts and provenance.

    Raises
    ------
    UsageError, DataError
    """
    if settings.mode == "window" and settings.realizations > 1:
        raise UsageError("--realizations: the middle of a recorded scan is there once; leave it out, or use --mode thin")
    warnings = [*(_nameless(w) for w in source.warnings), *plan.warnings]
    progress("reading events", 0.0)
    accepted = acceptance(source)
    made = []
    for number in range(settings.realizations):
        one = _Recorded(source, plan, settings, options, number, budget_bytes, warnings, accepted)
        done = number / settings.realizations
        made.append(one.reconstruct(keep_sinograms, lambda share, done=done: progress(
            "reconstructing", done + share / settings.realizations)))  # fmt: skip
    images = np.stack([m.images for m in made], axis=1)
    # The post-filter's rounding may leave -1e-28.
    subject = replace(plan.subject, activity_bqml=np.maximum(images[0, 0], 0))
    assert subject.mu_per_cm is not None
    result = Simulation(
        grid=plan.grid, drfs=settings.ladder(), images=images, noise_free=None, activity_bqml=subject.activity_bqml,
        mu_per_cm=subject.mu_per_cm, labels=None, counts=[row for m in made for row in m.rows],
        sinograms=[m.sinogram for m in made if m.sinogram is not None] if keep_sinograms else None,
        provenance=_provenance(source.header, plan, settings, options, made, warnings),
    )  # fmt: skip
    add_figures(result, subject, plan.duration_s)
    return subject, result


def events_sha256(source: Listmode) -> str:
    """Hash of all events and of what is known of them, whatever file holds them."""
    h = source.header
    digest = hashlib.sha256(repr((h.scanner.name, h.start_s, h.duration_s, h.tof_bins, h.tof_bin_ps, h.injection)).encode())
    for block in source.blocks():
        digest.update(block.events.tobytes())
    return digest.hexdigest()


def _nameless(warning: str) -> str:
    """A warning without the file name before it, which may be a patient's."""
    first, colon, rest = warning.partition(": ")
    return rest if colon and "." in first else warning


def plan_recorded(source: Listmode, settings: SimulationSettings, options: ReadOptions) -> Plan:
    """Layout, grid and attenuation for a list-mode file."""
    header = source.header
    if header.dose is not None:
        raise DataError(f"{source.name}: is at DRF {header.dose.drf:g} already; give the full dose")
    scanner = rings_of(header)
    preset = settings.resolved_preset()
    fov = settings.fov_mm or min(FOV_MM, 20 * int(1.8 * scanner.inner_radius_mm / 20))
    accepted = acceptance(source)
    layout = within(_own_tof(preset_layout(accepted.scanner, preset, fov), header, fov), accepted)
    if preset.subsets > layout.views:
        raise UsageError(f"--subsets: {preset.subsets} subsets are more than the {layout.views} views")
    center = (0.0, 0.0, settings.center_mm or 0.0)
    grid = fitting_grid(layout, preset.voxel_mm, preset.voxel_mm, fov, scanner.axial_length_mm, center)
    warnings, mu, mu_source = [], None, None
    if options.mu is not None and options.ct is not None:
        raise UsageError("--ct, --mu: both were given; leave one out")
    if options.mu is not None:
        mu, mu_source = read_mu(options.mu, grid), "given"
    elif options.ct is not None:
        mu, mu_source = read_ct(options.ct, grid, kvp=options.ct_kvp, without_table=options.ct_without_table), "ct"
    else:
        warnings.append("no --mu or --ct: attenuation and scatter are not corrected, so that activity is too low inside")
    if options.normalization is None:
        warnings.append("no --normalization: all crystals count as alike (estimate: efficiencies from the delayeds)")
    if "delayeds" not in header.fields:
        warnings.append("the data have no delayeds: randoms are not corrected")
    known = header.injection if "injection" in header.fields else Injection()
    injection = Injection(
        known.isotope, known.tracer, options.injected_mbq or known.injected_mbq,
        known.uptake_s if options.uptake_s is None else options.uptake_s, options.weight_kg or known.weight_kg,
        header.duration_s,
    )  # fmt: skip
    sha256 = events_sha256(source)
    # What is in the field of view is not known before it is reconstructed.
    subject = Subject(
        name=f"subject-{sha256[:8]}", content_sha256=sha256, activity_bqml=np.ones(grid.shape, np.float32), grid=grid,
        injection=injection, mu_per_cm=np.zeros(grid.shape, np.float32) if mu is None else mu, mu_source=mu_source or "none",
        is_noisy=True, provenance={"kind": "list mode", "license": "unknown: ask whoever gave the source"},
    )  # fmt: skip
    return Plan(subject, subject, scanner, layout, preset, grid, grid, center, fov, header.duration_s, (0.0, 0.0, 0.0),
                tuple(warnings))  # fmt: skip


def _own_tof(layout: SinogramLayout, header: Header, fov_mm: float) -> SinogramLayout:
    """The layout with TOF bins that hold whole ones of the events; or without TOF."""
    scanner = layout.scanner
    if not layout.is_tof or header.tof_bins == 1:
        return replace(layout, merge_tof=0, tof_bins=1)
    merge, together = merged_tof(header, layout.merge_tof * scanner.given("tof_bin_ps"))
    # Bins beyond those of the events have no counts: nothing may be expected there.
    known = replace(scanner, tof_bins=header.tof_bins * merge // together)
    return replace(layout, merge_tof=merge, tof_bins=tof_bins_for(known, merge, fov_mm, TOF_SIGMAS))


@dataclass(frozen=True)
class _Made:
    """One realization."""

    images: np.ndarray
    rows: list[dict[str, Any]]
    sinogram: np.ndarray | None
    scales: list[dict[str, Any]]
    from_events: list[float]
    rates: tuple[DoseRates, ...]


class _Recorded:
    """Counts of one realization, and what is estimated from them."""

    def __init__(self, source: Listmode, plan: Plan, settings: SimulationSettings, options: ReadOptions, number: int,
                 budget_bytes: float, warnings: list[str], accepted: SinogramLayout) -> None:  # fmt: skip
        self._plan, self._settings, self._number = plan, settings, number
        drfs = settings.ladder()
        levels_for = levels_of(source, Ladder(drfs, settings.mode, settings.seed), number)
        window, pairs = DelayedWindow.of(accepted), PairBins.of(accepted)
        delayeds, fans = [Delayeds(window, pairs) for _ in drfs], FanCounts(pairs)

        def seen(events: np.ndarray, levels: np.ndarray) -> None:
            late = events["is_delayed"] > 0
            chosen, own = events[late], levels[late]
            fans.add(chosen)
            for k, counter in enumerate(delayeds):
                chosen, own = select(chosen, own, k + 1)
                counter.add(chosen)

        needed = plan.bytes_needed(len(drfs), len(drfs), settings.live_fractions, simulated=False)
        given = None
        if options.normalization not in (None, ESTIMATE):
            given = read_efficiencies(Path(options.normalization), plan.scanner.is_real())
        dead = None if given is None else given == 0
        self._counts = RecordedCounts.of(source, plan.layout, len(drfs), levels_for, budget_bytes, needed, seen, dead)
        self._storage = self._event_storage(budget_bytes - needed - RECORDED_BYTES * len(self._counts.within))
        if number == 0 and "delayeds" in source.header.fields and not delayeds[0].counts.any():
            warnings.append("not one delayed was found: randoms are not corrected")
        rates = self._estimated_rates(source.header, window, [d.counts for d in delayeds])
        self._areas = window.areas
        found = rates[0].singles_cps
        self._efficiencies = self._normalization(options, pairs, fans.counts, found) if given is None else given
        # Singles from delayeds are those of an area's crystals as they are; rates are those of a crystal of efficiency 1.
        mean = window.areas.mean_at(self._efficiencies)
        self._rates = tuple(replace(r, singles_cps=r.singles_cps / mean) for r in rates)
        share = self._counts.outside / max(self._counts.outside + len(self._counts.within), 1)
        if share >= LOST_SHARE and number == 0:
            warnings.append(
                f"{100 * share:.1f} % of the prompts lie outside the {plan.fov_mm:g} mm field of view or in dead crystals"
            )

    def _event_storage(self, room: float) -> Storage:
        prompts = self._counts.prompts().tolist()
        from_events = doses_from_events(self._plan, self._settings.backend, prompts, self._finds_scatter)
        return Storage(place_for(EVENT_BYTES * sum(prompts[k] for k in from_events), room), 0.0, 0.0, from_events)

    @property
    def _finds_scatter(self) -> bool:
        mu = self._plan.subject.mu_per_cm
        return self._settings.scatter != "none" and mu is not None and bool(mu.any())

    def _estimated_rates(self, header: Header, window: DelayedWindow, delayeds: list[np.ndarray]) -> tuple[DoseRates, ...]:
        """Rates by dose with singles from that dose's delayeds."""
        scanner, settings, isotope = self._plan.scanner, self._settings, self._plan.subject.injection.isotope
        level = counts_per_activity(with_sensitivity(scanner), 0.0)
        found = no_singles(scanner)
        if delayeds[0].any():
            found = singles_of(scanner, window, delayeds[0], header.duration_s, isotope)
        rates = []
        for drf, counts in zip(settings.ladder(), delayeds, strict=True):
            one = dose_rates(found, drf, settings.mode, header.duration_s, isotope, level, 1.0)
            singles = window.singles(counts, one.seconds) / one.live
            rates.append(replace(one, singles_cps=singles, extra_cps2=0.0))
        return tuple(rates)

    def _normalization(self, options: ReadOptions, pairs: PairBins, fans: np.ndarray, singles: np.ndarray) -> np.ndarray:
        if options.normalization is None:
            return self._plan.scanner.is_real().astype(np.float32)
        if not fans.any():
            raise DataError("--normalization estimate: the data have no delayeds to estimate from; give a .npy file")
        # Over this distance singles vary by the flux, within it by efficiencies.
        flux = gaussian_filter1d(gaussian_filter1d(singles, FLUX_AREAS, 0, mode="wrap"), FLUX_AREAS, 1, mode="nearest")
        return estimate_efficiencies(pairs, fans, self._areas.at_crystals(flux))

    def reconstruct(self, keep_sinogram: bool, progress: Callable[[float], None]) -> _Made:
        plan, settings = self._plan, self._settings
        mu = plan.subject.mu_per_cm
        assert mu is not None
        corrections = Corrections(mu, self._efficiencies, self._rates, self._areas)
        recon = Reconstructor(plan, projector_class(settings.backend), corrections, settings.models_psf)
        preset, order = plan.preset, list(range(plan.preset.subsets))
        updates, done = preset.subsets * (max(2, preset.iterations) if self._finds_scatter else preset.iterations), 0

        def step() -> None:
            nonlocal done
            done += 1
            progress(done / updates)

        with CountStream(self._counts.draw, "redrawn", plan.images_at_once) as stream:
            raw, left = None, preset.iterations
            if self._finds_scatter:
                recon, first = first_iteration(recon, stream.read, step)
                if left > 1:
                    raw, left = first, left - 1
            with cheapest(recon, stream.read, stream, self._storage) as em_back:
                images = recon.finish(recon.run(em_back, order * left, step, raw, 0 if raw is None else len(order)))
            prompts = stream.totals()
        rows = self._rows(recon, prompts)
        views = np.arange(plan.layout.views)
        return _Made(images, rows, self._counts.draw(views) if keep_sinogram else None,
                     list(recon.corrections.scatter_scales), self._storage.drfs_from_events(settings.ladder()),
                     self._rates)  # fmt: skip

    def _rows(self, recon: Reconstructor, prompts: np.ndarray) -> list[dict[str, Any]]:
        """Counts by dose: prompts as recorded in the field of view, scatter and randoms as estimated, trues the rest."""
        plan, settings = self._plan, self._settings
        totals = np.zeros((len(prompts), 2))
        scatter = recon.corrections.scatter
        for subset in range(plan.preset.subsets):
            for views in recon.groups(subset):
                norm = normalization(plan.layout, self._efficiencies, views)
                for k, rates in enumerate(self._rates):
                    factor = norm * recon.in_bins.live(views, k)
                    totals[k, 0] += (factor * recon.in_bins.randoms(views, k)).sum(dtype=np.float64) * plan.layout.tof_bins
                    if scatter is not None:
                        shape = scatter.at(plan.layout, views, k).sum(axis=2) * factor
                        totals[k, 1] += shape.sum(dtype=np.float64) * rates.counts_per_unit
        rows = []
        for drf, recorded, (randoms, scattered) in zip(settings.ladder(), prompts.tolist(), totals.tolist(), strict=True):
            trues = max(recorded - randoms - scattered, 0.0)
            rows.append({
                "drf": drf, "realization": self._number, "mode": settings.mode, "seed": settings.seed, "prompts": recorded,
                "trues": recorded - round(scattered) - round(randoms), "scatter": round(scattered),
                "randoms": round(randoms), "nec": trues**2 / recorded if recorded else 0.0,
            })  # fmt: skip
        return rows


def read_efficiencies(path: Path, real: np.ndarray) -> np.ndarray:
    """Crystal efficiencies from a NumPy file, relative to the mean of those that work.

    Parameters
    ----------
    path : Path
        .npy, (crystals_per_ring, rings), 0 where a crystal does not count; virtual ones included.
    real : ndarray
        bool, same shape.
    """
    try:
        with path.open("rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise DataError(f"--normalization {path.name}: {error.strerror}; give a .npy file") from None
    except ValueError:
        raise DataError(f"--normalization {path.name}: not a .npy file of numbers; save it with numpy.save") from None
    if values.shape != real.shape or values.dtype.kind not in "fiu":
        raise DataError(
            f"--normalization {path.name}: must hold one number for each of {real.shape} crystals a ring and rings, virtual "
            f"ones counted; it has {values.shape}"
        )
    if not np.isfinite(values).all() or values.min() < 0 or not (values[real] > 0).any():
        raise DataError(f"--normalization {path.name}: efficiencies must be finite, 0 or more, and not all 0")
    values = np.where(real, values, 0).astype(np.float64)
    return (values / values[values > 0].mean()).astype(np.float32)


def _provenance(
    header: Header, plan: Plan, settings: SimulationSettings, options: ReadOptions, made: list[_Made], warnings: list[str]
) -> dict[str, Any]:
    preset, scanner = plan.preset, plan.scanner
    how = {None: "none: all crystals alike", ESTIMATE: "estimated from the delayeds"}
    return {
        "scanner": scanner.name, "scanner_title": scanner.title, "realizations": "rethinned", "full_dose": "recorded",
        "not_modeled": [],
        "layout": describe_layout(plan.layout),
        "reconstruction": {
            **preset.described(),
            "psf_fwhm_mm": list(scanner.given("resolution_fwhm_mm")) if settings.models_psf else None,
            "post_filter_fwhm_mm": preset.filter_mm, "corrections": "estimated",
            "normalization": how.get(options.normalization, "given"),
            "from_events_drf": made[0].from_events,
            "by_realization": [{"scatter_scales": m.scales} for m in made],
        },
        "rates": describe_rates(made[0].rates),
        "sensitivity": "published" if scanner.sensitivity_cps_per_kbq else "predicted",
        "duration_s": header.duration_s, "fov_mm": plan.fov_mm, "mu_source": plan.subject.mu_source,
        "truth_is_noisy": True, "warnings": warnings,
    }  # fmt: skip
