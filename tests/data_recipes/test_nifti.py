"""NIfTI images and their sidecars."""

import json
import math

import nibabel as nib
import numpy as np
import pytest

from data_recipes.errors import DataError, UsageError
from data_recipes.readers.nifti import read_nifti
from data_recipes.readers.read import read_source, read_suv_per_value

HALF_LIFE_S = 6586.2
SIDECAR = {
    "Units": "Bq/mL", "TracerName": "FDG", "TracerRadionuclide": "F18", "InjectedRadioactivity": 370,
    "InjectedRadioactivityUnits": "MBq", "TimeZero": "10:00:00", "InjectionStart": -3600, "ScanStart": 0,
    "FrameDuration": [600], "BodyWeight": 70, "ImageDecayCorrected": True, "ImageDecayCorrectionTime": 0,
    "PatientName": "Secret^Person",
}  # fmt: skip


def values():
    return np.random.default_rng(2).uniform(1, 9, (4, 5, 6)).astype(np.float32)


def write(path, data=None, affine=None, sidecar=None):
    affine = np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine
    nib.Nifti1Image(values() if data is None else data, affine).to_filename(path)
    if sidecar is not None:
        path.with_name(path.name.split(".")[0] + ".json").write_text(json.dumps(sidecar))
    return path


def refused(path, *words, **options):
    with pytest.raises(DataError) as caught:
        read_nifti(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.parent) not in message
    for word in words:
        assert word in message


def test_json_sidecar(tmp_path):
    subject = read_source(write(tmp_path / "pet.nii.gz", sidecar=SIDECAR))
    np.testing.assert_array_equal(subject.activity_bqml, values())
    inj = subject.injection
    assert (inj.isotope, inj.tracer, inj.injected_mbq, inj.uptake_s) == ("F-18", "FDG", 370.0, 3600.0)
    assert (inj.weight_kg, inj.duration_s) == (70.0, 600.0)
    assert subject.grid.spacing_mm == (2.0, 3.0, 4.0)
    assert subject.fwhm_mm == pytest.approx((4.5, 4.5, 6.0))
    assert subject.provenance["source_fwhm"] == "estimated from the voxel size"
    assert "Secret" not in json.dumps(subject.provenance)
    assert subject.is_noisy


def test_decay_correction_to_injection_is_moved_to_scan_start(tmp_path):
    subject = read_nifti(write(tmp_path / "pet.nii", sidecar=SIDECAR | {"ImageDecayCorrectionTime": -3600}))
    np.testing.assert_allclose(subject.activity_bqml, values() * 2 ** (-3600 / HALF_LIFE_S), rtol=1e-6)
    refused(write(tmp_path / "pet.nii", sidecar=SIDECAR | {"ImageDecayCorrected": False}), "ImageDecayCorrected")


def test_kilobecquerel_and_suv(tmp_path):
    kilo = read_nifti(write(tmp_path / "k.nii", sidecar=SIDECAR | {"Units": "kBq/mL"}))
    np.testing.assert_allclose(kilo.activity_bqml, values() * 1000, rtol=1e-6)
    suv = read_nifti(write(tmp_path / "s.nii", sidecar=SIDECAR | {"Units": "SUV"}))
    per_suv = 370e6 * 2 ** (-3600 / HALF_LIFE_S) / 70e3
    np.testing.assert_allclose(suv.activity_bqml, values() * per_suv, rtol=1e-5)
    refused(write(tmp_path / "w.nii", sidecar=SIDECAR | {"Units": "mCi/mL"}), "Units 'mCi/mL'")
    no_unit = SIDECAR | {"InjectedRadioactivityUnits": None}
    refused(write(tmp_path / "a.nii", sidecar=no_unit), "InjectedRadioactivityUnits")
    refused(write(tmp_path / "b.nii", sidecar=SIDECAR | {"TracerRadionuclide": "Tc99m"}), "SPECT")


