"""What does a ladder of doses cost to reconstruct, against one dose and against parallelproj?

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python -m benchmarks.recon [--smallest]

Seconds are CPU seconds of one thread, the shortest of several runs by turns; for ratios to hold, nothing else may run.

- `ladders`: one OSEM update of one dose, and of DRF 1, 4, 10, 20 and 100 together, with point spread function,
  attenuation, scatter and randoms (true ones, by dose), over a subset of a body-sized cylinder's scan, with 2e8 prompts in
  the whole scan and with 2e7: Biograph Vision 600 with TOF, `standard` (with 2e7 also `full`), and Biograph mMR, `standard`.
  `sinogram_dose_over_one` is the time a dose in the ladder over the time of one dose alone; `listmode_ladder_over_one` that
  of the whole ladder over one dose, both from events. The counts are in memory; list mode has sorted its events and taken
  their backgrounds beforehand (`sort_s`). `listmode_over_sinogram` counts these in, a third for each update of a dose, and
  stands beside what `petsim.recon.cost` assumes where it chooses between both.
- parallelproj, where it is found (PETSIM_PARALLELPROJ_LIB): the same update of one dose with its kernels and our
  corrections, timed on one view of the subset and multiplied by their number.
- `scaling`: EM projections a second (million LORs x images) of one image and of five together over image size, rings
  and TOF bins, and the peak memory of each in a process of its own. Layout: 624 crystals x 32 rings of 4 mm, as in
  `benchmarks.projector`.

`--smallest` takes a small scanner without scatter and randoms, and one repeat: to see that all runs.
"""

import argparse
import dataclasses
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import emit
from benchmarks.projector import block_scanner, every
from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.phantoms.analytic import cylinder
from petsim.corrections import oracle
from petsim.counts import draw_thinned
from petsim.dose import DoseLadder
from petsim.geometry.scanner import Scanner, load_scanner
from petsim.geometry.sinogram import SinogramLayout, fitting_grid
from petsim.memory import keep_freed_memory
from petsim.model import build_model
from petsim.plan import Plan, plan_subject
from petsim.projectors.choose import projector_class
from petsim.projectors.parallelproj import load_library
from petsim.projectors.sinogram import SinogramProjector
from petsim.recon.cost import event_cost
from petsim.recon.listmode import listmode_em_back
from petsim.reconstruct import Reconstructor
from petsim.settings import SimulationSettings

DRFS = (1.0, 4.0, 10.0, 20.0, 100.0)
COUNTS = 2e8
ITERATIONS = 3
"""Updates of a subset for which its events are found once: 4 iterations, less the one that finds scatter."""

VIEWS = 8
"""In the subset that is updated."""


