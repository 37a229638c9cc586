"""Fresh realizations: those of the dataset where the number is one of its own, and others where it is not."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import h5py
import nibabel as nib
import numpy as np
import pytest

from data_recipes.errors import DataError, UsageError
from petsim.cache.live import DoseCache, listed, read_note, read_volume
from petsim.cache.store import SubjectFile, read_index
from petsim.cli import main
from petsim.dataset import Job, ReadOptions, make_dataset
from petsim.fresh import FIRST, Paths, Simulator, origins
from petsim.producer import STATE
from petsim.serve import CONTENTS, ServeOptions, serve
from tests import kill_driver

PATHS = Paths(scanner=kill_driver.SCANNER)


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    import data_recipes.phantoms.whole_body as module

    monkeypatch.setattr(module, "whole_body", module.whole_body)
    kill_driver.coarse_patients()


def physical_dataset(folder, **changes):
    request = kill_driver.physical_request(str(folder), realizations=2, **changes)
    make_dataset(replace(request, subjects=3))
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        import data_recipes.phantoms.whole_body as module

        patch.setattr(module, "whole_body", module.whole_body)
        kill_driver.coarse_patients()
        return physical_dataset(tmp_path_factory.mktemp("fresh") / "set")


def simulator(folder, store, kept_bytes=1e9, memory_bytes=4e9):
    return Simulator(origins(folder, PATHS), store, kept_bytes, memory_bytes)


def train_subject(folder):
    return next(s["name"] for s in read_index(folder)["subjects"] if s["split"] == "train")


def stored(folder, name, dose, realization):
    with SubjectFile(folder / f"{name}.h5") as f:
        return f.image(dose, realization), {k: v[dose, realization] for k, v in f.doses().items()}


@pytest.mark.parametrize("mode", ["thin", "dose"])
def test_a_realization_of_the_dataset_comes_out_again(dataset, tmp_path, mode):
    """Kept line integrals, other doses beside it and another process change nothing."""
    folder = dataset if mode == "thin" else physical_dataset(tmp_path / "dose", mode=mode)
    name = train_subject(folder)
    stores = ((tmp_path / "a", 1e9), (tmp_path / "a", 1e9), (tmp_path / "b", 0))
    for simulate in (simulator(folder, *store) for store in stores):
        for realization in (1, 0):
            made = simulate(name, (4.0, 20.0), realization)
            for dose, one in zip((1, 2), made, strict=True):
                image, row = stored(folder, name, dose, realization)
                np.testing.assert_allclose(one.image, image, atol=2e-3 * image.max())
                assert one.counts["prompts"] == row["prompts"]
                assert one.counts["nec"] == pytest.approx(row["nec"], rel=1e-9)
            alone = simulate(name, (20.0,), realization)[0]
            np.testing.assert_allclose(alone.image, made[1].image, rtol=1e-4, atol=1e-5 * made[1].image.max())
    with h5py.File(next((tmp_path / "a").glob("*.h5"))) as f:
        assert "line_integrals" in f
    with h5py.File(next((tmp_path / "b").glob("*.h5"))) as f:
        assert "line_integrals" not in f


def test_new_numbers_give_new_noise_of_the_same_size(dataset, tmp_path):
    simulate = simulator(dataset, tmp_path / "a")
    name = train_subject(dataset)
    first, again, other = (simulate(name, (4.0,), n)[0] for n in (FIRST, FIRST, FIRST + 1))
    np.testing.assert_array_equal(first.image, again.image)
    image, row = stored(dataset, name, 1, 0)
    assert first.counts["prompts"] != other.counts["prompts"]
    assert abs(first.counts["prompts"] - row["prompts"]) < 6 * np.sqrt(2 * row["prompts"])
    differences = [np.std(a - b) for a, b in ((first.image, other.image), (first.image, image), (other.image, image))]
    assert min(differences) > 0.5 * max(differences) > 0


def test_any_dose_can_be_asked_for(dataset, tmp_path):
    simulate = simulator(dataset, tmp_path / "a")
    made = simulate(train_subject(dataset), (2.5, 17.3), FIRST)
    assert made[0].counts["prompts"] / made[1].counts["prompts"] == pytest.approx(17.3 / 2.5, rel=0.1)


def test_forward_models_of_another_recipe_or_damaged_ones_are_made_again(dataset, tmp_path):
    name = train_subject(dataset)
    simulator(dataset, tmp_path / "a")(name, (4.0,), 0)
    path = tmp_path / "a" / f"{name}.h5"
    for damage in (b"no HDF5", path.read_bytes()[:5000]):
        path.write_bytes(damage)
        made = simulator(dataset, tmp_path / "a")(name, (4.0,), 0)[0]
        image, _ = stored(dataset, name, 1, 0)
        np.testing.assert_allclose(made.image, image, atol=2e-3 * image.max())
    with h5py.File(path, "r+") as f:
        f.attrs["key"] = "another"
        f["line_integrals"][...] = 0
    made = simulator(dataset, tmp_path / "a")(name, (4.0,), 0)[0]
    np.testing.assert_allclose(made.image, image, atol=2e-3 * image.max())


def test_the_cache_makes_them_when_asked(dataset, tmp_path):
    subjects = origins(dataset, PATHS)
    simulate = Simulator(subjects, tmp_path / "forward", 1e9, 4e9)
    cache = DoseCache(tmp_path / "cache", 1e9, {name: o.recipe() for name, o in subjects.items()}, simulate)
    kept = cache.get(train_subject(dataset), 4.0, 0)
    image, _ = stored(dataset, train_subject(dataset), 1, 0)
    np.testing.assert_allclose(kept.image.volume(), image, atol=2e-3 * image.max())


def changed_copy(dataset, folder, change):
    """The dataset with another configuration in its training subject's file."""
    shutil.copytree(dataset, folder)
    with h5py.File(folder / f"{train_subject(dataset)}.h5", "r+") as f:
        known = json.loads(str(f.attrs["configuration"]))
        change(known)
        f.attrs["configuration"] = json.dumps(known)
    return folder


