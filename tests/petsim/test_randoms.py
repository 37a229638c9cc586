"""Singles, randoms and the delayed window against what physics demands."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_recipes.phantoms.analytic import cylinder
from petsim.corrections import estimate_randoms
from petsim.dose import DoseLadder
from petsim.dose_rates import dose_rates
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.physics.randoms import DelayedWindow, end_product, tof_share
from petsim.physics.singles import DetectorAreas, Singles, no_singles, subject_singles

SMALL = load_scanner(str(Path(__file__).parent.parent / "small_scanner.toml"))
LAYOUT = SinogramLayout(SMALL, radials=101, span=1, max_ring_difference=15)
TAU_AREA = 10.0


def some_singles(areas, lutetium_cps=5.0):
    """Singles that vary smoothly over the detectors."""
    around = 1 + 0.3 * np.cos(2 * np.pi * (np.arange(areas.across) + 0.5) / areas.across)
    along = 1 + 0.2 * np.linspace(-1, 1, areas.along)
    activity = 400.0 * np.outer(around, along)
    return Singles(areas, activity, 3 * activity, lutetium_cps, 3 * lutetium_cps, np.full(areas.along, 0.3))


def test_every_real_crystal_lies_in_one_area():
    for name in ("biograph_vision_quadra", "discovery_mi_4ring", "uexplorer"):
        scanner = load_scanner(name)
        areas = DetectorAreas.of(scanner)
        real = scanner.transaxial_is_real().sum() * scanner.ring_is_real().sum()
        assert areas.crystals.sum() == real
        flat = areas.per_crystal(7.0 * areas.crystals)
        np.testing.assert_allclose(flat, 7.0, rtol=1e-6)


def test_a_map_is_read_at_the_ends_of_lors():
    """A map that is linear in z and goes as cos(phi) has its value at the places of both crystals."""
    areas = DetectorAreas.of(SMALL)
    phi = 2 * np.pi * (np.arange(areas.across) + 0.5) / areas.across
    z = ((np.arange(areas.along) + 0.5) / areas.along - 0.5) * SMALL.axial_length_mm
    ends = areas.at_ends(LAYOUT, 10 + np.cos(phi)[:, None] + z[None, :] / 20)
    plane_z = LAYOUT.plane_z_mm()
    views = np.array([0, 17, 40])
    xy = LAYOUT.transaxial_ends(views)
    inside = np.abs(plane_z).max(axis=1) < z.max()
    wanted = 1.0
    for end in range(2):
        angle = np.arctan2(xy[..., 2 * end + 1], xy[..., 2 * end])
        wanted = wanted * (10 + np.cos(angle)[..., None] + plane_z[:, end] / 20)
    got = end_product(LAYOUT, ends, views)
    np.testing.assert_allclose(got[..., inside], wanted[..., inside], rtol=2e-3)


def test_randoms_of_two_detectors_are_2_tau_s_s():
    """Expected delayeds, summed over areas, equal the sum over all accepted crystal pairs."""
    window = DelayedWindow.of(LAYOUT)
    rate, live, seconds = 50.0, 0.9, 20.0
    flat = np.full((window.areas.across, window.areas.along), rate)
    delayeds = window.expected(flat, 3.0, np.full_like(flat, live), seconds)
    real = SMALL.transaxial_is_real()
    pairs = sum(
        int((real[a] & real[b]).sum()) for v in range(LAYOUT.views) for a, b in zip(*LAYOUT.crystal_pairs(v), strict=True)
    ) * sum(abs(i - j) <= 15 for i in range(16) for j in range(16))
    assert delayeds.sum(dtype=np.float64) == pytest.approx(pairs * 4.7e-9 * (rate**2 + 3.0) * live**2 * seconds, rel=1e-5)


def test_singles_come_back_from_expected_delayeds():
    window = DelayedWindow.of(LAYOUT)
    true = some_singles(window.areas).rate_cps(1.0)
    delayeds = window.expected(true, 0.0, np.ones_like(true), 600.0)
    np.testing.assert_allclose(window.singles(delayeds, 600.0), true, rtol=1e-4)


def test_the_estimate_from_drawn_delayeds_is_unbiased_and_nested():
    """Over realizations the mean of the estimated singles is the true one; the spread grows as the square root of DRF."""
    areas = DetectorAreas.of(SMALL)
    drfs = (1.0, 16.0)
    rates = tuple(dose_rates(some_singles(areas), d, "thin", 60.0, "F-18", 1.0, 1.0, TAU_AREA) for d in drfs)
    window = DelayedWindow.of(LAYOUT)
    total = window.expected(rates[0].singles_cps, 0.0, rates[0].live, 60.0).sum()
    assert 1e4 < total < 1e6
    found = np.array([
        [r.singles_cps.mean() for r in estimate_randoms(window, rates, DoseLadder(drfs, 0, "x", k))] for k in range(40)
    ])  # fmt: skip
    true = rates[0].singles_cps.mean()
    spread = found.std(axis=0, ddof=1)
    assert np.all(np.abs(found.mean(axis=0) / true - 1) < 4 * spread / true / np.sqrt(40) + 1e-3)
    # s is the square root of a product, so its relative spread is half that of the counts.
    np.testing.assert_allclose(spread / true, 0.5 / np.sqrt(total / np.array(drfs)), rtol=0.5)


def test_uniform_in_time_over_the_window():
    tof = replace(LAYOUT, merge_tof=5, tof_bins=15)
    assert tof_share(tof) == pytest.approx(5 * 30 / 4700)
    assert tof_share(LAYOUT) == 1.0


def test_randoms_over_trues_is_a_line_through_the_lutetium_offset():
    """(R - b b) / T = a a A / t + 2 a b / t: a straight line in the activity A whose offset is that of 176Lu."""
    areas = DetectorAreas.of(SMALL)
    singles = some_singles(areas)
    activity = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
    ratios = []
    for level in activity:
        scaled = replace(singles, activity_cps=singles.activity_cps * level)
        r = dose_rates(scaled, 1.0, "thin", 60.0, "F-18", 2.0 * level, 1.0, TAU_AREA)
        rate = r.singles_cps[0, 0]
        ratios.append((rate**2 + r.extra_cps2 - singles.lutetium_cps**2) / r.counts_per_unit)
    slope, offset = np.polyfit(activity, ratios, 1)
    np.testing.assert_allclose(ratios, offset + slope * activity, rtol=1e-6)
    a, b = singles.activity_cps[0, 0], singles.lutetium_cps
    # A frame of 60 s decays by 0.3 %.
    assert offset * slope > 0 and offset / slope == pytest.approx(2 * b / a, rel=0.01)


def test_decay_over_the_frame():
    """Rb-82: the product of two decaying rates is averaged, not the product of averages."""
    areas = DetectorAreas.of(SMALL)
    singles, seconds = some_singles(areas, lutetium_cps=100.0), 300.0
    rates = dose_rates(singles, 1.0, "thin", seconds, "Rb-82", 1.0, 1.0, TAU_AREA)
    time = np.linspace(0, seconds, 200_001)
    decay = np.exp(-np.log(2) / 76.38 * time)
    a, b = singles.activity_cps[3, 1], singles.activity_cps[7, 2]
    wanted = np.trapezoid((a * decay + 100) * (b * decay + 100), time) / seconds
    s = rates.singles_cps
    assert s[3, 1] * s[7, 2] + rates.extra_cps2 == pytest.approx(wanted, rel=1e-4)


def test_dead_time_is_paralyzable_by_trigger_density():
    areas = DetectorAreas.of(SMALL)
    singles = some_singles(areas)
    live = singles.live(4.0, 1.0, TAU_AREA)
    density = (singles.triggers_cps / 4 + singles.lutetium_triggers_cps) / (1.5 * 0.8)
    np.testing.assert_allclose(live, np.exp(-TAU_AREA * 1e-6 * density))
    assert np.all(no_singles(SMALL).live(1.0, 1.0, TAU_AREA) == 1)


def test_singles_of_a_subject_follow_its_activity():
    """Twice the activity, twice the singles; 176Lu stays. The Monte Carlo's seed and decays are the same, so exactly."""
    subject = cylinder(radius_mm=80.0, length_mm=80.0)
    assert subject.mu_per_cm is not None
    args = (subject.mu_per_cm, subject.grid, (0.0, 0.0, 0.0), 400.0, 0.967)
    one = subject_singles(SMALL, subject.activity_bqml, *args, decays=400_000)
    two = subject_singles(SMALL, 2 * subject.activity_bqml, *args, decays=400_000)
    np.testing.assert_allclose(two.activity_cps, 2 * one.activity_cps, rtol=1e-6)
    assert one.lutetium_cps == two.lutetium_cps > 0
    assert np.all(one.triggers_cps > one.activity_cps)
    # A centered cylinder: the same all around, but for the flat sides of eight wide blocks.
    around = one.activity_cps.mean(axis=1)
    assert around.std() / around.mean() < 0.08
    assert np.all((one.multiple_ratio > 0.05) & (one.multiple_ratio < 0.6))
