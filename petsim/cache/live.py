"""Volumes that are made when they are asked for, and kept on disk within a budget of bytes.

A subject has a folder, named after everything that its volumes depend on, so that a changed setting never finds what an old
one made; a volume has a file, `drf<D>_r<k>.h5`. A file that exists is whole. Locks are the kernel's and fall with their
holder. A volume that is evicted or removed while it is mapped stays readable until the last reader lets it go.
"""

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_recipes.errors import DataError, UsageError
from petsim.cache.mapped import MappedImages
from petsim.cache.schema import chunk_of, pack
from petsim.cache.store import array_sha256, canonical_json, sha256_of, whole_or_nothing

SCHEMA = 1
"""Part of every key: raised whenever the code would make other volumes of the same recipe."""

LOCKS = 256
"""Two volumes that share a lock are not made at the same time."""

OVERHEAD_BYTES = 16_384
"""What a file takes besides its voxels, at most."""


@dataclass(frozen=True)
class Made:
    """What `simulate` gives.

    Parameters
    ----------
    image : ndarray
        float32 (x, y, z) in Bq/mL.
    counts : dict
        Prompts, NEC and the like; JSON types.
    """

    image: np.ndarray
    counts: dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """A volume of the cache.

    Parameters
    ----------
    image : MappedImages
        (x, y, z) in Bq/mL, readable for as long as this object lives.
    counts : dict
    made_s : float
        When it was made, seconds since 1970.
    """

    image: MappedImages
    counts: dict[str, Any]
    made_s: float


Simulate = Callable[[str, float, int], Made]
"""(subject, DRF, realization) -> volume."""


class DoseCache:
    """Volumes by subject, dose reduction factor and realization; any number of processes may share a folder.

    Parameters
    ----------
    root : Path
        Folder, made where missing.
    budget_bytes : float
        Volumes take no more disk space than this; the least recently used ones go first.
    recipes : mapping
        Subject -> everything that its volumes depend on: source, scanner, protocol, reconstruction; JSON types.
    simulate : callable
        Must not ask the cache itself.

    Raises
    ------
    DataError
        A folder that cannot be written.
    """

    def __init__(self, root: Path, budget_bytes: float, recipes: Mapping[str, Any], simulate: Simulate) -> None:
        self.root, self.budget_bytes = root, budget_bytes
        self._simulate = simulate
        self._keys = {name: sha256_of([SCHEMA, name, recipe]) for name, recipe in recipes.items()}
        try:
            (root / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{root.name}: {error.strerror}; choose a folder that can be written") from None

    def folder(self, subject: str) -> Path:
        """Where a subject's volumes are."""
        return self.root / f"{subject}-{self._keys[subject][:16]}"

    def path(self, subject: str, drf: float, realization: int) -> Path:
        """Where a volume is, or would be."""
        if not (math.isfinite(drf) and drf >= 1 and realization >= 0):
            raise UsageError(f"a dose reduction factor of at least 1 and a realization from 0 on are needed, got {drf:g}, "
                             f"{realization}")  # fmt: skip
        return self.folder(subject) / f"drf{drf:.17g}_r{realization}.h5"

    def get(self, subject: str, drf: float, realization: int, wait: bool = True) -> Kept | None:
        """A volume from disk, or made now.

        Parameters
        ----------
        subject : str
        drf : float
            Any real number from 1 on.
        realization : int
        wait : bool
            Wait while another process makes this volume (or one that shares its lock); else None is returned, and the
            caller takes another one.

        Returns
        -------
        Kept or None

        Raises
        ------
        DataError
            A full disk, or what `simulate` raises.
        """
        path = self.path(subject, drf, realization)
        key = f"{self._keys[subject]} {path.stem}"
        found = _open(path, key)
        if found is not None:
            return found
        # One of a fixed set of locks: volumes come and go without number, and their locks would stay.
        with _locked(self.root / "locks" / f"{int(sha256_of(key)[:8], 16) % LOCKS}", wait) as mine:
            if not mine:
                return None
            found = _open(path, key)
            if found is not None:
                return found
            made = self._simulate(subject, drf, realization)
            with _locked(self.root / "locks" / "write", wait=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._make_room(path, OVERHEAD_BYTES + 2 * _in_chunks(made.image.shape))
                _write(path, key, made)
                found = _open(path, key)
            if found is None:
                raise DataError(f"{path.name}: was written and cannot be read; check the disk and the memory")
        return found

    def holds(self, subject: str, drf: float, realization: int) -> bool:
        """Whether a volume is on disk."""
        return self.path(subject, drf, realization).exists()

    def _make_room(self, path: Path, wanted: float) -> None:
        """Evict what was used least recently; to be called by the one that may write."""
        if wanted > self.budget_bytes:
            raise UsageError(
                f"one volume takes {wanted / 1e6:.1f} MB, the cache may hold {self.budget_bytes / 1e6:.1f} MB; give it more"
            )
        for left_behind in self.root.glob("*/*.tmp"):
            left_behind.unlink(missing_ok=True)
        volumes = [(used, size, other) for other, size, used in _volumes(self.root) if other != path]
        total = sum(size for _, size, _ in volumes)
        for _, size, other in sorted(volumes):
            if total + wanted <= self.budget_bytes:
                break
            other.unlink(missing_ok=True)
            total -= size


def _in_chunks(shape: tuple[int, ...]) -> int:
    """Voxels that are stored: chunks at the far ends are whole too."""
    return math.prod(-(-n // c) * c for n, c in zip(shape, chunk_of(shape), strict=True))


def _volumes(root: Path) -> Iterator[tuple[Path, int, int]]:
    """Path, bytes and time of last use [ns] of every volume, whatever recipe it is of."""
    for path in root.glob("*/drf*_r*.h5"):
        with contextlib.suppress(FileNotFoundError):
            info = path.stat()
            yield path, info.st_size, info.st_mtime_ns


@contextlib.contextmanager
def _locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold a lock; gives False where another process has it and waiting is not wanted."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DataError(
            f"{path.parent.parent.name}: {error.strerror}; the cache's folder must be there and writable"
        ) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
        # A child that was forked meanwhile has the handle too: closing it here would not be enough.
        fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def _write(path: Path, key: str, made: Made) -> None:
    stored, scale = pack(made.image)
    with whole_or_nothing(path) as temporary, h5py.File(temporary, "w") as f:
        dataset = f.create_dataset("recon", data=stored, chunks=chunk_of(stored.shape))
        dataset.attrs["scale"] = scale
        dataset.attrs["unit"] = "Bq/mL"
        dataset.attrs["sha256"] = array_sha256(stored)
        f.attrs["key"] = key
        f.attrs["counts"] = canonical_json(made.counts)
        f.attrs["made_s"] = time.time()


def _open(path: Path, key: str) -> Kept | None:
    """A volume, marked as used now; None when it is not there, damaged, or of another key."""
    try:
        with h5py.File(path, "r") as f:
            if f.attrs["key"] != key:
                return None
            counts, made_s = json.loads(str(f.attrs["counts"])), float(f.attrs["made_s"])  # pyright: ignore[reportArgumentType]
        image = MappedImages(path, "recon").pinned()
        os.utime(path)
    except (OSError, KeyError, DataError):
        return None
    return Kept(image, counts, made_s)
