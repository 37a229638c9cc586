"""Volumes that are made when they are asked for, and kept on disk within a budget of bytes.

A subject has a folder, named after everything that its volumes depend on, so that a changed setting never finds what an old
one made; a volume has a file, `drf<D>_r<k>.h5`. A file that exists is whole. Locks are the kernel's and fall with their
holder. A volume that is evicted or removed while it is mapped stays readable until the last reader lets it go. Volumes of
one realization are nested counts and made together.
"""

import contextlib
import fcntl
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_recipes.errors import DataError, UsageError
from petsim.cache.mapped import MappedImages
from petsim.cache.schema import chunk_of, pack
from petsim.cache.store import array_sha256, canonical_json, sha256_of, whole_or_nothing

SCHEMA = 3
"""Part of every key: raised whenever the code would make other volumes of the same recipe."""

LOCKS = 256
"""Two realizations that share a lock are not made at the same time."""

_NAME = re.compile(r"drf(?P<drf>[0-9.e+]+)_r(?P<realization>[0-9]+)\.h5")

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


Simulate = Callable[[str, tuple[float, ...], int], Sequence[Made]]
"""(subject, DRFs, realization) -> a volume for each DRF, which does not depend on the others."""


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
        self._count(self.holds(subject, drf, realization))
        found = self.get_all(subject, (drf,), realization, wait)
        return None if found is None else found[0]

    def get_all(self, subject: str, drfs: Sequence[float], realization: int, wait: bool = True) -> list[Kept] | None:
        """Volumes of one realization at some doses, as `get` gives one; those that are missing are made together."""
        paths = [self.path(subject, drf, realization) for drf in drfs]
        keys = [f"{self._keys[subject]} {path.stem}" for path in paths]
        found = [_open(path, key) for path, key in zip(paths, keys, strict=True)]
        if all(kept is not None for kept in found):
            return [kept for kept in found if kept is not None]
        # One of a fixed set of locks: volumes come and go without number, and their locks would stay.
        lock = int(sha256_of([self._keys[subject], realization])[:8], 16) % LOCKS
        with locked(self.root / "locks" / f"{lock}", wait) as mine:
            if not mine:
                return None
            found = [_open(path, key) for path, key in zip(paths, keys, strict=True)]
            missing = [k for k, kept in enumerate(found) if kept is None]
            made = self._simulate(subject, tuple(drfs[k] for k in missing), realization) if missing else ()
            for k, one in zip(missing, made, strict=True):
                with locked(self.root / "locks" / "write", wait=True):
                    paths[k].parent.mkdir(parents=True, exist_ok=True)
                    self._make_room(paths[k], paths, OVERHEAD_BYTES + 2 * _in_chunks(one.image.shape))
                    _write(paths[k], keys[k], one)
                    found[k] = _open(paths[k], keys[k])
                if found[k] is None:
                    raise DataError(f"{paths[k].name}: was written and cannot be read; check the disk and the memory")
        return [kept for kept in found if kept is not None]

    def new_realization(self, subject: str) -> int:
        """A number that no process was ever given for this subject; 0 at first, also after volumes were evicted."""
        path = self.folder(subject) / "next"
        with locked(self.root / "locks" / "write", wait=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            number = begun(path.parent)
            with whole_or_nothing(path) as temporary:
                temporary.write_text(f"{number + 1}\n", encoding="ascii")
        return number

    def started(self, subject: str) -> int:
        """How many realizations `new_realization` has given out."""
        return begun(self.folder(subject))

    def note(self, name: str, value: dict[str, Any]) -> None:
        """Leave a JSON value in a file of the cache's folder."""
        with locked(self.root / "locks" / "write", wait=True), whole_or_nothing(self.root / name) as temporary:
            temporary.write_text(json.dumps(value), encoding="utf-8")

    def _count(self, hit: bool) -> None:
        """Note a hit or a miss: a letter at the end of a file, to which processes may add at the same time."""
        with contextlib.suppress(OSError), (self.root / "asked").open("ab") as f:
            f.write(b"h" if hit else b"m")

    def holds(self, subject: str, drf: float, realization: int) -> bool:
        """Whether a volume is on disk."""
        return self.path(subject, drf, realization).exists()

    def _make_room(self, path: Path, together: Sequence[Path], wanted: float) -> None:
        """Evict what was used least recently, but for those of one realization; to be called by the one that may write."""
        if wanted > self.budget_bytes:
            raise UsageError(
                f"one volume takes {wanted / 1e6:.1f} MB, the cache may hold {self.budget_bytes / 1e6:.1f} MB; give it more"
            )
        for left_behind in self.root.glob("*/drf*_r*.h5.tmp"):
            left_behind.unlink(missing_ok=True)
        volumes = sorted((used, size, other) for other, size, used in _volumes(self.root) if other != path)
        total = sum(size for _, size, _ in volumes)
        for _, size, other in volumes:
            if total + wanted <= self.budget_bytes:
                return
            if other not in together:
                other.unlink(missing_ok=True)
                total -= size
        if total + wanted > self.budget_bytes:
            raise UsageError(
                f"the volumes of one realization take more than the {self.budget_bytes / 1e6:.1f} MB that the cache may "
                "hold; give it more"
            )


def holdings(root: Path) -> dict[str, int]:
    """volumes of all recipes, their bytes, and the hits and misses of all that asked for one."""
    sizes = [size for _, size, _ in _volumes(root)]
    try:
        asked = (root / "asked").read_bytes()
    except OSError:
        asked = b""
    return {"volumes": len(sizes), "bytes": sum(sizes), "hits": asked.count(b"h"), "misses": asked.count(b"m")}


def _in_chunks(shape: tuple[int, ...]) -> int:
    """Voxels that are stored: chunks at the far ends are whole too."""
    return math.prod(-(-n // c) * c for n, c in zip(shape, chunk_of(shape), strict=True))


def begun(folder: Path) -> int:
    """How many realizations were begun in a subject's folder, evicted ones included."""
    try:
        return int((folder / "next").read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0


def _volumes(root: Path) -> Iterator[tuple[Path, int, int]]:
    """Path, bytes and time of last use [ns] of every volume, whatever recipe it is of."""
    for path in root.glob("*/drf*_r*.h5"):
        with contextlib.suppress(FileNotFoundError):
            info = path.stat()
            yield path, info.st_size, info.st_mtime_ns


@contextlib.contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock that a file stands for; gives False where another process has it and waiting is not wanted."""
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
    finally:
        # A child that was forked meanwhile has the handle too: closing it here would not be enough.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
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


def read_note(root: Path, name: str) -> dict[str, Any] | None:
    """What `DoseCache.note` left; None where there is nothing."""
    try:
        return json.loads((root / name).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def listed(folder: Path) -> list[tuple[int, float, Path]]:
    """Realization, DRF and path of the volumes in a subject's folder, sorted."""
    found = []
    for path in folder.glob("drf*_r*.h5"):
        name = _NAME.fullmatch(path.name)
        if name is not None:
            found.append((int(name["realization"]), float(name["drf"]), path))
    return sorted(found)


def read_volume(path: Path, factor: float = 1.0) -> Kept | None:
    """A volume that was `listed`, times a factor, marked as used now; None when it was evicted since then."""
    return _open(path, None, factor)


def made_s(path: Path) -> float | None:
    """When a volume that was `listed` was made, seconds since 1970; None if it was evicted since then."""
    try:
        with h5py.File(path, "r") as f:
            return float(f.attrs["made_s"])  # pyright: ignore[reportArgumentType]
    except (OSError, KeyError):
        return None


def volume_problem(path: Path) -> str | None:
    """What is wrong with a volume that was `listed`; None for nothing, or if it was evicted since then."""
    try:
        with h5py.File(path, "r") as f:
            if not _belongs(path, str(f.attrs["key"])):
                return "holds another volume than its name says"
            stored = f["recon"]
            if not isinstance(stored, h5py.Dataset) or stored.attrs["sha256"] != array_sha256(stored[()]):
                return "differs from its hash"
            if not np.isfinite(stored[()]).all():
                return "has NaN or infinite values"
            json.loads(str(f.attrs["counts"]))
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError):
        return "cannot be read"
    return None


def _belongs(path: Path, key: str) -> bool:
    """Whether a volume of this key is where it should be."""
    digest, _, name = key.partition(" ")
    return name == path.stem and path.parent.name.endswith(f"-{digest[:16]}")


def _open(path: Path, key: str | None, factor: float = 1.0) -> Kept | None:
    """A volume, marked as used now; None when it is not there, damaged, or of another key (None: of another place)."""
    try:
        with h5py.File(path, "r") as f:
            found = str(f.attrs["key"])
            if found != key if key else not _belongs(path, found):
                return None
            counts, at = json.loads(str(f.attrs["counts"])), float(f.attrs["made_s"])  # pyright: ignore[reportArgumentType]
        image = MappedImages(path, "recon", factor).pinned()
        # A cache that others fill may be read-only.
        with contextlib.suppress(OSError):
            os.utime(path)
    except (OSError, KeyError, DataError):
        return None
    return Kept(image, counts, at)
