"""Training on a cache that `petsim serve-cache` fills meanwhile: fresh noise where there is some, else the dataset's own.

What a sample is drawn from depends on what the cache holds at that moment; place, turn and every other choice depend on
(seed, step, place in the batch) alone.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np

from data_recipes.errors import DataError
from denoise.data import Ladder, Source, Target, Volume, drawn_dose
from denoise.noise_level import NoiseLevel, noise_level
from petsim.cache.live import listed, read_note, read_volume
from petsim.serve import CONTENTS

LOOK_S = 1.0
"""Seconds after which the folder is looked at again."""

TRIES = 8
"""Volumes that may turn out to be evicted before the dataset's own are taken."""


class LiveVolumes:
    """The volumes of one subject that a cache holds now. May be handed to other processes, which open their own.

    Parameters
    ----------
    root : Path
        Of the cache.
    subject : str
    configuration_sha256 : str
        Of the dataset that the cache must belong to.
    factor : float
        SUV for 1 Bq/mL.
    length_m : float
        Of the image, for noise-equivalent counts a meter.
    """

    def __init__(self, root: Path, subject: str, configuration_sha256: str, factor: float, length_m: float) -> None:
        self._root, self._subject, self._digest = root, subject, configuration_sha256
        self._factor, self._length_m = factor, length_m
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._looked_s, self._changed_ns = -np.inf, -1
        self._listed: dict[int, dict[float, Path]] = {}
        self._open: dict[Path, Volume] = {}

    def __getstate__(self) -> dict[str, object]:
        own = ("_root", "_subject", "_digest", "_factor", "_length_m")
        return {name: self.__dict__[name] for name in own}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def realizations(self) -> dict[int, dict[float, Path]]:
        """Number -> DRF -> path of what is there, as of at most `LOOK_S` ago."""
        with self._lock:
            return self._look()

    def _look(self) -> dict[int, dict[float, Path]]:
        now = time.monotonic()
        if now - self._looked_s < LOOK_S:
            return self._listed
        self._looked_s = now
        folder = self._folder = self._folder or self._found()
        if folder is None:
            return self._listed
        try:
            changed = folder.stat().st_mtime_ns
        except FileNotFoundError:
            return self._listed
        if changed != self._changed_ns:
            self._changed_ns, self._listed = changed, {}
            for realization, drf, path in listed(folder):
                self._listed.setdefault(realization, {})[drf] = path
            there = {path for doses in self._listed.values() for path in doses.values()}
            # What was evicted takes disk space until it is let go.
            self._open = {path: volume for path, volume in self._open.items() if path in there}
        return self._listed

    def _found(self) -> Path | None:
        """The subject's folder; None as long as there is no such cache."""
        contents = read_note(self._root, CONTENTS)
        if contents is None or contents["configuration_sha256"] != self._digest or self._subject not in contents["subjects"]:
            return None
        return self._root / contents["subjects"][self._subject]

    def open(self, path: Path, drf: float) -> Volume | None:
        """A volume of `realizations`; None when it was evicted meanwhile."""
        with self._lock:
            if path in self._open:
                return self._open[path]
            kept = read_volume(path, self._factor)
            if kept is None:
                self._changed_ns = -1
                return None

            @cache
            def measured() -> NoiseLevel:
                return noise_level(kept.image.volume())

            nec = float(np.log(max(kept.counts["nec"], 1.0) / self._length_m))
            self._open[path] = Volume(drf, kept.image, (), measured, nec, fresh=True)
            return self._open[path]


@dataclass(frozen=True)
class LiveLadder(Ladder):
    """A subject of a dataset with the volumes that a cache holds of it.

    Parameters
    ----------
    live : LiveVolumes
    """

    live: LiveVolumes

    def draw(
        self, rng: np.random.Generator, drfs: Sequence[float], target: Target, weights: Sequence[float] = ()
    ) -> tuple[Volume, Source]:
        """As of a `Ladder`, from the cache where that holds something fitting."""
        # One number of the caller's, however many are tried here.
        own = np.random.default_rng(rng.integers(2**63))
        drf = drfs[drawn_dose(own, drfs, drfs, weights)]
        there = {n: doses for n, doses in self.live.realizations().items() if target == "noise-free" or 1.0 in doses}
        # A cache may hold the dose, or such between the trained ones as no dataset has.
        wanted = {n: {drf: doses[drf]} for n, doses in there.items() if drf in doses}
        wanted = wanted or {n: self._between(doses, drfs) for n, doses in there.items()}
        numbers = [n for n, doses in wanted.items() if doses]
        for _ in range(TRIES):
            if len(numbers) < (2 if target == "independent" else 1):
                break
            place = int(own.integers(len(numbers)))
            doses = wanted[numbers[place]]
            at = list(doses)[drawn_dose(own, list(doses), drfs, weights)]
            low = self.live.open(doses[at], at)
            if low is None:
                continue
            if target == "noise-free":
                return low, self.clean()
            if target == "independent":
                place = (place + 1 + int(own.integers(len(numbers) - 1))) % len(numbers)
            full = self.live.open(there[numbers[place]][1.0], 1.0)
            if full is not None:
                return low, (full.images, full.index)
        return super().draw(own, (drf,), target)

    def _between(self, doses: dict[float, Path], drfs: Sequence[float]) -> dict[float, Path]:
        """Doses within the trained range that are none of the dataset's."""
        return {drf: path for drf, path in doses.items() if min(drfs) < drf < max(drfs) and drf not in self.drfs}


def check_live(root: Path, configuration_sha256: str) -> None:
    """Refuse a cache that no one fills, or that belongs to another dataset.

    Raises
    ------
    DataError
    """
    contents = read_note(root, CONTENTS)
    if contents is None:
        raise DataError(f"--live {root.name}: holds no cache; start petsim serve-cache, or use --on-the-fly")
    if contents["configuration_sha256"] != configuration_sha256:
        raise DataError(f"--live {root.name}: belongs to another dataset; start petsim serve-cache for this one")


def with_live(ladders: Sequence[Ladder], root: Path, configuration_sha256: str) -> list[Ladder]:
    """Ladders that draw from a cache too."""
    return [
        LiveLadder(
            **{f.name: getattr(ladder, f.name) for f in fields(Ladder)},
            live=LiveVolumes(
                root, ladder.name, configuration_sha256, ladder.suv_factor, ladder.shape[2] * ladder.spacing_mm[2] / 1000
            ),
        )
        for ladder in ladders
    ]
