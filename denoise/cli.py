"""The `denoise` command. Only what parsing needs is imported here; the rest when a command runs."""

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg, subcommand

import denoise
from data_recipes.errors import DataError, UsageError
from petsim import command_line

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Train:
    """Train a network on a dataset of petsim make-dataset; the same command goes on with an interrupted run."""

    method: Positional[
        Literal["direct", "dose-specific", "dose-conditioned", "residual", "ddpm", "map-diff", "flow", "unipet", "cgan"]
    ]
    """direct: one network gives the image; dose-specific: one for each dose; dose-conditioned: it is told the noise level;
    residual: one network gives the noise (our implementation after arXiv 2604.16925); ddpm: conditional diffusion; map-diff:
    diffusion with anchors at intermediate doses (our implementation after arXiv 2603.02012); flow: rectified flow; unipet:
    style alignment, region-aware adversarial learning (our implementation after arXiv 2606.11131); cgan: conditional GAN."""
    data: str
    """Folder of the dataset."""
    out: str
    """Folder of the run."""
    drf: tuple[float, ...] = ()
    """Doses of the inputs. Default: all of the dataset below full dose."""
    drf_weights: tuple[float, ...] = ()
    """How often each dose is drawn, relative to the others. Default: evenly."""
    rotate: bool = False
    """Turn patches by random quarters about the axis of the scanner, besides the flips."""
    target: Literal["noise-free", "complement", "full", "independent"] | None = None
    """noise-free: the reconstruction of the expected counts (default; simulated subjects only); complement: the counts that
    the input lacks (default for recorded data); full: the nested full dose, whose best estimate copies noise (default of
    unipet and cgan); independent: the full dose of another realization."""
    live: str | None = None
    """Folder of a cache that petsim serve-cache fills: train on its fresh realizations, as far as there are any."""
    on_the_fly: bool = False
    """Fill such a cache in the background (data's folder, live), and train on it. For generated patients."""
    cache_gb: float = 20.0
    """Disk space of the cache with --on-the-fly."""
    workers: int = 0
    """Threads that load samples ahead; results do not depend on it."""
    variant: Literal["r0", "r1", "r2"] = "r0"
    """Of residual: plain, noise over the volume's measured noise, or errors weighed by the dose's noise."""
    loss: Literal["l2", "l1"] | None = None
    """Squared (default) or absolute error (default of unipet and cgan)."""
    condition: Literal["noise", "nec", "drf"] = "noise"
    """What dose-conditioned is told, as a logarithm: measured noise level, noise-equivalent counts a meter, or DRF."""
    dims: Literal["3", "2.5", "2"] = "3"
    """Dimensions of the network; 2.5: five neighboring slices in, the middle one out."""
    channels: tuple[int, ...] = ()
    """Channels of the U-Net's levels (default 16 32 64); of unipet one number (64)."""
    transform: Literal["linear", "log", "anscombe"] = "linear"
    """Of SUV before the network."""
    scale_suv: float | None = None
    """SUV that becomes about 1 for the network. Default: 1; 20 of unipet and cgan."""
    clip_suv: float | None = None
    """Cut SUV here before the network. Default: not; 20 of unipet and cgan."""
    patch: int | None = None
    """Edge of the patches in voxels. Default: 32; 64 of unipet and cgan, whose critics take multiples of 32."""
    batch: int | None = None
    """Patches a step, over all devices. Default: 4; 2 of unipet and cgan."""
    max_steps: int = 2000
    """Steps of training, for each network; of unipet and cgan those of the first stage."""
    learning_rate: float | None = None
    """Largest learning rate of AdamW. Default: 1e-3; 1e-4 of unipet and cgan."""
    validate_every: int = 200
    """Steps between validations, after which the state is saved."""
    patience: int = 20
    """Validations without a better one before training stops."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU that has it, else fp32."""
    schedule: Literal["linear", "cosine", "edm", "flow"] | None = None
    """Of ddpm and map-diff: how noise grows (default linear). flow has its own."""
    diffusion_steps: int | None = None
    """Steps of the schedule. Default: 1000."""
    prediction: Literal["eps", "image", "v", "velocity"] | None = None
    """What a generative network gives: noise, as published for ddpm; image; a mix of both whose size does not hang on the
    time (default of ddpm and map-diff), or noise minus image (default of flow)."""
    noise: Literal["white", "measured"] | None = None
    """What diffuses: white noise (default), or noise with the covariance of the training images' own."""
    way: Literal["noise", "ladder"] | None = None
    """Of flow: from noise to the image (default), or from the low dose through the doses between."""
    anchors: str | None = None
    """Of map-diff: file of denoise calibrate-anchors. Default: calibrated on training subjects."""
    anchor_drfs: tuple[float, ...] = ()
    """Of map-diff: doses of the anchors. Default: those of the file, else 2 4 10, or all between full dose and input."""
    anchor_weight: float | None = None
    """Of map-diff: weight of the anchors' error. Default: 0.1."""
    anchor_power: float | None = None
    """Of map-diff: p of its weight (1 - t/T)^p. Default: 2; 0 is a constant weight."""
    clamp: bool = False
    """Of map-diff: cut estimates at the range of images in the anchors' error."""
    bound: float | None = None
    """Of map-diff: most that the weight may be times the error gain (1 - abar) / abar. Default: no bound."""
    style: Literal["san", "off", "mixstyle"] | None = None
    """Of unipet: style alignment network (default), base network alone, or base network with MixStyle."""
    slopes: Literal["shared", "separate"] | None = None
    """Of unipet: one slope of PReLU for all layers of a kind, as in the authors' code (default), or one for each."""
    align: Literal["off", "full", "mean"] | None = None
    """Of unipet: draw the style of features to that of the full dose (default with san), or to the mean of the batch."""
    align_weight: float | None = None
    """Weight of that. Default: 0.001."""
    mask: Literal["off", "absolute", "relative"] | None = None
    """Of unipet: the critic sees all, what has a local variance from --threshold SUV^2 on (default), or what has more than
    --threshold times the local variance of the full dose's own noise, which simulated subjects know."""
    threshold: float | None = None
    """Of the mask. Default: 0.001, as published; relative: 3."""
    base: Literal["trained", "frozen"] | None = None
    """Of unipet, second stage: train the base network too (default), or the style alignment network alone."""
    adversarial_weight: float | None = None
    """Of unipet and cgan: weight of the critic's score. Default: 0.001; 0: no critic."""
    critic_width: int | None = None
    """Channels of the critic's first layer. Default: 64."""
    critic_steps: int | None = None
    """Steps of the critic alone. Default: 200; published 10000."""
    adversarial_steps: int | None = None
    """Steps of the second stage. Default: 2000; published 300000."""
    adversarial_rate: float | None = None
    """Learning rate there. Default: 1e-4."""
    pretrained: str | None = None
    """Model file from which the second stage starts; the first is left out."""
    seed: int = 0
    """Seed of weights and samples."""
    device: Device = "auto"
    """Where to train."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class Apply:
    """Denoise NIfTI files and DICOM folders; results are of the same kind, with unit and affine kept."""

    run: Positional[str]
    """Folder of a run, or a model file."""
    inputs: Positional[tuple[str, ...]]
    """NIfTI files or DICOM folders."""
    out: str
    """File or folder to write; for several inputs a folder."""
    source_units: Literal["bqml", "suv"] | None = None
    """Unit of the values. Default: what the file says."""
    sidecar: str | None = None
    """JSON or CSV with weight and injected activity beside a NIfTI file."""
    weight_kg: float | None = None
    """Body weight, where the file does not say."""
    activity_mbq: float | None = None
    """Injected activity, where the file does not say."""
    uptake_s: float | None = None
    """Seconds from injection to scan start, where the file does not say."""
    drf: float | None = None
    """Dose reduction factor of the inputs, for models that need it. Default: the noise level is measured."""
    nec_per_m: float | None = None
    """Noise-equivalent counts a meter of the inputs, for models that are told them."""
    strength: float = 1.0
    """0 leaves the input, 1 is the full effect."""
    weights: Literal["best", "last"] = "best"
    """Weights with the least validation error, or the last ones."""
    device: Device = "auto"
    """Where to compute."""
    sampler: Literal["ancestral", "ddim", "dpm", "heun"] | None = None
    """Of generative models. Default: the usual one of the method."""
    steps: int | None = None
    """Of generative models: times at which the image is estimated. Default: the usual number of the method."""
    start: Literal["noise", "input"] = "noise"
    """Of generative models: noise, or the input with noise added, at the time that stands for its own noise."""
    samples: int = 1
    """Of generative models: samples that are averaged; with two or more their spread is written too (NAME_spread)."""
    save_anchors: bool = False
    """Of generative models with anchors: write the estimates at intermediate doses too (NAME_drf-010)."""
    seed: int = 0
    """Of samples."""
    stitching: Literal["blend", "hard"] = "blend"
    """Of unipet: tiles are blended, or overwrite each other as in the authors' code."""
    overwrite: bool = False
    """Replace an earlier result."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class CalibrateAnchors:
    """Find the diffusion time that stands for each dose, by degradation matching: a file for denoise train map-diff."""

    out: str
    """File to write (JSON); a figure of the same name is put beside it."""
    data: str | None = None
    """Folder of a dataset: its training subjects."""
    real: str | None = None
    """Folder of scans at several doses, such as the challenge's: Full_dose, 1-20 dose ... for each subject."""
    target: Literal["noise-free", "full"] | None = None
    """What images are compared with, and what training takes as the image. Default: noise-free; full with --real."""
    drf: tuple[float, ...] = ()
    """Doses. Default: all."""
    schedule: Literal["linear", "cosine", "edm", "flow"] = "linear"
    """How noise grows, as in training."""
    diffusion_steps: int = 1000
    """Steps of the schedule."""
    noise: Literal["white", "measured"] = "white"
    """What diffuses: white noise, or noise with the measured covariance."""
    transform: Literal["linear", "log", "anscombe"] = "linear"
    """Of SUV before the network, as in training."""
    scale_suv: float = 1.0
    """SUV that becomes about 1 for the network; anchors of a large one collapse."""
    clip_suv: float | None = None
    """Cut SUV here before the network. Default: not."""
    by: Literal["both", "nmae", "ssim"] = "both"
    """Which part of the signature gives the anchors."""
    unpaired: bool = False
    """Match the noise level of --real's images alone, which need no full dose, to that of --data's images with noise."""
    source_units: Literal["bqml", "suv"] | None = None
    """Unit of --real's values. Default: what the files say."""
    seed: int = 0
    """Of noise and bootstrap."""
    json: bool = False
    """Last line on standard output is one JSON object."""


