"""Count rates against closed forms, and what may stand in a scanner's file."""

import math
import tomllib
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from data_recipes.errors import DataError
from petsim.geometry.scanner import CONTRAST_FIELDS, load_scanner, scanner_names
from petsim.physics.monte_carlo import lutetium
from petsim.physics.rates import (
    CHOSEN_ON,
    PHANTOM_ML,
    Response,
    block_area_cm2,
    block_dead_time_us,
    block_rows,
    calibrated_link_kcps,
    calibrated_tau_area,
    count_rates,
    light_sharing,
    live_fraction,
    random_rate,
    row_areas_cm2,
)

PUBLISHED_FIELDS = {
    "inner_radius_mm", "interaction_depth_mm", "crystals_per_ring", "rings", "ring_spacing_mm", "transaxial_block",
    "transaxial_block_real", "axial_block", "axial_block_real", "view_offset_rad", "transaxial_pitch_mm", "axial_gap_mm",
    "crystal_size_mm", "crystal_material", "photosensor", "readout_block", "energy_block", "max_ring_difference",
    "axial_fov_mm", "radial_bins", "energy_resolution", "energy_window_kev", "coincidence_window_ns", "tof_fwhm_ps",
    "tof_bin_ps", "tof_bins", "resolution_fwhm_mm", "sensitivity_cps_per_kbq", "scatter_fraction", "peak_necr_kcps",
    "peak_necr_kbqml", "protocol_mbq_per_kg", "protocol_uptake_s", "protocol_duration_s", "protocol_bed_overlap",
    *CONTRAST_FIELDS,
}  # fmt: skip
"""Geometry, hardware, settings and published results. A number fitted to make a simulation agree has no place among them."""


@pytest.fixture(scope="module")
def omni():
    """BGO: no background of lutetium."""
    return load_scanner("omni_legend_32")


def response(rows=6, trues=0.02, scatter=0.01, singles=0.2, share=0.2, triggers=1e-4):
    uniform = np.full((rows, rows), 1 / rows**2)
    return Response(trues, scatter, singles, share, np.full(rows, triggers), uniform, uniform)


@pytest.mark.parametrize("name", scanner_names())
def test_no_fitted_number_stands_in_a_scanners_file(name):
    text = (resources.files("petsim.geometry") / "scanners" / f"{name}.toml").read_text(encoding="utf-8")
    document = tomllib.loads(text)
    assert set(document) - {"base"} == {"title", "sources", "fields"}
    assert set(document["fields"]) <= PUBLISHED_FIELDS
    assert not any(word in text.lower() for word in ("calibrat", "fitted", "tuned", "adjusted"))
    assert load_scanner(name).photosensor is not None


def test_random_coincidences_of_two_detectors():
    """2 tau s1 s2; a window of 4 ns is 2 tau."""
    assert random_rate(np.array(1e5), np.array(2e5), 4.0) == pytest.approx(2 * 2e-9 * 1e5 * 2e5)


def test_live_fraction_is_that_of_a_paralyzable_detector():
    assert live_fraction(np.array(1e6), 0.5) == pytest.approx(math.exp(-0.5))
    recorded = np.linspace(0, 4e6, 401) * live_fraction(np.linspace(0, 4e6, 401), 0.5)
    assert np.argmax(recorded) == 200


def test_rates_at_low_activity(omni):
    """Trues and scatter in proportion to activity, randoms to its square; nothing is dead yet."""
    low = count_rates(omni, response(), kbqml=np.array([1e-4, 2e-4]))
    annihilations = 1e-4 * 1e3 * PHANTOM_ML * 0.9686
    assert low.trues[0] == pytest.approx(annihilations * 0.02 / 1e3, rel=1e-4)
    assert low.scatter[1] == pytest.approx(2 * annihilations * 0.01 / 1e3, rel=1e-4)
    randoms = omni.given("coincidence_window_ns") * 1e-9 / 2 * (annihilations * 0.2) ** 2 * 0.2
    assert low.randoms[0] == pytest.approx(randoms / 1e3, rel=1e-4)
    assert low.randoms[1] == pytest.approx(4 * low.randoms[0], rel=1e-4)
    assert low.prompts == pytest.approx(low.trues + low.scatter + low.randoms)
    assert low.necr == pytest.approx(low.trues**2 / low.prompts)


