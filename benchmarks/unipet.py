"""Does style alignment align, does the region mask keep flat regions right, is UniPET on par with dose-specific networks?

    python -m benchmarks.unipet problem FOLDER                   # two questions small enough for two cores
    python -m benchmarks.unipet mask FOLDER                      # what the region masks hold of each organ
    python -m benchmarks.unipet contest FOLDER [--size gpu|small|smoke] [--device cuda]

FOLDER is that of `benchmarks.cross_dose` (same scanner, durations, seeds and split); patients that are there are taken as
they are. Settled before the first run, and not changed by what it shows:

Both
- Target: the nested full dose, as published. Trained on DRF 4, 20, 100. The relative mask holds what has more than 3 times
  the local variance of the full dose's own noise. Second stages start from one first stage for each seed.

Problem
- Three seeds of weights and samples. Generator of 16 channels and 4 blocks, critic of 8, patches of 32^3, 2 a step, SUV as
  they are; 4 training patients, 1 for validation. First stage 60 steps, learning rate 2e-3; second stage 30 steps at 5e-4,
  after 10 of the critic alone. A toy: figures are those of a network that is far from trained.
- Arms of the second stage: "L1" alone; "aligned", with the alignment to the full dose, weight 0.1 (the published 1e-3 would
  show nothing in so few steps); "masked", with the critic on the relative mask, weight 0.02 (the published 1e-3 at its
  scale of 20 SUV). Weights of the last step are taken.
- Distance of styles between each dose and the full dose, over the spread of styles between patches: 16 patches of the first
  2 test patients, arms "L1" and "aligned", and the first stage. Primary: difference of its mean over doses by seed.
- Flat regions: a box of 48^3 voxels around the liver of the first 2 test patients; voxels of liver and of muscle in which
  the noise-free image varies by less than 5 % over 3 x 3 x 3 voxels; air takes no part. Root mean squared error against the
  noise-free image, mean over patients, doses and the two tissues. Primary: "masked" minus "L1" by seed.
- Both with a 95 % t-interval over the seeds.

Mask
- Share of body, air and each organ at each threshold, mean over the first 3 training patients.

Contest
- Generators of equal size, steps and learning rate: the base network trained for each dose alone, with the steps of both
  stages for each; the same pooled over doses; pooled with MixStyle; with the style alignment network, L1 alone in the
  second stage; aligned to the full dose; to the batch's mean; UniPET with the relative mask, with the published one, with
  none, with a frozen base, with separate slopes; the conditional GAN.
- Primary figure: gain in PSNR in the body against an independent full dose, mean over the trained doses, by patient. UniPET
  with the relative mask is on par with dose-specific networks if the lower end of the 95 % bootstrap interval of its paired
  difference lies above -0.2 dB. All others are secondary, against the pooled base network, corrected after Holm.
- "Sharper" is the slope across lesion edges, given beside the SD of noise between realizations, the local SD and false hot
  blobs.
- Beside them the methods of `benchmarks.cross_dose` with their U-Net, same target, loss, steps and samples: the conditional
  GAN's generator without its critic ("U-Net, direct"), and residual noise learning ("U-Net, residual r0").
- Figures at DRF 4, 10, 20 and 100; 10 was never trained on. Distance of styles as in the problem, of the models that have a
  style.
- Size small, for the time of two cores, settled before its first run: 13 test patients; 16 channels and 4 blocks, 600 steps
  and 300 of the second stage, patches of 32^3, 2 a step; the critic has 16 channels at first; all networks are trained and
  evaluated in bf16, all alike.

A run that was interrupted goes on with the same command.
"""

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage, stats

from benchmarks.common import emit
from benchmarks.cross_dose import DOSES, FIRST_TEST_SEED, SIZES, TRAINED, all_rows, compare, make_patients, shown
from benchmarks.progressive import in_bf16
from data_recipes.grid import Grid
from denoise.adversarial.mask_report import mask_report, warnings_of
from denoise.adversarial.settings import AdversarialSettings
from denoise.adversarial.styles import style_distances
from denoise.data import Ladder, Patches, read_ladder
from denoise.denoiser import Denoiser
from denoise.evaluate import all_methods, summarize, tune_filters
from denoise.model_file import load_model
from denoise.networks.unipet import UniPET
from denoise.run_folder import Place
from denoise.statistics import correct_lines
from denoise.train import train
from denoise.train_adversarial import train_adversarial
from denoise.train_settings import TrainSettings
from petsim.cache.store import SubjectFile, read_index, whole_or_nothing
from petsim.memory import keep_freed_memory
from petsim.noise import liver_sphere

