"""Reading and writing subjects' files, so that a file that exists is whole."""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_recipes.errors import DataError
from data_recipes.splits import bucket_of, split_by_bucket
from petsim.cache.schema import FLOAT_ROWS, INTEGER_ROWS, VERSION, SubjectRecord, chunk_of, pack, unpack

INDEX = "dataset.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_of(value: Any) -> str:
    """Hash of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def array_sha256(array: np.ndarray) -> str:
    """Hash of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def replace_durably(temporary: Path, final: Path) -> None:
    """Rename after everything reached the disk; on return the rename did too."""
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def whole_or_nothing(final: Path) -> Iterator[Path]:
    """Give a temporary path; after the block it becomes `final`, or vanishes if the block failed.

    Its name depends on `final` only, so that what a killed run left behind is overwritten by the next one.

    Raises
    ------
    DataError
        A full disk or another failure of the file system, in one line.
    """
    temporary = final.with_name(f"{final.name}.tmp")
    try:
        yield temporary
        replace_durably(temporary, final)
    except OSError as error:
        full = error.errno in _FULL or any(f"errno = {code}" in str(error) for code in _FULL)
        reason = "the disk is full; free some space" if full else (error.strerror or str(error).splitlines()[0])
        raise DataError(f"cannot write {final.name}: {reason} and run the same command again") from None
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(out: Path) -> None:
    """Folder for results; `DataError` where it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out.name}: {error.strerror}; choose a folder that can be written") from None


def write_subject(path: Path, record: SubjectRecord) -> None:
    """Write a subject's file: temporary file, fsync, rename."""
    with whole_or_nothing(path) as temporary, h5py.File(temporary, "w") as f:
        chunks = chunk_of(record.shape)
        _packed(f, "recon", record.images, (1, 1, *chunks))
        if record.noise_free is not None:
            _packed(f, "reference/noise_free", record.noise_free, chunks)
        _packed(f, "truth/activity", record.activity, chunks)
        _exact(f, "truth/mu", record.mu.astype(np.float16), chunks)
        if record.labels is not None:
            labels = _exact(f, "truth/labels", record.labels, chunks)
            labels.attrs["names"] = canonical_json({str(k): v for k, v in record.label_names.items()})
        if record.sinogram is not None:
            _exact(f, "sinogram", record.sinogram, (1, 1, 1, *record.sinogram.shape[3:]))
        _exact(f, "doses/drf", np.asarray(record.drfs, np.float64))
        for name in INTEGER_ROWS:
            _exact(f, f"doses/{name}", record.doses[name].astype(np.int64))
        for name in FLOAT_ROWS:
            _exact(f, f"doses/{name}", record.doses[name].astype(np.float64))
        f["doses"].attrs["mode"] = record.mode
        f["doses"].attrs["seed"] = record.seed
        f.attrs["schema_version"] = VERSION
        f.attrs["name"] = record.name
        f.attrs["shape"] = record.shape
        f.attrs["spacing_mm"] = record.spacing_mm
        f.attrs["origin_mm"] = record.origin_mm
        f.attrs["affine"] = record.affine
        f.attrs["suv_factor"] = np.nan if record.suv_factor is None else record.suv_factor
        f.attrs["scanner"] = record.configuration["scanner"]
        f.attrs["configuration"] = canonical_json(record.configuration)
        f.attrs["configuration_sha256"] = record.configuration_sha256
        f.attrs["provenance"] = canonical_json(record.provenance)
        f.attrs["versions"] = canonical_json(record.versions)
        f.attrs["license"] = record.license
        f.attrs["origin"] = record.origin


def _packed(f: h5py.File, name: str, values: np.ndarray, chunks: tuple[int, ...]) -> None:
    stored, scale = pack(values)
    dataset = _exact(f, name, stored, chunks)
    dataset.attrs["scale"] = scale
    dataset.attrs["unit"] = "Bq/mL"


def _exact(f: h5py.File, name: str, values: np.ndarray, chunks: tuple[int, ...] | None = None) -> h5py.Dataset:
    dataset = f.create_dataset(name, data=values, chunks=chunks)
    dataset.attrs["sha256"] = array_sha256(values)
    return dataset


