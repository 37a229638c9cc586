"""Positron range, depth of interaction and the resolution budget against closed forms."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq

from data_recipes.errors import DataError
from data_recipes.isotopes import isotope, range_terms
from data_recipes.phantoms.nema import point_sources
from petsim.filters import gaussian
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.model import build_model
from petsim.physics.resolution import (
    FWHM_PER_SIGMA,
    add_positron_range,
    blur_left_mm,
    depth_sigma_mm,
    fwhm_with_range,
    range_kernel,
    range_variance_mm2,
    ray_design,
    resolution_budget,
)
from petsim.plan import plan_subject
from petsim.settings import SimulationSettings

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")
SPACING = (1.5, 2.5, 2.0)


def variances(kernel, spacing):
    out = []
    for axis, d in enumerate(spacing):
        profile = kernel.astype(float).sum(axis=tuple(a for a in range(3) if a != axis))
        x = (np.arange(profile.size) - profile.size // 2) * d
        out.append((profile * x**2).sum() / profile.sum())
    return out


@pytest.mark.parametrize(("name", "beyond"), [("Ga-68", None), ("Ga-68", "F-18"), ("Rb-82", "F-18"), ("O-15", "C-11")])
def test_range_kernel_is_positive_and_has_the_variance_of_the_isotope(name, beyond):
    kernel = range_kernel(name, SPACING, beyond)
    wanted = range_variance_mm2(name) - (range_variance_mm2(beyond) if beyond else 0)
    assert kernel.min() > -1e-6
    assert kernel.sum(dtype=float) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(variances(kernel, SPACING), wanted, rtol=0.02)


def test_range_beyond_another_isotope_completes_its_range():
    point = np.zeros((61, 61, 61), np.float32)
    point[30, 30, 30] = 1
    spacing = (1.0, 1.0, 1.0)
    direct = add_positron_range(point, spacing, "O-15", None)
    in_two = add_positron_range(add_positron_range(point, spacing, "C-11", None), spacing, "O-15", "C-11")
    assert np.abs(in_two - direct).max() < 0.03 * direct.max()
    np.testing.assert_allclose(in_two.sum(axis=(1, 2)), direct.sum(axis=(1, 2)), atol=0.02 * direct.sum(axis=(1, 2)).max())


def test_range_kernel_along_an_axis_decays_as_published():
    """k / 2 exp(-k |x|) of the wide term; far from the center only that is left."""
    kernel = range_kernel("O-15", (0.25, 0.25, 0.25), None)
    profile = kernel.sum(axis=(1, 2), dtype=float) / 0.25
    x = (np.arange(profile.size) - profile.size // 2) * 0.25
    far = (np.abs(x) > 1) & (np.abs(x) < 4)
    np.testing.assert_allclose(profile[far], 0.9894 * 0.5 * np.exp(-np.abs(x[far])), rtol=0.02)


def test_f18_adds_nothing_and_the_blur_is_its_own_transpose():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 9, 12, 7)).astype(np.float32)
    np.testing.assert_array_equal(add_positron_range(a, SPACING, "F-18"), a)
    left = np.vdot(add_positron_range(a, SPACING, "Rb-82"), b)
    assert abs(left - np.vdot(a, add_positron_range(b, SPACING, "Rb-82"))) < 1e-5 * np.linalg.norm(a) * np.linalg.norm(b)
    with pytest.raises(DataError, match="'Xx-1' is not known"):
        add_positron_range(a, SPACING, "Xx-1")


@pytest.mark.parametrize(("fwhm", "name"), [(3.0, "Rb-82"), (0.5, "F-18"), (6.0, "Ga-68")])
def test_fwhm_with_range_is_that_of_the_convolution(fwhm, name):

    x = np.arange(-40, 40.0001, 0.005)
    gauss = np.exp(-0.5 * (x * FWHM_PER_SIGMA / fwhm) ** 2)
    cusp = sum(w * k * np.exp(-k * np.abs(x)) for w, k in range_terms(isotope(name)))
    both = np.fft.irfft(np.fft.rfft(gauss) * np.fft.rfft(np.fft.ifftshift(cusp)), x.size)
    half = brentq(lambda at: np.interp(at, x, both) - both.max() / 2, 0, 30)
    assert fwhm_with_range(fwhm, name) == pytest.approx(2 * half, rel=0.01)


@pytest.mark.parametrize("name", ["biograph_vision_600", "omni_legend_32", "umi_550"])
def test_depth_of_interaction_is_that_of_drawn_photons(name):
    scanner = load_scanner(name)
    rng = np.random.default_rng(1)
    mu = {"LSO": 0.08195, "BGO": 0.09059, "LYSO": 0.07736}[scanner.crystal_material]
    depth = rng.exponential(1 / mu, 400_000)
    assert depth_sigma_mm(scanner) == pytest.approx(depth[depth < scanner.crystal_size_mm[2]].std(), rel=0.01)


def test_a_thin_crystal_is_uniform_and_a_long_one_exponential():
    scanner = load_scanner("biograph_vision_600")
    assert depth_sigma_mm(replace(scanner, crystal_size_mm=(3.2, 3.2, 0.5))) == pytest.approx(0.5 / np.sqrt(12), rel=1e-3)
    assert depth_sigma_mm(replace(scanner, crystal_size_mm=(3.2, 3.2, 900.0))) == pytest.approx(1 / 0.08195, rel=1e-3)


@pytest.mark.parametrize("rays", [2, 3, 4])
def test_rays_have_the_wanted_variances_and_no_correlation(rays):
    scanner = load_scanner("biograph_vision_600")
    design = np.array(ray_design(rays, scanner))
    assert design.shape == (rays**2, 3)
    np.testing.assert_allclose(design.mean(axis=0), 0, atol=1e-12)
    wanted = np.diag([1 / 24, 1 / 24, depth_sigma_mm(scanner) ** 2 / 2])
    np.testing.assert_allclose(design.T @ design / rays**2, wanted, atol=1e-12)


def test_a_single_ray_has_no_blur_and_two_use_both_depths_equally():
    scanner = load_scanner("biograph_vision_600")
    assert ray_design(1, scanner) == [(0.0, 0.0, 0.0)]
    depths = np.array([r[2] for r in ray_design(2, scanner)])
    np.testing.assert_allclose(np.sort(depths), depth_sigma_mm(scanner) / np.sqrt(2) * np.array([-1, -1, 1, 1]))


def offsets(ends):
    """Signed distance of lines from the axis."""
    x1, y1, x2, y2 = np.moveaxis(ends, -1, 0)
    return (x1 * y2 - x2 * y1) / np.hypot(x2 - x1, y2 - y1)


def test_depth_shifts_lors_in_proportion_to_their_offset_on_a_round_scanner():
    """Variance of the sideways shift: sigma^2 / 2 (s / R)^2, none at the center; directions stay."""
    scanner = load_scanner("biograph_vision_600")
    layout = SinogramLayout(scanner, radials=300)
    views = np.array([0, 100, 301])
    plain = layout.transaxial_ends(views)
    s = offsets(plain)
    shifts = np.stack([offsets(layout.transaxial_ends(views, 0.0, depth)) - s for _, _, depth in ray_design(2, scanner)])
    sigma = depth_sigma_mm(scanner)
    np.testing.assert_allclose(shifts.var(axis=0), sigma**2 / 2 * (s / scanner.radius_mm) ** 2, atol=1e-9)
    assert shifts.var(axis=0).max() > 1
    moved = layout.transaxial_ends(views, 0.0, 3.0)
    np.testing.assert_allclose(moved, plain * (1 + 3.0 / scanner.radius_mm))
    np.testing.assert_array_equal(layout.transaxial_ends(views, 0.3, 0.0), layout.transaxial_ends(views, 0.3))


def test_depth_follows_the_crystals_of_a_flat_side():
    """On a polygon a crystal's axis is the normal of its side: the distance from the side's plane grows by the depth."""
    scanner = load_scanner("discovery_mi_4ring")
    assert scanner.transaxial_pitch_mm is not None
    for merge in (1, 2):
        layout = SinogramLayout(scanner, radials=60, merge_transaxial=merge)
        views = np.arange(layout.views)
        before = layout.transaxial_ends(views).reshape(len(views), -1, 2, 2)
        moved = layout.transaxial_ends(views, 0.0, 4.0).reshape(before.shape) - before
        np.testing.assert_allclose(np.hypot(moved[..., 0], moved[..., 1]), 4.0, rtol=1e-2)
        if merge == 1:
            distance = (before * moved / 4.0).sum(axis=-1)
            np.testing.assert_allclose(distance, scanner.radius_mm)


def test_what_voxels_and_crystals_blur_is_left_to_them():
    """Variances of the applied kernel, activity averaged over voxels, interpolation and rays add up to what is wanted."""
    fwhm, voxels, crystals = (4.0, 5.0, 3.0), (1.6, 1.6, 5.0), (3.2, 3.3)
    left = blur_left_mm(fwhm, voxels, crystals)
    for axis in (0, 1):
        point = np.zeros((41, 41, 3), np.float32)
        point[20, 20, 1] = 1
        kernel = gaussian(point, left, voxels).sum(axis=(1 - axis, 2), dtype=np.float64)
        spread = kernel @ (voxels[axis] * (np.arange(41) - 20)) ** 2
        spread += 1.6**2 * (1 / 12 + (1 / 2 + 1 / np.pi) / 6) + 3.2**2 / 24
        assert spread == pytest.approx((fwhm[axis] / FWHM_PER_SIGMA) ** 2, rel=1e-4)
    assert left[2] == 0


@pytest.mark.parametrize(("preset", "merged"), [("full", 1), ("standard", 2)])
def test_the_forward_model_is_as_sharp_as_published(preset, merged):
    """Variance of a small ball's projection over radial positions: that of the resolution, r^2 / 5 of the ball, and what the
    merging of crystals of a pitch p adds, (merged^2 - 1) p^2 / 24."""
    scanner = replace(load_scanner(SMALL), transaxial_block_real=21, resolution_fwhm_mm=(14.0, 14.0, 10.0))
    settings = SimulationSettings(drf=(), scanner=SMALL, preset=preset, scatter="none", randoms="none",
                                  efficiency_spread=0.0, fov_mm=150.0)  # fmt: skip
    found = []
    for place in ((0.0, 0.0, 0.0), (3.1, -1.7, 1.3), (-5.3, 4.2, 0.4)):
        plan = plan_subject(point_sources([place], diameter_mm=4.0, spacing_mm=(1.0, 1.0, 1.0)), settings, scanner)
        plan = replace(plan, subject=replace(plan.subject, mu_per_cm=0 * plan.subject.mu_per_cm))
        views = np.arange(plan.layout.views)
        profile = build_model(plan, settings).expected(views).sum(axis=(2, 3), dtype=float)
        x1, y1, x2, y2 = np.moveaxis(plan.layout.transaxial_ends(views), -1, 0)
        at = (x1 * y2 - x2 * y1) / np.hypot(x2 - x1, y2 - y1)
        mean = np.average(at, axis=1, weights=profile)
        found.append(np.average((at - mean[:, None]) ** 2, axis=1, weights=profile).mean())
    pitch = 2 * np.pi * scanner.radius_mm / scanner.crystals_per_ring
    wanted = (14.0 / FWHM_PER_SIGMA) ** 2 + 2.0**2 / 5 + (merged**2 - 1) * pitch**2 / 24
    assert np.mean(found) == pytest.approx(wanted, rel=0.05)


def test_budget_adds_up_and_meets_moses():
    scanner = load_scanner("biograph_vision_quadra")
    budget = resolution_budget(scanner, 100.0)
    terms = [budget[k] for k in ("crystal", "non_collinearity", "decoding", "depth", "range")]
    assert budget["total"] == pytest.approx(1.25 * np.sqrt(np.sum(np.square(terms))))
    assert resolution_budget(scanner, 0.0)["depth"] == 0
    assert resolution_budget(scanner, 0.0, "Rb-82")["total"] > resolution_budget(scanner, 0.0)["total"] + 1
    assert resolution_budget(scanner, 0.0, decoding_mm=1.0)["total"] > resolution_budget(scanner, 0.0)["total"]
    # The constant 12.5 mm of Moses stands for BGO crystals of 30 mm: close to the axis both forms are proportional to r.
    bgo = resolution_budget(load_scanner("omni_legend_32"), 10.0)
    assert bgo["depth"] == pytest.approx(bgo["depth_moses"], rel=0.05)


@pytest.mark.parametrize("name", ["biograph_vision_quadra", "biograph_vision_600", "uexplorer", "umi_550", "vereos"])
def test_budget_predicts_published_resolutions(name):
    """Crystals coupled one to one or few to one: within 15 %; light sharing would only add."""
    scanner = load_scanner(name)
    assert resolution_budget(scanner, 10.0)["total"] == pytest.approx(scanner.resolution_fwhm_mm[0], rel=0.15)
