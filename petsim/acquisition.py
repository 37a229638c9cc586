"""What the scanner would have recorded: expected counts, every factor named and inspectable.

expected = K t n a P(G x): K t turns activity [Bq/mL] x line integral [mm] into counts, n is the normalization of a bin, a
the survival of both photons, P line integrals averaged over rays of the crystal pair, G the resolution. Scatter, randoms
and dead time are not modeled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_recipes.grid import Grid
from petsim.filters import gaussian
from petsim.geometry.sinogram import SinogramLayout
from petsim.physics.attenuation import survival
from petsim.physics.normalization import normalization
from petsim.projectors.contract import SinogramOperator

NOT_MODELED = ("scatter", "randoms", "dead time")


def ray_shifts(rays: int) -> list[float]:
    """Shifts of the rays of a crystal pair as a fraction of the crystal's pitch.

    The shift of a LOR between two crystals of width p is triangular with variance p^2 / 24; equally spaced and equally
    weighted rays are scaled to that variance.
    """
    if rays == 1:
        return [0.0]
    places = np.arange(rays) - (rays - 1) / 2
    return list(places * math.sqrt(1 / 24 / np.mean(places**2)))


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
    fwhm_mm : tuple of float
        Resolution still to be applied, by axis.
    efficiencies : ndarray
        (crystals_per_ring, rings).
    counts_per_unit : float
        K t: counts for a bin with normalization 1 and line integral 1 Bq/mL mm.
    rays : int
        Rays a crystal pair in each direction.
    support_mm : float
        Radius of the cylinder that holds the subject.
    operator : callable
        Makes the projectors: a class with the contract of `petsim.projectors.contract.SinogramOperator`.
    """

    layout: SinogramLayout
    grid: Grid
    center_mm: tuple[float, float, float]
    activity_bqml: np.ndarray
    mu_per_cm: np.ndarray
    fwhm_mm: tuple[float, float, float]
    efficiencies: np.ndarray
    counts_per_unit: float
    rays: int
    support_mm: float
    operator: Callable[..., SinogramOperator]

    def normalization(self, views: np.ndarray) -> np.ndarray:
        """float32 (views, radial, plane)."""
        return normalization(self.layout, self.efficiencies, views)

    @cached_property
    def _rays(self) -> list[tuple[SinogramOperator, SinogramOperator]]:
        """Projectors of activity (TOF) and mu (not) for every ray of a crystal pair."""
        shifts = [(a, b) for a in ray_shifts(self.rays) for b in ray_shifts(self.rays)]
        return [
            (
                self.operator(self.layout, self.grid, self.center_mm, self.support_mm, shift),
                self.operator(self.layout, self.grid, self.center_mm, self.support_mm, shift, tof=False),
            )
            for shift in shifts
        ]

    @cached_property
    def _prepared(self) -> Any:
        """Blurred activity and mu in the order of the kernels, which all rays share."""
        blurred = gaussian(self.activity_bqml, self.fwhm_mm, self.grid.spacing_mm)
        return self._rays[0][0].prepare(np.stack([blurred, self.mu_per_cm]))

    def line_integrals(self, views: np.ndarray) -> np.ndarray:
        """Attenuated line integrals of the blurred activity, float32 (views, radial, tof, plane) in Bq/mL mm."""
        total = np.zeros((len(views), *self.layout.shape[1:]), np.float32)
        for activity, mu in self._rays:
            ray = activity.forward_prepared(self._prepared[0], views)
            ray *= survival(mu.forward_prepared(self._prepared[1], views))
            total += ray
        total /= np.float32(len(self._rays))
        return total

    def expected(self, views: np.ndarray) -> np.ndarray:
        """Expected prompts at full dose, float32 (views, radial, tof, plane)."""
        counts = self.line_integrals(views)
        counts *= (self.normalization(views) * np.float32(self.counts_per_unit))[:, :, None, :]
        return counts
