"""Datasets: whole files only, and the same bytes however they were made."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from data_recipes.errors import DataError
from petsim.cache.schema import pack, unpack
from petsim.cache.store import SubjectFile, assign_splits, read_index, write_index
from petsim.dataset import make_dataset
from petsim.export import dose_name, export_nifti
from petsim.verify import verify
from tests import kill_driver

ROOT = Path(__file__).resolve().parents[2]


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    import data_recipes.phantoms.whole_body as module

    monkeypatch.setattr(module, "whole_body", module.whole_body)
    kill_driver.coarse_patients()


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """A dataset made without any interruption."""
    folder = tmp_path_factory.mktemp("reference") / "set"
    with pytest.MonkeyPatch.context() as patch:
        import data_recipes.phantoms.whole_body as module

        patch.setattr(module, "whole_body", module.whole_body)
        kill_driver.coarse_patients()
        make_dataset(kill_driver.request(str(folder)))
    return folder


@pytest.fixture(scope="module")
def physical(tmp_path_factory) -> Path:
    """A dataset with scatter, randoms and estimated corrections."""
    folder = tmp_path_factory.mktemp("physical") / "set"
    with pytest.MonkeyPatch.context() as patch:
        import data_recipes.phantoms.whole_body as module

        patch.setattr(module, "whole_body", module.whole_body)
        kill_driver.coarse_patients()
        make_dataset(kill_driver.physical_request(str(folder)))
    return folder


def test_a_dataset_verifies_and_has_every_split(reference):
    result = verify(reference)
    assert result["problems"] == [] and result["subjects"] == 3
    assert {s["split"] for s in read_index(reference)["subjects"]} == {"train", "val", "test"}
    assert sorted(p.suffix for p in reference.iterdir()) == [".h5", ".h5", ".h5", ".json"]


def test_files_hold_what_schema_1_says(reference):
    path = next(reference.glob("*.h5"))
    with SubjectFile(path) as f:
        assert f.drfs == [1.0, 4.0, 20.0]
        recon = f.h5["recon"]
        assert recon.dtype == np.float16 and recon.shape[:2] == (3, 1)
        table = f.doses()
        assert np.all(table["prompts"] == table["trues"]) and np.all(table["scatter"] == 0)
        assert np.all(np.diff(table["prompts"][:, 0]) < 0)
        assert f.json("provenance")["not_modeled"] == ["scatter", "randoms", "dead time"]
        assert f.array("reference/noise_free") is not None
        # SUV factor: 1 / (MBq at scan start / kg) in Bq and g.
        injection = f.json("provenance")["injection"]
        at_scan = injection["injected_mbq"] * 0.5 ** (injection["uptake_s"] / 6586.2)
        assert f.suv_factor == pytest.approx(injection["weight_kg"] * 1e3 / (at_scan * 1e6), rel=1e-6)
        text = f.h5.attrs["configuration"] + f.h5.attrs["provenance"]
    assert str(ROOT) not in text and str(reference) not in text


def test_packing_keeps_eleven_bits():
    values = np.array([0.0, 1.0, -3.5, 8.123e6, 55.0], np.float32)
    stored, scale = pack(values)
    np.testing.assert_allclose(unpack(stored, scale), values, rtol=2**-11, atol=8.123e6 / 32768 * 2**-14)


def test_components_and_corrections_are_stored(physical):
    assert verify(physical)["problems"] == []
    with SubjectFile(next(physical.glob("*.h5"))) as f:
        table, provenance = f.doses(), f.json("provenance")
        assert np.all(table["scatter"][:, 0] > 0) and np.all(table["randoms"][:, 0] > 0)
        assert np.all(table["nec"] < table["prompts"])
        assert provenance["not_modeled"] == [] and provenance["reconstruction"]["corrections"] == "estimated"
        (found,) = provenance["reconstruction"]["by_realization"]
        assert len(found["scatter_scales"]) == len(found["estimated_minus_true"]["singles"]) == len(f.drfs) + 1


@pytest.mark.parametrize("mode", ["window", "dose"])
def test_datasets_of_other_modes_verify(tmp_path, mode):
    request = kill_driver.physical_request(str(tmp_path / "set"), mode=mode)
    make_dataset(replace(request, subjects=1))
    assert verify(tmp_path / "set")["problems"] == []
    with SubjectFile(next((tmp_path / "set").glob("*.h5"))) as f:
        assert f.h5["doses"].attrs["mode"] == mode


def test_two_workers_make_the_same_files(physical, tmp_path):
    script = ("from tests import kill_driver; from petsim.dataset import make_dataset; import sys\n"
              "if __name__ == '__main__':\n"
              "    make_dataset(kill_driver.physical_request(sys.argv[1]), workers=2)\n")  # fmt: skip
    (tmp_path / "run.py").write_text(script)
    spawned = tmp_path / "sitecustomize.py"
    # Spawned workers import this module by itself, and have to use the coarse patients too.
    spawned.write_text("from tests import kill_driver\nkill_driver.coarse_patients()\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, str(tmp_path / "run.py"), str(tmp_path / "set")], check=True, env=env)
    assert contents(tmp_path / "set") == contents(physical)


def test_shards_make_the_same_files(reference, tmp_path):
    for first in (2, 1):
        make_dataset(kill_driver.request(str(tmp_path / "set")), shard=(first, 2))
    assert contents(tmp_path / "set") == contents(reference)


def test_running_again_changes_nothing(reference):
    before = {p.name: p.stat().st_mtime_ns for p in reference.glob("*.h5")}
    result = make_dataset(kill_driver.request(str(reference)))
    assert not any(s["made"] for s in result["subjects"])
    assert {p.name: p.stat().st_mtime_ns for p in reference.glob("*.h5")} == before


def test_a_killed_dataset_is_completed_to_the_same_bytes(reference, tmp_path):
    """SIGKILL at twenty random moments after a subject was begun, inside the write and the rename too; then re-run."""
    rng = random.Random(0)
    folder = tmp_path / "set"
    kills = 0
    places = ["none"] * 12 + ["write"] * 4 + ["rename"] * 4
    rng.shuffle(places)
    for place in places:
        if len(list(folder.glob("*.h5"))) == 3:
            # A finished set gives nothing to kill: start over with one subject lost.
            next(folder.glob("*.h5")).unlink()
        process = subprocess.Popen([sys.executable, "-m", "tests.kill_driver", str(folder), place], cwd=ROOT,
                                   stdout=subprocess.PIPE, text=True)  # fmt: skip
        assert process.stdout is not None
        wanted = "begun" if place == "none" else "paused"
        for line in process.stdout:
            if line.strip() == wanted:
                break
        if place == "none":
            time.sleep(rng.uniform(0.0, 1.0))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        for path in folder.glob("*.h5"):
            with h5py.File(path) as f:
                assert "recon" in f and "configuration_sha256" in f.attrs
    assert kills >= 16
    make_dataset(kill_driver.request(str(folder)))
    assert contents(folder) == contents(reference)


def test_other_settings_are_refused_unless_overwrite(reference, tmp_path):
    request = kill_driver.request(str(tmp_path / "set"))
    request = replace(request, subjects=1)
    make_dataset(request)
    other = replace(request, settings=replace(request.settings, seed=5))
    with pytest.raises(DataError, match="--overwrite"):
        make_dataset(other)
    make_dataset(other, overwrite=True)
    assert [s["name"] for s in read_index(tmp_path / "set")["subjects"]] == ["phantom-balanced-50000"]


def test_more_subjects_can_be_added(reference, tmp_path):
    folder = tmp_path / "set"
    make_dataset(replace(kill_driver.request(str(folder)), subjects=1))
    make_dataset(kill_driver.request(str(folder)))
    assert contents(folder) == contents(reference)


def test_sinograms_are_stored_when_asked_for(tmp_path):
    request = replace(kill_driver.request(str(tmp_path / "set")), subjects=1, save=("recon", "sinogram"))
    make_dataset(request)
    assert verify(tmp_path / "set")["problems"] == []
    with SubjectFile(next((tmp_path / "set").glob("*.h5"))) as f:
        sinogram = f.h5["sinogram"][()].astype(np.int64)
        np.testing.assert_array_equal(sinogram.sum(axis=(2, 3, 4, 5)), f.h5["doses/prompts"][()])
        assert np.all(np.diff(sinogram, axis=0) <= 0)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    import petsim.cache.store as store

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_exact", full)
    with pytest.raises(DataError, match="disk is full"):
        make_dataset(replace(kill_driver.request(str(tmp_path / "set")), subjects=1))
    assert list((tmp_path / "set").iterdir()) == []


def test_too_small_a_disk_is_said_before_simulating(tmp_path, monkeypatch):
    import petsim.dataset as dataset

    monkeypatch.setattr(dataset.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(DataError, match="free some space"):
        make_dataset(replace(kill_driver.request(str(tmp_path / "set")), subjects=1))


def copy_of(reference: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in reference.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_verify_finds_damage(reference, tmp_path):
    changed = copy_of(reference, tmp_path / "changed")
    path = sorted(changed.glob("*.h5"))[0]
    with h5py.File(path, "r+") as f:
        f["recon"][0, 0, 1, 1, 1] = np.float16(np.nan)
        f["doses/prompts"][1, 0] = f["doses/prompts"][0, 0]
    problems = "\n".join(verify(changed)["problems"])
    assert "/recon differs from its hash" in problems
    assert "NaN" in problems
    assert "DRF 4" in problems and "expected" in problems
    assert "differs from the hash in the index" in problems

    cut = copy_of(reference, tmp_path / "cut")
    path = sorted(cut.glob("*.h5"))[0]
    path.write_bytes(path.read_bytes()[:5000])
    assert any("not a readable HDF5 file" in p for p in verify(cut)["problems"])

    lost = copy_of(reference, tmp_path / "lost")
    sorted(lost.glob("*.h5"))[0].unlink()
    assert any("not there" in p for p in verify(lost)["problems"])


def test_the_index_can_be_rebuilt(reference, tmp_path):
    folder = copy_of(reference, tmp_path / "copy")
    (folder / "dataset.json").unlink()
    write_index(folder)
    assert contents(folder) == contents(reference)


def test_splits_do_not_depend_on_order_and_none_is_empty():
    names = [f"s{k}" for k in range(20)]
    splits = assign_splits(names)
    assert splits == assign_splits(names[::-1])
    assert sorted(set(splits.values())) == ["test", "train", "val"]
    assert {assign_splits(names[:n])[x] for n in (3,) for x in names[:n]} == {"test", "train", "val"}
    assert assign_splits(["one"]) == {"one": "train"}


def test_export_has_the_right_affine_values_and_names(reference, tmp_path):
    files = export_nifti(reference, tmp_path / "nifti", "suv")
    assert "phantom-balanced-0000_drf-020_real-0.nii.gz" in files and "phantom-balanced-0000_noise-free.nii.gz" in files
    with SubjectFile(reference / "phantom-balanced-0000.h5") as f:
        image = nib.load(tmp_path / "nifti" / "phantom-balanced-0000_drf-020_real-0.nii.gz")
        np.testing.assert_allclose(image.affine, f.affine, rtol=1e-6, atol=1e-4)
        np.testing.assert_allclose(image.get_fdata(), f.image(2) * f.suv_factor, rtol=1e-5, atol=1e-5)
        labels = nib.load(tmp_path / "nifti" / "phantom-balanced-0000_labels.nii.gz")
        np.testing.assert_array_equal(np.asarray(labels.dataobj), f.h5["truth/labels"][()])


@pytest.mark.parametrize(("drf", "name"), [(1, "drf-001"), (20, "drf-020"), (2.5, "drf-002p5"), (100, "drf-100")])
def test_names_sort_by_dose(drf, name):
    assert dose_name(drf) == name


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_a_dataset_that_the_same_command_completes(tmp_path, workers):
    command = [sys.executable, "-c", "from petsim.cli import main; main()", "make-dataset", "--scanner", kill_driver.SCANNER,
               "--slab", "64", "--voxel-mm", "20", "--iterations", "1", "--duration-s", "1", "--subjects", "3",
               "--scatter", "none", "--randoms", "none", "--corrections", "oracle",
               "--out", str(tmp_path / "set"), "--workers", str(workers)]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    started = time.monotonic()
    while not list((tmp_path / "set").glob("*.h5")) and time.monotonic() - started < 120:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    if process.returncode != 0:  # it may have been quicker than the signal
        assert process.returncode == 130, error
        assert "Traceback" not in error and error.strip().count("\n") == 0, error
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert verify(tmp_path / "set")["problems"] == []
    assert len(read_index(tmp_path / "set")["subjects"]) == 3
    assert not list((tmp_path / "set").glob("*.tmp"))


def test_a_damaged_dataset_is_repaired_and_completed(reference, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(reference, folder)
    first, second, _ = sorted(folder.glob("*.h5"))
    first.write_bytes(first.read_bytes()[:3000])
    with h5py.File(second, "r+") as f:
        f["recon"][0, 0, 0, 0, 0] = 7
    (folder / "phantom-0009.h5.tmp").write_bytes(b"left")
    (folder / "dataset.json").unlink()
    result = verify(folder, repair=True)
    assert result["problems"] == [] and result["subjects"] == 1
    assert [text.split(":")[0] for text in result["repairs"]] == [
        "phantom-0009.h5.tmp", first.name, second.name, "dataset.json",
    ]  # fmt: skip
    assert (folder / f"{first.name}.damaged").exists() and not first.exists()
    make_dataset(kill_driver.request(str(folder)))
    assert contents(reference).items() <= contents(folder).items()
    assert verify(folder, repair=True) == verify(folder) | {"repairs": []}


def test_repair_leaves_alone_what_is_not_damaged(reference, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(reference, folder)
    newer = min(folder.glob("*.h5"))
    with h5py.File(newer, "r+") as f:
        f.attrs["schema_version"] = 2
    with h5py.File(folder / "phantom-0009.h5.tmp", "w"):
        with pytest.raises(DataError, match="schema version is 2"):
            verify(folder, repair=True)
        assert newer.exists() and (folder / "phantom-0009.h5.tmp").exists()


def test_nothing_to_repair_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match="holds no subject"):
        verify(tmp_path, repair=True)
