"""Folders of public collections become subjects with right numbers, or one line."""

import gzip
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from data_recipes.collections import brainweb
from data_recipes.collections.recipe import Wishes
from data_recipes.collections.registry import RECIPES, recipe_named
from data_recipes.collections.udpet import DOTA_CASES
from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from data_recipes.hounsfield import hu_to_mu
from data_recipes.readers.read import read_source
from data_recipes.subject_file import read_subject_file, write_subject_file
from tests.data_recipes.dicom_files import ct_slice, pet_slice, write_series

HALF_LIFE_S = 6586.2
STATED = Wishes(weight_kg=70.0, injected_mbq=370.0, uptake_s=3600.0)
BQML_PER_SUV = 370e6 * 2 ** (-3600 / HALF_LIFE_S) / 70e3


def find(name, folder, wishes=STATED):
    recipe = recipe_named(name)
    assert recipe.find is not None
    return recipe.find(folder, wishes)


def load(name, folder, wishes=STATED):
    return [case.load() for case in find(name, folder, wishes).cases]


def refused(call, *words):
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def nifti(path, values, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([4.0, 4.0, 5.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(np.asarray(values), affine), path)
    return path


def test_every_recipe_tells_what_it_expects():
    for name, recipe in RECIPES.items():
        assert name == recipe.name and recipe.title and recipe.layout and recipe.license and recipe.access
        assert (recipe.find is None) == (recipe.gives == "raw")
        assert all(d.url.startswith("https://") and ":" in d.checksum for d in recipe.downloads)
    with pytest.raises(UsageError, match="there is no recipe 'nope'"):
        recipe_named("nope")


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.find is not None])
def test_folders_without_the_layout_are_one_line(tmp_path, name):
    refused(lambda: find(name, tmp_path / "none"), "no such folder")
    (tmp_path / "notes.txt").write_text("nothing")
    refused(lambda: find(name, tmp_path), tmp_path.name, "not found in it")
    (tmp_path / "far").symlink_to(tmp_path.parent)
    refused(lambda: find(name, tmp_path), "far", "leaves the folder")


# BrainWeb


@pytest.fixture
def small_brain(monkeypatch):
    monkeypatch.setattr(brainweb, "SHAPE", (6, 8, 4))
    labels = np.zeros((6, 8, 4), np.uint8)
    labels[4:6, :, :], labels[:, 6:8, :], labels[0, 0, 3] = 2, 3, 7
    return labels


@pytest.mark.parametrize("kind", ["byte", "short"])
def test_brainweb_labels_become_uptake_and_attenuation(tmp_path, small_brain, kind):
    stored = small_brain.transpose(2, 1, 0)
    contents = stored.tobytes() if kind == "byte" else (stored.astype("<u2") << 4).tobytes()
    name = "subject04_crisp_v.rawb.gz" if kind == "byte" else "subject_04.bin.gz"
    (tmp_path / name).write_bytes(gzip.compress(contents))
    (brain,) = load("brainweb", tmp_path, replace(STATED, voxel_mm=0.5))
    np.testing.assert_array_equal(brain.labels, small_brain)
    suv = brain.activity_bqml / BQML_PER_SUV
    np.testing.assert_allclose(suv[small_brain == 2], 8.2, rtol=1e-5)
    np.testing.assert_allclose(suv[small_brain == 3], 3.0, rtol=1e-5)
    np.testing.assert_allclose(brain.mu_per_cm[small_brain == 7], 0.145, rtol=1e-6)
    assert brain.label_names[2] == "gray_matter" and brain.name == "brainweb-04" and not brain.is_noisy
    (coarse,) = load("brainweb", tmp_path, replace(STATED, voxel_mm=1.0))
    assert coarse.grid.shape == (3, 4, 2)
    assert coarse.total_mbq() == pytest.approx(brain.total_mbq(), rel=1e-5)


