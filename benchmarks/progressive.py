"""Do anchors at intermediate doses help a diffusion model, and what do few network evaluations cost? Protocol and contest.

    python -m benchmarks.progressive FOLDER [--size small|gpu|smoke] [--device cpu]

Settled before the first run, and not changed by what it shows:

- Subjects: those of `benchmarks.cross_dose` of the same size (same scanner, durations, seeds and split; an earlier folder
  of it can be given, its patients are taken as they are). Input DRF 20, anchors 2, 4 and 10, target the noise-free image.
- Amended before its first run, for the time of two cores: size small has 12 test patients, the network that
  `benchmarks.fresh` uses (8, 16 and 32 channels) and 1000 steps, without the three contestants with "eps" or the anchor of
  DRF 2 alone; `several` is 2, the crop 32 x 32 x 32, and every sampler goes to 1000 evaluations there. Size gpu keeps all.
  Networks are trained and evaluated in bf16, all alike (on these cores 1.8 and 2.4 times as fast).
- All networks share shape, data, order of samples, steps and learning rate; one seed. Contestants: the direct regression
  network; DDPM; MAP-Diff with all anchors, with the anchor of DRF 10 alone, of DRF 2 alone, with a constant weight, and with
  colored noise; DDPM with colored noise; DDPM and MAP-Diff with "eps" instead of "v"; rectified flow, from noise and along
  the dose ladder.
- Schedule linear, 1000 steps, prediction "v", SUV as they are; lambda 0.1, p 2, no clamp, no bound; anchors calibrated on
  training subjects. Amended before anything was run here: the pair that is compared took "eps" first, as published; after
  400 steps on the training patients a DDPM with it was worse than its input (one test patient, -9 dB), with "v" it was not.
  That test patient, the first one, is left out.
- Primary figure: gain in PSNR in the body against an independent full dose, one sample of 25 ancestral steps, by patient;
  primary comparison: MAP-Diff with all anchors against DDPM, paired by patient, 95 % bootstrap interval and Wilcoxon's test.
  All other comparisons against DDPM are secondary, corrected after Holm. The published margin is + 1.23 dB.
- Where DDPM's mean of 8 samples stays more than 0.5 dB below the regression network, it is called undertrained and no margin
  is claimed. Means are over the first `several` test patients.
- Intermediate doses: estimates at the anchors' times of the same 25 steps against the image of that dose (same counts), and
  the ratio of their noise levels.
- Quality against evaluations: the first `several` patients, every sampler, 1, 2, 3, 5, 10, 25 and 100 evaluations (of "heun"
  the times that cost no more), one sample; 1000 evaluations on one crop of the body's middle, beside 25 and 100 there.
- Amended after the run of size small: "flow, ladder" had been sampled with ancestral steps like all others. They add
  Gaussian noise, which its path from dose to dose does not have (0.7 dB; now refused). It is sampled with ddim; both are in
  the file.
- Cross-scanner: given --other, a folder of test patients of another scanner, the same figures there, networks unchanged.

A run that was interrupted goes on with the same command.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, emit
from benchmarks.cross_dose import DOSES, FIRST_TEST_SEED, SIZES, make_patients
from denoise.data import Ladder, read_ladder
from denoise.denoiser import Denoiser, model_files
from denoise.diffusion.method import Diffusion
from denoise.diffusion.samplers import SamplerName, evaluations
from denoise.diffusion.settings import usual_settings
from denoise.evaluate import PEAK_SUV
from denoise.generate import Sampling
from denoise.metrics import nmae, own_range_peak, psnr_db, ssim
from denoise.model_file import read_card
from denoise.noise_level import noise_level
from denoise.statistics import FEWEST_PATIENTS, bootstrap_interval, correct_lines, paired_wilcoxon
from denoise.train import TrainSettings, train
from petsim.cache.store import sha256_of, whole_or_nothing
from petsim.memory import keep_freed_memory
from petsim.noise import body_mask

INPUT, ANCHORS = 20.0, (2.0, 4.0, 10.0)
ONE = Sampling("ancestral", 25, seed=0)
COUNTS = (1, 2, 3, 5, 10, 25, 100)
SAMPLERS: tuple[SamplerName, ...] = ("ancestral", "ddim", "dpm", "heun")
CROP = (32, 32, 32)
CURVES = ("ddpm", "map-diff", "ddpm, eps", "flow", "flow, ladder")
MEANS = ("ddpm", "map-diff", "flow")
LARGE_ONLY = ("map-diff, DRF 2 alone", "ddpm, eps", "map-diff, eps")
"""Contestants that size small leaves out."""


@dataclass(frozen=True)
class Extent:
    """What differs between the sizes of the contest, besides `benchmarks.cross_dose`'s."""

    test: int
    several: int
    settings: TrainSettings
    without: tuple[str, ...] = ()


