"""Efficiencies by component, their drift, and the absolute level."""

from dataclasses import replace

import numpy as np
import pytest

from data_recipes.errors import DataError
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout, covering_ring_difference
from petsim.physics.normalization import (
    NEMA_LINE_MM,
    counts_per_activity,
    crystal_efficiencies,
    drifted,
    efficiency_components,
    line_response,
    normalization,
)

VISION = load_scanner("biograph_vision_600")
REAL = VISION.transaxial_is_real()[:, None] & VISION.ring_is_real()[None, :]


def test_efficiencies_are_the_product_of_their_components():
    components = efficiency_components(VISION, 0.05, 3)
    assert set(components) == {"crystal", "block_transaxial", "block_axial"}
    for part in components.values():
        assert part.shape == (798, 80) and part[REAL].mean() == pytest.approx(1)
    product = np.prod(list(components.values()), axis=0) * REAL
    efficiencies = crystal_efficiencies(VISION, 0.05, 3)
    np.testing.assert_allclose(efficiencies, product / product[REAL].mean(), rtol=1e-6)
    assert np.all(efficiencies[~REAL] == 0) and efficiencies.dtype == np.float32
    assert efficiencies[REAL].mean(dtype=float) == pytest.approx(1)
    assert efficiencies[REAL].std(dtype=float) == pytest.approx(0.05, rel=0.02)
    assert 0.04 < components["crystal"][REAL].std() < 0.049


def test_block_profiles_are_parabolas_from_edge_to_edge():
    components = efficiency_components(VISION, 0.05)
    # Blocks are 20 x 10 crystals; the outermost ones are 5 % below the (interpolated) middle.
    around, along = components["block_transaxial"][:, 0], components["block_axial"][0]
    place = (2 * np.arange(20) - 19) / 19
    np.testing.assert_allclose(around[:20], around[:20].mean() * (1 - 0.05 * place**2) / (1 - 0.05 * place**2).mean())
    np.testing.assert_array_equal(around[21:41], around[:20])
    np.testing.assert_array_equal(along[10:20], along[:10])
    np.testing.assert_array_equal(along[:10], along[9::-1])
    assert along[0] / along[4] == pytest.approx(0.95 / (1 - 0.05 / 81))
    assert np.ptp(efficiency_components(VISION, 0.0)["block_axial"]) == 0


def test_without_a_readout_block_profiles_go_from_gap_to_gap():
    along = efficiency_components(replace(VISION, readout_block=None), 0.05)["block_axial"][0]
    assert along.argmin() in (0, 79) and along.argmax() in (39, 40)


def test_drift_has_the_wanted_spread_in_equal_parts():
    efficiencies = crystal_efficiencies(VISION, 0.05)
    drift = drifted(VISION, efficiencies, 0.04, 7)
    assert np.all(drift[~REAL] == 0) and drift.dtype == np.float32
    factor = (drift[:, :] / np.where(REAL, efficiencies, 1)).astype(float)
    # 38 x 8 blocks of 20 x 10 crystals.
    blocks = factor.reshape(38, 21, 8, 10)[:, :20].transpose(0, 2, 1, 3).reshape(304, 200)
    assert blocks.mean() == pytest.approx(1, abs=4 * 0.04 / np.sqrt(2 * 304))
    inside, between = blocks.std(axis=1).mean(), blocks.mean(axis=1).std()
    assert inside == pytest.approx(0.04 / np.sqrt(2), rel=0.02)
    assert between == pytest.approx(0.04 / np.sqrt(2), rel=0.15)
    logs = np.log(blocks - blocks.mean(axis=1, keepdims=True) + 1).ravel()
    assert abs(np.mean(logs**3)) / logs.std() ** 3 < 0.1
    np.testing.assert_array_equal(drifted(VISION, efficiencies, 0.04, 7), drift)
    assert not np.array_equal(drifted(VISION, efficiencies, 0.04, 8), drift)
    np.testing.assert_array_equal(drifted(VISION, efficiencies, 0.0, 7), efficiencies)


@pytest.mark.parametrize("spread", [0.0, 0.1])
@pytest.mark.parametrize("name", ["biograph_mmr", "discovery_mi_3ring"])
def test_level_gives_the_published_sensitivity_through_the_normalization(name, spread):
    """Expected counts of a line on the axis, bin by bin, are the published counts per second."""
    scanner = load_scanner(name)
    if scanner.sensitivity_cps_per_kbq is None:
        scanner = replace(scanner, sensitivity_cps_per_kbq=10.0)
    layout = SinogramLayout(
        scanner, radials=scanner.transaxial_block, max_ring_difference=covering_ring_difference(scanner, 1)
    )
    efficiencies = crystal_efficiencies(scanner, spread)
    norm = np.zeros(layout.planes)
    for views in np.array_split(np.arange(layout.views), 8):
        norm += normalization(layout, efficiencies, views).mean(axis=1, dtype=float).sum(axis=0)
    z = layout.plane_z_mm()
    length_per_z = np.hypot(1.0, np.diff(z, axis=1)[:, 0] / (2 * scanner.radius_mm))
    on_source = np.abs(z.mean(axis=1)) <= NEMA_LINE_MM / 2
    # A source of 1 kBq: strength in Bq/mm, times the line integral of a unit line in mL.
    cps = counts_per_activity(scanner, spread) * 1e3 / NEMA_LINE_MM * 1e3 / layout.radial_pitch_mm
    cps *= (norm * length_per_z)[on_source].sum()
    assert cps == pytest.approx(scanner.sensitivity_cps_per_kbq, rel=2e-5)


def test_level_needs_a_sensitivity_but_the_response_does_not():
    scanner = replace(load_scanner("biograph_mmr"), name="bare", sensitivity_cps_per_kbq=None)
    with pytest.raises(DataError, match=r"^scanner bare: its file has no sensitivity_cps_per_kbq[^\n]+$"):
        counts_per_activity(scanner, 0.0)
    assert line_response(scanner, 0.0) == line_response(load_scanner("biograph_mmr"), 0.0)
