"""Covariance of noise in regions of any shape, and the power spectrum that it stands for.

A spectrum taken of a box leaks power from low to high frequencies and holds few of an organ's voxels. The mean product of
voxels some lag apart, over all pairs that lie in a region, is free of both, and sums over many regions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft

_DIRECTIONS = 16
_FLAT = 2 / 3
"""Part of the reach within which lags count in full."""


@dataclass(frozen=True)
class FrequencyBins:
    """Where a spectrum is evaluated: rings in the transaxial frequency plane times axial frequencies.

    Parameters
    ----------
    transaxial_per_mm, axial_per_mm : ndarray
        float64 (rings,) and (axial,): evenly from 0 up to the Nyquist frequency, in cycles/mm.
    """

    transaxial_per_mm: np.ndarray
    axial_per_mm: np.ndarray

    @classmethod
    def up_to(cls, spacing_mm: Sequence[float], reach_mm: Sequence[float]) -> "FrequencyBins":
        """Bins for voxels of `spacing_mm` whose covariance is known up to lags of `reach_mm`, both (x, y, z)."""
        transaxial, axial = 1 / (2 * min(reach_mm[:2])), 1 / (2 * reach_mm[2])
        rings = int(1e-9 + 0.5 / max(spacing_mm[:2]) / transaxial) + 1
        layers = int(1e-9 + 0.5 / spacing_mm[2] / axial) + 1
        return cls(transaxial * np.arange(rings), axial * np.arange(layers))

    @property
    def areas_per_mm2(self) -> np.ndarray:
        """float64 (rings,): area of the frequency plane that each ring takes."""
        step = self.transaxial_per_mm[1]
        outer, inner = self.transaxial_per_mm + step / 2, np.maximum(self.transaxial_per_mm - step / 2, 0)
        return math.pi * (outer**2 - inner**2)

    @property
    def lengths_per_mm(self) -> np.ndarray:
        """float64 (axial,): length of the frequency axis that each bin takes, negative frequencies included."""
        step = self.axial_per_mm[1]
        return np.where(self.axial_per_mm > 0, 2 * step, step)

    @property
    def cells_per_mm3(self) -> np.ndarray:
        """float64 (rings, axial): volume of frequency space of each bin."""
        return self.areas_per_mm2[:, None] * self.lengths_per_mm


def lag_products(values: np.ndarray, reach: Sequence[int]) -> np.ndarray:
    """Sums of products of voxels at all lags up to `reach`, averaged over the signs of the lags.

    Of a mask these are the numbers of pairs; of noise that is zero outside the mask, divided by those, its covariance.

    Parameters
    ----------
    values : ndarray
        (x, y, z).
    reach : sequence of int
        Longest lag by axis, in voxels; shorter than the array.

    Returns
    -------
    ndarray
        float64 (reach + 1 by axis).
    """
    shape = [fft.next_fast_len(n + r, real=True) for n, r in zip(values.shape, reach, strict=True)]
    spectrum = fft.rfftn(values.astype(np.float64), shape)
    sums = np.asarray(fft.irfftn(np.abs(np.asarray(spectrum)) ** 2, shape))
    for axis, r in enumerate(reach):
        lags = np.arange(r + 1)
        sums = (sums.take(lags, axis) + sums.take(-lags, axis)) / 2
    return sums


def spectrum_of(covariance: np.ndarray, spacing_mm: Sequence[float], bins: FrequencyBins) -> np.ndarray:
    """Noise power spectrum: the Fourier transform of the covariance, averaged over directions in the transaxial plane.

    The outer third of the lags is tapered; noise whose correlation ends before that has its spectrum without broadening.

    Parameters
    ----------
    covariance : ndarray
        (..., x, y, z): at lags from 0, averaged over signs.
    spacing_mm : sequence of float
        Voxel edges.
    bins : FrequencyBins

    Returns
    -------
    ndarray
        float64 (..., rings, axial): squared unit of the image times mm^3.

    References
    ----------
    Siewerdsen et al. 2002, doi 10.1118/1.1513158.
    """
    x, y, z = (np.arange(n) for n in covariance.shape[-3:])
    far_x, far_y, far_z = np.ix_(*((lags / lags[-1]) ** 2 for lags in (x, y, z)))
    distance = np.sqrt(far_x + far_y + far_z)
    taper = np.cos(np.clip((distance - _FLAT) / (1 - _FLAT), 0, 1) * math.pi / 2) ** 2
    # A lag other than 0 stands for both of its signs.
    signs = [np.where(lags > 0, 2.0, 1.0) for lags in (x, y, z)]
    angles = (np.arange(_DIRECTIONS) + 0.5) * (math.pi / 2 / _DIRECTIONS)
    waves = 2 * math.pi * bins.transaxial_per_mm[:, None, None]
    along_x = np.cos(waves * np.cos(angles)[:, None] * (x * spacing_mm[0])) * signs[0]
    along_y = np.cos(waves * np.sin(angles)[:, None] * (y * spacing_mm[1])) * signs[1]
    across = np.einsum("rax,ray->rxy", along_x, along_y) / _DIRECTIONS
    along_z = np.cos(2 * math.pi * bins.axial_per_mm[:, None] * (z * spacing_mm[2])) * signs[2]
    layers = (covariance * taper) @ along_z.T
    return np.einsum("rxy,...xyf->...rf", across, layers, optimize=True) * math.prod(spacing_mm)
