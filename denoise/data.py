"""Training samples from a dataset of `petsim make-dataset`: a function of (seed, step, place in the batch) alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data_recipes.errors import DataError, UsageError
from denoise.noise_level import NoiseLevel, noise_level
from petsim.cache.mapped import MappedImages
from petsim.cache.store import SubjectFile, read_index
from petsim.noise import body_mask

Target = Literal["noise-free", "complement", "full", "independent"]
Condition = Literal["noise", "nec", "drf"]

BODY_STRIDE = 4

BODY_SHARE = 0.9
"""Part of the patches that are centered on a voxel of the body."""


@dataclass(frozen=True)
class Volume:
    """A noisy image.

    Parameters
    ----------
    drf : float
    images : MappedImages
        In SUV; `index` is its place along their leading axes.
    index : tuple of int
    measured : callable
        Gives its NoiseLevel, in SUV.
    log_nec_per_m : float
        Logarithm of noise-equivalent counts a meter of the image's length.
    fresh : bool
        Made while training goes on.
    """

    drf: float
    images: MappedImages
    index: tuple[int, ...]
    measured: Callable[[], NoiseLevel]
    log_nec_per_m: float
    fresh: bool = False

    def condition(self, kind: Condition) -> float:
        """What a conditioned network is told of the image."""
        if kind == "noise":
            return float(np.log(self.measured().relative))
        return self.log_nec_per_m if kind == "nec" else float(np.log(self.drf))


Source = tuple[MappedImages, tuple[int, ...]]
"""An image among mapped ones: a target of training."""


@dataclass(frozen=True)
class Ladder:
    """One subject at all doses.

    Parameters
    ----------
    name : str
    drfs : tuple of float
        1 first.
    images : MappedImages
        (dose, realization, x, y, z) in SUV.
    noise_free : MappedImages, optional
        (x, y, z) in SUV; None for measured images.
    body : ndarray
        int32 (n, 3): voxels of the body, every `BODY_STRIDE`-th along each axis.
    levels : list of list of NoiseLevel
        By dose and realization, in SUV.
    log_nec_per_m : ndarray
        float64 (dose, realization): logarithm of noise-equivalent counts a meter of the image's length.
    spacing_mm : tuple of float
    suv_factor : float
        SUV for 1 Bq/mL.
    scanner, mode : str
    inserted : bool
        Noise was inserted below a measured full dose, whose own noise it does not share.
    recorded : bool
        Realizations are thinnings of one recorded scan.
    truncated : bool
        The body is cut off at the sides of the image, which may train networks and serves no figure of theirs.
    """

    name: str
    drfs: tuple[float, ...]
    images: MappedImages
    noise_free: MappedImages | None
    body: np.ndarray
    levels: list[list[NoiseLevel]]
    log_nec_per_m: np.ndarray
    spacing_mm: tuple[float, float, float]
    suv_factor: float
    scanner: str
    mode: str
    inserted: bool
    recorded: bool
    truncated: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (x, y, z)."""
        x, y, z = self.images.shape[2:]
        return x, y, z

    @property
    def realizations(self) -> int:
        """Noise realizations of every dose."""
        return self.images.shape[1]

    def image(self, dose: int, realization: int = 0) -> np.ndarray:
        """A whole volume, float32 SUV."""
        return self.images.volume(dose, realization)

    def reference(self) -> np.ndarray:
        """What images are compared with: the noise-free one, or of a measured image the full dose itself."""
        return self.image(0) if self.noise_free is None else self.noise_free.volume()

    def volume(self, dose: int, realization: int) -> Volume:
        """One of its images."""
        return Volume(
            self.drfs[dose], self.images, (dose, realization), lambda: self.levels[dose][realization],
            float(self.log_nec_per_m[dose, realization]),
        )  # fmt: skip

    def draw(
        self, rng: np.random.Generator, drfs: Sequence[float], target: Target, weights: Sequence[float] = ()
    ) -> tuple[Volume, Source]:
        """A random image at one of some doses, and what its target is made from.

        For "complement" that is the full dose of the same counts, for "independent" the full dose of another realization.
        Doses are drawn evenly, or with `weights`.
        """
        dose = self.drfs.index(drfs[drawn_dose(rng, drfs, drfs, weights)])
        realization = int(rng.integers(self.realizations))
        low = self.volume(dose, realization)
        if target == "noise-free":
            return low, self.clean()
        if target == "independent":
            realization = (realization + 1 + int(rng.integers(self.realizations - 1))) % self.realizations
        return low, (self.images, (0, realization))

    def clean(self) -> Source:
        """The noise-free image, which only simulated subjects have."""
        assert self.noise_free is not None
        return self.noise_free, ()


