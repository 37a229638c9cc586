"""What a lower injection would have recorded: kept shares against a simulation of that injection."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from listmode_samples import in_memory, mmr_header, sample_events, with_fields

from data_recipes.errors import DataError
from data_recipes.phantoms.analytic import cylinder
from petsim.geometry.pair_bins import PairBins
from petsim.model import build_model
from petsim.plan import plan_subject
from petsim.rawdata import hdf5
from petsim.rawdata.lower_dose import coarse_layout, kept_shares
from petsim.rawdata.thin import Ladder, thin
from petsim.settings import SimulationSettings
from petsim.simulation import simulate_plan

SMALL = str(Path(__file__).parent.parent.parent / "small_scanner.toml")
DRFS = (1.0, 4.0, 20.0)
# So hot that randoms are a tenth of the prompts, and all of them in the tails, and that dead time takes a tenth of the
# singles. Hotter than that, what triggers come with a single, which no data tell, decides about dead time.
SETTINGS = SimulationSettings(
    scanner=SMALL, preset="fast", drf=DRFS[1:], photons=200_000, duration_s=0.6, iterations=1, subsets=2, mode="thin",
)  # fmt: skip


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Full-dose events, and expected counts of a real injection 1, 4 and 20 times lower, by bin and component."""
    folder = tmp_path_factory.mktemp("hot")
    subject = cylinder(radius_mm=90.0, length_mm=80.0, bqml=80_000.0)
    plan = plan_subject(subject, SETTINGS)
    simulate_plan(plan, SETTINGS, listmode=folder)
    model = build_model(plan, replace(SETTINGS, mode="dose"))
    views = np.arange(plan.layout.views)
    components = model.components(views)
    expected = np.stack([
        sum(components[name] * model.kept(views, name, d)[:, :, None] for name in components) for d in range(len(DRFS))
    ])  # fmt: skip
    return hdf5.read(folder / f"{subject.name}_r0_drf1.lm.h5"), plan, expected


@pytest.fixture(scope="module")
def lowered(scan, tmp_path_factory):
    """Counts by dose and bin after thinning in mode dose."""
    source, plan, _ = scan
    folder = tmp_path_factory.mktemp("low")
    thin(source, Ladder(DRFS, "dose", 1), lambda drf, other: folder / f"{drf:g}.lm.h5")
    counts = []
    for drf in DRFS:
        file = source if drf == 1 else hdf5.read(folder / f"{drf:g}.lm.h5")
        events = np.concatenate([b.events for b in file.blocks()])
        events = events[events["is_delayed"] == 0]
        bins = PairBins.of(plan.layout).of_events(events, file.header.tof_bins, file.header.tof_bin_ps)
        counts.append(np.bincount(bins[bins >= 0], minlength=np.prod(plan.layout.shape)).reshape(plan.layout.shape))
    return np.stack(counts)


def test_the_scan_is_one_on_which_the_model_matters(scan):
    source, *_ = scan
    events = np.concatenate([b.events for b in source.blocks()])
    prompts = events[events["is_delayed"] == 0]
    assert (prompts["label"] == 3).mean() > 0.07


@pytest.mark.parametrize("dose", [1, 2])
def test_totals_are_those_of_a_lower_injection(scan, lowered, dose):
    expected = scan[2]
    assert lowered[0].sum() == pytest.approx(expected[0].sum(), rel=0.01)
    thinned = expected[0].sum() / DRFS[dose]
    assert abs(expected[dose].sum() / thinned - 1) > 0.05
    assert lowered[dose].sum() == pytest.approx(expected[dose].sum(), rel=0.03)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_it_holds_place_by_place(scan, lowered, axis):
    """Along radius, TOF and planes: tails that hold randoms only fall as randoms do (a fraction of a plane would not)."""
    others = tuple(a for a in range(4) if a != axis)
    found, expected = lowered[1].sum(axis=others), scan[2][1].sum(axis=others)
    used = expected > 200
    if axis == 1:
        used[[0, -1]] = False  # the outermost bins were accepted in part
    assert used.sum() > 5
    assert np.abs(found[used] / expected[used] - 1).max() < 0.12 + 4 / np.sqrt(expected[used].min())
    tails = expected < 0.3 * expected.max()
    if axis != 3:
        assert found[tails].sum() == pytest.approx(expected[tails].sum(), rel=0.08)


def test_delayeds_fall_as_randoms_do(scan, tmp_path):
    source, plan, _ = scan
    result = thin(source, Ladder(DRFS, "dose", 1), lambda drf, other: tmp_path / f"{drf:g}.lm.h5")
    model = build_model(plan, replace(SETTINGS, mode="dose"))
    views = np.arange(plan.layout.views)
    randoms = model.components(views)["randoms"].sum(axis=2)
    for d, drf in enumerate(DRFS[1:], 1):
        share = (randoms * model.kept(views, "randoms", d)).sum() / randoms.sum()
        assert result["delayeds"][f"{drf:g}"] / result["delayeds"]["1"] == pytest.approx(share, rel=0.05)
    low = hdf5.read(tmp_path / "20.lm.h5")
    assert "singles" not in low.header.fields and low.header.dose is not None and low.header.dose.mode == "dose"


def test_shares_fall_with_the_dose_and_start_at_one(scan):
    kept = kept_shares(scan[0], DRFS)
    shares = kept(next(iter(scan[0].blocks())).events[:2000])
    assert np.array_equal(shares[0], np.ones(2000, np.float32))
    assert (np.diff(shares, axis=0) <= 0).all() and shares.min() >= 0


def test_the_coarse_sinogram_has_a_bin_for_every_pair():
    layout = coarse_layout(mmr_header())
    events = sample_events(layout.scanner, 5000)
    assert PairBins.of(layout).of_events(events).min() >= 0


def test_without_delayeds_the_singles_are_not_known():
    header = with_fields(mmr_header(), "delayeds")
    events = sample_events(header.scanner, 100)
    events["is_delayed"] = 0
    with pytest.raises(DataError, match="not one delayed"):
        kept_shares(in_memory(header, events), DRFS)
    with pytest.raises(DataError, match="no delayeds"):
        kept_shares(in_memory(with_fields(header), events), DRFS)
