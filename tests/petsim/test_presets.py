"""Presets and output grids as data: cited, unchanged where datasets depend on them, and in effect."""

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_recipes.errors import UsageError
from data_recipes.phantoms.analytic import cylinder
from data_recipes.readers.read import read_source
from petsim import cli
from petsim.counts import Storage
from petsim.dataset import Request, configuration
from petsim.geometry.scanner import CONTRAST_FIELDS, load_scanner, scanner_names
from petsim.geometry.sinogram import preset_layout, preset_merges
from petsim.model import build_model
from petsim.plan import plan_subject
from petsim.presets import ALGORITHMS, GRIDS, LAYOUT, NAMED_GRIDS, NAMED_PRESETS, OWN_PRESETS, PRESETS, Preset, preset_lines
from petsim.realizations import Realizations
from petsim.settings import SimulationSettings
from petsim.simulation import simulate_plan

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")


def test_our_own_presets_are_what_datasets_were_made_with():
    assert {name: PRESETS[name] for name in OWN_PRESETS} == {
        "fast": Preset(3, 4, 5, 15, 6.0, 4.0, 2, 7, 5.0),
        "standard": Preset(2, 2, 9, 15, 4.0, 2.5, 4, 5, 4.0),
        "full": Preset(1, 1, 19, 8, 3.3, 2.5, 4, 5, 4.0),
    }