@dataclass(frozen=True)
class Evaluate:
    """Figures of merit of runs on a dataset, beside the input, a tuned Gaussian and tuned non-local means."""

    runs: Positional[tuple[str, ...]]
    """Folders of runs."""
    data: str
    """Folder of the dataset."""
    out: str = "evaluation"
    """Folder for tables, figures and the page."""
    split: Literal["test", "val", "train", "all"] = "test"
    """Subjects of the dataset."""
    convention: tuple[Literal["unipet", "challenge"], ...] = ()
    """Add figures as these define them: the code published with UniPET, the Ultra-low Dose PET Imaging Challenge."""
    device: Device = "auto"
    """Where to compute."""
    seed: int = 0
    """Seed of the bootstrap."""
    json: bool = False
    """Last line on standard output is one JSON object."""


Command = Annotated[
    Annotated[Train, subcommand("train")]
    | Annotated[Apply, subcommand("apply")]
    | Annotated[CalibrateAnchors, subcommand("calibrate-anchors")]
    | Annotated[Evaluate, subcommand("evaluate")],
    FlagCreatePairsOff,
    OmitArgPrefixes,
    arg(name=""),
]


def main() -> None:
    """Entry point: parse, run, and turn errors into one line and an exit status."""
    command_line.run("denoise", parse, _run, "run the same command again to go on", "lower --batch or --patch")


