"""Time and peak memory of the unmerged span-19 layout of the Quadra, streamed.

    python -m benchmarks.unmerged SOURCE [--iterations N] [--plain] [--fov-mm D] [--memory-gb G]

SOURCE is a PET DICOM folder or NIfTI file. Counts of all doses go to a temporary file where memory is too small for them.
`--plain` leaves out TOF.
"""

import argparse
import dataclasses
import resource
import sys
import time

from benchmarks.common import emit
from data_recipes.contour import with_mu
from data_recipes.readers.read import read_source
from petsim.counts import storage
from petsim.model import SAMPLED_VIEWS, build_model, expected_total
from petsim.plan import plan_subject
from petsim.settings import SimulationSettings
from petsim.simulation import simulate_plan


def main() -> None:
    """Run one subject and print the JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--fov-mm", type=float)
    parser.add_argument("--memory-gb", type=float, default=8.0)
    args = parser.parse_args()
    settings = SimulationSettings(preset="full", full_dose="source", iterations=args.iterations, fov_mm=args.fov_mm)
    plan = plan_subject(with_mu(read_source(args.source)), settings)
    if args.plain:
        plan = dataclasses.replace(plan, layout=dataclasses.replace(plan.layout, merge_tof=0, tof_bins=1))
    layout = plan.layout
    level = expected_total(build_model(plan, settings), layout.views // SAMPLED_VIEWS)
    held = storage(plan, settings, False, level, args.memory_gb * 1e9)
    start = time.monotonic()

    def progress(what: str, fraction: float) -> None:
        print(f"{what} {fraction:.2f} after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    result = simulate_plan(plan, settings, args.memory_gb * 1e9, progress=progress)
    seconds = time.monotonic() - start
    emit("unmerged_plain" if args.plain else "unmerged", {
        "views": layout.views, "radials": layout.radials, "tof_bins": layout.tof_bins, "planes": layout.planes,
        "lors": layout.lors, "span": layout.span, "max_ring_difference": layout.max_ring_difference,
        "doses": list(result.drfs), "image": list(plan.grid.shape), "iterations": args.iterations,
        "subsets": plan.preset.subsets, "seconds": round(seconds, 1), "prompts": result.counts[0]["prompts"],
        "counts_held_in": held.counts, "memory_allowed_gb": args.memory_gb,
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    })  # fmt: skip


if __name__ == "__main__":
    main()
