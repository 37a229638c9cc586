"""Corrections as a scanner finds them: from the noisy data and the mu-map of its own dose and realization."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from data_recipes.resample import resample
from petsim.acquisition import AcquisitionModel
from petsim.dose import DoseLadder
from petsim.dose_rates import DoseRates
from petsim.filters import gaussian
from petsim.physics.mismatch import MuMismatch, apply_mismatch, draw_mismatch
from petsim.physics.monte_carlo import acceptance
from petsim.physics.normalization import drifted, normalization
from petsim.physics.randoms import DelayedWindow
from petsim.physics.scatter import POINT_MM, ScatterTable, single_scatter
from petsim.physics.scatter_tails import TailSums
from petsim.plan import Plan
from petsim.reconstruct import Corrections, Reconstructor, Surroundings
from petsim.settings import SimulationSettings

SCATTER_FWHM_MM = 12.0
"""Resolution of the image whose scatter is simulated, in mm of additional blur."""

WITHOUT_SCATTER = 0.3
"""Part of the subsets that the first iteration goes through without scatter."""

FIRST_POINT_MM = 48.0
"""Spacing of scatter points where the first iteration simulates scatter for itself."""

RELAXATION = 0.7
"""Share of the second simulation in the scatter that is used. Scatter S = K T is simulated from an image of what is left
of N = T + S: the first simulation K N is too strong by K S, the second, K (N - K N), too weak by K^2 S, and the shares
1 - w and w leave an error of no first order for w = 1 / (1 + K). K is 0.2 (ends of a patient) to 0.9 (a large abdomen)."""

TAIL_SURVIVAL = 0.99
"""LORs of which more than this survives pass beside the body."""

TAIL_MARGIN_MM = 15.0
"""So far from the body, so that no unscattered counts are blurred into the tails."""

DEFAULT_SCALE = 1.25
"""Scale on single scatter that is expected without counts in tails: about a fifth of the scatter of a body is multiple
(Monte Carlo of generated patients)."""

TAIL_GROUPS = 4
"""Every so many-th group of views takes part in fitting tails."""

Data = Callable[[np.ndarray], Iterable[np.ndarray]]
"""Views -> stacks (n, views, radial, tof, plane) of counts that together make up all images."""


def oracle(plan: Plan, model: AcquisitionModel, images: int) -> Corrections:
    """The true corrections, for `images` images: all doses, and full dose once more for expected counts."""
    subject = plan.subject
    assert subject.mu_per_cm is not None
    return Corrections(
        mu_per_cm=resample(subject.mu_per_cm, subject.grid, plan.grid),
        efficiencies=model.efficiencies,
        rates=_by_image(model.rates, images),
        areas=model.areas,
        scatter=model.scatter,
        shares_scatter=True,
    )


def _by_image(rates: tuple[DoseRates, ...], images: int) -> tuple[DoseRates, ...]:
    return (rates + rates[:1])[:images]


@dataclass(frozen=True)
class Estimator:
    """Finds the corrections of a subject's realizations.

    Parameters
    ----------
    plan : Plan
    settings : SimulationSettings
    model : AcquisitionModel
        Only for what a scanner knows of itself: layout, durations, live fractions; and for the delayeds it would record.
    mismatch : MuMismatch
        Of the mu-map in use.
    """

    plan: Plan
    settings: SimulationSettings
    model: AcquisitionModel
    mismatch: MuMismatch

    @classmethod
    def of(cls, plan: Plan, settings: SimulationSettings, model: AcquisitionModel) -> "Estimator":
        """Estimator with the mismatch that the settings draw for the subject."""
        truncation = None if settings.truncation_mm is None else settings.truncation_mm / 2
        return cls(plan, settings, model, draw_mismatch(settings.seed, plan.subject.name, settings.mu_shift, truncation))

    def start(self, true: Corrections) -> Corrections:
        """Mu-map and normalization in use, which all realizations share; randoms still true, no scatter."""
        return replace(
            true,
            mu_per_cm=apply_mismatch(true.mu_per_cm, self.plan.grid, self.mismatch, self.plan.center_mm),
            efficiencies=drifted(self.plan.scanner, self.model.efficiencies, self.settings.drift, self.settings.seed),
            scatter=None,
            shares_scatter=False,
        )

    def seen(self, around: Surroundings) -> Surroundings:
        """Surroundings with the mu-map in use."""
        mu = apply_mismatch(around.mu_per_cm, around.grid, self.mismatch, self.plan.center_mm)
        return replace(around, mu_per_cm=mu)

    def randoms(self, window: DelayedWindow, ladder: DoseLadder, images: int) -> tuple[DoseRates, ...]:
        """Rates by image with singles from the delayeds of a realization (expected ones for an image beyond the doses)."""
        rates = self.model.rates
        estimated = estimate_randoms(window, rates, ladder)
        if images > len(rates):
            estimated += estimate_randoms(window, rates[:1], None)
        return estimated


def estimate_randoms(
    window: DelayedWindow, rates: tuple[DoseRates, ...], ladder: DoseLadder | None
) -> tuple[DoseRates, ...]:
    """Rates whose singles come from delayeds.

    Parameters
    ----------
    window : DelayedWindow
    rates : tuple of DoseRates
        True ones, by dose.
    ladder : DoseLadder, optional
        Draws the delayeds; None takes the expected ones.

    Returns
    -------
    tuple of DoseRates
        With the estimated singles; the live fraction is known from the blocks' own counters.
    """
    if ladder is None:
        recorded = [window.expected(r.singles_cps, r.extra_cps2, r.live, r.seconds) for r in rates]
    else:
        recorded = list(drawn_delayeds(window, rates, ladder))
    singles = [window.singles(counts, r.seconds) / r.live for counts, r in zip(recorded, rates, strict=True)]
    return tuple(replace(r, singles_cps=s, extra_cps2=0.0) for r, s in zip(rates, singles, strict=True))


def drawn_delayeds(window: DelayedWindow, rates: tuple[DoseRates, ...], ladder: DoseLadder) -> np.ndarray:
    """Delayeds of a realization, uint16 (dose, *the areas of `DelayedWindow.expected`), nested as far as they fall."""
    expected = [window.expected(r.singles_cps, r.extra_cps2, r.live, r.seconds) for r in rates]
    apart = replace(ladder, stream="delayeds")
    full = apart.draw(expected[0])
    shares = np.divide(expected, expected[0], out=np.zeros((len(rates), *full.shape)), where=expected[0] > 0)
    nested = np.minimum.accumulate(np.minimum(shares, 1.0), axis=0)
    return apart.thin_by_bin(full.reshape(1, 1, -1), nested.reshape(len(rates), 1, -1)).reshape(-1, *full.shape)


def first_iteration(start: Reconstructor, data: Data, step: Callable[[], None]) -> tuple[Reconstructor, np.ndarray]:
    """Images after one iteration in which scatter is found, and the reconstructor with that scatter.

    The iteration begins without scatter, simulates that of its images, goes on with it, and simulates once more at its
    end; see `RELAXATION`.
    """
    subsets = start.plan.preset.subsets
    alone = max(1, round(WITHOUT_SCATTER * subsets))
    images = start.run(start.em_back(data), range(alone), step)
    first = refreshed(start, images, data, FIRST_POINT_MM)
    images = first.run(first.em_back(data), range(alone, subsets), step, images, made=alone)
    second = refreshed(first, images, data)
    assert first.corrections.scatter is not None and second.corrections.scatter is not None
    table = first.corrections.scatter.mixed(second.corrections.scatter, RELAXATION)
    return second.believing(replace(second.corrections, scatter=table)), images


def refreshed(reconstructor: Reconstructor, raw: np.ndarray, data: Data, point_mm: float = POINT_MM) -> Reconstructor:
    """The reconstructor with the single scatter of its images `raw`, smoothed and scaled to tails beside the body."""
    plan, corrections = reconstructor.plan, reconstructor.corrections
    sharp = np.stack([image / np.float32(r.counts_per_unit) for image, r in zip(raw, corrections.rates, strict=True)])
    around, mu, grid = corrections.surroundings, corrections.mu_per_cm, plan.grid
    if around is not None:
        sharp, mu, grid = around.holding(sharp), around.mu_per_cm, around.grid
    width = (SCATTER_FWHM_MM, SCATTER_FWHM_MM, SCATTER_FWHM_MM)
    table = single_scatter(
        plan.layout,
        np.stack([gaussian(image, width, grid.spacing_mm) for image in sharp]),
        mu,
        grid,
        plan.center_mm,
        acceptance(plan.scanner),
        point_mm=point_mm,
    )
    scales = tuple(fit_tails(reconstructor, table, data))
    table = table.with_factor(np.array([s["scale"] for s in scales]))
    return reconstructor.believing(replace(corrections, scatter=table, scatter_scales=scales))


def fit_tails(reconstructor: Reconstructor, table: ScatterTable, data: Data) -> list[dict[str, Any]]:
    """Scale of the estimated scatter by image, from the counts in LORs beside the body.

    What is expected before counts are looked at is `DEFAULT_SCALE` = m. An image that was reconstructed without scatter
    stands for all net counts N, so that the scatter simulated from it, the share q of N, is too strong: the one of
    unscattered counts N - S alone is S = m q (N - S), that is m / (1 + m q) times what was simulated.

    Returns
    -------
    list of dict
        As `petsim.physics.scatter_tails.TailSums.scale` gives it.
    """
    corrections, layout = reconstructor.corrections, reconstructor.plan.layout
    # One bin more, since a bin sees half a bin beyond its own edges; planes are half a ring apart, or a whole one.
    around, along = (math.ceil(TAIL_MARGIN_MM / mm) + 1 for mm in (layout.radial_pitch_mm, layout.ring_pitch_mm / 2))
    size = (1, 2 * around + 1, 2 * along + 1)
    tails = [TailSums() for _ in corrections.rates]
    totals = np.zeros((len(tails), 2))
    groups = [g for subset in range(reconstructor.plan.preset.subsets) for g in reconstructor.groups(subset)]
    for views in groups[::TAIL_GROUPS]:
        beside = ndimage.minimum_filter(reconstructor.survival(views), size) > TAIL_SURVIVAL
        norm = normalization(layout, corrections.efficiencies, views)
        first = 0
        for stack in data(views):
            for k, counts in enumerate(stack, first):
                factor = norm * reconstructor.in_bins.live(views, k)
                randoms = factor * reconstructor.in_bins.randoms(views, k) * np.float32(layout.tof_bins)
                scatter = table.at(layout, views, k).sum(axis=2) * factor
                scatter *= np.float32(corrections.rates[k].counts_per_unit)
                summed = counts.sum(axis=2, dtype=np.float32)
                tails[k].add(summed, randoms, scatter, beside)
                totals[k] += scatter.sum(dtype=np.float64), (summed - randoms).sum(dtype=np.float64)
            first += len(stack)
    shares = totals[:, 0] / np.maximum(totals[:, 1], 1.0) if corrections.scatter is None else np.zeros(len(tails))
    return [t.scale(default=DEFAULT_SCALE / (1 + DEFAULT_SCALE * q)) for t, q in zip(tails, shares.tolist(), strict=True)]


def differences(used: Corrections, true: Corrections) -> dict[str, Any]:
    """How far the corrections in use are from the true ones, JSON types.

    Returns
    -------
    dict
        mu_per_cm: rms difference over the body; normalization: rms relative difference of crystal efficiencies;
        singles: rms relative difference by image.
    """
    body, real = true.mu_per_cm > 0, true.efficiencies > 0

    def rms(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean(values.astype(np.float64) ** 2))) if values.size else 0.0

    singles = [
        rms((u.singles_cps - t.singles_cps) / t.singles_cps.mean()) if t.singles_cps.any() else 0.0
        for u, t in zip(used.rates, true.rates, strict=True)
    ]
    return {
        "mu_per_cm": rms((used.mu_per_cm - true.mu_per_cm)[body]),
        "normalization": rms((used.efficiencies / np.where(real, true.efficiencies, 1) - 1)[real]),
        "singles": singles,
    }
