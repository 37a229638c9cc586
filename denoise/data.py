"""Training samples from a dataset of `petsim make-dataset`: a function of (seed, step, place in the batch) alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data_recipes.errors import DataError, UsageError
from denoise.noise_level import NoiseLevel, body_mask, noise_level
from petsim.cache.schema import unpack
from petsim.cache.store import SubjectFile, read_index

Target = Literal["noise-free", "complement", "full"]
Condition = Literal["noise", "nec", "drf"]

BODY_SHARE = 0.9
"""Part of the patches that are centered on a voxel of the body."""


@dataclass(frozen=True)
class Ladder:
    """One subject at all doses.

    Parameters
    ----------
    name : str
    drfs : tuple of float
        1 first.
    stored : ndarray
        float16 (dose, realization, x, y, z); times `scale` it is SUV.
    scale : float
    target : ndarray
        float32 (x, y, z) in SUV, or (realization, x, y, z) where it is noisy.
    body : ndarray
        int32 (n, 3): voxels of the body.
    levels : list of list of NoiseLevel
        By dose and realization, in SUV.
    log_nec_per_m : ndarray
        float64 (dose, realization): logarithm of noise-equivalent counts a meter of the image's length.
    spacing_mm : tuple of float
    scanner : str
    """

    name: str
    drfs: tuple[float, ...]
    stored: np.ndarray
    scale: float
    target: np.ndarray
    body: np.ndarray
    levels: list[list[NoiseLevel]]
    log_nec_per_m: np.ndarray
    spacing_mm: tuple[float, float, float]
    scanner: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (x, y, z)."""
        x, y, z = self.stored.shape[2:]
        return x, y, z

    def image(self, dose: int, realization: int = 0) -> np.ndarray:
        """A whole volume, float32 SUV."""
        return unpack(self.stored[dose, realization], self.scale)

    def condition(self, kind: Condition, dose: int, realization: int) -> float:
        """What a conditioned network is told of an image."""
        if kind == "noise":
            return float(np.log(self.levels[dose][realization].relative))
        if kind == "nec":
            return float(self.log_nec_per_m[dose, realization])
        return float(np.log(self.drfs[dose]))


def read_ladder(path: Path, target: Target) -> Ladder:
    """A subject's file as a ladder in SUV.

    The target `complement` is that of linear reconstructions: with the full-dose image F and L at dose 1/D out of the same
    counts, (D F - L) / (D - 1) holds none of the counts of L; it is made by patch in `Patches`.

    Raises
    ------
    DataError
        No SUV, values that are not finite, or no such target in the file.
    """
    with SubjectFile(path) as f:
        factor = f.suv_factor
        if factor is None:
            raise DataError(f"{path.name}: weight or activity is not known, so there is no SUV; give them to make-dataset")
        recon = f.dataset("recon")
        stored = recon[()]
        scale = float(recon.attrs["scale"]) * factor  # pyright: ignore[reportArgumentType]
        if not np.isfinite(stored).all():
            raise DataError(f"{path.name}: the images hold values that are not finite; run petsim verify and make it again")
        if target == "noise-free":
            clean = f.array("reference/noise_free")
            if clean is None:
                raise DataError(
                    f"{path.name}: a measured image has no noise-free reference; train with --target complement or full"
                )
            wanted = clean * np.float32(factor)
        else:
            wanted = np.stack([unpack(image, scale) for image in stored[0]])
        if target == "complement" and str(f.h5["doses"].attrs["mode"]) != "thin":
            raise DataError(f"{path.name}: --target complement needs thinned counts, made with --mode thin")
        drfs, spacing = tuple(f.drfs), f.spacing_mm
        nec = f.doses()["nec"]
        scanner = str(f.attribute("scanner"))
    full = unpack(stored[0, 0], scale)
    levels = [[noise_level(unpack(image, scale)) for image in dose] for dose in stored]
    length_m = stored.shape[-1] * spacing[2] / 1000
    return Ladder(
        path.stem, drfs, stored, scale, wanted, np.argwhere(body_mask(full)).astype(np.int32), levels,
        np.log(np.maximum(nec, 1.0) / length_m), spacing, scanner,
    )  # fmt: skip


def has_noise_free(path: Path) -> bool:
    """Whether a subject's file holds the reconstruction of its expected counts."""
    with SubjectFile(path) as f:
        return "reference/noise_free" in f.h5