EXTENTS = {
    "small": Extent(
        13, 2, TrainSettings(max_steps=1000, validate_every=250, channels=(8, 16, 32), precision="bf16"), LARGE_ONLY
    ),
    "gpu": Extent(24, 8, TrainSettings(max_steps=8000, validate_every=1000, channels=(32, 64, 128), patch=48, batch=8)),
    "smoke": Extent(2, 1, TrainSettings(max_steps=4, validate_every=2, channels=(4, 8)), LARGE_ONLY),
}


def contestants(settings: TrainSettings, without: tuple[str, ...] = ()) -> dict[str, TrainSettings]:
    """By name; all that is not named is equal."""
    found = _all_contestants(settings)
    return {name: found[name] for name in found if name not in without}


def _all_contestants(settings: TrainSettings) -> dict[str, TrainSettings]:
    base = replace(settings, drf=(INPUT,), target="noise-free", seed=0)

    def generative(method: Any, **given: Any) -> TrainSettings:
        return replace(base, method=method, diffusion=usual_settings(method, given))

    return {
        "direct": replace(base, method="direct"),
        "ddpm": generative("ddpm"),
        "map-diff": generative("map-diff", anchor_drfs=ANCHORS),
        "map-diff, DRF 10 alone": generative("map-diff", anchor_drfs=(10.0,)),
        "map-diff, DRF 2 alone": generative("map-diff", anchor_drfs=(2.0,)),
        "map-diff, constant weight": generative("map-diff", anchor_drfs=ANCHORS, anchor_power=0.0),
        "map-diff, colored noise": generative("map-diff", anchor_drfs=ANCHORS, noise="measured"),
        "ddpm, colored noise": generative("ddpm", noise="measured"),
        "ddpm, eps": generative("ddpm", prediction="eps"),
        "map-diff, eps": generative("map-diff", anchor_drfs=ANCHORS, prediction="eps"),
        "flow": generative("flow"),
        "flow, ladder": generative("flow", way="ladder"),
    }


def figures(image: np.ndarray, ladder: Ladder) -> dict[str, float]:
    """Figures of merit of an image at DRF 20."""
    clean = ladder.reference()
    body = body_mask(clean)
    full, low = ladder.image(0, ladder.realizations - 1), ladder.image(ladder.drfs.index(INPUT))
    errors = [float(np.square(x[body] - full[body], dtype=np.float64).mean()) for x in (low, image)]
    return {
        "gain_db": 10 * float(np.log10(errors[0] / errors[1])),
        "psnr_db": psnr_db(image, clean, PEAK_SUV, body),
        "ssim": ssim(image, clean, own_range_peak(clean, body), body),
        "nmae": nmae(image, clean, body),
    }


Made = tuple[np.ndarray, dict[float, np.ndarray], float]


def denoised(run: Path, device: str, sampling: Sampling) -> Callable[[Ladder], Made]:
    """Subject -> image, estimates at anchors, and seconds."""
    denoiser = Denoiser.load(run, device, sampling=sampling)

    def make(ladder: Ladder) -> Made:
        low, began = ladder.image(ladder.drfs.index(INPUT)), time.monotonic()
        with in_bf16(device):
            found = denoiser(low, ladder.spacing_mm, INPUT)
        return found.image, found.anchors, time.monotonic() - began

    return make


def in_bf16(device: str) -> Any:
    """Networks within compute in bf16; samplers go on in float32."""
    import torch

    return torch.autocast("cpu" if _device(device) == "cpu" else "cuda", torch.bfloat16)