def test_a_dataset_of_other_settings_is_refused(dataset, tmp_path):
    with pytest.raises(UsageError, match="small_scanner"):
        origins(dataset, Paths())
    moved = tmp_path / "small_scanner.toml"
    shutil.copy(kill_driver.SCANNER, moved)
    (origin,) = origins(dataset, Paths(scanner=str(moved))).values()
    assert origin.request.settings.drf == (1.0, 4.0, 20.0)
    for k, (change, words) in enumerate((
        (lambda c: c["preset_values"].update(filter_mm=1.0), "other values of preset_values"),
        (lambda c: c.pop("drf"), "has no 'drf'"),
        (lambda c: c.update(source="image"), "--source"),
    )):  # fmt: skip
        with pytest.raises(DataError, match=words):
            origins(changed_copy(dataset, tmp_path / str(k), change), PATHS)


def test_subjects_keep_their_own_settings(dataset, tmp_path):
    """As where every patient was scanned around an organ of its own."""
    name = train_subject(dataset)
    other = changed_copy(dataset, tmp_path / "other", lambda c: c.update(duration_s=9.0))
    (origin,) = origins(other, PATHS).values()
    assert origin.request.settings.duration_s == 9.0
    longer = Simulator({name: origin}, tmp_path / "a", 1e9, 4e9)(name, (4.0,), 0)[0]
    here = simulator(dataset, tmp_path / "b")(name, (4.0,), 0)[0]
    assert longer.counts["prompts"] > 5 * here.counts["prompts"]


def test_origins_are_those_of_the_split(dataset):
    name = train_subject(dataset)
    assert {k: o.job for k, o in origins(dataset, PATHS).items()} == {name: Job(name, seed=int(name[-4:]))}
    with pytest.raises(DataError, match="split 'none'"):
        origins(dataset, PATHS, split="none")


