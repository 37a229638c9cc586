"""Everything that a trained network depends on besides the dataset."""

from dataclasses import dataclass
from typing import Literal, get_args

from data_recipes.errors import UsageError
from denoise.adversarial.settings import AdversarialName, AdversarialSettings
from denoise.data import Condition, Target
from denoise.diffusion.method import TIME_FEATURES, DiffusionName
from denoise.diffusion.settings import DiffusionSettings
from denoise.methods import Loss, Method, MethodName, Variant
from denoise.networks.critic import MULTIPLE as CRITIC_PATCH
from denoise.networks.unet import UNetShape
from denoise.networks.unipet import UniPETShape
from denoise.scaling import Scaling, Transform

Precision = Literal["auto", "fp32", "bf16"]
Dimensions = Literal["3", "2.5", "2"]


@dataclass(frozen=True)
class TrainSettings:
    """Everything that a trained network depends on besides the dataset.

    Parameters
    ----------
    method, variant, loss
        See `denoise.methods.Method`; and "ddpm", "map-diff", "flow".
    drf : tuple of float
        Doses of the inputs; empty: all of the dataset below full dose.
    drf_weights : tuple of float
        How often each of `drf` is drawn, relative to the others; empty: evenly.
    rotate : bool
        Turn patches by random quarters about the axis of the scanner, besides the flips.
    target : str
        "noise-free", "complement", "full" or "independent".
    condition : str
        What a conditioned network is told: "noise" (logarithm of the measured noise level), "nec" (of noise-equivalent
        counts a meter) or "drf" (of the dose reduction factor).
    dims : str
        "3", "2", or "2.5": five neighboring slices in, the middle one out.
    channels : tuple of int
        Of the U-Net's levels.
    transform, scale_suv, clip_suv
        See `denoise.scaling.Scaling`.
    patch : int
        Edge of the patches in voxels.
    batch : int
        Patches a step, over all devices.
    max_steps : int
    learning_rate, weight_decay : float
        Of AdamW; the rate rises over the first steps and then falls as a cosine to a hundredth.
    clip_norm : float
        Largest norm of a gradient.
    ema : float
        Decay of the averaged weights, which are the ones kept.
    validate_every : int
        Steps between validations.
    patience : int
        Validations without a better one before training stops.
    precision : str
        "fp32", "bf16", or "auto": bf16 on a GPU that has it.
    seed : int
    diffusion : DiffusionSettings, optional
        Of "ddpm", "map-diff" and "flow".
    adversarial : AdversarialSettings, optional
        Of "unipet" and "cgan".
    """

    method: MethodName | DiffusionName = "residual"
    variant: Variant = "r0"
    loss: Loss = "l2"
    drf: tuple[float, ...] = ()
    drf_weights: tuple[float, ...] = ()
    rotate: bool = False
    target: Target = "noise-free"
    condition: Condition = "noise"
    dims: Dimensions = "3"
    channels: tuple[int, ...] = (16, 32, 64)
    transform: Transform = "linear"
    scale_suv: float = 1.0
    clip_suv: float | None = None
    patch: int = 32
    batch: int = 4
    max_steps: int = 2000
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema: float = 0.995
    validate_every: int = 200
    patience: int = 20
    precision: Precision = "auto"
    seed: int = 0
    diffusion: DiffusionSettings | None = None
    adversarial: AdversarialSettings | None = None

    def __post_init__(self) -> None:
        for name in ("patch", "batch", "max_steps", "learning_rate", "clip_norm", "validate_every", "patience"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')}: must be positive, got {getattr(self, name):g}")
        for own, names in ((self.diffusion, DiffusionName), (self.adversarial, AdversarialName)):
            if (None if own is None else own.name) != (self.method if self.method in get_args(names) else None):
                raise UsageError(f"{self.method}: give it settings of its own kind")
            if own is not None and self.dims != "3":
                raise UsageError(f"--dims {self.dims}: {self.method} is three-dimensional; leave it out")
        if self.seed < 0:
            raise UsageError(f"--seed: must be 0 or more, got {self.seed}")
        if not 0 <= self.ema < 1:
            raise UsageError(f"--ema: must be at least 0 and below 1, got {self.ema:g}")
        if not self.channels or any(n < 1 for n in self.channels):
            raise UsageError("--channels: give positive numbers, one a level, such as 16 32 64")
        if self.adversarial is not None:
            self._check_adversarial(self.adversarial)
        if self.patch % self.shape.multiple[0]:
            raise UsageError(
                f"--patch: {self.patch} is no multiple of {self.shape.multiple[0]}, which {len(self.channels)} levels need"
            )

    def _check_adversarial(self, own: AdversarialSettings) -> None:
        if own.name == "unipet" and (len(self.channels) != 1 or self.channels[0] % 16):
            raise UsageError("--channels: unipet takes one number, a multiple of 16 (64 as published)")
        if self.patch % CRITIC_PATCH:
            raise UsageError(f"--patch: {self.patch} is no multiple of {CRITIC_PATCH}, which the critic needs")
        if self.target == "complement":
            raise UsageError(f"--target complement: its noise is not that of a full dose; use full, with {self.method}")
        if own.mask == "relative" and self.target == "noise-free":
            raise UsageError("--mask relative: a noise-free target has no noise; use --target full, or --mask absolute")
        if own.style == "mixstyle" and self.batch < 2:
            raise UsageError("--style mixstyle: mixes the images of a batch; use --batch 2 or more")

    @property
    def shape(self) -> UNetShape | UniPETShape:
        """The network's."""
        if self.adversarial is not None and self.adversarial.name == "unipet":
            own = self.adversarial
            return UniPETShape(tuple(self.channels), own.blocks, own.style == "san", own.slopes, self.patch)
        slices, depth = {"3": (1, 3), "2.5": (5, 1), "2": (1, 1)}[self.dims]
        if self.diffusion is not None:
            return UNetShape(slices, depth, tuple(self.channels), True, 2, TIME_FEATURES)
        return UNetShape(slices, depth, tuple(self.channels), self.regression.conditioned)

    @property
    def regression(self) -> Method:
        """The method, where it is no generative one."""
        assert self.method in get_args(MethodName)
        return Method(self.method, self.variant, self.loss)  # pyright: ignore[reportArgumentType]

    @property
    def steps_in_all(self) -> int:
        """Of all stages."""
        own = self.adversarial
        return self.max_steps + (0 if own is None else own.warm_steps + own.adversarial_steps)

    @property
    def scaling(self) -> Scaling:
        """Between SUV and network numbers."""
        return Scaling(self.transform, self.scale_suv, self.clip_suv)

    def patch_size(self) -> tuple[int, int, int]:
        """Voxels of a patch."""
        return self.patch, self.patch, self.patch if self.dims == "3" else 1
