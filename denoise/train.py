"""The training loop: one network, any regression method, resumable to the bit.

A run is a folder: `settings.json`, `best.safetensors` and `last.safetensors` (averaged weights), `state.pt` (what resuming
needs), `log.csv`, TensorBoard files. Every random choice is a function of (seed, step, place in the batch), so that a
resumed run and one on several devices see the same data.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_recipes.errors import DataError, UsageError
from denoise.data import Ladder, check_told, read_split
from denoise.diffusion.method import Diffusion
from denoise.diffusion.settings import made, with_usual_doses
from denoise.feed import autocast, average_into, card_of, feed_of, rate_of
from denoise.live import with_live
from denoise.methods import Method, Samples
from denoise.model_file import save_model
from denoise.networks.made import Network, made_network
from denoise.networks.unet import placed
from denoise.run_folder import Place, Progress, logs, open_run, place_of, save_state
from denoise.scaling import Scaling
from denoise.train_adversarial import train_adversarial
from denoise.train_settings import TrainSettings
from petsim.cache.store import make_folder, read_index, sha256_of

ERROR_BATCHES = 1
"""Validation batches on which the errors of a generative model's estimates are measured at each time."""


def train(
    data: Path, run: Path, settings: TrainSettings, device: str = "auto", progress: Progress = lambda steps, error: None,
    live: Path | None = None, workers: int = 0, pretrained: Path | None = None,
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
    pretrained : Path, optional
        Model file from which the second stage of adversarial training starts; the first is left out.

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
    if pretrained is not None and settings.adversarial is None:
        raise UsageError(f"--pretrained: {settings.method} has one stage alone; leave it out")
    ladders = {split: read_split(data, split, settings.target) for split in ("train", "val")}
    for some in ladders.values():
        check_told(some, settings.condition)
    settings = with_doses(data, settings)
    drfs = settings.drf
    index = read_index(data)
    subjects = [[s["name"], s["sha256"], s["split"]] for s in index["subjects"]]
    given: dict[str, Any] = {"data_sha256": sha256_of([index["configuration_sha256"], subjects])}
    if live is not None:
        ladders["train"] = with_live(ladders["train"], live, index["configuration_sha256"])
        given["fresh_realizations"] = True
    with place_of(device) as place:
        if settings.adversarial is not None:
            files = [data / s["file"] for s in index["subjects"] if s["split"] == "train"]
            return train_adversarial(ladders, run, settings, given, place, progress, workers, files, pretrained)
        if settings.method != "dose-specific":
            return _train_one(ladders, run, settings, given, place, progress, workers)
        results = {}
        # All folders from the start, so that a run that was interrupted is seen to lack doses.
        for drf in drfs:
            make_folder(run / f"drf-{drf:g}")
        for k, drf in enumerate(drfs):

            def part(steps: int, error: float, first: int = k * settings.max_steps) -> None:
                progress(first + steps, error)

            results[f"drf-{drf:g}"] = _train_one(
                ladders, run / f"drf-{drf:g}", replace(settings, drf=(drf,), drf_weights=()), given, place, part, workers
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
    ladders: dict[str, list[Ladder]], run: Path, settings: TrainSettings, given: dict[str, Any], place: Place,
    progress: Progress, workers: int,
) -> dict[str, Any]:  # fmt: skip
    scaling = settings.scaling
    method = _method(settings, ladders["train"])
    beside = method.beside if isinstance(method, Diffusion) else ()
    feed = feed_of(ladders, settings, place, workers, method.measures, beside)
    card = card_of(settings, method, ladders["train"], given["data_sha256"])
    torch.manual_seed(settings.seed)
    network, averaged = (placed(made_network(settings.shape), place.device) for _ in range(2))
    averaged.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    state = open_run(run, settings, given, place)
    done, best, waited = 0, math.inf, 0
    if state is not None:
        network.load_state_dict(state["network"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        done, best, waited = state["step"], state["best"], state["waited"]
    model: torch.nn.Module = network
    if place.world > 1:
        model = torch.nn.parallel.DistributedDataParallel(network)
    cast = autocast(settings, place.device)

    def error_of(net: torch.nn.Module, samples: Samples) -> torch.Tensor:
        with cast:
            return method.training_error(net, scaling, samples)

    validation = feed.validation()
    source = feed.samples(range(done, settings.max_steps))
    fresh: list[float] = []
    with logs(run, done, place, ("error", "validation_error", "fresh")) as log:
        while done < settings.max_steps and waited < settings.patience:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate_of(done, settings.max_steps)
            optimizer.zero_grad(set_to_none=True)
            samples, part = next(source)
            error = error_of(model, samples)
            fresh.append(part)
            if not torch.isfinite(error):
                raise DataError(f"training diverged at step {done}; lower --learning-rate")
            error.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
            optimizer.step()
            done += 1
            average_into(averaged, network, settings.ema, done)
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
                save_state(run, {"network": network.state_dict(), "averaged": averaged.state_dict(),
                                 "optimizer": optimizer.state_dict(), "step": done, "best": best,
                                 "waited": waited})  # fmt: skip
    return {
        "run": run.name,
        "steps": done,
        "validation_error": best,
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def _method(settings: TrainSettings, ladders: list[Ladder]) -> Method | Diffusion:
    if settings.diffusion is None:
        return settings.regression
    return made(
        settings.diffusion, ladders, settings.drf, settings.target, settings.scaling, settings.seed,
    )  # fmt: skip


def _with_errors(
    method: Method | Diffusion, network: Network, scaling: Scaling, validation: Sequence[Samples]
) -> Method | Diffusion:
    """A generative method with the errors of its estimates, which its sampler needs."""
    if not isinstance(method, Diffusion):
        return method
    with torch.inference_mode():
        return replace(method, errors=method.measured_errors(network, scaling, validation[:ERROR_BATCHES]))
