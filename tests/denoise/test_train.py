"""Samples, methods, the loop, model files and denoisers."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from denoise_data import make_dataset, record
from safetensors.torch import load_file, save_file

from data_recipes.errors import DataError, UsageError
from denoise.data import Patches, read_ladder, read_split
from denoise.denoiser import Denoiser
from denoise.methods import Method
from denoise.model_file import load_model, read_card
from denoise.networks.unet import UNet, UNetShape
from denoise.noise_level import noise_level
from denoise.scaling import Scaling
from denoise.train import TrainSettings, train
from petsim.cache.store import write_index, write_subject

TINY = TrainSettings(channels=(4, 8), patch=16, batch=2, max_steps=6, validate_every=3, ema=0.5)


# Noise, scaling, networks


def test_noise_level_of_white_noise_is_its_standard_deviation():
    rng = np.random.default_rng(0)
    image = (5 + rng.normal(0, 0.7, (40, 40, 40))).astype(np.float32)
    level = noise_level(image)
    assert level.sd == pytest.approx(0.7, rel=0.02)
    assert level.relative == pytest.approx(0.14, rel=0.02)


@pytest.mark.parametrize("relative", [0.2, 1.0, 3.0])
def test_noise_level_of_images_of_few_counts(relative):
    # A gamma distribution of this standard deviation over its mean: most voxels near zero, a few of them high.
    image = np.random.default_rng(0).gamma(relative**-2, relative**2, (32, 32, 70)).astype(np.float32)
    assert noise_level(image).relative == pytest.approx(relative, rel=0.05)


def test_noise_level_does_not_see_edges_and_needs_a_body():
    image = np.zeros((120, 120, 16), np.float32)
    image[10:110, 12:108] = 3
    image[30:45, 30:40] = 9
    assert noise_level(image).sd == 0
    with pytest.raises(DataError, match="nothing above zero"):
        noise_level(np.zeros((8, 8, 8), np.float32))


@pytest.mark.parametrize("transform", ["linear", "log", "anscombe"])
def test_scalings_are_odd_increasing_and_invertible(transform):
    scaling = Scaling(transform, scale_suv=3.0)
    suv = torch.linspace(-30, 60, 1001, dtype=torch.float64)
    numbers = scaling.to_network(suv)
    assert (numbers.diff() > 0).all()
    torch.testing.assert_close(scaling.to_network(-suv), -numbers)
    torch.testing.assert_close(scaling.to_suv(numbers), suv)
    assert scaling.to_network(torch.tensor(0.0)) == 0


def test_clipped_scaling():
    scaling = Scaling(scale_suv=2.0, clip_suv=10.0)
    torch.testing.assert_close(scaling.to_network(torch.tensor([-30.0, 4.0, 30.0])), torch.tensor([-5.0, 2.0, 5.0]))
    with pytest.raises(UsageError):
        Scaling(scale_suv=0)


@pytest.mark.parametrize(("slices", "depth"), [(1, 3), (5, 1), (1, 1)])
def test_networks_start_at_zero_and_two_dimensional_ones_keep_slices_apart(slices, depth):
    shape = UNetShape(slices, depth, (4, 8), conditioned=True)
    torch.manual_seed(0)
    network = UNet(shape)
    x, c = torch.randn(2, slices, 8, 8, 8), torch.zeros(2)
    assert not network(x, c).any()
    torch.nn.init.normal_(network.leave.weight)
    out = network(x, c)
    assert out.shape == (2, 1, 8, 8, 8)
    other = x.clone()
    other[..., 5] += 1
    changed = (network(other, c) != out).any(dim=(0, 1, 2, 3))
    assert changed.tolist() == ([True] * 8 if depth == 3 else [k == 5 for k in range(8)])


def test_the_condition_matters_only_once_it_is_learned():
    network = UNet(UNetShape(channels=(4,), conditioned=True))
    torch.nn.init.normal_(network.leave.weight)
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.equal(network(x, torch.tensor([0.0])), network(x, torch.tensor([3.0])))
    torch.nn.init.normal_(network.down[0].film[2].weight)
    assert not torch.allclose(network(x, torch.tensor([0.0])), network(x, torch.tensor([3.0])))


# Samples


def test_samples_are_patches_of_the_files(dataset):
    ladders = read_split(dataset, "train", "noise-free")
    patches = Patches(ladders, (4.0, 20.0), (8, 8, 8), 1, "noise", "noise-free", seed=3)
    batch = patches.batch(7, range(16))
    again = patches.batch(7, [5])
    np.testing.assert_array_equal(batch.low[5], again.low[0])
    assert not np.array_equal(batch.low[5], patches.batch(8, [5]).low[0])
    noise = [np.std(batch.low[k] - batch.target[k]) / batch.sd[k] for k in range(16)]
    assert np.all(np.array(noise) < 3)
    ratio = [np.std((batch.low - batch.target)[batch.drf == d]) for d in (4, 20)]
    assert ratio[1] / ratio[0] == pytest.approx(np.sqrt(5), rel=0.3)
    assert set(batch.drf) == {4, 20}


def test_suv_and_conditions(dataset):
    ladder = read_ladder(dataset / "toy-0.h5")
    direct = record("toy-0", 0)
    np.testing.assert_allclose(ladder.image(1, 1), direct.images[1, 1] * 0.001, atol=2e-3)
    np.testing.assert_allclose(ladder.reference(), direct.noise_free * 0.001, atol=2e-3)
    assert ladder.volume(2, 0).condition("drf") == pytest.approx(np.log(20))
    assert ladder.volume(1, 0).condition("nec") == pytest.approx(np.log(1e8 / 4 / 0.064))
    assert np.all(np.diff([ladder.volume(d, 0).condition("noise") for d in range(3)]) > 0.3)


def test_complement_shares_no_counts_with_the_input(tmp_path):
    """For counts: (D F - L) / (D - 1) of L ~ binomial(F, 1/D) D is uncorrelated with L."""
    rng = np.random.default_rng(0)
    full = rng.poisson(200, (16, 16, 16))
    low = rng.binomial(full, 0.25) * 4
    images = np.stack([full, low])[:, None].astype(np.float32)
    doses = {k: v[:2, :1] for k, v in record("counts", 0).doses.items()}
    write_subject(tmp_path / "counts.h5", replace(record("counts", 0), shape=(16, 16, 16), images=images, drfs=(1.0, 4.0),
                  noise_free=images[0, 0], activity=images[0, 0], mu=images[0, 0], labels=None, doses=doses))  # fmt: skip
    ladder = read_ladder(tmp_path / "counts.h5")
    batch = Patches([ladder], (4.0,), (16, 16, 16), 1, "noise", "complement", 0).batch(0, [0])
    a, b = batch.low.ravel(), batch.target.ravel()
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.06
    assert b.mean() == pytest.approx(0.2, rel=0.01)


def test_neighboring_slices_are_channels(dataset):
    ladders = read_split(dataset, "val", "noise-free")
    flat = Patches(ladders, (4.0,), (8, 8, 1), 1, "noise", "noise-free", 0).batch(0, range(8))
    thick = Patches(ladders, (4.0,), (8, 8, 1), 5, "noise", "noise-free", 0).batch(0, range(8))
    assert thick.low.shape == (8, 5, 8, 8, 1)
    np.testing.assert_array_equal(thick.low[:, 2:3], flat.low)
    np.testing.assert_array_equal(thick.target, flat.target)


# Methods


def test_residual_and_direct_differ_by_the_skip_alone():
    torch.manual_seed(0)
    network, scaling = UNet(UNetShape(channels=(4,))), Scaling(scale_suv=2.0)
    torch.nn.init.normal_(network.leave.weight, std=0.1)
    low, c, sd = torch.rand(1, 1, 8, 8, 8), torch.zeros(1), torch.tensor([0.5])
    direct = Method("direct").estimate(network, scaling, low, c, sd)
    torch.testing.assert_close(Method("residual").estimate(network, scaling, low, c, sd), low / 2 - direct)
    torch.testing.assert_close(Method("residual", "r1").estimate(network, scaling, low, c, sd), low / 2 - direct * 0.25)


def test_errors_are_weighed_as_stated():
    estimate, target = torch.full((2, 1, 2, 2, 2), 3.0), torch.ones(2, 1, 2, 2, 2)
    sd, dose = torch.tensor([0.5, 1.0]), torch.tensor([2.0, 4.0])
    assert Method().error(estimate, target, sd, dose).item() == pytest.approx(4)
    assert Method(loss="l1").error(estimate, target, sd, dose).item() == pytest.approx(2)
    assert Method(variant="r1").error(estimate, target, sd, dose).item() == pytest.approx((16 + 4) / 2)
    assert Method(variant="r2").error(estimate, target, sd, dose).item() == pytest.approx((1 + 0.25) / 2)
    with pytest.raises(UsageError, match="only the residual"):
        Method("direct", "r1")


# The loop


@pytest.mark.parametrize(
    "settings",
    [
        replace(TINY, method="direct"), replace(TINY, method="dose-conditioned"), replace(TINY, variant="r1", dims="2.5"),
        replace(TINY, variant="r2", dims="2", loss="l1", transform="anscombe"), replace(TINY, precision="bf16"),
        replace(TINY, target="full"), replace(TINY, target="complement", condition="nec", method="dose-conditioned"),
    ],
)  # fmt: skip
def test_every_method_trains_and_its_model_denoises(dataset, tmp_path, settings):
    result = train(dataset, tmp_path / "run", settings, "cpu")
    assert result["steps"] == 6
    card = read_card(tmp_path / "run" / "best.safetensors")
    assert card.method == settings.regression and card.drfs == (4.0, 20.0) and card.scanners == ("toy",)
    ladder = read_ladder(dataset / "toy-0.h5")
    out = Denoiser.load(tmp_path / "run", "cpu")(ladder.image(1), ladder.spacing_mm, 4.0, 20.0)
    assert out.image.shape == ladder.shape and np.isfinite(out.image).all()
    rows = (tmp_path / "run" / "log.csv").read_text().split()
    assert [r.split(",")[0] for r in rows] == ["step", "3", "6"]
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["method"] == settings.method


def test_one_subject_is_learned_by_heart(tmp_path):
    """Of one patch hardly any error is left."""
    data = make_dataset(tmp_path / "data", 3)
    settings = replace(TINY, channels=(8, 16), max_steps=300)
    ladder = read_split(data, "train", "noise-free")[0]
    batch = Patches([ladder], (4.0,), (16, 16, 16), 1, "noise", "noise-free", 0).batch(0, [0])
    torch.manual_seed(0)
    network, method, scaling = UNet(settings.shape), settings.regression, settings.scaling
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.max_steps)
    low, target, c, sd = (torch.from_numpy(a) for a in (batch.low, batch.target, batch.condition, batch.sd))
    errors = []
    for _ in range(settings.max_steps):
        optimizer.zero_grad()
        error = method.error(method.estimate(network, scaling, low, c, sd), scaling.to_network(target), sd, sd)
        error.backward()
        optimizer.step()
        schedule.step()
        errors.append(error.item())
    assert errors[-1] < 0.03 * errors[0]


def test_resuming_equals_an_unbroken_run_to_the_bit(dataset, tmp_path):
    settings = replace(TINY, max_steps=9)
    train(dataset, tmp_path / "whole", settings, "cpu")

    def stop(steps, error):
        if steps == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "broken", settings, "cpu", stop)
    train(dataset, tmp_path / "broken", settings, "cpu")
    for name in ("last.safetensors", "best.safetensors"):
        one, other = (load_file(tmp_path / run / name) for run in ("whole", "broken"))
        assert all(torch.equal(one[k], other[k]) for k in one)
    assert (tmp_path / "whole" / "log.csv").read_text() == (tmp_path / "broken" / "log.csv").read_text()


def test_a_run_of_other_settings_is_not_touched(dataset, tmp_path):
    train(dataset, tmp_path / "run", TINY, "cpu")
    with pytest.raises(DataError, match="other settings"):
        train(dataset, tmp_path / "run", replace(TINY, batch=4), "cpu")


def test_training_stops_when_validation_gets_no_better(dataset, tmp_path):
    settings = replace(TINY, max_steps=400, validate_every=1, patience=3, learning_rate=0.2, clip_norm=1e9, ema=0.0)
    assert train(dataset, tmp_path / "run", settings, "cpu")["steps"] < 400


def test_dose_specific_networks(dataset, tmp_path):
    result = train(dataset, tmp_path / "run", replace(TINY, method="dose-specific"), "cpu")
    assert list(result) == ["drf-4", "drf-20"]
    denoiser = Denoiser.load(tmp_path / "run", "cpu")
    ladder = read_ladder(dataset / "toy-1.h5")
    for dose, drf in ((1, 4.0), (2, 20.0)):
        assert denoiser.choose(ladder.levels[dose][0].relative)[1].drfs == (drf,)
        assert denoiser.choose(0.01, drf)[1].drfs == (drf,)
    (tmp_path / "run" / "drf-20" / "best.safetensors").unlink()
    with pytest.raises(DataError, match="drf-20"):
        Denoiser.load(tmp_path / "run", "cpu")


def test_two_processes_equal_one(dataset, tmp_path):
    """Gradients averaged over two processes of one patch each are those of one process with two."""
    settings = replace(TINY, max_steps=4, validate_every=4)
    train(dataset, tmp_path / "one", settings, "cpu")
    code = (
        "import json, sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from denoise.train import TrainSettings, train\n"
        "s = json.loads(sys.argv[3]); s['channels'] = tuple(s['channels']); s['drf'] = tuple(s['drf'])\n"
        "train(Path(sys.argv[1]), Path(sys.argv[2]), TrainSettings(**s), 'cpu')"
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    run = [sys.executable, "-c", code, str(dataset), str(tmp_path / "two"), json.dumps(asdict(settings))]
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(run, env=env | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    assert [p.wait(timeout=240) for p in processes] == [0, 0]
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    for k in one:
        torch.testing.assert_close(one[k], two[k], rtol=1e-3, atol=1e-5)


# Model files


def test_a_reloaded_model_gives_the_same_output(dataset, tmp_path):
    train(dataset, tmp_path / "run", TINY, "cpu")
    ladder = read_ladder(dataset / "toy-2.h5")
    first, again = (Denoiser.load(tmp_path / "run", "cpu")(ladder.image(2), ladder.spacing_mm).image for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_wrong_model_files_are_refused(dataset, tmp_path):
    train(dataset, tmp_path / "run", TINY, "cpu")
    good = tmp_path / "run" / "best.safetensors"
    tensors = load_file(good)
    from safetensors import safe_open

    with safe_open(good, "pt") as f:
        header = f.metadata()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-100])
    other = tmp_path / "other.safetensors"
    save_file(tensors, other, {"format": "something else"})
    changed = tmp_path / "changed.safetensors"
    save_file(tensors | {"network.leave.bias": tensors["network.leave.bias"] + 1}, changed, header)
    lacking = tmp_path / "lacking.safetensors"
    save_file({k: v for k, v in tensors.items() if k != "network.enter.weight"}, lacking, header)
    card = json.loads(header["card"])
    card["shape"]["channels"] = [10**9]
    crafted = tmp_path / "crafted.safetensors"
    save_file(tensors, crafted, header | {"card": json.dumps(card)})
    for field, value in (("noise_range", None), ("condition_range", [1]), ("drfs", []), ("condition", "mood")):
        strange = json.loads(header["card"]) | {field: value}
        path = tmp_path / f"{field}.safetensors"
        save_file(tensors, path, header | {"card": json.dumps(strange)})
        with pytest.raises(DataError, match="description"):
            load_model(path)
    messages = {
        cut: "not a readable", other: "not a model", changed: "does not give", lacking: "do not fit", crafted: "description",
        tmp_path / "none.safetensors": "no such model",
    }  # fmt: skip
    for path, message in messages.items():
        with pytest.raises(DataError, match=message):
            load_model(path)


# Denoisers


def test_windows_join_without_seams(dataset, tmp_path):
    """A network that leaves its input alone gives it back, whatever the shape of the volume."""
    from denoise.model_file import save_model

    train(dataset, tmp_path / "run", replace(TINY, max_steps=3), "cpu")
    network, card = load_model(tmp_path / "run" / "best.safetensors")
    torch.nn.init.zeros_(network.leave.weight)
    torch.nn.init.zeros_(network.leave.bias)
    save_model(tmp_path / "same.safetensors", network, card)
    image = np.random.default_rng(0).gamma(2, 1, (71, 13, 130)).astype(np.float32)
    out = Denoiser.load(tmp_path / "same.safetensors", "cpu")(image, card.voxel_mm)
    np.testing.assert_allclose(out.image, image, rtol=1e-5)


def test_warnings_strength_and_bad_volumes(dataset, tmp_path):
    train(dataset, tmp_path / "run", replace(TINY, method="direct"), "cpu")
    denoiser = Denoiser.load(tmp_path / "run", "cpu")
    ladder = read_ladder(dataset / "toy-0.h5")
    image = ladder.image(2)
    full, half, none = (denoiser(image, ladder.spacing_mm, strength=s).image for s in (1.0, 0.5, 0.0))
    np.testing.assert_array_equal(none, image)
    np.testing.assert_allclose(half, (full + image) / 2, atol=1e-5)
    assert denoiser(image, ladder.spacing_mm).warnings == ()
    assert "voxels are" in denoiser(image, (2.0, 2.0, 2.0)).warnings[0]
    rng = np.random.default_rng(0)
    noisy = image + rng.normal(0, 5, image.shape).astype(np.float32)
    assert "noise level" in denoiser(noisy, ladder.spacing_mm).warnings[0]
    image = image.copy()
    image[3, 3, 3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        denoiser(image, ladder.spacing_mm)
    with pytest.raises(DataError, match="no best"):
        Denoiser.load(tmp_path, "cpu")


def test_a_model_conditioned_on_dose_must_be_told(dataset, tmp_path):
    train(dataset, tmp_path / "run", replace(TINY, method="dose-conditioned", condition="drf"), "cpu")
    ladder = read_ladder(dataset / "toy-0.h5")
    with pytest.raises(UsageError, match="--drf"):
        Denoiser.load(tmp_path / "run", "cpu")(ladder.image(1), ladder.spacing_mm)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"patch": 17}, "multiple"), ({"patch": 32}, "--patch"), ({"drf": (7.0,)}, "--drf"), ({"batch": 0}, "--batch"),
     ({"ema": 1.0}, "--ema"), ({"seed": -1}, "--seed"), ({"channels": ()}, "--channels")],
)  # fmt: skip
def test_wrong_settings(dataset, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        train(dataset, tmp_path / "run", replace(TINY, **changes), "cpu")


def test_wrong_data(tmp_path):
    with pytest.raises(DataError, match="not a dataset"):
        read_split(tmp_path, "train", "noise-free")
    for name in "abc":
        write_subject(tmp_path / f"{name}.h5", replace(record(name, 0), noise_free=None, mode="dose"))
    write_index(tmp_path)
    with pytest.raises(DataError, match="noise-free"):
        read_split(tmp_path, "train", "noise-free")
    with pytest.raises(DataError, match="thinned"):
        read_split(tmp_path, "train", "complement")
    measured = read_split(tmp_path, "train", "full")[0]
    np.testing.assert_array_equal(measured.reference(), measured.image(0))
    bad = record("a", 0).images.copy()
    bad[1, 1, 3, 4, 5] = np.nan
    write_subject(tmp_path / "a.h5", replace(record("a", 0), images=bad))
    with pytest.raises(DataError, match="not finite"):
        read_ladder(tmp_path / "a.h5")
    write_subject(tmp_path / "b.h5", record("b", 0, suv_factor=None))
    with pytest.raises(DataError, match="SUV"):
        read_ladder(tmp_path / "b.h5")


def test_counts_that_nobody_knows_cannot_be_told(dataset, tmp_path):
    """Real scans at several doses come without counts: NEC is not a number."""
    folder = tmp_path / "real"
    folder.mkdir()
    for k in range(3):
        made = record(f"toy-{k}", k)
        write_subject(folder / f"toy-{k}.h5", replace(made, doses=made.doses | {"nec": np.full((3, 2), np.nan)}))
    write_index(folder)
    told = replace(TINY, method="dose-conditioned", condition="nec")
    with pytest.raises(DataError, match=r"^toy-[^\n]+noise-equivalent counts are not known[^\n]+--condition noise$"):
        train(folder, tmp_path / "run", told, "cpu")
    assert not (tmp_path / "run").exists()
    train(dataset, tmp_path / "run", told, "cpu")
    ladder = read_ladder(folder / "toy-0.h5")
    with pytest.raises(DataError, match=r"^the noise-equivalent counts of an image are not known[^\n]+$"):
        Denoiser.load(tmp_path / "run", "cpu")(ladder.image(1), ladder.spacing_mm, 4.0, float(ladder.log_nec_per_m[1, 0]))