def drawn_dose(rng: np.random.Generator, choice: Sequence[float], drfs: Sequence[float], weights: Sequence[float]) -> int:
    """Place of a random dose among some; weights of `drfs` are interpolated on the logarithm of the dose."""
    if not weights:
        return int(rng.integers(len(choice)))
    order = np.argsort(drfs)
    own = np.interp(np.log(choice), np.log(drfs)[order], np.asarray(weights, float)[order])
    return int(rng.choice(len(choice), p=own / own.sum()))


def read_ladder(path: Path) -> Ladder:
    """A subject's file as a ladder in SUV.

    Raises
    ------
    DataError
        No SUV, or values that are not finite.
    """
    with SubjectFile(path) as f:
        factor = f.suv_factor
        if factor is None:
            raise DataError(f"{path.name}: weight or activity is not known, so there is no SUV; give them to make-dataset")
        known = "reference/noise_free" in f.h5
        drfs, spacing, mode = tuple(f.drfs), f.spacing_mm, str(f.h5["doses"].attrs["mode"])
        nec = f.doses()["nec"]
        scanner, full_dose = str(f.attribute("scanner")), f.json("provenance").get("full_dose")
        truncated = f.is_truncated
    images = MappedImages(path, "recon", factor)
    clean = MappedImages(path, "reference/noise_free", factor) if known else None
    levels = [[noise_level(images.volume(d, r)) for r in range(images.shape[1])] for d in range(len(drfs))]
    body = np.argwhere(body_mask(images.volume(0, 0))[::BODY_STRIDE, ::BODY_STRIDE, ::BODY_STRIDE]) * BODY_STRIDE
    length_m = images.shape[-1] * spacing[2] / 1000
    return Ladder(
        path.stem, drfs, images, clean, body.astype(np.int32), levels, np.log(np.maximum(nec, 1.0) / length_m), spacing,
        factor, scanner, mode, full_dose == "source", full_dose == "recorded", truncated,
    )  # fmt: skip


def usual_target(folder: Path) -> Target:
    """Target of a dataset where none is named: the complement for recorded data, else the noise-free image."""
    entries = read_index(folder)["subjects"]
    if entries:
        with SubjectFile(folder / entries[0]["file"]) as f:
            if f.json("provenance").get("full_dose") == "recorded":
                return "complement"
    return "noise-free"


def read_split(folder: Path, split: str, target: Target) -> list[Ladder]:
    """Ladders of a split ("train", "val" or "test") of a dataset.

    Raises
    ------
    DataError
        No dataset, no subject in the split, one without the target, or subjects of unequal voxels.
    """
    index = read_index(folder)
    entries = [s for s in index["subjects"] if s["split"] == split]
    if not entries:
        raise DataError(f"{folder.name}: no subject in the split '{split}'; make at least three subjects")
    ladders = [read_ladder(folder / e["file"]) for e in entries]
    first = ladders[0]
    for ladder in ladders:
        if target == "noise-free" and ladder.noise_free is None:
            instead = "complement" if ladder.recorded else "full"
            raise DataError(f"{ladder.name}: measured data have no noise-free reference; train with --target {instead}")
        if target == "complement" and ladder.inserted:
            raise DataError(
                f"{ladder.name}: the full dose is a measured image with noise of its own, so that no complement is "
                "independent of the input; train with --target full"
            )
        if target == "independent" and ladder.recorded:
            raise DataError(
                f"{ladder.name}: realizations of recorded data are thinned from one scan, none is independent of another; "
                "train with --target complement"
            )
        if target == "independent" and (ladder.inserted or ladder.realizations < 2):
            raise DataError(
                f"{ladder.name}: --target independent needs two simulated realizations of the full dose; make the dataset "
                "with --realizations 2 and without --full-dose source"
            )
        if target == "complement" and ladder.mode != "thin":
            raise DataError(f"{ladder.name}: --target complement needs thinned counts, made with --mode thin")
        if not index["configuration"].get("vary") and not np.allclose(ladder.spacing_mm, first.spacing_mm, rtol=0.01):
            raise DataError(
                f"{ladder.name}: voxels of {ladder.spacing_mm} mm, {first.name} has {first.spacing_mm}; make both alike"
            )
    return ladders


