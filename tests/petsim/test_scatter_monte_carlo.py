"""Scatter of all orders by Monte Carlo, against single scatter with multiple scatter added and against plain counts."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numba as nb
import numpy as np
import pytest
from scipy.special import ndtr

from data_recipes.grid import Grid
from data_recipes.phantoms.analytic import cylinder
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout, radials_for, tof_bins_for
from petsim.model import SCATTER_DECAYS, build_model
from petsim.physics.monte_carlo import photon_pairs
from petsim.physics.multiple_scatter import add_multiple, zone_ratio
from petsim.physics.photons import ELECTRON_KEV
from petsim.physics.scatter import ScatterTable, single_scatter
from petsim.physics.scatter_monte_carlo import monte_carlo_scatter
from petsim.plan import plan_subject
from petsim.settings import SimulationSettings

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")
CENTER = (0.0, 0.0, 0.0)


@lru_cache
def layout_of(tof=True):
    scanner = load_scanner("biograph_vision_600")
    merge = 15 if tof else 0
    return SinogramLayout(
        scanner, radials=radials_for(scanner, 6, 400.0), merge_transaxial=6, merge_axial=8, max_ring_difference=9,
        merge_tof=merge, tof_bins=tof_bins_for(scanner, merge, 400.0, 3.0),
    )  # fmt: skip


@lru_cache
def window():
    energies = np.arange(100.0, 601.0, 5.0)
    sigma = 0.09 * np.sqrt(energies * ELECTRON_KEV) / 2.355
    return energies, ndtr((585 - energies) / sigma) - ndtr((435 - energies) / sigma)


@lru_cache
def water_cylinder():
    """Radius 100 mm, as long as nothing lies beyond it."""
    grid = Grid.centered((44, 44, 75), (5.0, 5.0, 4.0))
    x, y = grid.axis_mm(0)[:, None, None], grid.axis_mm(1)[None, :, None]
    mu = np.broadcast_to(np.where(x**2 + y**2 < 100**2, 0.096, 0.0), grid.shape).astype(np.float32)
    return grid, (mu / np.float32(0.096)), mu


def table_of(decays, seed=0, layout=None):
    grid, activity, mu = water_cylinder()
    return monte_carlo_scatter(layout or layout_of(), activity, mu, grid, CENTER, window(), decays, seed)


def profiles(layout, table, views):
    """Over radial position (in threes), TOF, and axial middle in sevenths."""
    z = layout.plane_z_mm().mean(axis=1)
    counts = table.at(layout, views).sum(axis=0, dtype=float)
    radial = counts.sum(axis=(1, 2))
    edges = np.linspace(z.min() - 0.1, z.max() + 0.1, 8)
    return {
        "radial": radial[: len(radial) // 3 * 3].reshape(-1, 3).sum(axis=1),
        "tof": counts.sum(axis=(0, 2)),
        "axial": np.histogram(z, edges, weights=counts.sum(axis=(0, 1)))[0],
    }


@lru_cache
def ratio_by_zone():
    """Multiple over single scatter by axial zone, from a Monte Carlo of its own."""
    grid, activity, mu = water_cylinder()
    edges = np.linspace(-131, 131, 12)
    orders = np.zeros((2, 11))
    scanner = layout_of().scanner
    for batch in photon_pairs(scanner, activity, mu, grid, CENTER, 700_000, 7, detector="cylinder"):
        both = (batch.energy_kev > 0).all(axis=1)
        weight = np.interp(batch.energy_kev[both], *window()).prod(axis=1)
        scatters, middle = batch.scatters[both].sum(axis=1), batch.position_mm[both, :, 2].mean(axis=1)
        for k, some in enumerate((scatters == 1, scatters > 1)):
            orders[k] += np.histogram(middle[some], edges, weights=weight[some])[0]
    centers = (edges[1:] + edges[:-1]) / 2
    return zone_ratio(centers, *orders), centers


def test_water_cylinder_against_single_and_multiple_scatter():
    layout = layout_of()
    grid, activity, mu = water_cylinder()
    found = table_of(2_000_000, 3)
    single = single_scatter(layout, activity[None], mu, grid, CENTER, window())
    expected = add_multiple(single, *ratio_by_zone())
    assert found.values.shape == expected.values.shape
    assert (found.detector_z_mm, found.first_difference, found.tof_bin_mm, found.radius_mm) == (
        expected.detector_z_mm, expected.first_difference, expected.tof_bin_mm, expected.radius_mm)  # fmt: skip
    views = np.arange(0, layout.views, 2)
    ours, theirs = (profiles(layout, table, views) for table in (found, expected))
    assert ours["tof"].sum() == pytest.approx(theirs["tof"].sum(), rel=0.04)
    for name, wanted in theirs.items():
        assert np.abs(ours[name] - wanted).max() < 0.05 * wanted.max(), f"{name}: {(ours[name] - wanted) / wanted.max()}"


def test_sum_over_tof_is_scatter_without_tof():
    plain = table_of(100_000, 0, layout_of(tof=False)).values
    # So many bins that none is cut off.
    wide = table_of(100_000, 0, replace(layout_of(), tof_bins=31)).values
    np.testing.assert_allclose(wide.sum(axis=3), plain[:, :, :, 0], atol=1e-4 * plain.max())


def test_noise_falls_with_decays_and_stays_what_is_stated():
    """Standard deviation over the peak, from pairs of seeds: 2.8 % for 20 million decays a TOF bin."""
    layout, views = layout_of(), np.arange(0, 133, 12)
    spread = {}
    for decays in (150_000, 600_000):
        one, two = (table_of(decays, seed).at(layout, views).astype(float) for seed in (1, 2))
        mean = (one + two) / 2
        large = mean > 0.3 * mean.max()
        # The peak of a smooth table.
        spread[decays] = np.sqrt(np.mean((one - two)[large] ** 2) / 2) / np.quantile(mean, 0.99)
    assert spread[150_000] / spread[600_000] == pytest.approx(2, rel=0.25)
    assert spread[600_000] * np.sqrt(0.6 / 20) == pytest.approx(0.028, rel=0.35)


def test_activity_has_its_unit_and_the_sinogram_is_positive_in_the_middle():
    layout = layout_of()
    grid, activity, mu = water_cylinder()
    one = table_of(200_000)
    more = monte_carlo_scatter(layout, 250 * activity, mu, grid, CENTER, window(), 200_000)
    np.testing.assert_allclose(more.values, 250 * one.values, rtol=1e-3, atol=1e-4 * more.values.max())
    assert isinstance(one, ScatterTable) and one.values.dtype == np.float32 and one.factors == (1.0,)
    assert np.isfinite(one.values).all()


def test_bits_do_not_depend_on_threads_and_seeds_differ():
    before = nb.get_num_threads()
    results = []
    try:
        for threads in (1, before):
            nb.set_num_threads(threads)
            results.append(table_of(100_000).values)
    finally:
        nb.set_num_threads(before)
    np.testing.assert_array_equal(*results)
    assert not np.array_equal(results[0], table_of(100_000, 1).values)


def test_nothing_scatters_without_attenuation():
    grid, activity, mu = water_cylinder()
    assert not monte_carlo_scatter(layout_of(), activity, 0 * mu, grid, CENTER, window(), 20_000).values.any()


def test_a_simulation_takes_it():
    """Scatter of a short cylinder in the small scanner: as much as the usual way gives."""
    settings = SimulationSettings(scanner=SMALL, preset="fast", photons=50_000, seed=5, efficiency_spread=0.0)
    subject = cylinder(length_mm=60.0)
    plan = plan_subject(subject, settings)
    views = np.arange(0, plan.layout.views, 3)
    ours, usual = (
        build_model(plan, replace(settings, scatter=kind)).components(views)["scatter"].sum(dtype=float)
        for kind in ("monte-carlo", "simulated")
    )
    assert ours == pytest.approx(usual, rel=0.06)
    assert SCATTER_DECAYS * SimulationSettings().photons == 20_000_000
