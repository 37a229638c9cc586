"""The training loop: one network, any regression method, resumable to the bit.

A run is a folder: `settings.json`, `best.safetensors` and `last.safetensors` (averaged weights), `state.pt` (what resuming
needs), `log.csv`, TensorBoard files. Every random choice is a function of (seed, step, place in the batch), so that a
resumed run and one on several devices see the same data.
"""

import contextlib
import csv
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import distributed

from data_recipes.errors import DataError, UsageError
from denoise.data import Batch, Condition, Ladder, Patches, Target, read_split
from denoise.diffusion.method import TIME_FEATURES, Diffusion, DiffusionName
from denoise.diffusion.noise import seed_of
from denoise.diffusion.settings import DiffusionSettings, made, with_usual_doses
from denoise.live import LiveLadder, with_live
from denoise.loader import batches
from denoise.methods import Loss, Method, MethodName, Samples, Variant
from denoise.model_file import ModelCard, save_model
from denoise.networks.unet import UNet, UNetShape, placed
from denoise.scaling import Scaling, Transform
from petsim.cache.store import make_folder, read_index, sha256_of, whole_or_nothing

Precision = Literal["auto", "fp32", "bf16"]
Dimensions = Literal["3", "2.5", "2"]

VALIDATION_PATCHES = 24
"""Patches a dose on which the error is watched."""

ERROR_BATCHES = 1
"""Validation batches on which the errors of a generative model's estimates are measured at each time."""

