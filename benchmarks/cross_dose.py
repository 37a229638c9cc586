"""Which of the cross-dose methods denoises best? Protocol and contest.

    python -m benchmarks.cross_dose FOLDER [--size small|gpu|smoke] [--device cpu]

Settled before the first run, and not changed by what it shows:

- Subjects: generated patients on the Vision 600, liver at the center; full dose of `duration_s`, so short that the liver's
  coefficient of variation at full dose is 8 to 18 %, as in clinical images. Training (12 of 16 for training, 2 for
  validation) and test patients are made from different seeds; test patients take no part in any choice.
- Doses 1, 2, 4, 10, 20, 50, 100, 200, two noise realizations; trained on 4, 20, 100; 10 and 50 (inside), 2 and 200 (outside)
  are never seen in training.
- All methods share network, data, order of samples, steps and learning rate. Dose-specific networks get the same steps each,
  and in a second run the same steps in total.
- Primary figure: gain in PSNR in the body against an independent full dose, mean over the trained doses, by patient; primary
  comparisons: residual r0, dose-conditioned (told the noise) and dose-specific (equal steps each) against direct, paired by
  patient, with 95 % bootstrap intervals and Wilcoxon's test corrected after Holm. Everything else is secondary, each family
  of comparisons corrected by itself.
- The averaging effect: matrix of training dose by test dose of the dose-specific networks; direct against dose-conditioned
  told the true dose (`drf`) and told the measured noise (`noise`).

A run that was interrupted goes on with the same command.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import emit, liver_middle_mm
from data_recipes.phantoms.families import REFERENCE
from data_recipes.phantoms.whole_body import whole_body
from denoise.denoiser import model_files
from denoise.evaluate import Estimate, all_methods, evaluate_subject, summarize, tune_filters
from denoise.statistics import FEWEST_PATIENTS, bootstrap_interval, correct_lines, paired_wilcoxon
from denoise.train import TrainSettings, train
from petsim.cache.store import read_index, sha256_of, whole_or_nothing, write_index
from petsim.dataset import Job, Request, make_subject
from petsim.geometry.scanner import load_scanner
from petsim.memory import keep_freed_memory
from petsim.settings import SimulationSettings

TRAINED = (4.0, 20.0, 100.0)
DOSES = (2.0, 4.0, 10.0, 20.0, 50.0, 100.0, 200.0)


@dataclass(frozen=True)
class Size:
    """What differs between the sizes of the contest."""

    scanner: str
    duration_s: float
    training: int
    test: int
    settings: TrainSettings


SMALL = Size("biograph_vision_600", 20.0, 16, 24, TrainSettings(max_steps=1200, validate_every=200, channels=(16, 32, 64)))
SIZES = {
    "small": SMALL,
    "gpu": replace(
        SMALL, settings=TrainSettings(max_steps=6000, validate_every=500, channels=(32, 64, 128), patch=48, batch=8)
    ),
    "smoke": replace(SMALL, training=3, test=2, settings=TrainSettings(max_steps=4, validate_every=2, channels=(4, 8))),
}
FIRST_TEST_SEED = 900_000
PRIMARY = ("residual r0", "conditioned on noise", "dose-specific")


def contestants(settings: TrainSettings) -> dict[str, TrainSettings]:
    """By name; all that is not named is equal."""
    base = replace(settings, drf=TRAINED, target="noise-free", seed=0)
    shared = {
        "max_steps": max(1, settings.max_steps // len(TRAINED)),
        "validate_every": max(1, settings.validate_every // 3),
    }
    return {
        "direct": replace(base, method="direct"),
        "residual r0": replace(base, method="residual", variant="r0"),
        "residual r1": replace(base, method="residual", variant="r1"),
        "residual r2": replace(base, method="residual", variant="r2"),
        "conditioned on noise": replace(base, method="dose-conditioned", condition="noise"),
        "conditioned on drf": replace(base, method="dose-conditioned", condition="drf"),
        "dose-specific": replace(base, method="dose-specific"),
        "dose-specific, equal total": replace(base, method="dose-specific", **shared),
    }


def make_patients(
    folder: Path, scanner_name: str, duration_s: float, doses: tuple[float, ...], seeds: range, device: str
) -> Path:
    """Dataset of generated patients with two realizations, each with its liver at the scanner's center."""
    folder.mkdir(parents=True, exist_ok=True)
    scanner = load_scanner(scanner_name)
    for seed in seeds:
        job = Job(name=f"phantom-{seed:04d}", seed=seed)
        if (folder / f"{job.name}.h5").exists():
            continue
        patient = whole_body(seed, mbq_per_kg=scanner.given("protocol_mbq_per_kg"),
                             uptake_s=scanner.given("protocol_uptake_s"), family=REFERENCE.name)  # fmt: skip
        middle = liver_middle_mm(patient)
        settings = SimulationSettings(
            scanner=scanner_name, preset="fast", drf=doses, realizations=2, duration_s=duration_s, center_mm=middle,
            backend="cuda" if device == "cuda" else "numba",
        )  # fmt: skip
        # Patients differ in where they are scanned, so that one digest for all cannot be that of their settings.
        make_subject(job, Request(str(folder), settings=settings, family=REFERENCE.name), "cross-dose", lambda *told: None)
        print(f"{folder.name}: {job.name}", file=sys.stderr, flush=True)
    write_index(folder)
    return folder


