"""petsim recipes: real multi-dose scans become datasets, others subjects; nothing identifies anybody."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np

from denoise.data import read_split
from petsim.cache.store import SubjectFile, read_index
from petsim.report import write_report
from petsim.verify import verify
from tests.data_recipes.dicom_files import factor, pet_slice, write_series

SHAPE = (12, 10, 8)
HEADER = (
    "SubjectID,DoseReductionFactor,NiftiFileName,PatientWeight_kg,ImageUnits,ManufacturerModelName,"
    "RadiopharmaceuticalName,TimeFromInjectionToAcquisition_s,RadionuclideTotalDose_Bq,RadionuclideHalfLife_s,DecayCorrection\n"
)


def suv_of(number: int, drf: float) -> np.ndarray:
    rng = np.random.default_rng([number, int(drf)])
    return rng.uniform(0.5, 5, SHAPE).astype(np.float32)


def udpet(folder: Path, subjects=4, model="uEXPLORER") -> Path:
    """The challenge's NIfTI layout: windows in the middle of a scan, each in Bq/mL at its own start."""
    folder.mkdir(exist_ok=True)
    rows = []
    for k in range(subjects):
        for drf, uptake in ((1, 3600.0), (4, 3825.0), (20, 3885.0)):
            name = f"Anonymous-{k:02d}_{'Full_dose' if drf == 1 else f'DRF-{drf}'}.nii.gz"
            per_suv = 2e8 * 2 ** (-uptake / 6588.0) / 60e3
            values = suv_of(k, drf) * np.float32(per_suv)
            nib.save(nib.Nifti1Image(values, np.diag([4.0, 4.0, 5.0, 1.0])), folder / name)
            rows.append(f"Anonymous-{k:02d},{drf},{name},60,BQML,{model},Fluorodeoxyglucose,{uptake},200000000,6588,START\n")
    (folder / "info.csv").write_text(HEADER + "".join(rows))
    return folder


def test_real_doses_become_a_dataset(petsim, tmp_path):
    status, out, error = petsim("recipes", "prepare", "udpet", udpet(tmp_path / "data"), "--out", tmp_path / "set", "--json")
    assert status == 0, error
    told = json.loads(out.splitlines()[-1])
    assert told["counts"] == {"subjects": 4, "images": 12, "at DRF 1": 4, "at DRF 4": 4, "at DRF 20": 4}
    folder = tmp_path / "set" / "uexplorer"
    assert verify(folder)["problems"] == [] and verify(folder)["subjects"] == 4
    index = read_index(folder)
    assert {s["split"] for s in index["subjects"]} == {"train", "val", "test"}
    ladders = [ladder for split in ("train", "val", "test") for ladder in read_split(folder, split, "full")]
    assert all(ladder.drfs == (1, 4, 20) and ladder.mode == "window" and not ladder.recorded for ladder in ladders)
    # Images agree in SUV, each with its own times; float16 keeps three digits.
    found = {float(ladder.image(0).sum()): ladder for ladder in ladders}
    for k in range(4):
        ladder = found[min(found, key=lambda total, k=k: abs(total - suv_of(k, 1).sum()))]
        for place, drf in enumerate((1, 4, 20)):
            np.testing.assert_allclose(ladder.image(place), suv_of(k, drf), rtol=2e-3)
    page = write_report(folder, tmp_path / "report.html").read_text()
    text = re.sub(r"<[^>]+>", " ", page.split("<h2>Dataset")[1].replace("data:image", ""))
    assert "Every dose is an image that a scanner made" in page and " nan" not in text and "NaN" not in text
    assert "not corrected" not in text and "Prompts are drawn" not in text and "thinned" not in text
    status, out, error = petsim("calibrate", "--real", folder, "--out", tmp_path / "calibrated")
    assert status == 0 and out.startswith("dataset of real scans: 4 subjects, DRF 4 20"), error
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert petsim("recipes", "prepare", "udpet", tmp_path / "data", "--out", tmp_path / "set")[0] == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_adding_subjects_to_real_doses_moves_nobody_without_need(petsim, tmp_path):
    petsim("recipes", "prepare", "udpet", udpet(tmp_path / "data", 8), "--out", tmp_path / "few")
    petsim("recipes", "prepare", "udpet", udpet(tmp_path / "data", 12), "--out", tmp_path / "more")
    few, more = (
        {s["name"]: s["split"] for s in read_index(tmp_path / out / "uexplorer")["subjects"]} for out in ("few", "more")
    )
    assert len(more) == 12 and set(few) < set(more)
    natural = {}
    for name in few:
        with SubjectFile(tmp_path / "few" / "uexplorer" / f"{name}.h5") as f:
            bucket = f.json("provenance")["source"]["split_bucket"]
            natural[name] = "test" if bucket < 15 else "val" if bucket < 30 else "train"
    assert all(
        more[name] == few[name] for name in few if few[name] == natural[name] == more[name] or natural[name] != "train"
    )


