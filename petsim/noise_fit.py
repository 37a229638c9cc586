"""Count level and filter with which simulated noise becomes real noise: a fit of noise power spectra."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_recipes.errors import DataError
from petsim.difference_noise import DifferenceNoise
from petsim.effective_dose import DRAWS
from petsim.noise_covariance import FrequencyBins, spectrum_of
from petsim.noise_regions import CUBE_MM

PARAMETERS: tuple[str, ...] = ("count_factor", "fwhm2_transaxial_mm2", "fwhm2_axial_mm2")

FALLOFF_MM2 = math.pi**2 / (2 * math.log(2))
"""A Gaussian filter of full width at half maximum F multiplies power at frequency f by exp(-this F^2 f^2)."""

_LEAST_POWER = 0.03
"""Bins with less than this part of the greatest power are left out: interpolation, storage and errors of the covariance."""

_LEAST_BINS = 6
_LEAST_ML = 30.0


@dataclass(frozen=True)
class Noise:
    """Sums over subjects that a bootstrap draws from, relative to the local mean activity.

    Parameters
    ----------
    regions : tuple of str
    pairs, products : ndarray
        float64 (unit, region, lag x, y, z), as in `DifferenceNoise`: a unit is one of the groups of cubes of a subject.
    logs : ndarray
        float64 (unit, region), as there.
    subject : ndarray
        int (unit,).
    volume_mm3 : ndarray
        float64 (region,).
    spacing_mm : tuple of float
    """

    regions: tuple[str, ...]
    pairs: np.ndarray
    products: np.ndarray
    logs: np.ndarray
    subject: np.ndarray
    volume_mm3: np.ndarray
    spacing_mm: tuple[float, float, float]

    def spectra(self, bins: FrequencyBins, times: np.ndarray | None = None) -> np.ndarray:
        """Noise power spectra of the full dose, float64 (region, rings, axial), in mm^3; `times` each unit was drawn."""
        weights = np.ones(len(self.subject)) if times is None else times
        products, pairs = (np.tensordot(weights, sums, 1) for sums in (self.products, self.pairs))
        shape = spectrum_of(products / np.maximum(pairs, 1), self.spacing_mm, bins)
        return shape * self._variance(weights)[:, None, None]

    @property
    def variance(self) -> np.ndarray:
        """float64 (region,): squared coefficient of variation of the full dose, geometric mean over the region."""
        return self._variance(np.ones(len(self.subject)))

    def _variance(self, weights: np.ndarray) -> np.ndarray:
        return np.exp((weights @ self.logs) / np.maximum(weights @ self.pairs[..., 0, 0, 0], 1))

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """How often each unit comes in a draw of subjects, where there are several, and of the groups within them."""
        names = np.unique(self.subject)
        times = np.zeros(len(self.subject))
        for name in rng.choice(names, names.size):
            units = np.flatnonzero(self.subject == name)
            np.add.at(times, rng.choice(units, units.size), 1.0)
        return times


@dataclass(frozen=True)
class Fit:
    """Real power = simulated power x exp(-FALLOFF_MM2 (transaxial f_t^2 + axial f_z^2)) / counts.

    Parameters
    ----------
    values : ndarray
        float64 (3,), by `PARAMETERS`: counts of the real data over those of the simulation; squared FWHM in mm^2 of the
        filter that the simulation lacks, transaxially and axially, negative where it has too much.
    covariance : ndarray
        float64 (3, 3) of (-log counts, ...), from the Jacobian.
    """

    values: np.ndarray
    covariance: np.ndarray

    @property
    def correlation(self) -> np.ndarray:
        """float64 (3, 3)."""
        sd = np.sqrt(np.diag(self.covariance))
        # More counts are less noise: the first parameter is minus the logarithm.
        signs = np.outer([-1, 1, 1], [-1, 1, 1])
        return signs * self.covariance / np.outer(sd, sd)

    def matched(self, simulated: np.ndarray, bins: FrequencyBins) -> np.ndarray:
        """Simulated spectra (..., rings, axial) with the fitted counts and filter."""
        counts, transaxial, axial = self.values
        falloff = transaxial * bins.transaxial_per_mm[:, None] ** 2 + axial * bins.axial_per_mm**2
        return simulated * np.exp(-FALLOFF_MM2 * falloff) / counts


def pool(subjects: Sequence[DifferenceNoise], spacing_mm: tuple[float, float, float]) -> Noise:
    """Noise of the full dose of all subjects.

    Parameters
    ----------
    subjects : sequence of DifferenceNoise
        With the same way of making regions.
    spacing_mm : tuple of float
        Voxel edges of all.
    """
    regions = tuple(dict.fromkeys(name for s in subjects for name in s.regions))
    shape = subjects[0].pairs.shape
    pairs, products = (np.zeros((len(subjects), shape[0], len(regions), *shape[2:])) for _ in range(2))
    logs, volume = np.zeros(pairs.shape[:3]), np.zeros(len(regions))
    for n, s in enumerate(subjects):
        for k, name in enumerate(s.regions):
            r = regions.index(name)
            pairs[n, :, r], products[n, :, r], logs[n, :, r] = s.pairs[:, k], s.products[:, k], s.logs[:, k]
            volume[r] += s.pairs[:, k, 0, 0, 0].sum() * math.prod(spacing_mm)
    unit = np.repeat(np.arange(len(subjects)), shape[0])
    pairs, products, logs = (a.reshape(-1, *a.shape[2:]) for a in (pairs, products, logs))
    return Noise(regions, pairs, products, logs, unit, volume, spacing_mm)


def only(noise: Noise, regions: Sequence[str]) -> Noise:
    """The same of some regions."""
    k = [noise.regions.index(name) for name in regions]
    pairs, products, logs = (sums[:, k] for sums in (noise.pairs, noise.products, noise.logs))
    return Noise(tuple(regions), pairs, products, logs, noise.subject, noise.volume_mm3[k], noise.spacing_mm)


def common_regions(real: Noise, simulated: Noise) -> tuple[str, ...]:
    """Regions of at least 30 mL in both.

    Raises
    ------
    DataError
        There are none.
    """
    large = [
        {name for name, volume in zip(n.regions, n.volume_mm3, strict=True) if volume >= 1000 * _LEAST_ML}
        for n in (real, simulated)
    ]
    both = tuple(name for name in real.regions if name in large[0] & large[1])
    if not both:
        raise DataError("real and simulated bodies share no region of 30 mL; simulate bodies of about the same size")
    return both


@dataclass(frozen=True)
class Match:
    """Real and simulated noise of the same regions, and the fit between them.

    Parameters
    ----------
    real, simulated : Noise
    bins : FrequencyBins
    real_spectra, simulated_spectra : ndarray
        float64 (region, rings, axial), mm^3, relative to squared mean activity.
    shares : ndarray
        float64 (region,): weights of regions in the sums that are fitted, in which the simulated variance is 1.
    used : ndarray
        bool (rings, axial): bins of the fit.
    fit : Fit
    draws : ndarray
        float64 (draw, 3): the fit's values in a bootstrap over subjects and parts of the body.
    """

    real: Noise
    simulated: Noise
    bins: FrequencyBins
    real_spectra: np.ndarray
    simulated_spectra: np.ndarray
    shares: np.ndarray
    used: np.ndarray
    fit: Fit
    draws: np.ndarray

    @property
    def correlation_of_draws(self) -> np.ndarray:
        """float64 (3, 3): of the bootstrap; NaN where nothing varies, as between a folder and itself."""
        deviations = self.draws - self.draws.mean(axis=0)
        covariance = deviations.T @ deviations / len(deviations)
        sd = np.sqrt(np.diag(covariance))
        return np.divide(covariance, np.outer(sd, sd), out=np.full((3, 3), np.nan), where=np.outer(sd, sd) > 1e-12)


def match(real: Noise, simulated: Noise, seed: int) -> Match:
    """Fit the simulation's count level and filter to real noise.

    Parameters
    ----------
    real, simulated : Noise
    seed : int
        Of the bootstrap.

    Raises
    ------
    DataError
        No common region, or too few frequencies at which both have noise.
    """
    regions = common_regions(real, simulated)
    real, simulated = only(real, regions), only(simulated, regions)
    spacing = np.maximum(real.spacing_mm, simulated.spacing_mm)
    reach = [(np.array(n.pairs.shape[-3:]) - 1) * n.spacing_mm for n in (real, simulated)]
    bins = FrequencyBins.up_to(spacing.tolist(), np.minimum(*reach).tolist())
    real_spectra, simulated_spectra = (n.spectra(bins) for n in (real, simulated))
    # Weights of regions are the same on both sides, so that the sums obey the model as each region does.
    volume = 1 / (1 / real.volume_mm3 + 1 / simulated.volume_mm3)
    shares = volume / volume.sum() / simulated.variance
    sums = [np.tensordot(shares, s, 1) for s in (real_spectra, simulated_spectra)]
    frequency = np.hypot(bins.transaxial_per_mm[:, None], bins.axial_per_mm)
    used = (frequency >= 1 / CUBE_MM) & np.logical_and(*(s > _LEAST_POWER * s.max() for s in sums))
    if np.count_nonzero(used) < _LEAST_BINS:
        raise DataError("real and simulated noise share too few spatial frequencies to be matched; simulate with a filter "
                        "and voxels closer to the real ones")  # fmt: skip
    weights = used * bins.cells_per_mm3 * volume.sum()
    fit = _fit(sums[0], sums[1], weights, bins)
    rng = np.random.default_rng(seed)
    paired = _same_bodies(real, simulated)
    draws = []
    for _ in range(DRAWS):
        times = real.draw(rng)
        drawn = real.spectra(bins, times), simulated.spectra(bins, times if paired else simulated.draw(rng))
        a, b = (np.tensordot(shares, s, 1) for s in drawn)
        draws.append(_fit(a, b, weights, bins).values)
    return Match(real, simulated, bins, real_spectra, simulated_spectra, shares, used, fit, np.array(draws))


def _same_bodies(real: Noise, simulated: Noise) -> bool:
    """Subject by subject the same parts of the body: a bootstrap then draws the same ones on both sides."""
    if real.pairs.shape != simulated.pairs.shape:
        return False
    voxels, others = (n.pairs[:, :, 0, 0, 0].sum(axis=1) for n in (real, simulated))
    return bool(np.allclose(voxels, others, rtol=0.05))


def _fit(real: np.ndarray, simulated: np.ndarray, weights: np.ndarray, bins: FrequencyBins) -> Fit:
    """Weighted least squares of the logarithm of the ratio, in which all parameters are linear.

    The relative variance of power in a bin is one over the number of cells of frequency space, 1 / volume, that it holds.
    """
    ratio = np.full(real.shape, np.nan)
    np.divide(real, simulated, out=ratio, where=(real > 0) & (simulated > 0))
    good = (weights > 0) & (ratio > 0)
    transaxial, axial = (
        np.broadcast_to(f, real.shape)[good] for f in (bins.transaxial_per_mm[:, None] ** 2, bins.axial_per_mm**2)
    )
    design = np.stack([np.ones_like(axial), -FALLOFF_MM2 * transaxial, -FALLOFF_MM2 * axial], axis=1)
    weighted = design * weights[good][:, None]
    covariance = np.linalg.pinv(design.T @ weighted)
    level, *squares = covariance @ (weighted.T @ np.log(ratio[good]))
    return Fit(np.array([math.exp(-level), *squares]), covariance)