def parse(argv: list[str]) -> Any:
    """Command line to one of the command dataclasses; a wrong one raises `UsageError` with a single line."""
    return command_line.parse(Command, "denoise", denoise.__doc__, argv)


def _run(command: Any) -> dict[str, Any]:
    from petsim.memory import keep_freed_memory

    keep_freed_memory()
    try:
        if isinstance(command, Train):
            return _train(command)
        if isinstance(command, CalibrateAnchors):
            return _calibrate(command)
        return _apply(command) if isinstance(command, Apply) else _evaluate(command)
    except ModuleNotFoundError as error:
        raise DataError(f"{error.name} is not installed; run pip install 'petsim[train]'") from None
    except RuntimeError as error:
        # What torch raises, on a GPU and on a CPU.
        if any(words in str(error) for words in ("out of memory", "can't allocate memory")):
            raise MemoryError from None
        raise


def _train(command: Train) -> dict[str, Any]:
    import os
    from dataclasses import fields

    from denoise.adversarial.settings import PUBLISHED_TRAINING
    from denoise.data import usual_target
    from denoise.live import check_live
    from denoise.train import TrainSettings, train, with_doses
    from petsim.cache.store import read_index
    from petsim.progress import progress_bar
    from petsim.serve import ServeOptions, start

    usual: dict[str, Any] = PUBLISHED_TRAINING
    if command.method not in ("unipet", "cgan"):
        usual = {"target": usual_target(Path(command.data))}
    elif command.method == "unipet":
        usual = {**PUBLISHED_TRAINING, "channels": (64,)}
    names = {f.name for f in fields(TrainSettings)} & {f.name for f in fields(Train)}
    own = {name: value for name in names if (value := getattr(command, name)) not in (None, ())}
    settings = TrainSettings(**{**usual, **own}, diffusion=_generative(command), adversarial=_adversarial(command))
    each = settings.method == "dose-specific"
    data, live = Path(command.data), None if command.live is None else Path(command.live)
    if command.workers < 0:
        raise UsageError(f"--workers: must be 0 or more, got {command.workers}")
    if not command.cache_gb > 0:
        raise UsageError(f"--cache-gb: must be positive, got {command.cache_gb:g}")
    if command.on_the_fly and live is not None:
        raise UsageError("--on-the-fly: fills a cache of its own; leave it out where --live names one")
    if live is not None:
        check_live(live, read_index(data)["configuration_sha256"])
    producer = None
    with progress_bar(len(with_doses(data, settings).drf) if each else 1) as report:

        def progress(steps: int, error: float) -> None:
            done = steps / settings.steps_in_all
            report(command.method, f"step {steps}, error {error:.3g}{'' if live is None else _producing(live)}", done)

        if command.on_the_fly:
            options = ServeOptions(command.data, budget_gb=command.cache_gb)
            live = options.root
            # Of several processes of one training on a machine, one fills the cache.
            producer = start(options) if os.environ.get("LOCAL_RANK", "0") == "0" else None
        try:
            pretrained = None if command.pretrained is None else Path(command.pretrained)
            result = train(data, Path(command.out), settings, command.device, progress, live, command.workers, pretrained)
        finally:
            ended = producer is not None and not producer.is_alive()
            if producer is not None:
                producer.terminate()
    if ended:
        print("warning: the cache was no longer filled at the end, see above; log.csv has the part of fresh samples")
    for name, one in result.items() if each else [(command.method, result)]:
        print(f"{name}: {one['steps']} steps, validation error {one['validation_error']:.4g}")
    return result


