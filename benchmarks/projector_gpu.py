"""Rates of the CUDA projectors and of parallelproj's CUDA build on a GPU, side by side on the same LORs.

    python -m benchmarks.projector_gpu

Sinograms: the cases of `benchmarks.projector`, without and with TOF. List-mode: those of
`benchmarks.listmode_projector`. Images and data are on the device throughout; a time is that of whole calls until the
device is idle.

Two limits are measured in the same run: multiply-adds a second of a float32 matrix product (CuPy's, without TF32), and
bytes a second of a copy on the device (read + written). A sinogram's forward rate is given as a fraction of each:

- `of_fma_limit` = LOR/s x steps x (2 + bins) / (multiply-adds a second), what a projector that does Joseph's sums step by
  step (2 multiply-adds a step, and one a TOF bin within the kernel's reach) would have to reach of it;
- `of_memory_limit` = LOR/s x 4 bytes x TOF bins / (bytes a second), the data alone, written once.

parallelproj is timed where `parallelproj_core` was built with CUDA. Without a device one line says so, and the exit status
is 1.
"""

import importlib
import json
import sys
from typing import Any

import numpy as np

from benchmarks.common import emit
from benchmarks.listmode_projector import DRFS, RADIALS, draw, positions
from benchmarks.projector import block_scanner, every, layouts, lors_of, seconds_of
from data_recipes.grid import Grid
from petsim.geometry.sinogram import TOF_SIGMAS, SinogramLayout
from petsim.gpu import cuda_problem
from petsim.projectors.cuda import CudaListmodeProjector, CudaProjector
from petsim.projectors.listmode import Tof

VIEWS = 5
"""Times as many views are projected as on the CPU."""

EVENTS = (4_000_000, 16_000_000)


def timed(xp: Any, call: Any) -> float:
    """Seconds until the device is idle."""

    def run() -> None:
        call()
        xp.cuda.get_current_stream().synchronize()

    return seconds_of(run, 5)


def limits(xp: Any) -> dict[str, float]:
    """Multiply-adds and bytes a second."""
    a = xp.random.random((8192, 8192), dtype=np.float32)
    source = xp.zeros(1 << 28, np.float32)
    target = xp.empty_like(source)
    return {
        "fma_per_s": 8192**3 / timed(xp, lambda: a @ a),
        "bytes_per_s": 2 * source.nbytes / timed(xp, lambda: xp.copyto(target, source)),
    }


def peer_of(xp: Any, layout: SinogramLayout, grid: Grid, image: Any, views: np.ndarray, tof: bool) -> dict[str, Any] | None:
    """Million LORs a second of parallelproj's CUDA build on all LORs of the views; None where it is not there."""
    try:
        core: Any = importlib.import_module("parallelproj_core")
    except ImportError:
        return None
    if not core.cuda_enabled:
        return None
    start, end = (xp.asarray(ends, np.float32) for ends in lors_of(layout, views))
    geometry = xp.asarray(grid.origin_mm, np.float32), xp.asarray(grid.spacing_mm, np.float32)
    back = xp.zeros_like(image)
    if tof:
        values = xp.empty((len(start), layout.tof_bins), np.float32)
        kernel = (layout.tof_bin_mm, xp.asarray([layout.tof_sigma_mm], np.float32), xp.zeros(1, np.float32), layout.tof_bins,
                  TOF_SIGMAS)  # fmt: skip
        forward, adjoint = core.joseph3d_tof_sino_fwd, core.joseph3d_tof_sino_back
    else:
        values, kernel = xp.empty(len(start), np.float32), ()
        forward, adjoint = core.joseph3d_fwd, core.joseph3d_back
    rates = {
        "forward": len(start) / timed(xp, lambda: forward(start, end, image, *geometry, values, *kernel)) / 1e6,
        "back": len(start) / timed(xp, lambda: adjoint(start, end, back, *geometry, values, *kernel)) / 1e6,
    }
    return {"version": core.__version__, "mlor_per_s": rates}


