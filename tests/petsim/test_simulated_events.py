"""Simulated list mode: the same counts as the sinograms, with crystals, times and labels as physics has them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from data_recipes.errors import UsageError
from data_recipes.isotopes import isotope
from data_recipes.phantoms.analytic import cylinder
from petsim.corrections import drawn_delayeds
from petsim.dataset import Request, check_request
from petsim.dose import DoseLadder
from petsim.geometry.pair_bins import PairBins
from petsim.model import build_model
from petsim.physics.randoms import DelayedWindow
from petsim.plan import plan_subject
from petsim.rawdata import hdf5
from petsim.rawdata.events import LABELS, Dose
from petsim.settings import SimulationSettings
from petsim.simulation import simulate_plan

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")
SETTINGS = SimulationSettings(
    scanner=SMALL, preset="fast", drf=(4.0, 10.0), photons=200_000, counts=1.5e6, iterations=1, subsets=2,
    efficiency_spread=0.2,
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("listmode")
    subject = cylinder(radius_mm=90.0, length_mm=80.0, bqml=30_000.0)
    plan = plan_subject(subject, SETTINGS)
    result = simulate_plan(plan, SETTINGS, keep_sinograms=True, listmode=folder)
    files = {d: hdf5.read(folder / f"{subject.name}_r0_drf{d:g}.lm.h5") for d in SETTINGS.ladder()}
    events = {d: np.concatenate([b.events for b in f.blocks()]) for d, f in files.items()}
    return plan, result, files, events


@pytest.mark.parametrize("dose", [0, 1, 2])
def test_events_in_bins_are_the_sinogram(made, dose):
    plan, result, files, events = made
    drf = SETTINGS.ladder()[dose]
    prompts = events[drf][events[drf]["is_delayed"] == 0]
    header = files[drf].header
    bins = PairBins.of(plan.layout).of_events(prompts, header.tof_bins, header.tof_bin_ps)
    assert bins.min() >= 0
    counts = np.bincount(bins, minlength=np.prod(plan.layout.shape)).reshape(plan.layout.shape)
    assert np.array_equal(counts, result.sinograms[0][dose])


def test_labels_are_what_was_expected(made):
    _, result, _, events = made
    prompts = events[1.0][events[1.0]["is_delayed"] == 0]
    row = result.counts[0]
    for label in ("scatter", "random"):
        expected = row["scatter" if label == "scatter" else "randoms"]
        found = (prompts["label"] == LABELS.index(label)).sum()
        assert abs(found - expected) < 5 * np.sqrt(expected)
    assert (prompts["label"] > 0).all()


def test_delayeds_are_those_of_the_corrections(made):
    plan, _, _, events = made
    model = build_model(plan, SETTINGS)
    window = DelayedWindow.of(plan.layout)
    drawn = drawn_delayeds(window, model.rates, DoseLadder(SETTINGS.ladder(), 0, plan.subject.name, 0))
    for d, counts in zip(SETTINGS.ladder(), drawn, strict=True):
        assert (events[d]["is_delayed"] == 1).sum() == counts.sum() > 100


def test_tof_bins_are_even_within_merged_ones_and_for_delayeds(made):
    plan, _, files, events = made
    late = events[1.0]["is_delayed"] == 1
    merge, bins = plan.layout.merge_tof, files[1.0].header.tof_bins
    assert bins == merge * plan.layout.tof_bins
    for values, count in ((events[1.0]["tof_bin"][late], bins), (events[1.0]["tof_bin"][~late] % merge, merge)):
        assert stats.chisquare(np.bincount(values, minlength=count)).pvalue > 1e-4


def test_a_dose_is_named_in_its_file(made):
    *_, files, _ = made
    assert files[1.0].header.dose is None and files[4.0].header.dose == Dose(4.0, "thin", 0)


def test_doses_are_nested(made):
    *_, events = made
    rows = {d: {e.tobytes() for e in one} for d, one in events.items()}
    assert rows[10.0] < rows[4.0] < rows[1.0]


def test_only_real_crystals_detect_and_by_their_efficiencies(made):
    plan, _, _, events = made
    scanner = plan.scanner
    model = build_model(plan, SETTINGS)
    counts = np.zeros((scanner.crystals_per_ring, scanner.rings))
    for end in ("1", "2"):
        np.add.at(counts, (events[1.0][f"crystal{end}"], events[1.0][f"ring{end}"]), 1)
    assert counts[~scanner.transaxial_is_real()].sum() == 0
    # Crystals that were merged see the same: their counts go as their efficiencies.
    merge = plan.layout.merge_transaxial
    efficiencies = model.efficiencies.reshape(-1, merge, scanner.rings)
    groups = counts.reshape(-1, merge, scanner.rings)
    expected = groups.sum(axis=1, keepdims=True) * efficiencies / np.maximum(efficiencies.sum(axis=1, keepdims=True), 1e-9)
    used = expected > 0
    free = used.sum() - (used.any(axis=1)).sum()
    chi2 = ((groups - expected)[used] ** 2 / expected[used]).sum()
    assert abs(chi2 - free) < 6 * np.sqrt(2 * free)


def test_times_follow_the_decay_and_rise(made):
    *_, files, events = made
    times = events[1.0]["time_ms"].astype(float)
    assert (np.diff(times) >= 0).all()
    assert times.max() < 1000 * files[1.0].header.duration_s


def test_a_short_half_life_is_in_the_times(tmp_path):
    subject = cylinder(radius_mm=60.0, length_mm=60.0, bqml=1000.0)
    subject = replace(subject, injection=replace(subject.injection, isotope="O-15"))
    settings = replace(SETTINGS, counts=None, duration_s=240.0, drf=(20.0,), scatter="none", randoms="none")
    simulate_plan(plan_subject(subject, settings), settings, listmode=tmp_path)
    source = hdf5.read(tmp_path / f"{subject.name}_r0_drf1.lm.h5")
    times = np.concatenate([b.events["time_ms"] for b in source.blocks()]) / 1000
    rate = np.log(2) / isotope("O-15").half_life_s

    def distribution(t):
        return (1 - np.exp(-rate * t)) / (1 - np.exp(-rate * 240.0))

    assert len(times) > 1000
    assert stats.kstest(times, distribution).pvalue > 1e-3


def test_window_mode_and_raw_data_are_refused():
    for request in (
        Request("x", settings=replace(SETTINGS, mode="window"), save=("listmode",)),
        Request("x", settings=replace(SETTINGS, mode="dose"), save=("listmode",)),
        Request("x", ("a.lm.h5",), settings=SETTINGS, save=("listmode",)),
    ):
        with pytest.raises(UsageError, match="--save listmode"):
            check_request(request)