def _generative(command: Train) -> Any:
    """Settings of a generative method; None for others, which none of its flags fit."""
    from denoise.diffusion.calibration import read_calibration
    from denoise.diffusion.settings import usual_settings

    names = ("schedule", "diffusion_steps", "prediction", "noise", "way", "anchor_weight", "anchor_power", "bound")
    given = {name: getattr(command, name) for name in names}
    if command.method not in ("ddpm", "map-diff", "flow"):
        wrong = [name for name, value in given.items() if value is not None]
        wrong += [name for name in ("anchors", "anchor_drfs", "clamp") if getattr(command, name)]
        if wrong:
            raise UsageError(f"--{wrong[0].replace('_', '-')}: {command.method} is not generative; leave it out")
        return None
    given |= {"clamp": command.clamp, "anchor_drfs": command.anchor_drfs}
    if command.anchors is not None:
        stored = read_calibration(Path(command.anchors), command.anchor_drfs)
        given |= {"anchors": stored.anchors, "colored": stored.colored}
    return usual_settings(command.method, given)


def _adversarial(command: Train) -> Any:
    """Settings of adversarial training; None for other methods, which none of its flags fit."""
    from dataclasses import fields

    from denoise.adversarial.settings import AdversarialSettings

    names = {f.name for f in fields(AdversarialSettings)} & {f.name for f in fields(Train)}
    given = {name: value for name in sorted(names) if (value := getattr(command, name)) is not None}
    if command.method not in ("unipet", "cgan"):
        if given:
            raise UsageError(f"--{next(iter(given)).replace('_', '-')}: {command.method} has no critic; leave it out")
        return None
    usual: dict[str, Any] = {"name": command.method}
    if command.method == "cgan" or command.style in ("off", "mixstyle"):
        usual["align"] = "off"
    if command.method == "cgan":
        usual["mask"] = "off"
    return AdversarialSettings(**{**usual, **given})


