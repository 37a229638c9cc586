"""Every scanner of the library on the virtual NEMA bench, at high statistics, beside its published figures.

    python -m benchmarks.nema [scanner ...]

With names, only these are measured, and the others' figures stay as they are in the file of results.

`chosen` is the median of the dead times (times block face) that the published activity of the peak asks for, over the
scanners that the global constant was chosen on: it should stay near `petsim.physics.rates.TAU_AREA_US_CM2`.
"""

import json
import sys
import time

import numpy as np

from benchmarks.common import RESULTS, emit
from petsim.geometry.scanner import load_scanner, scanner_names
from petsim.nema import TESTS, as_json, run_tests, table
from petsim.nema.scatter_fraction import DECAYS, measure
from petsim.physics.crystals import energy_block
from petsim.physics.monte_carlo import lutetium
from petsim.physics.rates import CHOSEN_ON, TAU_AREA_US_CM2
from petsim.physics.sensitivity import closed_form_sensitivity

BENCH = ("sensitivity", "scatter", "count-rate")


def main(names: list[str]) -> None:
    """Run scanners, print tables, keep the figures."""
    assert set(BENCH) <= set(TESTS)
    decays, begin, seconds = DECAYS, time.perf_counter(), 0
    scanners = {}
    if names:
        kept = json.loads((RESULTS / "nema.json").read_text())
        scanners, seconds = kept["scanners"], kept["seconds"]
        assert kept["decays"] == decays
    for name in names or scanner_names():
        scanner = load_scanner(name)
        figures = run_tests(scanner, BENCH[:1]) + run_tests(scanner, BENCH[1:], decays)
        measured = measure(scanner, decays)
        print(f"\n{name}\n{table(figures)}", flush=True)
        result = as_json(scanner, figures)
        del result["scanner"], result["is_met"]
        for part in ("ours", "deviation"):
            result[part] = {k: v if v is None else float(f"{v:.5g}") for k, v in result[part].items()}
        background = lutetium(scanner)
        scanners[name] = result | {
            "photosensor": scanner.photosensor, "energy_block": energy_block(scanner), "coincidences": measured.coincidences,
            "true_scatter_fraction": round(measured.true_scatter_fraction, 4),
            "closed_form_sensitivity_cps_per_kbq": float(f"{closed_form_sensitivity(scanner):.4g}"),
            "lutetium_singles_per_decay": round(background.singles, 4),
            "lutetium_triggers_per_decay": round(background.triggers, 4),
        }  # fmt: skip
    chosen = float(np.median([scanners[n]["ours"]["tau_area_us_cm2"] for n in CHOSEN_ON]))
    emit("nema", {
        "decays": decays, "seconds": round(seconds + time.perf_counter() - begin), "tau_area_us_cm2": TAU_AREA_US_CM2,
        "chosen": round(chosen, 2), "chosen_on": CHOSEN_ON, "scanners": {n: scanners[n] for n in scanner_names()},
    })  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
