"""Batches of training, made ahead by threads where wanted, and as a torch dataset for training loops of one's own."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import torch
from torch.utils.data import Dataset

from denoise.data import Batch, Ladder, Patches

AHEAD = 4
"""Batches that each thread makes ahead."""


def batches(patches: Patches, places: Sequence[int], steps: Sequence[int], workers: int) -> Iterator[Batch]:
    """Batches of some steps, in their order.

    Reading, converting and copying release Python's lock, so that threads do what processes would, and share open files.

    Parameters
    ----------
    patches : Patches
    places : sequence of int
        Places of a batch that this process trains on.
    steps : sequence of int
    workers : int
        Threads; 0: batches are made when they are asked for.
    """
    if workers == 0:
        yield from (patches.batch(step, places) for step in steps)
        return
    left = iter(steps)
    pool = ThreadPoolExecutor(workers)
    try:
        made: deque[Future[Batch]] = deque(pool.submit(patches.batch, s, places) for s in islice(left, AHEAD * workers))
        while made:
            batch = made.popleft().result()
            made.extend(pool.submit(patches.batch, s, places) for s in islice(left, 1))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class PatchDataset(Dataset[dict[str, torch.Tensor]]):
    """Samples for a `torch.utils.data.DataLoader`, as dictionaries with the keys that MONAI's transforms expect.

    A sample is a function of (seed, number) alone, whatever loads it, but for ladders that draw from a cache. May be handed
    to worker processes, which open files of their own.

    Parameters
    ----------
    patches : Patches
    length : int
        Samples of an epoch.
    """

    def __init__(self, patches: Patches, length: int) -> None:
        self._patches, self._length = patches, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """`image` and `label`, float32 (slices, x, y, z) and (1, x, y, z) in SUV; `condition`, `noise_sd` and `drf`."""
        if not 0 <= number < self._length:
            raise IndexError(number)
        batch = self._patches.batch(number, (0,))
        return {
            "image": torch.from_numpy(batch.low[0]),
            "label": torch.from_numpy(batch.target[0]),
            "condition": torch.tensor(batch.condition[0]),
            "noise_sd": torch.tensor(batch.sd[0]),
            "drf": torch.tensor(batch.drf[0], dtype=torch.float32),
        }


class VolumeDataset(Dataset[dict[str, torch.Tensor]]):
    """Whole volumes with their noise-free or full-dose references, as dictionaries like those of `PatchDataset`.

    Parameters
    ----------
    ladders : sequence of Ladder
    drfs : tuple of float
    """

    def __init__(self, ladders: Sequence[Ladder], drfs: tuple[float, ...]) -> None:
        self._places = [
            (ladder, ladder.drfs.index(drf), r) for ladder in ladders for drf in drfs for r in range(ladder.realizations)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """`image` and `label`, float32 (1, x, y, z) in SUV; `noise_sd` and `drf`."""
        ladder, dose, realization = self._places[number]
        return {
            "image": torch.from_numpy(ladder.image(dose, realization)[None]),
            "label": torch.from_numpy(ladder.reference()[None]),
            "noise_sd": torch.tensor(ladder.levels[dose][realization].sd, dtype=torch.float32),
            "drf": torch.tensor(ladder.drfs[dose], dtype=torch.float32),
        }


class PairDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The same samples as deepinv's trainers take them: (what is wanted, what is measured).

    Parameters
    ----------
    samples : PatchDataset or VolumeDataset
    """

    def __init__(self, samples: PatchDataset | VolumeDataset) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        sample = self._samples[number]
        return sample["label"], sample["image"]