def sinogram_case(xp: Any, name: str, layout: SinogramLayout, grid: Grid, views: np.ndarray, tof: bool,
                  limit: dict[str, float]) -> dict[str, Any]:  # fmt: skip
    """Forward, back and EM rates of one layout in million LORs a second, and those of parallelproj."""
    projector = CudaProjector(layout, grid, tof=tof)
    image = xp.asarray(np.random.default_rng(0).random(grid.shape), np.float32)
    data = projector.forward(image, views)
    prepared, sums = projector.prepare(image[None]), projector.new_sums(1)
    lors = len(views) * layout.radials * layout.planes
    ours = {
        "forward": lors / timed(xp, lambda: projector.forward(image, views)) / 1e6,
        "back": lors / timed(xp, lambda: projector.add_back(sums, views, data[None])) / 1e6,
        "em": lors / timed(xp, lambda: projector.add_em_back(sums, views, data[None], prepared)) / 1e6,
    }
    bins = (2 * TOF_SIGMAS * layout.tof_sigma_mm / layout.tof_bin_mm + 1) if tof else 0.0
    fma = min(grid.shape[:2]) * (2 + bins)
    peer = peer_of(xp, layout, grid, image, views, tof)
    ratio = {k: round(ours[k] / v, 1) for k, v in peer["mlor_per_s"].items()} if peer else None
    return {
        "case": name, "tof_bins": projector.bins, "lors": lors, "mlor_per_s": {k: round(v, 1) for k, v in ours.items()},
        "of_fma_limit": round(ours["forward"] * 1e6 * fma / limit["fma_per_s"], 3),
        "of_memory_limit": round(ours["forward"] * 1e6 * 4 * projector.bins / limit["bytes_per_s"], 3),
        "ratio": ratio, "parallelproj": peer,
    }  # fmt: skip


def listmode_case(xp: Any, layout: SinogramLayout, grid: Grid, count: int, tof: Tof | None, ladder: bool) -> dict[str, Any]:
    """Rates in million events a second, or events x doses of a ladder."""
    events = draw(layout, count, ladder)
    projector = CudaListmodeProjector(*positions(layout), grid, events, tof=tof)
    images = xp.asarray(np.random.default_rng(0).random((len(DRFS) if ladder else 1, *grid.shape)), np.float32)
    values = projector.forward(images)
    total = float(np.sum(events.doses))
    rates = {
        "forward": total / timed(xp, lambda: projector.forward(images)) / 1e6,
        "back": total / timed(xp, lambda: projector.adjoint(values)) / 1e6,
        "em": total / timed(xp, lambda: projector.em_back(images)) / 1e6,
    }
    return {"case": f"list-mode {count / 1e6:g} M, {len(images)} dose(s)", "tof_bins": tof.bins if tof else 1,
            "doses": len(images), "events": count, "mlor_per_s": {k: round(v, 1) for k, v in rates.items()}}  # fmt: skip


def main() -> int:
    """Run the cases, print a JSON line each and a table; returns the exit status."""
    problem = cuda_problem()
    if problem:
        print(f"no GPU to measure: {problem}", file=sys.stderr)
        return 1
    xp: Any = importlib.import_module("cupy")
    limit = limits(xp)
    cases = []

    def add(result: dict[str, Any]) -> None:
        cases.append(result)
        print(json.dumps(result), flush=True)

    for name, layout, grid, views in layouts():
        for tof in (False, True):
            add(sinogram_case(xp, name, layout, grid, every(layout, VIEWS * views), tof, limit))
    layout = SinogramLayout(block_scanner(), RADIALS, span=1, max_ring_difference=31, merge_tof=1, tof_bins=13)
    grid = Grid.centered((200, 200, 63), (2.0, 2.0, 2.0))
    for count in EVENTS:
        for tof in (None, Tof(layout.tof_bins, layout.tof_bin_mm, layout.tof_sigma_mm)):
            for ladder in (False, True):
                add(listmode_case(xp, layout, grid, count, tof, ladder))

    print(f"{'case':30s}{'TOF':>5s}{'forward':>10s}{'back':>10s}{'EM':>10s}   M LOR/s; of FMA, memory limit; ratio")
    for c in cases:
        rate = "".join(f"{c['mlor_per_s'][k]:10.1f}" for k in ("forward", "back", "em"))
        limits_reached = f"{c['of_fma_limit']:.2f}, {c['of_memory_limit']:.2f}" if "of_fma_limit" in c else ""
        print(f"{c['case']:30s}{c['tof_bins']:5d}{rate}   {limits_reached}; {c.get('ratio')}")
    device = xp.cuda.runtime.getDeviceProperties(xp.cuda.runtime.getDevice())["name"].decode()
    emit("projector_gpu", {"device": device, "cupy": xp.__version__, **limit, "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main())
