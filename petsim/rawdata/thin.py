"""Dose ladders of list-mode files: the same events, fewer of them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np

from data_recipes.errors import DataError, UsageError
from petsim.dose import DoseLadder
from petsim.rawdata.events import EVENT, Block, DamagedError, Dose, Header, Listmode, without_fields
from petsim.rawdata.formats import format_of, loss

Levels = Callable[[np.ndarray, int], np.ndarray]
"""Events and the index of the first of them -> in how many doses, counted from full dose, each is: uint8 (events,)."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Ladder:
    """What is to be made of a list-mode file.

    Parameters
    ----------
    drfs : tuple of float
        Ascending, 1 first.
    mode : str
        "thin": an event is kept with probability 1 / D, by a number of its index. Times, singles and duration stay: these
        are data of a shorter scan, stretched over the same time, with the randoms fraction and dead time of the full dose.
        "window": the middle 1 / D of the time. "dose": a model of a lower injection, see `petsim.rawdata.lower_dose`; the
        singles of the full dose are left out.
    seed : int
    complement : bool
        Write what each dose leaves out too ("thin" only).
    """

    drfs: tuple[float, ...]
    mode: str
    seed: int
    complement: bool = False

    def __post_init__(self) -> None:
        if self.complement and self.mode != "thin":
            raise UsageError(f"--complement: what mode {self.mode} leaves out is no scan of its own; use --mode thin")

    def dose_ladder(self, realization: int) -> DoseLadder:
        """Random numbers of the events."""
        return DoseLadder(self.drfs, self.seed, "events", realization)


def window_s(header: Header, drf: float) -> tuple[float, float]:
    """Start and end of the middle 1 / DRF of a scan, in whole milliseconds."""
    length = max(1, round(1000 * header.duration_s / drf))
    start = round(1000 * header.start_s + (1000 * header.duration_s - length) / 2)
    return start / 1000, (start + length) / 1000


def levels_of(source: Listmode, ladder: Ladder, realization: int = 0) -> Levels:
    """Which events are kept at which dose; another realization keeps others, but for a window."""
    header = source.header
    if ladder.mode == "window":
        if "time" not in header.fields:
            raise DataError(f"{source.name}: its events have no times, which --mode window needs; use --mode thin")
        spans = np.array([window_s(header, d) for d in ladder.drfs]) * 1000

        def inside(events: np.ndarray, first: int) -> np.ndarray:
            time, levels = events["time_ms"], np.ones(len(events), np.uint8)
            for start, end in spans[1:].round().tolist():
                levels += (time >= start) & (time < end)
            return levels

        return inside
    own = ladder.dose_ladder(realization)
    if ladder.mode == "thin":
        return lambda events, first: own.levels(len(events), first)
    from petsim.rawdata.lower_dose import kept_shares

    kept = kept_shares(source, ladder.drfs)
    return lambda events, first: own.levels(len(events), first, kept(events))


def thinned_header(header: Header, ladder: Ladder, drf: float, complement: bool = False) -> Header:
    """Header of a dose."""
    fields = (header.fields | {"dose"}) - ({"singles"} if ladder.mode == "dose" else set())
    made = replace(header, fields=fields, dose=Dose(drf, ladder.mode, ladder.seed, complement))
    if ladder.mode != "window":
        return made
    start, end = window_s(header, drf)
    return replace(made, start_s=start, duration_s=end - start)


