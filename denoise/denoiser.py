"""A trained run as a function from a noisy volume to a denoised one."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_recipes.errors import DataError, UsageError
from denoise.model_file import ModelCard, load_model
from denoise.networks.unet import UNet, UNetShape
from denoise.noise_level import noise_level

EDGES = (512, 256, 128, 96, 64)
"""Edges that a window may have, in voxels: large ones compute little twice."""

WINDOW_BYTES = 2**31
"""A window's features take no more memory, unless it is of the smallest edge; the same on every device, as results are."""

OVERLAP = 32
"""Voxels that a window shares with the next one; a U-Net of three levels sees 20 voxels far."""

FEATURES = 16
"""Memory that a network takes: so many times its first level's channels for every voxel of a window (14 to 16 measured)."""

WIDER_LOG = 0.05
"""Logarithms of dose or counts may leave the trained range by so much without a warning."""

WIDER = 1.05
"""Noise levels and voxels may leave the trained range by this factor without a warning."""


@dataclass(frozen=True)
class Denoised:
    """Result of a denoiser.

    Parameters
    ----------
    image : ndarray
        float32 (x, y, z) in SUV.
    relative_noise : float
        Measured in the input: standard deviation over mean of the body.
    warnings : tuple of str
    """

    image: np.ndarray
    relative_noise: float
    warnings: tuple[str, ...]


