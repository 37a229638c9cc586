"""How fast are list-mode files decoded and thinned, against the disk they are read from?

    python -m benchmarks.listmode FOLDER [--events 40000000] [--rounds 3]

A mMR scan of random accepted coincidences (15 % delayeds) is written in FOLDER in every format that can hold it. For each:
decode (all events read and checked) and thin (DRF 4, 10, 20, 100 written in the same format), events a second on one core,
median of the rounds, files in the page cache. Disk: the same file read in 4 MB pieces after it was dropped from the page
cache, and from it; bytes a second. Memory: peak of a process that thins a file a quarter as long, and this one.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import emit
from petsim.geometry.scanner import load_scanner
from petsim.rawdata.events import AT_ONCE, EVENT, Block, Header, without_fields
from petsim.rawdata.formats import format_of, loss, open_listmode
from petsim.rawdata.thin import Ladder, thin

SUFFIXES = (".l.hdr", ".petsird", ".cdh", ".lm.h5")
LADDER = Ladder((1.0, 4.0, 10.0, 20.0, 100.0), "thin", 0)


def write_scan(path: Path, events: int) -> None:
    """A scan of random pairs of real crystals at 2 million events a second."""
    scanner, random = load_scanner("biograph_mmr"), np.random.default_rng(0)
    crystals = np.flatnonzero(scanner.transaxial_is_real())
    header = Header(scanner, events / 2e6, fields=frozenset({"time", "delayeds"}))
    lost, _ = loss(header, path)
    with format_of(path).create(path, without_fields(header, lost)) as write:
        for start in range(0, events, AT_ONCE):
            count = min(AT_ONCE, events - start)
            block = np.zeros(count, EVENT)
            first = random.integers(0, len(crystals), count)
            block["crystal1"] = crystals[first]
            block["crystal2"] = crystals[(first + len(crystals) // 2 + random.integers(-120, 120, count)) % len(crystals)]
            block["ring1"], block["ring2"] = random.integers(2, 62, (2, count))
            block["time_ms"] = ((start + np.arange(count)) / 2000).astype(np.uint32)
            block["is_delayed"] = random.random(count) < 0.15
            write(Block(block[block["is_delayed"] == 0] if lost else block))


def data_files(path: Path) -> list[Path]:
    """The file and what belongs to it."""
    stem = path.name.split(".")[0]
    return [p for p in path.parent.iterdir() if p.name.split(".")[0] == stem]


def thinned(path: Path, out: Path) -> int:
    """Write the ladder of a file; returns the events of the file."""
    suffix = path.name[path.name.index(".") :]
    result = thin(open_listmode(path), LADDER, lambda drf, other: out / f"d{drf:g}{suffix}")
    for file in out.iterdir():
        file.unlink()
    return result["prompts"]["1"] + result["delayeds"]["1"]


def decoded(path: Path) -> int:
    """Read all events."""
    return sum(len(block.events) for block in open_listmode(path).blocks())


def read_plainly(path: Path, cold: bool) -> float:
    """Bytes a second of reading a file and what belongs to it."""
    total, started = 0, 0.0
    for file in data_files(path):
        with file.open("rb", buffering=0) as handle:
            if cold:
                os.fsync(handle.fileno())
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    for file in data_files(path):
        with file.open("rb", buffering=0) as handle:
            while piece := handle.read(1 << 22):
                total += len(piece)
    return total / (time.perf_counter() - started)


def rate(work: Callable[[], int], rounds: int) -> float:
    """Events a second, median of some rounds after one that compiles."""
    work()
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        found.append(work() / (time.perf_counter() - started))
    return float(np.median(found))


def peak_mb(path: Path, out: Path) -> float:
    """Peak resident memory of a process that thins a file."""
    code = "import sys; from benchmarks.listmode import peak_here; peak_here(*sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, str(path), str(out)], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout))


def peak_here(path: str, out: str) -> None:
    """Thin, and print the peak of this process in MB."""
    thinned(Path(path), Path(out))
    # What getrusage tells a process that another one started holds the peak of that one too.
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(lines["VmHWM"].split()[0]) / 1000)


def main() -> None:
    """Measure all formats and print the JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--events", type=int, default=40_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    out = args.folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    formats: dict[str, Any] = {}
    for suffix in SUFFIXES:
        path, short = args.folder / f"scan{suffix}", args.folder / f"short{suffix}"
        write_scan(path, args.events)
        write_scan(short, args.events // 4)
        size = sum(p.stat().st_size for p in data_files(path))
        events = decoded(path)
        one: dict[str, Any] = {"events": events, "bytes_an_event": size / events}
        one["decode_events_per_s"] = rate(lambda p=path: decoded(p), args.rounds)
        one["thin_events_per_s"] = rate(lambda p=path: thinned(p, out), args.rounds)
        cold, warm = (float(np.median([read_plainly(path, c) for _ in range(args.rounds)])) for c in (True, False))
        one |= {"disk_cold_bytes_per_s": cold, "disk_warm_bytes_per_s": warm}
        for what in ("decode", "thin"):
            one[f"{what}_over_cold_disk"] = one[f"{what}_events_per_s"] * one["bytes_an_event"] / cold
        one["peak_mb"] = {"quarter": peak_mb(short, out), "whole": peak_mb(path, out)}
        formats[format_of(path).TITLE] = one
        print(format_of(path).TITLE, one, file=sys.stderr, flush=True)
        for file in (*data_files(path), *data_files(short)):
            file.unlink()
    emit("listmode", {"scanner": "biograph_mmr", "drfs": LADDER.drfs, "rounds": args.rounds, "formats": formats})


if __name__ == "__main__":
    main()
