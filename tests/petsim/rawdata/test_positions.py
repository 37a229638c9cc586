"""Nearest crystals, against a search through all of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from petsim.geometry.scanner import load_scanner
from petsim.rawdata.positions import CrystalFinder

SMALL = load_scanner(str(Path(__file__).parents[2] / "small_scanner.toml"))
ROUND = replace(SMALL, name="round", axial_block=4, axial_block_real=3, view_offset_rad=0.03)
SIDES = replace(SMALL, name="sides", transaxial_pitch_mm=15.1, view_offset_rad=-2.0, axial_block=4, axial_block_real=4,
                axial_gap_mm=2.5)  # fmt: skip
SQUARE = replace(SMALL, name="square", crystals_per_ring=40, transaxial_block=10, transaxial_block_real=10,
                 transaxial_pitch_mm=60.0)  # fmt: skip


def places(scanner, rng, count, depth_mm):
    """Random places in random real crystals: crystal, ring, x, y, z."""
    crystal = rng.choice(np.flatnonzero(scanner.transaxial_is_real()), count)
    ring = rng.choice(np.flatnonzero(scanner.ring_is_real()), count)
    across = rng.uniform(-0.49, 0.49, count)
    step = scanner.crystal_xy_mm(crystal + 0.5, 0.25) - scanner.crystal_xy_mm(crystal + 0.5, -0.25)
    along = step / np.linalg.norm(step, axis=1, keepdims=True)
    outward = np.stack([along[:, 1], -along[:, 0]], axis=-1)
    xy = scanner.crystal_xy_mm(crystal + 0.5) + along * (across * scanner.crystal_size_mm[0])[:, None] + outward * depth_mm
    return crystal, ring, xy[:, 0], xy[:, 1], scanner.ring_z_mm(ring) + rng.uniform(-3.9, 3.9, count)


@pytest.mark.parametrize("scanner", [ROUND, SIDES, SQUARE], ids=lambda s: s.name)
@pytest.mark.parametrize("depth_mm", [-6.9, 0.0, 12.9])
def test_places_in_crystals(scanner, depth_mm):
    """From front (-7 mm from the LOR end) to back (+13 mm)."""
    crystal, ring, x, y, z = places(scanner, np.random.default_rng(0), 5000, depth_mm)
    finder = CrystalFinder.of(scanner)
    found, found_ring, offset_mm = finder.nearest(x, y, z)
    np.testing.assert_array_equal(found, crystal)
    np.testing.assert_array_equal(found_ring, ring)
    np.testing.assert_allclose(offset_mm[:, 2], depth_mm, atol=1e-3)
    assert offset_mm[:, 1].max() < 4 and not finder.is_outside(offset_mm).any() and not finder.is_between(offset_mm).any()


def test_places_in_gaps_belong_to_the_nearer_side():
    """Crystal 20 of 21 is virtual: its lower half is nearer to crystal 19, its upper half to the next block's first."""
    finder = CrystalFinder.of(ROUND)
    place = np.array([20.1, 20.45, 20.55, 20.9, 167.1, 167.9])
    xy = ROUND.crystal_xy_mm(place)
    z = ROUND.ring_z_mm(np.full(6, 3.0)) + np.array([-1, 1, -1, 1, -1, 1])
    found, ring, offset_mm = finder.nearest(*xy.T, z)
    np.testing.assert_array_equal(found, [19, 19, 21, 21, 166, 0])
    np.testing.assert_array_equal(ring, [2, 4, 2, 4, 2, 4])
    assert finder.is_between(offset_mm).sum() == 6 and not finder.is_outside(offset_mm).any()


def test_places_outside():
    """More than a pitch (15.6 mm, rings 8 mm) from the volume of 15 x 8 x 20 mm: to the sides, axially, in depth."""
    finder = CrystalFinder.of(ROUND)
    pitch, z = finder.pitch_mm, ROUND.ring_z_mm(np.array([0.0]))[0]
    assert pitch == pytest.approx(2 * np.pi * 417 / 168)
    direction = ROUND.crystal_xy_mm(np.array([5.5]))[0] / 417.0

    def is_outside(radius, axial):
        places = [np.array([v]) for v in (*(radius * direction), axial)]
        return bool(finder.is_outside(finder.nearest(*places)[2])[0])

    assert not is_outside(417.0, z - 11.9) and is_outside(417.0, z - 12.1)
    assert not is_outside(410.1 - pitch, z) and is_outside(409.9 - pitch, z)
    assert not is_outside(429.9 + pitch, z) and is_outside(430.1 + pitch, z)
    assert is_outside(0.0, z) and is_outside(np.nan, z) and is_outside(np.inf, z)


@pytest.mark.parametrize("scanner", [ROUND, SIDES], ids=lambda s: s.name)
def test_turned_scanner_is_found(scanner):
    *_, x, y, z = places(scanner, np.random.default_rng(0), 3000, 2.0)
    turned = replace(scanner, view_offset_rad=scanner.view_offset_rad + 0.2)
    angle = CrystalFinder.of(turned).fitting_view_offset_rad(x, y, z)
    assert angle == pytest.approx(scanner.view_offset_rad, abs=2 * np.pi / 168 / 8)
