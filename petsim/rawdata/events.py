"""List-mode data: what all formats are read into and written from, a block of events at a time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numba as nb
import numpy as np

from data_recipes.errors import DataError, UsageError
from data_recipes.subject import Injection
from petsim.geometry.scanner import Scanner

EVENT = np.dtype([
    ("time_ms", np.uint32), ("crystal1", np.uint16), ("ring1", np.uint16), ("crystal2", np.uint16), ("ring2", np.uint16),
    ("tof_bin", np.int16), ("is_delayed", np.uint8), ("label", np.uint8), ("energy1_kev", np.float32),
    ("energy2_kev", np.float32),
])  # fmt: skip
"""A coincidence. time_ms: since scan start. tof_bin: from 0, the middle bin is at the LOR's middle, higher ones nearer to
end 2. label: index into `LABELS`. Energies are 0 where they are not known."""

SINGLES = np.dtype([("time_ms", np.uint32), ("block", np.uint16), ("cps", np.float32)])
"""Singles rate of a detector block at a time."""

LABELS = ("unknown", "true", "scatter", "random")
"""What simulated events are known to be."""

FIELDS = ("time", "tof", "delayeds", "labels", "energies", "singles", "injection", "dose")
"""What a list-mode file may hold beside the crystals of its events."""

AT_ONCE = 1 << 20
"""Events of a block."""


@dataclass(frozen=True)
class Dose:
    """How counts were lowered.

    Parameters
    ----------
    drf : float
    mode : str
        "thin", "window" or "dose".
    seed : int
    is_complement : bool
        Holds what the dose leaves out, which is 1 - 1/drf of the counts.
    """

    drf: float
    mode: str
    seed: int
    is_complement: bool = False


@dataclass(frozen=True)
class Elements:
    """Detectors that do not form the rings of a `Scanner`: modules of detecting elements, anywhere in space.

    `crystal` of an event is then the element in its module, `ring` the module.

    Parameters
    ----------
    name : str
    crystals_per_ring : int
        Elements of the largest module.
    rings : int
        Modules.
    """

    name: str
    crystals_per_ring: int
    rings: int


@dataclass(frozen=True)
class Header:
    """What is known of a list-mode file as a whole. No names, dates or paths.

    Parameters
    ----------
    scanner : Scanner or Elements
    start_s, duration_s : float
        Events lie in this interval, counted from scan start.
    tof_bins : int
        1 without TOF.
    tof_bin_ps : float
        Width of a TOF bin as a difference of arrival times; 0 without TOF.
    fields : frozenset of str
        Those of `FIELDS` that the data hold; the others of an event are 0.
    injection : Injection
        Means something where `fields` has "injection"; its duration is not used.
    dose : Dose, optional
        None: all counts of the scan.
    native : object, optional
        What the format of origin knows besides, for a file of the same format that is written from it.
    """

    scanner: Scanner | Elements
    duration_s: float
    start_s: float = 0.0
    tof_bins: int = 1
    tof_bin_ps: float = 0.0
    fields: frozenset[str] = frozenset()
    injection: Injection = field(default_factory=Injection)
    dose: Dose | None = None
    native: object | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        unknown = self.fields - set(FIELDS)
        if unknown:
            raise UsageError(f"list mode: unknown field {', '.join(sorted(unknown))}; known are {', '.join(FIELDS)}")
        if not (self.duration_s > 0 and self.start_s >= 0 and self.tof_bins >= 1):
            raise DataError(
                f"list mode: a duration above 0 s, a start of at least 0 s and a TOF bin are needed; got "
                f"{self.duration_s:g} s, {self.start_s:g} s and {self.tof_bins} bins"
            )
        if ("dose" in self.fields) != (self.dose is not None) or ("tof" in self.fields) != (self.tof_bins > 1):
            raise UsageError("list mode: the fields dose and tof must be named where they are given, and only there")


@dataclass(frozen=True)
class Block:
    """Some consecutive records of a file.

    Parameters
    ----------
    events : ndarray
        Of dtype `EVENT`, in the order of the file.
    singles : ndarray
        Of dtype `SINGLES`.
    """

    events: np.ndarray
    singles: np.ndarray = field(default_factory=lambda: np.zeros(0, SINGLES))


@dataclass(frozen=True)
class Listmode:
    """A list-mode file, open for reading.

    Parameters
    ----------
    name : str
        Of the file, without its folder.
    header : Header
    blocks : callable
        Starts a new pass over the file; memory does not depend on its length. Raises `DamagedError` where the file cannot be
        followed any further, after everything before that place was yielded.
    warnings : tuple of str
        What its user should know.
    """

    name: str
    header: Header
    blocks: Callable[[], Iterator[Block]]
    warnings: tuple[str, ...] = ()


class DamagedError(DataError):
    """A file that is good up to a place (`where`, such as "byte 1234"); `events` were yielded before it."""

    def __init__(self, name: str, what: str, where: str, events: int) -> None:
        super().__init__(
            f"{name}: {what} at {where}, after {events} events; petsim convert --salvage keeps those, or copy the file again"
        )
        self.events = events


Write = Callable[[Block], None]


class Format(Protocol):
    """What a module of a list-mode format offers.

    SUFFIXES
        Endings of the files that a user names, such as ".cdh".
    TITLE
        For messages and tables.
    HOLDS
        Those of `FIELDS` that a written file keeps.
    """

    SUFFIXES: tuple[str, ...]
    TITLE: str
    HOLDS: frozenset[str]

    def read(self, path: Path, scanner: Scanner | None = None) -> Listmode:
        """Open a file. `scanner`: by the user; a format that names or describes its own need not be told."""
        ...

    def create(self, path: Path, header: Header) -> AbstractContextManager[Write]:
        """Write a file, block by block. It (and what belongs to it) appears under its name when the block ends well."""
        ...


def rings_of(header: Header) -> Scanner:
    """The scanner of data that are to be binned or reconstructed; `DataError` where detectors form no rings."""
    if isinstance(header.scanner, Scanner):
        return header.scanner
    raise DataError(
        f"{header.scanner.name}: its detectors are not the rings of a cylinder or polygon, which sinograms need; "
        "thin it, or give events of such a scanner"
    )


def lost_fields(header: Header, format: Format | ModuleType) -> list[str]:
    """Fields of some data that a format cannot hold, in the order of `FIELDS`."""
    return [name for name in FIELDS if name in header.fields and name not in format.HOLDS]


def without_fields(header: Header, names: list[str]) -> Header:
    """The header of data that have lost some of `FIELDS`."""
    values: dict[str, object] = {"fields": header.fields - set(names)}
    if "tof" in names:
        values |= {"tof_bins": 1, "tof_bin_ps": 0.0}
    if "injection" in names:
        values["injection"] = Injection()
    if "dose" in names:
        values["dose"] = None
    return replace(header, **values)  # pyright: ignore[reportArgumentType]


def first_wrong(events: np.ndarray, header: Header, last_ms: int) -> tuple[int, str]:
    """The first event that cannot be, and why: (-1, "") if there is none.

    Parameters
    ----------
    events : ndarray
        Of dtype `EVENT`.
    header : Header
    last_ms : int
        Time of the event before them.
    """
    scanner = header.scanner
    in_rings = isinstance(scanner, Scanner)
    where, why = _first_wrong(events, scanner.crystals_per_ring, scanner.rings, in_rings, header.tof_bins, last_ms)
    if where < 0:
        return -1, ""
    e = events[where]
    if why == 0:
        return where, f"time runs backwards to {e['time_ms']} ms"
    if why == 1:
        return where, (
            f"crystals {e['crystal1']} and {e['crystal2']} of rings {e['ring1']} and {e['ring2']} are not a pair of "
            f"{scanner.name} ({scanner.crystals_per_ring} crystals on {scanner.rings} rings)"
        )
    return where, f"TOF bin {e['tof_bin']} is not one of {header.tof_bins}"


@nb.njit(cache=True, nogil=True)
def _first_wrong(events, crystals, rings, in_rings, tof_bins, last_ms):
    last = last_ms
    for k in range(events.size):
        e = events[k]
        time = np.int64(e.time_ms)
        if time < last:
            return k, 0
        last = time
        wrong = (e.crystal1 >= crystals) | (e.crystal2 >= crystals) | (e.ring1 >= rings) | (e.ring2 >= rings)
        if wrong | ((e.crystal1 == e.crystal2) & (in_rings | (e.ring1 == e.ring2))):
            return k, 1
        if (e.tof_bin < 0) | (e.tof_bin >= tof_bins):
            return k, 2
    return -1, 0