def _calibrate(command: CalibrateAnchors) -> dict[str, Any]:
    from denoise.diffusion.calibration import CalibrationRequest, calibrate_folder, times_without_pairs, write_calibration
    from denoise.diffusion.figure import anchors_figure
    from denoise.diffusion.schedule import NoiseSchedule
    from denoise.scaling import Scaling
    from petsim.cache.store import whole_or_nothing
    from petsim.progress import progress_bar

    out = Path(command.out)
    figure = out.with_suffix(".png")
    if out == figure:
        raise UsageError(f"--out {out.name}: is the name of the figure beside it; name a .json file")
    schedule = NoiseSchedule(command.schedule, command.diffusion_steps)
    scaling = Scaling(command.transform, command.scale_suv, command.clip_suv)
    data, real = (None if folder is None else Path(folder) for folder in (command.data, command.real))
    request = CalibrationRequest(
        data, real, command.target, command.drf, schedule, scaling, command.noise == "measured", command.by, command.seed,
        command.source_units,
    )  # fmt: skip
    if command.unpaired:
        values = times_without_pairs(request, out)
        for line in values["anchors"]:
            print(f"DRF {line['drf']:g}: time {line['time']:.1f} by the noise level of {line['images']} images")
        return values
    with progress_bar(1) as report:
        calibration = calibrate_folder(request, lambda what, fraction: report("calibrating", what, fraction))
    values = write_calibration(out, calibration)
    with whole_or_nothing(figure) as temporary:
        anchors_figure(calibration).savefig(temporary, format="png", dpi=110)
    print(f"{calibration.pairs}, {calibration.subjects} subjects, reference {calibration.reference}")
    for line in values["anchors"]:
        low, high = line["interval"]
        apart = ", ".join(f"{name} {line['times'][name]:.1f}" for name in ("nmae", "ssim"))
        print(f"DRF {line['drf']:g}: time {line['time']:.1f} ({low:.1f} to {high:.1f}); by {apart}")
    for warning in calibration.warnings:
        print(f"  warning: {warning}")
    return values


@lru_cache(maxsize=1)
def _latest(live: Path, second: int) -> str:
    from petsim.cache.live import read_note
    from petsim.producer import STATE

    state = read_note(live, STATE)
    if state is None:
        return ", no fresh realization yet"
    return f", {state['made']} fresh realizations, {state['per_minute']:.1f} a minute"


def _producing(live: Path) -> str:
    """What the producer of a cache does, looked up once a second."""
    return _latest(live, int(time.monotonic()))


def _apply(command: Apply) -> dict[str, Any]:
    from dataclasses import fields

    from denoise.apply import ApplyOptions, apply
    from denoise.generate import Sampling

    if not command.inputs:
        raise UsageError("no input given; name NIfTI files or DICOM folders after the run")
    own = {f.name: getattr(command, f.name) for f in fields(ApplyOptions) if f.name != "sampling"}
    sampling = Sampling(command.sampler, command.steps, command.start, command.samples, command.seed, command.save_anchors)
    options = ApplyOptions(**own, sampling=sampling)
    results = apply(Path(command.run), [Path(p) for p in command.inputs], Path(command.out), options)
    for one in results:
        print(f"{one['name']}: noise level {one['relative_noise']:.3f}")
        for warning in one["warnings"]:
            print(f"  warning: {warning}")
    return {"results": results}


def _evaluate(command: Evaluate) -> dict[str, Any]:
    from denoise.denoiser import model_files
    from denoise.evaluate import evaluate
    from denoise.model_file import read_card
    from denoise.report import markdown, write_evaluation
    from petsim.cache.store import make_folder
    from petsim.progress import progress_bar

    runs, out = [Path(r) for r in command.runs], Path(command.out)
    make_folder(out)
    with progress_bar(1) as report:
        result = evaluate(
            runs, Path(command.data), command.split, command.device, command.seed, command.convention,
            lambda what, fraction: report("evaluating", what, fraction),
        )  # fmt: skip
    targets = {run.name: read_card(model_files(run)[0]).target for run in runs}
    write_evaluation(result, out, targets)
    print(markdown(result, targets))
    print(f"{out / 'index.html'}")
    return {"summary": result.summary, "tuned": result.tuned}


if __name__ == "__main__":
    main()
