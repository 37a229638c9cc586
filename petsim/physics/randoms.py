"""Random coincidences: expected ones, and the estimate from a delayed window.

Two crystals with singles rates s_i and s_j have random coincidences at the rate 2 tau s_i s_j, where 2 tau is the full
width of the coincidence window (NEMA NU 2-2018; Brasse et al. 2005, J Nucl Med 46:859). Their time differences are uniform
over the window, so that every TOF bin holds its share of it.
"""

from dataclasses import dataclass

import numpy as np

from petsim.geometry.sinogram import SinogramLayout
from petsim.physics.singles import DetectorAreas

FAN_ITERATIONS = 40
"""Of `DelayedWindow.singles`; rates then change by less than 1e-6."""

Ends = tuple[np.ndarray, np.ndarray]
"""A detector map at both ends of LORs, float32 (merged crystals, planes) each, of `DetectorAreas.at_ends`."""


def end_product(layout: SinogramLayout, ends: Ends, views: np.ndarray) -> np.ndarray:
    """Product of a detector map at both ends of LORs, float32 (views, radial, plane); the mean over mashed views."""
    out = np.zeros((len(views), layout.radials, layout.planes), np.float32)
    for k, view in enumerate(views):
        for first, second in zip(*layout.crystal_pairs(int(view)), strict=True):
            out[k] += ends[0][first] * ends[1][second]
    return out / np.float32(layout.mash)


def tof_share(layout: SinogramLayout) -> float:
    """Part of the coincidence window that one TOF bin covers; 1 without TOF."""
    if not layout.is_tof:
        return 1.0
    scanner = layout.scanner
    return layout.merge_tof * scanner.given("tof_bin_ps") / (1000 * scanner.given("coincidence_window_ns"))


@dataclass(frozen=True)
class DelayedWindow:
    """Delayed coincidences between areas of detectors.

    Parameters
    ----------
    areas : DetectorAreas
    transaxial_pairs : ndarray
        float64 (across, across): accepted pairs of real crystals of a ring, one in the first area and one in the second.
    axial_pairs : ndarray
        float64 (along, along): accepted pairs of real rings.
    window_s : float
        Full width of the coincidence window.
    """

    areas: DetectorAreas
    transaxial_pairs: np.ndarray
    axial_pairs: np.ndarray
    window_s: float

    @classmethod
    def of(cls, layout: SinogramLayout) -> "DelayedWindow":
        """Window with the acceptance of a sinogram layout."""
        scanner = layout.scanner
        areas = DetectorAreas.of(scanner)
        around, axial = areas.of_crystals()
        is_real = scanner.transaxial_is_real()
        # Real crystals of every merged one, by area.
        held = np.zeros((layout.crystals, areas.across))
        np.add.at(held, (np.arange(scanner.crystals_per_ring) // layout.merge_transaxial, around), is_real.astype(float))
        ordered = np.zeros((areas.across, areas.across))
        for view in range(layout.views):
            first, second = layout.crystal_pairs(view)
            ordered += held[first.reshape(-1)].T @ held[second.reshape(-1)]
        rings = np.flatnonzero(scanner.ring_is_real())
        axial = axial[rings]
        near = np.abs(rings[:, None] - rings[None, :]) <= scanner.max_ring_difference
        along = np.zeros((areas.along, areas.along))
        first, second = np.nonzero(near)
        np.add.at(along, (axial[first], axial[second]), 1.0)
        return cls(areas, ordered + ordered.T, along, 1e-9 * scanner.given("coincidence_window_ns"))

    def expected(self, rate_cps: np.ndarray, extra_cps2: float, live: np.ndarray, seconds: float) -> np.ndarray:
        """Expected delayeds between areas.

        Parameters
        ----------
        rate_cps : ndarray
            (across, along): singles a crystal, dead time not counted.
        extra_cps2 : float
            Added to the products of rates.
        live : ndarray
            (across, along): live fraction.
        seconds : float

        Returns
        -------
        ndarray
            float32 (across, along, across, along); each pair of areas once, where the first area around the ring comes
            before the second.
        """
        once = np.triu(self.transaxial_pairs)
        products = rate_cps[:, :, None, None] * rate_cps[None, None] + extra_cps2
        products *= live[:, :, None, None] * live[None, None]
        products *= once[:, None, :, None] * self.axial_pairs[None, :, None, :]
        return (products * (self.window_s * seconds)).astype(np.float32)

    def singles(self, delayeds: np.ndarray, seconds: float) -> np.ndarray:
        """Singles rates from delayeds, the maximum likelihood estimate.

        Solves D_a = w t s_a sum_b N_ab s_b for the fan sums D_a, where N_ab are the accepted pairs of crystals. Fans sum
        over all opposite detectors, which takes most of the noise of the delayeds away (Casey and Hoffman 1986, J Comput
        Assist Tomogr 10:845).

        Parameters
        ----------
        delayeds : ndarray
            Counts, as `expected` returns them.
        seconds : float

        Returns
        -------
        ndarray
            float64 (across, along), cps a crystal of efficiency 1; the product of two is the estimated rate product.
        """
        counts = delayeds.astype(np.float64)
        fans = counts.sum(axis=(2, 3)) + counts.sum(axis=(0, 1))
        partners = self.transaxial_pairs.sum(axis=1)[:, None] * self.axial_pairs.sum(axis=1)[None, :]
        total = fans.sum() / max(partners.sum() * self.window_s * seconds, 1e-300)
        rate = np.full(fans.shape, np.sqrt(total))
        for _ in range(FAN_ITERATIONS):
            around = self.transaxial_pairs @ rate @ self.axial_pairs.T * (self.window_s * seconds)
            wanted = np.divide(fans, around, out=np.zeros_like(rate), where=around > 0)
            rate = np.sqrt(rate * wanted)
        return rate