def seconds_of(repeats: int, **calls: Callable[[], Any]) -> dict[str, float]:
    """CPU seconds of the shortest run of each, by turns, after one that compiles and warms up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:
                found[name].append(time.process_time() - start)
    return {name: min(seconds) for name, seconds in found.items()}


def small_scanner() -> Scanner:
    """A few coarse crystals and rings."""
    return dataclasses.replace(
        load_scanner("biograph_vision_600"), name="small", crystals_per_ring=152, transaxial_block=8,
        transaxial_block_real=8, rings=16, axial_block=16, axial_block_real=16, ring_spacing_mm=8.0, max_ring_difference=15,
        readout_block=None,
    )  # fmt: skip


def ladder_case(scanner: Scanner, preset: str, counts: float, repeats: int, model_of: Any) -> dict[str, Any]:
    """Times of one update for one dose and for five, from sinograms and from events; `model_of` scatter and randoms."""
    settings = SimulationSettings(
        scanner=scanner.name, preset=preset, drf=DRFS[1:], counts=counts, scatter=model_of, randoms=model_of
    )  # fmt: skip
    subject = cylinder(radius_mm=120.0, length_mm=min(200.0, scanner.axial_length_mm - 50))
    plan = plan_subject(subject, dataclasses.replace(settings, fov_mm=400.0), scanner)
    plan = dataclasses.replace(plan, preset=dataclasses.replace(plan.preset, subsets=max(1, plan.layout.views // VIEWS)))
    model = build_model(plan, settings)
    views = plan.layout.subset_views(0, plan.preset.subsets)
    drawn = draw_thinned(DoseLadder(DRFS, 0, "benchmark", 0), model.expected(views), views)
    held = drawn.astype(np.float32)

    def data(doses: int) -> Callable[[np.ndarray], list[np.ndarray]]:
        # Slices, so that no copy is timed.
        return lambda some: [held[:doses, (first := int(np.searchsorted(views, some[0]))) : first + len(some)]]

    found: dict[str, Any] = {
        "scanner": scanner.name, "preset": preset, "counts": counts, "views": len(views), "tof_bins": plan.layout.tof_bins,
        "lors": len(views) * plan.layout.radials * plan.layout.planes, "image": list(plan.grid.shape),
        "events": int(drawn[0].sum()),
    }  # fmt: skip
    calls: dict[str, Callable[[], Any]] = {}
    for doses, name in ((1, "one"), (len(DRFS), "five")):
        recon = Reconstructor(plan, projector_class("numba"), oracle(plan, model, doses))
        calls[f"sinogram_{name}_s"] = partial(recon.run, recon.em_back(data(doses)), [0])
        for _ in range(2):  # The first compiles.
            start = time.process_time()
            calls[f"listmode_{name}_s"] = listmode_update(plan, recon, drawn[:doses], views)
            found[f"sort_{name}_s"] = time.process_time() - start
    found |= seconds_of(repeats, **calls)
    found["sinogram_dose_over_one"] = found["sinogram_five_s"] / len(DRFS) / found["sinogram_one_s"]
    found["listmode_ladder_over_one"] = found["listmode_five_s"] / found["listmode_one_s"]
    found["listmode_over_sinogram"] = found["sort_one_s"] / ITERATIONS + found["listmode_one_s"]
    found["listmode_over_sinogram"] /= found["sinogram_one_s"]
    found["listmode_over_sinogram_assumed"] = event_cost(plan.layout, counts, ITERATIONS)
    for name, images in (("one", 1), ("five", len(DRFS))):
        found[f"mlor_images_per_s_{name}"] = images * found["lors"] / found[f"sinogram_{name}_s"] / 1e6
    found |= peer_times(plan, model, data, views, found)
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}


def listmode_update(plan: Plan, recon: Reconstructor, drawn: np.ndarray, views: np.ndarray) -> Callable[[], Any]:
    """The same update from events."""
    em_back = listmode_em_back(
        plan.layout, plan.grid, [list(recon.groups(0))], lambda some: drawn[:, np.searchsorted(views, some)],
        lambda some: recon.background(some, 0, len(drawn)), center_mm=plan.center_mm, support_mm=plan.fov_mm / 2,
    )  # fmt: skip
    images = np.repeat(recon.inside.astype(np.float32)[None], len(drawn), 0) * np.ones(plan.grid.shape, np.float32)
    return lambda: [recon.blur(back) for back in em_back(0, np.stack([recon.blur(image) for image in images]))]


def peer_times(plan: Plan, model: Any, data: Callable, views: np.ndarray, found: dict[str, Any]) -> dict[str, Any]:
    """parallelproj's update of one dose, where it is there; of one view, times their number."""
    try:
        version = load_library().version
    except DataError:
        return {"parallelproj": None}
    one = dataclasses.replace(plan, preset=dataclasses.replace(plan.preset, subsets=plan.layout.views))
    recon = Reconstructor.__new__(Reconstructor)
    recon.__dict__.update(Reconstructor(plan, SinogramProjector, oracle(plan, model, 1)).__dict__)
    theirs = projector_class("parallelproj")(plan.layout, plan.grid, plan.center_mm, plan.fov_mm / 2)
    recon._projector, recon.plan = theirs, one
    seconds = seconds_of(1, update=lambda: recon.run(recon.em_back(data(1)), [0]))["update"] * len(views)
    return {"parallelproj": version, "parallelproj_one_s": seconds,
            "five_over_parallelproj_one": found["sinogram_five_s"] / seconds}  # fmt: skip


