"""The command line: one line for whatever is wrong, the right exit status, nothing half-written."""

import json
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from petsim import cli
from petsim.settings import SimulationSettings
from tests.helpers import one_line

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")
QUICK = ["--scanner", SMALL, "--preset", "fast", "--voxel-mm", "20", "--iterations", "1", "--duration-s", "1",
         "--scatter", "none", "--randoms", "none", "--corrections", "oracle"]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--drf", "0"], ["--drf", "0 is not"]),
        (["--drf", "0.5"], ["--drf", "0.5"]),
        (["--drf", "-4"], ["-4"]),
        (["--drf", "4", "10", "4"], ["--drf", "twice"]),
        (["--drf", "4.0000001", "4.0000002"], ["--drf", "4 is given twice"]),
        (["--drf", "four"], ["--drf", "four"]),
        (["--drf", "nan"], ["--drf", "nan"]),
        (["--scanner", "quadra"], ["biograph_vision_quadra"]),
        (["--mode", "half"], ["--mode", "thin"]),
        (["--bogus", "1"], ["--bogus"]),
        (["--preset", "best"], ["--preset", "fast, standard, full"]),
        (["--subjects", "0"], ["--subjects"]),
        (["--workers", "0"], ["--workers"]),
        (["--shard", "0/2"], ["--shard"]),
        (["--voxel-mm", "-1"], ["--voxel-mm"]),
        (["--slab", "-5"], ["--slab"]),
        (["--realizations", "0"], ["--realizations"]),
        (["--duration-s", "abc"], ["--duration-s"]),
        (["--full-dose", "source"], ["--full-dose"]),
        (["--ct", "x"], ["--ct", "SOURCE"]),
        (["--slab", "2000"], ["--slab"]),
        (["--center-mm", "9000", "--slab", "50"], ["--center-mm"]),
    ],
)  # fmt: skip
def test_wrong_flags_end_with_status_2(petsim, tmp_path, args, words):
    status, _, error = petsim("make-dataset", "--out", tmp_path / "set", *args)
    one_line(status, error, 2, *words)
    assert not list(tmp_path.glob("set/*"))


def nifti(path, values, affine=None):
    affine = np.diag([8.0, 8.0, 8.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)
    return path


def body(shape=(40, 40, 8)):
    x, y, _ = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    return np.where(np.hypot(x, y) < 12, 5000.0, 0.0)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (np.full((20, 20, 6), np.nan), "NaN"),
        (np.full((20, 20, 6), np.inf), "infinite"),
        (np.full((20, 20, 6), -1.0), "negative"),
        (np.ones((20, 20, 6, 3)), "4"),
        (np.ones((20, 20)), "2"),
        (np.zeros((20, 20, 6)), "zero"),
    ],
)
def test_images_that_no_patient_has_are_refused(petsim, tmp_path, values, word):
    source = nifti(tmp_path / "pet.nii.gz", values)
    status, _, error = petsim("make-dataset", source, "--source-units", "bqml", *QUICK, "--out", tmp_path / "set")
    one_line(status, error, 1, word)
    assert not list(tmp_path.glob("set/*"))


def test_units_have_to_be_known(petsim, tmp_path):
    source = nifti(tmp_path / "pet.nii.gz", body())
    status, _, error = petsim("make-dataset", source, *QUICK, "--out", tmp_path / "set")
    one_line(status, error, 1, "--source-units")


def test_a_mu_map_elsewhere_is_refused(petsim, tmp_path):
    source = nifti(tmp_path / "pet.nii.gz", body())
    far = np.diag([8.0, 8.0, 8.0, 1.0])
    far[2, 3] = 5000
    mu = nifti(tmp_path / "mu.nii.gz", body() / 5e4, far)
    status, _, error = petsim(
        "make-dataset", source, "--source-units", "bqml", "--mu", mu, *QUICK, "--out", tmp_path / "set"
    )
    one_line(status, error, 1, "overlap")


def test_a_missing_source_is_one_line(petsim, tmp_path):
    status, _, error = petsim("make-dataset", tmp_path / "nobody.nii.gz", *QUICK, "--out", tmp_path / "set")
    one_line(status, error, 1, "nobody.nii.gz")


def test_an_output_that_is_a_file_is_one_line(petsim, tmp_path):
    (tmp_path / "set").write_text("in the way")
    status, _, error = petsim("make-dataset", *QUICK, "--slab", "60", "--out", tmp_path / "set")
    one_line(status, error, 1, "--out")


