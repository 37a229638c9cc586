"""What a training loop is fed with, and the card of what it makes."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_recipes.errors import UsageError
from denoise.data import Batch, Ladder, Patches
from denoise.diffusion.method import Diffusion
from denoise.diffusion.noise import seed_of
from denoise.loader import batches
from denoise.methods import Method, Samples
from denoise.model_file import ModelCard
from denoise.run_folder import Place
from denoise.train_settings import TrainSettings

VALIDATION_PATCHES = 24
"""Patches a dose on which the error is watched."""


@dataclass(frozen=True)
class Feed:
    """Samples of training and validation, functions of (seed, step, place in the batch) alone but for fresh noise.

    Parameters
    ----------
    settings : TrainSettings
    patches : dict
        Of the splits "train" and "val".
    dose_sd : callable
        DRFs -> mean noise there in SUV.
    place : Place
    workers : int
        Threads that make batches ahead.
    """

    settings: TrainSettings
    patches: dict[str, Patches]
    dose_sd: Callable[[np.ndarray], np.ndarray]
    place: Place
    workers: int

    def validation(self) -> list[Samples]:
        """Batches on which the error is watched."""
        size, count = self.settings.batch, VALIDATION_PATCHES * len(self.settings.drf)
        places = [range(k, k + size) for k in range(0, count, size)]
        return [self._samples(self.patches["val"].batch(0, some), 0, some) for some in places]

    def samples(self, steps: range) -> Iterator[tuple[Samples, float]]:
        """Samples of this process for some steps, and the part of them that is fresh."""
        mine = range(self.place.rank, self.settings.batch, self.place.world)
        for step, batch in zip(steps, batches(self.patches["train"], mine, steps, self.workers), strict=True):
            yield self._samples(batch, step + 1, mine), float(batch.fresh.mean())

    def _samples(self, batch: Batch, step: int, places: Sequence[int]) -> Samples:
        low, target, condition, sd, mean_sd, drf, beside, clean = (
            torch.from_numpy(np.ascontiguousarray(a)).to(self.place.device)
            for a in (batch.low, batch.target, batch.condition, batch.sd, self.dose_sd(batch.drf), batch.drf, batch.beside,
                      batch.clean)
        )  # fmt: skip
        seeds = [seed_of(self.settings.seed, step, k) for k in places]
        further = (a if a.shape[1] else None for a in (beside, clean))
        return Samples(low, target, condition, sd, mean_sd, drf, seeds, *further)


def feed_of(
    ladders: dict[str, list[Ladder]], settings: TrainSettings, place: Place, workers: int, measure: bool,
    beside: tuple[float, ...] = (), clean: bool = False,
) -> Feed:  # fmt: skip
    """What a run is fed with.

    Parameters
    ----------
    ladders : dict
        Of the splits "train" and "val".
    settings : TrainSettings
    place : Place
    workers : int
    measure, beside, clean
        See `denoise.data.Patches`.

    Raises
    ------
    UsageError
        Settings that do not fit the data or the number of processes.
    """
    if settings.batch % place.world:
        raise UsageError(f"--batch: {settings.batch} patches cannot be shared evenly by {place.world} processes")
    patches = {
        split: Patches(
            some,
            settings.drf,
            settings.patch_size(),
            settings.shape.slices,
            settings.condition,
            settings.target,
            seed,
            measure=measure,
            weights=settings.drf_weights if split == "train" else (),
            rotate=settings.rotate,
            beside=beside,
            clean=clean,
        )
        for (split, some), seed in zip(ladders.items(), (settings.seed, settings.seed + 1), strict=True)
    }
    return Feed(settings, patches, _dose_sd(ladders["train"], settings.drf), place, workers)


def autocast(settings: TrainSettings, device: torch.device) -> torch.autocast:
    """Half of the bits where that was asked for, or where a GPU has them."""
    bf16 = settings.precision == "bf16" or (
        settings.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def average_into(averaged: torch.nn.Module, network: torch.nn.Module, ema: float, done: int) -> None:
    """Take a step's weights into their running mean; that of the first steps is short, else it would keep the start."""
    decay = min(ema, done / (done + 10))
    with torch.no_grad():
        for a, b in zip(averaged.parameters(), network.parameters(), strict=True):
            a.lerp_(b, 1 - decay)


def rate_of(step: int, steps: int) -> float:
    """Learning rate over its largest value: a rise over the first twentieth, then a cosine to a hundredth."""
    rise = max(1, steps // 20)
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def card_of(settings: TrainSettings, method: Method | Diffusion, ladders: list[Ladder], digest: str) -> ModelCard:
    """What a model of a run is and is trained for, before its first step.

    Raises
    ------
    UsageError
        Doses that the dataset lacks.
    """
    places = [(x, x.drfs.index(d), r) for x in ladders for d in settings.drf for r in range(x.realizations)
              if d in x.drfs]  # fmt: skip
    noise = [ladder.levels[d][r].relative for ladder, d, r in places]
    told = [ladder.volume(d, r).condition(settings.condition) for ladder, d, r in places]
    if not noise:
        raise UsageError(f"--drf: the dataset holds {' '.join(f'{d:g}' for d in ladders[0].drfs)}; choose among them")
    return ModelCard(
        method, settings.shape, settings.scaling, settings.target, settings.condition, settings.drf,
        (min(noise), max(noise)), (min(told), max(told)), _middle([x.spacing_mm for x in ladders]),
        tuple(sorted({x.scanner for x in ladders})), digest, 0,
    )  # fmt: skip


def _middle(spacings: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Median voxel."""
    x, y, z = np.median(spacings, axis=0).tolist()
    return x, y, z


def _dose_sd(ladders: list[Ladder], drfs: tuple[float, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """DRFs -> root mean square noise [SUV] of the volumes there, float32; between the trained doses by a power law."""
    known = [
        math.sqrt(np.mean([level.sd**2 for ladder in ladders for level in ladder.levels[ladder.drfs.index(d)]]))
        for d in sorted(drfs)
    ]
    at, logarithms = np.log(sorted(drfs)), np.log(known)
    return lambda asked: np.exp(np.interp(np.log(asked), at, logarithms)).astype(np.float32)
