"""Training of UniPET and of the conditional GAN: stages, resuming, models that denoise."""

import csv
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from denoise_data import make_dataset
from safetensors.torch import load_file

from data_recipes.errors import DataError, UsageError
from denoise import cli
from denoise.adversarial.settings import AdversarialSettings
from denoise.data import Patches, read_ladder, read_split
from denoise.denoiser import Denoiser
from denoise.evaluate import evaluate
from denoise.model_file import load_model, read_card
from denoise.networks.unipet import UniPETShape
from denoise.train import train
from denoise.train_adversarial import mixes_of
from denoise.train_settings import TrainSettings
from denoise.windows import in_tiles, in_windows

UNIPET = AdversarialSettings("unipet", blocks=1, critic_width=2, critic_steps=1, adversarial_steps=3)
CGAN = replace(UNIPET, name="cgan", align="off", mask="off")
TINY = TrainSettings(
    method="unipet", loss="l1", target="full", channels=(16,), patch=32, batch=2, max_steps=3, validate_every=2, ema=0.5,
    drf=(4.0, 20.0), adversarial=UNIPET,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_patches():
    """Validation takes most of the time of so short a training."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("denoise.feed.VALIDATION_PATCHES", 1)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "toy", 4, shape=(36, 32, 32))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(data, folder, TINY, "cpu")
    return folder


def logged(run):
    return list(csv.DictReader((run / "log.csv").read_text().splitlines()))


def unipet(**given):
    return replace(TINY, adversarial=replace(UNIPET, **given))


def test_both_stages_leave_their_models(run):
    first, last = (load_file(run / f"{name}.safetensors") for name in ("stage-1", "last"))
    assert any(not torch.equal(first[k], last[k]) for k in first if k.startswith("network."))
    rows = logged(run)
    # Three steps of reconstruction, one of the critic, three of both.
    assert [(r["step"], r["stage"]) for r in rows] == [("2", "1"), ("3", "1"), ("4", "2"), ("6", "3"), ("7", "3")]
    assert rows[0]["alignment"] == "nan" and float(rows[-1]["alignment"]) > 0
    assert [r["validation_error"] == "nan" for r in rows] == [False, False, True, False, False]
    assert read_card(run / "last.safetensors").steps == 7
    shares = json.loads((run / "mask.json").read_text())
    assert {(s["mask"], s["threshold"]) for s in shares} >= {("absolute", 1e-3), ("relative", 3.0)}
    assert all(0 <= s["liver"] <= 1 and 0 <= s["lesions"] <= 1 for s in shares)


def test_the_model_denoises_and_is_evaluated(data, run, tmp_path):
    card = read_card(run / "best.safetensors")
    assert card.method.name == "unipet" and card.shape == UniPETShape((16,), 1, True, "shared", 32)
    ladder = read_ladder(data / "toy-0.h5")
    soft, hard = (Denoiser.load(run, "cpu", hard=h)(ladder.image(2), ladder.spacing_mm).image for h in (False, True))
    assert soft.shape == hard.shape == ladder.shape and np.isfinite(soft).all()
    assert not np.array_equal(soft, hard)
    methods = {row["method"] for row in evaluate([run], data, "test", "cpu").rows}
    assert run.name in methods
    low = tmp_path / "low.nii.gz"
    nib.Nifti1Image(ladder.image(2), np.diag([4, 4, 4, 1])).to_filename(low)
    command = ["apply", str(run), str(low), "--out", str(tmp_path / "out.nii.gz"), "--source-units", "suv"]
    cli._run(cli.parse([*command, "--device", "cpu", "--stitching", "hard"]))
    np.testing.assert_allclose(nib.Nifti1Image.from_filename(tmp_path / "out.nii.gz").get_fdata(), hard, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        unipet(align="mean", slopes="separate", base="frozen"), unipet(mask="relative", threshold=1.5),
        unipet(style="mixstyle", align="off", mask="off"), unipet(style="off", align="full", adversarial_weight=0.0),
        unipet(adversarial_steps=0), replace(TINY, target="noise-free"),
        replace(TINY, method="cgan", channels=(4, 8), adversarial=CGAN),
    ],
)  # fmt: skip
def test_every_kind_trains(data, tmp_path, settings):
    own = settings.adversarial
    result = train(data, tmp_path / "run", settings, "cpu")
    critic_alone = 1 if own.adversarial_weight > 0 and own.adversarial_steps > 0 else 0
    assert result["steps"] == 3 + critic_alone + own.adversarial_steps
    assert load_model(tmp_path / "run" / "last.safetensors")[1].method.name == settings.method
    if own.base == "frozen":
        first, last = (load_model(tmp_path / "run" / f"{n}.safetensors")[0] for n in ("stage-1", "last"))
        assert all(torch.equal(a, b) for a, b in zip(first.base_parameters(), last.base_parameters(), strict=True))
        assert not torch.equal(first.encoder[0].enter.weight, last.encoder[0].enter.weight)


@pytest.mark.parametrize("at", [2, 4, 6])
def test_resuming_equals_an_unbroken_run_to_the_bit(data, run, tmp_path, at):
    def stop(steps, error):
        if steps == at + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "broken", TINY, "cpu", stop)
    train(data, tmp_path / "broken", TINY, "cpu")
    for name in ("last", "best", "stage-1"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (run, tmp_path / "broken"))
        assert all(torch.equal(one[k], other[k]) for k in one)
    assert (run / "log.csv").read_text() == (tmp_path / "broken" / "log.csv").read_text()


def test_the_second_stage_starts_from_a_given_model(data, run, tmp_path):
    first = run / "stage-1.safetensors"
    result = train(data, tmp_path / "run", TINY, "cpu", pretrained=first)
    assert result["steps"] == 4
    assert (tmp_path / "run" / "stage-1.safetensors").read_bytes() == first.read_bytes()
    with pytest.raises(UsageError, match="another network"):
        train(data, tmp_path / "other", replace(TINY, adversarial=replace(UNIPET, blocks=2)), "cpu", pretrained=first)
    with pytest.raises(DataError, match="other settings"):
        train(data, tmp_path / "run", TINY, "cpu")


def test_training_stops_early_in_the_first_stage_alone(data, tmp_path):
    settings = replace(TINY, max_steps=50, validate_every=1, patience=1, learning_rate=0.5, clip_norm=1e9, ema=0.0)
    result = train(data, tmp_path / "run", settings, "cpu")
    steps = [(int(r["step"]), r["stage"]) for r in logged(tmp_path / "run")]
    assert len([s for s, stage in steps if stage == "1"]) < 50
    assert [s for s, stage in steps if stage == "3"] == [52, 53, 54] and result["steps"] == 54


def test_noise_free_patches_lie_where_the_others_do(data):
    ladders = read_split(data, "train", "full")
    batch = Patches(ladders, (4.0,), (16, 16, 16), 1, "noise", "noise-free", 0, rotate=True, clean=True).batch(0, range(4))
    np.testing.assert_array_equal(batch.clean, batch.target)
    assert not Patches(ladders, (4.0,), (16, 16, 16), 1, "noise", "full", 0).batch(0, [0]).clean.size


def test_mixing_is_a_function_of_the_seed():
    several = [mixes_of([seed, 1, 2], torch.device("cpu")) for seed in range(40)]
    assert 10 < sum(len(m) == 2 for m in several) < 30 and all(len(m) in (0, 2) for m in several)
    one = next(m for m in several if m)
    again = mixes_of([next(k for k, m in enumerate(several) if m), 1, 2], torch.device("cpu"))
    assert torch.equal(one[0].share, again[0].share) and sorted(one[0].partner.tolist()) == [0, 1, 2]


# Volumes


def test_tiles_are_put_together_as_published():
    """A network that tells from which tile a voxel is: the next tile counts from 29 of its 64 voxels on."""
    shape, told = UniPETShape(tile=64), []

    def run(x):
        told.append(len(told))
        return torch.full_like(x, told[-1])

    out = in_tiles(run, shape, np.zeros((96, 64, 64), np.float32), torch.device("cpu"))
    assert told == [0, 1] and (out[:61] == 0).all() and (out[61:] == 1).all()
    told.clear()
    # 66 voxels become 96, with 15 zeros on both sides.
    out = in_tiles(run, shape, np.zeros((66, 30, 64), np.float32), torch.device("cpu"))
    assert out.shape == (66, 30, 64) and (out[: 61 - 15] == 0).all() and (out[61 - 15 :] == 1).all()


@pytest.mark.parametrize("put", [in_tiles, lambda run, shape, image, device: in_windows(run, shape, image[None], device)])
def test_tiles_give_back_what_a_network_leaves(put):
    image, sizes = np.random.default_rng(0).random((50, 37, 33)).astype(np.float32), []

    def run(x):
        sizes.append(tuple(x.shape[2:]))
        return x

    np.testing.assert_allclose(put(run, UniPETShape((16,), tile=32), image, torch.device("cpu")), image, rtol=1e-6)
    assert set(sizes) == {(32, 32, 32)}


def test_hard_stitching_is_refused_elsewhere(data, tmp_path):
    train(data, tmp_path / "run", TrainSettings(channels=(2,), patch=8, batch=2, max_steps=2, validate_every=2), "cpu")
    with pytest.raises(UsageError, match="unipet alone"):
        Denoiser.load(tmp_path / "run", "cpu", hard=True)


# The command line


def test_the_command_trains_with_published_settings_unless_told(data, tmp_path, monkeypatch):
    given = {}

    def fake(data, run, settings, *rest):
        given["settings"] = settings
        return {"steps": 0, "validation_error": 0.0}

    monkeypatch.setattr("denoise.train.train", fake)
    command = ["--data", str(data), "--out", str(tmp_path / "run")]
    cli._run(cli.parse(["train", "unipet", *command]))
    settings = given["settings"]
    assert settings.adversarial == AdversarialSettings("unipet") and settings.channels == (64,) and settings.loss == "l1"
    assert (settings.patch, settings.batch, settings.target, settings.learning_rate) == (64, 2, "full", 1e-4)
    assert (settings.scaling.scale_suv, settings.scaling.clip_suv) == (20, 20)
    cli._run(cli.parse(["train", "unipet", *command, "--mask", "relative", "--style", "mixstyle", "--patch", "32"]))
    own = given["settings"].adversarial
    assert (own.mask, own.limit, own.style, own.align, given["settings"].patch) == ("relative", 3.0, "mixstyle", "off", 32)
    cli._run(cli.parse(["train", "cgan", *command]))
    assert given["settings"].channels == (16, 32, 64) and given["settings"].adversarial.mask == "off"
    cli._run(cli.parse(["train", "residual", *command]))
    assert given["settings"] == TrainSettings(drf=given["settings"].drf)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["residual", "--mask", "off"], "--mask: residual has no critic"),
        (["unipet", "--mask", "relative", "--target", "noise-free"], "--mask relative: a noise-free target"),
        (["unipet", "--target", "complement"], "--target complement"),
        (["unipet", "--patch", "48"], "--patch: 48 is no multiple of 32"),
        (["unipet", "--channels", "20"], "--channels: unipet takes one number"),
        (["unipet", "--style", "off", "--base", "frozen"], "--base frozen"),
        (["unipet", "--mask", "off", "--threshold", "1"], "--threshold: there is no mask"),
        (["cgan", "--mask", "absolute"], "cgan has neither"),
        (["residual", "--pretrained", "x"], "--pretrained: residual has one stage"),
        (["unipet", "--batch", "1", "--style", "mixstyle"], "--style mixstyle"),
    ],
)  # fmt: skip
def test_wrong_flags(data, tmp_path, words, message):
    with pytest.raises(UsageError, match=message):
        cli._run(cli.parse(["train", *words, "--data", str(data), "--out", str(tmp_path / "run")]))
    assert not (tmp_path / "run").exists()
