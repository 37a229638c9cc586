"""Are counts and liver noise at clinical protocols those of clinical scans?

    python -m benchmarks.clinical

A generated patient, the liver at the scanner's center, at the protocol of each scanner's file, `standard` layout, DRF 1.
"""

from benchmarks.common import emit
from data_recipes.phantoms.whole_body import whole_body
from petsim.geometry.scanner import load_scanner
from petsim.plan import plan_subject
from petsim.settings import SimulationSettings
from petsim.simulation import noise_region, simulate_plan

SCANNERS = ("biograph_vision_quadra", "biograph_vision_600", "biograph_mct", "discovery_mi_4ring")
PATIENT = 3


def main() -> None:
    """Measure and print the JSON line."""
    rows = {}
    for name in SCANNERS:
        scanner = load_scanner(name)
        subject = whole_body(PATIENT, mbq_per_kg=scanner.given("protocol_mbq_per_kg"),
                             uptake_s=scanner.given("protocol_uptake_s"))  # fmt: skip
        box, _ = noise_region(subject.activity_bqml, subject.labels, subject.label_names, subject.grid)
        assert box is not None
        middle = float(subject.grid.axis_mm(2)[(box[2].start + box[2].stop) // 2])
        long = scanner.axial_length_mm > subject.grid.extent_mm[2]
        settings = SimulationSettings(scanner=name, preset="standard", drf=(), center_mm=None if long else middle)
        result = simulate_plan(plan_subject(subject, settings), settings)
        row = result.counts[0]
        rows[name] = {
            "mbq_per_kg": scanner.protocol_mbq_per_kg, "uptake_s": scanner.protocol_uptake_s,
            "duration_s": scanner.protocol_duration_s, "weight_kg": subject.injection.weight_kg,
            "prompts": row["prompts"], "trues": row["trues"], "scatter": row["scatter"], "randoms": row["randoms"],
            "randoms_fraction": round(row["randoms"] / row["prompts"], 4), "nec": round(row["nec"]),
            "live_fraction": round(result.provenance["rates"][0]["mean_live_fraction"], 4),
            "liver_cov": round(row["liver_cov"], 4),
        }  # fmt: skip
        print(name, rows[name], flush=True)
    emit("clinical", {"preset": "standard", "scanners": rows})


if __name__ == "__main__":
    main()
