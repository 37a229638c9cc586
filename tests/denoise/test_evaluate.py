"""Evaluation and application of runs, as their user sees them."""

import csv
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from denoise_data import SHAPE, record

from data_recipes.errors import DataError, UsageError
from denoise import cli
from denoise.apply import ApplyOptions, apply
from denoise.conventions import over_doses
from denoise.data import read_ladder
from denoise.diffusion.calibration import cases_of_ladders
from denoise.evaluate import evaluate, evaluate_subject, summarize
from denoise.report import markdown
from denoise.train import TrainSettings, train
from petsim.cache.store import write_index, write_subject


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "residual"
    settings = TrainSettings(channels=(8, 16), patch=16, batch=4, max_steps=150, validate_every=50, learning_rate=3e-3)
    train(dataset, folder, settings, "cpu")
    return folder


@pytest.fixture(scope="module")
def evaluation(run, dataset):
    return evaluate([run], dataset, "all", "cpu")


def rows(evaluation, method, drf):
    return [r for r in evaluation.rows if r["method"] == method and r["drf"] == drf]


def test_the_input_gains_nothing_and_has_its_own_dose(evaluation):
    for drf in (4.0, 20.0):
        for row in rows(evaluation, "identity", drf):
            assert row["gain_db"] == pytest.approx(0)
            assert row["fraction_of_ceiling"] == pytest.approx(0)
            assert row["equivalent_counts"] == pytest.approx(1 / drf, rel=1e-6)
    for row in rows(evaluation, "identity", 1.0):
        assert row["equivalent_counts"] == pytest.approx(1)


def test_unbiased_noise_has_variance_in_proportion_to_drf_and_no_bias(evaluation):
    means = {d: np.mean([r["variance"] for r in rows(evaluation, "identity", d)]) for d in (1.0, 4.0, 20.0)}
    assert means[4.0] / means[1.0] == pytest.approx(4, rel=0.1)
    assert means[20.0] / means[1.0] == pytest.approx(20, rel=0.1)
    for drf in means:
        bias = np.mean([r["squared_bias"] for r in rows(evaluation, "identity", drf)])
        assert abs(bias) < 0.15 * means[drf]


def test_filters_and_networks_gain_at_low_dose_and_lose_no_activity(evaluation):
    for method in ("gaussian", "non-local means", "residual"):
        for row in rows(evaluation, method, 20.0):
            assert row["gain_db"] > 1
            assert row["fraction_of_ceiling"] < 1
            assert row["total_activity"] == pytest.approx(1, abs=0.1)
    assert evaluation.tuned["gaussian"]["20"] > evaluation.tuned["gaussian"]["1"]


def test_organs_and_lesions_of_the_input(evaluation):
    for row in rows(evaluation, "identity", 4.0):
        assert row["missed_lesions"] == 0
        assert row["lesion_contrast"] == pytest.approx(1, abs=0.15)
    assert {o["organ"] for o in evaluation.organs} == {"liver"}
    ratios = [o["suv_mean_ratio"] for o in evaluation.organs if o["method"] == "identity"]
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)


def test_summary_is_over_patients():
    made = [
        {"subject": f"s{k}", "scanner": "x", "drf": 4.0, "method": m, "nrmse": v + 0.01 * k, "gain_db": g, "other": math.nan}
        for k in range(12)
        for m, v, g in (("gaussian", 0.5, 1.0), ("net", 0.3, 3.0))
    ]
    gaussian, net = summarize(made, 0)
    assert net["subjects"] == 12 and net["gain_db"] == 3 and net["gain_db_low"] == net["gain_db_high"] == 3
    assert net["nrmse"] == pytest.approx(0.355)
    assert net["nrmse_low"] < net["nrmse"] < net["nrmse_high"]
    assert net["other"] is None and "p_against_gaussian" not in gaussian
    assert net["p_against_gaussian"] == pytest.approx(2 / 2**12)
    assert "p_against_gaussian" not in summarize([r for r in made if r["subject"] != "s3"], 0)[1]


