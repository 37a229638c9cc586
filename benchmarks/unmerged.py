"""How long does the unmerged span-19 layout of the Quadra take, streamed?

    python benchmarks/unmerged.py SOURCE [ITERATIONS]

SOURCE is a PET DICOM folder or NIfTI file. Counts of all doses are drawn anew in every iteration.
"""

import resource
import sys
import time

from benchmarks.common import emit
from data_recipes.contour import with_mu
from data_recipes.readers.read import read_source
from petsim.plan import plan_subject
from petsim.settings import SimulationSettings
from petsim.simulation import simulate_plan


def main() -> None:
    """Run one subject and print the JSON line."""
    source, iterations = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 4
    settings = SimulationSettings(preset="full", full_dose="source", iterations=iterations)
    subject = with_mu(read_source(source))
    plan = plan_subject(subject, settings)
    start = time.monotonic()

    def progress(what: str, fraction: float) -> None:
        print(f"{what} {fraction:.2f} after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    result = simulate_plan(plan, settings, 8e9, progress=progress)
    layout = plan.layout
    seconds = time.monotonic() - start
    emit("unmerged", {
        "views": layout.views, "radials": layout.radials, "tof_bins": layout.tof_bins, "planes": layout.planes,
        "lors": layout.lors, "span": layout.span, "max_ring_difference": layout.max_ring_difference,
        "doses": list(result.drfs), "image": list(plan.grid.shape), "iterations": iterations, "subsets": plan.preset.subsets,
        "seconds": round(seconds, 1), "prompts": result.counts[0]["prompts"],
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    })  # fmt: skip


if __name__ == "__main__":
    main()