def test_brainweb_files_of_another_kind_are_refused(tmp_path, small_brain):
    path = tmp_path / "subject04_crisp_v.rawb"
    path.write_bytes(bytes(100))
    refused(lambda: load("brainweb", tmp_path), "subject04", "100 bytes where")
    path.write_bytes(bytes([12]) * small_brain.size)
    refused(lambda: load("brainweb", tmp_path), "other values", "0 to 11")
    path.write_bytes(b"\x21\x00" * small_brain.size)
    refused(lambda: load("brainweb", tmp_path), "other values", "16 times")
    (tmp_path / "subject_04.bin.gz").write_bytes(gzip.compress(b"x"))
    refused(lambda: find("brainweb", tmp_path), "subject 04 is there twice")
    assert find("brainweb", tmp_path, Wishes(skip=("subject_04.bin.gz",))).counts == {"models": 1}
    (tmp_path / "subject_04.bin.gz").rename(tmp_path / "subject_07.bin.gz")
    refused(lambda: find("brainweb", tmp_path), "no subject 07")


# Voxel phantoms

TABLE = "label,name,suv,density_g_ml\n0,air,0,0\n5,liver,2.5,1.05\n9,bone,0.6,1.4\n"


def phantom(folder, axes='["left", "back", "head"]', kind="uint8", table=TABLE, **changes):
    folder.mkdir(exist_ok=True)
    labels = np.zeros((3, 4, 2), np.uint8)
    labels[0], labels[2, 3, 1] = 5, 9
    said = {"name": '"one"', "labels": '"labels.raw"', "organs": '"organs.csv"', "shape": "[3, 4, 2]",
            "spacing_mm": "[2, 2, 5]", "type": f'"{kind}"', "axes": axes} | changes  # fmt: skip
    (folder / "phantom.toml").write_text("\n".join(f"{k} = {v}" for k, v in said.items()))
    stored = labels.transpose(2, 1, 0)
    types = {"uint8": "<u1", "float32": "<f4", "int16": "<i2"}
    written = " ".join(map(str, stored.ravel())).encode() if kind == "text" else stored.astype(types[kind]).tobytes()
    (folder / "labels.raw").write_bytes(written)
    (folder / "organs.csv").write_text(table)
    return labels


@pytest.mark.parametrize("kind", ["uint8", "float32", "int16", "text"])
def test_voxel_phantoms_have_the_tables_values_and_ras_axes(tmp_path, kind):
    labels = phantom(tmp_path / "p", kind=kind)
    (subject,) = load("voxel-phantom", tmp_path)
    # x grows to the left and y to the back in the file: both are turned.
    np.testing.assert_array_equal(subject.labels, labels[::-1, ::-1])
    liver = subject.labels == 5
    np.testing.assert_allclose(subject.activity_bqml[liver], 2.5 * BQML_PER_SUV, rtol=1e-5)
    np.testing.assert_allclose(subject.mu_per_cm[liver], 1.05 * 0.096, rtol=1e-6)
    assert subject.suv_factor() == pytest.approx(1 / BQML_PER_SUV)
    assert subject.label_names == {0: "air", 5: "liver", 9: "bone"} and subject.mu_source == "phantom"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axes": '["left", "head", "back"]'}, ["axes"]),
        ({"shape": "[3, 4]"}, ["shape"]),
        ({"shape": "[3, 4, 3]"}, ["24 bytes where 36"]),
        ({"labels": '"../secret"'}, ["labels", "beside it"]),
        ({"labels": '"none.raw"'}, ["none.raw", "no such file"]),
        ({"table": "label,name,suv\n0,air,0\n"}, ["no column density_g_ml"]),
        ({"table": TABLE.replace("9,bone,0.6,1.4\n", "")}, ["no row for label 9"]),
        ({"table": TABLE.replace("2.5", "hot")}, ["line 3", "suv is 'hot'"]),
        ({"table": TABLE.replace("9,bone", "5,bone")}, ["line 4", "twice"]),
        ({"kind": "text", "shape": "[3, 4, 9]"}, ["24 labels where 108"]),
    ],
)
def test_voxel_phantoms_that_could_be_misread_are_refused(tmp_path, changes, words):
    phantom(tmp_path / "p", **changes)
    refused(lambda: load("voxel-phantom", tmp_path), *words)


