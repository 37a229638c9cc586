"""Image quality and resolution figures of images whose answers are known."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.phantoms.nema import (
    SPHERES_MM,
    body_outline_mm,
    body_phantom,
    point_sources,
    sphere_centers_mm,
)
from petsim.cli import parse
from petsim.filters import gaussian
from petsim.geometry.scanner import load_scanner, scanner_names
from petsim.nema import SLOW, TESTS
from petsim.nema import image_quality as image_quality_test
from petsim.nema import resolution as resolution_test
from petsim.nema import table as bench_table
from petsim.nema.image_quality import BACKGROUND_CENTERS_MM, BACKGROUND_Z_MM, measure, region_mean
from petsim.nema.resolution import full_width, point_widths, resolution
from petsim.physics.resolution import depth_sigma_mm
from petsim.presets import PRESETS

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")
GRID = Grid.centered((150, 124, 63), (2.0, 2.0, 2.0))
X, Y = GRID.axis_mm(0)[:, None], GRID.axis_mm(1)[None, :]


def disk(center, diameter):
    return np.hypot(X - center[0], Y - center[1]) <= diameter / 2


def test_background_regions_keep_their_distances():
    centers = np.array(BACKGROUND_CENTERS_MM)
    assert centers.shape == (12, 2)
    apart = np.hypot(*(centers[:, None] - centers[None]).transpose(2, 0, 1)) + 1e3 * np.eye(12)
    assert apart.min() >= 37
    for diameter, place in sphere_centers_mm().items():
        assert (np.hypot(*(centers - place).T) - 18.5 - diameter / 2).min() >= 12
    x = np.linspace(-147, 147, 20001)
    outline = np.concatenate([np.stack([x, y], axis=1) for y in body_outline_mm(x)])
    for center in centers:
        assert np.hypot(*(outline - center).T).min() == pytest.approx(33.5, abs=0.1)


def test_contrast_and_lung_residual_of_flat_disks():
    """Disks wider than the regions, so that no voxel at their edge counts: (h - 1) / (4 - 1) by construction."""
    image = np.full(GRID.shape, 2.0)
    hot = dict(zip(SPHERES_MM, (2.2, 2.5, 2.8, 3.1, 3.5, 3.9), strict=True))
    for diameter, place in sphere_centers_mm().items():
        image[disk(place, diameter + 7)] = 2.0 * hot[diameter]
    image[disk((0, 0), 40)] = 0.25
    found = measure(image, GRID, ratio=4.0)
    for diameter, value in hot.items():
        assert found["contrast_recovery_percent"][f"{diameter:g}"] == pytest.approx(100 * (value - 1) / 3)
        assert found["background_variability_percent"][f"{diameter:g}"] == pytest.approx(0, abs=1e-9)
    assert found["lung_residual_percent"] == pytest.approx(12.5)
    assert len(found["lung_slices_mm"]) == len(found["lung_residual_by_slice_percent"]) == 61
    np.testing.assert_allclose(measure(7.5 * image, GRID)["lung_residual_percent"], 12.5)


def test_cold_spheres_are_compared_with_nothing():
    image = np.full(GRID.shape, 2.0)
    for diameter, place in sphere_centers_mm().items():
        image[disk(place, diameter + 7)] = 5.0 if diameter < 25 else 0.5
    found = measure(image, GRID, ratio=4.0, cold_mm=(28.0, 37.0))["contrast_recovery_percent"]
    assert found == pytest.approx({"10": 50, "13": 50, "17": 50, "22": 50, "28": 75, "37": 75})


def test_variability_is_that_of_the_sixty_regions():
    """Every region a value of its own: standard deviation over mean with 59 degrees of freedom."""
    values = np.random.default_rng(0).normal(10, 1.5, (5, 12))
    centers = np.array(BACKGROUND_CENTERS_MM)
    nearest = np.hypot(X[..., None] - centers[:, 0], Y[..., None] - centers[:, 1]).argmin(axis=2)
    image = np.full(GRID.shape, 10.0)
    for row, z in zip(values, BACKGROUND_Z_MM, strict=True):
        image[:, :, round((z - GRID.origin_mm[2]) / 2.0)] = row[nearest]
    found = measure(image, GRID)["background_variability_percent"]
    for diameter in ("10", "22", "28"):
        assert found[diameter] == pytest.approx(100 * values.std(ddof=1) / values.mean(), rel=1e-6)
    assert found["37"] == pytest.approx(100 * values.std(ddof=1) / values.mean(), rel=0.03)


def test_variability_of_white_noise_falls_with_the_area():
    image = np.random.default_rng(1).normal(100, 20, GRID.shape)
    found = measure(image, GRID)["background_variability_percent"]
    for diameter in SPHERES_MM:
        voxels = np.pi * diameter**2 / 4 / 4.0
        assert found[f"{diameter:g}"] == pytest.approx(20 / np.sqrt(voxels), rel=0.35)


def test_region_is_a_disk_with_parts_of_voxels():
    """Mean of x^2 over a disk of radius r around x0 is x0^2 + r^2 / 4."""
    image = np.broadcast_to((X**2)[..., None], GRID.shape)
    for x0, diameter in ((0.0, 37.0), (11.3, 22.0), (-40.1, 10.0)):
        # Within a voxel of 2 mm, x^2 varies by 2^2 / 12 less than its mean says.
        wanted = x0**2 + diameter**2 / 16 - 4 / 12
        assert region_mean(image, GRID, (x0, -3.7, 0.0), diameter) == pytest.approx(wanted, rel=0.01)


def test_the_phantom_itself_recovers_nearly_all():
    subject = body_phantom()
    found = measure(subject.activity_bqml, subject.grid)
    assert found["lung_residual_percent"] == pytest.approx(0, abs=1e-6)
    recovery = list(found["contrast_recovery_percent"].values())
    assert recovery == sorted(recovery) and recovery[-1] > 95 and recovery[0] > 70
    assert max(found["background_variability_percent"].values()) < 1e-4


def test_recovery_falls_with_the_blur_and_hardly_depends_on_the_ratio():
    def blurred(width, ratio=4.0):
        s = body_phantom(ratio=ratio)
        image = gaussian(s.activity_bqml, (width,) * 3, s.grid.spacing_mm)
        return measure(image, s.grid, ratio)["contrast_recovery_percent"]

    sharp, soft, other = blurred(4.0), blurred(8.0), blurred(8.0, 8.0)
    assert all(soft[d] < sharp[d] for d in sharp)
    # With w of a cold wall in the mean of a sphere's region, recovery is short by w / (ratio - 1) of it.
    assert all(soft[d] < other[d] < soft[d] + 10 for d in soft)


def test_image_that_misses_the_spheres_is_refused():
    with pytest.raises(DataError, match=r"^the image covers -60 to 60 mm along x[^\n]+$"):
        measure(np.ones((60, 124, 63)), replace(GRID, shape=(60, 124, 63), origin_mm=(-59.0, *GRID.origin_mm[1:])))
    with pytest.raises(DataError, match="has shape"):
        measure(np.ones((3, 3, 3)), GRID)


def test_two_peaks_are_as_wide_as_both():
    """Triangles of half-width 2 at 5 and 11: the higher one alone is 2 wide at its half, both together from 4.5 to 12."""
    x = np.arange(0, 17, 0.5)
    profile = np.maximum(0, 1 - np.abs(x - 11) / 2) + 2 / 3 * np.maximum(0, 1 - np.abs(x - 5) / 2)
    assert full_width(profile, 0.5, 0.5) == pytest.approx(12 - 4.5, abs=0.3)


@pytest.mark.parametrize(("center", "fwhm"), [(10.0, 4.0), (10.3, 3.1), (9.77, 6.0)])
def test_widths_of_a_sampled_gaussian(center, fwhm):
    x = np.arange(101) * 0.2
    profile = np.exp(-4 * np.log(2) * ((x - center) / fwhm) ** 2)
    assert full_width(profile, 0.2, 0.5) == pytest.approx(fwhm, rel=0.002)
    # Chords of the convex flank lie outside of it.
    assert full_width(profile, 0.2, 0.1) == pytest.approx(fwhm * np.sqrt(np.log2(10)), rel=0.004)


def test_a_parabola_has_its_exact_maximum_and_straight_flanks_their_crossing():
    x = np.arange(-6, 7.0)
    # Peak value 10 at 0.25, between samples; flanks are linear: interpolation is exact.
    parabola = 10 - (x - 0.25) ** 2
    flanks = np.where(np.abs(x) > 1, np.maximum(9 - 2 * np.abs(x), 0), parabola)
    assert full_width(flanks, 2.0, 0.5) == pytest.approx(2 * 2 * 2.0)


def test_profiles_that_do_not_fall_are_refused():
    with pytest.raises(DataError, match="edge of the image"):
        full_width(np.arange(5.0), 1.0, 0.5)
    with pytest.raises(DataError, match=r"does not fall to 0\.1"):
        full_width(np.array([0.3, 0.7, 1.0, 0.7, 0.3]), 1.0, 0.1)
    with pytest.raises(DataError, match=r"^the point at \(0, 500, 0\) mm lies outside"):
        point_widths(np.ones(GRID.shape), GRID, (0.0, 500.0, 0.0), (4.0, 4.0, 4.0))


def test_widths_along_each_axis():
    grid = Grid.centered((70, 60, 64), (1.0, 1.1, 0.9), (5.0, 0.0, -3.0))
    place, widths = (6.4, 1.3, -2.2), (4.5, 6.0, 5.2)
    image = np.ones(grid.shape)
    for axis, (at, width) in enumerate(zip(place, widths, strict=True)):
        shape = [1, 1, 1]
        shape[axis] = -1
        image = image * np.exp(-4 * np.log(2) * ((grid.axis_mm(axis) - at) / width) ** 2).reshape(shape)
    found = point_widths(image, grid, (6.0, 1.0, -2.0), (4.0, 5.0, 6.0))
    for (fwhm, fwtm), width in zip(found, widths, strict=True):
        assert fwhm == pytest.approx(width, rel=0.01)
        assert fwtm == pytest.approx(width * np.sqrt(np.log2(10)), rel=0.02)


def test_resolution_of_a_blur_is_the_blur():
    scanner = load_scanner("biograph_vision_600")
    seen = []

    def simulate(places):
        seen.extend(places)
        subject = point_sources(places)
        return gaussian(subject.activity_bqml, (4.0, 5.0, 6.0), subject.grid.spacing_mm), subject.grid

    found = resolution(scanner, simulate)
    assert len(seen) == 6 and set(found["fwhm_mm"]) == {"10", "100", "200"}
    for by_direction in found["fwhm_mm"].values():
        wanted = {"tangential": 4.0, "radial": 5.0, "axial": 6.0}
        for direction, width in wanted.items():
            # The voxel of 1 mm adds its variance; axially the second point lies between two voxels.
            wider = np.sqrt(width**2 + 8 * np.log(2) / 12)
            assert by_direction[direction] == pytest.approx(wider, rel=0.03 if direction == "axial" else 0.01)
    assert found["published_fwhm_mm"] == list(scanner.given("resolution_fwhm_mm"))


# Through the bench


def test_image_quality_of_a_scanner_file(tmp_path):
    """A coarse simulation: larger spheres recover more, noise averages out in larger regions."""
    scanner = load_scanner(SMALL)
    changes = {"preset": "fast", "voxel_mm": 6.0, "iterations": 2, "corrections": "oracle"}
    figures = image_quality_test.run(scanner, 50_000, 1, tmp_path, **changes)
    ours = {f.name: f.ours for f in figures}
    assert len(ours) == 19 and all(f.published is None and f.is_met is None for f in figures)
    recovery, expected, variability = (
        [ours[name.format(f"{d:g}mm")] for d in SPHERES_MM]
        for name in ("contrast_recovery_{}_percent", "noise_free_contrast_{}_percent", "background_variability_{}_percent")
    )
    assert expected[3:] == sorted(expected[3:]) and 15 < expected[-1] < 70
    np.testing.assert_allclose(recovery, expected, atol=15)
    assert variability == sorted(variability, reverse=True) and 0.3 < variability[-1] < 10
    assert 5 < ours["lung_residual_percent"] < 50
    table = np.loadtxt(tmp_path / "small_scanner_image_quality.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(table, np.stack([SPHERES_MM, recovery, variability], axis=1), rtol=1e-4)
    assert (tmp_path / "small_scanner_image_quality.png").read_bytes()[:4] == b"\x89PNG"


def test_a_published_contrast_is_met_or_not_in_its_own_reconstruction(monkeypatch):
    scanner = load_scanner("biograph_vision_450")
    asked = []

    def scan(scanner, background_bqml, cold_mm, settings):
        asked.append((background_bqml, cold_mm, settings.preset, settings.duration_s))
        image = np.full(GRID.shape, 2.0)
        for diameter, place in sphere_centers_mm().items():
            image[disk(place, diameter + 7)] = 0.2 if diameter in cold_mm else 6.8
        return SimpleNamespace(images=image[None, None], noise_free=image, grid=GRID)

    monkeypatch.setattr(image_quality_test, "_scan", scan)
    figures = {f.name: f for f in image_quality_test.run(scanner, None, 0, None)}
    assert asked == [(5400.0, (28.0, 37.0), "siemens-vision-nema", 240.0)]
    # 80 % of the contrast of hot spheres and 90 % of that of cold ones.
    told = [figures[f"contrast_recovery_{d:g}mm_percent"] for d in SPHERES_MM]
    assert [f.published for f in told] == list(scanner.contrast_recovery_percent) == [75.4, 78.4, 91.0, 96.3, 76.7, 83.2]
    assert [round(f.deviation, 1) for f in told] == [4.6, 1.6, -11.0, -16.3, 13.3, 6.8]
    assert [f.is_met for f in told] == [True, True, False, False, False, True]
    assert all(f.verified and "Carlier" in f.source for f in told)
    beside = figures["noise_free_contrast_10mm_percent"]
    assert beside.published == 75.4 and beside.is_met is None
    text = bench_table(told)
    assert "+4.6 pt" in text and "within 10 points; Table 3" in text and text.count("NOT within 10 points") == 3


def test_presets_of_published_contrast_are_there():
    for name in scanner_names():
        scanner = load_scanner(name)
        if scanner.contrast_recovery_percent is not None:
            assert scanner.contrast_preset in PRESETS and len(scanner.contrast_recovery_percent) == len(SPHERES_MM)
            assert set(scanner.contrast_cold_mm or ()) <= set(SPHERES_MM)


def test_resolution_of_a_scanner_file(tmp_path, monkeypatch):
    """8 mm go in, which hold voxels and crystals; a ball of 1 mm adds 1 / 20 mm^2 to the variance, and radially the depth of
    interaction d adds (d r / R)^2 / 2.

    Slices, voxels (4 a width here) and filtered back projection, with the gaps between blocks, add at most 10 % to it.
    """
    monkeypatch.setattr(resolution_test, "VOXELS_PER_FWHM", 4)
    scanner = replace(load_scanner(SMALL), crystals_per_ring=336)
    figures = resolution_test.run(scanner, None, 0, tmp_path)
    ours = {f.name: f.ours for f in figures}
    assert len(ours) == 9
    assert {f.name: f.published for f in figures if f.published is not None} == {
        f"fwhm_{name}_10mm": 8.0 for name in ("radial", "tangential", "axial")
    }
    for name in ("radial", "tangential", "axial"):
        for radius in (10, 200) if name == "radial" else (10,):
            depth = depth_sigma_mm(scanner) * radius / scanner.radius_mm if name == "radial" else 0
            wanted = np.sqrt(64 + 8 * np.log(2) * (1 / 20 + depth**2 / 2))
            assert wanted < ours[f"fwhm_{name}_{radius}mm"] < 1.1 * wanted
    table = np.loadtxt(tmp_path / "small_scanner_resolution.csv", delimiter=",", skiprows=1)
    assert table.shape == (3, 7) and table[0, 3] == pytest.approx(ours["fwhm_axial_10mm"], rel=1e-4)


@pytest.mark.parametrize("name", ["biograph_vision_600", "biograph_vision_quadra", "discovery_mi_4ring", "pennpet_3seg"])
def test_rings_around_a_place_are_the_scanners(name):
    """Whole blocks, so that positions and gaps stay."""
    scanner = load_scanner(name)
    for z in (0.0, 0.375 * scanner.axial_length_mm):
        part, middle = resolution_test._around(scanner, z, 25.0)
        everywhere, wanted = (s.ring_z_mm(np.arange(s.rings)) for s in (scanner, part))
        first = int(np.argmin(np.abs(everywhere - middle - wanted[0])))
        rings = slice(first, first + part.rings)
        np.testing.assert_allclose(wanted + middle, everywhere[rings], atol=1e-9)
        np.testing.assert_array_equal(part.ring_is_real(), scanner.ring_is_real()[rings])
        outside = np.r_[everywhere[:first], everywhere[first + part.rings :]]
        assert np.abs(outside - z).min(initial=np.inf) > 25


def test_image_tests_are_asked_for_by_name():
    assert set(SLOW) == {"image-quality", "resolution"} <= set(TESTS)
    for name in SLOW:
        assert parse(["nema", "--test", name]).test == name
