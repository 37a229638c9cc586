"""What every benchmark prints beside its figures."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_recipes.subject import Subject
from petsim.noise import noise_region

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores and versions; no name of the machine."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    packages = {p: version(p) for p in ("petsim", "numpy", "numba")}
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def emit(name: str, result: dict[str, Any]) -> None:
    """Print one JSON line and keep it in `results/`."""
    line = {"benchmark": name, **machine(), **result}
    print(json.dumps(line))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(line, indent=1) + "\n")


def liver_middle_mm(subject: Subject) -> float:
    """Axial middle of the region in the liver where noise is measured, in the subject's coordinates."""
    box, _ = noise_region(subject.activity_bqml, subject.labels, subject.label_names, subject.grid)
    assert box is not None
    return float(subject.grid.axis_mm(2)[(box[2].start + box[2].stop) // 2])
