"""Training on a cache that is being filled: fresh volumes where there are some, the dataset's own where not."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from denoise_data import DRFS, SHAPE
from torch.utils.data import DataLoader

from data_recipes.errors import DataError, UsageError
from denoise import live as live_module
from denoise.data import Patches, read_split
from denoise.live import LiveLadder, check_live, with_live
from denoise.loader import PairDataset, PatchDataset, VolumeDataset, batches
from denoise.train import TrainSettings, train
from petsim.cache.live import DoseCache, Made
from petsim.cache.store import read_index
from petsim.serve import CONTENTS

FACTOR = 0.001


def image_of(drf, realization):
    """A volume that says what it is: drf + realization / 1000 in SUV everywhere, and the noise of a network's input."""
    rng = np.random.default_rng([int(1000 * drf), realization])
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    body = x**2 + y**2 + z**2 < 2
    return ((body * (drf + realization / 1000) + 1e-5 * rng.standard_normal(SHAPE)) / FACTOR).astype(np.float32)


def simulate(subject, drfs, realization):
    return [Made(image_of(drf, realization), {"nec": 1e8 / drf}) for drf in drfs]


@pytest.fixture(autouse=True)
def always_looks(monkeypatch):
    monkeypatch.setattr(live_module, "LOOK_S", 0.0)


def cache_of(dataset, root, budget=1e9):
    index = read_index(dataset)
    names = [s["name"] for s in index["subjects"] if s["split"] == "train"]
    cache = DoseCache(root, budget, {name: {"of": name} for name in names}, simulate)
    cache.note(CONTENTS, {"configuration_sha256": index["configuration_sha256"], "drf": list(DRFS),
                          "subjects": {name: cache.folder(name).name for name in names}})  # fmt: skip
    return cache, names


def ladders_of(dataset, root):
    return with_live(read_split(dataset, "train", "noise-free"), root, read_index(dataset)["configuration_sha256"])


def patches(ladders, target="noise-free", drfs=(4.0, 20.0), seed=0):
    return Patches(ladders, drfs, (8, 8, 8), 1, "noise", target, seed)


def middles(batch):
    """What volumes of `image_of` say they are."""
    return np.round(np.median(batch.low.astype(np.float64), axis=(1, 2, 3, 4)), 3)


def test_fresh_volumes_are_taken_where_there_are_some(dataset, tmp_path):
    cache, names = cache_of(dataset, tmp_path / "live")
    made = patches(ladders_of(dataset, tmp_path / "live"))
    assert not made.batch(0, range(12)).fresh.any()
    for name in names[:-1]:
        for realization in (3, 5):
            cache.get_all(name, (1.0, 4.0, 20.0), realization)
    batch = made.batch(0, range(200))
    assert 0.5 < batch.fresh.mean() < 1
    fresh = middles(batch)[batch.fresh]
    assert set(fresh.tolist()) == {4.003, 4.005, 20.003, 20.005}
    np.testing.assert_array_equal(np.round(fresh), batch.drf[batch.fresh])
    # The place, and so the target, is that of a run without the cache.
    fixed = patches(read_split(dataset, "train", "noise-free")).batch(0, range(200))
    assert batch.target.shape == fixed.target.shape


def test_samples_are_a_function_of_the_step_as_long_as_the_cache_stands_still(dataset, tmp_path):
    cache, names = cache_of(dataset, tmp_path / "live")
    for name in names:
        cache.get_all(name, (1.0, 4.0), 0)
    made = patches(ladders_of(dataset, tmp_path / "live"))
    first, again, other = made.batch(3, range(8)), made.batch(3, range(8)), made.batch(4, range(8))
    np.testing.assert_array_equal(first.low, again.low)
    np.testing.assert_array_equal(first.low[2:4], made.batch(3, (2, 3)).low)
    assert not np.array_equal(first.low, other.low)


def test_doses_between_those_of_the_dataset_are_trained_on_too(dataset, tmp_path):
    cache, names = cache_of(dataset, tmp_path / "live")
    for name in names:
        cache.get_all(name, (1.0, 2.5, 7.25, 13.0, 33.0), 0)
    batch = patches(ladders_of(dataset, tmp_path / "live")).batch(0, range(60))
    assert set(batch.drf.tolist()) == {7.25, 13.0} and batch.fresh.all()
    single = patches(ladders_of(dataset, tmp_path / "live"), drfs=(4.0,)).batch(0, range(20))
    assert not single.fresh.any()


def test_a_dose_that_the_cache_lacks_is_taken_from_the_dataset(dataset, tmp_path):
    """So that what is served does not change how often a dose is trained on."""
    cache, names = cache_of(dataset, tmp_path / "live")
    for name in names:
        cache.get_all(name, (1.0, 20.0), 0)
    batch = patches(ladders_of(dataset, tmp_path / "live")).batch(0, range(400))
    assert np.mean(batch.drf == 4) == pytest.approx(0.5, abs=0.1)
    np.testing.assert_array_equal(batch.fresh, batch.drf == 20)