class Denoiser:
    """Networks of a run: one, or one for each dose.

    Parameters
    ----------
    models : list of (UNet, ModelCard)
    """

    def __init__(self, models: list[tuple[UNet, ModelCard]]) -> None:
        self.models = models

    @classmethod
    def load(cls, run: Path, device: str = "auto", weights: str = "best") -> "Denoiser":
        """Read a run's folder, or a model file.

        Parameters
        ----------
        run : Path
        device : str
            "auto", "cpu" or "cuda".
        weights : str
            "best" or "last".

        Raises
        ------
        DataError, UsageError
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: no CUDA device is seen by torch; use --device cpu")
        place = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
        return cls([load_model(path, place) for path in model_files(run, weights)])

    def choose(self, relative: float, drf: float | None = None) -> tuple[UNet, ModelCard]:
        """The network for a dose, or else the one whose training noise is nearest."""
        if drf is not None and len(self.models) > 1:
            return min(self.models, key=lambda m: abs(np.log(m[1].drfs[0] / drf)))
        return min(self.models, key=lambda m: abs(np.log(np.sqrt(m[1].noise_range[0] * m[1].noise_range[1]) / relative)))

    def __call__(
        self,
        image: np.ndarray,
        spacing_mm: tuple[float, float, float],
        drf: float | None = None,
        log_nec_per_m: float | None = None,
        strength: float = 1.0,
    ) -> Denoised:
        """Denoise a volume.

        Parameters
        ----------
        image : ndarray
            float32 (x, y, z) in SUV.
        spacing_mm : tuple of float
        drf : float, optional
            Dose reduction factor, for networks that are told it, and to choose among dose-specific ones.
        log_nec_per_m : float, optional
            Logarithm of noise-equivalent counts a meter, for networks that are told it.
        strength : float
            0 gives the input, 1 the network's estimate.

        Returns
        -------
        Denoised

        Raises
        ------
        DataError, UsageError
            Values that are not finite, or a network that is to be told what is not given.
        """
        if not np.isfinite(image).all():
            raise DataError("the volume holds values that are not finite; mend it, or set them to 0")
        level = noise_level(image)
        if level.sd == 0:
            raise DataError("the volume has no noise that could be measured; there is nothing to denoise")
        network, card = self.choose(level.relative, drf)
        told = {"noise": np.log(level.relative), "nec": log_nec_per_m, "drf": None if drf is None else np.log(drf)}
        condition = told[card.condition]
        if condition is None:
            if card.method.conditioned:
                flag = {"nec": "--nec-per-m", "drf": "--drf"}[card.condition]
                raise UsageError(f"{flag}: this model must be told it; give it, or use a model conditioned on noise")
            condition = 0.0
        estimate = _in_windows(network, card, np.ascontiguousarray(image, np.float32), float(condition), level.sd)
        if image.min() >= 0:
            # What is never negative, as images of OSEM, stays so.
            estimate = np.maximum(estimate, 0)
        out = image + np.float32(strength) * (estimate - image)
        return Denoised(out, level.relative, tuple(_warnings(card, level.relative, float(condition), spacing_mm)))


def model_files(run: Path, weights: str = "best") -> list[Path]:
    """Model files of a run: its own, or those of the doses that it was trained for apart."""
    if run.is_file():
        return [run]
    name = f"{weights}.safetensors"
    if (run / name).exists():
        return [run / name]
    paths = sorted(run.glob(f"drf-*/{name}"), key=lambda p: float(p.parent.name.removeprefix("drf-")))
    if not paths:
        raise DataError(f"{run.name}: no {name}; give a folder that denoise train made")
    begun = {path.name for path in run.glob("drf-*")}
    missing = sorted(begun - {path.parent.name for path in paths})
    if missing:
        raise DataError(f"{run.name}: no {name} in {', '.join(missing)}; run the same denoise train again to go on")
    return paths


def _warnings(card: ModelCard, relative: float, condition: float, spacing_mm: tuple[float, float, float]) -> list[str]:
    found = []
    low, high = card.noise_range
    if not low / WIDER <= relative <= high * WIDER:
        found.append(
            f"noise level {relative:.3f} lies outside {low:.3f} to {high:.3f}, for which the network was trained; its "
            "output is an extrapolation"
        )
    least, most = card.condition_range
    if card.method.conditioned and card.condition != "noise" and not least - WIDER_LOG <= condition <= most + WIDER_LOG:
        found.append(
            f"the network is told {np.exp(condition):.4g} ({card.condition}), outside {np.exp(least):.4g} to "
            f"{np.exp(most):.4g}, for which it was trained; its output is an extrapolation"
        )
    if not np.allclose(spacing_mm, card.voxel_mm, rtol=WIDER - 1):
        here, there = (" x ".join(f"{v:.2f}" for v in s) for s in (spacing_mm, card.voxel_mm))
        found.append(f"voxels are {here} mm, those of the training data {there} mm; resample, or train for them")
    return found


def _in_windows(network: UNet, card: ModelCard, image: np.ndarray, condition: float, sd: float) -> np.ndarray:
    """Estimate of a volume from overlapping windows, weighted towards their middles, float32 SUV."""
    shape, device = card.shape, next(network.parameters()).device
    edge = _window_edge(shape)
    window = tuple(
        min(edge // m * m if shape.depth > 1 or axis < 2 else 1, -(-n // m) * m)
        for axis, (n, m) in enumerate(zip(image.shape, shape.multiple, strict=True))
    )
    padding = [(0, max(0, w - n)) for w, n in zip(window, image.shape, strict=True)]
    half = shape.slices // 2
    padded = np.pad(image, [*padding[:2], (padding[2][0] + half, padding[2][1] + half)], mode="edge")
    size = tuple(n + p[1] for n, p in zip(image.shape, padding, strict=True))
    starts = [_starts(n, w) for n, w in zip(size, window, strict=True)]
    weight = np.ones(window, np.float32)
    for axis, w in enumerate(window):
        ramp = np.minimum(np.arange(w) + 0.5, w - np.arange(w) - 0.5).astype(np.float32) / max(1.0, w / 2)
        weight *= ramp.reshape([-1 if a == axis else 1 for a in range(3)])
    total, weights = np.zeros(size, np.float32), np.zeros(size, np.float32)
    places = list(itertools.product(*starts))
    at_once = _windows_at_once(shape, window, device)
    for first in range(0, len(places), at_once):
        corners = places[first : first + at_once]
        low = np.stack([
            np.stack([padded[x : x + window[0], y : y + window[1], z + k : z + k + window[2]] for k in range(shape.slices)])
            for x, y, z in corners
        ])  # fmt: skip
        told = torch.full((len(corners),), condition, dtype=torch.float32, device=device)
        noise = torch.full((len(corners),), sd, dtype=torch.float32, device=device)
        with torch.inference_mode():
            numbers = card.method.estimate(network, card.scaling, torch.from_numpy(low).to(device), told, noise)
            estimates = card.scaling.to_suv(numbers)[:, 0].cpu().numpy()
        for (x, y, z), estimate in zip(corners, estimates, strict=True):
            part = slice(x, x + window[0]), slice(y, y + window[1]), slice(z, z + window[2])
            total[part] += weight * estimate
            weights[part] += weight
    total /= weights
    return total[: image.shape[0], : image.shape[1], : image.shape[2]]


def _starts(length: int, window: int) -> list[int]:
    """First voxels of evenly spread windows that share at least `OVERLAP` voxels with the next."""
    if length == window:
        return [0]
    if window == 1:
        return list(range(length))
    count = int(np.ceil((length - window) / (window - OVERLAP))) + 1
    return np.round(np.linspace(0, length - window, count)).astype(int).tolist()


def _window_edge(shape: UNetShape) -> int:
    voxels = WINDOW_BYTES // _bytes_a_voxel(shape)
    return next((edge for edge in EDGES if edge ** (3 if shape.depth > 1 else 2) <= voxels), EDGES[-1])


def _bytes_a_voxel(shape: UNetShape) -> int:
    return 4 * shape.channels[0] * FEATURES


def _windows_at_once(shape: UNetShape, window: tuple[int, ...], device: torch.device) -> int:
    """Windows that fit the device's free memory, at most 16; on a CPU few, since they gain nothing."""
    needed = _bytes_a_voxel(shape) * int(np.prod(window))
    free = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else 1e9
    return int(max(1, min(16, free // needed)))
