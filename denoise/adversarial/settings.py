"""Settings of adversarial training."""

from dataclasses import dataclass
from typing import Literal

from data_recipes.errors import UsageError
from denoise.adversarial.losses import Align
from denoise.adversarial.mask import PUBLISHED, MaskKind
from denoise.networks.unipet import Slopes

AdversarialName = Literal["unipet", "cgan"]
StyleNetwork = Literal["san", "off", "mixstyle"]
Base = Literal["trained", "frozen"]

PUBLISHED_TRAINING = {
    "loss": "l1", "patch": 64, "batch": 2, "scale_suv": 20.0, "clip_suv": 20.0, "learning_rate": 1e-4, "target": "full",
}  # fmt: skip
"""Settings of `denoise.train_settings.TrainSettings` as in the authors' code of UniPET."""

TIMES_NOISE = 3.0
"""Usual threshold of a relative mask."""


@dataclass(frozen=True)
class AdversarialSettings:
    """Of "unipet", our implementation after arXiv 2606.11131 and its authors' code, and of "cgan", a conditional GAN after
    Wang et al. 2018 (doi 10.1016/j.neuroimage.2018.03.045) with our U-Net, whose critic sees the low dose too.

    Training has two stages. The first minimizes the error of reconstruction alone, over the steps of `TrainSettings`. The
    second trains the critic alone for `critic_steps`, then critic and generator by turns.

    Parameters
    ----------
    name : str
    style : str
        "san": the style alignment network modulates the base network. "off": the base network alone. "mixstyle": the base
        network, the statistics of whose first features are mixed between the images of a batch in training.
    slopes : str
        See `denoise.networks.unipet.UniPETShape`.
    blocks : int
        Of the generator.
    align : str
        What the style of features is drawn to in the second stage: "full", that of the full dose; "mean", the mean of the
        batch; "off".
    align_weight, adversarial_weight, penalty_weight : float
        Of the alignment, of the critic's score, and of the gradient penalty in the critic's error. Without weight for the
        score there is no critic.
    mask : str
        See `denoise.adversarial.mask.region_mask`.
    threshold : float, optional
        Default: 1e-3 SUV^2, or 3 times the noise.
    base : str
        "frozen": in the second stage only the style alignment network is trained.
    critic_width : int
        Channels of the critic's first layer.
    critic_steps, adversarial_steps : int
    adversarial_rate : float
        Learning rate of both in the second stage.
    """

    name: AdversarialName = "unipet"
    style: StyleNetwork = "san"
    slopes: Slopes = "shared"
    blocks: int = 8
    align: Align = "full"
    align_weight: float = 1e-3
    mask: MaskKind = "absolute"
    threshold: float | None = None
    adversarial_weight: float = 1e-3
    penalty_weight: float = 10.0
    base: Base = "trained"
    critic_width: int = 64
    critic_steps: int = 200
    adversarial_steps: int = 2000
    adversarial_rate: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("align_weight", "adversarial_weight", "penalty_weight", "critic_steps", "adversarial_steps"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"--{name.replace('_', '-')}: must be 0 or more, got {getattr(self, name):g}")
        for name in ("critic_width", "adversarial_rate", "blocks"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')}: must be positive, got {getattr(self, name):g}")
        if self.threshold is not None and not self.threshold > 0:
            raise UsageError(f"--threshold: must be positive, got {self.threshold:g}")
        if self.threshold is not None and self.mask == "off":
            raise UsageError("--threshold: there is no mask; leave it out")
        if self.name == "cgan" and (self.align, self.mask, self.base) != ("off", "off", "trained"):
            raise UsageError("cgan has neither alignment, mask nor frozen base; leave these flags out")
        if self.base == "frozen" and self.style != "san":
            raise UsageError("--base frozen: without a style alignment network nothing would be trained; leave it out")

    @property
    def limit(self) -> float:
        """The mask's threshold."""
        usual = TIMES_NOISE if self.mask == "relative" else PUBLISHED
        return usual if self.threshold is None else self.threshold

    @property
    def has_critic(self) -> bool:
        """Whether a second stage with a critic follows."""
        return self.adversarial_weight > 0 and self.adversarial_steps > 0

    @property
    def warm_steps(self) -> int:
        """Steps of the critic alone."""
        return self.critic_steps if self.has_critic else 0
