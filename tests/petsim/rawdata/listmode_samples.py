"""List-mode data for tests of formats."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from petsim.geometry.scanner import Scanner, load_scanner
from petsim.rawdata.events import EVENT, SINGLES, Block, Header, Listmode


def sample_events(scanner: Scanner, count: int, seed: int = 0, last_ms: int = 999, tof_bins: int = 1) -> np.ndarray:
    """Events of real crystals, in order of their times, with every column filled."""
    random = np.random.default_rng(seed)
    crystals = np.flatnonzero(scanner.transaxial_is_real())
    events = np.zeros(count, EVENT)
    first = random.choice(crystals, count)
    across = scanner.crystals_per_ring // 2
    second = (first + across + random.integers(-across // 3, across // 3, count)) % scanner.crystals_per_ring
    events["crystal1"], events["crystal2"] = first, crystals[np.searchsorted(crystals, second) % len(crystals)]
    rings = np.flatnonzero(scanner.ring_is_real())
    events["ring1"] = random.choice(rings, count)
    near = events["ring1"].astype(int) + random.integers(
        -scanner.max_ring_difference, scanner.max_ring_difference + 1, count
    )
    events["ring2"] = rings[np.searchsorted(rings, np.clip(near, 0, rings[-1]))]
    far = np.abs(events["ring1"].astype(int) - events["ring2"]) > scanner.max_ring_difference
    events["ring2"][far] = events["ring1"][far]
    events["time_ms"] = np.sort(random.integers(0, last_ms + 1, count))
    events["time_ms"][:1], events["time_ms"][-1:] = 0, last_ms
    events["tof_bin"] = random.integers(0, tof_bins, count)
    events["is_delayed"] = random.random(count) < 0.2
    events["label"] = random.integers(1, 4, count)
    events["energy1_kev"], events["energy2_kev"] = random.uniform(435, 585, (2, count))
    return events


def sample_singles(blocks: int, last_ms: int = 999) -> np.ndarray:
    """Singles every 100 ms, multiples of 8 cps."""
    times = np.arange(0, last_ms + 1, 100)
    singles = np.zeros(len(times) * blocks, SINGLES)
    singles["time_ms"], singles["block"] = np.repeat(times, blocks), np.tile(np.arange(blocks), len(times))
    singles["cps"] = 8 * (1000 + np.arange(len(singles)))
    return singles


def in_memory(header: Header, events: np.ndarray, singles: np.ndarray | None = None, at_once: int = 1000) -> Listmode:
    """A file that is not one: events in blocks, with the singles up to their last time."""
    singles = np.zeros(0, SINGLES) if singles is None else singles

    def blocks():
        before = 0
        for start in range(0, max(len(events), 1), at_once):
            some = events[start : start + at_once]
            ends = start + at_once >= len(events)
            until = len(singles) if ends else int((singles["time_ms"] <= some["time_ms"][-1]).sum())
            yield Block(some, singles[before:until])
            before = until

    return Listmode("memory", header, blocks)


def mmr_header(*fields: str) -> Header:
    """One second on the mMR."""
    return Header(load_scanner("biograph_mmr"), 1.0, fields=frozenset(fields))


def all_events(source: Listmode) -> np.ndarray:
    """Events of all blocks."""
    return np.concatenate([block.events for block in source.blocks()])


def cleared(events: np.ndarray, kept: Iterable[str]) -> np.ndarray:
    """Events with zeros in all columns but crystals, rings and those of some fields."""
    columns = {"time": ["time_ms"], "tof": ["tof_bin"], "delayeds": ["is_delayed"], "labels": ["label"],
               "energies": ["energy1_kev", "energy2_kev"]}  # fmt: skip
    names = ["crystal1", "ring1", "crystal2", "ring2", *(n for field in kept for n in columns.get(field, []))]
    out = np.zeros_like(events)
    for name in names:
        out[name] = events[name]
    return out


def with_fields(header: Header, *fields: str) -> Header:
    """The header with other fields."""
    return replace(header, fields=frozenset(fields))
