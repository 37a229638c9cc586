"""Coincidences of GATE simulations in ROOT files: read only.

Trees "Coincidences" and, where the simulation had a delayed window, one whose name begins with "delay". Branches of GATE 8
and 9, for both ends: eventID, time (s), energy (MeV), globalPosX, Y, Z (mm), comptonPhantom, RayleighPhantom
(GateRootDefs.cc); of GATE 10 (opengate): EventID, GlobalTime (ns), TotalEnergyDeposit, PostPosition_X, Y, Z (user guide,
"Coincidence sorter"). What was decided:

Crystals. Those of the scanner nearest to both positions. GATE's axes are taken as `Scanner` has them: crystal 0 begins at
`view_offset_rad` counted from +x toward +y, ring 0 lies at the lowest z, the center at the origin. A simulated scanner that
is turned against this needs a TOML file with its own `view_offset_rad`. Coincidences with an end farther than a crystal
pitch from any crystal, or with both ends at one place of the ring, are left out.

Labels. Random where the events of both ends differ or one is noise (event -2), scatter where a photon was Compton or
Rayleigh scattered in a phantom, as castor-GATERootToCastor has it (STIR counts Compton only), true otherwise; unknown where
GATE 10, or a mask on branches, leaves scattering unrecorded. Delayeds are randoms.

TOF. time1 - time2, in the scanner's bins; what lies beyond the outermost bin counts there. Delayeds are off by the offset of
their window, which is taken as the smallest difference in the first of them, in whole ns.

Order. GATE sorts singles, not coincidences, and the two trees are separate: events are sorted by the time of end 1 among
`HELD_BACK` others. One that comes later still is an error, as in files merged from simulations of the same time.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError, UsageError
from petsim.geometry.scanner import Scanner
from petsim.rawdata.events import EVENT, LABELS, Block, DamagedError, Header, Listmode, Write, first_wrong
from petsim.rawdata.positions import CrystalFinder

SUFFIXES = (".root",)
TITLE = "GATE ROOT"
HOLDS: frozenset[str] = frozenset()

ENTRIES = 1 << 18
"""Entries of a tree that are read at once."""

HELD_BACK = 1 << 16
"""Events among which late ones are put into order."""

LOOKED_AT = 20_000
"""First coincidences that tell whether the scanner fits."""

BETWEEN = 0.02
"""Part of the ends in gaps of the ring from which on a turned scanner is looked for."""

NOISE = -2
"""Event of singles that GATE's noise module adds."""

_TRUE, _SCATTER, _RANDOM = (LABELS.index(name) for name in ("true", "scatter", "random"))


@dataclass(frozen=True)
class _Names:
    """Names of branches, without the number of an end.

    Parameters
    ----------
    event, time : str
    position : tuple of str
    energy : str
        "" where there is none.
    scatter : tuple of str
        Those that count scattering in phantoms.
    second : float
        Of `time`.
    """

    event: str
    time: str
    position: tuple[str, str, str]
    energy: str
    scatter: tuple[str, ...]
    second: float

    def of_end(self, end: int) -> "_Names":
        """Branches of an end."""
        x, y, z = (f"{name}{end}" for name in self.position)
        return replace(
            self, event=f"{self.event}{end}", time=f"{self.time}{end}", position=(x, y, z), energy=f"{self.energy}{end}",
            scatter=tuple(f"{name}{end}" for name in self.scatter),
        )  # fmt: skip


_DIALECTS = (
    _Names("eventID", "time", ("globalPosX", "globalPosY", "globalPosZ"), "energy",
           ("comptonPhantom", "RayleighPhantom"), 1.0),
    _Names("EventID", "GlobalTime", ("PostPosition_X", "PostPosition_Y", "PostPosition_Z"), "TotalEnergyDeposit", (), 1e9),
)  # fmt: skip


class _Broken(Exception):
    """A file cannot be followed any further."""


@contextmanager
def _breaks(what: str) -> Iterator[None]:
    """uproot fails in as many ways as bytes can be damaged."""
    try:
        yield
    except (DataError, _Broken):
        raise
    except Exception:
        raise _Broken(what) from None


