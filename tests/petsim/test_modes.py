"""Modes of the dose ladder: a shorter scan, its middle, or a lower injection."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_recipes.errors import DataError
from data_recipes.isotopes import isotope, mean_decay_factor
from data_recipes.phantoms.analytic import cylinder
from petsim.dose import DoseLadder
from petsim.model import build_model
from petsim.plan import plan_subject
from petsim.settings import SimulationSettings
from petsim.simulation import simulate_plan

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")
SETTINGS = SimulationSettings(scanner=SMALL, preset="fast", drf=(2.0, 3.0, 4.0, 4.5, 20.0), iterations=1, photons=200_000)


def planned(bqml=5000.0, **changes):
    settings = replace(SETTINGS, **changes)
    return plan_subject(cylinder(radius_mm=90.0, length_mm=80.0, bqml=bqml), settings), settings


def sums(model):
    """Expected counts by dose and component over some views, float64 (dose, 3)."""
    views = np.arange(0, model.layout.views, 7)
    parts = {name: c.sum(axis=2, dtype=np.float64) for name, c in model.components(views).items()}
    return np.array([[(p * model.kept(views, name, d)).sum() for name, p in parts.items()] for d in range(len(model.rates))])


def test_lower_injection_changes_randoms_and_dead_time():
    """R/T(D) = R/T(1) / D but for 176Lu; trues fall as live(D) / (D live(1)), both within 2 %."""
    plan, settings = planned(40_000.0, mode="dose")
    model = build_model(plan, settings)
    trues, scatter, randoms = sums(model).T
    drf = np.array(settings.ladder())
    singles = [r.singles_cps.mean() for r in model.rates]
    b = (20 * singles[-1] - singles[0]) / 19
    a = singles[0] - b
    wanted = randoms[0] / trues[0] * (a / drf + b) ** 2 * drf / (a + b) ** 2
    np.testing.assert_allclose(randoms / trues, wanted, rtol=0.02)
    assert randoms[4] / trues[4] > randoms[0] / trues[0] / drf[4]
    live = np.array([(r.live.mean() / model.rates[0].live.mean()) ** 2 for r in model.rates])
    assert live[-1] > 1.005
    np.testing.assert_allclose(trues / trues[0], live / drf, rtol=0.02)
    np.testing.assert_allclose(scatter / scatter[0], trues / trues[0], rtol=0.005)


def test_a_randoms_fraction_of_42_percent_falls_to_17():
    """Measured in people after two injections (17 % at a third to a fifth of the activity); never by thinning."""
    # Randoms over the rest is a straight line in the activity.
    levels, ratios = np.array([5000.0, 10_000.0]), []
    for level in levels:
        trues, scatter, randoms = sums(build_model(*planned(level, mode="thin", drf=())))[0]
        ratios.append(randoms / (trues + scatter))
    slope = np.diff(ratios)[0] / np.diff(levels)[0]
    plan, settings = planned(levels[0] + (0.42 / 0.58 - ratios[0]) / slope, mode="dose")
    model = build_model(plan, settings)
    total = sums(model)
    fraction = total[:, 2] / total.sum(axis=1)
    assert fraction[0] == pytest.approx(0.42, abs=0.01)
    ratio = np.interp(-0.17, -fraction, settings.ladder())
    assert 3 <= ratio <= 4.5
    thinned = sums(build_model(plan, replace(settings, mode="thin")))
    np.testing.assert_allclose(thinned[:, 2] / thinned.sum(axis=1), fraction[0], rtol=1e-5)


def test_a_window_decays():
    """Rb-82 for 300 s: the middle D-th of the frame holds what decay left then, and randoms decay twice as fast."""
    plan, settings = planned(mode="window", duration_s=300.0, drf=(4.0,))
    subject = replace(plan.subject, injection=replace(plan.subject.injection, isotope="Rb-82"))
    plan = replace(plan, subject=subject, whole_subject=subject)
    model = build_model(plan, settings)
    iso = isotope("Rb-82")
    middle = np.exp(-iso.decay_per_s * 112.5) * mean_decay_factor(iso, 75.0) / mean_decay_factor(iso, 300.0)
    total = sums(model)
    live = (model.rates[1].live.mean() / model.rates[0].live.mean()) ** 2
    assert total[1, 0] / total[0, 0] == pytest.approx(middle / 4 * live, rel=0.01)
    assert total[1, 2] / total[1, 0] < total[0, 2] / total[0, 0]


@pytest.mark.parametrize("mode", ["window", "dose"])
def test_counts_follow_their_expectation_and_are_nested(mode):
    plan, settings = planned(20_000.0, mode=mode, drf=(4.0, 20.0), corrections="oracle")
    result = simulate_plan(plan, settings, keep_sinograms=True)
    assert result.sinograms is not None
    counts = result.sinograms[0].astype(np.int64)
    assert np.all(counts[1] <= counts[0]) and np.all(counts[2] <= counts[1])
    total = sums(build_model(plan, settings)).sum(axis=1)
    views = np.arange(0, plan.layout.views, 7)
    drawn = counts[:, views].sum(axis=(1, 2, 3, 4))
    assert np.all(np.abs(drawn - total) < 4.5 * np.sqrt(total))
    for row, sinogram in zip(result.counts, counts, strict=True):
        assert row["prompts"] == sinogram.sum() == row["trues"] + row["scatter"] + row["randoms"]
        assert row["mode"] == mode
    # Every dose is on the scale of full dose.
    inside = result.activity_bqml > 0.9 * result.activity_bqml.max()
    for image in result.images[:, 0]:
        assert image[inside].mean() == pytest.approx(result.activity_bqml[inside].mean(), rel=0.1)


def test_what_regained_live_time_adds_is_drawn_apart():
    """Beyond the peak of a paralyzable scanner a lower dose records more: its counts are Poisson all the same."""
    from petsim.counts import draw_by_component

    rng = np.random.default_rng(0)
    expected = rng.uniform(0.5, 3.0, (2, 4, 3, 50)).astype(np.float32)
    share = np.full((2, 4, 50), 1.5, np.float32)
    kept = {"trues": [np.ones_like(share), share]}
    draws = np.stack([
        draw_by_component(DoseLadder((1.0, 2.0), 0, "x", k), {"trues": expected}, kept, np.arange(2)) for k in range(200)
    ]).astype(float)  # fmt: skip
    assert draws[:, 1].mean() == pytest.approx(1.5 * expected.mean(), rel=0.01)
    ratio = draws[:, 1].var(axis=0, ddof=1).mean() / (1.5 * expected.mean())
    assert ratio == pytest.approx(1, abs=0.04)
    assert np.all(draws[:, 1] >= draws[:, 0])


def test_an_activity_beyond_the_dead_time_model_is_one_clear_line():
    with pytest.raises(DataError, match=r"^cylinder: \d+ MBq in the image leave [^\n]*--activity-mbq[^\n]*--randoms none$"):
        build_model(*planned(3e6))
    build_model(*planned(3e6, randoms="none", scatter="none"))


@pytest.mark.parametrize("mode", ["window", "dose"])
def test_a_lower_dose_without_randoms_has_none(mode):
    model = build_model(*planned(mode=mode, randoms="none"))
    total = sums(model)
    assert np.all(total[:, 2] == 0)
    np.testing.assert_allclose(total[:, 0] / total[0, 0], 1 / np.array(SETTINGS.ladder()), rtol=0.005)
