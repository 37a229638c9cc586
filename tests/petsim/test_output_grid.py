"""Images on the grids of public data sets: where they lie, what they hold, and what is said of their noise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.phantoms.analytic import cylinder
from data_recipes.resample import resample
from petsim import presets
from petsim.dataset import bytes_on_disk, make_dataset
from petsim.output_grid import check_output, on_grid, output_grid
from petsim.plan import plan_subject
from petsim.presets import NAMED_GRIDS, Named, OutputGrid
from petsim.settings import SimulationSettings
from petsim.simulation import simulate_plan
from petsim.verify import verify
from tests import kill_driver

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")
SETTINGS = SimulationSettings(
    scanner=SMALL, preset="fast", drf=(4.0,), voxel_mm=12.0, iterations=2, rays=1, duration_s=60.0, scatter="none",
    randoms="none", corrections="oracle", fov_mm=240.0,
)  # fmt: skip
SUBJECT = cylinder(radius_mm=80.0, length_mm=80.0, bqml=5000.0)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A grid that takes less memory than those of the public sets."""
    monkeypatch.setitem(presets.GRIDS, "tiny", OutputGrid((50, 50, 20), (5.0, 5.0, 6.0)))
    cited = {"shape": "made up", "spacing_mm": "made up"}
    monkeypatch.setitem(NAMED_GRIDS, "tiny", Named("made up for tests", {}, cited))


@pytest.fixture(scope="module")
def made():
    return {
        noisy: simulate_plan(plan_subject(subject, settings), settings)
        for noisy, subject, settings in (
            (False, SUBJECT, SETTINGS),
            (True, replace(SUBJECT, is_noisy=True, fwhm_mm=(8.0, 8.0, 8.0)), replace(SETTINGS, full_dose="source")),
        )
    }


@pytest.mark.parametrize("name", ["quadra", "uexplorer"])
def test_a_public_grid_lies_around_the_middle_of_the_image(name):
    around = Grid.centered((10, 10, 10), (6.0, 6.0, 6.0), (3.0, -4.0, 100.0))
    grid = output_grid(name, around)
    assert grid.center_mm == pytest.approx((3.0, -4.0, 100.0))
    assert (grid.shape, grid.spacing_mm) == (presets.GRIDS[name].shape, presets.GRIDS[name].spacing_mm)


def test_images_keep_their_values_and_the_truth_is_resampled_once(made):
    result = on_grid(made[False], SUBJECT, "tiny")
    assert result.images.shape == (2, 1, 50, 50, 20) and result.grid.shape == result.noise_free.shape == (50, 50, 20)
    for dose in range(2):
        np.testing.assert_array_equal(
            result.images[dose, 0], resample(made[False].images[dose, 0], made[False].grid, result.grid)
        )
    here = result.labels == 1
    np.testing.assert_array_equal(
        result.activity_bqml[here], resample(SUBJECT.activity_bqml, SUBJECT.grid, result.grid)[here]
    )
    assert result.counts[0]["prompts"] == made[False].counts[0]["prompts"]
    told = result.provenance["output_grid"]
    assert told["name"] == "tiny" and told["reconstructed_voxel_mm"] == list(made[False].grid.spacing_mm)
    assert set(told["sources"]) == {"shape", "spacing_mm"} and "correlated" in told["noise"]
    assert "output_grid" not in made[False].provenance


def test_noise_of_neighbors_is_correlated_more_than_before(made):
    """From 12 to 5 mm: linear interpolation gives neighbors the same noise."""
    result = on_grid(made[False], SUBJECT, "tiny")

    def correlation(images, grid, step):
        noise = images[1, 0] - images[0, 0]
        x, y, z = (grid.axis_mm(a) for a in range(3))
        here = (np.hypot(x[:-step, None], y[None, :])[:, :, None] < 50) & (np.abs(z) < 30)
        return np.corrcoef(noise[:-step][here], noise[step:][here])[0, 1]

    assert correlation(result.images, result.grid, 1) > correlation(made[False].images, made[False].grid, 1) + 0.1


def test_a_measured_full_dose_is_the_scan_itself_and_noise_is_added_to_it(made):
    subject, native = replace(SUBJECT, is_noisy=True), made[True]
    result = on_grid(native, subject, "tiny")
    np.testing.assert_allclose(result.images[0, 0], result.activity_bqml, atol=1e-3)
    here = result.activity_bqml > 0
    np.testing.assert_array_equal(
        result.activity_bqml[here], resample(SUBJECT.activity_bqml, SUBJECT.grid, result.grid)[here]
    )
    added = resample(native.images[1, 0] - native.images[0, 0], native.grid, result.grid)
    np.testing.assert_allclose((result.images[1, 0] - result.images[0, 0])[here], added[here], atol=0.05)


def test_too_little_memory_is_said_beforehand():
    with pytest.raises(DataError, match="--memory-gb"):
        check_output("quadra", 5, 4e9)
    check_output("quadra", 2, 8e9)


def test_a_dataset_on_a_public_grid_verifies(tmp_path, monkeypatch):
    import data_recipes.phantoms.whole_body as module

    monkeypatch.setattr(module, "whole_body", module.whole_body)
    kill_driver.coarse_patients()
    request = kill_driver.request(str(tmp_path / "set"))
    request = replace(request, subjects=1, settings=replace(request.settings, grid="tiny"))
    make_dataset(request)
    assert verify(tmp_path / "set")["problems"] == []
    (file,) = (tmp_path / "set").glob("*.h5")
    plan = plan_subject(SUBJECT, replace(request.settings, slab_mm=None))
    assert file.stat().st_size < bytes_on_disk(plan, request)
