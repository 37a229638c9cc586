"""Acquisition model of a planned subject: what its settings mean in physics."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from data_recipes.isotopes import isotope
from data_recipes.resample import resample
from petsim.acquisition import AcquisitionModel
from petsim.dose_rates import DoseRates, dose_rates
from petsim.emission import emitted
from petsim.filters import gaussian
from petsim.geometry.scanner import Scanner
from petsim.physics.breathing import breathed
from petsim.physics.monte_carlo import acceptance
from petsim.physics.multiple_scatter import add_multiple
from petsim.physics.normalization import counts_per_activity, crystal_efficiencies
from petsim.physics.resolution import add_positron_range
from petsim.physics.scatter import ScatterTable, single_scatter
from petsim.physics.scatter_monte_carlo import monte_carlo_scatter
from petsim.physics.sensitivity import photons_kept, sensitivity
from petsim.physics.singles import Singles, no_singles, subject_singles
from petsim.plan import Plan
from petsim.projectors.choose import projector_class
from petsim.settings import SimulationSettings

SCATTER_DECAYS = 40
"""Decays of the Monte Carlo for `--scatter monte-carlo` by decay of that for singles: scattered coincidences are few."""

LEAST_LIVE = math.exp(-1)
"""Where the rate of a paralyzable block is highest; beyond it, it falls with more activity."""

SAMPLED_VIEWS = 12
"""Views from which the level of counts is estimated beforehand."""


@dataclass(frozen=True)
class Photons:
    """What takes photon by photon or point by point to find, and holds at any dose.

    Parameters
    ----------
    singles : Singles
    scatter : ScatterTable, optional
    """

    singles: Singles
    scatter: ScatterTable | None


def find_photons(plan: Plan, settings: SimulationSettings) -> Photons:
    """Singles and scatter of a planned subject; they do not depend on the settings' doses."""
    singles = _singles(plan, settings)
    return Photons(singles, _scatter(plan, settings, singles))


def build_model(plan: Plan, settings: SimulationSettings, photons: Photons | None = None) -> AcquisitionModel:
    """Acquisition model of a planned subject at the doses of the settings; `--counts` scales the duration.

    Parameters
    ----------
    plan : Plan
    settings : SimulationSettings
    photons : Photons, optional
        Found before; None finds them.
    """
    scanner, subject = plan.scanner, plan.subject
    assert subject.mu_per_cm is not None
    photons = photons or find_photons(plan, settings)
    singles = photons.singles
    isotope_name = subject.injection.isotope

    def blur(image: np.ndarray) -> np.ndarray:
        spacing = plan.simulation_grid.spacing_mm
        sharp = image if subject.is_noisy else add_positron_range(image, spacing, isotope_name)
        return breathed(gaussian(sharp, plan.fwhm_mm, spacing), settings.respiratory_mm, spacing[2])

    model = AcquisitionModel(
        layout=plan.layout,
        grid=plan.simulation_grid,
        center_mm=plan.center_mm,
        activity_bqml=resample(emitted(subject), subject.grid, plan.simulation_grid),
        mu_per_cm=resample(subject.mu_per_cm, subject.grid, plan.simulation_grid),
        blur=blur,
        efficiencies=crystal_efficiencies(scanner, settings.efficiency_spread),
        rates=_rates(plan, settings, singles, 1.0),
        areas=singles.areas,
        scatter=photons.scatter,
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


def duration_scale(model: AcquisitionModel, plan: Plan, settings: SimulationSettings, photons: Photons) -> float:
    """Factor on the duration that `--counts` stands for in a model."""
    return model.rates[0].counts_per_unit / _rates(plan, settings, photons.singles, 1.0)[0].counts_per_unit


def at_doses(
    model: AcquisitionModel, plan: Plan, settings: SimulationSettings, photons: Photons, scale: float
) -> AcquisitionModel:
    """The model of the same subject at the doses of other settings.

    Parameters
    ----------
    model, plan, photons
        Of the subject.
    settings : SimulationSettings
        Equal to those of the model but for the doses.
    scale : float
        Of the model, see `duration_scale`.
    """
    return replace(model, rates=_rates(plan, settings, photons.singles, scale))


def with_sensitivity(scanner: Scanner) -> Scanner:
    """The scanner with its published sensitivity, or else the predicted one."""
    if scanner.sensitivity_cps_per_kbq is not None:
        return scanner
    return replace(scanner, sensitivity_cps_per_kbq=sensitivity(scanner))


def _rates(plan: Plan, settings: SimulationSettings, singles: Singles, scale: float) -> tuple[DoseRates, ...]:
    level = counts_per_activity(with_sensitivity(plan.scanner), settings.efficiency_spread)
    name = plan.subject.injection.isotope
    rates = tuple(dose_rates(singles, d, settings.mode, plan.duration_s, name, level, scale) for d in settings.ladder())
    live = float(rates[0].live.min())
    if live < LEAST_LIVE:
        raise DataError(
            f"{plan.subject.name}: {plan.subject.total_mbq():.0f} MBq in the image leave the detector blocks of "
            f"{plan.scanner.name} live {100 * live:.0f} % of the time, beyond the range of the dead-time model "
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
        plan.scanner, emitted(whole), whole.mu_per_cm, whole.grid, plan.center_mm, plan.fov_mm,
        isotope(whole.injection.isotope).branching, photons_kept(plan.scanner), settings.photons, settings.seed,
        settings.backend,
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
            plan.layout, emitted(whole), whole.mu_per_cm, whole.grid, plan.center_mm, acceptance(plan.scanner),
            SCATTER_DECAYS * settings.photons, settings.seed, settings.backend,
        )  # fmt: skip
    single = single_scatter(
        plan.layout, emitted(whole)[None], whole.mu_per_cm, whole.grid, plan.center_mm, acceptance(plan.scanner)
    )
    return add_multiple(single, singles.multiple_ratio, singles.areas.middles_mm)


def sampled_views(views: int, count: int) -> np.ndarray:
    """`count` of `views` views in golden-ratio steps: a constant step would beat with the period of the block gaps."""
    step = next(s for s in range(round(views * 0.618), 2 * views) if math.gcd(s, views) == 1)
    return np.sort(np.arange(count) * step % views)


def expected_total(model: AcquisitionModel, every: int = 1) -> float:
    """Expected prompts at full dose, from one view in `every`, scaled up."""
    views = sampled_views(model.layout.views, max(1, model.layout.views // every))
    total = sum(float(model.expected(np.array([v])).sum(dtype=np.float64)) for v in views)
    return total * model.layout.views / len(views)
