"""How fast do patches reach the trainer, against a plain memory map of the same volumes?

    python -m benchmarks.loader FOLDER [--rounds 5] [--seconds 2]

Generated patients on the Quadra, `fast` with voxels of 4 mm, are made in FOLDER; their images are copied into one C-order
float16 array a subject. Both are read by the same code (`denoise.data.Patches` and `denoise.loader.batches`: input and
target, converted to float32, flipped, stacked), so that only the storage differs. Rates in patches a second, alternating
between both in every round; the ratio is that of the medians. Cold: the files are dropped from the page cache before each
round, of which the first patches count. Producer: `petsim serve-cache` makes fresh realizations meanwhile, which ours reads.
"""

import argparse
import os
import pickle
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import emit
from data_recipes.phantoms.families import REFERENCE
from denoise.data import Ladder, Patches, read_ladder
from denoise.live import with_live
from denoise.loader import batches
from petsim.cache.live import read_note
from petsim.cache.mapped import MappedImages
from petsim.cache.store import read_index
from petsim.dataset import Request, make_dataset
from petsim.producer import STATE
from petsim.serve import ServeOptions, start
from petsim.settings import SimulationSettings

SUBJECTS, BATCH, SIZES, WORKERS, COLD_PATCHES = 6, 4, (64, 96), (0, 1, 2), 96
SETTINGS = SimulationSettings(scanner="biograph_vision_quadra", preset="fast", voxel_mm=4.0, drf=(4.0, 20.0, 100.0),
                              duration_s=60.0)  # fmt: skip


class RawImages:
    """One C-order float16 array on disk, read through `numpy.memmap`: what a user would write by hand."""

    def __init__(self, path: Path, images: MappedImages) -> None:
        self.path, self.shape, self.scale = path, images.shape, np.float32(images.scale)
        if not path.exists():
            scaled = [images.volume(*index) / self.scale for index in np.ndindex(*self.shape[:-3])]
            np.concatenate([s.ravel() for s in scaled]).astype(np.float16).tofile(path)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_values"}

    def patch(self, index: tuple[int, ...], corner: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
        """As `MappedImages.patch`."""
        if "_values" not in self.__dict__:
            self._values = np.memmap(self.path, np.float16, "r", shape=self.shape)
        place = tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))
        out = self._values[(*index, *place)].astype(np.float32)
        out *= self.scale
        return out


def raw(folder: Path, ladder: Ladder) -> Any:
    """The same subject from plain arrays."""
    assert ladder.noise_free is not None
    images = RawImages(folder / f"{ladder.name}.recon", ladder.images)
    clean = RawImages(folder / f"{ladder.name}.noise_free", ladder.noise_free)
    return replace(ladder, images=images, noise_free=clean)  # pyright: ignore[reportArgumentType]


def drop(paths: Sequence[Path]) -> None:
    """Take files out of the page cache."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def rate(ladders: Sequence[Ladder], case: dict[str, Any], first: int, seconds: float) -> float:
    """Patches a second."""
    size, workers = case["patch"], case["workers"]
    patches = Patches(ladders, SETTINGS.drf, (size, size, size), 1, "drf", "noise-free", 0, measure=False)
    stream: Any = batches(patches, range(BATCH), range(first, first + 1_000_000), workers)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds and (case["cache"] == "warm" or count < COLD_PATCHES):
        count += len(next(stream).low)
    elapsed = time.perf_counter() - started
    stream.close()
    return count / elapsed


def compare(
    kinds: dict[str, Sequence[Ladder]], files: dict[str, list[Path]], case: dict[str, Any], rounds: int, seconds: float
) -> dict[str, Any]:
    """Rates of one case, alternating."""
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for k in range(rounds):
        for name in list(kinds)[:: 1 if k % 2 else -1]:
            ladders = kinds[name]
            if case["cache"] == "cold":
                # What is mapped is not dropped: with copies as fresh as those of new processes.
                ladders = pickle.loads(pickle.dumps(ladders))
                drop(files[name])
            found[name].append(rate(ladders, case, 1_000_000 * k, seconds))
    medians = {name: float(np.median(values)) for name, values in found.items()}
    each = sorted(a / b for a, b in zip(found["petsim"], found["memmap"], strict=True))
    row = {**case, **{f"{k}_patches_per_s": round(v, 1) for k, v in medians.items()},
           "ratio": round(medians["petsim"] / medians["memmap"], 3),
           "ratio_range": [round(each[0], 3), round(each[-1], 3)]}  # fmt: skip
    print(row, file=sys.stderr, flush=True)
    return row


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    data = args.folder / "data"
    make_dataset(Request(str(data), subjects=SUBJECTS, settings=SETTINGS, family=REFERENCE.name))
    (args.folder / "raw").mkdir(exist_ok=True)
    index = read_index(data)
    read = [read_ladder(data / s["file"]) for s in index["subjects"] if s["split"] == "train"]
    # Copies hold no maps.
    plain = pickle.loads(pickle.dumps([raw(args.folder / "raw", ladder) for ladder in read]))
    ladders = pickle.loads(pickle.dumps(read))
    del read
    files = {"petsim": [data / f"{x.name}.h5" for x in ladders], "memmap": sorted((args.folder / "raw").iterdir())}
    rows = []
    # Cold comes first: what a process has mapped stays in the page cache.
    for cache in ("cold", "warm"):
        for size in SIZES:
            for workers in WORKERS:
                case = {"cache": cache, "producer": False, "patch": size, "workers": workers}
                rows.append(compare({"petsim": ladders, "memmap": plain}, files, case, args.rounds, args.seconds))
    options = ServeOptions(str(data), str(args.folder / "live"))
    producer = start(options)
    try:
        live = with_live(ladders, options.root, index["configuration_sha256"])
        while (read_note(options.root, STATE) or {"made": 0})["made"] < len(ladders):
            time.sleep(1.0)
        for size in SIZES:
            for workers in WORKERS:
                case = {"cache": "warm", "producer": True, "patch": size, "workers": workers}
                rows.append(compare({"petsim": live, "memmap": plain}, files, case, args.rounds, args.seconds))
        made = read_note(options.root, STATE)
    finally:
        producer.terminate()
    volume = 2 * int(np.prod(ladders[0].shape))
    emit("loader", {"subjects": len(ladders), "shape": list(ladders[0].shape), "volume_mb": round(volume / 1e6, 1),
                    "batch": BATCH, "rows": rows, "producer": made})  # fmt: skip


if __name__ == "__main__":
    main()