def test_units_have_to_be_known_and_agree(tmp_path):
    path = write(tmp_path / "pet.nii")
    refused(path, "--source-units", "pet.nii")
    np.testing.assert_array_equal(read_nifti(path, units="bqml").activity_bqml, values())
    refused(path, "--weight-kg", "--activity-mbq", "--uptake-s", units="suv")
    suv = read_nifti(path, units="suv", weight_kg=70.0, injected_mbq=370.0, uptake_s=0.0)
    np.testing.assert_allclose(suv.activity_bqml, values() * 370e6 / 70e3, rtol=1e-5)
    refused(write(tmp_path / "said.nii", sidecar=SIDECAR), "--source-units", units="suv")
    with pytest.raises(UsageError, match="--source-units"):
        read_nifti(path, units="Bq")


def test_stated_values_win_and_leave_the_hash(tmp_path):
    path = write(tmp_path / "pet.nii", sidecar=SIDECAR)
    one, two = read_nifti(path), read_nifti(path, weight_kg=50.0, uptake_s=1.0)
    assert (two.injection.weight_kg, two.injection.uptake_s, two.injection.injected_mbq) == (50.0, 1.0, 370.0)
    assert one.content_sha256 == two.content_sha256
    assert one.name == f"subject-{one.content_sha256[:8]}"
    other = read_nifti(write(tmp_path / "pet.nii", sidecar=SIDECAR | {"BodyWeight": 71}))
    assert other.content_sha256 != one.content_sha256


CSV = "File,Weight [kg],Injected activity (MBq),delay_min,half_life_s,Units,scanner\n"


def test_csv_row_of_the_file(tmp_path):
    path = write(tmp_path / "pet.nii.gz")
    table = tmp_path / "meta.csv"
    table.write_text(CSV + "other.nii.gz,60,300,50,6586,Bq/mL,x\npet.nii.gz,80,350,55,6588,Bq/mL,x\n")
    inj = read_nifti(path, sidecar=table).injection
    assert (inj.weight_kg, inj.injected_mbq, inj.uptake_s, inj.isotope) == (80.0, 350.0, 3300.0, "F-18")
    table.write_text("file,PatientWeight,RadionuclideTotalDose,Units\npet,80,3.5e8,Bq/mL\n")
    inj = read_nifti(path, sidecar=table).injection
    assert (inj.weight_kg, inj.injected_mbq) == (80.0, 350.0)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("file,weight\npet,80\n", "weight_kg"),
        ("file,weight_lb\npet,180\n", "'weight_lb' has no known unit"),
        ("file,delay\npet,55\n", "delay_s"),
        ("file,injected_activity_ci\npet,55\n", "has no known unit"),
        ("weight_kg\n80\n", "no column names the file"),
        ("file,weight_kg\nother,80\n", "0 rows name this image"),
        ("file,weight_kg\npet,80\npet.nii,80\n", "2 rows name this image"),
        ("file,weight_kg\npet,heavy\n", "not a number"),
        ("file,weight_kg,PatientWeight\npet,80,81\n", "two columns give weight_kg"),
        ("file,half_life_s\npet,21672\n", "21672"),
        ("file,weight_kg\n", "no row"),
    ],
)
def test_tables_that_could_be_misread_are_refused(tmp_path, text, word):
    path = write(tmp_path / "pet.nii")
    (tmp_path / "pet.csv").write_text(text)
    refused(path, word, "pet.csv", units="bqml")


def test_flipped_and_permuted_axes_show_the_same_patient(tmp_path):
    plain = read_nifti(write(tmp_path / "a.nii"), units="bqml")
    # Stored as (z, x reversed, y): index (k, i, j) -> mm.
    data = values()[::-1].transpose(2, 0, 1)
    affine = np.array([[0, -2.0, 0, 6.0], [0, 0, 3.0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]])
    turned = read_nifti(write(tmp_path / "b.nii", data, affine), units="bqml")
    np.testing.assert_array_equal(turned.activity_bqml, plain.activity_bqml)
    assert turned.grid == plain.grid
    assert turned.content_sha256 == plain.content_sha256


