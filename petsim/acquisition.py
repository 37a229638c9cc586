"""What the scanner would have recorded: expected counts, every factor named and inspectable.

prompts = U n l (a P(G x) + S) + T w e l s s: U turns activity [Bq/mL] x line integral [mm] into counts, n is the
normalization of a bin, l the live fraction of its blocks, a the survival of both photons, P line integrals averaged over
rays of the crystal pair, G the resolution, S scatter in the unit of a line integral; T is the duration, w the coincidence
window, e the efficiencies of the crystal pairs of a bin, s the singles rate of a crystal of efficiency 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numba as nb
import numpy as np

from data_recipes.grid import Grid
from petsim.dose_rates import BinRates, DoseRates
from petsim.geometry.sinogram import SinogramLayout
from petsim.physics.attenuation import survival
from petsim.physics.normalization import normalization
from petsim.physics.resolution import ray_design
from petsim.physics.scatter import ScatterTable
from petsim.physics.singles import DetectorAreas
from petsim.projectors.contract import SinogramOperator

COMPONENTS = ("trues", "scatter", "randoms")


@dataclass(frozen=True)
class AcquisitionModel:
    """Expected counts of a subject on a scanner.

    Parameters
    ----------
    layout : SinogramLayout
    grid : Grid
        Simulation grid.
    center_mm : tuple of float
        The scanner's center in the grid's coordinates.
    activity_bqml, mu_per_cm : ndarray
        On the grid; activity decay-corrected to scan start.
    blur : callable
        Resolution still to be applied to an image on the grid, besides that of the rays.
    efficiencies : ndarray
        (crystals_per_ring, rings).
    rates : tuple of DoseRates
        Count rates by dose, full dose first.
    areas : DetectorAreas
        On which `rates` gives singles and live fractions.
    scatter : ScatterTable, optional
        Scatter of the subject, image 0.
    rays : int
        Rays a crystal pair in each direction.
    support_mm : float
        Radius of the cylinder that holds the subject.
    operator : callable
        Makes the projectors: a class with the contract of `petsim.projectors.contract.SinogramOperator`.
    projected : callable, optional
        Views -> `line_integrals` that were made before, in an array of its own; None makes them.
    """

    layout: SinogramLayout
    grid: Grid
    center_mm: tuple[float, float, float]
    activity_bqml: np.ndarray
    mu_per_cm: np.ndarray
    blur: Callable[[np.ndarray], np.ndarray]
    efficiencies: np.ndarray
    rates: tuple[DoseRates, ...]
    areas: DetectorAreas
    scatter: ScatterTable | None
    rays: int
    support_mm: float
    operator: Callable[..., SinogramOperator]
    projected: Callable[[np.ndarray], np.ndarray] | None = None

    def normalization(self, views: np.ndarray) -> np.ndarray:
        """float32 (views, radial, plane)."""
        return normalization(self.layout, self.efficiencies, views)

    @cached_property
    def _rays(self) -> list[tuple[SinogramOperator, SinogramOperator]]:
        """Projectors of activity (TOF) and mu (not) for every ray of a crystal pair."""
        return [
            (
                self.operator(self.layout, self.grid, self.center_mm, self.support_mm, shift),
                self.operator(self.layout, self.grid, self.center_mm, self.support_mm, shift, tof=False),
            )
            for shift in ray_design(self.rays, self.layout.scanner)
        ]

    @cached_property
    def _prepared(self) -> Any:
        """Blurred activity and mu in the order of the kernels, which all rays share."""
        return self._rays[0][0].prepare(np.stack([self.blur(self.activity_bqml), self.mu_per_cm]))

    def line_integrals(self, views: np.ndarray) -> np.ndarray:
        """Attenuated line integrals of the blurred activity, float32 (views, radial, tof, plane) in Bq/mL mm."""
        if self.projected is not None:
            return self.projected(views)
        total = np.zeros((len(views), *self.layout.shape[1:]), np.float32)
        for activity, mu in self._rays:
            survive = survival(mu.forward_prepared(self._prepared[1], views)) / np.float32(len(self._rays))
            _add_product(activity.forward_prepared(self._prepared[0], views), survive[:, :, 0], total)
        return total

    @cached_property
    def in_bins(self) -> BinRates:
        """Live fractions and randoms in sinogram bins, by dose."""
        return BinRates(self.layout, self.areas, self.rates)

    def factors(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts at full dose for a line integral of 1 Bq/mL mm, and random ones a TOF bin: (views, radial, plane) each."""
        norm = self.normalization(views) * self.in_bins.live(views)
        return norm * np.float32(self.rates[0].counts_per_unit), norm * self.in_bins.randoms(views)

    def components(self, views: np.ndarray) -> dict[str, np.ndarray]:
        """Expected counts at full dose by `COMPONENTS`, float32 (views, radial, tof, plane) each."""
        unit, randoms = self.factors(views)
        trues = self.line_integrals(views)
        scatter = np.zeros_like(trues) if self.scatter is None else self.scatter.at(self.layout, views, 0)
        return {
            "trues": trues * unit[:, :, None],
            "scatter": scatter * unit[:, :, None],
            "randoms": np.broadcast_to(randoms[:, :, None], trues.shape),
        }

    def expected(self, views: np.ndarray) -> np.ndarray:
        """Expected prompts at full dose, float32 (views, radial, tof, plane)."""
        return self.expected_and_totals(views)[0]

    def expected_and_totals(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected prompts at full dose, and the sums of each of `COMPONENTS` in every view, float64 (views, 3)."""
        unit, randoms = self.factors(views)
        counts = self.line_integrals(views)
        scatter = counts[:, :, :0] if self.scatter is None else self.scatter.at(self.layout, views, 0)
        totals = np.zeros((len(views), len(COMPONENTS)))
        _compose(counts, scatter, unit, randoms, totals)
        return counts, totals

    def kept(self, views: np.ndarray, component: str, dose: int) -> np.ndarray:
        """Expected counts of a component at a dose over those at full dose, float32 (views, radial, plane)."""
        ratio = self.in_bins.live(views, dose) / self.in_bins.live(views)
        if component == "randoms":
            full = self.in_bins.randoms(views)
            return ratio * np.divide(self.in_bins.randoms(views, dose), full, out=np.zeros_like(full), where=full > 0)
        return ratio * np.float32(self.rates[dose].counts_per_unit / self.rates[0].counts_per_unit)


@nb.njit(cache=True, nogil=True, parallel=True)
def _add_product(values, factors, total):
    """total += values factors, which all TOF bins share."""
    radials = values.shape[1]
    for line in nb.prange(values.shape[0] * radials):
        v, r = line // radials, line % radials
        for t in range(values.shape[2]):
            for p in range(values.shape[3]):
                total[v, r, t, p] += values[v, r, t, p] * factors[v, r, p]


@nb.njit(cache=True, nogil=True, parallel=True)
def _compose(counts, scatter, unit, randoms, totals):
    """counts <- (counts + scatter) unit + randoms; sums of the three terms by view."""
    for v in nb.prange(counts.shape[0]):
        for r in range(counts.shape[1]):
            for t in range(counts.shape[2]):
                row, u, flat = counts[v, r, t], unit[v, r], randoms[v, r]
                trues, scattered, random = 0.0, 0.0, 0.0
                for p in range(row.size):
                    row[p] *= u[p]
                    trues += row[p]
                if scatter.shape[2] > 0:
                    more = scatter[v, r, t]
                    for p in range(row.size):
                        s = more[p] * u[p]
                        scattered += s
                        row[p] += s
                for p in range(row.size):
                    random += flat[p]
                    row[p] += flat[p]
                totals[v, 0] += trues
                totals[v, 1] += scattered
                totals[v, 2] += random