SEEDS = (0, 1, 2)
TOY = AdversarialSettings(
    "unipet", blocks=4, align="off", align_weight=0.1, mask="relative", adversarial_weight=0.0, critic_width=8,
    critic_steps=10, adversarial_steps=30, adversarial_rate=5e-4,
)  # fmt: skip
TOY_SETTINGS = TrainSettings(
    method="unipet", loss="l1", drf=TRAINED, target="full", channels=(16,), patch=32, batch=2, max_steps=60,
    learning_rate=2e-3, ema=0.9, validate_every=60, adversarial=TOY,
)  # fmt: skip
ARMS = {
    "L1": TOY, "aligned": replace(TOY, align="full"), "masked": replace(TOY, adversarial_weight=0.02),
}  # fmt: skip
EVALUATED = (4.0, 10.0, 20.0, 100.0)
TRAINING_PATIENTS, TEST_PATIENTS, MASK_PATIENTS, STYLE_PATCHES, BOX, FLAT = 4, 2, 3, 16, 48, 0.05
MARGIN_DB = 0.2


def ladders_of(folder: Path, split: str, count: int) -> tuple[list[Ladder], list[Path]]:
    """The first subjects of a split, and their files."""
    files = [folder / s["file"] for s in read_index(folder)["subjects"] if s["split"] == split][:count]
    return [read_ladder(path) for path in files], files


