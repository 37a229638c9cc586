"""Rates of the CPU projectors and of parallelproj, side by side on the same LORs.

    python -m benchmarks.projector

Sinograms without and with TOF, one thread and two:

- `block`: 624 crystals x 32 rings of 4 mm at 396.7 mm, all ring pairs, 200 x 200 x 63 voxels of 2 mm, 13 TOF bins;
- `block, any voxel`: the same with an axial voxel that does not divide the ring pitch (the exact, slower path);
- `polygon`: parallelproj's own benchmark geometry, 34 sides of 16 crystals of 4.03 mm at 380.6 mm, 36 rings of 5.31556 mm in
  4 blocks with gaps of 2.8 mm, 215 x 215 x 71 voxels of 2.78 mm, 29 TOF bins (exact ring positions, no common pitch);
- `Quadra standard`: the layout of the preset.

parallelproj is timed where it is found; PETSIM_PARALLELPROJ_LIBS=name=path:... names several builds of it (see
`benchmarks.peers`). Ratios are to the fastest build whose name holds "shipped" and "native". The machine's limit is the rate
of multiply-adds of NumPy's float32 matrix product in the same run; `of_fma_limit` is what a projector that does Joseph's
sums step by step (2 multiply-adds a step, and one a TOF bin within the kernel's reach) would have to reach of it.
"""

import dataclasses
import json
import os
import time
from typing import Any

import numba as nb
import numpy as np

from benchmarks.common import emit
from benchmarks.peers import time_peers
from data_recipes.grid import Grid
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import TOF_SIGMAS, SinogramLayout, fitting_grid, preset_layout
from petsim.projectors.sinogram import SinogramProjector
from petsim.settings import PRESETS

PEER_RADIALS = 8
"""parallelproj is timed on every 8th radial bin, with TOF on every 64th, of the views that are projected."""


def seconds_of(call: Any, repeats: int = 3) -> float:
    """Shortest of a few runs, after one that compiles and warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def block_scanner() -> Any:
    """624 crystals and 32 rings of 4 mm, radius 396.7 mm, no gaps, TOF bins of 46.77 mm with a sigma of 33.58 mm."""
    return dataclasses.replace(
        load_scanner("biograph_vision_600"), name="block", inner_radius_mm=396.7, interaction_depth_mm=0.0,
        crystals_per_ring=624, rings=32, ring_spacing_mm=4.0, transaxial_block=13, transaxial_block_real=13,
        axial_block=32, axial_block_real=32, max_ring_difference=31, tof_fwhm_ps=527.6, tof_bin_ps=312.0, tof_bins=13,
    )  # fmt: skip


def polygon_scanner() -> Any:
    """parallelproj's benchmark scanner: flat sides, gaps between axial blocks, 385 ps TOF in bins of 169.26 ps."""
    return dataclasses.replace(
        load_scanner("biograph_vision_600"), name="polygon", inner_radius_mm=380.6, interaction_depth_mm=0.0,
        crystals_per_ring=544, transaxial_block=16, transaxial_block_real=16, transaxial_pitch_mm=4.03,
        rings=36, ring_spacing_mm=5.31556, axial_block=9, axial_block_real=9, axial_gap_mm=2.8,
        max_ring_difference=35, tof_fwhm_ps=385.0, tof_bin_ps=169.26, tof_bins=29,
    )  # fmt: skip


