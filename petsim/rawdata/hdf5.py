"""petsim's own list mode: an HDF5 file with a dataset for every column that the data hold.

/events/time_ms, crystal1, ring1, crystal2, ring2, tof_bin, is_delayed, label, energy1_kev, energy2_kev   (events,)
/singles/time_ms, block, cps   (records,)
root attributes   format, schema, header (JSON: scanner, start_s, duration_s, TOF, fields, injection, dose)
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_recipes.errors import DataError
from data_recipes.subject import Injection
from petsim.cache.store import whole_or_nothing
from petsim.geometry.scanner import Scanner
from petsim.rawdata.events import (
    AT_ONCE,
    EVENT,
    FIELDS,
    SINGLES,
    Block,
    DamagedError,
    Dose,
    Elements,
    Header,
    Listmode,
    Write,
    first_wrong,
)

SUFFIXES = (".lm.h5",)
TITLE = "petsim HDF5"
HOLDS = frozenset(FIELDS)
SCHEMA = 1
CHUNK = 1 << 18

_ALWAYS = ("crystal1", "ring1", "crystal2", "ring2")
_COLUMNS = {"time": ("time_ms",), "tof": ("tof_bin",), "delayeds": ("is_delayed",), "labels": ("label",),
            "energies": ("energy1_kev", "energy2_kev")}  # fmt: skip


def _columns(header: Header) -> list[str]:
    return [*_ALWAYS, *(name for field, names in _COLUMNS.items() if field in header.fields for name in names)]


def read(path: Path, scanner: Scanner | None = None) -> Listmode:
    """Open a file; see `petsim.rawdata.events.Format`."""
    try:
        with h5py.File(path) as f:
            if f.attrs.get("format") != "petsim list mode" or f.attrs.get("schema") != SCHEMA:
                raise DataError(f"{path.name}: no list mode of schema {SCHEMA}; make it anew with this version")
            header = _header(json.loads(str(f.attrs["header"])), scanner)
            events: Any = f["events"]
            lengths = {len(events[name]) for name in _columns(header)}
        if len(lengths) != 1:
            raise DataError(f"{path.name}: its columns differ in length; make it anew")
    except (OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path.name}: cannot be read as petsim list mode; it is damaged or another kind of file") from None
    return Listmode(path.name, header, lambda: _readable(path, header))


def _header(doc: dict[str, Any], scanner: Scanner | None) -> Header:
    detectors = doc["scanner"]
    if "max_ring_difference" in detectors:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in detectors.items()}
        own = Scanner(**values)
        if scanner is not None and scanner != own:
            raise DataError(f"--scanner {scanner.name}: the file holds data of {own.name}; leave the flag out")
    else:
        own = Elements(**detectors)
    dose = doc["dose"]
    return Header(
        own, doc["duration_s"], doc["start_s"], doc["tof_bins"], doc["tof_bin_ps"], frozenset(doc["fields"]),
        Injection(**doc["injection"]), None if dose is None else Dose(**dose),
    )  # fmt: skip


def _readable(path: Path, header: Header) -> Iterator[Block]:
    try:
        yield from _blocks(path, header)
    except (OSError, KeyError) as error:
        raise DataError(f"{path.name}: cannot be read any further, it is damaged; copy it again") from error


def _blocks(path: Path, header: Header) -> Iterator[Block]:
    columns, last_ms, place, found = _columns(header), 0, 0, 0
    with h5py.File(path) as f:
        events: Any = f["events"]
        stored: Any = f["singles"] if "singles" in header.fields else None
        times = np.zeros(0, np.uint32) if stored is None else stored["time_ms"][:]
        count = len(events["crystal1"])
        while True:
            block = np.zeros(min(AT_ONCE, count - place), EVENT)
            for name in columns:
                block[name] = events[name][place : place + len(block)]
            wrong, what = first_wrong(block, header, last_ms)
            good = block if wrong < 0 else block[:wrong]
            place += len(good)
            ends = wrong >= 0 or place == count
            if len(good):
                last_ms = int(good["time_ms"][-1])
            singles = np.zeros(0, SINGLES)
            if stored is not None:
                until = len(times) if ends else int(np.searchsorted(times, last_ms, "right"))
                singles = np.zeros(until - found, SINGLES)
                for name in SINGLES.names or ():
                    singles[name] = stored[name][found:until]
                found = until
            yield Block(good, singles)
            if wrong >= 0:
                raise DamagedError(path.name, what, f"event {place}", place)
            if ends:
                return


@contextmanager
def create(path: Path, header: Header) -> Iterator[Write]:
    """Write a file; see `petsim.rawdata.events.Format`."""
    columns = _columns(header)
    doc = {k: getattr(header, k) for k in ("start_s", "duration_s", "tof_bins", "tof_bin_ps")}
    scanner = dataclasses.asdict(header.scanner)
    doc |= {
        "scanner": scanner, "fields": sorted(header.fields), "injection": dataclasses.asdict(header.injection),
        "dose": None if header.dose is None else dataclasses.asdict(header.dose),
    }  # fmt: skip
    with whole_or_nothing(path) as temporary, h5py.File(temporary, "w") as f:
        f.attrs["format"], f.attrs["schema"], f.attrs["header"] = "petsim list mode", SCHEMA, json.dumps(doc)

        def growing(group: str, names: list[str], dtype: np.dtype) -> list[tuple[str, h5py.Dataset]]:
            return [(n, f.create_dataset(f"{group}/{n}", (0,), dtype[n], maxshape=(None,), chunks=(CHUNK,))) for n in names]

        events = growing("events", columns, EVENT)
        singles = growing("singles", list(SINGLES.names or ()), SINGLES) if "singles" in header.fields else []

        def write(block: Block) -> None:
            for sets, records in ((events, block.events), (singles, block.singles)):
                for name, dataset in sets:
                    end = dataset.shape[0]
                    dataset.resize((end + len(records),))
                    dataset[end:] = records[name]

        yield write