def test_a_measured_image_is_compared_with_its_full_dose(run, tmp_path):
    subject = replace(record("scan", 5, realizations=1), noise_free=None)
    write_subject(tmp_path / "scan.h5", subject)
    write_index(tmp_path)
    found = evaluate([run], tmp_path, "all", "cpu")
    assert found.target_kind == "nested"
    identity = {r["drf"]: r for r in found.rows if r["method"] == "identity"}
    assert identity[1.0]["nrmse"] == 0 and identity[4.0]["gain_db"] == pytest.approx(0)
    assert {r["reference"] for r in found.rows} == {"full dose"}
    # Noisy truth serves no ceiling, bias or equivalent dose, with several realizations either.
    write_subject(tmp_path / "scan.h5", replace(record("scan", 5), noise_free=None))
    write_index(tmp_path)
    again = evaluate([run], tmp_path, "all", "cpu")
    assert again.target_kind == "nested" and not again.spectra.keys() - {
        "identity",
        "gaussian",
        "non-local means",
        "residual",
    }
    for row in (*found.rows, *again.rows):
        assert not row.keys() & {"fraction_of_ceiling", "equivalent_counts", "squared_bias", "variance"}
        assert row["drf"] == 1 or "gain_db" in row


def test_the_ceiling_is_that_of_the_counts(run, dataset, tmp_path):
    """Thinned counts: D is the dose reduction factor. A lower injection loses randoms too: the measured ratio."""
    rows = evaluate([run], dataset, "test", "cpu").rows
    one = next(r for r in rows if r["method"] == "residual" and r["drf"] == 20)
    assert one["fraction_of_ceiling"] == pytest.approx(one["gain_db"] / (10 * math.log10(21)))
    subject = record("nested", 6, realizations=1)
    write_subject(tmp_path / "nested.h5", subject)
    write_subject(tmp_path / "other.h5", replace(subject, name="other", mode="dose"))
    write_index(tmp_path)
    thin, dose = (
        next(
            r
            for r in evaluate([run], tmp_path, "all", "cpu").rows
            if (r["subject"], r["method"], r["drf"]) == (s, "residual", 20)
        )
        for s in ("nested", "other")
    )
    assert thin["fraction_of_ceiling"] == pytest.approx(thin["gain_db"] / (10 * math.log10(20)))
    assert dose["gain_db"] == pytest.approx(thin["gain_db"])
    assert dose["fraction_of_ceiling"] == pytest.approx(thin["fraction_of_ceiling"], rel=0.1)
    assert dose["fraction_of_ceiling"] != thin["fraction_of_ceiling"]


def test_command_line_from_training_to_the_page(dataset, tmp_path, capsys, monkeypatch):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["denoise", *map(str, words), "--json"])
        cli.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    small = ("--channels", 4, 8, "--patch", 16, "--max-steps", 4, "--validate-every", 2, "--device", "cpu")
    assert call("train", "dose-specific", "--data", dataset, "--out", tmp_path / "each", *small)["drf-4"]["steps"] == 4
    assert call("train", "direct", "--data", dataset, "--out", tmp_path / "one", *small)["steps"] == 4
    out = tmp_path / "evaluation"
    result = call("evaluate", tmp_path / "each", tmp_path / "one", "--data", dataset, "--out", out, "--device", "cpu")
    assert {line["method"] for line in result["summary"]} == {"identity", "gaussian", "non-local means", "each", "one"}
    with (out / "summary.csv").open() as f:
        assert len(list(csv.DictReader(f))) == 15
    page = (out / "index.html").read_text()
    assert page.count("data:image/png") == 3 and "http" not in page.replace("http-equiv", "")
    assert "noise-free" in (out / "summary.md").read_text()


def nifti(path, affine=None, unit_factor=1.0, seed=0):
    image = np.maximum(record("x", seed).images[2, 0] * np.float32(0.001 * unit_factor), 0)
    nib.save(nib.Nifti1Image(image, np.diag([4.0, 4.0, 4.0, 1.0]) if affine is None else affine), path)
    return image


def test_nifti_comes_back_with_its_affine_in_its_unit(run, tmp_path):
    affine = np.array([[0, -4, 0, 10], [4, 0, 0, -7], [0, 0, -4, 3], [0, 0, 0, 1]], float)
    image = nifti(tmp_path / "a.nii.gz", affine)
    result = apply(run, [tmp_path / "a.nii.gz"], tmp_path / "out.nii.gz", ApplyOptions(source_units="suv", device="cpu"))
    back = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(back.affine, affine)
    assert back.shape == SHAPE and result[0]["warnings"] == []
    clean = record("x", 0).noise_free * 0.001
    error = [np.sqrt(np.mean((x - clean) ** 2)) for x in (np.asarray(back.dataobj), image)]
    assert error[0] < 0.8 * error[1]


