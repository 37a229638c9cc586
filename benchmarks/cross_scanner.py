"""Does a network trained on one long scanner serve the other? Protocol and measurement.

    python -m benchmarks.cross_scanner FOLDER [--device cpu]

Settled before the first run, and not changed by what it shows: generated patients on the Quadra and on the four middle
units of the uEXPLORER with ring differences up to 98 (`uexplorer_98.toml`: the Quadra's length and acceptance, so that what
differs is crystals, gaps, TOF and voxels; with all units and ring differences one patient takes a quarter of an hour on two
cores, found before anything was made there but one patient to settle the duration), `fast`, the liver at the center, full
doses so short that the liver's coefficient of variation is about 10 % (30 s: 9.7 and 8.8 % on a training patient); DRF 1,
4, 20, 100, two noise realizations; 12 patients, 8 to train on and 2 for validation, and 12 others to test on, the same
bodies on both scanners. One residual network (r0) and one that is told the measured noise, for each scanner, as in
`benchmarks.cross_dose` at its small size. Each is tested on both scanners, unchanged and without resampling. Figure: gain in
PSNR in the body against an independent full dose, by dose, and the paired difference of the foreign to the scanner's own
network, with 95 % bootstrap intervals over patients.

A run that was interrupted goes on with the same command.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.common import emit
from benchmarks.cross_dose import FIRST_TEST_SEED, SMALL, TRAINED, all_rows, compare, make_patients, shown
from denoise.evaluate import all_methods, summarize, tune_filters
from denoise.statistics import correct_lines
from denoise.train import train
from petsim.memory import keep_freed_memory

DURATION_S = {"biograph_vision_quadra": 25.0, str(Path(__file__).parent / "uexplorer_98.toml"): 30.0}
TRAINING, TEST = 12, 12


def main() -> None:
    """Make the patients, train, evaluate, and print the JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    keep_freed_memory()
    folder, settings = args.folder, replace(SMALL.settings, drf=TRAINED, target="noise-free", seed=0)
    data, runs = {}, []
    for path, duration_s in DURATION_S.items():
        scanner, made = Path(path).stem, (path, duration_s, TRAINED)
        training = make_patients(folder / scanner / "training", *made, range(TRAINING), args.device)
        seeds = range(FIRST_TEST_SEED, FIRST_TEST_SEED + TEST)
        data[scanner] = training, make_patients(folder / scanner / "test", *made, seeds, args.device)
        for name, one in (
            ("residual", replace(settings, method="residual", variant="r0")),
            ("conditioned", replace(settings, method="dose-conditioned", condition="noise")),
        ):
            runs.append(folder / "runs" / f"{name}, {scanner}")
            train(training, runs[-1], one, args.device)
            print(f"trained {runs[-1].name}", file=sys.stderr, flush=True)
    found, durations = {}, {Path(path).stem: seconds for path, seconds in DURATION_S.items()}
    for scanner, (training, test) in data.items():
        methods = all_methods(runs, tune_filters(training, "test"), args.device)
        rows = all_rows(test, folder / scanner / "rows", methods, runs)
        (other,) = (name for name in data if name != scanner)
        lines = [
            {"drf": drf} | line
            for drf in TRAINED
            for name in ("residual", "conditioned")
            for line in compare(rows, (drf,), [f"{name}, {other}"], f"{name}, {scanner}")
        ]
        correct_lines(lines, "p")
        found[scanner] = {
            "duration_s": durations[scanner],
            "foreign_against_own": lines,
            "summary": shown(summarize(rows, 0)),
        }
    emit("cross_scanner", {"test_patients": TEST, "steps": settings.max_steps, "scanners": found})


if __name__ == "__main__":
    main()