def test_a_subject_that_is_no_longer_generated_as_it_was_is_refused(dataset, tmp_path):
    name = train_subject(dataset)
    (origin,) = origins(dataset, PATHS).values()
    with pytest.raises(DataError, match="not what it was"):
        Simulator({name: replace(origin, source_sha256="0")}, tmp_path / "a", 1e9, 4e9)(name, (4.0,), 0)


def test_serving_fills_a_cache_that_says_what_it_holds(dataset, tmp_path):
    options = ServeOptions(str(dataset), str(tmp_path / "live"), scanner=kill_driver.SCANNER, drf=(4.0, 20.0))
    state = serve(options, lambda: read_note(tmp_path / "live", STATE) is None)
    assert (state["made"], state["volumes"], state["realization"]) == (1, 3, FIRST)
    contents = read_note(tmp_path / "live", CONTENTS)
    assert contents is not None and contents["drf"] == [4.0, 20.0]
    assert contents["configuration_sha256"] == read_index(dataset)["configuration_sha256"]
    name = train_subject(dataset)
    volumes = listed(tmp_path / "live" / contents["subjects"][name])
    assert [(r, d) for r, d, _ in volumes] == [(FIRST, 1.0), (FIRST, 4.0), (FIRST, 20.0)]
    image, _ = stored(dataset, name, 1, 0)
    kept = read_volume(volumes[1][2])
    assert kept is not None
    fresh = kept.image.volume()
    assert fresh.sum() == pytest.approx(image.sum(), rel=0.2) and not np.allclose(fresh, image, rtol=0.01)


TWO = """
import sys
from pathlib import Path
from tests import kill_driver
kill_driver.coarse_patients()
from petsim.fresh import Paths, Simulator, origins
subjects = origins(Path(sys.argv[1]), Paths(scanner=kill_driver.SCANNER))
simulate = Simulator(subjects, Path(sys.argv[2]), 1e9, 4e9)
sys.stdin.readline()
simulate(next(iter(subjects)), (4.0,), int(sys.argv[3]))
"""


