"""What diffuses into images: white noise, or noise with the covariance that was measured in reconstructions.

Noise of reconstructions is correlated between neighbors, and larger where there is more activity. The model here is
n = (g / m)^p (k * w): white noise w, a kernel k whose autocorrelation is the measured one, and a guide g, the smoothed
low-dose image, to a measured power; m makes the mean square in bodies 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy import ndimage

from data_recipes.errors import DataError
from petsim.noise import body_mask

LAG = 6
"""Correlations are measured between voxels at most so far apart along each axis."""

SMOOTHED = 2.0
"""Standard deviation [voxels] of the Gaussian that makes the guide, and in which local variances are found."""

LEAST_GUIDE = 0.05
"""The guide's least value over m: some noise is left in air."""


@dataclass(frozen=True)
class ColoredNoise:
    """Noise as in reconstructions.

    Parameters
    ----------
    kernel : tuple of float
        (2 LAG + 1)^3 values, z fastest; its squares sum to 1.
    power : float
        Of the guide.
    mean : float
        m, in network numbers.
    """

    kernel: tuple[float, ...]
    power: float
    mean: float

    def color(self, white: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """Colored noise out of white noise.

        Parameters
        ----------
        white, low : Tensor
            (n, 1, x, y, z): noise, and low-dose images in network numbers.
        """
        shape, over = white.shape[2:], (-3, -2, -1)
        places = [torch.arange(-LAG, LAG + 1, device=white.device) % n for n in shape]
        x, y, z = (p.flatten() for p in torch.meshgrid(*places, indexing="ij"))
        # Round the corner: what noise is like at one side of a volume it may be like at the other.
        kernel = torch.zeros(shape, device=white.device)
        kernel.index_put_((x, y, z), torch.tensor(self.kernel, device=white.device), accumulate=True)
        # What a network may be trained in, bf16, is too coarse for noise.
        with torch.autocast(white.device.type, enabled=False):
            spectrum = torch.fft.rfftn(white, dim=over) * torch.fft.rfftn(kernel, dim=over)
            correlated = torch.fft.irfftn(spectrum, s=shape, dim=over)
            return correlated * (_smooth(low) / self.mean).clamp(min=LEAST_GUIDE) ** self.power


def _smooth(images: torch.Tensor) -> torch.Tensor:
    """Gaussian of `SMOOTHED` voxels along all axes, edges continued."""
    reach = int(3 * SMOOTHED)
    at = torch.arange(-reach, reach + 1, dtype=torch.float32, device=images.device)
    weights = torch.exp(-0.5 * (at / SMOOTHED) ** 2)
    weights /= weights.sum()
    for axis in (2, 3, 4):
        shape, padding = [1, 1, 1, 1, 1], [0] * 6
        shape[axis] = len(at)
        padding[2 * (4 - axis)] = padding[2 * (4 - axis) + 1] = reach
        images = torch.nn.functional.conv3d(
            torch.nn.functional.pad(images, padding, mode="replicate"), weights.reshape(shape)
        )
    return images


def seed_of(*place: int) -> int:
    """Seed for torch out of some numbers, which name what it is for."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)


def draw_noise(colored: ColoredNoise | None, low: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Noise of unit variance, a function of the seeds alone but for the guide.

    Parameters
    ----------
    colored : ColoredNoise, optional
        None: white.
    low : Tensor
        (n, 1, x, y, z), low-dose images in network numbers.
    seeds : sequence of int
        One an image.
    """
    white = torch.stack([
        torch.randn(low.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float32) for seed in seeds
    ]).to(low.device)  # fmt: skip
    return white if colored is None else colored.color(white, low)


def measure_noise(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> ColoredNoise:
    """Noise from images and what is noise in them.

    Parameters
    ----------
    pairs : sequence of (ndarray, ndarray)
        Low-dose images and noise of the same covariance, such as a difference of realizations, float32 (x, y, z) in network
        numbers.

    Raises
    ------
    DataError
        Nothing to measure in.
    """
    guides = [ndimage.gaussian_filter(low, SMOOTHED, mode="nearest") for low, _ in pairs]
    bodies = [body_mask(low) & (guide > 0) for (low, _), guide in zip(pairs, guides, strict=True)]
    local = [np.sqrt(ndimage.gaussian_filter(noise * noise, SMOOTHED, mode="nearest")) for _, noise in pairs]
    places = [body & (sd > 0) for body, sd in zip(bodies, local, strict=True)]
    if sum(int(p.sum()) for p in places) < 100:
        raise DataError("no noise to measure in the body; the dataset needs two realizations or a lower dose")
    x = np.log(np.concatenate([g[p] for g, p in zip(guides, places, strict=True)]).astype(np.float64))
    y = np.log(np.concatenate([sd[p] for sd, p in zip(local, places, strict=True)]).astype(np.float64))
    power = _slope_of_medians(x, y)
    mean = float(np.mean(np.exp(2 * power * x)) ** (1 / (2 * power))) if abs(power) > 1e-3 else float(np.exp(x.mean()))
    flat = []
    for (_, noise), guide, body in zip(pairs, guides, bodies, strict=True):
        flat.append(np.where(body, noise / np.maximum(guide / mean, LEAST_GUIDE) ** power, 0).astype(np.float32))
    return ColoredNoise(_kernel(flat, bodies), power, mean)


def _slope_of_medians(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of the medians of y in twenty classes of x: bodies hold few voxels of high uptake."""
    first, last = np.quantile(x, (0.02, 0.98))
    edges = np.linspace(first, last, 21)
    classes = [(x >= low) & (x < high) for low, high in pairwise(edges)]
    kept = [c for c in classes if c.sum() >= 20]
    if len(kept) < 3:
        return 0.0
    return float(np.polyfit([x[c].mean() for c in kept], [np.median(y[c]) for c in kept], 1)[0])


def _kernel(noises: Sequence[np.ndarray], bodies: Sequence[np.ndarray]) -> tuple[float, ...]:
    """Root of the spectrum of the autocorrelation, which is a kernel that gives it."""
    edge = 2 * LAG + 1
    products, counts = np.zeros((edge, edge, edge)), np.zeros((edge, edge, edge))
    for noise, body in zip(noises, bodies, strict=True):
        products += _sums_of_products(noise)
        counts += _sums_of_products(body.astype(np.float32))
    correlation = products / np.maximum(counts, 1.0)
    correlation /= correlation[LAG, LAG, LAG]
    # Without a fall to zero at the largest lags the spectrum would be negative.
    beyond = np.maximum(np.abs(np.arange(-LAG, LAG + 1)) - LAG / 2, 0) / (LAG / 2 + 1)
    taper = np.cos(0.5 * np.pi * beyond) ** 2
    correlation *= taper[:, None, None] * taper[:, None] * taper
    spectrum = np.maximum(np.fft.fftn(np.fft.ifftshift(correlation)).real, 0)
    kernel = np.fft.fftshift(np.fft.ifftn(np.sqrt(spectrum)).real)
    kernel /= np.sqrt(np.sum(kernel**2))
    return tuple(float(v) for v in kernel.astype(np.float32).ravel())


def _sums_of_products(values: np.ndarray) -> np.ndarray:
    """Sum of values times values shifted by up to `LAG` voxels along each axis, (2 LAG + 1)^3, no shift in the middle."""
    size = [n + LAG for n in values.shape]
    spectrum = np.fft.rfftn(values, size, axes=(0, 1, 2))
    whole = np.fft.irfftn(np.abs(spectrum) ** 2, size, axes=(0, 1, 2))
    places = np.arange(-LAG, LAG + 1)
    return whole[np.ix_(places, places, places)]
