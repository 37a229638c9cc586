"""Batches of training, made ahead in other processes where wanted."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from denoise.data import Batch, Patches

AHEAD = 4
"""Batches that each process makes ahead."""


class Steps(Dataset[Batch]):
    """Batch of every step: a map-style dataset, whose items are a function of (seed, step, places).

    Parameters
    ----------
    patches : Patches
    places : sequence of int
        Places of a batch that this process trains on.
    """

    def __init__(self, patches: Patches, places: Sequence[int]) -> None:
        self._patches, self._places = patches, places

    def __getitem__(self, step: int) -> Batch:
        return self._patches.batch(step, self._places)


def batches(patches: Patches, places: Sequence[int], steps: Sequence[int], workers: int) -> Iterator[Batch]:
    """Batches of some steps, in their order.

    Parameters
    ----------
    patches : Patches
    places : sequence of int
        Places of a batch that this process trains on.
    steps : sequence of int
    workers : int
        Processes; 0: made here, when asked for.
    """
    if workers == 0:
        yield from (patches.batch(step, places) for step in steps)
        return
    loader = DataLoader(
        Steps(patches, places), batch_size=None, sampler=list(steps), num_workers=workers, prefetch_factor=AHEAD,
        multiprocessing_context="spawn", collate_fn=_as_tensors,
    )  # fmt: skip
    for tensors in loader:
        yield Batch(*(np.asarray(t) for t in tensors))


def _as_tensors(batch: Any) -> tuple[torch.Tensor, ...]:
    """Tensors, which processes hand over through shared memory."""
    arrays = (batch.low, batch.target, batch.condition, batch.sd, batch.drf, batch.fresh)
    return tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)