def lors_of(layout: SinogramLayout, views: np.ndarray, every: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """End points (n, 3) in mm of the bins of some views and of every so many radial bins, in the sinogram's order."""
    ends = layout.transaxial_ends(views)[:, ::every]
    z = layout.plane_z_mm()
    both = []
    for end in range(2):
        xyz = np.empty((*ends.shape[:2], layout.planes, 3))
        xyz[..., :2] = ends[:, :, None, 2 * end : 2 * end + 2]
        xyz[..., 2] = z[:, end]
        both.append(xyz.reshape(-1, 3))
    return both[0], both[1]


def fma_limit() -> float:
    """Multiply-adds a second of NumPy's float32 matrix product, which takes all cores."""
    a = np.random.default_rng(0).random((1536, 1536), np.float32)
    return 1536**3 / seconds_of(lambda: a @ a, 5)


def peers_of(layout: SinogramLayout, grid: Grid, image: np.ndarray, views: np.ndarray, tof: bool, threads: int) -> list:
    """Rates of parallelproj on a part of the LORs."""
    calls = ["tof_sino_forward", "tof_sino_back"] if tof else ["forward", "back"]
    start, end = lors_of(layout, views[: 1 if tof else None], PEER_RADIALS * (8 if tof else 1))
    case = {
        "calls": np.array(calls),
        "lor_start": start,
        "lor_end": end,
        "image": image,
        "voxel_mm": np.array(grid.spacing_mm),
        "origin_mm": np.array(grid.origin_mm),
        "tof": np.array([layout.tof_bin_mm, layout.tof_sigma_mm, layout.tof_bins]),
    }
    return time_peers(case, threads)["peers"]


def ratios(ours: dict[str, float], peers: list, keys: tuple[str, str]) -> dict[str, dict[str, float]]:
    """Our rate over that of the fastest peer of a kind."""
    out = {}
    for kind in ("shipped", "native", "installed"):
        of_kind = [p["mlor_per_s"] for p in peers if kind in p["name"]]
        if of_kind:
            out[kind] = {
                name: round(ours[name] / max(p[key] for p in of_kind), 1)
                for name, key in zip(("forward", "back"), keys, strict=True)
            }
    return out


def case(name: str, layout: SinogramLayout, grid: Grid, views: np.ndarray, tof: bool, threads: int,
         limit: float) -> dict[str, Any]:  # fmt: skip
    """Forward, back and EM rates of one layout in million LORs a second, and those of parallelproj."""
    nb.set_num_threads(threads)
    projector = SinogramProjector(layout, grid, tof=tof)
    image = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    data = projector.forward(image, views)
    lors = len(views) * layout.radials * layout.planes
    prepared = projector.prepare(image[None])
    sums = projector.new_sums(1)
    ours = {
        "forward": lors / seconds_of(lambda: projector.forward_prepared(prepared[0], views)) / 1e6,
        "back": lors / seconds_of(lambda: projector.add_back(sums, views, data[None])) / 1e6,
        "em": lors / seconds_of(lambda: projector.add_em_back(sums, views, data[None], prepared)) / 1e6,
    }
    bins = (2 * TOF_SIGMAS * layout.tof_sigma_mm / layout.tof_bin_mm + 1) if tof else 0.0
    step_by_step = min(grid.shape[:2]) * (2 + bins)
    peers = peers_of(layout, grid, image, views, tof, threads)
    keys = ("tof_sino_forward", "tof_sino_back") if tof else ("forward", "back")
    return {
        "case": name, "tof_bins": projector.bins, "lors": lors, "threads": threads,
        "mlor_per_s": {k: round(v, 2) for k, v in ours.items()},
        "of_fma_limit": round(ours["forward"] * 1e6 * step_by_step / (limit * threads), 2),
        "ratio": ratios(ours, peers, keys),
        "parallelproj": peers,
    }  # fmt: skip


def every(layout: SinogramLayout, count: int) -> np.ndarray:
    """A few views, evenly spread but for the symmetry of the grid."""
    return np.unique((np.arange(count) + 0.3) * layout.views / count).astype(int)


def layouts() -> list[tuple[str, SinogramLayout, Grid, int]]:
    """Name, layout with TOF, grid and number of views of each case."""
    block = SinogramLayout(block_scanner(), 400, span=1, max_ring_difference=31, merge_tof=1, tof_bins=13)
    polygon = SinogramLayout(polygon_scanner(), 414, span=1, max_ring_difference=35, merge_tof=1, tof_bins=29)
    quadra = preset_layout(load_scanner("biograph_vision_quadra"), PRESETS["standard"], 480.0)
    length = quadra.scanner.axial_length_mm
    return [
        ("block", block, Grid.centered((200, 200, 63), (2.0, 2.0, 2.0)), 8),
        ("block, any voxel", block, Grid.centered((200, 200, 59), (2.0, 2.0, 2.13)), 4),
        ("polygon", polygon, Grid.centered((215, 215, 71), (2.78, 2.78, 2.78)), 4),
        ("polygon, even rings", dataclasses.replace(polygon, even_rings=True),
         Grid.centered((215, 215, 71), (2.78, 2.78, polygon.ring_pitch_mm / 2)), 4),
        ("Quadra standard", quadra, fitting_grid(quadra, 4.0, 4.0, 480.0, length, (0.0, 0.0, 0.0)), 8),
    ]  # fmt: skip


def main() -> None:
    """Run the cases, print a JSON line each and a table."""
    nb.set_num_threads(1)
    limit = fma_limit() / (os.cpu_count() or 1)
    cases = []
    for name, layout, grid, views in layouts():
        for tof in (False, True):
            for threads in (1, 2):
                cases.append(case(name, layout, grid, every(layout, views), tof, threads, limit))
                print(json.dumps(cases[-1]), flush=True)
    print(f"{'case':22s}{'TOF':>5s}{'threads':>8s}{'forward':>9s}{'back':>8s}{'EM':>8s}   M LOR/s; ratio to parallelproj")
    for c in cases:
        rate = c["mlor_per_s"]
        ratio = "; ".join(f"{k} {v['forward']:g} / {v['back']:g}" for k, v in c["ratio"].items())
        print(f"{c['case']:22s}{c['tof_bins']:5d}{c['threads']:8d}{rate['forward']:9.1f}{rate['back']:8.1f}{rate['em']:8.1f}"
              f"   {ratio}")  # fmt: skip
    emit("projector", {"fma_limit_a_thread": round(limit / 1e9, 1), "cases": cases})


if __name__ == "__main__":
    main()
