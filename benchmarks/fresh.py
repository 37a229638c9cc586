"""Does training on fresh noise help? Protocol and measurement.

    python -m benchmarks.fresh FOLDER [--device cpu]

Settled before the first run, and not changed by what it shows: generated patients as in `benchmarks.cross_dose` (Vision 600,
20 s, 12 to train on, 2 for validation), DRF 1, 4, 20 and 100, two realizations; the residual network (r0) with 8, 16 and 32
channels, 2400 steps of 4 patches of 32^3, noise-free target; once on the two realizations of the dataset, once on a cache
that `petsim serve-cache` goes on filling while training runs, with a head start of 4 realizations a patient. Three seeds of
weights and samples, the same for both. Figure: validation error (mean squared error in SUV on patches of the two other
patients, averaged weights) at the last step; and at each validation, for the course of it. Three seeds give no test.

A first start used the training set that `benchmarks.cross_dose` had left, which was older than a change to the scatter scale
of low doses, so that fresh volumes differed from those of training and validation in more than their noise. It was stopped
after the first seed (fixed 0.0527, fresh 0.0547). The patients are now made by the run itself, with the doses of
`benchmarks.cross_dose`, so that `FOLDER/training` can serve both where it was made by the same version; DRF 1, 4, 20 and
100 of them are used.

Run on 2026-11-30, beside other work, on one core for training and a part of the other for the producer; the third seed was
stopped for time when the first two were known.

A run that was interrupted goes on with the same command.
"""

import argparse
import csv
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import emit
from benchmarks.cross_dose import DOSES, SMALL, TRAINED, make_patients
from denoise.train import TrainSettings, train
from petsim.cache.live import begun, read_note
from petsim.cache.store import read_index
from petsim.memory import keep_freed_memory
from petsim.producer import STATE
from petsim.serve import CONTENTS, ServeOptions, start

SEEDS, HEAD_START = (0, 1, 2), 4
SETTINGS = TrainSettings(
    method="residual", channels=(8, 16, 32), drf=TRAINED, max_steps=2400, validate_every=300, patience=100
)


def realizations(root: Path) -> int:
    """How many were begun for all patients together, by any producer."""
    contents = read_note(root, CONTENTS)
    folders = [] if contents is None else [root / name for name in contents["subjects"].values()]
    return sum(begun(folder) for folder in folders)


def course(run: Path) -> list[dict[str, float]]:
    """Step, validation error and part of fresh samples at every validation."""
    with (run / "log.csv").open(newline="") as f:
        return [{k: float(row[k]) for k in ("step", "validation_error", "fresh")} for row in csv.DictReader(f)]


def main() -> None:
    """Train, and print the JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    keep_freed_memory()
    data = make_patients(
        args.folder / "training", SMALL.scanner, SMALL.duration_s, DOSES, range(SMALL.training), args.device
    )
    patients = sum(s["split"] == "train" for s in read_index(data)["subjects"])
    options = ServeOptions(str(data), str(args.folder / "live"), drf=TRAINED)
    rows: list[dict[str, Any]] = []
    producer = start(options)
    try:
        while realizations(options.root) <= HEAD_START * patients:
            time.sleep(1.0)
            if not producer.is_alive():
                sys.exit("the producer ended")
        for seed in SEEDS:
            settings = replace(SETTINGS, seed=seed)
            for name, live in (("fixed", None), ("fresh", options.root)):
                run = args.folder / f"{name}-{seed}"
                before = realizations(options.root)
                train(data, run, settings, args.device, live=live)
                rows.append({"noise": name, "seed": seed, "realizations_before": before,
                             "realizations_after": realizations(options.root), "course": course(run)})  # fmt: skip
                print(rows[-1], file=sys.stderr, flush=True)
        made = read_note(options.root, STATE)
    finally:
        producer.terminate()
    last = {name: [r["course"][-1]["validation_error"] for r in rows if r["noise"] == name] for name in ("fixed", "fresh")}
    made = None if made is None else {k: v for k, v in made.items() if k != "time_s"}
    emit("fresh", {"patients": patients, "steps": SETTINGS.max_steps, "last_validation_error": last, "producer": made,
                   "rows": rows})  # fmt: skip


if __name__ == "__main__":
    main()
