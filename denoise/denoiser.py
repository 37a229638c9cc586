"""A trained run as a function from a noisy volume to a denoised one."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from data_recipes.errors import DataError, UsageError
from denoise.diffusion.method import Diffusion
from denoise.generate import Correct, Sampling, generate
from denoise.methods import Method
from denoise.model_file import ModelCard, load_model
from denoise.networks.made import Network
from denoise.networks.unipet import UniPETShape
from denoise.noise_level import noise_level
from denoise.windows import in_tiles, in_windows

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
    spread : ndarray, optional
        Of a generative model's samples, in SUV.
    anchors : dict
        Of a generative model: DRF -> estimate of the image at that dose, in SUV.
    """

    image: np.ndarray
    relative_noise: float
    warnings: tuple[str, ...]
    spread: np.ndarray | None = None
    anchors: dict[float, np.ndarray] = field(default_factory=dict)


class Denoiser:
    """Networks of a run: one, or one for each dose.

    Parameters
    ----------
    models : list of (network, ModelCard)
    sampling : Sampling
        Of generative models.
    hard : bool
        Of UniPET: tiles are not blended; see `denoise.windows.in_tiles`.
    """

    def __init__(
        self, models: list[tuple[Network, ModelCard]], sampling: Sampling | None = None, hard: bool = False
    ) -> None:
        if hard and any(not isinstance(card.shape, UniPETShape) for _, card in models):
            raise UsageError("--stitching hard: is that of unipet alone; leave it out")
        self.models, self.sampling, self.hard = models, sampling or Sampling(), hard

    @classmethod
    def load(
        cls, run: Path, device: str = "auto", weights: str = "best", sampling: Sampling | None = None, hard: bool = False
    ) -> "Denoiser":
        """Read a run's folder, or a model file.

        Parameters
        ----------
        run : Path
        device : str
            "auto", "cpu" or "cuda".
        weights : str
            "best" or "last".
        sampling : Sampling, optional
        hard : bool

        Raises
        ------
        DataError, UsageError
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: no CUDA device is seen by torch; use --device cpu")
        place = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
        return cls([load_model(path, place) for path in model_files(run, weights)], sampling, hard)

    def choose(self, relative: float, drf: float | None = None) -> tuple[Network, ModelCard]:
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
        correct: Correct | None = None,
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
        correct : callable, optional
            Of generative models: makes estimates in SUV agree with data; see `denoise.diffusion.consistency`.

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
        image = np.ascontiguousarray(image, np.float32)
        condition = 0.0
        if isinstance(card.method, Diffusion):
            made = generate(network, card, image, level.relative, self.sampling, correct)
            estimate, spread, anchors = made.image, made.spread, made.anchors
        else:
            condition = _condition(card, level.relative, drf, log_nec_per_m)
            estimate, spread, anchors = _regressed(network, card, image, condition, level.sd, self.hard), None, {}
        if image.min() >= 0:
            # What is never negative, as images of OSEM, stays so.
            estimate = np.maximum(estimate, 0)
            anchors = {drf: np.maximum(one, 0) for drf, one in anchors.items()}
        out = image + np.float32(strength) * (estimate - image)
        warnings = tuple(_warnings(card, level.relative, condition, spacing_mm))
        return Denoised(out, level.relative, warnings, spread, anchors)


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


def _condition(card: ModelCard, relative: float, drf: float | None, log_nec_per_m: float | None) -> float:
    """What a network is told of the input; 0 for one that is not told."""
    if not card.method.conditioned:
        return 0.0
    told = {"noise": np.log(relative), "nec": log_nec_per_m, "drf": None if drf is None else np.log(drf)}
    condition = told[card.condition]
    if condition is None:
        flag = {"nec": "--nec-per-m", "drf": "--drf"}[card.condition]
        raise UsageError(f"{flag}: this model must be told it; give it, or use a model conditioned on noise")
    if not np.isfinite(condition):
        raise DataError("the noise-equivalent counts of an image are not known, which this model must be told; use a model "
                        "conditioned on noise")  # fmt: skip
    return float(condition)


def _regressed(network: Network, card: ModelCard, image: np.ndarray, condition: float, sd: float, hard: bool) -> np.ndarray:
    """Estimate of a regression network, float32 SUV."""
    method, device = card.method, next(network.parameters()).device
    assert isinstance(method, Method)

    def run(low: torch.Tensor) -> torch.Tensor:
        told, noise = (torch.full((len(low),), v, dtype=torch.float32, device=device) for v in (condition, sd))
        return card.scaling.to_suv(method.estimate(network, card.scaling, low, told, noise))

    if hard and isinstance(card.shape, UniPETShape):
        return in_tiles(run, card.shape, image, device)
    return in_windows(run, card.shape, image[None], device)


def _warnings(card: ModelCard, relative: float, condition: float, spacing_mm: tuple[float, float, float]) -> list[str]:
    found = []
    low, high = card.noise_range
    if not low / WIDER <= relative <= high * WIDER:
        found.append(
            f"noise level {relative:.3f} lies outside {low:.3f} to {high:.3f}, for which the network was trained; its "
            "output is an extrapolation"
        )
    least, most = card.condition_range
    told = isinstance(card.method, Method) and card.method.conditioned and card.condition != "noise"
    if told and not least - WIDER_LOG <= condition <= most + WIDER_LOG:
        found.append(
            f"the network is told {np.exp(condition):.4g} ({card.condition}), outside {np.exp(least):.4g} to "
            f"{np.exp(most):.4g}, for which it was trained; its output is an extrapolation"
        )
    if not np.allclose(spacing_mm, card.voxel_mm, rtol=WIDER - 1):
        here, there = (" x ".join(f"{v:.2f}" for v in s) for s in (spacing_mm, card.voxel_mm))
        found.append(f"voxels are {here} mm, those of the training data {there} mm; resample, or train for them")
    return found
