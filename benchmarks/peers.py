"""Rates of parallelproj on given LORs.

    PETSIM_PARALLELPROJ_LIBS=shipped=/path/a.so:native=/path/b.so OMP_NUM_THREADS=1 python -m benchmarks.peers case.npz

prints one JSON line. Without PETSIM_PARALLELPROJ_LIBS, what `load_library` finds is timed. A case holds `lor_start` and
`lor_end` (n, 3), `image`, `origin_mm` and `voxel_mm`; with TOF also `tof` (bin width and kernel sigma in mm, bins), and, if
events are not to be drawn, `event` (index of their LOR) and `event_bin` (int16).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from petsim.projectors.parallelproj import Library, Tof, load_library
from petsim.geometry.sinogram import TOF_SIGMAS

LIBRARIES_VARIABLE = "PETSIM_PARALLELPROJ_LIBS"


def time_peers(case: dict[str, Any], threads: int) -> dict[str, Any]:
    """Rates on a case (see above) in a process of its own: OpenMP reads the number of threads once, when it is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.npz"
        np.savez(path, **case)
        line = subprocess.run(
            [sys.executable, "-m", "benchmarks.peers", str(path)], cwd=Path(__file__).parents[1], check=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=subprocess.PIPE, text=True,
        ).stdout.splitlines()[-1]  # fmt: skip
    return json.loads(line)


def libraries() -> dict[str, Library]:
    """parallelproj libraries to time, by name; none where there is none."""
    named = [item.partition("=") for item in os.environ.get(LIBRARIES_VARIABLE, "").split(":") if item]
    if named:
        return {name: load_library(path) for name, _, path in named}
    try:
        return {"installed": load_library()}
    except DataError:
        return {}


def rates(library: Library, case: dict[str, np.ndarray]) -> dict[str, float]:
    """Million LORs a second of every call that the case has what is needed for."""
    start, end, image, origin, voxel = (np.ascontiguousarray(case[name], np.float32) for name in
                                        ("lor_start", "lor_end", "image", "origin_mm", "voxel_mm"))  # fmt: skip
    back = np.zeros_like(image)
    values = np.empty(len(start), np.float32)
    out = {
        "forward": _rate(len(start), lambda: library.forward(start, end, image, origin, voxel, values)),
        "back": _rate(len(start), lambda: library.back(start, end, back, origin, voxel, values)),
    }
    if "tof" not in case:
        return out
    width, sigma, bins = case["tof"]
    tof = Tof(float(width), float(sigma), TOF_SIGMAS, int(bins))
    sino = np.empty((len(start), tof.bins), np.float32)
    out["tof_sino_forward"] = _rate(
        len(start), lambda: library.tof_sino_forward(start, end, image, origin, voxel, sino, tof))  # fmt: skip
    out["tof_sino_back"] = _rate(len(start), lambda: library.tof_sino_back(start, end, back, origin, voxel, sino, tof))

    # Events in the random order of an acquisition, unless the case has some.
    rng = np.random.default_rng(0)
    event = case["event"] if "event" in case else rng.permutation(len(start))
    bin_of = case["event_bin"] if "event_bin" in case else rng.integers(tof.bins, size=len(event))
    start, end, bin_of = start[event], end[event], np.ascontiguousarray(bin_of, np.int16)
    values = np.empty(len(event), np.float32)
    ones = np.ones(len(event), np.float32)
    out["list_forward"] = _rate(len(event), lambda: library.forward(start, end, image, origin, voxel, values))
    out["list_back"] = _rate(len(event), lambda: library.back(start, end, back, origin, voxel, ones))
    out["tof_list_forward"] = _rate(
        len(event), lambda: library.tof_list_forward(start, end, image, origin, voxel, values, bin_of, tof))  # fmt: skip
    out["tof_list_back"] = _rate(
        len(event), lambda: library.tof_list_back(start, end, back, origin, voxel, ones, bin_of, tof))  # fmt: skip
    return out


def _rate(lors: int, call: Callable[[], None], repeats: int = 2) -> float:
    """Million LORs a second of the fastest of a few calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return round(lors / min(seconds) / 1e6, 4)


def main(path: str) -> None:
    """Time a case file with every library and print one JSON line."""
    with np.load(path) as file:
        case = dict(file)
    peers = [
        {"name": name, "version": library.version, "how": library.how, "mlor_per_s": rates(library, case)}
        for name, library in libraries().items()
    ]
    threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count()
    print(json.dumps({"threads": threads, "lors": len(case["lor_start"]), "peers": peers}))


if __name__ == "__main__":
    main(sys.argv[1])