def test_two_producers_may_find_a_forward_model_at_once(dataset, tmp_path):
    root = kill_driver.Path(kill_driver.__file__).parents[1]
    both = [
        subprocess.Popen([sys.executable, "-c", TWO, str(dataset), str(tmp_path / "forward"), str(k)], text=True, cwd=root,
                         stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for k in range(2)
    ]  # fmt: skip
    ended = [process.communicate("\n")[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert [p.suffix for p in sorted((tmp_path / "forward").iterdir())] == [".h5", ".lock"]


def test_line_integrals_of_subjects_of_no_one_make_room(dataset, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "phantom-7777.h5").write_bytes(b"0" * 10_000_000)
    name = train_subject(dataset)
    simulator(dataset, tmp_path / "a", 9e6)(name, (4.0,), 0)
    with h5py.File(tmp_path / "a" / f"{name}.h5") as f:
        assert "line_integrals" in f
    # Made without them at first, and with them as soon as there is room.
    simulator(dataset, tmp_path / "b", 0)(name, (4.0,), 0)
    simulator(dataset, tmp_path / "b", 1e9)(name, (4.0,), 0)
    with h5py.File(tmp_path / "b" / f"{name}.h5") as f:
        assert "line_integrals" in f


def test_memory_that_does_not_do_is_one_clear_line_whose_advice_does(dataset, tmp_path):
    name = train_subject(dataset)
    with pytest.raises(DataError, match="--memory-gb") as refused:
        simulator(dataset, tmp_path / "a", memory_bytes=1e8)(name, (4.0,), 0)
    wanted = float(re.search(r"--memory-gb ([0-9.]+)", str(refused.value))[1])
    assert "--preset" not in str(refused.value)
    assert simulator(dataset, tmp_path / "a", memory_bytes=1e9 * wanted)(name, (4.0,), 0)


@pytest.mark.parametrize(("changes", "words"), [
    ({"budget_gb": 0.0}, "must be positive"), ({"drf": (4.0,), "drf_range": (2.0, 8.0)}, "give one of them"),
    ({"drf_range": (2.0, 8.0), "draws": 0}, "--draws"),
])  # fmt: skip
def test_options_of_serving_that_cannot_be_are_refused(dataset, tmp_path, changes, words):
    options = replace(ServeOptions(str(dataset), str(tmp_path / "live"), scanner=kill_driver.SCANNER), **changes)
    with pytest.raises(UsageError, match=words):
        serve(options, lambda: False)


def test_a_cache_is_checked_mended_and_reported(dataset, tmp_path, capsys, monkeypatch):
    root = tmp_path / "live"
    serve(ServeOptions(str(dataset), str(root), scanner=kill_driver.SCANNER), lambda: read_note(root, STATE) is None)
    paths = [p for _, _, p in listed(next(root.glob("phantom-*")))]
    monkeypatch.setattr("sys.argv", ["petsim", "verify", str(root)])
    main()
    assert "3 volumes, 0 problems" in capsys.readouterr().out
    with h5py.File(paths[0], "r+") as f:
        f["recon"][0, 0, 0] = 7
    paths[1].write_bytes(b"damaged")
    with h5py.File(next((root / "forward").glob("*.h5")), "r+") as f:
        f["line_integrals"][0, 0, 0, 0] = 7
    (root / "forward" / "left.h5.tmp").write_bytes(b"left")
    shutil.copy(paths[2], paths[2].with_name("drf20_r7.h5"))
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr().out
    for words in (
        "differs from its hash",
        "cannot be read",
        "holds another volume",
        "/line_integrals differs",
        "left by",
        "4 volumes, 5 problems",
    ):
        assert words in out
    monkeypatch.setattr("sys.argv", ["petsim", "verify", str(root), "--repair"])
    main()
    assert capsys.readouterr().out.count("repaired: ") == 5
    assert [p for _, _, p in listed(paths[2].parent)] == [paths[2]]
    monkeypatch.setattr("sys.argv", ["petsim", "report", str(root)])
    main()
    page = (root / "report.html").read_text()
    for words in ("Producer at work: 1 realizations made", "1 volumes in", train_subject(dataset), "DRF 20"):
        assert words in page, words
    assert str(tmp_path) not in page


def test_a_measured_image_gets_fresh_noise_below_itself(tmp_path):
    """Noise is inserted as make-dataset does: full dose is the image itself."""
    rng = np.random.default_rng(0)
    paths = []
    for k in range(3):
        x, y, _ = np.meshgrid(*(np.arange(n) - n / 2 for n in (24, 24, 6)), indexing="ij")
        image = 5000.0 * ((x / 8) ** 2 + (y / 6) ** 2 < 1) * rng.uniform(0.8, 1.2, x.shape)
        paths.append(tmp_path / f"{k}.nii.gz")
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.diag([12.0, 12.0, 12.0, 1.0])), paths[-1])
    request = kill_driver.request(str(tmp_path / "set"))
    settings = replace(request.settings, full_dose="source", slab_mm=None, drf=(4.0,), duration_s=20.0)
    read = ReadOptions(units="bqml", weight_kg=70.0, injected_mbq=200.0, uptake_s=3600.0)
    sources = tuple(map(str, paths))
    make_dataset(replace(request, sources=sources, settings=settings, read=read))
    subjects = origins(tmp_path / "set", replace(PATHS, sources=sources))
    simulate = Simulator(subjects, tmp_path / "forward", 1e9, 4e9)
    (name,) = subjects
    full, low = simulate(name, (1.0, 4.0), 0)
    for dose, one in enumerate((full, low)):
        image, _ = stored(tmp_path / "set", name, dose, 0)
        np.testing.assert_allclose(one.image, image, atol=2e-3 * image.max())
    with pytest.raises(DataError, match=f"source of {name}"):
        others = tuple(s for s in sources if s != subjects[name].job.path)
        origins(tmp_path / "set", replace(PATHS, sources=others))
