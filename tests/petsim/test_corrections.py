"""Corrections are estimated from the noisy data alone, and come near the true ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_recipes.phantoms.analytic import cylinder
from petsim.corrections import Estimator, differences, first_iteration, oracle, refreshed
from petsim.counts import draw_thinned
from petsim.dose import DoseLadder
from petsim.model import build_model
from petsim.physics.randoms import DelayedWindow
from petsim.plan import plan_subject
from petsim.reconstruct import Reconstructor
from petsim.settings import SimulationSettings
from petsim.simulation import simulate_plan

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")
SETTINGS = SimulationSettings(scanner=SMALL, preset="fast", drf=(10.0,), photons=200_000, counts=2e7)
SUBJECT = cylinder(radius_mm=90.0, length_mm=80.0, bqml=10_000.0)


@pytest.fixture(scope="module")
def modeled():
    plan = plan_subject(SUBJECT, SETTINGS)
    return plan, build_model(plan, SETTINGS)


def estimate(plan, model, seen, realization=0):
    """Reconstructor with estimated corrections; `seen` is the model that the estimator may look at."""
    estimator = Estimator.of(plan, SETTINGS, seen)
    ladder = DoseLadder(SETTINGS.ladder(), 0, "x", realization)
    start = Reconstructor(plan, model.operator, estimator.start(oracle(plan, seen, 2)))
    rates = estimator.randoms(DelayedWindow.of(plan.layout), ladder, 2)

    def data(views):
        return [draw_thinned(ladder, model.expected(views), views)]

    return first_iteration(start.believing(replace(start.corrections, rates=rates)), data, lambda: None)[0]


def test_the_estimate_does_not_look_at_the_truth(modeled):
    """With the truth taken away from the estimator, its corrections are the same to the bit."""
    plan, model = modeled
    blind = replace(
        model, activity_bqml=np.zeros_like(model.activity_bqml), mu_per_cm=np.zeros_like(model.mu_per_cm), scatter=None
    )
    views = np.arange(3)
    one, other = (estimate(plan, model, seen).background(views, 0, 2) for seen in (model, blind))
    np.testing.assert_array_equal(one, other)


def test_images_that_share_scatter_have_the_background_of_each_alone(modeled):
    plan, model = modeled
    recon, views = Reconstructor(plan, model.operator, oracle(plan, model, 2)), np.arange(3)
    assert model.scatter is not None
    both = recon.background(views, 0, 2)
    for k in range(2):
        np.testing.assert_array_equal(both[k], recon.background(views, k, 1)[0])


def test_scatter_and_randoms_come_near_the_true_ones(modeled):
    plan, model = modeled
    found = estimate(plan, model, model)
    true = Reconstructor(plan, model.operator, oracle(plan, model, 2))
    views = np.arange(0, plan.layout.views, 5)
    assert model.scatter is not None and found.corrections.scatter is not None
    truth = model.scatter.at(plan.layout, views).sum(dtype=np.float64)
    for image, tolerance in ((0, 0.1), (1, 0.15)):
        assert found.corrections.scatter.at(plan.layout, views, image).sum(dtype=np.float64) == pytest.approx(
            truth, rel=tolerance
        )
        np.testing.assert_allclose(
            found.in_bins.randoms(views, image).mean(), true.in_bins.randoms(views, image).mean(), rtol=0.02
        )
    assert [s["how"] for s in found.corrections.scatter_scales] == ["fitted", "fitted"]


def test_mu_map_and_normalization_in_use_differ_from_the_true_ones(modeled):
    plan, model = modeled
    true = oracle(plan, model, 2)
    used = Estimator.of(plan, SETTINGS, model).start(true)
    found = differences(used, true)
    assert found["mu_per_cm"] > 1e-4
    # Half of the variance is that of eight blocks.
    assert found["normalization"] == pytest.approx(SETTINGS.drift, rel=0.3)
    exact = Estimator.of(plan, replace(SETTINGS, drift=0.0, mu_shift=0.0), model).start(true)
    assert differences(exact, true) == {"mu_per_cm": 0.0, "normalization": 0.0, "singles": [0.0, 0.0]}
    other = Estimator.of(replace(plan, subject=replace(plan.subject, name="other")), SETTINGS, model)
    assert other.mismatch != Estimator.of(plan, SETTINGS, model).mismatch


def test_every_dose_and_realization_has_its_own_estimate(modeled):
    plan, _ = modeled
    result = simulate_plan(plan, replace(SETTINGS, realizations=2, iterations=1))
    first, second = result.provenance["reconstruction"]["by_realization"]
    scales = [s["scale"] for found in (first, second) for s in found["scatter_scales"]]
    # Two doses and the expected counts, then two doses.
    assert len(scales) == 5 and len(set(scales)) == 5
    singles = first["estimated_minus_true"]["singles"]
    assert singles[1] > singles[0] > singles[2]


def test_without_corrections_to_estimate_nothing_is_added(modeled):
    plan, _ = modeled
    settings = replace(SETTINGS, scatter="none", randoms="none", corrections="oracle")
    model = build_model(plan, settings)
    assert model.scatter is None
    assert not Reconstructor(plan, model.operator, oracle(plan, model, 1)).background(np.arange(2), 0, 1).any()
    np.testing.assert_array_equal(model.in_bins.live(np.arange(2)), 1)
    counts, sums = model.expected_and_totals(np.arange(2))
    assert sums[:, 1:].sum() == 0 and sums[:, 0].sum() == pytest.approx(counts.sum(dtype=np.float64), rel=1e-5)


def test_components_add_up(modeled):
    _, model = modeled
    views = np.arange(4)
    counts, sums = model.expected_and_totals(views)
    parts = model.components(views)
    np.testing.assert_allclose(counts, sum(parts.values()), rtol=1e-5)
    for k, part in enumerate(parts.values()):
        np.testing.assert_allclose(sums[:, k], part.sum(axis=(1, 2, 3), dtype=np.float64), rtol=1e-5)


def test_the_fallback_of_a_first_pass_allows_for_scatter_in_its_image(modeled):
    """Too few counts to fit: the scale of the first pass still comes near what scatter needs, and is called a fallback."""
    plan, model = modeled
    estimator = Estimator.of(plan, SETTINGS, model)
    true = oracle(plan, model, 1)
    start = Reconstructor(plan, model.operator, replace(estimator.start(true), rates=model.rates[:1]))
    fewer = replace(start.corrections.rates[0], **{
        name: getattr(model.rates[0], name) / 1e6 for name in ("counts_per_unit", "seconds")
    })  # fmt: skip
    start = start.believing(replace(start.corrections, rates=(fewer,)))

    def data(views):
        return [model.expected(views)[None] / 1e6]

    images = start.run(start.em_back(data), range(plan.preset.subsets))
    found = refreshed(start, images, data)
    assert found.corrections.scatter_scales[0]["how"] == "fallback"
    views = np.arange(0, plan.layout.views, 5)
    assert model.scatter is not None and found.corrections.scatter is not None
    truth = model.scatter.at(plan.layout, views).sum(dtype=np.float64)
    assert found.corrections.scatter.at(plan.layout, views).sum(dtype=np.float64) == pytest.approx(truth, rel=0.15)
