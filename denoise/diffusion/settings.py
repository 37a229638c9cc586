"""Settings of generative methods, and the method that they and the training data make."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from data_recipes.errors import UsageError
from denoise.data import Ladder, Target
from denoise.diffusion.anchors import digest_of
from denoise.diffusion.calibration import (
    Reference,
    anchors_of,
    calibrate,
    cases_of_ladders,
    noise_of_cases,
)
from denoise.diffusion.method import Anchors, Diffusion, DiffusionName, Prediction, Way
from denoise.diffusion.noise import ColoredNoise
from denoise.diffusion.schedule import Kind, NoiseSchedule
from denoise.diffusion.signature import ratios_of_doses
from denoise.scaling import Scaling
from petsim.noise import body_mask

NoiseKind = Literal["white", "measured"]

CALIBRATED_ON = 8
"""Training subjects on which anchors are calibrated where none are given."""

USUAL_INPUT, USUAL_ANCHORS = 20.0, (2.0, 4.0, 10.0)
"""Doses of map-diff where a dataset has them (`--drf-set map-diff`)."""


@dataclass(frozen=True)
class DiffusionSettings:
    """What `denoise.diffusion.method.Diffusion` is made from, besides the data.

    Parameters
    ----------
    name, schedule : str
    diffusion_steps : int
    prediction : str
    noise : str
        "white", or "measured": with the covariance of the noise of the training images.
    way, anchor_weight, anchor_power, clamp, bound
        See `Diffusion`.
    anchors : Anchors, optional
        From a file; None: "map-diff" calibrates on its training subjects.
    anchor_drfs : tuple of float
        Doses of those.
    colored : ColoredNoise, optional
        That of the file of anchors.
    """

    name: DiffusionName = "ddpm"
    schedule: Kind = "linear"
    diffusion_steps: int = 1000
    prediction: Prediction = "v"
    noise: NoiseKind = "white"
    way: Way = "noise"
    anchor_weight: float = 0.1
    anchor_power: float = 2.0
    clamp: bool = False
    bound: float | None = None
    anchors: Anchors | None = None
    anchor_drfs: tuple[float, ...] = ()
    colored: ColoredNoise | None = None

    def __post_init__(self) -> None:
        if not self.anchor_weight >= 0 or not self.anchor_power >= 0:
            raise UsageError("--anchor-weight and --anchor-power must be 0 or more")
        if self.bound is not None and not self.bound > 0:
            raise UsageError(f"--bound: must be positive, got {self.bound:g}")


def usual_settings(name: DiffusionName, given: dict[str, Any]) -> DiffusionSettings:
    """Settings of a method with what is given; None there means the usual."""
    usual = {"schedule": "flow", "prediction": "velocity"} if name == "flow" else {}
    return DiffusionSettings(name, **{**usual, **{k: v for k, v in given.items() if v is not None}})


def with_usual_doses(
    settings: DiffusionSettings, own: Sequence[float], inputs: tuple[float, ...]
) -> tuple[tuple[float, ...], DiffusionSettings]:
    """Doses of the inputs, and settings with those of the anchors, where they are not named.

    "map-diff" takes DRF 20 as input, or the highest of a dataset without it; anchors are those of the file that lie below,
    else 2, 4 and 10, else all of the dataset's between. Other methods take all doses.

    Parameters
    ----------
    settings : DiffusionSettings
    own : sequence of float
        Doses of the dataset.
    inputs : tuple of float
        What was asked for; empty: nothing.
    """
    lower = tuple(sorted(d for d in own if d > 1))
    if settings.name != "map-diff":
        return inputs or lower, settings
    inputs = inputs or ((USUAL_INPUT,) if USUAL_INPUT in lower else lower[-1:])
    least = min(inputs, default=0.0)
    if settings.anchors is not None:
        kept = [(d, t) for d, t in zip(settings.anchors.drfs, settings.anchors.times, strict=True) if d < least]
        if kept:
            drfs, times = zip(*kept, strict=True)
            return inputs, replace(settings, anchors=Anchors(drfs, times, settings.anchors.digest), anchor_drfs=())
    between = (
        USUAL_ANCHORS if set(USUAL_ANCHORS) <= {d for d in lower if d < least} else tuple(d for d in lower if d < least)
    )
    anchors = settings.anchor_drfs or between
    if settings.anchors is not None or not anchors:
        raise UsageError(
            "--drf: map-diff needs anchors at doses between full dose and input; make a dataset with --drf-set map-diff"
        )
    return inputs, replace(settings, anchor_drfs=anchors)


def made(
    settings: DiffusionSettings, ladders: Sequence[Ladder], drfs: Sequence[float], target: Target,
    scaling: Scaling, seed: int,
) -> Diffusion:  # fmt: skip
    """The method, with what is measured in the training subjects.

    Raises
    ------
    UsageError
        A target whose own noise would be learned, anchors of another calibration, or doses that do not fit.
    DataError
    """
    if target not in ("noise-free", "full"):
        raise UsageError(f"--target {target}: a generative model would learn its noise; use noise-free or full")
    reference: Reference = "full" if target == "full" else "noise-free"
    schedule = NoiseSchedule(settings.schedule, settings.diffusion_steps)
    few = ladders[:CALIBRATED_ON]
    cases = cases_of_ladders(few, drfs, reference)
    colored = settings.colored
    if settings.noise == "measured" and colored is None:
        colored = noise_of_cases(cases, scaling)
    if settings.noise == "white" and colored is not None:
        raise UsageError("--anchors: were calibrated with measured noise; add --noise measured")
    anchors, beside = settings.anchors, ()
    if anchors is not None and anchors.digest != digest_of(schedule, scaling, colored, reference):
        raise UsageError(
            "--anchors: were calibrated with another schedule, scaling, noise or target; calibrate again with the flags of "
            "this training"
        )
    if settings.name == "map-diff":
        if anchors is None:
            between = cases_of_ladders(few, settings.anchor_drfs, reference)
            anchors = anchors_of(calibrate(between, schedule, scaling, colored, reference, "training", seed=seed))
        beside = anchors.drfs
        if max(beside) >= min(drfs):
            raise UsageError(f"--drf: inputs must lie above the anchors, up to {max(beside):g}; got {min(drfs):g}")
    elif settings.way == "ladder":
        beside = tuple(d for d in few[0].drfs if (1 if reference == "full" else 0) < d < max(drfs))
    ratios = np.mean([ratios_of_doses(case, scaling, colored, seed + k) for k, case in enumerate(cases)], axis=0).tolist()
    levels = [float(np.mean([ladder.levels[ladder.drfs.index(d)][0].relative for ladder in few])) for d in drfs]
    return Diffusion(
        settings.name, schedule, settings.prediction, _size(few, reference, scaling), colored, settings.way, tuple(beside),
        anchors, settings.anchor_weight, settings.anchor_power, reference == "full", settings.clamp, settings.bound,
        () if settings.way == "ladder" else tuple(zip(levels, ratios, strict=True)),
    )  # fmt: skip


def _size(ladders: Sequence[Ladder], reference: Reference, scaling: Scaling) -> float:
    """Root mean square of target images in the body, network numbers."""
    squares = []
    for ladder in ladders:
        suv = ladder.reference() if reference == "noise-free" else ladder.image(0)
        squares.append(float(np.square(scaling.numbers_of(suv)[body_mask(suv)], dtype=np.float64).mean()))
    return float(np.sqrt(np.mean(squares)))