def test_doses_that_do_not_belong_together_are_one_line(petsim, tmp_path):
    data = udpet(tmp_path / "data", 1)
    low = data / "Anonymous-00_DRF-4.nii.gz"
    for values, affine, word in (
        (np.ones((12, 10, 7), np.float32), np.diag([4.0, 4.0, 5.0, 1.0]), "grid"),
        (np.ones(SHAPE, np.float32), np.diag([-4.0, 4.0, 5.0, 1.0]), "grid"),
        (np.ones(SHAPE, np.float32), np.diag([4.0, 4.0, 5.5, 1.0]), "grid"),
    ):
        nib.save(nib.Nifti1Image(values, affine), low)
        status, _, error = petsim("recipes", "prepare", "udpet", data, "--out", tmp_path / "set")
        assert status == 1 and error.count("\n") == 1 and "Anonymous-00_DRF-4.nii.gz" in error and word in error
    data = udpet(tmp_path / "data", 1)
    (data / "info.csv").write_text((data / "info.csv").read_text().replace("START", "NONE"))
    assert "DecayCorrection is NONE" in petsim("recipes", "prepare", "udpet", data, "--out", tmp_path / "set")[2]
    (data / "info.csv").unlink()
    status, _, error = petsim("recipes", "prepare", "udpet", data, "--out", tmp_path / "set")
    assert status == 1 and error.count("\n") == 1 and "units are not known" in error
    assert not [p for p in (tmp_path / "set").rglob("*") if p.is_file()]


SECRETS = (b"Secret", b"Person", b"4711", b"19610203", b"20200907", b"112011", b"Hidden", b"Hospital", b"Jane", b"Doe")


def test_nothing_identifies_anybody_in_what_is_written(petsim, tmp_path):
    """Names, IDs, dates and times of tags, folders and files are in no file that comes out."""
    for number in range(2):
        for dose, level in (("Full_dose", 1.0), ("1-20 dose", 1.02)):
            stored = np.random.default_rng(number).integers(1, 900, (8, 10, 12))
            slices = [pet_slice(k, (stored[k] * level).astype(int), 5.0 * k) for k in range(8)]
            for ds in slices:
                ds.ManufacturerModelName = "uEXPLORER"
                ds.DecayFactor = f"{factor(0.0):.6g}"
            folder = tmp_path / "data" / f"Jane Doe {number} 4711" / dose
            folder.mkdir(parents=True)
            write_series(folder / "Secret Person", slices)
    status, out, error = petsim("recipes", "prepare", "udpet", tmp_path / "data", "--out", tmp_path / "set")
    assert status == 0, error
    status, out2, error = petsim(
        "recipes",
        "prepare",
        "dicom-pet",
        tmp_path / "data",
        "--out",
        tmp_path / "subjects",
        "--skip",
        "1-20 dose",
        "Jane Doe 1 4711",
    )
    assert status == 0, error
    files = [p for name in ("set", "subjects") for p in (tmp_path / name).rglob("*") if p.is_file()]
    assert len(files) == 4
    for path in files:
        contents = path.read_bytes() + str(path.relative_to(tmp_path)).encode()
        for secret in (*SECRETS, str(tmp_path).encode()):
            assert secret not in contents, (path.name, secret)
            assert secret.decode().encode("utf-16-le") not in contents
    for secret in SECRETS:
        assert secret.decode() not in (out + out2).replace(str(tmp_path), "")


def phantom(folder: Path) -> Path:
    """A box of water with a hot box in it, as labels and a table."""
    folder.mkdir()
    labels = np.zeros((16, 16, 12), np.uint8)
    labels[2:-2, 2:-2, 1:-1] = 1
    labels[6:9, 6:9, 4:8] = 2
    (folder / "phantom.toml").write_text(
        'name = "box"\nlabels = "box.raw"\norgans = "organs.csv"\nshape = [16, 16, 12]\nspacing_mm = [10, 10, 10]\n'
        'type = "uint8"\naxes = ["right", "front", "head"]\n'
    )
    (folder / "box.raw").write_bytes(labels.transpose(2, 1, 0).tobytes())
    (folder / "organs.csv").write_text("label,name,suv,mu_per_cm\n0,outside,0,0\n1,body,1,0.096\n2,lesion_1_body,5,0.096\n")
    return folder


QUICK = ["--scanner", str(Path(__file__).parent.parent / "small_scanner.toml"), "--preset", "fast", "--voxel-mm", "20",
         "--iterations", "1", "--duration-s", "1", "--scatter", "none", "--randoms", "none", "--corrections", "oracle",
         "--drf", "4"]  # fmt: skip


def test_prepared_phantoms_are_simulated_with_their_truth(petsim, tmp_path):
    assert petsim("recipes", "prepare", "voxel-phantom", phantom(tmp_path / "box"), "--out", tmp_path / "subjects")[0] == 0
    (source,) = (tmp_path / "subjects").iterdir()
    status, _, error = petsim("make-dataset", source, *QUICK, "--out", tmp_path / "set")
    assert status == 0, error
    (path,) = (tmp_path / "set").glob("*.h5")
    with SubjectFile(path) as f:
        told = f.json("provenance")
        assert told["truth_is_noisy"] is False and told["full_dose"] == "simulated" and told["mu_source"] == "phantom"
        assert "reference/noise_free" in f.h5 and f.label_names[2] == "lesion_1_body"
        assert told["source"]["recipe"] == "voxel-phantom" and 0 <= told["source"]["split_bucket"] < 100
    status, _, error = petsim("make-dataset", source, *QUICK, "--out", tmp_path / "other", "--full-dose", "source")
    assert status == 2 and "--full-dose source: phantoms" in error