class Kept:
    """Results in files, from which an interrupted contest goes on; of other models they are not found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: list[Any], make: Callable[[], Any]) -> Any:
        """What was kept under a key, or is made now."""
        path = self.folder / f"{sha256_of(key)[:24]}.json"
        if not path.exists():
            made = make()
            with whole_or_nothing(path) as temporary:
                temporary.write_text(json.dumps(made))
            print(*key[1:], file=sys.stderr, flush=True)
        return json.loads(path.read_text())


def main_rows(runs: dict[str, Path], ladders: list[Ladder], device: str, kept: Kept) -> list[dict[str, Any]]:
    """One line for each patient and contestant, one sample each, with estimates at anchors where there are some."""
    rows = []
    for name in runs:
        card = read_card(model_files(runs[name])[0])
        has_anchors = isinstance(card.method, Diffusion) and card.method.anchors is not None
        one = replace(ONE, sampler="ddim") if name == "flow, ladder" else ONE
        make = denoised(runs[name], device, replace(one, anchors=has_anchors))
        for ladder in ladders:

            def row(ladder: Ladder = ladder, make: Any = make, name: str = name) -> dict[str, Any]:
                image, anchors, seconds = make(ladder)
                line = {"subject": ladder.name, "method": name, "seconds": seconds, **figures(image, ladder)}
                body = body_mask(ladder.reference())
                for drf, estimate in anchors.items():
                    if drf not in ladder.drfs:
                        continue
                    own = ladder.image(ladder.drfs.index(drf))
                    line[f"anchor_{drf:g}"] = {
                        "psnr_db": psnr_db(estimate, own, PEAK_SUV, body),
                        "input_psnr_db": psnr_db(ladder.image(ladder.drfs.index(INPUT)), own, PEAK_SUV, body),
                        "ssim": ssim(estimate, own, own_range_peak(own, body), body),
                        "nmae": nmae(estimate, own, body),
                        "noise_ratio": noise_level(estimate, own).sd / noise_level(own).sd,
                    }
                return line

            rows.append(kept.get([digest(runs[name]), "row", name, ladder.name], row))
    return rows


def digest(run: Path) -> str:
    """Of a run's model."""
    return sha256_of([hashlib.sha256(path.read_bytes()).hexdigest() for path in model_files(run)])


def mean_rows(runs: dict[str, Path], ladders: list[Ladder], device: str, kept: Kept) -> list[dict[str, Any]]:
    """Means of 8 samples of the first patients."""
    rows = []
    for name in MEANS:
        make = denoised(runs[name], device, replace(ONE, samples=8))
        rows += [
            kept.get(
                [digest(runs[name]), "mean of 8", name, ladder.name],
                lambda ladder=ladder, make=make, name=name: {
                    "subject": ladder.name, "method": name, **figures(make(ladder)[0], ladder)
                },
            )
            for ladder in ladders
        ]  # fmt: skip
    return rows


def curve_rows(runs: dict[str, Path], ladders: list[Ladder], device: str, kept: Kept) -> list[dict[str, Any]]:
    """Quality against evaluations."""
    rows = []
    for name in [n for n in CURVES if n in runs]:
        ladder_way = name == "flow, ladder"
        for sampler in SAMPLERS:
            if ladder_way and sampler == "ancestral":
                continue
            for count in COUNTS:
                steps = max(n for n in range(1, count + 1) if evaluations(sampler, n) <= count)
                make = denoised(runs[name], device, Sampling(sampler, steps))
                for ladder in ladders:

                    def row(
                        ladder: Ladder = ladder, make: Any = make, name: str = name, sampler: Any = sampler,
                        count: int = count,
                    ) -> dict[str, Any]:  # fmt: skip
                        image, _, seconds = make(ladder)
                        line = {"subject": ladder.name, "method": name, "sampler": sampler, "evaluations": count}
                        return {**line, "seconds": seconds, **figures(image, ladder)}

                    rows.append(kept.get([digest(runs[name]), "curve", name, sampler, count, ladder.name], row))
    return rows