def check_told(ladders: Sequence[Ladder], condition: Condition) -> None:
    """Refuse to tell a network what is not known: real scans come without their counts.

    Raises
    ------
    DataError
    """
    unknown = [ladder.name for ladder in ladders if not np.isfinite(ladder.log_nec_per_m).all()]
    if condition == "nec" and unknown:
        raise DataError(
            f"{unknown[0]}: its noise-equivalent counts are not known (images without counts); take --condition noise"
        )


@dataclass(frozen=True)
class Batch:
    """Samples of a step, float32.

    Parameters
    ----------
    low, target : ndarray
        (n, slices, x, y, z) and (n, 1, x, y, z) in SUV.
    condition, sd : ndarray
        (n,): what a conditioned network is told, and the noise [SUV] of the volume that each patch is from; 0 where it was
        not to be measured.
    drf : ndarray
        float64 (n,).
    fresh : ndarray
        bool (n,): from realizations made while training goes on.
    beside : ndarray
        (n, k, x, y, z) in SUV: the same counts at further doses.
    clean : ndarray
        (n, 1, x, y, z) in SUV: noise-free images; (n, 0, x, y, z) where they were not asked for.
    """

    low: np.ndarray
    target: np.ndarray
    condition: np.ndarray
    sd: np.ndarray
    drf: np.ndarray
    fresh: np.ndarray
    beside: np.ndarray
    clean: np.ndarray


