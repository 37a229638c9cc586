"""How well does an estimate from low-dose data find scatter, and what do images lose by it?

    python -m benchmarks.corrections [REALIZATIONS]

A generated patient around the liver on the Biograph Vision 600, `fast`, at DRF 1, 20 and 100. Scale of the estimated scatter
over realizations, beside the one that gives the true number of scattered counts; then images with estimated and with true
corrections of the same counts. Settings were fixed before the first run.
"""

import sys
from dataclasses import replace

import numpy as np

from benchmarks.common import emit, liver_middle_mm
from data_recipes.phantoms.families import REFERENCE
from data_recipes.phantoms.whole_body import whole_body
from petsim.corrections import Estimator, first_iteration, oracle
from petsim.counts import draw_thinned
from petsim.dose import DoseLadder
from petsim.model import build_model
from petsim.physics.randoms import DelayedWindow
from petsim.plan import plan_subject
from petsim.reconstruct import Reconstructor
from petsim.settings import SimulationSettings
from petsim.simulation import simulate_plan

DRFS = (1.0, 20.0, 100.0)


def main() -> None:
    """Measure and print the JSON line."""
    realizations = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    subject = whole_body(3, family=REFERENCE.name)
    middle = liver_middle_mm(subject)
    settings = SimulationSettings(scanner="biograph_vision_600", preset="fast", drf=DRFS[1:], center_mm=middle)
    plan = plan_subject(subject, settings)
    model = build_model(plan, settings)
    estimator = Estimator.of(plan, settings, model)
    window = DelayedWindow.of(plan.layout)
    start = Reconstructor(plan, model.operator, estimator.start(oracle(plan, model, len(DRFS))))
    groups = [g for subset in range(plan.preset.subsets) for g in start.groups(subset)]
    expected = {g.tobytes(): model.expected(g) for g in groups}
    some = groups[:: max(1, len(groups) // 6)]
    assert model.scatter is not None
    truth = sum(float(model.scatter.at(plan.layout, g).sum(dtype=np.float64)) for g in some)

    fitted, wanted, how = [], [], []
    for k in range(realizations):
        ladder = DoseLadder(DRFS, settings.seed, subject.name, k)
        counts = {g.tobytes(): draw_thinned(ladder, expected[g.tobytes()], g) for g in groups}
        recon = start.believing(replace(start.corrections, rates=estimator.randoms(window, ladder, len(DRFS))))
        found, _ = first_iteration(recon, lambda views, counts=counts: [counts[views.tobytes()]], lambda: None)
        scales = [s["scale"] for s in found.corrections.scatter_scales]
        table = found.corrections.scatter
        assert table is not None
        sums = [sum(float(table.at(plan.layout, g, d).sum(dtype=np.float64)) for g in some) for d in range(len(DRFS))]
        fitted.append(scales)
        wanted.append([scale * truth / total for scale, total in zip(scales, sums, strict=True)])
        how += [s["how"] for s in found.corrections.scatter_scales]
        print(k, np.round(fitted[-1], 4), np.round(wanted[-1], 4), file=sys.stderr, flush=True)
    ratio = np.array(fitted) / np.array(wanted)

    estimated = simulate_plan(plan, settings)
    true = simulate_plan(plan, replace(settings, corrections="oracle"))
    inside = estimated.activity_bqml > 0
    difference = [
        float(np.sqrt(np.mean((estimated.images[d, 0] - true.images[d, 0])[inside] ** 2)) / true.images[0, 0][inside].mean())
        for d in range(len(DRFS))
    ]
    emit("corrections", {
        "scanner": plan.scanner.name, "realizations": realizations, "drf": list(DRFS),
        "scatter_fraction": [round(r["scatter"] / (r["scatter"] + r["trues"]), 4) for r in true.counts],
        "fitted_scale_mean": np.mean(fitted, axis=0).round(4).tolist(),
        "fitted_scale_sd": np.std(fitted, axis=0, ddof=1).round(4).tolist(),
        "oracle_scale_mean": np.mean(wanted, axis=0).round(4).tolist(),
        "oracle_scale_sd": np.std(wanted, axis=0, ddof=1).round(4).tolist(),
        "bias": (ratio.mean(axis=0) - 1).round(4).tolist(),
        "bias_error": (ratio.std(axis=0, ddof=1) / np.sqrt(realizations)).round(4).tolist(),
        "how": {h: how.count(h) for h in sorted(set(how))},
        "image_rms_difference_estimated_oracle": [round(d, 4) for d in difference],
    })  # fmt: skip


if __name__ == "__main__":
    main()
