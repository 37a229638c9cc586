"""Generative models trained, kept, sampled, and written."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from data_recipes.errors import DataError, UsageError
from denoise.apply import ApplyOptions, apply
from denoise.cli import main
from denoise.denoiser import Denoiser
from denoise.diffusion.calibration import read_calibration
from denoise.diffusion.consistency import em_step
from denoise.diffusion.method import Anchors
from denoise.diffusion.settings import usual_settings, with_usual_doses
from denoise.evaluate import evaluate
from denoise.generate import Sampling
from denoise.model_file import read_card, save_model
from denoise.train import TrainSettings, train, with_doses

SMALL = {"channels": (4, 8), "patch": 8, "batch": 4, "max_steps": 12, "validate_every": 6, "drf": (20.0,)}
KINDS = {
    "ddpm": {},
    "map-diff": {"anchor_drfs": (4.0,), "clamp": True},
    "flow": {},
}


def settings(name, **given):
    own = {k: given.pop(k) for k in list(given) if k in SMALL or k in ("target", "seed", "dims")}
    return TrainSettings(method=name, diffusion=usual_settings(name, {**KINDS[name], **given}), **{**SMALL, **own})


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """A short run of each method, one with colored noise."""
    folder = tmp_path_factory.mktemp("generative")
    for name in KINDS:
        train(dataset, folder / name, settings(name, noise="measured" if name == "ddpm" else None), "cpu")
    return folder


def example(seed=0, shape=(24, 24, 16)):
    rng = np.random.default_rng(seed)
    image = np.zeros(shape, np.float32)
    image[5:19, 5:19, 2:14] = 1.0
    return image + 0.3 * rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", KINDS)
def test_models_describe_themselves(runs, name):
    card = read_card(runs / name / "best.safetensors")
    method = card.method
    assert method.name == name and (card.shape.images, card.shape.told) == (2, 32)
    assert (method.colored is not None) == (name == "ddpm")
    assert method.data_sd > 0.5 and len(method.errors) == 10 and len(method.starts) == 1
    assert (method.anchors is None) == (name != "map-diff")
    if name == "map-diff":
        assert method.anchors.drfs == method.beside == (4.0,) and 0 < method.anchors.times[0] < 1000


def test_resuming_equals_an_unbroken_run(dataset, tmp_path, monkeypatch):
    """Bit for bit, the noise and the times of every step included."""
    whole = settings("map-diff")
    train(dataset, tmp_path / "whole", whole, "cpu")

    class StopError(Exception):
        pass

    def stop(steps, error):
        if steps == 9:
            raise StopError

    with pytest.raises(StopError):
        train(dataset, tmp_path / "parts", whole, "cpu", stop)
    train(dataset, tmp_path / "parts", whole, "cpu")
    first, second = (torch.load(tmp_path / p / "state.pt", weights_only=True)["network"] for p in ("whole", "parts"))
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm", "heun"])
def test_sampling_is_a_function_of_the_seed(runs, name, sampler):
    def made(seed):
        return Denoiser.load(runs / name, "cpu", sampling=Sampling(sampler, 3, seed=seed))(example(), (4.0, 4.0, 4.0)).image

    first = made(0)
    assert first.shape == (24, 24, 16) and np.isfinite(first).all()
    assert np.array_equal(first, made(0)) and not np.array_equal(first, made(1))


def test_samples_are_averaged_and_their_spread_is_given(runs):
    def made(samples, seed=0):
        denoiser = Denoiser.load(runs / "ddpm", "cpu", sampling=Sampling("ancestral", 3, samples=samples, seed=seed))
        return denoiser(example(), (4.0, 4.0, 4.0))

    three, one = made(3), made(1)
    assert one.spread is None and three.spread.shape == three.image.shape and three.spread.mean() > 0
    assert np.abs(three.image - one.image).max() > 0


def test_anchors_are_written(runs):
    sampling = Sampling("ddim", 4, anchors=True)
    found = Denoiser.load(runs / "map-diff", "cpu", sampling=sampling)(example(), (4.0, 4.0, 4.0))
    assert list(found.anchors) == [4.0] and not np.array_equal(found.anchors[4.0], found.image)
    for name in ("ddpm", "flow"):
        with pytest.raises(UsageError, match="--save-anchors"):
            Denoiser.load(runs / name, "cpu", sampling=sampling)(example(), (4.0, 4.0, 4.0))


def test_start_from_the_input(runs):
    """At the time that its noise stands for: a noisier input starts later in the schedule."""
    from denoise.generate import _start_time

    method = read_card(runs / "ddpm" / "best.safetensors").method
    (level, ratio), schedule = method.starts[0], method.schedule
    assert schedule.ratio(_start_time(method, level)) == pytest.approx(ratio, rel=1e-3)
    assert schedule.ratio(_start_time(method, 2 * level)) == pytest.approx(2 * ratio, rel=1e-3)
    sampling = Sampling("ddim", 3, "input")
    found = Denoiser.load(runs / "ddpm", "cpu", sampling=sampling)(example(), (4.0, 4.0, 4.0))
    assert np.isfinite(found.image).all()


def test_windows_share_noise(runs, monkeypatch):
    """A volume sampled in one window and in many, where a network sees no further than their overlap, are the same."""
    import denoise.windows

    image = example(shape=(24, 24, 120))
    sampling = Sampling("ancestral", 4)
    whole = Denoiser.load(runs / "flow", "cpu", sampling=sampling)(image, (4.0, 4.0, 4.0)).image
    monkeypatch.setattr(denoise.windows, "EDGES", (64,))
    parts = Denoiser.load(runs / "flow", "cpu", sampling=sampling)(image, (4.0, 4.0, 4.0)).image
    assert np.abs(parts - whole).max() < 0.02 * whole.max()


def test_data_consistency(runs):
    """Estimates pass through the correction: one that knows the counts of a part brings it there."""
    known = example(3)
    seen = np.zeros(known.shape, bool)
    seen[8:16, 8:16] = True
    denoiser = Denoiser.load(runs / "flow", "cpu", sampling=Sampling("ddim", 3))
    free = denoiser(example(), (4.0, 4.0, 4.0)).image
    held = denoiser(example(), (4.0, 4.0, 4.0), correct=lambda suv: np.where(seen, known, suv)).image
    limit = 1.5 * example().max()
    assert np.allclose(held[seen], np.clip(known, -limit, limit)[seen], atol=1e-5)
    assert not np.allclose(free[seen], known[seen], atol=0.05)


def test_em_step_raises_the_likelihood():
    """A step of maximum likelihood on a small system with a background."""
    rng = np.random.default_rng(0)
    matrix = rng.random((30, 12)).astype(np.float32)
    truth, background = rng.random(12) * 50 + 1, np.full(30, 4.0)
    counts = rng.poisson(matrix @ truth + background).astype(float)
    step = em_step(lambda x: matrix @ x, lambda y: matrix.T @ y, counts, background, matrix.sum(axis=0), bqml_per_suv=10.0)

    def likelihood(suv):
        expected = matrix @ (10 * suv) + background
        return np.sum(counts * np.log(expected) - expected)

    suv = np.full(12, 0.5, np.float32)
    for _ in range(5):
        stepped = step(suv)
        assert likelihood(stepped) > likelihood(suv)
        suv = stepped
    assert step(np.full(12, -1.0, np.float32)).max() == 0


def test_apply_writes_spread_and_anchors(runs, tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(example(), np.diag([4.0, 4.0, 4.0, 1.0])), path)
    sampling = Sampling("ancestral", 3, samples=2, anchors=True)
    options = ApplyOptions(source_units="suv", device="cpu", sampling=sampling)
    apply(runs / "map-diff", [path], tmp_path / "out.nii.gz", options)
    names = {p.name for p in tmp_path.glob("out*")}
    assert names == {"out.nii.gz", "out_spread.nii.gz", "out_drf-004.nii.gz"}
    spread = nib.load(tmp_path / "out_spread.nii.gz").get_fdata()
    assert (spread >= 0).all() and spread.max() > 0
    # One of the files in the way: none is written.
    (tmp_path / "out.nii.gz").unlink()
    with pytest.raises(DataError, match=r"out_spread\.nii\.gz exists"):
        apply(runs / "map-diff", [path], tmp_path / "out.nii.gz", options)
    assert not (tmp_path / "out.nii.gz").exists()


def test_evaluate_takes_generative_runs(runs, dataset):
    found = evaluate([runs / "flow"], dataset, "test", "cpu")
    assert {row["method"] for row in found.rows} == {"identity", "gaussian", "non-local means", "flow"}


def test_ladder_and_other_predictions_train(dataset, tmp_path):
    for k, given in enumerate(({"way": "ladder"}, {"prediction": "v"})):
        train(dataset, tmp_path / str(k), settings("flow", **given), "cpu")
        found = Denoiser.load(tmp_path / str(k), "cpu", sampling=Sampling("ddim", 2))(example(), (4.0, 4.0, 4.0))
        assert np.isfinite(found.image).all()
    with pytest.raises(UsageError, match="--sampler ancestral: adds noise"):
        Denoiser.load(tmp_path / "0", "cpu", sampling=Sampling("ancestral", 2))(example(), (4.0, 4.0, 4.0))
    train(dataset, tmp_path / "edm", settings("ddpm", schedule="edm", prediction="v"), "cpu")
    with pytest.raises(UsageError, match="--start input: this model starts from the input"):
        Denoiser.load(tmp_path / "0", "cpu", sampling=Sampling("ddim", 2, "input"))(example(), (4.0, 4.0, 4.0))


def test_usual_doses(dataset):
    """Map-diff: DRF 20 with 2, 4 and 10, else the highest dose reduction with all between; of a file what lies below."""

    def doses(own, inputs=(), **given):
        inputs, found = with_usual_doses(usual_settings("map-diff", given), own, inputs)
        return inputs, found.anchor_drfs if found.anchors is None else found.anchors.drfs

    assert doses((1.0, 2.0, 4.0, 10.0, 20.0, 50.0)) == ((20.0,), (2.0, 4.0, 10.0))
    assert doses((1.0, 4.0, 50.0, 100.0)) == ((100.0,), (4.0, 50.0))
    assert doses((1.0, 2.0, 4.0, 20.0), (4.0,)) == ((4.0,), (2.0,))
    assert doses((1.0, 4.0, 20.0), anchors=Anchors((4.0, 20.0), (5.0, 9.0), "x")) == ((20.0,), (4.0,))
    for given in ({}, {"anchors": Anchors((20.0, 50.0), (5.0, 9.0), "x")}):
        with pytest.raises(UsageError, match="--drf-set map-diff"):
            doses((1.0, 20.0), **given)
    found = with_doses(dataset, TrainSettings(method="ddpm", diffusion=usual_settings("ddpm", {})))
    assert found.drf == (4.0, 20.0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"target": "complement"}, "--target complement: a generative model would learn its noise"),
        ({"dims": "2"}, "--dims 2"),
        ({"drf": (4.0,)}, "--drf: inputs must lie above the anchors"),
        ({"bound": -1.0}, "--bound"),
        ({"anchor_weight": -1.0}, "--anchor-weight"),
    ],
)
def test_refusals(dataset, tmp_path, given, says):
    with pytest.raises(UsageError, match=says):
        train(dataset, tmp_path / "run", settings("map-diff", **given), "cpu")


def command(monkeypatch, capsys, *argv):
    monkeypatch.setattr("sys.argv", ["denoise", *map(str, argv)])
    try:
        main()
        status = 0
    except SystemExit as done:
        status = done.code
    return status, capsys.readouterr()


def test_from_calibration_to_images_by_commands(dataset, tmp_path, monkeypatch, capsys):
    """As a user does it; anchors of another scale, noise or method are refused in one line."""
    anchors, run = tmp_path / "anchors.json", tmp_path / "run"
    calibration = ["calibrate-anchors", "--data", dataset, "--drf", 4, "--out", anchors]
    status, said = command(monkeypatch, capsys, *calibration, "--json")
    assert status == 0 and "DRF 4: time" in said.out
    assert json.loads(said.out.splitlines()[-1])["anchors"][0]["drf"] == 4
    assert anchors.with_suffix(".png").stat().st_size > 10_000
    training = ["train", "map-diff", "--data", dataset, "--out", run, "--anchors", anchors, "--channels", 4, 8, "--patch", 8,
                "--max-steps", 2, "--validate-every", 1, "--device", "cpu"]  # fmt: skip
    status, said = command(monkeypatch, capsys, *calibration[:-1], tmp_path / "anchors.png")
    assert status == 2 and "name a .json file" in said.err
    status, said = command(monkeypatch, capsys, *training)
    assert status == 0, said.err
    assert read_card(run / "best.safetensors").method.anchors == read_calibration(anchors).anchors
    for more, says in (
        (("--scale-suv", 4), "--anchors: were calibrated with another schedule"),
        (("--schedule", "cosine"), "--anchors: were calibrated with another schedule"),
        (("--target", "full"), "--anchors: were calibrated with another schedule"),
        (("--noise", "measured"), "--anchors: were calibrated with another schedule"),
        (("--anchor-drfs", 10), "--anchors: anchors.json has 4, not 10"),
    ):
        status, said = command(monkeypatch, capsys, *training[:5], tmp_path / "other", *training[6:], *more)
        assert status == 2 and says in said.err and len(said.err.splitlines()) == 1, said.err
    status, said = command(monkeypatch, capsys, "train", "residual", "--data", dataset, "--out", tmp_path / "x", "--clamp")
    assert status == 2 and "--clamp: residual is not generative" in said.err
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(example(), np.diag([4.0, 4.0, 4.0, 1.0])), path)
    applying = ["apply", run, path, "--source-units", "suv", "--save-anchors", "--device", "cpu"]
    status, said = command(monkeypatch, capsys, *applying, "--out", tmp_path / "out.nii.gz", "--steps", 3)
    assert status == 0 and (tmp_path / "out_drf-004.nii.gz").exists()
    status, said = command(monkeypatch, capsys, *applying, "--out", tmp_path / "b.nii.gz", "--steps", 1)
    assert status == 2 and "--steps: 1 evaluations cannot stop at 1 anchors" in said.err


def test_crafted_cards(runs, tmp_path):
    from dataclasses import replace

    from denoise.model_file import load_model

    network, card = load_model(runs / "flow" / "best.safetensors")
    for changed in ({"data_sd": -1.0}, {"prediction": "x"}, {"way": "x"}, {"data_sd": float("nan")}):
        method = object.__new__(type(card.method))
        object.__setattr__(method, "__dict__", {**card.method.__dict__, **changed})
        path = tmp_path / "crafted.safetensors"
        try:
            save_model(path, network, replace(card, method=method))
        except ValueError:
            continue
        with pytest.raises(DataError, match=r"description is damaged|tensors do not fit|stored with it"):
            load_model(path)
