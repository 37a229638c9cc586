"""How noise and residuals are correlated in space."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_recipes.errors import DataError


@dataclass(frozen=True)
class NoisePowerSpectrum:
    """Radial bins of an in-plane spectrum; the sum of power times area is the variance.

    Attributes
    ----------
    frequency_per_mm : ndarray
        float64 (bins,): mean spatial frequency in cycles/mm. Bins above the smaller of the two Nyquist frequencies hold
        the corners of the frequency plane only.
    power : ndarray
        float64 (bins,): mean power, squared image unit times mm^2.
    area_per_mm2 : ndarray
        float64 (bins,): area that a bin takes in the frequency plane, 1/mm^2.
    """

    frequency_per_mm: np.ndarray
    power: np.ndarray
    area_per_mm2: np.ndarray


def noise_power_spectrum(
    noise: np.ndarray, spacing_mm: tuple[float, float, float], mask_box: tuple[slice, slice, slice]
) -> NoisePowerSpectrum:
    """Spectrum in the x-y plane, averaged over the slices of a box and over direction.

    Parameters
    ----------
    noise : ndarray
        float32 (x, y, z): an image minus its noise-free one. The mean of the box is taken off.
    spacing_mm : tuple of float
        Voxel edges.
    mask_box : tuple of slice
        Region of about uniform noise. A bin is as wide as the coarser of its two frequency steps.

    Returns
    -------
    NoisePowerSpectrum

    References
    ----------
    Siewerdsen et al. 2002, doi 10.1118/1.1513158.
    """
    values = noise[mask_box].astype(np.float64)
    values -= values.mean()
    (nx, ny), (dx, dy) = values.shape[:2], spacing_mm[:2]
    power = (np.abs(np.fft.fft2(values, axes=(0, 1))) ** 2).mean(axis=2) * dx * dy / (nx * ny)
    radius = np.hypot(np.fft.fftfreq(nx, dx)[:, None], np.fft.fftfreq(ny, dy)[None, :])
    steps = 1 / (nx * dx), 1 / (ny * dy)
    _, index = np.unique(np.rint(radius / max(steps)).ravel(), return_inverse=True)
    cells = np.bincount(index)
    return NoisePowerSpectrum(
        frequency_per_mm=np.bincount(index, radius.ravel()) / cells,
        power=np.bincount(index, power.ravel()) / cells,
        area_per_mm2=cells * steps[0] * steps[1],
    )


def mean_frequency(spectrum: NoisePowerSpectrum) -> float:
    """Mean spatial frequency of the noise in cycles/mm, weighted by its power; low for blotchy noise, NaN without noise."""
    weights = spectrum.power * spectrum.area_per_mm2
    return float(weights @ spectrum.frequency_per_mm / weights.sum()) if weights.sum() > 0 else float("nan")


def mean_spectrum(spectra: Sequence[NoisePowerSpectrum]) -> NoisePowerSpectrum:
    """Mean power of spectra with the same bins."""
    return replace(spectra[0], power=np.mean([s.power for s in spectra], axis=0))


def residual_autocorrelation(residual: np.ndarray, mask: np.ndarray | None, shift: tuple[int, int, int]) -> float:
    """Correlation coefficient of a residual with itself some voxels away.

    That of input minus output is as that of the input's noise where a denoiser takes noise only; more means structure.

    Parameters
    ----------
    residual : ndarray
        float32 (x, y, z).
    mask : ndarray or None
        bool (x, y, z): both voxels of a pair lie in it; None is everywhere.
    shift : tuple of int
        Voxels by axis.

    Returns
    -------
    float
        Within -1..1; NaN when the residual is constant.

    Raises
    ------
    DataError
        When no pair of voxels lies in the mask.
    """
    here = tuple(slice(max(0, -s), max(0, n - max(0, s))) for s, n in zip(shift, residual.shape, strict=True))
    there = tuple(slice(max(0, s), max(0, n - max(0, -s))) for s, n in zip(shift, residual.shape, strict=True))
    inside = np.ones(residual.shape, bool) if mask is None else mask
    pairs = inside[here] & inside[there]
    if not pairs.any():
        raise DataError(f"no two voxels {shift} apart lie in the mask; choose a shorter shift or a larger mask")
    a, b = (residual[place][pairs].astype(np.float64) for place in (here, there))
    a -= a.mean()
    b -= b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")