def test_peak_without_randoms(omni):
    """T exp(-2 k A) peaks at 1 / (2 k)."""
    only_trues = response(scatter=0.0, singles=0.0, triggers=2e-4)
    k = 1e3 * PHANTOM_ML * 0.9686 * 2e-4 * 8e-6
    activity, peak = count_rates(omni, only_trues, 8.0).peak()
    assert activity == pytest.approx(1 / (2 * k), rel=1e-3)
    assert peak == pytest.approx(1 / (2 * k) * 1e3 * PHANTOM_ML * 0.9686 * 0.02 / math.e / 1e3, rel=1e-5)


def test_peak_in_closed_form(omni):
    """shared/reference/physics.md, section 1; randoms double with the coincidence window."""
    per_kbqml = 1e3 * PHANTOM_ML * 0.9686
    k = per_kbqml * 1e-4 * 9e-6
    for window in (3.0, 6.0):
        scanner = replace(omni, coincidence_window_ns=window)
        a = 0.03 * per_kbqml
        r = window * 1e-9 / 2 * (0.2 * per_kbqml) ** 2 * 0.2
        at = (-2 * k * a + math.sqrt(4 * k**2 * a**2 + 8 * k * r * a)) / (4 * k * r)
        height = (0.02 * per_kbqml) ** 2 * at * math.exp(-2 * k * at) / (a + r * at) / 1e3
        assert count_rates(scanner, response(), 9.0).peak() == pytest.approx((at, height), rel=1e-3)


def test_rows_of_blocks_die_on_their_own(omni):
    """Only the row that is hit is dead; coincidences of the others live."""
    two = Response(0.02, 0.0, 0.0, 0.0, np.array([1e-3, 0, 0, 0, 0, 0]), np.zeros((6, 6)), np.zeros((6, 6)))
    pairs = np.zeros((6, 6))
    pairs[1, 2] = 1
    at = np.array([20.0])
    untouched = count_rates(omni, replace(two, pairs=pairs), 10.0, kbqml=at).trues[0]
    assert untouched == pytest.approx(20e3 * PHANTOM_ML * 0.9686 * 0.02 / 1e3)
    pairs[1, 2], pairs[0, 0] = 0, 1
    live = math.exp(-20e3 * PHANTOM_ML * 0.9686 * 1e-3 * 10e-6)
    assert count_rates(omni, replace(two, pairs=pairs), 10.0, kbqml=at).trues[0] == pytest.approx(untouched * live**2)


def test_lutetium_adds_singles_and_dead_time():
    vision = load_scanner("biograph_vision_600")
    rows = len(row_areas_cm2(vision))
    background = lutetium(vision)
    nothing = response(rows, triggers=0.0, singles=0.0)
    rates = count_rates(vision, nothing, 10.0, kbqml=np.array([1.0]))
    density = background.decays_per_s * background.triggers / row_areas_cm2(vision).sum()
    live = math.exp(-2 * density * 10e-6)
    assert 0.97 < live < 0.99
    assert rates.trues[0] == pytest.approx(1e3 * PHANTOM_ML * 0.9686 * 0.02 * live / 1e3)
    singles = background.decays_per_s * background.singles
    assert rates.randoms[0] == pytest.approx(4.73e-9 / 2 * singles**2 * 0.2 * live / 1e3)