def crop_rows(runs: dict[str, Path], ladder: Ladder, device: str, kept: Kept) -> list[dict[str, Any]]:
    """1000 evaluations on a crop around the body's middle, PSNR there."""
    clean, low = ladder.reference(), ladder.image(ladder.drfs.index(INPUT))
    middle = [int(np.mean(p)) for p in np.nonzero(body_mask(clean))]
    part = tuple(
        slice(max(0, min(c - n // 2, size - n)), max(0, min(c - n // 2, size - n)) + n)
        for c, n, size in zip(middle, CROP, clean.shape, strict=True)
    )
    rows = []
    for name in ("ddpm", "map-diff", "flow"):
        for sampler in SAMPLERS:
            for steps in (25, 100, 1000):

                def row(name: str = name, sampler: Any = sampler, steps: int = steps) -> dict[str, Any]:
                    times = max(n for n in range(1, steps + 1) if evaluations(sampler, n) <= steps)
                    denoiser = Denoiser.load(runs[name], device, sampling=Sampling(sampler, times))
                    with in_bf16(device):
                        found = denoiser(low[part], ladder.spacing_mm)
                    psnr = psnr_db(found.image, clean[part], PEAK_SUV, body_mask(clean)[part])
                    return {"method": name, "sampler": sampler, "evaluations": steps, "psnr_db": psnr}

                rows.append(kept.get([digest(runs[name]), "crop", name, sampler, steps], row))
    return rows


def summary(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """Means over patients by some keys."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    found = []
    for key, own in groups.items():
        line: dict[str, Any] = {**dict(zip(keys, key, strict=True)), "patients": len(own)}
        for figure in ("gain_db", "psnr_db", "ssim", "nmae", "seconds"):
            if figure in own[0]:
                line[figure] = float(np.mean([row[figure] for row in own]))
        for name in [k for k in own[0] if k.startswith("anchor_")]:
            line[name] = {k: float(np.mean([row[name][k] for row in own])) for k in own[0][name]}
        found.append(line)
    return found


def compared(rows: list[dict[str, Any]], rival: str, against: str) -> dict[str, Any]:
    """Paired difference of the gain."""
    gains = {name: {r["subject"]: r["gain_db"] for r in rows if r["method"] == name} for name in (rival, against)}
    subjects = sorted(gains[against])
    own, base = ([gains[name][s] for s in subjects] for name in (rival, against))
    difference = (np.array(own) - base).tolist()
    line: dict[str, Any] = {"method": rival, "against": against, "difference_db": float(np.mean(difference))}
    if len(subjects) > 1:
        line["interval_db"] = list(bootstrap_interval(difference, 0))
    return {**line, "p": paired_wilcoxon(own, base)} if len(subjects) >= FEWEST_PATIENTS else line


def conclude(
    rows: list[dict[str, Any]], means: list[dict[str, Any]], curve: list[dict[str, Any]], crop: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the contest shows."""
    primary = compared(rows, "map-diff", "ddpm")
    names = dict.fromkeys(row["method"] for row in rows)
    secondary = [compared(rows, name, "ddpm") for name in names if name not in ("ddpm", "map-diff")]
    correct_lines(secondary, "p")
    few = {row["subject"] for row in means}
    regression = float(np.mean([r["gain_db"] for r in rows if r["method"] == "direct" and r["subject"] in few]))
    by_mean = summary(means, ("method",))
    ddpm = next(line["gain_db"] for line in by_mean if line["method"] == "ddpm")
    return {
        "primary": primary, "secondary": secondary, "summary": summary(rows, ("method",)), "mean_of_8": by_mean,
        "regression_gain_db_there": regression, "ddpm_undertrained": bool(ddpm < regression - 0.5),
        "curve": summary(curve, ("method", "sampler", "evaluations")), "crop": crop,
    }  # fmt: skip


def curve_figure(result: dict[str, Any]) -> Any:
    """Gain against evaluations, a panel for each method, a line for each sampler; the regression network dashed."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(line["method"] for line in result["curve"]))
    figure = Figure(figsize=(3.2 * len(names), 3.6), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True)
    for axes, name in zip(panels, names, strict=True):
        for color, sampler in enumerate(SAMPLERS):
            line = [c for c in result["curve"] if c["method"] == name and c["sampler"] == sampler]
            if line:
                axes.plot([c["evaluations"] for c in line], [c["gain_db"] for c in line], "o-",
                          color=f"C{color}", label=sampler, markersize=4)  # fmt: skip
        axes.axhline(result["regression_gain_db_there"], color="black", linestyle="--", linewidth=0.8, label="regression")
        axes.set(xscale="log", title=name, xlabel="network evaluations")
        axes.legend(fontsize=7)
    panels[0].set_ylabel("gain against an independent full dose [dB]")
    return figure


def dose_figure(run: Path, ladder: Ladder, device: str) -> Any:
    """Dose after dose: the input, estimates at the anchors, and the result above the simulated images of these doses."""
    from matplotlib.figure import Figure

    image, anchors, _ = denoised(run, device, replace(ONE, anchors=True))(ladder)
    low, middle = ladder.image(ladder.drfs.index(INPUT)), ladder.shape[1] // 2
    drfs = sorted(anchors, reverse=True)
    upper = [("input, DRF 20", low), *((f"estimate, DRF {d:g}", anchors[d]) for d in drfs), ("estimate", image)]
    lower = [("DRF 20", low), *((f"DRF {d:g}", ladder.image(ladder.drfs.index(d))) for d in drfs),
             ("noise-free", ladder.reference())]  # fmt: skip
    figure = Figure(figsize=(2.2 * len(upper), 5.2), layout="constrained")
    for row, line in zip(figure.subplots(2, len(upper)), (upper, lower), strict=True):
        for axes, (title, image) in zip(row, line, strict=True):
            aspect = ladder.spacing_mm[2] / ladder.spacing_mm[0]
            # Coronal, in radiological convention: the patient's right on the left.
            axes.imshow(image[::-1, middle].T, origin="lower", cmap="gray_r", vmin=0, vmax=5, aspect=aspect)
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
    return figure


def main() -> None:
    """Make the patients, train, sample, and print the JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=EXTENTS, default="small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--other", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    size, extent, folder = SIZES[args.size], EXTENTS[args.size], args.folder
    made = (size.scanner, size.duration_s, DOSES)
    training = make_patients(folder / "training", *made, range(size.training), args.device)
    test = make_patients(folder / "test", *made, range(FIRST_TEST_SEED, FIRST_TEST_SEED + extent.test), args.device)
    runs = {}
    for name, settings in contestants(extent.settings, extent.without).items():
        runs[name] = folder / "progressive" / name
        train(training, runs[name], settings, args.device)
        print(f"trained {name}", file=sys.stderr, flush=True)
    kept = Kept(folder / "progressive" / "rows")
    ladders = [read_ladder(path) for path in sorted(test.glob("*.h5"))][1 : extent.test]
    few = ladders[: extent.several]
    rows = main_rows(runs, ladders, args.device, kept)
    found = conclude(
        rows, mean_rows(runs, few, args.device, kept), curve_rows(runs, few, args.device, kept),
        crop_rows(runs, few[0], args.device, kept),
    )  # fmt: skip
    found["anchors"] = {
        name: dict(zip(card.method.anchors.drfs, card.method.anchors.times, strict=True))
        for name, run in runs.items()
        if isinstance((card := read_card(model_files(run)[0])).method, Diffusion) and card.method.anchors is not None
    }
    if args.other is not None:
        others = [read_ladder(path) for path in sorted(args.other.glob("*.h5"))]
        there = main_rows(runs, others, args.device, kept)
        found["other_scanner"] = {
            "scanner": others[0].scanner, "summary": summary(there, ("method",)),
            "primary": compared(there, "map-diff", "ddpm"),
        }  # fmt: skip
    result = {"size": args.size, "device": _device(args.device), "scanner": size.scanner, "duration_s": size.duration_s,
              "test_patients": len(ladders), "steps": extent.settings.max_steps, "channels": extent.settings.channels,
              **found}  # fmt: skip
    if args.size == "smoke":
        print(json.dumps(result))
        return
    name = "progressive" if args.size == "small" else f"progressive_{args.size}"
    emit(name, result)
    curve_figure(found).savefig(RESULTS / f"{name}_evaluations.png", dpi=90)
    dose_figure(runs["map-diff"], few[0], args.device).savefig(RESULTS / f"{name}_doses.png", dpi=90)


def _device(asked: str) -> str:
    import torch

    cuda = asked == "cuda" or (asked == "auto" and torch.cuda.is_available())
    return torch.cuda.get_device_name() if cuda else "cpu"


if __name__ == "__main__":
    main()
