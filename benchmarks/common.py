"""What every benchmark prints beside its figures."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


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
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(line, indent=1) + "\n")