def test_what_came_later_is_not_in_the_configuration_of_a_dataset_that_does_not_use_it():
    """So that a dataset made before goes on under the same hash."""
    known = configuration(Request("x", settings=SimulationSettings(preset="fast")))
    assert set(known["preset_values"]) == {
        "merge_transaxial", "merge_axial", "span", "merge_tof", "voxel_mm", "simulation_voxel_mm", "iterations", "subsets",
        "filter_mm",
    }  # fmt: skip
    assert not {"beds", "bed_overlap", "grid"} & set(known)
    assert not {"protocol_bed_overlap", *CONTRAST_FIELDS} & set(known["scanner_fields"])
    later = configuration(Request("x", settings=SimulationSettings(preset="mmr-op-osem", beds="auto", grid="quadra")))
    assert later["preset_values"]["tof"] is False and later["beds"] == "auto" and later["grid"] == "quadra"
    assert "protocol_bed_overlap" in later["scanner_fields"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_field_is_cited_and_possible(name):
    entry, preset = NAMED_PRESETS[name], PRESETS[name]
    given = {f.name for f in dataclasses.fields(Preset) if f.default is dataclasses.MISSING}
    assert given <= set(entry.values) and set(entry.values) == set(entry.sources)
    assert entry.title and all(entry.sources.values())
    assert preset.iterations >= 1 and preset.subsets >= 1 and preset.filter_mm >= 0 and preset.span % 2 == 1
    if name not in OWN_PRESETS:
        assert {"tof", "psf"} <= set(entry.values)
        like_full = [key for key in LAYOUT if entry.sources[key].startswith("as in")]
        assert {"merge_transaxial", "merge_axial", "span"} <= set(like_full)
        assert all(entry.values[key] == NAMED_PRESETS["full"].values[key] for key in like_full)


def test_vendors_subsets_are_fewer_than_the_views_of_every_scanner():
    for name in scanner_names():
        for preset in PRESETS.values():
            assert preset.subsets <= preset_layout(load_scanner(name), preset, 480.0).views


def test_a_preset_without_tof_has_none_on_a_scanner_that_has_it():
    scanner = load_scanner("biograph_vision_600")
    assert preset_merges(scanner, PRESETS["mmr-op-osem"])[2] == 0
    assert preset_merges(scanner, PRESETS["full"])[2] > 0
    assert not preset_layout(scanner, PRESETS["mmr-op-osem"], 480.0).is_tof


@pytest.mark.parametrize(("preset", "psf", "wanted"), [("full", True, True), ("full", False, False),
                                                       ("mmr-op-osem", True, False)])  # fmt: skip
def test_a_preset_without_psf_reconstructs_without(monkeypatch, preset, psf, wanted):
    class Begun(Exception):
        pass

    def begin(plan, operator, corrections, psf):
        raise Begun(psf)

    settings = SimulationSettings(
        scanner=SMALL, preset=preset, psf=psf, scatter="none", randoms="none", corrections="oracle", drf=()
    )
    plan = plan_subject(cylinder(length_mm=80.0), settings)
    monkeypatch.setattr("petsim.realizations.Reconstructor", begin)
    draws = Realizations(plan, settings, build_model(plan, settings), Storage("redrawn", 0.0, 0.0))
    with pytest.raises(Begun) as begun:
        draws.reconstructor(1)
    assert begun.value.args == (wanted,)


def test_overrides_go_over_a_vendors_preset():
    own = SimulationSettings(preset="earl1", voxel_mm=5.0, iterations=1, filter_mm=0.0).resolved_preset()
    assert (own.voxel_mm, own.iterations, own.filter_mm, own.subsets) == (5.0, 1, 0.0, PRESETS["earl1"].subsets)


@pytest.mark.parametrize("name", PRESETS)
def test_every_algorithm_is_there(name):
    assert SimulationSettings(preset=name).resolved_preset().algorithm in ALGORITHMS
    assert (PRESETS[name].beta is not None) == (PRESETS[name].algorithm == "bsrem")


def test_all_presets_are_listed_with_their_sources(capsys):
    cli._reconstruct(cli.parse(["reconstruct", "--list-presets"]))
    out = capsys.readouterr().out
    for name, entry in NAMED_PRESETS.items():
        assert f"{name}: {entry.title}" in out
        assert all(source in out for source in entry.sources.values())
    assert "not verified" in out and "not there" not in out and out.splitlines() == preset_lines()


@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_cited(name):
    assert set(NAMED_GRIDS[name].sources) == {"shape", "spacing_mm"}
    assert len(GRIDS[name].shape) == len(GRIDS[name].spacing_mm) == 3


def test_grids_of_the_public_sets():
    assert (GRIDS["quadra"].shape, GRIDS["quadra"].spacing_mm) == ((440, 440, 644), (1.65, 1.65, 1.65))
    assert GRIDS["uexplorer"].spacing_mm == (1.667, 1.667, 2.886)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A simulated scan as list mode, and its mu-map as a file."""
    folder = tmp_path_factory.mktemp("scan")
    settings = SimulationSettings(scanner=SMALL, preset="fast", drf=(), photons=20_000, counts=1e6, rays=1)
    subject = cylinder(radius_mm=90.0, length_mm=80.0, bqml=30_000.0)
    simulate_plan(plan_subject(subject, settings), settings, listmode=folder)
    nib.save(nib.Nifti1Image(subject.mu_per_cm, subject.grid.affine), folder / "mu.nii.gz")
    return folder / f"{subject.name}_r0_drf1.lm.h5", folder / "mu.nii.gz"


def run(*args):
    return cli._run(cli.parse([str(a) for a in args]))


def test_a_list_mode_file_becomes_an_image_that_can_go_on(scan, tmp_path, capsys):
    path, mu = scan
    result = run("reconstruct", path, "--preset", "fast", "--scanner", SMALL, "--mu", mu, "--out", tmp_path / "images",
                 "--weight-kg", "70", "--activity-mbq", "200", "--uptake-s", "3600")  # fmt: skip
    (made,) = result["images"]
    image = nib.load(tmp_path / "images" / made["file"])
    values, affine = image.get_fdata(), image.affine
    x, y, z = (affine[a, a] * np.arange(values.shape[a]) + affine[a, 3] for a in range(3))
    inside = (np.hypot(x[:, None], y[None, :])[:, :, None] < 60) & (np.abs(z) < 25)
    assert values[inside].mean() == pytest.approx(30_000, rel=0.05)
    said = json.loads((tmp_path / "images" / f"{made['name']}.json").read_text())
    assert said["petsim"]["preset"] == "fast" and said["petsim"]["reconstruction"]["iterations"] == 2
    assert str(tmp_path) not in json.dumps(said) and path.name not in json.dumps(said)
    subject = read_source(tmp_path / "images" / made["file"])
    injection = subject.injection
    assert (injection.weight_kg, injection.injected_mbq, injection.uptake_s) == (70.0, 200.0, 3600.0)
    np.testing.assert_allclose(subject.activity_bqml, values, rtol=1e-5)
    assert "prompts" in capsys.readouterr().out


def test_penalized_likelihood_runs_from_the_command_line(scan, tmp_path):
    """The mean of OSEM with the same data, grid and updates, and less noise."""
    path, mu = scan
    levels, noise = [], []
    for preset in ("ge-vpfx-s", "ge-qclear"):
        out = tmp_path / preset
        (made,) = run("reconstruct", path, "--preset", preset, "--scanner", SMALL, "--mu", mu, "--out", out,
                      "--voxel-mm", "8", "--iterations", "3", "--subsets", "7", "--filter-mm", "0")["images"]  # fmt: skip
        image = nib.load(out / made["file"])
        values, affine = image.get_fdata(), image.affine
        x, y, z = (affine[a, a] * np.arange(values.shape[a]) + affine[a, 3] for a in range(3))
        inside = (np.hypot(x[:, None], y[None, :])[:, :, None] < 60) & (np.abs(z) < 25)
        levels.append(values[inside].mean())
        noise.append(values[inside].std())
        said = json.loads((out / f"{made['name']}.json").read_text())["petsim"]["reconstruction"]
    assert levels[1] == pytest.approx(levels[0], rel=0.03) and noise[1] < 0.9 * noise[0]
    assert (said["algorithm"], said["beta"], said["iterations"], said["subsets"]) == ("BSREM", 400.0, 3, 7)


def test_what_is_no_raw_data_is_refused(tmp_path):
    with pytest.raises(UsageError, match="SOURCE"):
        run("reconstruct", "--out", tmp_path / "images")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / "pet.nii.gz")
    with pytest.raises(UsageError, match=r"pet\.nii\.gz"):
        run("reconstruct", tmp_path / "pet.nii.gz", "--out", tmp_path / "images")
    assert not (tmp_path / "images").exists()