def scaling_cases(smallest: bool) -> list[dict[str, Any]]:
    """Layouts over image size, rings and TOF bins."""
    base = {"voxels": 200, "rings": 32, "bins": 13}
    values = {"voxels": (100, 200, 400), "rings": (16, 32, 64), "bins": (1, 7, 13, 27)}
    if smallest:
        base, values = {"voxels": 40, "rings": 8, "bins": 5}, {"voxels": (40,), "rings": (), "bins": (1,)}
    cases = [base]
    for name, some in values.items():
        cases += [case for value in some if (case := {**base, name: value}) not in cases]
    return cases


def scaling_case(case: dict[str, Any], images: int, repeats: int) -> tuple[float, float]:
    """Million LORs x images a second of EM projections, and the peak memory in GB of the process."""
    rings, bins = case["rings"], case["bins"]
    scanner = dataclasses.replace(
        block_scanner(), rings=rings, axial_block=rings, axial_block_real=rings, max_ring_difference=rings - 1,
        tof_bins=bins, tof_bin_ps=312.0 * 13 / max(bins, 2),
    )  # fmt: skip
    layout = SinogramLayout(scanner, 400, span=1, max_ring_difference=rings - 1, merge_tof=int(bins > 1), tof_bins=bins)
    voxel = 400.0 / case["voxels"]
    grid = fitting_grid(layout, voxel, voxel, 400.0, scanner.axial_length_mm, (0.0, 0.0, 0.0))
    assert isinstance(grid, Grid)
    views = every(layout, 4)
    projector = SinogramProjector(layout, grid, support_mm=200.0)
    start = np.random.default_rng(0).random((images, *grid.shape)).astype(np.float32)
    data = np.repeat(projector.forward(start[0], views)[None], images, 0)

    def update() -> None:
        sums = projector.new_sums(images)
        projector.add_em_back(sums, views, data, projector.prepare(start))
        projector.image_of(sums)

    seconds = seconds_of(repeats, update=update)["update"]
    lors = images * len(views) * layout.radials * layout.planes
    return lors / seconds / 1e6, peak_gb()


def peak_gb() -> float:
    """Peak memory of this process: not ru_maxrss, which begins with that of the process that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6


def main() -> None:
    """Run the cases, print a JSON line each, and keep all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smallest", action="store_true")
    smallest = parser.parse_args().smallest
    keep_freed_memory()
    repeats = 1 if smallest else 7
    ladders = []
    chosen = [(small_scanner(), "fast", 1e7)] if smallest else []
    if not smallest:
        vision, mmr = load_scanner("biograph_vision_600"), load_scanner("biograph_mmr")
        chosen += [(scanner, "standard", counts) for scanner in (vision, mmr) for counts in (COUNTS, COUNTS / 10)]
        chosen.append((vision, "full", COUNTS / 10))
    for scanner, preset, counts in chosen:
        ladders.append(ladder_case(scanner, preset, counts, repeats, "none" if smallest else "simulated"))
        print(json.dumps(ladders[-1]), file=sys.stderr, flush=True)
    scaling, context = [], multiprocessing.get_context("spawn")
    for case in scaling_cases(smallest):
        row: dict[str, Any] = dict(case)
        for images in (1, 5):
            with context.Pool(1) as pool:
                rate, memory = pool.apply(scaling_case, (case, images, repeats))
            row[f"mlor_images_per_s_{images}"], row[f"peak_gb_{images}"] = round(rate, 2), round(memory, 2)
        scaling.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    result = {"drfs": list(DRFS), "ladders": ladders, "scaling": scaling}
    if smallest:
        print(json.dumps(result))
    else:
        emit("recon", result)


if __name__ == "__main__":
    main()
