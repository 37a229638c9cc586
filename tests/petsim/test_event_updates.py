"""Doses that are updated from their events: the images of the sinogram, wherever events wait and whatever the others are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_recipes.phantoms.analytic import cylinder
from petsim import counts
from petsim.counts import storage
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.model import build_model
from petsim.plan import plan_subject
from petsim.realizations import Realizations
from petsim.recon.cost import event_cost
from petsim.settings import SimulationSettings
from petsim.simulation import simulate_plan

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")
SETTINGS = SimulationSettings(
    scanner=SMALL, preset="fast", drf=(4.0, 100.0), counts=2e6, photons=50_000, iterations=3, subsets=4, fov_mm=300.0
)
SUBJECT = cylinder(radius_mm=90.0, length_mm=80.0)


@pytest.fixture(scope="module")
def scan():
    plan = plan_subject(SUBJECT, SETTINGS)
    model = build_model(plan, SETTINGS)

    def make(from_events, place="memory"):
        held = replace(storage(plan, SETTINGS, True, 2e6, 8e9), from_events=from_events, counts=place)
        return Realizations(plan, SETTINGS, model, held).make(0, noise_free=True)

    return make


@pytest.fixture(scope="module")
def by_bins(scan):
    return scan(())


@pytest.mark.parametrize("from_events", [(0, 1, 2), (2,), (1,)])
def test_images_are_those_of_the_sinogram(scan, by_bins, from_events):
    """To 1e-4 of the highest voxel; those that stay with the sinogram to the bit."""
    found = scan(from_events)
    for k, (image, wanted) in enumerate(zip(found.images, by_bins.images, strict=True)):
        assert np.abs(image - wanted).max() < 1e-4 * wanted.max()
        assert np.array_equal(image, wanted) == (k not in from_events)
    np.testing.assert_array_equal(found.noise_free, by_bins.noise_free)
    np.testing.assert_array_equal(found.prompts, by_bins.prompts)


@pytest.mark.parametrize("place", ["disk", "redrawn"])
def test_it_does_not_matter_where_events_wait(scan, place):
    np.testing.assert_array_equal(scan((1, 2), place).images, scan((1, 2)).images)


def simulated(monkeypatch, drf, from_events, **changes):
    """A simulation in which doses from some DRF on go by events."""
    settings = replace(SETTINGS, drf=drf, iterations=2, scatter="none", **changes)
    least = settings.counts / from_events
    monkeypatch.setattr(counts, "event_cost", lambda layout, prompts, iterations: prompts / least / 1.01)
    return simulate_plan(plan_subject(SUBJECT, settings), settings)


@pytest.mark.parametrize("mode", ["thin", "dose"])
def test_a_dose_does_not_depend_on_the_others(monkeypatch, mode):
    many = simulated(monkeypatch, (4.0, 20.0, 100.0), 20, mode=mode)
    alone = simulated(monkeypatch, (100.0,), 20, mode=mode)
    assert many.provenance["reconstruction"]["from_events_drf"] == [20.0, 100.0]
    np.testing.assert_array_equal(many.images[3], alone.images[1])


def test_a_dose_without_counts_is_an_image_without_activity(monkeypatch):
    made = simulated(monkeypatch, (1e7,), 100, randoms="none")
    assert made.counts[1]["prompts"] == 0
    assert not made.images[1].any() and np.isfinite(made.images).all()


def test_few_counts_cost_less_by_events_and_many_by_bins():
    """A count more costs the same whatever there is; a line more TOF bins more for bins than for events."""
    scanner = load_scanner("biograph_vision_600")
    layout = SinogramLayout(scanner, 200, span=1, max_ring_difference=3, merge_tof=15, tof_bins=13)
    plain = replace(layout, merge_tof=0, tof_bins=1)
    lines = layout.views * layout.radials * layout.planes
    for some in (layout, plain):
        at = [event_cost(some, n * lines, 3) for n in (0.0, 0.1, 0.2, 100.0)]
        assert at[0] < 0.5 < 1 < at[3]
        assert at[2] - at[1] == pytest.approx(at[1] - at[0])
    assert event_cost(layout, lines, 3) < event_cost(plain, lines, 3)
    assert event_cost(layout, lines, 4) < event_cost(layout, lines, 1)
