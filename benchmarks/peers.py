"""Rates of parallelproj on given LORs.

    PETSIM_PARALLELPROJ_LIBS=shipped=/path/a.so:native=/path/b.so OMP_NUM_THREADS=1 python -m benchmarks.peers case.npz

prints one JSON line. The flags that a library was built with go into it from a text file beside it (/path/a.so.flags).
Without PETSIM_PARALLELPROJ_LIBS, what `load_library` finds is timed. A case holds `calls` (names of fields of
`petsim.projectors.parallelproj.Library`), `lor_start` and `lor_end` (n, 3), `image`, `origin_mm` and `voxel_mm`; for TOF
also `tof` (bin width and kernel sigma in mm, bins) and, for events, `event_bin`.
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
from petsim.geometry.sinogram import TOF_SIGMAS
from petsim.projectors.parallelproj import Library, Tof, load_library

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


def build_flags() -> dict[str, str]:
    """Compiler flags by name of the libraries, of those that have a text file of them."""
    paths = dict(item.partition("=")[::2] for item in os.environ.get(LIBRARIES_VARIABLE, "").split(":") if item)
    files = {name: Path(f"{path}.flags") for name, path in paths.items()}
    return {name: file.read_text().strip() for name, file in files.items() if file.exists()}


def rates(library: Library, case: dict[str, np.ndarray]) -> dict[str, float]:
    """Million LORs a second of the calls that the case names."""
    start, end, image, origin, voxel = (np.ascontiguousarray(case[name], np.float32) for name in
                                        ("lor_start", "lor_end", "image", "origin_mm", "voxel_mm"))  # fmt: skip
    back = np.zeros_like(image)
    out = {}
    for name in case["calls"].tolist():
        call = getattr(library, name)
        shape: tuple[int, ...] = (len(start),)
        extra: tuple[Any, ...] = ()
        if name.startswith("tof"):
            width, sigma, bins = case["tof"]
            tof = Tof(float(width), float(sigma), TOF_SIGMAS, int(bins))
            extra = (np.ascontiguousarray(case["event_bin"], np.int16), tof) if "list" in name else (tof,)
            shape = shape if "list" in name else (len(start), tof.bins)
        values = np.ones(shape, np.float32)
        target = back if name.endswith("back") else image
        out[name] = _rate(len(start), lambda: call(start, end, target, origin, voxel, values, *extra))  # noqa: B023
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
    flags = build_flags()
    peers = [
        {
            "name": name,
            "version": library.version,
            "how": library.how,
            "flags": flags.get(name, "unknown"),
            "mlor_per_s": rates(library, case),
        }
        for name, library in libraries().items()
    ]
    threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count()
    print(json.dumps({"threads": threads, "lors": len(case["lor_start"]), "peers": peers}))


if __name__ == "__main__":
    main(sys.argv[1])