def test_oblique_axes_are_refused_and_tiny_tilts_are_not(tmp_path):
    def turn(angle):
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:2, :2] = 2.0 * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        return affine

    refused(write(tmp_path / "a.nii", affine=turn(0.15)), "oblique", units="bqml")
    assert read_nifti(write(tmp_path / "b.nii", affine=turn(1e-4)), units="bqml").grid.spacing_mm[0] > 0


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (np.ones((4, 5, 6, 2), np.float32), "4D"),
        (np.ones((4, 5), np.float32), "2D"),
        (np.ones((4, 5, 1), np.float32), "2D"),
        (np.ones((4, 5, 6), np.complex64), "real numbers"),
        (np.full((4, 5, 6), np.nan, np.float32), "NaN"),
        (np.full((4, 5, 6), -1.0, np.float32), "negative"),
        (np.zeros((4, 5, 6), np.float32), "zero everywhere"),
    ],
)
def test_images_of_another_kind_are_refused(tmp_path, data, word):
    refused(write(tmp_path / "pet.nii", data), word, "pet.nii", units="bqml")


def test_a_fourth_axis_of_one_is_dropped(tmp_path):
    subject = read_nifti(write(tmp_path / "pet.nii", values()[..., None]), units="bqml")
    np.testing.assert_array_equal(subject.activity_bqml, values())


def test_damaged_files_are_refused(tmp_path):
    whole = write(tmp_path / "pet.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii").write_text("not an image")
    refused(tmp_path / "cut.nii.gz", "cut.nii.gz", units="bqml")
    refused(tmp_path / "text.nii", "text.nii", units="bqml")
    refused(tmp_path / "none.nii", "no such file", units="bqml")
    refused(tmp_path / "pet.img", "not a NIfTI", units="bqml")
    (tmp_path / "pet.json").write_text("{")
    refused(tmp_path / "pet.nii.gz", "pet.json", "line 1")


def test_suv_image_of_a_patient(real_data):
    path = real_data("petct_tumour_nifti") / "STS_003" / "PET_image.nii.gz"
    with pytest.raises(DataError, match="--source-units"):
        read_nifti(path)
    subject = read_nifti(path, units="suv", weight_kg=70.0, injected_mbq=370.0, uptake_s=3600.0)
    factor = subject.suv_factor()
    assert factor is not None
    # 10.265 is the largest value stored in the file, in SUV.
    assert subject.activity_bqml.max() * factor == pytest.approx(10.265303, rel=1e-5)


@pytest.mark.parametrize("said", [{}, {"Units": "kBq/mL"}, {"ImageDecayCorrectionTime": -3600}])
def test_suv_of_a_value_is_that_of_the_subject(tmp_path, said):
    path = write(tmp_path / "pet.nii", sidecar=SIDECAR | said)
    subject = read_source(path)
    suv = subject.activity_bqml * subject.suv_factor()
    np.testing.assert_allclose(values() * read_suv_per_value(path), suv, rtol=1e-5)
    (tmp_path / "pet.json").rename(tmp_path / "elsewhere.json")
    assert read_suv_per_value(path, sidecar=tmp_path / "elsewhere.json") == pytest.approx(float((suv / values()).mean()))


def test_suv_of_a_value_asks_nothing_of_voxels_and_axes(tmp_path):
    oblique = np.array([[2, 0.5, 0, 0], [-0.5, 2, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]], float)
    path = write(tmp_path / "pet.nii", values() - 5, oblique, SIDECAR)
    # 370 MBq an hour after injection, 70 kg.
    expected = 70e3 / (370e6 * 2 ** (-3600 / HALF_LIFE_S))
    assert read_suv_per_value(path) == pytest.approx(expected)
    assert read_suv_per_value(write(tmp_path / "suv.nii"), units="suv") == 1
    with pytest.raises(DataError, match="the sidecar says bqml"):
        read_suv_per_value(path, units="suv")
    with pytest.raises(DataError, match="--weight-kg"):
        read_suv_per_value(write(tmp_path / "bare.nii"), units="bqml")
