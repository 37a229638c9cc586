"""What --dry-run says beforehand is what the simulation then expects."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_recipes.phantoms.analytic import cylinder
from petsim.model import build_model
from petsim.plan import plan_subject
from petsim.preview import expected_counts, preview
from petsim.settings import SimulationSettings
from tests import kill_driver

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")
SETTINGS = SimulationSettings(scanner=SMALL, preset="fast", drf=(4.0, 20.0), photons=20_000, rays=1)


@pytest.mark.parametrize("mode", ["thin", "dose"])
def test_counts_of_a_sample_of_views_are_those_of_all(mode):
    settings = replace(SETTINGS, mode=mode)
    plan = plan_subject(cylinder(radius_mm=90.0, length_mm=80.0, bqml=30_000.0), settings)
    model = build_model(plan, settings)
    views = np.arange(plan.layout.views)
    parts = {name: c.sum(axis=2, dtype=np.float64) for name, c in model.components(views).items()}
    whole = np.array([[(p * model.kept(views, name, d)).sum() for name, p in parts.items()] for d in range(3)])
    np.testing.assert_allclose(expected_counts(model, mode), whole, rtol=0.02)


def test_every_component_is_said_by_dose(monkeypatch):
    import data_recipes.phantoms.whole_body as module

    monkeypatch.setattr(module, "whole_body", module.whole_body)
    kill_driver.coarse_patients()
    result = preview(kill_driver.physical_request("nowhere", mode="dose"))
    counts = {name: np.array(list(result[f"expected_{name}"].values()), float) for name in
              ("prompts", "trues", "scatter", "randoms")}  # fmt: skip
    assert list(result["expected_trues"]) == list(result["live_fraction"]) == ["1", "4", "20"]
    assert result["mode"] == "dose" and all(np.all(np.diff(c) < 0) and c[-1] > 0 for c in counts.values())
    total = counts["trues"] + counts["scatter"] + counts["randoms"]
    np.testing.assert_allclose(total, counts["prompts"], atol=2)
    np.testing.assert_allclose(list(result["nec"].values()), counts["trues"] ** 2 / total, rtol=0.01, atol=2)
    live = list(result["live_fraction"].values())
    assert live == sorted(live) and live[0] < live[-1] <= 1
    # Randoms fall faster than the dose, by what is not 176Lu.
    assert counts["randoms"][1] < 0.9 * counts["randoms"][0] / 4
