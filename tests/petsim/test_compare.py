"""Comparison of two images: noise, spectrum, histogram and profiles are those that the images were made with."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data_recipes.errors import DataError
from petsim.compare import Image, compare, read_image
from petsim.dose_pairs import Labels
from tests.petsim.noisy_pairs import (
    ORGANS,
    SPACING,
    UPTAKE,
    Made,
    activity_of,
    ladder,
    record,
    write_dataset,
    write_nifti,
)

MADE = Made(half_axes_mm=(105.0, 85.0))


def image(made, seed=0, labeled=True, cut=slice(None)):
    labels, images = ladder(made, (), seed)
    named = Labels(labels[cut], ORGANS) if labeled else None
    return Image(images[1.0][cut], SPACING, named, simulated=False)


def test_noise_and_means_by_organ():
    """Four times the counts halve the coefficient of variation; units do not matter; means are those of the uptake."""
    result = compare(image(replace(MADE, unit=1000.0), labeled=False), image(replace(MADE, counts=400.0), seed=1))
    assert result["regions_are"] == "organs"
    rows = {r["region"]: r for r in result["regions"]}
    assert set(rows) == set(ORGANS.values())
    for label, name in ORGANS.items():
        assert rows[name]["real"]["cov_percent"] == pytest.approx(2 * rows[name]["simulated"]["cov_percent"], rel=0.1)
        for side in ("real", "simulated"):
            ratio = rows[name][side]["mean_over_body"] / rows["soft tissue"][side]["mean_over_body"]
            assert ratio == pytest.approx(UPTAKE[label], rel=0.02)
    # Variance is activity / counts before the filter, whose gain is the sum of its squared kernel.
    sigma = np.array(MADE.fwhm_mm) / np.sqrt(8 * np.log(2))
    gain = np.prod(np.array(SPACING) / (2 * np.sqrt(np.pi) * sigma))
    expected = 100 * np.sqrt(gain / 100 / UPTAKE[2])
    assert rows["liver"]["real"]["cov_percent"] == pytest.approx(expected, rel=0.1)


def test_spectra_tell_filters_apart():
    result = compare(image(replace(MADE, fwhm_mm=(9.0, 9.0, 4.0))), image(MADE, seed=1))
    spectra = result["noise_power_spectrum"]
    mean = "mean_transaxial_frequency_per_mm"
    assert spectra["real"][mean] < 0.8 * spectra["simulated"][mean]
    for side in spectra.values():
        area = 2 * np.pi * np.array(side["transaxial_frequency_per_mm"]) * side["transaxial_frequency_per_mm"][1]
        variance = (area * side["transaxial_mm2"]).sum()
        step = 2 * side["axial_frequency_per_mm"][1]
        assert variance == pytest.approx(sum(side["axial_mm"]) * step - side["axial_mm"][0] * step / 2, rel=0.1)


def test_histogram_and_profiles():
    made = replace(MADE, counts=1e6)
    result = compare(image(made), image(made, seed=1))
    histogram = result["histogram"]
    assert histogram["overlap"] > 0.95
    labels, _ = ladder(made, (), 0)
    mean = activity_of(labels)[labels > 0].mean()
    liver = int(np.searchsorted(histogram["edges_over_body_mean"], 3 / mean)) - 1
    assert sum(histogram["real"][liver - 1 : liver + 2]) == pytest.approx((labels == 2).sum() / (labels > 0).sum(), rel=0.15)
    axial = result["axial_profile"]["real"]
    assert axial["mm"][0] == pytest.approx(-axial["mm"][-1]) and axial["mm"][1] - axial["mm"][0] == pytest.approx(SPACING[2])
    # The liver fills the feet's side, the lung the head's.
    assert axial["over_body_mean"][5] > 1.2 > 0.8 > axial["over_body_mean"][-5]
    across = result["transaxial_profile"]["real"]
    inside = [mm for mm, value in zip(across["mm"], across["over_body_mean"], strict=True) if value > 0.2]
    # From the body's own axis, wherever that lies in the image.
    assert inside[0] == pytest.approx(-105, abs=4) and inside[-1] == pytest.approx(105, abs=4)
    other = compare(image(replace(MADE, counts=1e6)), image(replace(MADE, counts=10.0), seed=1))
    assert other["histogram"]["overlap"] < 0.8


def test_other_grids_are_compared_by_place():
    result = compare(image(MADE), image(MADE, seed=1, cut=np.s_[:, :, 2:]))
    assert result["regions_are"] == "places" and all("radius" in r["region"] for r in result["regions"])
    assert len(result["regions"]) >= 2


def test_an_image_without_body_is_refused():
    with pytest.raises(DataError, match="nothing above zero"):
        compare(Image(np.zeros((8, 8, 8), np.float32), SPACING, None, False), image(MADE))


def test_command_takes_files_of_both_kinds(tmp_path, petsim):
    _, images = ladder(MADE, (), 0)
    write_nifti(tmp_path / "Jane Doe.nii", images[1.0])
    folder = write_dataset(tmp_path / "sim", [record(MADE, (4.0,), 1, "phantom-0")])
    args = ["compare", tmp_path / "Jane Doe.nii", folder / "phantom-0.h5", "--out", tmp_path / "out"]
    status, out, error = petsim(*args, "--drf", "4", "--json")
    assert status == 0 and error == ""
    result = json.loads(out.splitlines()[-1])
    text = (tmp_path / "out/comparison.json").read_text()
    assert result == json.loads(text) and "Jane" not in text and result["real"] == "image"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["comparison.json", "comparison.png"]
    assert (tmp_path / "out/comparison.png").read_bytes().startswith(b"\x89PNG")
    # DRF 4 of the same counts is twice as noisy.
    (liver,) = [r for r in result["regions"] if r["region"] == "liver"]
    assert liver["simulated"]["cov_percent"] == pytest.approx(2 * liver["real"]["cov_percent"], rel=0.1)
    assert "liver" in out and "histograms overlap" in out
    assert read_image(folder / "phantom-0.h5", 1.0).simulated


def test_real_images_of_a_dataset_are_real_and_cut_bodies_refused(tmp_path):
    made = record(MADE, (4.0,), 1, "one")
    real = replace(made, provenance=made.provenance | {"full_dose": "measured"})
    assert not read_image(write_dataset(tmp_path / "real", [real]) / "one.h5", 1.0).simulated
    cut = replace(made, provenance=made.provenance | {"source": {"truncated_fov": True}})
    with pytest.raises(DataError, match=r"^one.h5: the body is cut off at the sides[^\n]+$"):
        read_image(write_dataset(tmp_path / "cut", [cut]) / "one.h5", 1.0)


def test_bad_input_gives_one_line(tmp_path, petsim):
    folder = write_dataset(tmp_path / "sim", [record(replace(MADE, shape=(48, 48, 32)), (4.0,), 1, "phantom-0")])
    good = folder / "phantom-0.h5"
    (tmp_path / "broken.h5").write_bytes(b"no")
    write_nifti(tmp_path / "nan.nii", np.full((8, 8, 8), np.nan, np.float32))
    for args, expected, words in (
        ((good, good, "--drf", "20"), 2, "--drf: 20 is not in phantom-0.h5, which has 1, 4"),
        ((tmp_path / "absent.nii", good), 1, "absent.nii: no such file"),
        ((tmp_path / "broken.h5", good), 1, "broken.h5: not a readable HDF5 file"),
        ((good, tmp_path / "nan.nii"), 1, "nan.nii: the image has NaN"),
    ):
        status, _, error = petsim("compare", *args, "--out", tmp_path / "out")
        assert status == expected and words in error and error.count("\n") == 1, error
        assert not (tmp_path / "out").exists()