def test_a_subject_longer_than_the_scanner_is_refused(petsim, tmp_path):
    source = nifti(tmp_path / "pet.nii.gz", body((40, 40, 60)))
    status, _, error = petsim("make-dataset", source, "--source-units", "bqml", *QUICK, "--out", tmp_path / "set")
    one_line(status, error, 1, "--center-mm", "biograph_vision_quadra")


def test_too_little_memory_names_a_setting_that_fits(petsim, tmp_path):
    args = ["make-dataset", "--slab", "60", "--out", tmp_path / "set"]
    status, _, error = petsim(*args, "--preset", "full", "--memory-gb", "1")
    one_line(status, error, 1, "--memory-gb", "--preset fast")
    status, _, error = petsim(*args, "--memory-gb", "0.05")
    one_line(status, error, 1, "--memory-gb")
    assert "--preset" not in error


def test_commands_on_folders_that_are_no_datasets(petsim, tmp_path):
    for command in (["verify"], ["report"], ["export", "--out", tmp_path / "out"]):
        status, _, error = petsim(*command[:1], tmp_path, *command[1:])
        one_line(status, error, 1, "dataset")


def test_an_image_becomes_a_ladder_and_json_is_the_last_line(petsim, tmp_path):
    source = nifti(tmp_path / "pet.nii.gz", body())
    args = ["make-dataset", source, "--source-units", "bqml", "--drf", "4", "--out", tmp_path / "set", "--json", *QUICK]
    status, out, error = petsim(*args)
    assert status == 0, error
    result = json.loads(out.splitlines()[-1])
    assert result["in_dataset"] == 1 and set(result["subjects"][0]["counts"]) == {"1", "4"}
    status, out, _ = petsim("verify", tmp_path / "set", "--json")
    assert status == 0 and json.loads(out.splitlines()[-1])["problems"] == []
    # DRF 1 is the source itself, on the dataset's grid.
    from petsim.cache.store import SubjectFile

    with SubjectFile(next((tmp_path / "set").glob("*.h5"))) as f:
        truth = f.array("truth/activity")
        np.testing.assert_allclose(f.image(0), truth, atol=1e-3 * truth.max())
        assert f.json("provenance")["truth_is_noisy"] is True
        assert f.array("reference/noise_free") is None
        assert "pet.nii" not in f.h5.attrs["provenance"]


def test_dry_run_writes_nothing(petsim, tmp_path):
    args = ["make-dataset", *QUICK, "--slab", "64", "--dry-run", "--json", "--out", tmp_path / "set"]
    status, out, error = petsim(*args)
    assert status == 0, error
    result = json.loads(out.splitlines()[-1])
    assert result["expected_prompts"]["1"] == pytest.approx(4 * result["expected_prompts"]["4"], rel=1e-3)
    assert set(result) >= {"liver_cov", "seconds_per_subject", "memory_gb", "disk_mb_per_subject", "read"}
    assert not (tmp_path / "set").exists()


def test_verify_ends_with_status_1_on_problems(petsim, tmp_path):
    petsim("make-dataset", *QUICK, "--slab", "64", "--subjects", "1", "--drf", "4", "--out", tmp_path / "set")
    path = next((tmp_path / "set").glob("*.h5"))
    path.write_bytes(path.read_bytes()[:-100])
    status, out, _ = petsim("verify", tmp_path / "set")
    assert status == 1 and "problem:" in out


def test_scanners_prints_sources(petsim):
    status, out, _ = petsim("scanners", "biograph_vision_quadra")
    assert status == 0 and "jnumed.121.261972" in out
    status, out, _ = petsim("scanners", "--json")
    assert "biograph_mmr" in json.loads(out.splitlines()[-1])["scanners"]


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['petsim', '--help']\n"
        "from petsim.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numba', 'h5py', 'scipy', 'torch', 'matplotlib', 'nibabel', 'pydicom'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.monotonic() - started < 5  # a hang, not a benchmark: the measured figure is in the README


def test_drf_sets_and_order():
    make = cli.parse(["make-dataset", "--drf-set", "udpet"])
    assert cli.request_of(make).settings.drf == (4.0, 10.0, 20.0, 50.0, 100.0)
    make = cli.parse(["make-dataset", "--drf", "20", "4", "1"])
    assert SimulationSettings(drf=cli.parse_drfs(make.drf)).ladder() == (1.0, 4.0, 20.0)