class SubjectFile:
    """A subject's file opened for reading; a context manager.

    Images come as float32 in Bq/mL. Raises `DataError` for a file that is not schema 1.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.h5 = h5py.File(path, "r")
        except OSError:
            raise DataError(f"{path.name}: not a readable HDF5 file; remove it and run make-dataset again") from None
        version = self.h5.attrs.get("schema_version")
        if version != VERSION:
            self.h5.close()
            raise DataError(f"{path.name}: schema version is {version}, this petsim reads {VERSION}")

    def __enter__(self) -> "SubjectFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.h5.close()

    def dataset(self, name: str) -> h5py.Dataset:
        """A dataset by its name; KeyError when it is absent."""
        item = self.h5[name]
        if not isinstance(item, h5py.Dataset):
            raise KeyError(f"/{name} is not a dataset")
        return item

    def attribute(self, name: str) -> Any:
        """An attribute of the root."""
        return self.h5.attrs[name]

    @property
    def name(self) -> str:
        """Neutral name of the subject."""
        return str(self.attribute("name"))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (x, y, z)."""
        x, y, z = (int(n) for n in self.attribute("shape"))
        return x, y, z

    @property
    def drfs(self) -> list[float]:
        """Dose reduction factors, 1 first."""
        return [float(d) for d in self.dataset("doses/drf")[()]]

    @property
    def affine(self) -> np.ndarray:
        """Voxel index to RAS+ mm."""
        return np.asarray(self.attribute("affine"))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edges."""
        x, y, z = (float(v) for v in self.attribute("spacing_mm"))
        return x, y, z

    @property
    def suv_factor(self) -> float | None:
        """SUV for 1 Bq/mL, None when it is unknown."""
        value = float(self.attribute("suv_factor"))
        return None if np.isnan(value) else value

    @property
    def is_truncated(self) -> bool:
        """The body is cut off at the sides of the image: it serves no figure of noise and no contest."""
        return bool(self.json("provenance").get("source", {}).get("truncated_fov"))

    @property
    def label_names(self) -> dict[int, str]:
        """Label to name of what it stands for; empty without labels."""
        text = str(self.dataset("truth/labels").attrs["names"]) if "truth/labels" in self.h5 else "{}"
        return {int(label): name for label, name in json.loads(text).items()}

    def json(self, attribute: str) -> dict[str, Any]:
        """A JSON attribute of the root: configuration, provenance or versions."""
        return json.loads(self.attribute(attribute))

    def doses(self) -> dict[str, np.ndarray]:
        """Dose table: name to array (dose, realization)."""
        return {name: self.dataset(f"doses/{name}")[()] for name in (*INTEGER_ROWS, *FLOAT_ROWS)}

    def image(self, dose: int, realization: int = 0) -> np.ndarray:
        """Reconstruction of one dose, float32 (x, y, z) in Bq/mL."""
        recon = self.dataset("recon")
        return unpack(recon[dose, realization], float(recon.attrs["scale"]))  # pyright: ignore[reportArgumentType]

    def array(self, name: str) -> np.ndarray | None:
        """Another image by its name in the file: float32 where packed, as stored otherwise; None when absent."""
        if name not in self.h5:
            return None
        stored, scale = self.dataset(name)[()], self.dataset(name).attrs.get("scale")
        return stored if scale is None else unpack(stored, float(scale))  # pyright: ignore[reportArgumentType]


def subject_files(folder: Path) -> list[Path]:
    """Finished subjects' files, sorted by name."""
    return sorted(folder.glob("*.h5"))


def assign_splits(names: list[str]) -> dict[str, str]:
    """Split of every subject: about 70 % train, 15 % val, 15 % test, each with at least one from three subjects on.

    Subjects are ordered by the hash of their names, so that the split depends on nothing else.
    """
    order = sorted(names, key=lambda n: hashlib.sha256(n.encode()).hexdigest())
    held_out = max(1, round(0.15 * len(order))) if len(order) >= 3 else 0
    splits = {}
    for k, name in enumerate(order):
        splits[name] = "test" if k < held_out else "val" if k < 2 * held_out else "train"
    return splits


def _splits(paths: list[Path]) -> dict[str, str]:
    """Split of every file by its stem: by patient where sources tell patients apart, else by `assign_splits`."""
    buckets: dict[str, int | None] = {}
    for path in paths:
        with SubjectFile(path) as f:
            buckets[path.stem] = f.json("provenance").get("source", {}).get("split_bucket")
    if all(bucket is None for bucket in buckets.values()):
        return assign_splits([path.stem for path in paths])
    return split_by_bucket({name: bucket_of(name) if bucket is None else bucket for name, bucket in buckets.items()})


def write_index(folder: Path) -> dict[str, Any]:
    """Rebuild `dataset.json` from the subjects' files; a lock keeps two rebuilds apart."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        index = build_index(folder)
        with whole_or_nothing(folder / INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return index
    finally:
        os.close(lock)


def build_index(folder: Path) -> dict[str, Any]:
    """What `dataset.json` holds: configuration, and file, hash, DRFs and split of every subject."""
    subjects, configuration, digest = [], {}, ""
    paths = subject_files(folder)
    splits = _splits(paths)
    for path in paths:
        with SubjectFile(path) as f:
            configuration, digest = f.json("configuration"), str(f.attribute("configuration_sha256"))
            subjects.append(
                {
                    "name": f.name,
                    "file": path.name,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                    "split": splits[path.stem],
                    "drf": f.drfs,
                    "shape": list(f.shape),
                }
            )
    return {
        "schema_version": VERSION,
        "configuration": configuration,
        "configuration_sha256": digest,
        "subjects": subjects,
    }


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a dataset."""
    path = folder / INDEX
    if not path.exists():
        raise DataError(f"{folder.name or folder}: no {INDEX}; this is not a dataset, or it holds no finished subject yet")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        raise DataError(f"{INDEX}: damaged; remove it and run make-dataset again, which rebuilds it") from None
