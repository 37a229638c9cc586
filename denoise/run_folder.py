"""The folder of a run: its settings, the state from which it goes on, and its logs; and the processes that share a run."""

import contextlib
import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from data_recipes.errors import DataError, UsageError
from denoise.train_settings import TrainSettings
from petsim.cache.store import make_folder, whole_or_nothing

Progress = Callable[[int, float], None]
"""Told (steps done, latest error)."""


@dataclass(frozen=True)
class Place:
    """Which part of a distributed run this process is."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextlib.contextmanager
def place_of(device: str) -> Iterator[Place]:
    """Join the processes that torchrun started, if it did."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if cuda and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is seen by torch; use --device cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(f"cuda:{local}" if cuda else "cpu")
    if world == 1:
        yield Place(0, 1, place)
        return
    if cuda:
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Place(distributed.get_rank(), world, place)
    finally:
        distributed.destroy_process_group()


def open_run(run: Path, settings: TrainSettings, given: dict[str, Any], place: Place) -> dict[str, Any] | None:
    """State of a run to go on with, None for a new one.

    Parameters
    ----------
    run : Path
    settings : TrainSettings
    given : dict
        What else the run depends on, JSON types.
    place : Place

    Raises
    ------
    DataError
        A run of other settings or data, a damaged one, or a folder that cannot be written.
    """
    path, values = run / "settings.json", {**asdict(settings), **given}
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


def save_state(run: Path, state: dict[str, Any]) -> None:
    """Keep what `open_run` gives."""
    with whole_or_nothing(run / "state.pt") as temporary:
        torch.save(state, temporary)


@contextlib.contextmanager
def logs(run: Path, done: int, place: Place, columns: tuple[str, ...]) -> Iterator[Callable[..., None]]:
    """Give a function that logs a step and a number for each column to CSV, and to TensorBoard where installed."""
    if not place.is_first:
        yield lambda step, *numbers: None
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
        writer.writerows([["step", *columns], *rows])
        f.flush()

        def log(step: int, *numbers: float) -> None:
            writer.writerow([step, *numbers])
            f.flush()
            if board is not None:
                for name, number in zip(columns, numbers, strict=True):
                    board.add_scalar(name.replace("_", " "), number, step)

        yield log
    if board is not None:
        board.close()