@dataclass(frozen=True, eq=False)
class _Tree:
    """A tree of coincidences.

    Parameters
    ----------
    path : Path
    name : str
    entries : int
    ends : tuple
        Branches of both ends that are there.
    is_delayed : bool
    offset_ps : float
        Of the coincidence window.
    """

    path: Path
    name: str
    entries: int
    ends: tuple[_Names, _Names]
    is_delayed: bool
    offset_ps: float = 0.0

    @classmethod
    def of(cls, path: Path, file: Any, name: str, is_delayed: bool) -> "_Tree":
        """Open a tree; `DataError` where a branch is missing."""
        tree = file[name]
        there = set(tree.keys())
        known = next((d for d in _DIALECTS if f"{d.time}1" in there), _DIALECTS[0])
        ends = []
        for end in (known.of_end(1), known.of_end(2)):
            missing = {end.event, end.time, *end.position} - there
            if missing:
                listed = ", ".join(sorted(missing))
                raise DataError(f"{path.name}: tree {name} has no branch {listed}; simulate with GATE's default output")
            scatter = tuple(n for n in end.scatter if n in there)
            ends.append(replace(end, energy=end.energy if end.energy in there else "", scatter=scatter))
        return cls(path, name, int(tree.num_entries), (ends[0], ends[1]), is_delayed)

    @property
    def has_scatter(self) -> bool:
        """Whether scattering in phantoms was recorded."""
        return bool(self.ends[0].scatter and self.ends[1].scatter)

    def arrays(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Branches of some entries."""
        return next(self._pass(start, stop, max(1, stop - start)), {})

    def _pass(self, start: int, stop: int, step: int) -> Iterator[dict[str, np.ndarray]]:
        names = [n for e in self.ends for n in (e.event, e.time, *e.position, e.energy, *e.scatter) if n]
        with _opened(self.path) as file:
            pieces = file[self.name].iterate(names, entry_start=start, entry_stop=stop, step_size=step, library="np")
            while True:
                with _breaks(f"entries of tree {self.name} cannot be read"):
                    piece = next(pieces, None)
                if piece is None:
                    return
                yield piece

    def events(self, finder: CrystalFinder) -> Iterator[np.ndarray]:
        """Events as they come."""
        for piece in self._pass(0, self.entries, ENTRIES):
            events, outside = self.decoded(piece, finder)
            if outside > len(piece[self.ends[0].time]) / 2:
                raise _Broken(f"most coincidences of tree {self.name} lie outside the crystals of {finder.scanner.name}")
            yield events

    def decoded(self, piece: dict[str, np.ndarray], finder: CrystalFinder) -> tuple[np.ndarray, int]:
        """Events between different crystals, and the number of those outside the scanner."""
        one, two = self.ends
        scanner = finder.scanner
        time_ms = piece[one.time] * (1000 / one.second)
        if not ((time_ms >= 0) & (time_ms < 2**32)).all():
            raise _Broken(f"a time in tree {self.name} is not that of a scan")
        events = np.zeros(len(time_ms), EVENT)
        events["time_ms"], events["is_delayed"] = time_ms.astype(np.uint32), self.is_delayed
        outside = np.zeros(len(events), bool)
        for k, end in enumerate(self.ends, 1):
            events[f"crystal{k}"], events[f"ring{k}"], offset_mm = finder.nearest(*(piece[n] for n in end.position))
            outside |= finder.is_outside(offset_mm)
            if end.energy:
                events[f"energy{k}_kev"] = piece[end.energy] * 1000
        is_random = (piece[one.event] != piece[two.event]) | (piece[one.event] == NOISE) | self.is_delayed
        if self.has_scatter:
            is_scattered = np.any([piece[n] > 0 for end in self.ends for n in end.scatter], axis=0)
            events["label"] = np.where(is_scattered, _SCATTER, _TRUE)
        events["label"][is_random] = _RANDOM
        if scanner.tof_bins and scanner.tof_bin_ps:
            late_ps = self.difference_ps(piece)
            late_ps -= np.sign(late_ps) * self.offset_ps
            place = np.floor(late_ps / scanner.tof_bin_ps + scanner.tof_bins / 2)
            events["tof_bin"] = np.clip(place, 0, scanner.tof_bins - 1)
        return events[~outside & (events["crystal1"] != events["crystal2"])], int(outside.sum())

    def difference_ps(self, piece: dict[str, np.ndarray]) -> np.ndarray:
        """time1 - time2."""
        one, two = self.ends
        return (piece[one.time] - piece[two.time]) * (1e12 / one.second)


def read(path: Path, scanner: Scanner | None = None) -> Listmode:
    """Open a file; see `petsim.rawdata.events.Format`. `scanner` must be given: the file does not name it."""
    if scanner is None:
        raise DataError(f"{path.name}: GATE files do not tell the scanner; name it with --scanner")
    finder = CrystalFinder.of(scanner)
    try:
        trees, stated_s = _trees(path)
        spans = [_span_ms(tree) for tree in trees]
        warnings = _checked(trees[0], finder)
        if scanner.tof_bins:
            trees = [_with_offset(tree) if tree.is_delayed else tree for tree in trees]
    except _Broken as broken:
        raise DataError(f"{path.name}: {broken}; the file is damaged, copy it or simulate again") from None
    first_s, last_s = min(s[0] for s in spans) / 1000, (max(s[1] for s in spans) + 1) / 1000
    start_s, stop_s = stated_s or (0.0, 0.0)
    start_s, stop_s = min(start_s, first_s), max(stop_s, last_s)
    if stated_s is None:
        warnings.append(f"{path.name}: has no tree 'pet_data' with the time of the scan; it ends with its last coincidence")
    present = {
        "time": True, "labels": True, "tof": bool(scanner.tof_bins), "delayeds": len(trees) > 1,
        "energies": bool(trees[0].ends[0].energy and trees[0].ends[1].energy),
    }  # fmt: skip
    header = Header(
        scanner, stop_s - start_s, start_s, scanner.tof_bins or 1, scanner.tof_bin_ps or 0.0,
        frozenset(name for name, is_there in present.items() if is_there),
    )  # fmt: skip
    return Listmode(path.name, header, lambda: _blocks(path.name, trees, finder, header), tuple(warnings))


def create(path: Path, header: Header) -> AbstractContextManager[Write]:
    """ROOT files are not written."""
    raise UsageError(f"{path.name}: ROOT files are read only; choose another format")


def _opened(path: Path) -> Any:
    try:
        import uproot
    except ImportError:
        raise DataError(f"{path.name}: ROOT files need uproot; run pip install 'petsim[root]'") from None
    with _breaks("it is no ROOT file, or its end is missing"):
        return uproot.open(path)


def _trees(path: Path) -> tuple[list[_Tree], tuple[float, float] | None]:
    """Coincidences, delayeds where there are some, and start and end of the scan in s where they are stated."""
    with _opened(path) as file, _breaks("its trees cannot be read"):
        kinds = {name.split(";")[0]: kind for name, kind in file.classnames().items()}
        names = sorted(name for name, kind in kinds.items() if kind == "TTree")
        prompts = [n for n in names if n.lower() == "coincidences"]
        delayeds = [n for n in names if n.lower().startswith("delay")]
        if not prompts or len(delayeds) > 1:
            raise DataError(
                f"{path.name}: one tree Coincidences and at most one of delayeds are needed, its trees are "
                f"{', '.join(names) or 'none'}; name the coincidence sorter's output so"
            )
        trees = [_Tree.of(path, file, prompts[0], False), *(_Tree.of(path, file, n, True) for n in delayeds)]
        if trees[0].entries == 0:
            raise DataError(f"{path.name}: tree {prompts[0]} has no entries; simulate longer")
        stated = None
        if {"start_time_sec", "stop_time_sec"} <= set(file["pet_data"].keys() if "pet_data" in names else ()):
            times = file["pet_data"].arrays(["start_time_sec", "stop_time_sec"], library="np")
            if len(times["start_time_sec"]):
                stated = float(times["start_time_sec"][0]), float(times["stop_time_sec"][-1])
    return [tree for tree in trees if tree.entries], stated


def _span_ms(tree: _Tree) -> tuple[int, int]:
    """Times of the earliest coincidence at the beginning and of the latest at the end of a tree."""
    name, per_ms = tree.ends[0].time, tree.ends[0].second / 1000
    begin = tree.arrays(0, min(tree.entries, HELD_BACK))[name]
    end = tree.arrays(max(0, tree.entries - HELD_BACK), tree.entries)[name]
    if not ((begin >= 0).all() and (end >= 0).all()):
        raise _Broken(f"a time in tree {tree.name} is not that of a scan")
    return math.floor(begin.min() / per_ms), math.floor(max(begin.max(), end.max()) / per_ms)


def _with_offset(tree: _Tree) -> _Tree:
    """A tree of delayeds with the offset of its window."""
    smallest_ps = float(np.abs(tree.difference_ps(tree.arrays(0, min(tree.entries, ENTRIES)))).min())
    return replace(tree, offset_ps=1000 * math.floor(smallest_ps / 1000))


def _checked(tree: _Tree, finder: CrystalFinder) -> list[str]:
    """Warnings about how the first coincidences fit the scanner; `DataError` where most of them lie outside."""
    piece = tree.arrays(0, min(tree.entries, LOOKED_AT))
    events, outside = tree.decoded(piece, finder)
    count, scanner, name = len(piece[tree.ends[0].time]), finder.scanner, tree.path.name
    if outside > count / 2:
        raise DataError(
            f"{name}: {outside} of the first {count} coincidences lie farther than a crystal pitch from the crystals of "
            f"{scanner.name}; name the simulated scanner with --scanner"
        )
    warnings = []
    if len(events) < count:
        warnings.append(
            f"{name}: coincidences outside the crystals of {scanner.name} ({outside} of the first {count}) or with both "
            f"ends at one place of its ring ({count - len(events) - outside}) are left out"
        )
    places = [np.concatenate([piece[end.position[axis]] for end in tree.ends]) for axis in range(3)]

    def between(some: CrystalFinder) -> float:
        return float(some.is_between(some.nearest(*places)[2]).mean())

    part = between(finder)
    if part > BETWEEN:
        angle = finder.fitting_view_offset_rad(*places)
        if between(CrystalFinder.of(replace(scanner, view_offset_rad=angle))) < part / 2:
            warnings.append(
                f"{name}: {100 * part:.0f} % of the ends lie in gaps between crystals of {scanner.name}; the simulated "
                f"scanner seems turned, a copy of the TOML file with view_offset_rad {angle:.5f} would fit"
            )
    return warnings


def _blocks(name: str, trees: list[_Tree], finder: CrystalFinder, header: Header) -> Iterator[Block]:
    total, last_ms, what = 0, 0, ""
    try:
        for events in _merged([_in_order(tree.events(finder)) for tree in trees]):
            wrong, what = first_wrong(events, header, last_ms)
            good = events if wrong < 0 else events[:wrong]
            if len(good):
                yield Block(good)
                total, last_ms = total + len(good), int(good["time_ms"][-1])
            if what:
                break
    except _Broken as broken:
        what = str(broken)
    if what and not total:
        raise DataError(f"{name}: {what} at its first event; copy the file or simulate again")
    if what:
        raise DamagedError(name, what, f"event {total} in order of time", total)


def _in_order(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Events sorted by time, as far as late ones come within `HELD_BACK` others; none of the arrays is empty."""
    held = np.zeros(0, EVENT)
    try:
        for piece in pieces:
            held = _sorted(np.concatenate([held, piece]))
            ready = len(held) - HELD_BACK
            if ready > 0:
                yield held[:ready]
                held = held[ready:]
    except _Broken:
        if len(held):
            yield held
        raise
    if len(held):
        yield held


def _sorted(events: np.ndarray) -> np.ndarray:
    time = events["time_ms"]
    return events[np.argsort(time, kind="stable")] if (time[1:] < time[:-1]).any() else events


def _merged(streams: list[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """Events of several trees, each in order of time, in order of time."""
    heads = [next(stream, None) for stream in streams]
    while True:
        there = [head for head in heads if head is not None]
        if not there:
            return
        # Nothing earlier than the end of the shortest one is still to come.
        until = min(int(head["time_ms"][-1]) for head in there)
        ready = [head[: np.searchsorted(head["time_ms"], until, "right")] for head in there]
        yield _sorted(np.concatenate(ready))
        for k, head in enumerate(heads):
            if head is not None:
                rest = head[np.searchsorted(head["time_ms"], until, "right") :]
                heads[k] = rest if len(rest) else next(streams[k], None)