# PET and CT as NIfTI


def autopet(folder, shape=(6, 7, 5), mask=None, **files):
    rng = np.random.default_rng(3)
    hu = np.full(shape, 40.0, np.float32)
    hu[0, 0, 0] = -1000
    given = {
        "SUV.nii.gz": rng.uniform(0, 5, shape).astype(np.float32),
        "CTres.nii.gz": hu,
        "SEG.nii.gz": np.zeros(shape, np.uint8) if mask is None else mask,
    } | files
    for name, values in given.items():
        nifti(folder / name, values)
    return given["SUV.nii.gz"]


def test_autopet_studies_become_activity_with_attenuation_and_lesions(tmp_path):
    mask = np.zeros((6, 7, 5), np.uint8)
    mask[1, 1, 1] = mask[2, 2, 2] = mask[5, 6, 4] = 1
    suv = autopet(tmp_path / "PETCT_a" / "study 1", mask=mask)
    autopet(tmp_path / "PETCT_a" / "study 2")
    autopet(tmp_path / "PETCT_b" / "study 1")
    found = find("autopet", tmp_path)
    assert found.counts == {"patients": 2, "studies": 3}
    assert [c.patient for c in found.cases] == ["PETCT_a", "PETCT_a", "PETCT_b"]
    subject = found.cases[0].load()
    np.testing.assert_allclose(subject.activity_bqml, suv * BQML_PER_SUV, rtol=1e-5)
    np.testing.assert_allclose(subject.mu_per_cm.ravel()[1:], hu_to_mu(np.array(40.0), 120), rtol=1e-6)
    # Two voxels that touch at a corner are one lesion.
    assert subject.labels[1, 1, 1] == subject.labels[2, 2, 2] == 100 and subject.labels[5, 6, 4] == 101
    assert subject.label_names[101] == "lesion_2_segmented"
    assert subject.is_noisy and subject.mu_source == "ct"
    refused(lambda: load("autopet", tmp_path, Wishes()), "--weight-kg", "--activity-mbq", "--uptake-s")
    assert len(find("autopet", tmp_path, replace(STATED, skip=("PETCT_a",))).cases) == 1


