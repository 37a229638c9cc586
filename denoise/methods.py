"""The regression methods: what a network estimates, and how its error is weighed.

Residual learning after arXiv 2604.16925 (Liu et al. 2026), our implementation: the network estimates the noise, which is
subtracted from the input. Under squared error this has the minimizer of the direct form, so three variants are kept apart:
"r0" plain; "r1" the noise over the measured noise of the volume, multiplied back; "r2" errors weighed by one over the mean
squared noise of the dose.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from data_recipes.errors import UsageError
from denoise.scaling import Scaling

MethodName = Literal["direct", "dose-specific", "dose-conditioned", "residual", "unipet", "cgan"]
Variant = Literal["r0", "r1", "r2"]
Loss = Literal["l2", "l1"]


@dataclass(frozen=True)
class Samples:
    """What a step trains on; images in SUV.

    Parameters
    ----------
    low, target : Tensor
        (n, slices, x, y, z) and (n, 1, x, y, z).
    condition, sd, dose_sd, drf : Tensor
        (n,): what the network is told, the noise of the volumes and the mean noise of their doses [SUV], and the doses.
    seeds : list of int
        One a sample, for whatever a method draws.
    beside : Tensor, optional
        (n, k, x, y, z): the same counts at other doses.
    clean : Tensor, optional
        (n, 1, x, y, z): the noise-free images.
    """

    low: torch.Tensor
    target: torch.Tensor
    condition: torch.Tensor
    sd: torch.Tensor
    dose_sd: torch.Tensor
    drf: torch.Tensor
    seeds: list[int]
    beside: torch.Tensor | None = None
    clean: torch.Tensor | None = None


@dataclass(frozen=True)
class Method:
    """How a network makes an estimate.

    Parameters
    ----------
    name : str
        "direct", "dose-specific", "dose-conditioned", "unipet": the network gives the image. "residual", "cgan": the noise.
    variant : str
        Of the residual method.
    loss : str
        Squared or absolute error.
    """

    name: MethodName = "residual"
    variant: Variant = "r0"
    loss: Loss = "l2"

    def __post_init__(self) -> None:
        if self.name != "residual" and self.variant != "r0":
            raise UsageError(f"--variant {self.variant}: only the residual method has variants")

    @property
    def conditioned(self) -> bool:
        """Whether the network is told the noise level."""
        return self.name == "dose-conditioned"

    @property
    def measures(self) -> bool:
        """Whether training needs the noise of the volumes that patches are from."""
        return self.conditioned or self.variant == "r1"

    def estimate(
        self, network: torch.nn.Module, scaling: Scaling, low: torch.Tensor, condition: torch.Tensor, sd: torch.Tensor
    ) -> torch.Tensor:
        """Denoised images in network numbers.

        Parameters
        ----------
        network : Module
        scaling : Scaling
        low : Tensor
            (n, slices, x, y, z) in SUV.
        condition, sd : Tensor
            (n,): what the network is told, and the noise of the volumes in SUV.

        Returns
        -------
        Tensor
            (n, 1, x, y, z).
        """
        numbers = scaling.to_network(low)
        out = network(numbers, condition).float()
        if self.name not in ("residual", "cgan"):
            return out
        middle = numbers.shape[1] // 2
        if self.variant == "r1":
            out = out * (sd / scaling.scale_suv)[:, None, None, None, None]
        return numbers[:, middle : middle + 1] - out

    def training_error(self, network: torch.nn.Module, scaling: Scaling, samples: Samples) -> torch.Tensor:
        """Mean error of a step's estimates."""
        estimate = self.estimate(network, scaling, samples.low, samples.condition, samples.sd)
        target, unit = scaling.to_network(samples.target), scaling.scale_suv
        return self.error(estimate, target, samples.sd / unit, samples.dose_sd / unit)

    def error(self, estimate: torch.Tensor, target: torch.Tensor, sd: torch.Tensor, dose_sd: torch.Tensor) -> torch.Tensor:
        """Mean error of estimates against targets, both in network numbers; `dose_sd` is the mean noise of each dose."""
        difference = estimate - target
        if self.variant == "r1":
            difference = difference / sd[:, None, None, None, None]
        if self.variant == "r2":
            difference = difference / dose_sd[:, None, None, None, None]
        return difference.abs().mean() if self.loss == "l1" else difference.square().mean()