def test_calibration_finds_the_dead_time_again(omni):
    known = count_rates(omni, response(), 7.0)
    moved = replace(omni, peak_necr_kbqml=known.peak()[0])
    assert calibrated_tau_area(moved, response()) == pytest.approx(7.0, rel=3e-3)
    with pytest.raises(DataError, match="no dead time"):
        calibrated_tau_area(replace(omni, peak_necr_kbqml=119.9), response(triggers=1e-2))
    with pytest.raises(DataError, match="peak_necr_kbqml"):
        calibrated_tau_area(load_scanner("vereos"), response())


def test_a_link_caps_the_singles_and_sets_the_peak(omni):
    """Below its limit nothing is lost; above it singles stay, and pairs lose what two singles lose."""
    free = count_rates(omni, response(), 2.0)
    per_kbqml = 1e3 * PHANTOM_ML * 0.9686 / 1e3
    live = np.exp(-free.kbqml * per_kbqml * 1e3 * 1e-4 * 2e-6)
    np.testing.assert_allclose(free.singles, free.kbqml * per_kbqml * 0.2 * live)
    limit = 0.5 * float(free.singles.max())
    capped = free.behind_link(limit)
    over = free.singles > limit
    assert over.any() and np.array_equal(capped.trues[~over], free.trues[~over])
    np.testing.assert_allclose(capped.singles[over], limit)
    for name in ("trues", "scatter", "randoms", "necr"):
        np.testing.assert_allclose(getattr(capped, name), getattr(free, name) * (capped.singles / free.singles) ** 2)
    wanted = 0.8 * free.peak()[0]
    found = calibrated_link_kcps(replace(omni, peak_necr_kbqml=wanted), free)
    assert free.behind_link(found).peak()[0] == pytest.approx(wanted, abs=0.1)
    with pytest.raises(DataError, match="without any limit"):
        calibrated_link_kcps(replace(omni, peak_necr_kbqml=1.1 * free.peak()[0]), free)


def test_light_sharing_is_for_light_sharing_blocks_only():
    mct, quadra, d690 = (load_scanner(n) for n in ("biograph_mct", "biograph_vision_quadra", "discovery_690"))
    assert light_sharing(mct, 12.1) == pytest.approx(math.sqrt(10.0 / 12.1))
    assert light_sharing(quadra, 100.0) == 1 and light_sharing(d690, 7.0) == 1
    full, less = (count_rates(replace(mct), response(4), 9.0, f, np.array([0.01])) for f in (1.0, 0.9))
    assert less.trues[0] == pytest.approx(0.81 * full.trues[0]) and less.randoms[0] == pytest.approx(0.81 * full.randoms[0])


@pytest.mark.parametrize("name", scanner_names())
def test_rows_cover_all_crystals(name):
    scanner = load_scanner(name)
    rows = block_rows(scanner)
    assert rows[0] == 0 and set(np.diff(rows)) <= {0, 1}
    face = scanner.crystal_size_mm[0] * scanner.crystal_size_mm[1] / 100
    crystals = int(scanner.transaxial_is_real().sum()) * int(scanner.ring_is_real().sum())
    areas = row_areas_cm2(scanner)
    assert areas.sum() == pytest.approx(crystals * face) and areas == pytest.approx(areas[0])
    assert block_dead_time_us(scanner, 10.0) * block_area_cm2(scanner) == pytest.approx(10.0)


def test_the_constant_was_chosen_on_every_other_scanner():
    """Alternating in alphabetical order of those with a verified peak; the others are predicted.

    The Quadra's second acceptance is no scanner of its own.
    """
    fields = ("peak_necr_kcps", "peak_necr_kbqml")
    verified = [n for n in scanner_names() if n != "biograph_vision_quadra_322" and all(
        getattr(load_scanner(n), f) is not None and load_scanner(n).is_verified(f) for f in fields)]  # fmt: skip
    assert tuple(verified[::2]) == CHOSEN_ON and len(verified) >= 10
    assert block_dead_time_us(load_scanner("biograph_vision_600")) == pytest.approx(0.49, abs=0.05)