def thin(
    source: Listmode,
    ladder: Ladder,
    name: Callable[[float, bool], Path],
    salvage: bool = False,
    progress: Progress = lambda what, fraction: None,
) -> dict[str, Any]:
    """Write the doses of a list-mode file in one pass over it.

    Parameters
    ----------
    source : Listmode
    ladder : Ladder
        The full dose is not written again.
    name : callable
        DRF and whether it is a complement -> file to be written.
    salvage : bool
        Keep what was read before a damaged place.
    progress : callable

    Returns
    -------
    dict
        prompts, delayeds: counts by DRF ("1" is the source); files: names; warnings.

    Raises
    ------
    DataError
        A damaged file without `salvage`; nothing is left behind then.
    """
    source = salvaged(source) if salvage else source
    if source.header.dose is not None:
        raise DataError(
            f"{source.name}: is at DRF {source.header.dose.drf:g} already; thin the full dose, so that all levels are nested"
        )
    levels_for = levels_of(source, ladder)
    warnings = list(source.warnings)
    counts = np.zeros((len(ladder.drfs), 2), np.int64)
    first, spent_ms = 0, 1000 * source.header.duration_s
    with ExitStack() as stack:
        writers, complements = ([[] for _ in ladder.drfs] for _ in range(2))
        files = []
        for level, drf in enumerate(ladder.drfs[1:], 1):
            for complement in (False, True) if ladder.complement else (False,):
                path = name(drf, complement)
                made = thinned_header(source.header, ladder, drf, complement)
                lost, line = loss(made, path)
                warnings += [line] if line and line not in warnings else []
                opened = format_of(path).create(path, without_fields(made, lost))
                writing = (stack.enter_context(opened), "delayeds" not in lost)
                (complements if complement else writers)[level].append(writing)
                files.append(path.name)
        for block in source.blocks():
            levels = levels_for(block.events, first)
            # Each dose is found among the events of the one above it.
            chosen, own = block.events, levels
            for level in range(len(ladder.drfs)):
                chosen, own = (chosen, own) if level == 0 else select(chosen, own, level + 1)
                late = np.count_nonzero(chosen["is_delayed"])
                counts[level] += len(chosen) - late, late
                for write, holds_delayeds in writers[level]:
                    write(_narrowed(block, chosen, source.header, ladder, level, holds_delayeds))
                for write, holds_delayeds in complements[level]:
                    rest = select(block.events, levels, 1, level)[0]
                    write(_narrowed(block, rest, source.header, ladder, level, holds_delayeds))
            first += len(block.events)
            if len(block.events):
                progress("thinning", min(1.0, (block.events["time_ms"][-1] - 1000 * source.header.start_s) / spent_ms))
    by_drf = {f"{d:g}": c for d, c in zip(ladder.drfs, counts.tolist(), strict=True)}
    return {
        "prompts": {d: c[0] for d, c in by_drf.items()}, "delayeds": {d: c[1] for d, c in by_drf.items()},
        "files": files, "warnings": warnings,
    }  # fmt: skip


def salvaged(source: Listmode) -> Listmode:
    """A file up to its first damaged place, with the duration that is left; `source` itself where it is whole."""
    events, last_ms = 0, 0
    try:
        for block in source.blocks():
            events += len(block.events)
            if len(block.events):
                last_ms = int(block.events["time_ms"][-1])
        return source
    except DamagedError as error:
        warning = f"{str(error).split(';')[0]}; these were kept"
    header = source.header
    if events == 0:
        raise DataError(f"{source.name}: no event before the damaged place; copy the file again")
    if "time" in header.fields:
        header = replace(header, duration_s=max(last_ms + 1 - 1000 * header.start_s, 1) / 1000)
    else:
        warning += ", their duration is not known: the header has that of the whole scan"

    def blocks() -> Iterator[Block]:
        left = events
        for block in source.blocks():
            left -= len(block.events)
            yield block
            if left <= 0:
                return

    return replace(source, header=header, blocks=blocks, warnings=(*source.warnings, warning))


def _narrowed(block: Block, events: np.ndarray, header: Header, ladder: Ladder, level: int, holds_delayeds: bool) -> Block:
    """What a dose keeps of a block."""
    prompts_too = events if holds_delayeds else events[events["is_delayed"] == 0]
    return Block(prompts_too, _singles(block, header, ladder, level))


def _singles(block: Block, header: Header, ladder: Ladder, level: int) -> np.ndarray:
    if ladder.mode == "dose":
        return block.singles[:0]
    if ladder.mode == "thin":
        return block.singles
    start, end = window_s(header, ladder.drfs[level])
    time = block.singles["time_ms"]
    return block.singles[(time >= round(1000 * start)) & (time < round(1000 * end))]


def select(events: np.ndarray, levels: np.ndarray, low: int, high: int = 255) -> tuple[np.ndarray, np.ndarray]:
    """Events whose level is from `low` to `high`, in their order, and their levels."""
    kept = np.empty(_number(levels, low, high), np.uint8)
    out = np.empty(len(kept), EVENT)
    # Whole words: field by field the copy would take three times as long.
    _select(events.view(np.uint64).reshape(-1, 3), levels, low, high, out.view(np.uint64).reshape(-1, 3), kept)
    return out, kept


@nb.njit(cache=True, nogil=True)
def _number(levels, low, high):
    count = 0
    for level in levels:
        count += (level >= low) & (level <= high)
    return count


@nb.njit(cache=True, nogil=True)
def _select(events, levels, low, high, out, kept):
    count = 0
    for k in range(levels.size):
        if low <= levels[k] <= high:
            out[count, 0], out[count, 1], out[count, 2] = events[k, 0], events[k, 1], events[k, 2]
            kept[count] = levels[k]
            count += 1
