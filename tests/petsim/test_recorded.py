"""Raw data as a source: what is reconstructed from list mode, and what is said about what is missing."""

import re
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from data_recipes.errors import DataError, UsageError
from data_recipes.phantoms.analytic import cylinder
from data_recipes.resample import resample
from petsim import cli
from petsim.dataset import Request, check_request, make_dataset
from petsim.dose_rates import BinRates
from petsim.geometry.pair_bins import PairBins
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.model import build_model
from petsim.physics.normalization import normalization
from petsim.plan import plan_subject
from petsim.rawdata import hdf5
from petsim.rawdata.efficiencies import FanCounts, estimate_efficiencies
from petsim.rawdata.events import EVENT
from petsim.rawdata.lower_dose import acceptance
from petsim.recorded import _Recorded, events_sha256, plan_recorded, preview_recorded, reconstruct_recorded, scanner_of
from petsim.settings import ReadOptions, SimulationSettings
from petsim.simulation import simulate_plan
from petsim.verify import verify

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")
SETTINGS = SimulationSettings(
    scanner=SMALL, preset="fast", drf=(4.0, 10.0), photons=200_000, counts=2e6, efficiency_spread=0.1, drift=0.0,
    mu_shift=0.0, iterations=4, subsets=6,
)  # fmt: skip
SUBJECT = cylinder(radius_mm=90.0, length_mm=80.0, bqml=30_000.0)
RAW = replace(SETTINGS, counts=None, full_dose="source", fov_mm=480.0, drift=0.01, mu_shift=1.0)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A simulated scan as list mode, its mu-map and efficiencies as files, and the simulation itself."""
    folder = tmp_path_factory.mktemp("scan")
    plan = plan_subject(SUBJECT, SETTINGS)
    result = simulate_plan(plan, SETTINGS, listmode=folder)
    mu = folder / "mu.nii.gz"
    nib.save(nib.Nifti1Image(SUBJECT.mu_per_cm, SUBJECT.grid.affine), mu)
    np.save(folder / "efficiencies.npy", build_model(plan, SETTINGS).efficiencies)
    return folder / f"{SUBJECT.name}_r0_drf1.lm.h5", mu, folder / "efficiencies.npy", result


@pytest.fixture(scope="module")
def recorded(scan):
    path, mu, efficiencies, _ = scan
    source = hdf5.read(path)
    options = ReadOptions(mu=str(mu), normalization=str(efficiencies))
    plan = plan_recorded(source, RAW, options)
    return reconstruct_recorded(source, plan, RAW, options)


def inside(grid, radius_mm=60.0, half_mm=25.0):
    x, y, z = (grid.axis_mm(a) for a in range(3))
    return (np.hypot(x[:, None], y[None, :])[:, :, None] < radius_mm) & (np.abs(z)[None, None] < half_mm)


@pytest.mark.parametrize("dose", [0, 1, 2])
def test_activity_comes_out_at_every_dose(recorded, dose):
    """All is estimated but the mu-map and the efficiencies: randoms, dead time, scatter, and the scale from sensitivity."""
    _, result = recorded
    mean = result.images[dose, 0][inside(result.grid)].mean()
    assert mean == pytest.approx(30_000, rel=0.05)


def test_it_is_the_image_of_the_simulation(scan, recorded):
    simulated, (_, result) = scan[3], recorded
    theirs = resample(simulated.images[0, 0], simulated.grid, result.grid)
    here = inside(result.grid)
    difference = result.images[0, 0][here] - theirs[here]
    assert np.abs(difference.mean()) < 0.03 * 30_000
    assert difference.std() < 0.6 * result.images[0, 0][here].std()


def test_counts_are_recorded_ones_and_backgrounds_near_the_true_ones(scan, recorded):
    simulated, (_, result) = scan[3], recorded
    for true, found in zip(simulated.counts, result.counts, strict=True):
        assert found["prompts"] == pytest.approx(true["prompts"], rel=0.01)
        assert found["randoms"] == pytest.approx(true["randoms"], rel=0.1)
        assert found["scatter"] == pytest.approx(true["scatter"], rel=0.2)
    assert result.counts[2]["prompts"] == pytest.approx(result.counts[0]["prompts"] / 10, rel=0.01)


def test_thinned_doses_equal_those_of_petsim_thin(scan, recorded, tmp_path):
    from petsim.rawdata.ladder_files import thin_file

    thin_file(str(scan[0]), str(tmp_path), (4.0,), "thin", RAW.seed)
    (low,) = tmp_path.iterdir()
    prompts = np.concatenate([b.events for b in hdf5.read(low).blocks()])
    prompts = prompts[prompts["is_delayed"] == 0]
    plan = plan_recorded(hdf5.read(scan[0]), RAW, ReadOptions())
    header = hdf5.read(low).header
    bins = PairBins.of(plan.layout).of_events(prompts, header.tof_bins, header.tof_bin_ps)
    assert (bins >= 0).sum() == recorded[1].counts[1]["prompts"]


def test_a_dataset_of_a_list_mode_file(scan, tmp_path, capsys):
    path = scan[0]
    command = cli.parse([
        "make-dataset", str(path), "--scanner", SMALL, "--drf", "4", "--out", str(tmp_path / "d"), "--realizations", "2",
        "--preset", "fast", "--iterations", "1", "--fov-mm", "300", "--normalization", "estimate",
        "--save", "recon", "sinogram",
    ])  # fmt: skip
    request = cli.request_of(command)
    made = make_dataset(request)
    assert len(made["subjects"]) == 1
    told = " ".join(made["subjects"][0]["warnings"])
    assert "no --mu or --ct" in told and "efficiencies" not in told
    assert verify(tmp_path / "d")["problems"] == []
    with h5py.File(next((tmp_path / "d").glob("*.h5"))) as f:
        assert np.array_equal(f["recon"][0, 0], f["recon"][0, 1])  # one full dose, thinned twice
        assert not np.array_equal(f["recon"][1, 0], f["recon"][1, 1])
        assert np.array_equal(f["sinogram"][:].sum(axis=(2, 3, 4, 5)), f["doses/prompts"][:])
        assert '"realizations":"rethinned"' in f.attrs["provenance"]
        assert str(tmp_path) not in str(dict(f.attrs))
    assert make_dataset(request)["subjects"][0]["made"] is False


def test_a_preview_counts_and_reconstructs_nothing(scan):
    told = preview_recorded(scan[0], RAW, ReadOptions())
    events = np.concatenate([b.events for b in hdf5.read(scan[0]).blocks()])
    assert told["prompts"] == (events["is_delayed"] == 0).sum()
    assert told["delayeds"] == (events["is_delayed"] == 1).sum()
    assert told["memory_gb"] > 0 and len(told["warnings"]) == 2


def changed(source, change):
    """The file with other events."""
    return replace(source, blocks=lambda: (replace(b, events=change(b.events)) for b in source.blocks()))


def test_a_smaller_axial_acceptance_is_seen_in_the_data(scan, recorded):
    """Events of ring differences up to 5 only: the same activity, from fewer counts."""
    path, mu, efficiencies, _ = scan

    def near(events):
        return events[np.abs(events["ring1"].astype(int) - events["ring2"]) <= 5]

    source, options = changed(hdf5.read(path), near), ReadOptions(mu=str(mu), normalization=str(efficiencies))
    settings = replace(RAW, drf=(4.0,), iterations=2)
    _, result = reconstruct_recorded(source, plan_recorded(source, settings, options), settings, options)
    assert result.images[0, 0][inside(result.grid, half_mm=10.0)].mean() == pytest.approx(30_000, rel=0.08)


def test_dead_crystals_do_not_darken_the_image(scan):
    path, mu, efficiencies, _ = scan
    values = np.load(efficiencies)
    values[::10] = 0
    dead = path.parent / "dead.npy"
    np.save(dead, values)
    source, options = hdf5.read(path), ReadOptions(mu=str(mu), normalization=str(dead))
    settings = replace(RAW, drf=(4.0,), iterations=2)
    _, result = reconstruct_recorded(source, plan_recorded(source, settings, options), settings, options)
    assert result.images[0, 0][inside(result.grid)].mean() == pytest.approx(30_000, rel=0.08)
    assert any("dead crystals" in w for w in result.provenance["warnings"])


def test_randoms_do_not_count_efficiencies_twice(scan):
    """A quarter of the ring detects 30 % less: randoms at its crystals are those of the labels."""
    path, _, _, _ = scan
    source = hdf5.read(path)
    scanner = load_scanner(SMALL)
    weak = np.zeros((scanner.crystals_per_ring, scanner.rings), bool)
    weak[:42] = True

    def weakened(events):
        random = np.random.default_rng(len(events))
        gone = np.zeros(len(events), bool)
        for end in "12":
            gone |= weak[events[f"crystal{end}"], events[f"ring{end}"]] & (random.random(len(events)) < 0.3)
        return events[~gone]

    values = np.load(scan[2]) * np.where(weak, 0.7, 1.0)
    file = path.parent / "weak.npy"
    np.save(file, values)
    own, options = changed(source, weakened), ReadOptions(normalization=str(file))
    settings = replace(RAW, drf=(4.0,), iterations=1, subsets=1)
    plan = plan_recorded(own, settings, options)
    one = _Recorded(own, plan, settings, options, 0, 8e9, [], acceptance(own))
    recon = BinRates(plan.layout, one._areas, one._rates)
    views = np.arange(plan.layout.views)
    expected = normalization(plan.layout, one._efficiencies, views) * recon.live(views) * recon.randoms(views)
    events = np.concatenate([b.events for b in own.blocks()])
    true = events[(events["label"] == 3) & (events["is_delayed"] == 0)]
    bins = PairBins.of(plan.layout).of_events(true, own.header.tof_bins, own.header.tof_bin_ps)
    found = np.bincount(bins[bins >= 0], minlength=np.prod(plan.layout.shape)).reshape(plan.layout.shape).sum(axis=2)
    merge = plan.layout.merge_transaxial
    ends = np.stack([np.stack(plan.layout.crystal_pairs(v), axis=-1)[0] * merge < 42 for v in views]).sum(axis=-1)
    for count in (0, 1):
        here = ends == count
        assert expected[here].sum() * plan.layout.tof_bins == pytest.approx(found[here].sum(), rel=0.05)


def test_a_subject_is_its_events_and_what_is_known_of_them(scan):
    source = hdf5.read(scan[0])
    other = replace(source, header=replace(source.header, injection=replace(source.header.injection, isotope="Ga-68")))
    assert events_sha256(source) != events_sha256(other)


def test_file_names_are_not_kept(scan):
    source = replace(hdf5.read(scan[0]), warnings=("doe_john.l: is short",))
    options = ReadOptions()
    settings = replace(RAW, drf=(4.0,), iterations=1, subsets=1)
    subject, result = reconstruct_recorded(source, plan_recorded(source, settings, options), settings, options)
    assert "is short" in result.provenance["warnings"] and "doe" not in str(result.provenance) + str(subject.provenance)


def test_more_events_than_memory(scan):
    source = hdf5.read(scan[0])
    settings = replace(RAW, drf=(4.0,), iterations=1, subsets=1)
    plan = plan_recorded(source, settings, ReadOptions())
    with pytest.raises(DataError, match="--memory-gb") as refused:
        reconstruct_recorded(source, plan, settings, ReadOptions(), budget_bytes=1e6)
    enough = re.search("--memory-gb ([0-9.]+)", str(refused.value))
    assert enough is not None
    reconstruct_recorded(source, plan, settings, ReadOptions(), budget_bytes=1e9 * float(enough[1]))


def test_a_window_exists_once(scan):
    source = hdf5.read(scan[0])
    with pytest.raises(UsageError, match="--realizations"):
        reconstruct_recorded(source, plan_recorded(source, RAW, ReadOptions()), replace(RAW, mode="window", realizations=2),
                             ReadOptions())  # fmt: skip


def test_the_scanner_of_a_file_that_the_library_lacks(scan):
    assert scanner_of(scan[0], SMALL) == SMALL
    with pytest.raises(DataError, match="--scanner FILE"):
        scanner_of(scan[0], None)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (np.ones((3, 3)), "must hold one number"),
        (np.full((168, 16), np.nan), "finite"),
        (np.zeros((168, 16)), "not all 0"),
        (np.array(["a"]), "must hold one number"),
        (None, "not a .npy file"),
        (b"", "not a .npy file"),
        (b"PK\x03\x04", "not a .npy file"),
    ],
)
def test_a_normalization_that_is_none(scan, values, part, tmp_path):
    file = tmp_path / "n.npy"
    values = b"hello" if values is None else values
    file.write_bytes(values) if isinstance(values, bytes) else np.save(file, values)
    source = hdf5.read(scan[0])
    options = ReadOptions(normalization=str(file))
    with pytest.raises(DataError, match=part):
        reconstruct_recorded(source, plan_recorded(source, RAW, options), RAW, options)


@pytest.mark.parametrize(
    "change", [{"counts": 1e6}, {"duration_s": 3.0}, {"randoms": "none"}, {"corrections": "oracle"}, {"slab_mm": 30.0}]
)
def test_flags_of_simulations_are_refused(change):
    with pytest.raises(UsageError, match="leave it out for raw data"):
        check_request(Request("x", ("a.lm.h5",), settings=replace(SimulationSettings(full_dose="source"), **change)))


def test_images_and_raw_data_together_are_refused():
    with pytest.raises(UsageError, match="together"):
        check_request(Request("x", ("a.lm.h5", "b.nii"), settings=SimulationSettings(full_dose="source")))


def test_normalization_belongs_to_raw_data():
    with pytest.raises(UsageError, match="--normalization"):
        check_request(Request("x", read=ReadOptions(normalization="estimate")))


def delayeds_of(layout: SinogramLayout, efficiencies: np.ndarray, count: int) -> FanCounts:
    """Fans of delayeds between crystals of given efficiencies and equal flux."""
    random, scanner = np.random.default_rng(0), layout.scanner
    fans = FanCounts(PairBins.of(layout))
    weight = (efficiencies / efficiencies.sum()).ravel()
    ends = [np.unravel_index(random.choice(weight.size, count, p=weight), efficiencies.shape) for _ in range(2)]
    events = np.zeros(count, EVENT)
    for end, (crystal, ring) in zip("12", ends, strict=True):
        events[f"crystal{end}"], events[f"ring{end}"] = crystal, ring
    events["is_delayed"] = 1
    fans.add(events)
    assert scanner.rings == efficiencies.shape[1]
    return fans


def test_efficiencies_from_many_and_from_few_delayeds():
    scanner = load_scanner(SMALL)
    layout = SinogramLayout(scanner, 100, 1, 1, max_ring_difference=15)
    random = np.random.default_rng(1)
    real = np.outer(scanner.transaxial_is_real(), scanner.ring_is_real())
    true = real * (1 + 0.1 * random.standard_normal(real.shape)) * (1 + 0.1 * random.standard_normal(16))
    true /= true[real].mean()
    many = delayeds_of(layout, true, 3_000_000)
    found = estimate_efficiencies(many._pairs, many.counts, np.ones(real.shape))
    per_crystal = many.counts[real].mean()
    assert np.std((found - true)[real]) < 1.3 / np.sqrt(per_crystal)
    assert found[~real].max() == 0 and found[real].mean() == pytest.approx(1, abs=1e-5)
    few = delayeds_of(layout, true, 20_000)
    found = estimate_efficiencies(few._pairs, few.counts, np.ones(real.shape))
    # Of a dozen counts a crystal a ring's factor is still known, and noise does not come in.
    assert np.std((found - true)[real]) < np.std(true[real])
    assert np.corrcoef(found.mean(axis=0), true.mean(axis=0))[0, 1] > 0.9


def test_delayed_events_without_real_partners_do_not_count():
    scanner = load_scanner(SMALL)
    layout = SinogramLayout(scanner, 20, 1, 1, max_ring_difference=15)
    fans = FanCounts(PairBins.of(layout))
    events = np.zeros(3, EVENT)
    events["crystal1"], events["crystal2"] = 0, [84, 5, 84]  # opposite, beside, opposite
    events["is_delayed"] = [1, 1, 0]
    fans.add(events)
    assert fans.counts.sum() == 2


def test_a_wider_field_of_view_asks_for_no_more_tof_bins_than_events_have(tmp_path):
    """Randoms expected in bins that cannot have counts would pass for missing scatter: activity 10 % high on a Quadra."""
    settings = replace(SETTINGS, fov_mm=240.0, drf=(4.0,))
    simulate_plan(plan_subject(SUBJECT, settings), settings, listmode=tmp_path)
    source = hdf5.read(tmp_path / f"{SUBJECT.name}_r0_drf1.lm.h5")
    mu = tmp_path / "mu.nii.gz"
    nib.save(nib.Nifti1Image(SUBJECT.mu_per_cm, SUBJECT.grid.affine), mu)
    found = []
    for fov_mm in (240.0, 600.0):
        raw, options = replace(RAW, fov_mm=fov_mm, drf=()), ReadOptions(mu=str(mu))
        plan = plan_recorded(source, raw, options)
        assert plan.layout.merge_tof * plan.layout.tof_bins <= source.header.tof_bins
        found.append(reconstruct_recorded(source, plan, raw, options)[1].counts[0])
    for name in ("prompts", "randoms", "scatter"):
        assert found[1][name] == pytest.approx(found[0][name], rel=0.02)