def flat_regions(ladder: Ladder, file: Path) -> tuple[tuple[slice, ...], dict[str, np.ndarray]]:
    """A box around the liver, and flat voxels of liver and muscle in it."""
    with SubjectFile(file) as f:
        labels, names = f.array("truth/labels"), f.label_names
    assert labels is not None
    grid = Grid(ladder.shape, ladder.spacing_mm, (0.0, 0.0, 0.0))
    of = {name: label for label, name in names.items()}
    sphere = liver_sphere(labels, of["liver"], grid)
    assert sphere is not None
    box = []
    for part, n in zip(sphere, ladder.shape, strict=True):
        first = min(max(0, (part.start + part.stop) // 2 - BOX // 2), n - BOX)
        box.append(slice(first, first + BOX))
    clean = ladder.reference()[tuple(box)].astype(np.float64)
    mean = ndimage.uniform_filter(clean, 3)
    sd = np.sqrt(np.maximum(0, ndimage.uniform_filter(clean**2, 3) - mean**2))
    flat = sd < FLAT * mean
    return tuple(box), {name: flat & (labels[tuple(box)] == of[name]) for name in ("liver", "muscle")}


def flat_errors(model: Path, ladders: list[Ladder], files: list[Path]) -> dict[str, float]:
    """Root mean squared error in flat voxels by tissue and dose, mean over patients, SUV; and mean over all."""
    denoiser, found = Denoiser.load(model, "cpu"), {}
    for ladder, file in zip(ladders, files, strict=True):
        box, regions = flat_regions(ladder, file)
        clean = ladder.reference()[box]
        for drf in TRAINED:
            image = denoiser(ladder.image(ladder.drfs.index(drf))[box], ladder.spacing_mm).image
            for name, inside in regions.items():
                error = float(np.sqrt(np.mean((image - clean)[inside].astype(np.float64) ** 2)))
                found.setdefault(f"{name}, DRF {drf:g}", []).append(error)
    means = {k: float(np.mean(v)) for k, v in found.items()}
    return {**means, "all": float(np.mean(list(means.values())))}


def distances(model: Path, ladders: list[Ladder], size: tuple[int, int, int]) -> dict[str, Any]:
    """Distances of styles by dose in patches of a size, and the mean over doses of those over the spread."""
    network, card = load_model(model)
    assert isinstance(network, UniPET)
    patches = Patches(ladders, (4.0,), size, 1, "noise", "full", 0, measure=False, beside=TRAINED)
    batch = patches.batch(0, range(STYLE_PATCHES))
    images = {1.0: batch.target, **{drf: batch.beside[:, k : k + 1] for k, drf in enumerate(TRAINED)}}
    found = style_distances(network, card.scaling, {k: torch.from_numpy(v.copy()) for k, v in images.items()})
    relative = float(np.mean([line["relative"] for line in found.values()]))
    return {"by_dose": {f"{drf:g}": line for drf, line in found.items()}, "relative": relative}


def interval(values: list[float]) -> dict[str, Any]:
    """Mean with a 95 % t-interval; of one value alone none."""
    line: dict[str, Any] = {"by_seed": values, "mean": float(np.mean(values))}
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
        line["interval"] = [line["mean"] - half, line["mean"] + half]
    return line


def problem(training: Path, test: Path, folder: Path) -> dict[str, Any]:
    """Train the arms with each seed, and compare them; what is done is kept."""
    torch.set_num_threads(1)
    some, files = ladders_of(training, "train", TRAINING_PATIENTS)
    ladders = {"train": some, "val": ladders_of(training, "val", 1)[0]}
    tested_files = sorted(test.glob("*.h5"))[:TEST_PATIENTS]
    tested = [read_ladder(path) for path in tested_files]
    given = {"data_sha256": read_index(training)["configuration_sha256"]}
    place = Place(0, 1, torch.device("cpu"))
    done = []
    for seed in SEEDS:
        row: dict[str, Any] = {"seed": seed}
        models, first = {}, folder / f"first, seed {seed}"
        settings = replace(TOY_SETTINGS, seed=seed, adversarial=replace(TOY, adversarial_steps=0))
        train_adversarial(ladders, first, settings, given, place, lambda *told: None, 0, files, None)
        models["first stage"] = first / "last.safetensors"
        for name, own in ARMS.items():
            run = folder / f"{name}, seed {seed}"
            train_adversarial(ladders, run, replace(settings, adversarial=own), given, place, lambda *told: None, 0, files,
                              models["first stage"])  # fmt: skip
            models[name] = run / "last.safetensors"
            print(f"trained {run.name}", file=sys.stderr, flush=True)
        kept = folder / f"figures, seed {seed}.json"
        if not kept.exists():
            patch = TOY_SETTINGS.patch_size()
            row["styles"] = {name: distances(path, tested, patch) for name, path in models.items()}
            row["flat"] = {name: flat_errors(path, tested, tested_files) for name, path in models.items()}
            with whole_or_nothing(kept) as temporary:
                temporary.write_text(json.dumps(row))
            print(f"measured seed {seed}", file=sys.stderr, flush=True)
        done.append(json.loads(kept.read_text()))
    return {
        "alignment": interval([r["styles"]["aligned"]["relative"] - r["styles"]["L1"]["relative"] for r in done]),
        "style_distance": {n: float(np.mean([r["styles"][n]["relative"] for r in done])) for n in done[0]["styles"]},
        "flat_error_suv": interval([r["flat"]["masked"]["all"] - r["flat"]["L1"]["all"] for r in done]),
        "flat_errors": {n: {k: float(np.mean([r["flat"][n][k] for r in done])) for k in done[0]["flat"][n]}
                        for n in done[0]["flat"]},
        "seeds": done,
    }  # fmt: skip


def masks(training: Path) -> dict[str, Any]:
    """What the masks hold, and where they are called inactive."""
    shares = mask_report(*ladders_of(training, "train", MASK_PATIENTS), "relative", 3.0)
    warnings = [w for line in shares for w in warnings_of(shares, line["mask"], line["threshold"])]
    return {"patients": MASK_PATIENTS, "shares": shares, "warnings": warnings}


@dataclass(frozen=True)
class Extent:
    """What differs between the sizes of the contest."""

    settings: TrainSettings
    own: AdversarialSettings
    test: int


GPU = Extent(
    TrainSettings(
        method="unipet", loss="l1", drf=TRAINED, target="full", channels=(32,), patch=64, batch=4, max_steps=1500,
        learning_rate=1e-3, validate_every=500, adversarial=AdversarialSettings(),
    ),
    AdversarialSettings(
        "unipet", mask="relative", adversarial_weight=0.02, critic_width=32, critic_steps=150, adversarial_steps=750,
        adversarial_rate=2e-4,
    ),
    24,
)  # fmt: skip
LITTLE = replace(GPU.settings, channels=(16,), patch=32, batch=2, precision="bf16")
EXTENTS = {
    "gpu": GPU,
    "small": Extent(
        replace(LITTLE, max_steps=600, validate_every=200),
        replace(GPU.own, blocks=4, critic_width=16, critic_steps=60, adversarial_steps=300),
        13,
    ),
    "smoke": Extent(
        replace(LITTLE, max_steps=2, validate_every=2),
        replace(GPU.own, blocks=4, critic_width=2, critic_steps=1, adversarial_steps=2),
        2,
    ),
}  # fmt: skip
DOSE_SPECIFIC, POOLED, FULL_METHOD = "base, dose-specific", "base, pooled", "UniPET, relative mask"


def second_stages(own: AdversarialSettings) -> dict[str, AdversarialSettings]:
    """Contestants that start from the first stage with the style alignment network."""
    still = replace(own, adversarial_weight=0.0)
    return {
        "SAN, L1": replace(still, align="off"),
        "SAN, aligned": still,
        "SAN, aligned to the mean": replace(still, align="mean"),
        FULL_METHOD: own,
        "UniPET, published mask": replace(own, mask="absolute"),
        "UniPET, no mask": replace(own, mask="off"),
        "UniPET, frozen base": replace(own, base="frozen"),
    }


def train_all(training: Path, folder: Path, extent: Extent, device: str) -> list[Path]:
    """Train all contestants, and give their folders."""
    one, runs = extent.own, []
    steps = extent.settings.max_steps + one.adversarial_steps

    def made(name: str, own: AdversarialSettings | None, first: Path | None = None, **given: Any) -> Path:
        train(training, folder / name, replace(extent.settings, adversarial=own, **given), device, pretrained=first)
        print(f"trained {name}", file=sys.stderr, flush=True)
        return folder / name

    base = replace(one, style="off", align="off", mask="off", adversarial_weight=0.0, adversarial_steps=0)
    for drf in TRAINED:
        made(f"{DOSE_SPECIFIC}/drf-{drf:g}", base, drf=(drf,), max_steps=steps)
    runs.append(folder / DOSE_SPECIFIC)
    runs.append(made(POOLED, base, max_steps=steps))
    runs.append(made("base, MixStyle", replace(base, style="mixstyle"), max_steps=steps))
    first = made("first stage", replace(one, adversarial_steps=0)) / "best.safetensors"
    runs += [made(name, own, first) for name, own in second_stages(one).items()]
    runs.append(made("UniPET, separate slopes", replace(one, slopes="separate")))
    gan = replace(one, name="cgan", align="off", mask="off")
    channels = tuple(extent.settings.channels[0] * k for k in (1, 2, 4))
    runs.append(made("conditional GAN", gan, method="cgan", channels=channels))
    runs.append(made("U-Net, direct", None, method="direct", channels=channels, max_steps=steps))
    runs.append(made("U-Net, residual r0", None, method="residual", variant="r0", channels=channels, max_steps=steps))
    return runs


def contest(training: Path, test: Path, folder: Path, size: str, device: str) -> dict[str, Any]:
    """Train all, evaluate, and compare."""
    extent = EXTENTS[size]
    runs = train_all(training, folder / "runs", extent, device)
    tuned = tune_filters(training, "test")
    methods = all_methods(runs, tuned, device)
    with in_bf16(device):
        rows = all_rows(test, folder / "rows", methods, runs, EVALUATED)
    tested = [read_ladder(path) for path in sorted(test.glob("*.h5"))[:TEST_PATIENTS]]
    styled = [folder / "runs" / "first stage", *(run for run in runs if run.name in second_stages(extent.own))]
    patch = extent.settings.patch_size()
    styles = {run.name: distances(run / "best.safetensors", tested, patch)["relative"] for run in styled}
    primary = compare(rows, TRAINED, [FULL_METHOD], DOSE_SPECIFIC)
    secondary = compare(rows, TRAINED, [run.name for run in runs if run.name != POOLED], POOLED)
    correct_lines(secondary, "p")
    beside = ("lesion_sharpness", "liver_noise_sd", "liver_local_sd", "noise_per_mm")
    summary = summarize(rows, 0)
    lines = [{**line, **{k: own.get(k) for k in beside}} for line, own in zip(shown(summary), summary, strict=True)]
    return {
        "size": size, "margin_db": MARGIN_DB, "primary": primary,
        "on_par": bool(primary[0]["interval_db"][0] > -MARGIN_DB), "secondary": secondary, "style_distance": styles,
        "summary": lines,
    }  # fmt: skip


def main() -> None:
    """Make the patients, train, evaluate, and print the JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("problem", "mask", "contest"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=EXTENTS, default="gpu")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--patients", type=Path, help="folder with training and test patients, which is not written to")
    args = parser.parse_args()
    keep_freed_memory()
    if args.patients is not None:
        training, test = args.patients / "training", args.patients / "test"
    else:
        size = SIZES["smoke" if args.size == "smoke" else "small"]
        made = (size.scanner, size.duration_s, DOSES)
        training = make_patients(args.folder / "training", *made, range(size.training), args.device)
        seeds = range(FIRST_TEST_SEED, FIRST_TEST_SEED + EXTENTS[args.size].test)
        test = make_patients(args.folder / "test", *made, seeds, args.device)
    if args.what == "mask":
        emit("unipet_mask", masks(training))
        return
    if args.what == "problem":
        emit("unipet", problem(training, test, args.folder / "unipet"))
        return
    found = contest(training, test, args.folder / "unipet-contest", args.size, args.device)
    if args.size == "smoke":
        print(json.dumps(found))
    else:
        emit(f"unipet_{args.size}", found)


if __name__ == "__main__":
    main()