Progress = Callable[[int, float], None]
"""Told (steps done, latest error)."""


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

    def __post_init__(self) -> None:
        for name in ("patch", "batch", "max_steps", "learning_rate", "clip_norm", "validate_every", "patience"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')}: must be positive, got {getattr(self, name):g}")
        own = None if self.diffusion is None else self.diffusion.name
        if own != (self.method if self.method in get_args(DiffusionName) else None):
            raise UsageError(f"{self.method}: give it settings of its own kind")
        if self.diffusion is not None and self.dims != "3":
            raise UsageError(f"--dims {self.dims}: {self.method} is three-dimensional; leave it out")
        if self.seed < 0:
            raise UsageError(f"--seed: must be 0 or more, got {self.seed}")
        if not 0 <= self.ema < 1:
            raise UsageError(f"--ema: must be at least 0 and below 1, got {self.ema:g}")
        if not self.channels or any(n < 1 for n in self.channels):
            raise UsageError("--channels: give positive numbers, one a level, such as 16 32 64")
        if self.patch % self.shape.multiple[0]:
            raise UsageError(
                f"--patch: {self.patch} is no multiple of {self.shape.multiple[0]}, which {len(self.channels)} levels need"
            )

    @property
    def shape(self) -> UNetShape:
        """The network's."""
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
    def scaling(self) -> Scaling:
        """Between SUV and network numbers."""
        return Scaling(self.transform, self.scale_suv, self.clip_suv)

    def patch_size(self) -> tuple[int, int, int]:
        """Voxels of a patch."""
        return self.patch, self.patch, self.patch if self.dims == "3" else 1


@dataclass(frozen=True)
class _Place:
    """Which part of a distributed run this process is."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextlib.contextmanager
def _place(device: str) -> Iterator[_Place]:
    """Join the processes that torchrun started, if it did."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if cuda and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is seen by torch; use --device cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(f"cuda:{local}" if cuda else "cpu")
    if world == 1:
        yield _Place(0, 1, place)
        return
    if cuda:
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield _Place(distributed.get_rank(), world, place)
    finally:
        distributed.destroy_process_group()


def train(
    data: Path, run: Path, settings: TrainSettings, device: str = "auto", progress: Progress = lambda steps, error: None,
    live: Path | None = None, workers: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Train a network, or go on where an interrupted run of the same settings stopped.

    Parameters
    ----------
    data : Path
        Folder of a dataset with the splits "train" and "val".
    run : Path
        Folder of the run.
    settings : TrainSettings
        The method "dose-specific" trains one network for each of `drf`, in a folder for each.
    device : str
        "auto", "cpu" or "cuda".
    progress : callable
    live : Path, optional
        Folder of a cache of fresh realizations of the training subjects, which is being filled, or will be.
    workers : int
        Threads that make batches ahead.

    Returns
    -------
    dict
        JSON types: steps, best validation error, folder names.

    Raises
    ------
    DataError, UsageError
        Data or settings that do not fit, or a run of other settings in the folder.
    """
    if settings.diffusion is not None and live is not None:
        raise UsageError(f"--live: {settings.method} needs several doses of one realization; leave it out")
    ladders = {split: read_split(data, split, settings.target) for split in ("train", "val")}
    settings = with_doses(data, settings)
    drfs = settings.drf
    index = read_index(data)
    digest = sha256_of([index["configuration_sha256"], [[s["name"], s["sha256"], s["split"]] for s in index["subjects"]]])
    if live is not None:
        ladders["train"] = with_live(ladders["train"], live, index["configuration_sha256"])
    with _place(device) as place:
        if settings.method != "dose-specific":
            return _train_one(ladders, run, settings, digest, place, progress, workers)
        results = {}
        # All folders from the start, so that a run that was interrupted is seen to lack doses.
        for drf in drfs:
            make_folder(run / f"drf-{drf:g}")
        for k, drf in enumerate(drfs):

            def part(steps: int, error: float, first: int = k * settings.max_steps) -> None:
                progress(first + steps, error)

            results[f"drf-{drf:g}"] = _train_one(
                ladders, run / f"drf-{drf:g}", replace(settings, drf=(drf,), drf_weights=()), digest, place, part, workers
            )
        return results


def with_doses(data: Path, settings: TrainSettings) -> TrainSettings:
    """Settings with the inputs' doses where none are named: all below full dose; of "map-diff" one."""
    own = tuple(read_index(data)["subjects"][0]["drf"])
    if settings.diffusion is None:
        return replace(settings, drf=settings.drf or tuple(d for d in own if d > 1))
    inputs, generative = with_usual_doses(settings.diffusion, own, settings.drf)
    return replace(settings, drf=inputs, diffusion=generative)


def _train_one(
    ladders: dict[str, list[Ladder]], run: Path, settings: TrainSettings, digest: str, place: _Place, progress: Progress,
    workers: int,
) -> dict[str, Any]:  # fmt: skip
    drfs, scaling = settings.drf, settings.scaling
    method = _method(settings, ladders["train"])
    patches = {
        split: Patches(
            some,
            drfs,
            settings.patch_size(),
            settings.shape.slices,
            settings.condition,
            settings.target,
            seed,
            measure=method.measures,
            weights=settings.drf_weights if split == "train" else (),
            rotate=settings.rotate,
            beside=method.beside if isinstance(method, Diffusion) else (),
        )
        for (split, some), seed in zip(ladders.items(), (settings.seed, settings.seed + 1), strict=True)
    }
    if settings.batch % place.world:
        raise UsageError(f"--batch: {settings.batch} patches cannot be shared evenly by {place.world} processes")
    card = _card(settings, method, ladders["train"], digest)
    torch.manual_seed(settings.seed)
    network = placed(UNet(settings.shape), place.device)
    averaged = placed(UNet(settings.shape), place.device)
    averaged.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    state = _open_run(run, settings, digest, any(isinstance(x, LiveLadder) for x in ladders["train"]), place)
    done, best, waited = 0, math.inf, 0
    if state is not None:
        network.load_state_dict(state["network"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        done, best, waited = state["step"], state["best"], state["waited"]
    model: torch.nn.Module = network
    if place.world > 1:
        model = torch.nn.parallel.DistributedDataParallel(network)
    dose_sd = _dose_sd(ladders["train"], drfs)
    mine = range(place.rank, settings.batch, place.world)
    bf16 = settings.precision == "bf16" or (
        settings.precision == "auto" and place.device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    cast = torch.autocast(place.device.type, torch.bfloat16, enabled=bf16)

    def samples_of(batch: Batch, step: int, places: Sequence[int]) -> Samples:
        low, target, condition, sd, mean_sd, drf, beside = (
            torch.from_numpy(np.ascontiguousarray(a)).to(place.device)
            for a in (batch.low, batch.target, batch.condition, batch.sd, dose_sd(batch.drf), batch.drf, batch.beside)
        )
        seeds = [seed_of(settings.seed, step, k) for k in places]
        return Samples(low, target, condition, sd, mean_sd, drf, seeds, beside if beside.shape[1] else None)

    def error_of(net: torch.nn.Module, samples: Samples) -> torch.Tensor:
        with cast:
            return method.training_error(net, scaling, samples)

    validation = [
        samples_of(patches["val"].batch(0, range(k, k + settings.batch)), 0, range(k, k + settings.batch))
        for k in range(0, VALIDATION_PATCHES * len(drfs), settings.batch)
    ]
    source = batches(patches["train"], mine, range(done, settings.max_steps), workers)
    fresh: list[float] = []
    with _logs(run, done, place) as log:
        while done < settings.max_steps and waited < settings.patience:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _rate(done, settings.max_steps)
            optimizer.zero_grad(set_to_none=True)
            batch = next(source)
            error = error_of(model, samples_of(batch, done + 1, mine))
            fresh.append(float(batch.fresh.mean()))
            if not torch.isfinite(error):
                raise DataError(f"training diverged at step {done}; lower --learning-rate")
            error.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
            optimizer.step()
            done += 1
            with torch.no_grad():
                # The average of the first steps is short, else it would hold on to the start.
                decay = min(settings.ema, done / (done + 10))
                for a, b in zip(averaged.parameters(), network.parameters(), strict=True):
                    a.lerp_(b, 1 - decay)
            progress(done, error.item())
            if done % settings.validate_every and done != settings.max_steps:
                continue
            with torch.inference_mode():
                watched = float(np.mean([error_of(averaged, b).item() for b in validation]))
            better = watched < best
            best, waited = (watched, 0) if better else (best, waited + 1)
            if place.is_first:
                log(done, error.item(), watched, float(np.mean(fresh)))
                fresh.clear()
                finished = replace(card, steps=done, method=_with_errors(card.method, averaged, scaling, validation))
                for name in ("best", "last") if better else ("last",):
                    save_model(run / f"{name}.safetensors", averaged, finished)
                _save_state(run, network, averaged, optimizer, done, best, waited)
    return {
        "run": run.name,
        "steps": done,
        "validation_error": best,
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def _rate(step: int, steps: int) -> float:
    """Learning rate over its largest value: a rise over the first twentieth, then a cosine to a hundredth."""
    rise = max(1, steps // 20)
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _dose_sd(ladders: list[Ladder], drfs: tuple[float, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """DRFs -> root mean square noise [SUV] of the volumes there, float32; between the trained doses by a power law."""
    known = [
        math.sqrt(np.mean([level.sd**2 for ladder in ladders for level in ladder.levels[ladder.drfs.index(d)]]))
        for d in sorted(drfs)
    ]
    at, logarithms = np.log(sorted(drfs)), np.log(known)
    return lambda asked: np.exp(np.interp(np.log(asked), at, logarithms)).astype(np.float32)


def _method(settings: TrainSettings, ladders: list[Ladder]) -> Method | Diffusion:
    if settings.diffusion is None:
        return settings.regression
    return made(
        settings.diffusion, ladders, settings.drf, settings.target, settings.scaling, settings.seed,
    )  # fmt: skip


def _with_errors(
    method: Method | Diffusion, network: UNet, scaling: Scaling, validation: Sequence[Samples]
) -> Method | Diffusion:
    """A generative method with the errors of its estimates, which its sampler needs."""
    if not isinstance(method, Diffusion):
        return method
    with torch.inference_mode():
        return replace(method, errors=method.measured_errors(network, scaling, validation[:ERROR_BATCHES]))


def _card(settings: TrainSettings, method: Method | Diffusion, ladders: list[Ladder], digest: str) -> ModelCard:
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


def _open_run(run: Path, settings: TrainSettings, digest: str, fresh: bool, place: _Place) -> dict[str, Any] | None:
    """State of a run to go on with, None for a new one."""
    path, values = run / "settings.json", {**asdict(settings), "data_sha256": digest}
    if fresh:
        values["fresh_realizations"] = True
    text = json.dumps(values, indent=1, sort_keys=True) + "\n"
    # A setting that did not exist when the run began meant what its default means.
    defaults = json.loads(json.dumps(asdict(TrainSettings())))
    try:
        if path.exists():
            if _defaulted(path, defaults) != json.loads(text):
                raise DataError(f"--out {run.name}: holds a run of other settings or data; choose another folder")
        elif place.is_first:
            make_folder(run)
            with whole_or_nothing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"--out {run.name}: {error.strerror}; choose a folder that can be written") from None
    state = run / "state.pt"
    if place.world > 1:
        distributed.barrier()
    if not state.exists():
        return None
    try:
        return torch.load(state, map_location=place.device, weights_only=True)
    except Exception:  # torch passes on whatever its reader meets in a damaged file
        raise DataError(f"{run.name}/state.pt: damaged; remove that file to begin this run anew") from None


def _defaulted(path: Path, defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run; damaged ones are nobody's."""
    try:
        return defaults | json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return {}


def _save_state(
    run: Path, network: UNet, averaged: UNet, optimizer: torch.optim.Optimizer, step: int, best: float, waited: int
) -> None:
    state = {"network": network.state_dict(), "averaged": averaged.state_dict(), "optimizer": optimizer.state_dict(),
             "step": step, "best": best, "waited": waited}  # fmt: skip
    with whole_or_nothing(run / "state.pt") as temporary:
        torch.save(state, temporary)


@contextlib.contextmanager
def _logs(run: Path, done: int, place: _Place) -> Iterator[Callable[[int, float, float, float], None]]:
    """Give a function that logs to CSV, and to TensorBoard where installed.

    It is told step, training error, validation error, and the part of the samples since the last time that were fresh.
    """
    if not place.is_first:
        yield lambda step, error, watched, fresh: None
        return
    path = run / "log.csv"
    rows = []
    if path.exists():
        with path.open(newline="") as f:
            rows = [row for row in csv.reader(f) if row and row[0].isdigit() and int(row[0]) <= done]
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        board = None
    else:
        if done == 0:
            shutil.rmtree(run / "tensorboard", ignore_errors=True)
        board = SummaryWriter(str(run / "tensorboard"), purge_step=done)
    with path.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerows([["step", "error", "validation_error", "fresh"], *rows])
        f.flush()

        def log(step: int, error: float, watched: float, fresh: float) -> None:
            writer.writerow([step, error, watched, fresh])
            f.flush()
            if board is not None:
                board.add_scalar("error", error, step)
                board.add_scalar("validation error", watched, step)
                board.add_scalar("fresh", fresh, step)

        yield log
    if board is not None:
        board.close()