def test_autopet_folders_that_are_wrong_are_one_line(tmp_path):
    study = tmp_path / "p" / "s"
    autopet(study)
    nifti(study / "SEG.nii.gz", np.zeros((6, 7, 4), np.uint8))
    refused(lambda: load("autopet", tmp_path), "SEG.nii.gz", "6 x 7 x 4 voxels", "SUV.nii.gz")
    nifti(study / "SEG.nii.gz", np.zeros((6, 7, 5), np.uint8), np.diag([-4.0, 4.0, 5.0, 1.0]))
    refused(lambda: load("autopet", tmp_path), "SEG.nii.gz", "grid")
    nifti(study / "SEG.nii.gz", np.full((6, 7, 5), 2, np.uint8))
    refused(lambda: load("autopet", tmp_path), "SEG.nii.gz", "0 and 1 only")
    autopet(study)
    nifti(study / "CTres.nii.gz", np.zeros((12, 14, 5), np.float32), np.diag([2.0, 2.0, 5.0, 1.0]))
    refused(lambda: load("autopet", tmp_path), "CTres.nii.gz", "grid")
    whole = (study / "SUV.nii.gz").read_bytes()
    (study / "SUV.nii.gz").write_bytes(whole[: len(whole) // 2])
    refused(lambda: load("autopet", tmp_path), "SUV.nii.gz", "damaged")
    header = nib.Nifti1Image(np.zeros((1, 1, 1), np.int8), np.eye(4)).header
    header["dim"][:4] = 3, 20_000, 20_000, 20_000
    (study / "SUV.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4 + (1 << 20))))
    refused(lambda: load("autopet", tmp_path), "SUV.nii.gz", "voxels, more than")
    (study / "SEG.nii.gz").unlink()
    refused(lambda: find("autopet", tmp_path), "SEG.nii.gz is missing")
    autopet(tmp_path / "flat")
    refused(lambda: find("autopet", tmp_path), "too high up")


def test_crops_are_flagged(real_data):
    folder = real_data("petct_tumour_nifti")
    found = find("ibsi-sts", folder, replace(STATED, ct_kvp=120.0))
    assert found.counts == {"patients": 6, "studies": 6}
    refused(lambda: load("ibsi-sts", folder, Wishes(ct_kvp=120.0)), "--weight-kg")
    with pytest.raises(UsageError, match="--ct-kvp"):
        load("ibsi-sts", folder)
    for case in found.cases:
        subject = case.load()
        pet, ct, mask = (nib.load(folder / case.patient / f"{n}.nii.gz") for n in ("PET_image", "CT_image", "PET_mask"))
        assert subject.provenance["truncated_fov"] is True and subject.provenance["license"].startswith("CC BY 3.0")
        suv = np.asarray(pet.dataobj)
        assert subject.activity_bqml.max() * subject.suv_factor() == pytest.approx(suv.max(), rel=1e-5)
        # Masks lie where the source has them, in any order of axes: volume and mean SUV inside stay.
        inside = subject.labels >= 100
        lesion = np.asarray(mask.dataobj) > 0
        assert inside.sum() == lesion.sum() > 10
        assert (subject.activity_bqml[inside] * subject.suv_factor()).mean() == pytest.approx(suv[lesion].mean(), rel=1e-4)
        # Soft tissue in the tumor, and the same from the CT's own voxels there.
        voxels = np.stack(np.meshgrid(*map(np.arange, ct.shape), indexing="ij"), axis=-1)
        at = np.rint(nib.affines.apply_affine(np.linalg.inv(pet.affine) @ ct.affine, voxels)).astype(int)
        within = ((at >= 0) & (at < lesion.shape)).all(axis=-1)
        there = np.zeros(ct.shape, bool)
        there[within] = lesion[tuple(at[within].T)]
        wanted = hu_to_mu(np.asarray(ct.dataobj)[there], 120.0).mean()
        assert 0.08 < wanted < 0.11
        assert subject.mu_per_cm[inside].mean() == pytest.approx(float(wanted), rel=0.01)


# PET-BIDS

SIDECAR = {
    "Units": "Bq/mL", "TracerName": "FDG", "TracerRadionuclide": "F18", "InjectedRadioactivity": 370,
    "InjectedRadioactivityUnits": "MBq", "InjectionStart": 0, "ScanStart": 3600, "ImageDecayCorrected": True,
    "ImageDecayCorrectionTime": 3600,
}  # fmt: skip


def bids(folder, values, sub="sub-01", **fields):
    path = folder / sub / "pet" / f"{sub}_pet.nii.gz"
    nifti(path, values)
    path.with_name(f"{sub}_pet.json").write_text(json.dumps(SIDECAR | fields))
    return path


def test_bids_images_with_sidecars_above_and_weights_of_participants(tmp_path):
    values = np.random.default_rng(0).uniform(1, 9, (4, 5, 6)).astype(np.float32)
    path = bids(tmp_path, values, FrameDuration=[600])
    path.with_name("sub-01_pet.json").write_text(json.dumps({"FrameDuration": [600], "Units": "kBq/mL"}))
    (tmp_path / "pet.json").write_text(json.dumps(SIDECAR))
    (tmp_path / "participants.tsv").write_text("participant_id\tweight_kg\nsub-01\t81.5\nsub-02\tn/a\n")
    (subject,) = load("bids-pet", tmp_path, Wishes())
    np.testing.assert_allclose(subject.activity_bqml, values * 1000, rtol=1e-6)
    inj = subject.injection
    assert (inj.weight_kg, inj.injected_mbq, inj.uptake_s, inj.duration_s) == (81.5, 370.0, 3600.0, 600.0)
    path.with_name("sub-01_pet.json").unlink()
    (tmp_path / "pet.json").unlink()
    refused(lambda: load("bids-pet", tmp_path), "sub-01_pet.json")


def test_frames_are_averaged_and_corrected_to_their_own_start(tmp_path):
    """Constant activity A, decay-corrected to injection: a frame's value is A; at the start of frame 2 it is A 2^-(t/T)."""
    frames = np.stack([np.full((4, 5, 6), v, np.float32) for v in (7.0, 100.0, 130.0, 9.0)], axis=-1)
    times = {"FrameTimesStart": [0, 600, 1200, 3000], "FrameDuration": [600, 600, 1800, 60], "ScanStart": 0}
    path = bids(tmp_path, frames, ImageDecayCorrectionTime=0, BodyWeight=70, **times)
    (subject,) = load("bids-pet", tmp_path, Wishes(frames=(2, 3)))
    mean = (100 * 600 + 130 * 1800) / 2400
    np.testing.assert_allclose(subject.activity_bqml, mean * 2 ** (-600 / HALF_LIFE_S), rtol=1e-5)
    assert subject.injection.uptake_s == 600.0 and subject.injection.duration_s == 2400.0
    assert "frames 2 to 3 of 4" in subject.provenance["notes"][0]
    refused(lambda: load("bids-pet", tmp_path, Wishes()), "4 frames over 3060 s", "--frames")
    refused(lambda: load("bids-pet", tmp_path, Wishes(frames=(2, 5))), "--frames 2 5")
    times["FrameTimesStart"][2] = 1300
    path.with_name("sub-01_pet.json").write_text(json.dumps(SIDECAR | times))
    refused(lambda: load("bids-pet", tmp_path, Wishes(frames=(2, 3))), "do not follow each other")
    path.with_name("sub-01_pet.json").write_text(json.dumps(SIDECAR | times | {"FrameDuration": [1, 2]}))
    refused(lambda: load("bids-pet", tmp_path, Wishes(frames=(2, 3))), "FrameDuration has not one number for each")


# DICOM


def study(folder, uid="1.2.8", frame="1.2.9", patient="ID-4711"):
    pet = [pet_slice(k, np.full((6, 4), 100 + k), 3.0 * k) for k in range(4)]
    ct = [ct_slice(k, np.full((6, 4), 1064), 3.0 * k) for k in range(4)]
    for ds in (*pet, *ct):
        ds.StudyInstanceUID, ds.FrameOfReferenceUID, ds.PatientID = uid, frame, patient
    folder.mkdir(parents=True, exist_ok=True)
    write_series(folder / "PT", pet)
    write_series(folder / "CT", ct)
    return pet, ct


def test_dicom_studies_with_their_ct(tmp_path):
    study(tmp_path / "a")
    study(tmp_path / "b", uid="1.2.88", frame="1.2.99")
    found = find("dicom-pet", tmp_path, Wishes())
    assert found.counts == {"patients": 1, "studies": 2} and found.notes == ()
    subject = found.cases[0].load()
    assert subject.mu_source == "ct"
    np.testing.assert_allclose(subject.mu_per_cm, hu_to_mu(np.array(40.0), 120), rtol=1e-5)
    told = json.dumps([subject.name, subject.provenance])
    assert "4711" not in told and "Secret" not in told


def test_dicom_folders_that_are_wrong_are_one_line(tmp_path):
    pet, ct = study(tmp_path / "a")
    write_series(tmp_path / "a" / "PT 2", pet)
    refused(lambda: find("dicom-pet", tmp_path), "PT and PT 2", "two PET series")
    assert len(find("dicom-pet", tmp_path, Wishes(skip=("PT 2",))).cases) == 1
    wishes = Wishes(skip=("PT 2",))
    write_series(tmp_path / "a" / "CT 2", ct)
    refused(lambda: find("dicom-pet", tmp_path, wishes), "two CT series")
    wishes = Wishes(skip=("PT 2", "CT 2"))
    for ds in ct:
        ds.ImagePositionPatient = [900.0, 900.0, ds.ImagePositionPatient[2]]
    write_series(tmp_path / "a" / "CT", ct)
    refused(lambda: load("dicom-pet", tmp_path, wishes), "do not overlap")
    for ds in ct:
        ds.ImagePositionPatient = [-10.0, -20.0, ds.ImagePositionPatient[2]]
    write_series(tmp_path / "a" / "CT", ct)
    (tmp_path / "a" / "PT" / "slice01.dcm").unlink()
    refused(lambda: load("dicom-pet", tmp_path, wishes), "missing slice")
    write_series(tmp_path / "a" / "PT", pet)
    pet[3].SeriesInstanceUID = "1.2.4"
    write_series(tmp_path / "a" / "PT", pet)
    refused(lambda: load("dicom-pet", tmp_path, wishes), "mixed series")
    (tmp_path / "a" / "PT" / "slice00.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL\x04")
    refused(lambda: load("dicom-pet", tmp_path, wishes), "slice00.dcm")


# UDPET


def test_known_errors_of_udpet_are_left_out(tmp_path):
    for name in ("Anonymous_ANO_1_2_3", DOTA_CASES[2], "mine"):
        for dose in ("Full_dose", "1-20 dose", "1-50 dose"):
            nifti(tmp_path / "site" / name / dose / "image.nii.gz", np.ones((3, 3, 3), np.float32))
    for drf in (10, 50):
        nifti(tmp_path / f"Anonymous-06_DRF-{drf}.nii.gz", np.ones((3, 3, 3), np.float32))
    found = find("udpet", tmp_path, Wishes(skip=("mine",)))
    assert [(c.patient, c.doses.drfs) for c in found.cases] == [("Anonymous_ANO_1_2_3", (1, 20, 50))]
    assert found.counts == {"subjects": 1, "images": 3, "at DRF 1": 1, "at DRF 20": 1, "at DRF 50": 1}
    told = " ".join(found.notes)
    for words in (
        "68Ga-DOTA labeled as FDG",
        "1 files or folders: corrupted at DRF 50",
        "--skip",
        "1 subjects have no full dose",
    ):
        assert words in told, told
    assert "Anonymous" not in told
    for k in range(2):
        (tmp_path / f"{k}.csv").write_text("SubjectID,NiftiFileName\n")
    refused(lambda: find("udpet", tmp_path), "0.csv and 1.csv", "two tables")


# Subject files


def test_subjects_come_back_from_their_file_bit_by_bit(tmp_path):
    phantom(tmp_path / "p")
    (subject,) = load("voxel-phantom", tmp_path)
    path = tmp_path / "one.subject.h5"
    write_subject_file(path, subject)
    back = read_source(path)
    for field in ("activity_bqml", "mu_per_cm", "labels"):
        np.testing.assert_array_equal(getattr(back, field), getattr(subject, field))
        assert getattr(back, field).dtype == getattr(subject, field).dtype
    same = {"activity_bqml": None, "mu_per_cm": None, "labels": None}
    told = [json.dumps(s.__dict__ | same, default=lambda v: v.__dict__, sort_keys=True) for s in (subject, back)]
    assert told[0] == told[1] and back.grid == subject.grid and isinstance(back.grid, Grid)
    with pytest.raises(UsageError, match="leave the flags"):
        read_source(path, weight_kg=80.0)
    assert read_source(path, duration_s=30.0).injection.duration_s == 30.0
    path.write_bytes(path.read_bytes()[:700])
    refused(lambda: read_subject_file(path), "one.subject.h5", "damaged")