class Patches:
    """Random patches of ladders.

    The target `complement` is that of linear reconstructions: with the full-dose image F and L at dose 1/D out of the same
    counts, (D F - L) / (D - 1) holds none of the counts of L. Where noise was inserted below a measured full dose that does
    not hold, and `read_split` refuses it.

    Parameters
    ----------
    ladders : sequence of Ladder
    drfs : tuple of float
        Doses that are drawn, evenly.
    size : tuple of int
        Voxels of a patch.
    slices : int
        Neighboring slices in the channels of an input.
    condition : str
    target : str
    seed : int
    measure : bool
        Measure the noise of volumes, which takes a part of a second for each fresh one.
    weights : tuple of float
        How often each of `drfs` is drawn, relative to the others; empty: evenly.
    rotate : bool
        Turn patches by random quarters about the axis of the scanner, besides the flips.
    beside : tuple of float
        Doses whose images, of the same realization, come with every sample; the ladders must be a dataset's own.
    clean : bool
        Noise-free images come with every sample; the ladders must have them.
    """

    def __init__(self, ladders: Sequence[Ladder], drfs: tuple[float, ...], size: tuple[int, int, int], slices: int,
                 condition: Condition, target: Target, seed: int, measure: bool = True,
                 weights: tuple[float, ...] = (), rotate: bool = False,
                 beside: tuple[float, ...] = (), clean: bool = False) -> None:  # fmt: skip
        self._beside, self._clean = beside, clean
        self._measure, self._weights, self._rotate = measure, weights, rotate
        self.ladders, self.drfs, self.size, self.slices = ladders, drfs, size, slices
        self._condition: Condition = condition
        self._target: Target = target
        self._seed = seed
        if weights and (len(weights) != len(drfs) or not all(0 < w < np.inf for w in weights)):
            raise UsageError(f"--drf-weights: give a positive number for each of the {len(drfs)} doses")
        for ladder in ladders:
            if rotate and not np.isclose(ladder.spacing_mm[0], ladder.spacing_mm[1], rtol=0.01):
                raise UsageError(f"--rotate: voxels of {ladder.name} are not square across; leave it out")
            missing = [d for d in (*drfs, *beside) if d not in ladder.drfs]
            if missing:
                had = " ".join(f"{d:g}" for d in ladder.drfs)
                raise UsageError(f"--drf: {ladder.name} holds {had}, not {missing[0]:g}; choose among them")
            if target == "complement" and 1 in drfs:
                raise UsageError("--drf: the full dose has no complement; leave 1 out")
            if any(n < s for n, s in zip(ladder.shape, size, strict=True)):
                raise UsageError(f"--patch: {size} voxels are more than the {ladder.shape} of {ladder.name}")

    def batch(self, step: int, places: Sequence[int]) -> Batch:
        """Samples at some places of a step's batch."""
        samples = [self._sample(step, place) for place in places]
        low, target, condition, sd, drf, fresh, beside, clean = zip(*samples, strict=True)
        return Batch(
            np.stack(low), np.stack(target), np.array(condition, np.float32), np.array(sd, np.float32),
            np.array(drf, np.float64), np.array(fresh, bool), np.stack(beside), np.stack(clean),
        )  # fmt: skip

    def _sample(
        self, step: int, place: int
    ) -> tuple[np.ndarray, np.ndarray, float, float, float, bool, np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self._seed, step, place))
        ladder = self.ladders[int(rng.integers(len(self.ladders)))]
        volume, (clean, index) = ladder.draw(rng, self.drfs, self._target, self._weights)
        size = np.array(self.size)
        if rng.random() < BODY_SHARE:
            corner = ladder.body[rng.integers(len(ladder.body))] + rng.integers(0, BODY_STRIDE, 3) - size // 2
        else:
            corner = rng.integers(0, np.array(ladder.shape) - size + 1)
        corner = tuple(np.clip(corner, 0, np.array(ladder.shape) - size).tolist())
        low = self._with_neighbors(volume, ladder.shape[2], corner)
        target = clean.patch(index, corner, self.size)
        if self._target == "complement":
            target = (np.float32(volume.drf) * target - low[self.slices // 2]) / np.float32(volume.drf - 1)
        beside = np.empty((len(self._beside), *self.size), np.float32)
        for k, drf in enumerate(self._beside):
            beside[k] = ladder.images.patch((ladder.drfs.index(drf), *volume.index[1:]), corner, self.size)
        noise_free = np.empty((0, *self.size), np.float32)
        if self._clean:
            images, at = ladder.clean()
            noise_free = images.patch(at, corner, self.size)[None]
        axes = tuple(axis for axis in (1, 2, 3) if rng.random() < 0.5)
        low, target, beside, noise_free = (np.flip(a, axes) for a in (low, target[None], beside, noise_free))
        if 3 in axes:
            low = low[::-1]
        if self._rotate:
            quarters = int(rng.integers(4))
            low, target, beside, noise_free = (np.rot90(a, quarters, (1, 2)) for a in (low, target, beside, noise_free))
        condition, sd = (volume.condition(self._condition), volume.measured().sd) if self._measure else (0.0, 0.0)
        return low, target, condition, sd, volume.drf, volume.fresh, beside, noise_free

    def _with_neighbors(self, volume: Volume, depth: int, corner: tuple[int, ...]) -> np.ndarray:
        """(slices, x, y, z): the patch shifted along z by -slices // 2 ... slices // 2; beyond the ends the last slice."""
        half = self.slices // 2
        first, last = max(0, corner[2] - half), min(depth, corner[2] + self.size[2] + half)
        wide = volume.images.patch(volume.index, (*corner[:2], first), (*self.size[:2], last - first))
        places = np.arange(corner[2], corner[2] + self.size[2]) + np.arange(-half, half + 1)[:, None]
        return np.moveaxis(wide[:, :, np.clip(places, 0, depth - 1) - first], 2, 0)
