"""Networks trained on generated patients only, on a measured body.

    python -m benchmarks.real_anatomy DICOM_FOLDER RUNS_FOLDER OUT

RUNS_FOLDER is that of `benchmarks.cross_dose` (its `runs`). Settled before the first run: the scan is taken as the full
dose, and noise of DRF 2 to 200 of a 20 s scan on the Vision 600 is inserted, `fast`, liver at the center, two realizations,
as the networks were trained for. Figure: gain in PSNR in the body against the scan itself, whose own noise sets a ceiling
that is not known. The filters are tuned on this very scan. One patient: no interval.
"""

import sys
from pathlib import Path

from benchmarks.common import emit, liver_middle_mm
from benchmarks.cross_dose import DOSES, SMALL, contestants, shown
from data_recipes.readers.read import read_source
from denoise.evaluate import evaluate
from denoise.report import write_evaluation
from petsim.dataset import Request, make_dataset
from petsim.memory import keep_freed_memory
from petsim.settings import SimulationSettings


def main(scan: str, runs: Path, out: Path) -> None:
    """Insert noise, evaluate, and print the JSON line."""
    keep_freed_memory()
    settings = SimulationSettings(
        scanner=SMALL.scanner, preset="fast", drf=DOSES, realizations=2, duration_s=SMALL.duration_s,
        full_dose="source", center_mm=liver_middle_mm(read_source(scan)),
    )  # fmt: skip
    make_dataset(Request(str(out / "data"), sources=(scan,), settings=settings))
    result = evaluate([runs / name for name in contestants(SMALL.settings)], out / "data", "all")
    write_evaluation(result, out / "evaluation", {})
    emit("real_anatomy", {"scanner": SMALL.scanner, "duration_s": SMALL.duration_s, "summary": shown(result.summary)})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
