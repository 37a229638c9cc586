"""Rates of the list-mode projector and of parallelproj on the same events.

    python -m benchmarks.listmode_projector

Events are drawn evenly over the LORs of 624 crystals x 32 rings of 4 mm that cross a centered circle of 400 mm, in random
order; 200 x 200 x 63 voxels of 2 mm; without TOF and with 13 bins of 46.77 mm and a sigma of 33.58 mm. One image, and the
nested ladder DRF 1, 4, 10, 20, 100, where an event counts once for each of its doses. More events a crystal pair are
faster, so two counts are timed. Times are those of whole calls, in the caller's order; `sort` is the seconds of
construction. EM is one pass forward and back; for parallelproj it is the sum of both calls.

Threads are 1 and 2, no more than NUMBA_NUM_THREADS. parallelproj is timed where it is found (see `benchmarks.peers`).
"""

import json
from typing import Any

import numba as nb
import numpy as np

from benchmarks.common import emit
from benchmarks.peers import time_peers
from benchmarks.projector import block_scanner, seconds_of
from data_recipes.grid import Grid
from petsim.geometry.sinogram import SinogramLayout
from petsim.projectors.listmode import Events, ListmodeProjector, Tof

EVENTS = (1_000_000, 4_000_000)
PEER_EVENTS = 100_000
DRFS = (1, 4, 10, 20, 100)
RADIALS = 208
"""LORs of 624 crystals at 396.7 mm that pass within 200 mm of the axis."""


def positions(layout: SinogramLayout) -> tuple[np.ndarray, np.ndarray]:
    """Transaxial (crystals, 2) and axial (rings,) positions in mm."""
    scanner = layout.scanner
    angle = (np.arange(layout.crystals) + 0.5) * 2 * np.pi / layout.crystals + scanner.view_offset_rad
    return scanner.radius_mm * np.stack([np.cos(angle), np.sin(angle)], axis=1), layout.ring_z_mm()


def draw(layout: SinogramLayout, count: int, ladder: bool) -> Events:
    """Random events; in a ladder, a fraction 1 / DRF of them belongs to the dose of that DRF."""
    rng = np.random.default_rng(0)
    pairs = np.stack([np.concatenate(layout.crystal_pairs(v)) for v in range(layout.views)])
    view, radial = rng.integers(layout.views, size=count), rng.integers(layout.radials, size=count)
    crystal1, crystal2 = pairs[view, 0, radial], pairs[view, 1, radial]
    ring1, ring2 = rng.integers(layout.rings, size=(2, count))
    kept = rng.random(count)
    doses = np.sum([kept < 1 / drf for drf in (DRFS if ladder else DRFS[:1])], axis=0)
    return Events(crystal1, ring1, crystal2, ring2, rng.integers(layout.tof_bins, size=count), doses)


def case(layout: SinogramLayout, grid: Grid, count: int, tof: Tof | None, ladder: bool, threads: int) -> dict[str, Any]:
    """Rates in million events a second, or events x doses of a ladder."""
    nb.set_num_threads(threads)
    xy, z = positions(layout)
    events = draw(layout, count, ladder)
    sort = seconds_of(lambda: ListmodeProjector(xy, z, grid, events, tof=tof), 1)
    projector = ListmodeProjector(xy, z, grid, events, tof=tof)
    images = np.random.default_rng(0).random((len(DRFS) if ladder else 1, *grid.shape)).astype(np.float32)
    values = projector.forward(images)
    total = float(events.doses.sum())
    rates = {
        "forward": total / seconds_of(lambda: projector.forward(images), 2) / 1e6,
        "back": total / seconds_of(lambda: projector.adjoint(values), 2) / 1e6,
        "em": total / seconds_of(lambda: projector.em_back(images), 2) / 1e6,
    }
    return {
        "tof_bins": tof.bins if tof else 1, "doses": len(images), "events": count, "threads": threads,
        "sort_s": round(sort, 2), "m_per_s": {k: round(v, 2) for k, v in rates.items()},
    }  # fmt: skip


def peers_of(layout: SinogramLayout, grid: Grid, tof: Tof, threads: int) -> list[dict[str, Any]]:
    """Rates of parallelproj on events as ours, without and with TOF."""
    xy, z = positions(layout)
    events = draw(layout, PEER_EVENTS, False)
    calls = [f"{prefix}{way}" for prefix in ("", "tof_list_") for way in ("forward", "back")]
    result = time_peers({
        "calls": np.array(calls),
        "lor_start": np.column_stack([xy[events.crystal1], z[events.ring1]]),
        "lor_end": np.column_stack([xy[events.crystal2], z[events.ring2]]),
        "image": np.random.default_rng(0).random(grid.shape).astype(np.float32),
        "origin_mm": np.array(grid.origin_mm), "voxel_mm": np.array(grid.spacing_mm),
        "tof": np.array([tof.bin_mm, tof.sigma_mm, tof.bins]),
        "event_bin": np.asarray(events.tof_bin),
    }, threads)  # fmt: skip
    peers = []
    for peer in result["peers"]:
        for bins, prefix in ((1, ""), (tof.bins, "tof_list_")):
            forward, back = (peer["mlor_per_s"][f"{prefix}{way}"] for way in ("forward", "back"))
            rates = {"forward": forward, "back": back, "em": round(1 / (1 / forward + 1 / back), 4)}
            peers.append({"name": peer["name"], "version": peer["version"], "threads": threads, "tof_bins": bins,
                          "m_per_s": rates})  # fmt: skip
    return peers


def main() -> None:
    """Run the cases, print a JSON line each and a table."""
    layout = SinogramLayout(block_scanner(), RADIALS, span=1, max_ring_difference=31, merge_tof=1, tof_bins=13)
    grid = Grid.centered((200, 200, 63), (2.0, 2.0, 2.0))
    tof = Tof(layout.tof_bins, layout.tof_bin_mm, layout.tof_sigma_mm)
    cases, peers = [], []
    for threads in sorted({1, min(2, nb.get_num_threads())}):
        peers += peers_of(layout, grid, tof, threads)
        for count in EVENTS:
            for used in (None, tof):
                for ladder in (False, True):
                    cases.append(case(layout, grid, count, used, ladder, threads))
                    print(json.dumps(cases[-1]), flush=True)
    print(f"{'M events x doses/s':24s}{'TOF':>5s}{'threads':>8s}{'forward':>9s}{'back':>8s}{'EM':>8s}")
    rows = [(f"{c['events'] / 1e6:g} M events, {c['doses']} dose(s)", c) for c in cases]
    for name, c in rows + [(f"parallelproj {p['name']}", p) for p in peers]:
        rate = c["m_per_s"]
        print(f"{name:24s}{c['tof_bins']:5d}{c['threads']:8d}{rate['forward']:9.2f}{rate['back']:8.2f}{rate['em']:8.2f}")
    emit("listmode_projector", {"cases": cases, "peers": peers})


if __name__ == "__main__":
    main()
