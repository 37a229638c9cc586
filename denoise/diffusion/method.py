"""Diffusion and flow methods: what their network is shown, what it gives, and how its error is weighed.

"ddpm": a conditional three-dimensional DDPM (Ho et al. 2020, arXiv 2006.11239), the low-dose image beside the diffusing one.
"map-diff": our implementation after arXiv 2603.02012 (Jing et al. 2026): estimates of the image are also pulled towards real
images at intermediate doses, each in its own interval of times. "flow": rectified flow (Liu et al. 2022, arXiv 2209.03003).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch

from data_recipes.errors import UsageError
from denoise.diffusion.noise import ColoredNoise, draw_noise
from denoise.diffusion.schedule import NoiseSchedule
from denoise.methods import Samples
from denoise.scaling import Scaling

DiffusionName = Literal["ddpm", "map-diff", "flow"]
Prediction = Literal["eps", "image", "v", "velocity"]
Way = Literal["noise", "ladder"]

ERROR_TIMES = (0.001, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)
"""Parts of the schedule at which errors of estimates are measured."""

TIME_FEATURES = 32
"""Numbers by which a network is told the time."""


@dataclass(frozen=True)
class Anchors:
    """Times that stand for doses.

    Parameters
    ----------
    drfs : tuple of float
        Rising.
    times : tuple of float
        Rising, of the schedule that `digest` covers.
    digest : str
        Of schedule, scaling, noise and reference; see `denoise.diffusion.anchors`.
    """

    drfs: tuple[float, ...]
    times: tuple[float, ...]
    digest: str

    def __post_init__(self) -> None:
        rising = all(b > a for values in (self.drfs, self.times) for a, b in pairwise(values))
        if len(self.drfs) != len(self.times) or not self.drfs or not rising:
            raise UsageError(
                "--anchors: doses and times must rise together; calibrate with another --scale-suv, or fewer doses"
            )


@dataclass(frozen=True)
class Diffusion:
    """A generative method.

    Parameters
    ----------
    name : str
    schedule : NoiseSchedule
    prediction : str
        What the network gives: "eps", the noise; "image"; "v", the mix of both by Karras et al. 2022 (arXiv 2206.00364,
        table 1), whose sizes do not hang on the time, and which is that of Salimans and Ho 2022 (arXiv 2202.00512) where
        `data_sd` is 1 and a^2 + s^2 = 1; "velocity", noise minus image, on the schedule "flow" alone.
    data_sd : float
        Root mean square of target images in patches, network numbers.
    colored : ColoredNoise, optional
        What diffuses; None: white noise.
    way : str
        "noise": the end of the schedule is noise. "ladder": it is the low-dose image, and images at the doses between lie on
        the way (as inversion by direct iteration, Delbracio and Milanfar 2023, arXiv 2303.11435); "flow" alone.
    beside : tuple of float
        Doses whose images are needed in training: those of the anchors, or of the ladder.
    anchors : Anchors, optional
    anchor_weight, anchor_power : float
        lambda, and p of w(t) = (1 - t / T)^p.
    full : bool
        The target is the full dose that holds the counts of the lower ones, not an image without their noise.
    clamp : bool
        Cut estimates at `limits` in the anchors' error.
    bound : float, optional
        Most that w(t) may be times (s / a)^2, by which an error of "eps" grows in the estimate of the image.
    starts : tuple of (float, float)
        Relative noise levels of the training doses, and the ratio s / a that each stands for.
    errors : tuple of (float, float)
        Times, and root mean squared errors of estimates there on validation patches.
    """

    name: DiffusionName
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    prediction: Prediction = "eps"
    data_sd: float = 1.0
    colored: ColoredNoise | None = None
    way: Way = "noise"
    beside: tuple[float, ...] = ()
    anchors: Anchors | None = None
    anchor_weight: float = 0.1
    anchor_power: float = 2.0
    full: bool = False
    clamp: bool = False
    bound: float | None = None
    starts: tuple[tuple[float, float], ...] = ()
    errors: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        flow = self.schedule.kind == "flow"
        if self.prediction == "velocity" and not flow:
            raise UsageError("--prediction velocity: needs --schedule flow")
        if self.prediction == "eps" and flow:
            raise UsageError(
                "--prediction eps: tells nothing of the image where there is noise alone; choose another with flow"
            )
        if self.way == "ladder" and not flow:
            raise UsageError("--way ladder: needs --schedule flow")
        if self.name == "map-diff" and self.way == "ladder":
            raise UsageError("--way ladder: map-diff starts from noise; train flow")

    conditioned = True
    measures = False

    def estimate(self, network: torch.nn.Module, x: torch.Tensor, low: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Image out of a diffusing one.

        Parameters
        ----------
        network : Module
        x, low : Tensor
            (n, 1, x, y, z), network numbers: diffusing and low-dose images.
        time : Tensor
            float64 (n,), in [0, T].
        """
        return self._image(self._output(network, x, low, time), x, time)

    def training_error(self, network: torch.nn.Module, scaling: Scaling, samples: Samples) -> torch.Tensor:
        """Mean squared error of outputs at random times, and that of the anchors."""
        low, target = scaling.to_network(samples.low), scaling.to_network(samples.target)
        time = self.random_times(samples.seeds).to(low.device)
        noise = self._end(low, target, samples, time, scaling)
        a, s = self._parts(time)
        x = a * target + s * noise
        output = self._output(network, x, low, time)
        if self.prediction == "eps":
            wanted = noise
        elif self.prediction == "image":
            wanted = target / self.data_sd
        elif self.prediction == "velocity":
            wanted = noise - target
        else:
            skip, size = self._mix(a, s)
            wanted = (target - skip * x) / size
        error = (output - wanted).square().mean()
        if self.name != "map-diff":
            return error
        assert self.anchors is not None and samples.beside is not None
        image = self._image(output, x, time)
        if self.clamp:
            image = image.clamp(*limits(low))
        anchor = self._anchor_images(target, scaling.to_network(samples.beside), time)
        weight = (1 - time / self.schedule.steps) ** self.anchor_power
        if self.bound is not None:
            weight = weight.minimum(self.bound * (a / s).flatten() ** 2)
        return error + self.anchor_weight * (_spread(weight.float()) * (image - anchor).square()).mean()

    def measured_errors(
        self, network: torch.nn.Module, scaling: Scaling, batches: Sequence[Samples]
    ) -> tuple[tuple[float, float], ...]:
        """Times, rising, and root mean squared errors of estimates there in network numbers."""
        found = []
        for share in ERROR_TIMES:
            squares = []
            for samples in batches:
                low, target = scaling.to_network(samples.low), scaling.to_network(samples.target)
                time = torch.full((len(low),), share * self.schedule.steps, dtype=torch.float64, device=low.device)
                a, s = self._parts(time)
                x = a * target + s * self._end(low, target, samples, time, scaling)
                squares.append((self.estimate(network, x, low, time) - target).square().mean().item())
            found.append((share * self.schedule.steps, math.sqrt(sum(squares) / len(squares))))
        return tuple(found)

    def random_times(self, seeds: list[int]) -> torch.Tensor:
        """Times, float64, even over (0, T]."""
        parts = [torch.rand(1, generator=torch.Generator().manual_seed(seed ^ 1), dtype=torch.float64) for seed in seeds]
        return (1 - torch.cat(parts)) * self.schedule.steps

    def _end(
        self, low: torch.Tensor, target: torch.Tensor, samples: Samples, time: torch.Tensor, scaling: Scaling
    ) -> torch.Tensor:
        """What takes the place of noise, such that a x_0 + s noise is the diffusing image."""
        if self.way == "noise":
            return draw_noise(self.colored, low, samples.seeds)
        # Noise against a full dose of the same counts goes as the root of D - 1, else of D: shares of the way.
        clean = 1.0 if self.full else 0.0
        ends = torch.cat([target, *([] if samples.beside is None else [scaling.to_network(samples.beside)]), low], dim=1)
        doses = torch.tensor([clean, *self.beside], dtype=torch.float64, device=low.device).expand(len(low), -1)
        own = samples.drf.to(torch.float64)[:, None]
        shares = torch.sqrt((torch.minimum(doses, own) - clean) / (own - clean))
        shares = torch.cat([shares, torch.ones_like(own)], dim=1)
        at = time / self.schedule.steps
        passed = (shares <= at[:, None]) & (shares < 1)
        below = passed.sum(dim=1) - 1
        # Doses at or beyond the input's are the input itself.
        above = torch.where(shares.gather(1, (below + 1)[:, None])[:, 0] >= 1, shares.shape[1] - 1, below + 1)
        from_share, to_share = (shares.gather(1, k[:, None])[:, 0] for k in (below, above))
        part = _spread(((at - from_share) / (to_share - from_share)).float())
        rows = torch.arange(len(low), device=low.device)
        on_the_way = (1 - part) * ends[rows, below][:, None] + part * ends[rows, above][:, None]
        a, s = self._parts(time)
        return (on_the_way - a * target) / s

    def _anchor_images(self, target: torch.Tensor, beside: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """The image of each sample's interval: the target before the first anchor's time, else the last anchor passed."""
        assert self.anchors is not None
        times = torch.tensor(self.anchors.times, dtype=torch.float64, device=time.device)
        passed = (time[:, None] >= times).sum(dim=1)
        images = torch.cat([target, beside], dim=1)
        return images[torch.arange(len(time), device=time.device), passed][:, None]

    def _output(self, network: torch.nn.Module, x: torch.Tensor, low: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        a, s = self._parts(time)
        size = torch.sqrt((a * self.data_sd) ** 2 + s * s)
        shown = torch.cat([x / size, low / self.data_sd], dim=1)
        return network(shown, time_features(time / self.schedule.steps)).float()

    def _image(self, output: torch.Tensor, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        a, s = self._parts(time)
        if self.prediction == "eps":
            return (x - s * output) / a
        if self.prediction == "image":
            return self.data_sd * output
        if self.prediction == "velocity":
            return x - s * output
        skip, size = self._mix(a, s)
        return skip * x + size * output

    def _mix(self, a: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """c_skip / a and c_out of Karras et al., written for x = a x_0 + s n, finite also where a is 0."""
        squared = (a * self.data_sd) ** 2 + s * s
        return a * self.data_sd**2 / squared, s * self.data_sd / torch.sqrt(squared)

    def _parts(self, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """a and s for images of a batch, float32."""
        t = time.cpu().numpy()
        a, s = (torch.from_numpy(v).float().to(time.device) for v in (self.schedule.signal(t), self.schedule.noise(t)))
        return _spread(a), _spread(s)


def limits(low: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and largest value of an estimate, wide enough for all that low-dose images (n, 1, x, y, z) may show."""
    over = (1, 2, 3, 4)
    return 1.5 * low.amin(over, keepdim=True).clamp(max=0), 1.5 * low.amax(over, keepdim=True).clamp(min=0)


def time_features(share: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of 1000 times a share of the schedule (Vaswani et al. 2017, arXiv 1706.03762), float32 (n, 32)."""
    half = TIME_FEATURES // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64, device=share.device) / half)
    angles = 1000 * share[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def _spread(values: torch.Tensor) -> torch.Tensor:
    """One value an image, for arithmetic with (n, 1, x, y, z)."""
    return values[:, None, None, None, None]