def test_units_are_kept(run, tmp_path):
    nifti(tmp_path / "suv.nii")
    nifti(tmp_path / "bqml.nii", unit_factor=5000.0)
    apply(run, [tmp_path / "suv.nii"], tmp_path / "suv_out.nii", ApplyOptions(source_units="suv", device="cpu"))
    # 70 kg and 350 MBq at scan start: 1 SUV is 5000 Bq/mL.
    options = ApplyOptions(source_units="bqml", weight_kg=70.0, activity_mbq=350.0, uptake_s=0.0, device="cpu")
    apply(run, [tmp_path / "bqml.nii"], tmp_path / "bqml_out.nii", options)
    one, other = (np.asarray(nib.load(tmp_path / f"{name}_out.nii").dataobj) for name in ("suv", "bqml"))
    np.testing.assert_allclose(other, 5000 * one, rtol=2e-3, atol=5)


def test_several_inputs_and_strength(run, tmp_path):
    for name in ("a", "b"):
        image = nifti(tmp_path / f"{name}.nii", seed=ord(name))
    options = ApplyOptions(source_units="suv", strength=0.0, device="cpu")
    results = apply(run, [tmp_path / "a.nii", tmp_path / "b.nii"], tmp_path / "out", options)
    assert [r["name"] for r in results] == ["a.nii", "b.nii"]
    np.testing.assert_allclose(np.asarray(nib.load(tmp_path / "out" / "b.nii").dataobj), image, rtol=1e-6)


def test_bad_inputs(run, tmp_path):
    nifti(tmp_path / "a.nii")
    out = tmp_path / "out.nii"
    with pytest.raises(DataError, match="--source-units"):
        apply(run, [tmp_path / "a.nii"], out, ApplyOptions(device="cpu"))
    with pytest.raises(DataError, match="--weight-kg"):
        apply(run, [tmp_path / "a.nii"], out, ApplyOptions(source_units="bqml", device="cpu"))
    with pytest.raises(DataError, match="none"):
        apply(run, [tmp_path / "none.nii"], out, ApplyOptions(source_units="suv", device="cpu"))
    broken = nib.Nifti1Image(np.full(SHAPE, np.nan, np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))
    nib.save(broken, tmp_path / "nan.nii")
    with pytest.raises(DataError):
        apply(run, [tmp_path / "nan.nii"], out, ApplyOptions(source_units="suv", device="cpu"))
    with pytest.raises(UsageError, match="--strength"):
        ApplyOptions(strength=2)
    with pytest.raises(UsageError, match="--nec-per-m"):
        ApplyOptions(nec_per_m=0)
    flat = nib.Nifti1Image(np.full(SHAPE, 2, np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))
    nib.save(flat, tmp_path / "flat.nii")
    with pytest.raises(DataError, match="no noise"):
        apply(run, [tmp_path / "flat.nii"], out, ApplyOptions(source_units="suv", device="cpu"))
    assert not out.exists()
    out.touch()
    with pytest.raises(DataError, match="--overwrite"):
        apply(run, [tmp_path / "none.nii"], out, ApplyOptions(source_units="suv", device="cpu"))


def test_a_model_told_the_counts_can_be_told_them(dataset, tmp_path):
    settings = TrainSettings(
        method="dose-conditioned", condition="nec", channels=(4, 8), patch=16, max_steps=2, validate_every=2
    )
    train(dataset, tmp_path / "run", settings, "cpu")
    nifti(tmp_path / "a.nii")
    inputs, out = [tmp_path / "a.nii"], tmp_path / "out"
    with pytest.raises(UsageError, match="--nec-per-m"):
        apply(tmp_path / "run", inputs, out, ApplyOptions(source_units="suv", device="cpu"))
    inside = ApplyOptions(source_units="suv", device="cpu", nec_per_m=1e8 / 4 / 0.064)
    assert apply(tmp_path / "run", inputs, out, inside)[0]["warnings"] == []
    beyond = replace(inside, nec_per_m=1e12, overwrite=True)
    assert "extrapolation" in apply(tmp_path / "run", inputs, out, beyond)[0]["warnings"][0]


