"""Images from a diffusion or flow model: a whole volume is sampled at once, so that windows share noise and show no seam."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Literal, get_args

import numpy as np
import torch

from data_recipes.errors import UsageError
from denoise.diffusion.method import Diffusion, limits
from denoise.diffusion.noise import draw_noise, seed_of
from denoise.diffusion.samplers import SamplerName, sample, spread_times
from denoise.model_file import ModelCard
from denoise.networks.made import Network
from denoise.windows import in_windows

Start = Literal["noise", "input"]

USUAL: dict[str, tuple[SamplerName, int]] = {"ddpm": ("ddim", 25), "map-diff": ("ddim", 25), "flow": ("ddim", 3)}
"""Sampler and number of times of each method where none are asked for."""

Correct = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Sampling:
    """How a generative model is sampled; others leave it alone.

    Parameters
    ----------
    sampler : str, optional
        See `denoise.diffusion.samplers.sample`; None: the usual one of the method.
    steps : int, optional
        Times at which the image is estimated; None: the usual number.
    start : str
        "noise", or "input": the low-dose image with noise added, at the time that its own noise stands for.
    samples : int
        Images that are averaged; with two or more their spread is given too.
    seed : int
    anchors : bool
        Also give the estimates at the anchors' times.
    """

    sampler: SamplerName | None = None
    steps: int | None = None
    start: Start = "noise"
    samples: int = 1
    seed: int = 0
    anchors: bool = False

    def __post_init__(self) -> None:
        if self.sampler is not None and self.sampler not in get_args(SamplerName):
            raise UsageError(f"--sampler {self.sampler}: choose among {', '.join(get_args(SamplerName))}")
        for name in ("steps", "samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"--{name}: must be 1 or more, got {getattr(self, name)}")
        if self.seed < 0:
            raise UsageError(f"--seed: must be 0 or more, got {self.seed}")

    def usual(self, method: Diffusion) -> tuple[SamplerName, int]:
        """Sampler and number of times for a method."""
        sampler, steps = USUAL[method.name]
        return self.sampler or sampler, self.steps or steps


@dataclass(frozen=True)
class Generated:
    """Images in SUV.

    Parameters
    ----------
    image : ndarray
        float32 (x, y, z): mean of the samples.
    spread : ndarray, optional
        Their standard deviation.
    anchors : dict
        DRF -> estimate at its anchor's time, mean of the samples.
    """

    image: np.ndarray
    spread: np.ndarray | None
    anchors: dict[float, np.ndarray]


def generate(
    network: Network,
    card: ModelCard,
    image: np.ndarray,
    relative_noise: float,
    sampling: Sampling,
    correct: Correct | None = None,
) -> Generated:
    """Sample a model.

    Parameters
    ----------
    network, card
    image : ndarray
        float32 (x, y, z), the low-dose image in SUV.
    relative_noise : float
        Its measured noise level.
    sampling : Sampling
    correct : callable
        Estimate in SUV -> the same made to agree with data, after each evaluation; see `denoise.diffusion.consistency`.

    Raises
    ------
    UsageError
        Anchors or a start that the model knows nothing of.
    """
    method, device = card.method, next(network.parameters()).device
    assert isinstance(method, Diffusion)
    schedule, scaling = method.schedule, card.scaling
    low = scaling.numbers_of(image)
    guide = torch.from_numpy(low)[None, None]
    least, most = (v.item() for v in limits(guide))
    sampler, steps = sampling.usual(method)
    if sampler == "ancestral" and method.way == "ladder":
        raise UsageError("--sampler ancestral: adds noise that a flow along the dose ladder has not; use ddim, dpm or heun")
    if sampling.anchors and method.anchors is None:
        raise UsageError("--save-anchors: this model has no anchors; train with --anchors")
    anchors = method.anchors if sampling.anchors else None
    start = _start_time(method, relative_noise) if sampling.start == "input" else float(schedule.steps)
    times = spread_times(schedule, steps, start, () if anchors is None else anchors.times)
    errors = np.array(method.errors).reshape(-1, 2)

    def estimate(x: np.ndarray, time: float) -> np.ndarray:
        def run(shown: torch.Tensor) -> torch.Tensor:
            when = torch.full((len(shown),), time, dtype=torch.float64, device=device)
            return method.estimate(network, shown[:, :1], shown[:, 1:], when)

        out = np.clip(in_windows(run, card.shape, np.stack([x, low]), device), least, most)
        if correct is None:
            return out
        return scaling.numbers_of(correct(scaling.suv_of(out)))

    total, squares = np.zeros(image.shape), np.zeros(image.shape)
    at_anchors: dict[float, np.ndarray] = {}
    for number in range(sampling.samples):
        drawn = count()

        def draw(number: int = number, drawn: "count[int]" = drawn) -> np.ndarray:
            return draw_noise(method.colored, guide, [seed_of(sampling.seed, number, next(drawn))])[0, 0].numpy()

        def seen(time: float, found: np.ndarray) -> None:
            if anchors is not None and time in anchors.times:
                drf = anchors.drfs[anchors.times.index(time)]
                suv = scaling.suv_of(found) / np.float32(sampling.samples)
                at_anchors[drf] = at_anchors[drf] + suv if drf in at_anchors else suv

        x = _at_start(method, low, start, sampling.start, draw)
        out = sample(estimate, schedule, times, x, draw, sampler, seen,
                     lambda t: float(np.interp(t, errors[:, 0], errors[:, 1])) if len(errors) else 0.0)  # fmt: skip
        suv = scaling.suv_of(out).astype(np.float64)
        total += suv
        squares += suv * suv
    mean = total / sampling.samples
    spread = None
    if sampling.samples > 1:
        spread = np.sqrt(np.maximum(squares - sampling.samples * mean**2, 0) / (sampling.samples - 1)).astype(np.float32)
    return Generated(mean.astype(np.float32), spread, at_anchors)


def _at_start(method: Diffusion, low: np.ndarray, time: float, start: Start, draw: Callable[[], np.ndarray]) -> np.ndarray:
    a, s = float(method.schedule.signal(time)), float(method.schedule.noise(time))
    if method.way == "ladder":
        return low
    return np.float32(s) * draw() + (np.float32(a) * low if start == "input" else 0)


def _start_time(method: Diffusion, relative_noise: float) -> float:
    """Time that the noise of an input stands for, between and beyond those of the training doses by a power law."""
    if method.way == "ladder":
        raise UsageError("--start input: this model starts from the input already; leave it out")
    if not method.starts:
        raise UsageError("--start input: this model does not know the time of its inputs; train with --anchors")
    noise, ratio = np.log([level for level, _ in method.starts]), np.log([r for _, r in method.starts])
    at = np.log(relative_noise)
    slope = np.polyfit(noise, ratio, 1) if len(noise) > 1 else np.array([1.0, ratio[0] - noise[0]])
    inside = noise.min() <= at <= noise.max()
    order = np.argsort(noise)
    found = np.interp(at, noise[order], ratio[order]) if inside else np.polyval(slope, at)
    return float(method.schedule.time_of(np.exp(found)))