def all_rows(
    test: Path, folder: Path, methods: dict[str, Estimate], runs: list[Path], drfs: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """Figures of all test patients at some doses (None: all), each patient's kept in a file from which an interrupted
    evaluation of the same models goes on."""
    models = [[run.name, hashlib.sha256(path.read_bytes()).hexdigest()] for run in runs for path in model_files(run)]
    of = sha256_of([models, read_index(test)["subjects"], *([] if drfs is None else [list(drfs)])])[:16]
    folder.mkdir(exist_ok=True)
    rows = []
    for path in sorted(test.glob("*.h5")):
        kept = folder / f"{path.stem}-{of}.json"
        if not kept.exists():
            with whole_or_nothing(kept) as temporary:
                temporary.write_text(json.dumps(evaluate_subject(path, methods, drfs=drfs).rows))
            print(f"evaluated {path.stem}", file=sys.stderr, flush=True)
        rows += json.loads(kept.read_text())
    return rows


def shown(summary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures of a summary that are kept."""
    keep = ("drf", "method", "subjects", "gain_db", "gain_db_low", "gain_db_high", "fraction_of_ceiling",
            "fraction_of_ceiling_low", "fraction_of_ceiling_high", "equivalent_counts", "nrmse", "squared_bias", "variance",
            "total_activity", "liver_cov", "lesion_contrast", "missed_lesions", "false_blobs")  # fmt: skip
    return [{k: line[k] for k in keep if k in line} for line in summary]


def compare(rows: list[dict[str, Any]], drfs: tuple[float, ...], rivals: list[str], against: str) -> list[dict[str, Any]]:
    """Paired differences of the mean gain over some doses; p is not corrected yet."""

    def gains(method: str) -> dict[str, float]:
        mine: dict[str, list[float]] = {}
        for row in rows:
            if row["method"] == method and row["drf"] in drfs:
                mine.setdefault(row["subject"], []).append(row["gain_db"])
        return {subject: float(np.mean(v)) for subject, v in mine.items()}

    base, found = gains(against), []
    for rival in rivals:
        own = gains(rival)
        difference = [own[s] - base[s] for s in base]
        line: dict[str, Any] = {"method": rival, "against": against, "difference_db": float(np.mean(difference))}
        line["interval_db"] = list(bootstrap_interval(difference, 0))
        if len(difference) >= FEWEST_PATIENTS:
            line["p"] = paired_wilcoxon([own[s] for s in base], [base[s] for s in base])
        found.append(line)
    return found


def conclude(rows: list[dict[str, Any]], tuned: dict[str, dict[str, float]], name: str) -> dict[str, Any]:
    """What the contest of a size shows, from the figures of its test patients."""
    size = SIZES[name]
    networks = list(contestants(size.settings))
    others = [method for method in networks if method not in (*PRIMARY, "direct")]
    families = {
        "primary": compare(rows, TRAINED, list(PRIMARY), "direct"),
        "others": compare(rows, TRAINED, others, "direct"),
        "unseen_inside": compare(rows, (10.0, 50.0), networks[1:], "direct"),
        "unseen_outside": compare(rows, (2.0, 200.0), networks[1:], "direct"),
        "against_gaussian": compare(rows, TRAINED, networks, "gaussian"),
        "against_non_local_means": compare(rows, TRAINED, networks, "non-local means"),
        "told_the_true_dose": compare(rows, TRAINED, ["conditioned on drf"], "conditioned on noise"),
    }
    for lines in families.values():
        correct_lines(lines, "p")
    return {
        "size": name, "scanner": size.scanner, "duration_s": size.duration_s, "test_patients": size.test,
        "trained_on": TRAINED, "steps": size.settings.max_steps, "channels": size.settings.channels,
        **families, "summary": shown(summarize(rows, 0)),
        "tuned": tuned,
    }  # fmt: skip


def main() -> None:
    """Make the patients, train, evaluate, and print the JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    keep_freed_memory()
    size, folder = SIZES[args.size], args.folder
    made = (size.scanner, size.duration_s, DOSES)
    training = make_patients(folder / "training", *made, range(size.training), args.device)
    test = make_patients(folder / "test", *made, range(FIRST_TEST_SEED, FIRST_TEST_SEED + size.test), args.device)
    runs = []
    for name, settings in contestants(size.settings).items():
        run = folder / "runs" / name
        train(training, run, settings, args.device)
        runs.append(run)
        print(f"trained {name}", file=sys.stderr, flush=True)
    # One network of each dose alone, for the matrix of training dose by test dose.
    single = [folder / "runs" / f"trained at {d:g}" for d in TRAINED]
    for run, drf in zip(single, TRAINED, strict=True):
        run.unlink(missing_ok=True)
        run.symlink_to(Path("dose-specific") / f"drf-{drf:g}", target_is_directory=True)
    # Test patients take no part in any choice, that of the filters' strengths included.
    tuned = tune_filters(training, "test")
    methods = all_methods([*runs, *single], tuned, args.device)
    rows = all_rows(test, folder / "rows", methods, [*runs, *single])
    found = conclude(rows, tuned, args.size)
    if args.size == "smoke":
        print(json.dumps(found))
    else:
        emit("cross_dose" if args.size == "small" else f"cross_dose_{args.size}", found)


if __name__ == "__main__":
    main()
