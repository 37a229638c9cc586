"""Are counts and liver noise at clinical protocols those of clinical scans?

    python -m benchmarks.clinical

A generated patient of 81 kg, the liver at the scanner's center, at the protocol of each scanner's file, `standard` layout,
DRF 1, with post-filters from the preset's 4 mm down to none.
"""

from benchmarks.common import emit, liver_middle_mm
from data_recipes.phantoms.families import REFERENCE
from data_recipes.phantoms.whole_body import whole_body
from petsim.geometry.scanner import load_scanner
from petsim.plan import plan_subject
from petsim.settings import SimulationSettings
from petsim.simulation import simulate_plan

SCANNERS = ("biograph_vision_600", "biograph_mct", "discovery_mi_4ring")
PATIENT = 4
FILTERS_MM = (4.0, 2.0, 0.0)


def main() -> None:
    """Measure and print the JSON line."""
    rows = {}
    for name in SCANNERS:
        scanner = load_scanner(name)
        subject = whole_body(PATIENT, mbq_per_kg=scanner.given("protocol_mbq_per_kg"),
                             uptake_s=scanner.given("protocol_uptake_s"), family=REFERENCE.name)  # fmt: skip
        middle = liver_middle_mm(subject)
        noise = {}
        for filter_mm in FILTERS_MM:
            settings = SimulationSettings(scanner=name, preset="standard", drf=(), center_mm=middle, filter_mm=filter_mm)
            result = simulate_plan(plan_subject(subject, settings), settings)
            row = result.counts[0]
            noise[f"{filter_mm:g} mm"] = round(row["liver_cov"], 4)
        rows[name] = {
            "mbq_per_kg": scanner.protocol_mbq_per_kg, "uptake_s": scanner.protocol_uptake_s,
            "duration_s": scanner.protocol_duration_s, "weight_kg": subject.injection.weight_kg,
            "prompts": row["prompts"], "trues": row["trues"], "scatter": row["scatter"], "randoms": row["randoms"],
            "randoms_fraction": round(row["randoms"] / row["prompts"], 4), "nec": round(row["nec"]),
            "live_fraction": round(result.provenance["rates"][0]["mean_live_fraction"], 4),
            "liver_cov_by_filter": noise,
        }  # fmt: skip
        print(name, rows[name], flush=True)
    emit("clinical", {"preset": "standard", "scanners": rows})


if __name__ == "__main__":
    main()
