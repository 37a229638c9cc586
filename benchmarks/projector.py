"""LOR x images/s of the projectors, side by side on the same LORs.

    NUMBA_NUM_THREADS=1 python -m benchmarks.projector

Cases: the 624-crystal, 32-ring geometry of 4 mm pitch (all ring pairs, 200 x 200 x 63 image of 2 mm), and the Quadra's
`standard` layout with TOF. Peers: an independent LOR-by-LOR Joseph in compiled code, and parallelproj where it can be
imported.
"""

import dataclasses
import time
from typing import Any

import numba as nb
import numpy as np

from benchmarks.common import emit
from data_recipes.grid import Grid
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout, covering_ring_difference, radials_for, tof_bins_for
from petsim.projectors.sinogram import TOF_SIGMAS, SinogramProjector


@nb.njit(fastmath=True)
def lor_by_lor(starts, ends, image, origin, voxel, out):
    """Joseph's method, one LOR at a time, bilinear samples with bounds checks, no symmetry."""
    shape = image.shape
    for n in range(starts.shape[0]):
        dx, dy, dz = ends[n, 0] - starts[n, 0], ends[n, 1] - starts[n, 1], ends[n, 2] - starts[n, 2]
        length = np.sqrt(dx * dx + dy * dy + dz * dz)
        along_x = abs(dx) >= abs(dy)
        d = dx if along_x else dy
        first = 0 if along_x else 1
        second = 1 - first
        total = 0.0
        for i in range(shape[first]):
            t = (origin[first] + i * voxel[first] - starts[n, first]) / d
            u = (starts[n, second] + t * (dy if along_x else dx) - origin[second]) / voxel[second]
            w = (starts[n, 2] + t * dz - origin[2]) / voxel[2]
            j, k = int(np.floor(u)), int(np.floor(w))
            f, g = u - j, w - k
            for a in range(2):
                for b in range(2):
                    if 0 <= j + a < shape[second] and 0 <= k + b < shape[2]:
                        weight = (f if a else 1 - f) * (g if b else 1 - g)
                        total += weight * (image[i, j + a, k + b] if along_x else image[j + a, i, k + b])
        out[n] = total * voxel[first] * length / abs(d)


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


def lors_of(layout: SinogramLayout, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """End points (n, 3) of all bins of some views, in the order of the sinogram."""
    z = layout.ring_z_mm()
    middle, half = np.empty(layout.planes), np.empty(layout.planes)
    for seg in layout.segments():
        place = slice(seg.start, seg.start + seg.planes)
        middle[place] = z[0] + (seg.first_sum + np.arange(seg.planes) * seg.step) * layout.ring_pitch_mm / 2
        half[place] = seg.ring_difference * layout.ring_pitch_mm / 2
    ends = layout.transaxial_ends(views)
    shape = (*ends.shape[:2], layout.planes)
    starts, stops = np.empty((*shape, 3)), np.empty((*shape, 3))
    for axis in range(2):
        starts[..., axis] = ends[..., axis, None]
        stops[..., axis] = ends[..., 2 + axis, None]
    starts[..., 2], stops[..., 2] = middle - half, middle + half
    return starts.reshape(-1, 3), stops.reshape(-1, 3)


def parallelproj_case(layout: SinogramLayout, grid: Grid, image: np.ndarray, views: np.ndarray) -> dict[str, Any] | None:
    """Rates of parallelproj_core (2.x) on the same LORs, or None where it cannot be imported."""
    try:
        import parallelproj_core as pp  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    starts, stops = (a.astype(np.float32) for a in lors_of(layout, views))
    origin, voxel = np.array(grid.origin_mm, np.float32), np.array(grid.spacing_mm, np.float32)
    out = np.empty(len(starts), np.float32)
    back = np.zeros_like(image)
    forward = seconds_of(lambda: pp.joseph3d_fwd(starts, stops, image, origin, voxel, out), 1)
    adjoint = seconds_of(lambda: pp.joseph3d_back(starts, stops, back, origin, voxel, out), 1)
    return {"version": pp.__version__, "forward": len(out) / forward / 1e6, "back": len(out) / adjoint / 1e6}


def case(name: str, layout: SinogramLayout, grid: Grid, views: np.ndarray, tof: bool) -> dict[str, Any]:
    """Forward, back and EM rates of one layout, in million LORs a second."""
    projector = SinogramProjector(layout, grid, tof=tof)
    image = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    data = projector.forward(image, views)
    lors = len(views) * layout.radials * layout.planes
    prepared = projector.prepare(image[None])
    sums = projector.new_sums(1)
    rates = {
        "forward": lors / seconds_of(lambda: projector.forward_prepared(prepared[0], views)) / 1e6,
        "back": lors / seconds_of(lambda: projector.add_back(sums, views, data[None])) / 1e6,
        "em": lors / seconds_of(lambda: projector.add_em_back(sums, views, data[None], prepared)) / 1e6,
    }
    starts, stops = lors_of(layout, views)
    pick = np.random.default_rng(1).choice(len(starts), 100_000, replace=False)
    out = np.empty(len(pick))
    args = (starts[pick], stops[pick], image, np.array(grid.origin_mm), np.array(grid.spacing_mm), out)
    single = len(pick) / seconds_of(lambda: lor_by_lor(*args)) / 1e6
    ours = data.sum(axis=2).reshape(-1)[pick]
    return {
        "case": name, "tof_bins": projector.bins, "lors": lors, "threads": nb.get_num_threads(),
        "mlor_per_s": {k: round(v, 2) for k, v in rates.items()},
        "lor_by_lor_forward_mlor_per_s": round(single, 3),
        "ratio_forward_a_thread": round(rates["forward"] / nb.get_num_threads() / single, 1),
        "median_relative_difference": float(np.median(np.abs(ours - out)[out > 0] / out[out > 0])),
        "parallelproj": None if tof else parallelproj_case(layout, grid, image, views),
    }  # fmt: skip


def main() -> None:
    """Run the cases and print a JSON line."""
    block = block_scanner()
    layout = SinogramLayout(block, radials=400, span=1, max_ring_difference=31)
    grid = Grid.centered((200, 200, 63), (2.0, 2.0, 2.0))
    views = np.arange(0, layout.views, 40)
    cases = [case("block 624 x 32", layout, grid, views, tof=False)]
    layout = dataclasses.replace(layout, merge_tof=1, tof_bins=13)
    cases.append(case("block 624 x 32, TOF", layout, grid, views, tof=True))
    quadra = load_scanner("biograph_vision_quadra")
    layout = SinogramLayout(
        quadra, radials_for(quadra, 2, 480.0), 2, 2, span=9, max_ring_difference=covering_ring_difference(quadra, 2),
        merge_tof=15, tof_bins=tof_bins_for(quadra, 15, 480.0, TOF_SIGMAS),
    )  # fmt: skip
    grid = Grid.centered((120, 120, 323), (4.0, 4.0, quadra.ring_spacing_mm))
    cases.append(case("Quadra standard, TOF", layout, grid, np.arange(0, layout.views, 50), tof=True))
    emit("projector", {"cases": cases})


if __name__ == "__main__":
    main()