def test_a_cache_that_can_only_be_read_is_read(dataset, tmp_path, monkeypatch):
    cache, names = cache_of(dataset, tmp_path / "live")
    for name in names:
        cache.get_all(name, (4.0,), 0)

    def refused(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("petsim.cache.live.os.utime", refused)
    assert patches(ladders_of(dataset, tmp_path / "live"), drfs=(4.0,)).batch(0, range(4)).fresh.all()


def test_targets_come_from_the_counts_they_should(dataset, tmp_path):
    cache, names = cache_of(dataset, tmp_path / "live")
    for name in names:
        cache.get_all(name, (1.0, 4.0), 7)
    ladders = ladders_of(dataset, tmp_path / "live")
    full = patches(ladders, "full", (4.0,)).batch(0, range(20))
    np.testing.assert_allclose(np.median(full.target, axis=(1, 2, 3, 4)), 1.007, atol=1e-3)
    rest = patches(ladders, "complement", (4.0,)).batch(0, range(20))
    np.testing.assert_allclose(np.median(rest.target, axis=(1, 2, 3, 4)), (4 * 1.007 - 4.007) / 3, atol=3e-3)
    # One realization alone has no independent one: the dataset's own are taken.
    assert not patches(ladders, "independent", (4.0,)).batch(0, range(20)).fresh.any()
    for name in names:
        cache.get_all(name, (1.0, 4.0), 8)
    other = patches(ladders, "independent", (4.0,)).batch(0, range(40))
    targets = np.round(np.median(other.target.astype(np.float64), axis=(1, 2, 3, 4)), 3)
    pairs = {tuple(pair) for pair in np.c_[middles(other), targets].tolist()}
    assert pairs == {(4.007, 1.008), (4.008, 1.007)} and other.fresh.all()


def test_evicted_volumes_are_let_go_and_a_removed_cache_is_survived(dataset, tmp_path):
    cache, names = cache_of(dataset, tmp_path / "live")
    for name in names:
        cache.get_all(name, (4.0,), 0)
    ladders = ladders_of(dataset, tmp_path / "live")
    made = patches(ladders, drfs=(4.0,))
    assert made.batch(0, range(20)).fresh.all()
    for name in names:
        cache.path(name, 4.0, 0).unlink()
        cache.get_all(name, (4.0,), 1)
    batch = made.batch(1, range(20))
    assert batch.fresh.all() and set(middles(batch).tolist()) == {4.001}
    assert all(len(x.live._open) <= 1 for x in ladders)
    shutil.rmtree(tmp_path / "live")
    assert made.batch(2, range(20)).fresh.mean() <= 1


def test_a_cache_of_another_dataset_is_refused_or_left_alone(dataset, tmp_path):
    with pytest.raises(DataError, match="holds no cache"):
        check_live(tmp_path / "none", "x")
    cache, names = cache_of(dataset, tmp_path / "live")
    cache.get_all(names[0], (4.0,), 0)
    with pytest.raises(DataError, match="another dataset"):
        check_live(tmp_path / "live", "x")
    other = with_live(read_split(dataset, "train", "noise-free"), tmp_path / "live", "x")
    assert not patches(other).batch(0, range(20)).fresh.any()


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(dataset, tmp_path, workers):
    cache, names = cache_of(dataset, tmp_path / "live")
    for name in names:
        cache.get_all(name, (1.0, 4.0, 20.0), 0)
    made = patches(ladders_of(dataset, tmp_path / "live"))
    made.batch(0, range(4))
    for step, batch in zip(range(5, 11), batches(made, range(4), range(5, 11), workers), strict=True):
        here = made.batch(step, range(4))
        for name in ("low", "target", "condition", "sd", "drf", "fresh"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(here, name))


def test_live_ladders_open_their_own_files_elsewhere(dataset, tmp_path):
    cache, names = cache_of(dataset, tmp_path / "live")
    for name in names:
        cache.get_all(name, (4.0,), 0)
    ladders = ladders_of(dataset, tmp_path / "live")
    assert patches(ladders, drfs=(4.0,)).batch(0, range(4)).fresh.all()
    sent = pickle.loads(pickle.dumps(ladders))
    assert all(isinstance(x, LiveLadder) and not x.live._open for x in sent)
    np.testing.assert_array_equal(
        patches(sent, drfs=(4.0,)).batch(0, range(4)).low, patches(ladders, drfs=(4.0,)).batch(0, range(4)).low
    )


def test_a_run_says_how_much_of_it_was_fresh(dataset, tmp_path):
    cache, names = cache_of(dataset, tmp_path / "live")
    for name in names:
        cache.get_all(name, (1.0, 4.0, 20.0), 0)
    settings = TrainSettings(channels=(2,), patch=8, batch=2, max_steps=4, validate_every=2)
    train(dataset, tmp_path / "run", settings, "cpu", live=tmp_path / "live")
    rows = [line.split(",") for line in (tmp_path / "run" / "log.csv").read_text().splitlines()]
    assert rows[0][-1] == "fresh" and [float(row[-1]) for row in rows[1:]] == [1.0, 1.0]
    with pytest.raises(DataError, match="other settings"):
        train(dataset, tmp_path / "run", settings, "cpu")


def test_looking_costs_nothing_in_between(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(live_module, "LOOK_S", 60.0)
    cache, names = cache_of(dataset, tmp_path / "live")
    cache.get_all(names[0], (4.0,), 0)
    ladder = ladders_of(dataset, tmp_path / "live")[0]
    looked = []
    monkeypatch.setattr(live_module, "listed", lambda folder: looked.append(folder) or [])
    for _ in range(5):
        ladder.live.realizations()
    assert len(looked) == 1


def test_datasets_for_loops_of_ones_own(dataset, tmp_path):
    """Dictionaries for MONAI and pairs for deepinv, the same whatever process loads them."""
    cache, names = cache_of(dataset, tmp_path / "live")
    cache.get_all(names[0], (1.0, 4.0), 0)
    made = patches(ladders_of(dataset, tmp_path / "live"))
    samples = PatchDataset(made, 6)
    assert len(samples) == 6 and samples[0]["image"].shape == samples[0]["label"].shape == (1, 8, 8, 8)
    assert samples[0]["image"].dtype == torch.float32
    loaded = list(DataLoader(samples, batch_size=2, num_workers=1))
    assert len(loaded) == 3
    for k, batch in enumerate(loaded):
        for key, values in batch.items():
            np.testing.assert_array_equal(values, torch.stack([samples[2 * k + i][key] for i in (0, 1)]))
    wanted, measured = PairDataset(samples)[3]
    np.testing.assert_array_equal(wanted, samples[3]["label"])
    np.testing.assert_array_equal(measured, samples[3]["image"])
    with pytest.raises(IndexError):
        samples[6]


def test_whole_volumes_for_loops_of_ones_own(dataset):
    ladders = read_split(dataset, "train", "noise-free")
    volumes = VolumeDataset(ladders, (4.0, 20.0))
    assert len(volumes) == len(ladders) * 2 * 2
    sample = volumes[3]
    np.testing.assert_array_equal(sample["image"][0], ladders[0].image(2, 1))
    np.testing.assert_array_equal(sample["label"][0], ladders[0].reference())
    assert sample["drf"] == 20 and sample["noise_sd"] > 0
    np.testing.assert_array_equal(PairDataset(volumes)[3][1], sample["image"])


def test_doses_are_drawn_as_often_as_asked(dataset, tmp_path):
    ladders = read_split(dataset, "train", "noise-free")
    made = Patches(ladders, (4.0, 20.0), (8, 8, 8), 1, "noise", "noise-free", 0, weights=(3.0, 1.0))
    assert np.mean(made.batch(0, range(800)).drf == 4) == pytest.approx(0.75, abs=0.06)
    cache, names = cache_of(dataset, tmp_path / "live")
    for name in names:
        cache.get_all(name, (5.0, 4.0 * np.sqrt(5.0), 16.0), 0)
    fresh = Patches(ladders_of(dataset, tmp_path / "live"), (4.0, 20.0), (8, 8, 8), 1, "noise", "noise-free", 0,
                    weights=(3.0, 1.0)).batch(0, range(900))  # fmt: skip
    assert fresh.fresh.all()
    shares = np.array([np.mean(fresh.drf == d) for d in sorted(set(fresh.drf))])
    # Linear on the logarithm from 3 at DRF 4 to 1 at DRF 20.
    wanted = 3 - 2 * np.log(np.array([5.0, 4.0 * np.sqrt(5.0), 16.0]) / 4) / np.log(5)
    np.testing.assert_allclose(shares, wanted / wanted.sum(), atol=0.06)
    for wrong in ((1.0,), (1.0, 0.0)):
        with pytest.raises(UsageError, match="--drf-weights"):
            Patches(ladders, (4.0, 20.0), (8, 8, 8), 1, "noise", "noise-free", 0, weights=wrong)


def test_patches_are_turned_by_quarters_with_their_targets(dataset):
    """Away from the flips, every sample is the unturned one turned: and all four turns occur."""
    ladders = read_split(dataset, "train", "noise-free")
    plain = patches(ladders).batch(0, range(40))
    turned = Patches(ladders, (4.0, 20.0), (8, 8, 8), 1, "noise", "noise-free", 0, rotate=True).batch(0, range(40))
    seen = set()
    for a, b, c, d in zip(plain.low, turned.low, plain.target, turned.target, strict=True):
        quarters = [k for k in range(4) if np.array_equal(np.rot90(a, k, (1, 2)), b)]
        assert quarters and np.array_equal(np.rot90(c, quarters[0], (1, 2)), d)
        seen.add(quarters[0])
    assert seen == {0, 1, 2, 3}


def test_noise_is_not_measured_where_no_one_needs_it(dataset, tmp_path):
    made = Patches(read_split(dataset, "train", "noise-free"), (4.0,), (8, 8, 8), 1, "noise", "noise-free", 0, measure=False)
    with_noise = patches(read_split(dataset, "train", "noise-free"), drfs=(4.0,)).batch(0, range(3))
    batch = made.batch(0, range(3))
    assert not batch.sd.any() and with_noise.sd.all()
    np.testing.assert_array_equal(batch.low, with_noise.low)