def read_split(folder: Path, split: str, target: Target) -> list[Ladder]:
    """Ladders of a split ("train", "val" or "test") of a dataset.

    Raises
    ------
    DataError
        No dataset, no subject in the split, or subjects of unequal voxels.
    """
    entries = [s for s in read_index(folder)["subjects"] if s["split"] == split]
    if not entries:
        raise DataError(f"{folder.name}: no subject in the split '{split}'; make at least three subjects")
    ladders = [read_ladder(folder / e["file"], target) for e in entries]
    first = ladders[0]
    for ladder in ladders:
        if not np.allclose(ladder.spacing_mm, first.spacing_mm, rtol=0.01):
            raise DataError(
                f"{ladder.name}: voxels of {ladder.spacing_mm} mm, {first.name} has {first.spacing_mm}; make both alike"
            )
    return ladders


@dataclass(frozen=True)
class Batch:
    """Samples of a step, float32.

    Parameters
    ----------
    low, target : ndarray
        (n, slices, x, y, z) and (n, 1, x, y, z) in SUV.
    condition, sd : ndarray
        (n,): what a conditioned network is told, and the noise [SUV] of the volume that each patch is from.
    dose : ndarray
        int64 (n,): index into the trained doses.
    """

    low: np.ndarray
    target: np.ndarray
    condition: np.ndarray
    sd: np.ndarray
    dose: np.ndarray


class Patches:
    """Random patches of ladders.

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
    """

    def __init__(self, ladders: Sequence[Ladder], drfs: tuple[float, ...], size: tuple[int, int, int], slices: int,
                 condition: Condition, target: Target, seed: int) -> None:  # fmt: skip
        self.ladders, self.drfs, self.size, self.slices = ladders, drfs, size, slices
        self._condition: Condition = condition
        self._target, self._seed = target, seed
        for ladder in ladders:
            missing = [d for d in drfs if d not in ladder.drfs]
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
        low, target, condition, sd, dose = zip(*samples, strict=True)
        return Batch(
            np.stack(low), np.stack(target), np.array(condition, np.float32), np.array(sd, np.float32),
            np.array(dose, np.int64),
        )  # fmt: skip

    def _sample(self, step: int, place: int) -> tuple[np.ndarray, np.ndarray, float, float, int]:
        rng = np.random.default_rng((self._seed, step, place))
        ladder = self.ladders[int(rng.integers(len(self.ladders)))]
        dose = int(rng.integers(len(self.drfs)))
        index = ladder.drfs.index(self.drfs[dose])
        realization = int(rng.integers(ladder.stored.shape[1]))
        size = np.array(self.size)
        if rng.random() < BODY_SHARE:
            corner = ladder.body[rng.integers(len(ladder.body))] - size // 2
        else:
            corner = rng.integers(0, np.array(ladder.shape) - size + 1)
        x, y, z = np.clip(corner, 0, np.array(ladder.shape) - size).tolist()
        across = slice(x, x + self.size[0]), slice(y, y + self.size[1])
        along = slice(z, z + self.size[2])
        stored = ladder.stored[index, realization][across]
        low = unpack(_neighbors(stored, along, self.slices), ladder.scale)
        if self._target == "noise-free":
            target = ladder.target[(*across, along)]
        else:
            target = ladder.target[(realization, *across, along)]
            if self._target == "complement":
                drf = self.drfs[dose]
                target = (np.float32(drf) * target - low[self.slices // 2]) / np.float32(drf - 1)
        axes = tuple(axis for axis in (1, 2, 3) if rng.random() < 0.5)
        low, target = np.flip(low, axes), np.flip(target[None], axes)
        if 3 in axes:
            low = low[::-1]
        return low, target, ladder.condition(self._condition, index, realization), ladder.levels[index][realization].sd, dose


def _neighbors(volume: np.ndarray, along: slice, slices: int) -> np.ndarray:
    """(slices, x, y, z): the slices at `along` shifted by -slices // 2 ... slices // 2; beyond the ends the last one."""
    depth = volume.shape[2]
    shifts = range(-(slices // 2), slices // 2 + 1)
    places = [np.clip(np.arange(along.start, along.stop) + shift, 0, depth - 1) for shift in shifts]
    return np.stack([volume[:, :, p] for p in places])