def test_dicom_comes_back_as_a_derived_series(dataset, real_data, tmp_path):
    """The real scan's own units, grid and number of slices; the model warns, since it was trained for other voxels."""
    from data_recipes.readers.read import read_source

    folder = Path(real_data("wholebody_fdg_dicom/image"))
    settings = TrainSettings(channels=(2,), dims="2", patch=16, max_steps=2, validate_every=2)
    train(dataset, tmp_path / "run", settings, "cpu")
    result = apply(tmp_path / "run", [folder], tmp_path / "out", ApplyOptions(device="cpu", strength=0.5))
    assert any("voxels" in w for w in result[0]["warnings"])
    before, after = read_source(folder), read_source(tmp_path / "out")
    assert before.grid == after.grid
    assert after.activity_bqml.sum() == pytest.approx(before.activity_bqml.sum(), rel=0.2)


def test_parsing_imports_nothing_heavy():
    code = (
        "import sys, denoise.cli; denoise.cli.parse(['evaluate', 'x', '--data', 'y']);"
        "print({'torch', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_named_conventions(run, dataset):
    found = evaluate([run], dataset, "all", "cpu", conventions=("unipet", "challenge"))
    path = dataset / "toy-0.h5"
    ladder = read_ladder(path)
    image, full = ladder.image(2), ladder.image(0, 1)
    row = next(r for r in found.rows if (r["subject"], r["method"], r["drf"]) == ("toy-0", "identity", 20.0))
    a, b = np.clip(image, 0, 20).astype(np.float64), np.clip(full, 0, 20).astype(np.float64)
    assert row["unipet_psnr_db"] == pytest.approx(10 * math.log10(400 / np.mean((a - b) ** 2)))
    assert row["challenge_nrmse"] == pytest.approx(np.sqrt(np.mean((image - full) ** 2) / np.mean(full**2)), rel=1e-4)
    (identity,) = (m for m in over_doses(found.summary) if m["method"] == "identity")
    by_dose = {s["drf"]: s["challenge_nrmse"] for s in found.summary if s["method"] == "identity"}
    assert identity["drfs"] == [4.0, 20.0]
    assert identity["challenge_nrmse"] == pytest.approx((0.05 * by_dose[4.0] + 0.20 * by_dose[20.0]) / 0.25)
    text = markdown(found, {})
    assert "UniPET's SSIM" in text and "its script is not public" in text
    assert "UniPET" not in markdown(evaluate([run], dataset, "val", "cpu"), {})


def test_texture_of_noise_and_residual(evaluation):
    """A filter leaves coarser noise; what the identity's column shows is the correlation of the noise itself."""
    at = {m: next(r for r in rows(evaluation, m, 20.0) if "noise_per_mm" in r) for m in ("identity", "gaussian")}
    assert at["gaussian"]["noise_per_mm"] < 0.8 * at["identity"]["noise_per_mm"]
    # White noise smoothed with a Gaussian of s = 0.5 voxels: exp(-1 / (4 s^2)) for one voxel, sampled a little more.
    assert 0.25 < at["identity"]["residual_correlation"] < 0.5
    assert set(evaluation.spectra) == {"identity", "gaussian", "non-local means", "residual"}


def test_bodies_that_are_cut_off_serve_no_figure(run, tmp_path):
    for k, cut in enumerate((False, True, False)):
        made = record(f"toy-{k}", k)
        source = {"source": {"truncated_fov": True}} if cut else {}
        write_subject(tmp_path / f"toy-{k}.h5", replace(made, provenance=made.provenance | source))
    write_index(tmp_path)
    found = evaluate([run], tmp_path, "all", "cpu")
    assert found.left_out == ("toy-1",) and {r["subject"] for r in found.rows} == {"toy-0", "toy-2"}
    assert "Left out, since the body is cut off at the sides of the image: toy-1." in markdown(found, {})
    with pytest.raises(DataError, match=r"^toy-1: the body is cut off[^\n]+leave the subject out$"):
        evaluate_subject(tmp_path / "toy-1.h5", {})
    with pytest.raises(DataError, match=r"^toy-1: the body is cut off[^\n]+$"):
        cases_of_ladders([read_ladder(tmp_path / "toy-1.h5")], (4.0,), "full")
    for k in (0, 2):
        (tmp_path / f"toy-{k}.h5").unlink()
    write_index(tmp_path)
    with pytest.raises(DataError, match="in every subject of the split 'all'"):
        evaluate([run], tmp_path, "all", "cpu")
