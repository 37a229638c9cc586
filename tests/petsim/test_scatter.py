"""Single scatter against sums by hand and photon Monte Carlo; multiple scatter; the scale from tails."""

from dataclasses import replace
from functools import lru_cache

import numba as nb
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.special import ndtr

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout, radials_for, tof_bins_for
from petsim.physics import scatter
from petsim.physics.monte_carlo import photon_pairs
from petsim.physics.multiple_scatter import add_multiple, zone_ratio
from petsim.physics.photons import (
    ELECTRON_KEV,
    attenuation_ratio,
    klein_nishina_differential,
    klein_nishina_total,
    scattered_energy,
)
from petsim.physics.scatter import lor_angles, single_scatter
from petsim.physics.scatter_tails import PRIOR_DEVIATION, TailSums
from petsim.projectors.sinogram import SinogramProjector

WATER = 0.096
CENTER = (0.0, 0.0, 0.0)


@lru_cache
def layout_of(name="biograph_vision_600", tof=True):
    """Every pair of merged crystals and rings of a scanner without gaps has one bin."""
    scanner = load_scanner(name)
    scanner = replace(
        scanner, transaxial_block_real=scanner.transaxial_block, axial_block_real=scanner.axial_block,
        max_ring_difference=scanner.rings - 1, axial_gap_mm=0.0, transaxial_pitch_mm=None,
    )  # fmt: skip
    merge = 15 if tof else 0
    return SinogramLayout(
        scanner, radials=radials_for(scanner, 6, 400.0), merge_transaxial=6, merge_axial=8,
        max_ring_difference=-(-scanner.rings // 8) - 1, merge_tof=merge, tof_bins=tof_bins_for(scanner, merge, 400.0, 3.0),
    )  # fmt: skip


@lru_cache
def window(name="biograph_vision_600"):
    """Share of photons by energy inside the window, for the energy resolution alone."""
    scanner = load_scanner(name)
    energies = np.arange(100.0, 601.0, 5.0)
    sigma = scanner.energy_resolution * np.sqrt(energies * ELECTRON_KEV) / 2.355
    low, high = scanner.energy_window_kev
    return energies, ndtr((high - energies) / sigma) - ndtr((low - energies) / sigma)


def places(grid):
    return np.meshgrid(*(grid.axis_mm(axis) for axis in range(3)), indexing="ij")


def water_cylinder():
    grid = Grid.centered((44, 44, 75), (5.0, 5.0, 4.0))
    x, y, _ = places(grid)
    mu = np.where(x**2 + y**2 < 100**2, WATER, 0.0).astype(np.float32)
    return grid, (mu / WATER).astype(np.float32), mu


def torso():
    grid = Grid.centered((70, 46, 80), (5.0, 5.0, 5.0))
    x, y, z = places(grid)
    body = (x / 170) ** 2 + (y / 110) ** 2 < 1
    lung = (((np.abs(x) - 80) / 55) ** 2 + (y / 75) ** 2 + ((z - 60) / 120) ** 2) < 1
    mu, activity = np.where(body, WATER, 0.0), np.where(body, 1.0, 0.0)
    mu[lung], activity[lung] = 0.03, 0.4
    activity[(x + 70) ** 2 + y**2 + (z + 100) ** 2 < 55**2] = 3
    activity[(x - 90) ** 2 + (y + 20) ** 2 + (z - 30) ** 2 < 15**2] = 15
    return grid, activity.astype(np.float32), mu.astype(np.float32)


def beyond_the_end():
    """Activity from 19 to 69 mm beyond the scanner's end, in water that goes through the scanner."""
    grid = Grid.centered((44, 44, 140), (5.0, 5.0, 4.0))
    x, y, z = places(grid)
    mu = np.where(x**2 + y**2 < 100**2, WATER, 0.0)
    activity = np.where((x**2 + y**2 < 60**2) & (z > 150) & (z < 200), 1.0, 0.0)
    return grid, activity.astype(np.float32), mu.astype(np.float32)


def table_of(layout, subject, **spacings):
    grid, activity, mu = subject
    return single_scatter(layout, activity[None], mu, grid, CENTER, window(), **spacings)


def sinogram(table, layout, image=0):
    return table.at(layout, np.arange(layout.views), image)


# Sums by hand


def ray(image, origin, voxel, start, end):
    """Length, direction, and positions and contributions of steps of 1 mm."""
    length = np.linalg.norm(end - start)
    along = np.arange(0.5, length)
    inside = start + along[:, None] * (end - start) / length
    values = [map_coordinates(channel, ((inside - origin) / voxel).T, order=1) for channel in image]
    return length, (end - start) / length, along, np.stack(values)


def scatter_by_hand(layout, image, origin, voxel, points, scales, a, b):
    """TOF spectrum of the LOR from a to b by the formula of the module's docstring; `image` is mu [1/mm] and activity."""
    energies, accepted = window()
    bins, width, sigma = layout.tof_bins, layout.tof_bin_mm, layout.tof_sigma_mm
    edges = (np.arange(bins + 1) - bins / 2) * width
    out = np.zeros(bins)
    lor = np.linalg.norm(b - a)
    normal = [-np.array([*p[:2], 0.0]) / layout.scanner.radius_mm for p in (a, b)]
    facing = np.dot(b - a, normal[0]) / lor * np.dot(a - b, normal[1]) / lor
    for point, scale in zip(points, scales, strict=True):
        (r_a, u_a, s_a, (mu_a, f_a)), (r_b, u_b, s_b, (mu_b, f_b)) = (ray(image, origin, voxel, point, p) for p in (a, b))
        cos = -np.dot(u_a, u_b)
        energy = scattered_energy(ELECTRON_KEV, cos)
        weight = lor**2 / facing * scale * np.dot(u_a, -normal[0]) * np.dot(u_b, -normal[1]) / (r_a * r_b) ** 2
        weight *= klein_nishina_differential(ELECTRON_KEV, cos) / klein_nishina_total(ELECTRON_KEV)
        weight *= np.interp(energy, energies, accepted) / np.interp(ELECTRON_KEV, energies, accepted)
        ratio = attenuation_ratio(energy)
        for survival, position, activity in (
            (np.exp(-mu_a.sum() - ratio * mu_b.sum()), (r_a - r_b) / 2 - s_a, f_a),
            (np.exp(-mu_b.sum() - ratio * mu_a.sum()), (r_a - r_b) / 2 + s_b, f_b),
        ):
            out += weight * survival * (np.diff(ndtr((edges - position[:, None]) / sigma), axis=1).T @ activity)
    return out


def detector(table, phi, ring):
    angle = 2 * np.pi * phi / table.values.shape[1]
    return np.array([table.radius_mm * np.cos(angle), table.radius_mm * np.sin(angle), table.detector_z_mm[ring]])


@pytest.mark.parametrize(
    ("shift", "rings", "source"),
    [(0, (5, 5), (60.0, 0.0, 0.0)), (-3, (4, 6), (0.0, 48.0, 16.0)), (2, (7, 5), (-24.0, -24.0, -8.0))],
)
def test_terms_by_hand(shift, rings, source):
    layout = layout_of()
    # Voxels that are not averaged.
    grid = Grid.centered((25, 25, 25), scatter.VOXEL_MM)
    x, y, z = places(grid)
    near = np.exp(-((x - source[0]) ** 2 + (y - source[1]) ** 2 + (z - source[2]) ** 2) / 2 / 15**2)
    activity = (1e4 * near).astype(np.float32)
    mu = np.where((np.abs(x) < 100) & (np.abs(y) < 80) & (np.abs(z) < 60), WATER, 0.0).astype(np.float32)
    table = single_scatter(layout, activity[None], mu, grid, CENTER, window(), point_mm=70.0)
    image, origin, voxel = scatter._coarse(activity[None], mu, grid, CENTER)
    points, scales = scatter._scatter_points(image[..., 0], origin, voxel, 70.0)
    assert 20 < len(points) < 60
    np.testing.assert_allclose(scales.sum(), mu.sum() / 10 * np.prod(voxel), rtol=0.01)

    phi = 4
    across = table.values.shape[1] // 2 + shift
    expected = scatter_by_hand(layout, (image[..., 0], image[..., 1]), origin, voxel, points, scales,
                               detector(table, phi, rings[0]), detector(table, phi + across, rings[1]))  # fmt: skip
    difference = rings[1] - rings[0] + table.values.shape[5] // 2
    found = table.values[0, phi, across - table.first_difference, :, rings[0], difference]
    np.testing.assert_allclose(found.sum(), expected.sum(), rtol=0.01)
    bins = (np.arange(layout.tof_bins) - layout.tof_bins // 2) * layout.tof_bin_mm
    assert abs(bins @ found / found.sum() - bins @ expected / expected.sum()) < 1.0
    np.testing.assert_allclose(found, expected, atol=0.06 * expected.max())


def test_bins_interpolate_what_is_summed_by_hand():
    layout = layout_of()
    grid, activity, mu = torso()
    table = single_scatter(layout, activity[None], mu, grid, CENTER, window(), point_mm=70.0)
    image, origin, voxel = scatter._coarse(activity[None], mu, grid, CENTER)
    points, scales = scatter._scatter_points(image[..., 0], origin, voxel, 70.0)
    z = layout.plane_z_mm()
    rng = np.random.default_rng(3)
    peak = sinogram(table, layout).max()
    for _ in range(6):
        view, radial, plane = rng.integers(layout.views), rng.integers(6, layout.radials - 6), rng.integers(layout.planes)
        angles = lor_angles(layout, np.array([view]))[0, radial]
        ends = [np.array([table.radius_mm * np.cos(p), table.radius_mm * np.sin(p), h])
                for p, h in zip(angles, z[plane], strict=True)]  # fmt: skip
        expected = scatter_by_hand(layout, (image[..., 0], image[..., 1]), origin, voxel, points, scales, *ends)
        np.testing.assert_allclose(table.at(layout, np.array([view]))[0, radial, :, plane], expected, atol=0.03 * peak)


# Properties


def test_linear_in_activity_and_images_are_independent():
    layout = layout_of()
    grid, activity, mu = water_cylinder()
    other = np.roll(activity, 9, axis=0) * np.linspace(0, 1, grid.shape[2], dtype=np.float32)
    both = single_scatter(layout, np.stack([activity, other, activity + 2 * other]), mu, grid, CENTER, window())
    alone = single_scatter(layout, other[None], mu, grid, CENTER, window())
    scale = both.values[2].max()
    np.testing.assert_allclose(both.values[2], both.values[0] + 2 * both.values[1], atol=2e-5 * scale)
    np.testing.assert_allclose(both.values[1], alone.values[0], atol=1e-5 * scale)
    scaled = both.with_factor((1.0, 0.5, 2.0)).with_factor((3.0, 1.0, 1.0))
    views = np.arange(3)
    for image, factor in enumerate((3.0, 0.5, 2.0)):
        np.testing.assert_allclose(
            scaled.at(layout, views, image), factor * both.at(layout, views, image), atol=1e-5 * scale
        )


def test_mixed_tables_are_weighted_means():
    layout = layout_of()
    grid, activity, mu = water_cylinder()
    one = single_scatter(layout, activity[None], mu, grid, CENTER, window()).with_factor((2.0,))
    other = single_scatter(layout, activity[None], mu, grid, CENTER, window(), point_mm=60.0).with_factor((0.5,))
    first, second, mixed = (table.at(layout, np.array([3])) for table in (one, other, one.mixed(other, 0.7)))
    # Where the interpolation undershoots it is cut at 0.
    inside = (first > 0) & (second > 0)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(mixed[inside], 0.3 * first[inside] + 0.7 * second[inside], atol=1e-6 * first.max())


def test_nothing_scatters_without_attenuation():
    layout = layout_of()
    grid, activity, mu = water_cylinder()
    assert not sinogram(single_scatter(layout, activity[None], 0 * mu, grid, CENTER, window()), layout).any()
    assert not sinogram(single_scatter(layout, 0 * activity[None], mu, grid, CENTER, window()), layout).any()


def test_sum_over_tof_is_scatter_without_tof():
    grid, activity, mu = torso()
    layout = layout_of()
    wide = replace(layout, tof_bins=2 * layout.tof_bins + 1)
    plain = layout_of(tof=False)
    with_tof, without = table_of(wide, (grid, activity, mu)), table_of(plain, (grid, activity, mu))
    np.testing.assert_allclose(with_tof.values.sum(axis=3), without.values[:, :, :, 0], atol=1e-4 * without.values.max())
    # Bins are kept from falling below zero one by one.
    expected = sinogram(without, plain)[:, :, 0]
    np.testing.assert_allclose(sinogram(with_tof, wide).sum(axis=2), expected, atol=0.005 * expected.max())


def test_centered_cylinder_looks_alike_from_all_sides():
    layout = layout_of()
    seen = sinogram(table_of(layout, water_cylinder()), layout)
    # Views with an odd number of crystals lie half a radial bin apart by turns.
    for by_view in (seen[start::2].sum(axis=(2, 3)) for start in (0, 1)):
        np.testing.assert_allclose(by_view, np.broadcast_to(by_view.mean(axis=0), by_view.shape), atol=0.03 * by_view.max())
    tof = seen.sum(axis=(0, 1, 3))
    np.testing.assert_allclose(tof, tof[::-1], rtol=0.01, atol=1e-3 * tof.max())
    # Planes of opposite ring difference, seen from behind.
    first, second = layout.segments()[3:5]
    one, two = (seen[..., s.start : s.start + s.planes].sum(axis=(0, 1, 2)) for s in (first, second))
    np.testing.assert_allclose(one, two, rtol=0.02)


def test_scatter_turns_with_the_subject():
    """A quarter turn of the subject is one of the views."""
    layout = layout_of("biograph_mmr", tof=False)
    grid = Grid.centered((60, 60, 50), (6.0, 6.0, 5.0))
    x, y, z = places(grid)
    mu = np.where((x / 150) ** 2 + (y / 100) ** 2 < 1, WATER, 0.0).astype(np.float32)
    activity = (mu * ((x - 60) ** 2 + (y + 20) ** 2 + z**2 < 50**2)).astype(np.float32)
    one = sinogram(table_of(layout, (grid, activity, mu)), layout)[:, :, 0]
    # x -> y, y -> -x
    turned = [np.ascontiguousarray(np.rot90(a, 1, axes=(0, 1))) for a in (activity, mu)]
    two = sinogram(table_of(layout, (grid, *turned)), layout)[:, :, 0]
    half = layout.views // 2
    np.testing.assert_allclose(two[half:], one[:half], atol=0.04 * one.max())
    np.testing.assert_allclose(two[half:].sum(axis=2), one[:half].sum(axis=2), atol=0.02 * one.sum(axis=2).max())
    assert np.abs(two - one).max() > 0.3 * one.max()


def test_tof_bins_are_those_of_the_projector():
    """Scatter in a small ball appears where its unscattered annihilations do."""
    layout = layout_of()
    grid = Grid.centered((60, 60, 20), (6.0, 6.0, 8.0))
    x, y, z = places(grid)
    ball = (x - 100) ** 2 + (y - 60) ** 2 + z**2 < 40**2
    activity, mu = ball.astype(np.float32), np.where(ball, WATER, 0.0).astype(np.float32)
    views = np.arange(0, layout.views, 19)
    trues = SinogramProjector(layout, grid, CENTER).forward(activity, views).sum(axis=3)
    scattered = table_of(layout, (grid, activity, mu)).at(layout, views).sum(axis=3)
    bins = np.arange(layout.tof_bins)
    compared = 0
    for row in range(len(views)):
        # The LOR through the ball.
        radial = trues[row].sum(axis=1).argmax()
        one, two = (np.average(bins, weights=counts[row, radial]) for counts in (trues, scattered))
        assert abs(one - two) < 0.25
        compared += abs(one - layout.tof_bins // 2) > 1
    assert compared > 3


def test_default_spacings_are_fine_enough():
    layout = layout_of()
    coarse, fine = (sinogram(table_of(layout, torso(), **s), layout) for s in ({}, {"point_mm": 24.0, "phi_mm": 60.0}))
    assert np.abs(coarse - fine).max() < 0.08 * fine.max()
    large = fine > 0.1 * fine.max()
    assert np.sqrt(np.mean((coarse / np.maximum(fine, 1e-9) - 1)[large] ** 2)) < 0.02
    np.testing.assert_allclose(coarse.sum(dtype=float), fine.sum(dtype=float), rtol=0.01)


def test_bits_do_not_depend_on_threads():
    layout = layout_of()
    subject = torso()
    before = nb.get_num_threads()
    results = []
    try:
        for threads in (1, before):
            nb.set_num_threads(threads)
            table = table_of(layout, subject, point_mm=60.0)
            results.append((table.values, table.at(layout, np.arange(5))))
    finally:
        nb.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


def test_views_are_evaluated_one_by_one_or_together():
    layout = layout_of()
    table = table_of(layout, water_cylinder(), point_mm=70.0)
    views = np.array([7, 0, 100])
    together = table.at(layout, views)
    assert together.dtype == np.float32 and together.shape == (3, *layout.shape[1:])
    np.testing.assert_array_equal(together, np.concatenate([table.at(layout, views[k : k + 1]) for k in range(3)]))


def test_table_refuses_other_tof_bins_and_images_off_their_grid():
    layout = layout_of()
    grid, activity, mu = water_cylinder()
    table = table_of(layout, (grid, activity, mu), point_mm=90.0)
    with pytest.raises(DataError, match="TOF bins"):
        table.at(replace(layout, tof_bins=3), np.arange(1))
    with pytest.raises(DataError, match="grid"):
        single_scatter(layout, activity[None], mu[1:], grid, CENTER, window())
    with pytest.raises(DataError, match="511 keV"):
        single_scatter(layout, activity[None], mu, grid, CENTER, (np.array([100.0, 200.0]), np.zeros(2)))


@pytest.mark.parametrize("name", ["biograph_vision_600", "discovery_mi_4ring", "biograph_mmr"])
def test_ends_of_lors_on_the_cylinder(name):
    """On the LOR, on the cylinder, and end 1 near crystal 1; polygonal scanners too."""
    scanner = load_scanner(name)
    layout = SinogramLayout(scanner, radials=60)
    views = np.arange(0, layout.views, 37)
    ends, angles = layout.transaxial_ends(views), lor_angles(layout, views)
    for end in range(2):
        point = scanner.radius_mm * np.stack([np.cos(angles[..., end]), np.sin(angles[..., end])], axis=-1)
        start, stop = ends[..., :2], ends[..., 2:]
        across = (stop - start)[..., 0] * (point - start)[..., 1] - (stop - start)[..., 1] * (point - start)[..., 0]
        assert np.abs(across).max() / (2 * scanner.radius_mm) < 1e-6
        assert np.linalg.norm(point - ends[..., 2 * end : 2 * end + 2], axis=-1).max() < 0.06 * scanner.radius_mm


# Photon Monte Carlo


@lru_cache
def bins_of(layout):
    """(view x radials + radial, whether exchanged) of two crystals, and plane of two rings."""
    crystals, rings = layout.crystals, layout.rings
    lor, exchanged = np.full((crystals, crystals), -1), np.zeros((crystals, crystals), bool)
    for view in range(layout.views):
        one, two = (c[0] for c in layout.crystal_pairs(view))
        lor[one, two] = lor[two, one] = view * layout.radials + np.arange(layout.radials)
        exchanged[two, one] = True
    plane = np.zeros((rings, rings), int)
    for seg in layout.segments():
        ring_sum = seg.first_sum + np.arange(seg.planes) * seg.step
        first, second = (np.rint((ring_sum + sign * seg.ring_difference) / 2).astype(int) for sign in (-1, 1))
        plane[first, second] = seg.start + np.arange(seg.planes)
    return lor, exchanged, plane


def counted(layout, subject, decays):
    """Monte Carlo coincidences, weighted with the acceptance: (once, more often) by (radial, tof, plane)."""
    grid, activity, mu = subject
    lor, exchanged, plane = bins_of(layout)
    rng = np.random.default_rng(0)
    out = np.zeros((2, layout.radials * layout.tof_bins * layout.planes))
    for batch in photon_pairs(layout.scanner, activity, mu, grid, CENTER, decays, 1, detector="cylinder"):
        both = (batch.energy_kev > 0).all(axis=1)
        weight = np.interp(batch.energy_kev[both], *window()).prod(axis=1)
        crystal, ring = (batch.crystal[both] // layout.merge_transaxial).T, (batch.ring[both] // layout.merge_axial).T
        turned = exchanged[crystal[0], crystal[1]]
        position = np.where(turned, -1, 1) * (batch.path_mm[both, 0] - batch.path_mm[both, 1]) / 2
        position = position + rng.normal(0, layout.tof_sigma_mm, len(position))
        tof = np.floor(position / layout.tof_bin_mm + layout.tof_bins / 2).astype(int)
        pair = lor[crystal[0], crystal[1]]
        at = plane[np.where(turned, ring[1], ring[0]), np.where(turned, ring[0], ring[1])]
        scatters = batch.scatters[both].sum(axis=1)
        kept = (pair >= 0) & (tof >= 0) & (tof < layout.tof_bins) & (scatters > 0)
        index = ((pair % layout.radials) * layout.tof_bins + tof) * layout.planes + at
        for more in range(2):
            some = kept & ((scatters > 1) == more)
            out[more] += np.bincount(index[some], weight[some], out.shape[1])
    return out.reshape(2, layout.radials, layout.tof_bins, layout.planes)


def predicted(layout, table, subject, decays):
    """The same from a scatter table: A^2 cos(theta)^4 / (8 pi R^2) q(511)^2 S a bin of crystals of area A."""
    grid, activity, _ = subject
    radius = layout.scanner.radius_mm
    ends = layout.transaxial_ends(np.arange(layout.views))
    chord2 = ((ends[..., 2:] - ends[..., :2]) ** 2).sum(axis=-1)[..., None]
    cos4 = (chord2 / (chord2 + np.diff(layout.plane_z_mm(), axis=1)[:, 0] ** 2)) ** 2
    area = 2 * np.pi * radius / layout.crystals * layout.ring_pitch_mm
    level = area**2 / (8 * np.pi * radius**2) * np.interp(ELECTRON_KEV, *window()) ** 2
    # Decays a mm^3 of activity 1.
    level *= decays / (activity.sum(dtype=float) * np.prod(grid.spacing_mm))
    return (sinogram(table, layout) * cos4[:, :, None]).sum(axis=0, dtype=float) * level


def profiles(counts, layout):
    """Over radial position, TOF, axial middle and tilt; mirror images summed where the subjects of all tests are alike."""
    z = layout.plane_z_mm()
    out = {"radial": counts.sum(axis=(1, 2)), "tof": counts.sum(axis=(0, 2))}
    out["radial"] = out["radial"][: len(out["radial"]) // 3 * 3].reshape(-1, 3).sum(axis=1)
    for name, position in (("axial", z.mean(axis=1)), ("tilt", np.diff(z, axis=1)[:, 0])):
        edges = np.linspace(position.min() - 0.1, position.max() + 0.1, 8)
        out[name] = np.histogram(position, edges, weights=counts.sum(axis=(0, 1)))[0]
    return out


@pytest.mark.parametrize(
    ("subject", "decays"), [(water_cylinder, 1_500_000), (torso, 2_000_000), (beyond_the_end, 4_000_000)]
)
def test_against_monte_carlo(subject, decays):
    layout = layout_of()
    table = table_of(layout, subject())
    once, more = counted(layout, subject(), decays)
    single = predicted(layout, table, subject(), decays)
    np.testing.assert_allclose(single.sum(), once.sum(), rtol=0.04)
    for name, expected in profiles(single, layout).items():
        found = profiles(once, layout)[name]
        assert np.abs(found - expected).max() < 0.05 * found.max(), f"{name}: {found / found.max()} {expected / found.max()}"

    mid = layout.plane_z_mm().mean(axis=1)
    edges = np.linspace(mid.min() - 0.1, mid.max() + 0.1, 12)
    by_z = [np.histogram(mid, edges, weights=c.sum(axis=(0, 1)))[0] for c in (once, more)]
    centers = (edges[1:] + edges[:-1]) / 2
    total = predicted(layout, add_multiple(table, zone_ratio(centers, *by_z), centers), subject(), decays)
    for name, expected in profiles(total, layout).items():
        found = profiles(once + more, layout)[name]
        assert np.abs(found - expected).max() < 0.05 * found.max(), f"{name}: {found / found.max()} {expected / found.max()}"


# Multiple scatter


def test_multiple_scatter_adds_its_ratio_and_is_wider():
    layout = layout_of()
    single = table_of(layout, water_cylinder(), point_mm=60.0)
    both = add_multiple(single, 0.2)
    one, two = sinogram(single, layout), sinogram(both, layout)
    more = two - one
    np.testing.assert_allclose(more.sum(dtype=float), 0.2 * one.sum(dtype=float), rtol=0.02)
    assert more.min() > -1e-3 * more.max()
    radial = np.arange(layout.radials) - layout.radials / 2

    def width(counts, position, axes):
        profile = counts.sum(axis=axes, dtype=float)
        return np.sqrt(np.average(position**2, weights=profile) - np.average(position, weights=profile) ** 2)

    gained = np.sqrt(width(more, radial, (0, 2, 3)) ** 2 - width(one, radial, (0, 2, 3)) ** 2) * layout.radial_pitch_mm
    # Both ends are displaced by 40 mm, each of which moves the LOR by half.
    assert 0.7 < gained / (40 / np.sqrt(2)) < 1.1
    np.testing.assert_array_equal(sinogram(add_multiple(single, 0.0), layout), one)


def test_ratio_by_zone():
    z = np.arange(-500.0, 501.0, 20.0)
    truth = np.where(z < 0, 0.1, 0.3)
    single = np.full(len(z), 1e6)
    ratio = zone_ratio(z, single, truth * single)
    np.testing.assert_allclose(ratio[[5, 25, -6]], [0.1, 0.2, 0.3], atol=0.02)
    few = zone_ratio(z, single / 1e6, truth)
    np.testing.assert_allclose(few, truth.mean(), rtol=0.05)
    assert not zone_ratio(z, 0 * z, 0 * z).any()


# Tails


def tails(scale, level=20.0, seed=0):
    rng = np.random.default_rng(seed)
    shape = (6, 20, 50)
    expected = level * rng.uniform(0.1, 1.0, shape)
    randoms = level * rng.uniform(0.1, 1.0, shape)
    mask = rng.uniform(size=shape) < 0.5
    # What lies on the body is not to be looked at.
    data = np.where(mask, rng.poisson(scale * expected + randoms), 10 * level)
    return [a.astype(np.float32) for a in (data, randoms, expected)] + [mask]


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.3])
def test_tails_give_the_scale(scale):
    found = []
    for seed in range(40):
        sums = TailSums()
        data = tails(scale, seed=seed)
        # Groups of views, as they come.
        for part in (slice(0, 2), slice(2, 6)):
            sums.add(*(d[part] for d in data))
        found.append(sums.scale())
    assert all(f["how"] == "fitted" for f in found)
    values = np.array([f["scale"] for f in found])
    spread = values.std(ddof=1)
    assert abs(values.mean() - scale) < 4 * spread / np.sqrt(40)
    assert 0.6 < spread / found[0]["deviation"] < 1.6


def test_scale_is_bounded_and_needs_counts():
    sums = TailSums()
    sums.add(*tails(5.0))
    result = sums.scale()
    assert result["scale"] == 2.0 and result["how"] == "bounded"
    assert sums.scale(highest=9.0)["scale"] == pytest.approx(5.0, rel=0.05)
    few = TailSums()
    few.add(*tails(1.5, level=0.0005))
    found = few.scale(default=1.1)
    assert (found["scale"], found["how"], found["counts"]) == (1.1, "fallback", few.counts)
    assert found["deviation"] == pytest.approx(PRIOR_DEVIATION * 1.1)
    assert TailSums().scale()["how"] == "fallback"
    data, randoms, expected, mask = tails(1.0)
    nothing = TailSums()
    nothing.add(data, randoms, expected, np.zeros_like(mask))
    assert nothing == TailSums()


@pytest.mark.parametrize("level", [0.03, 0.2])
def test_few_tail_counts_are_weighed_against_what_bodies_have(level):
    """Over bodies whose scales are drawn from the prior, the scale errs less than a fit alone and than no fit."""
    rng, default = np.random.default_rng(3), 1.25
    scale, alone, none, said = [], [], [], []
    for seed in range(300):
        true = rng.normal(default, PRIOR_DEVIATION * default)
        sums = TailSums()
        sums.add(*tails(true, level=level, seed=seed))
        found = sums.scale(-9.0, 9.0, default=default)
        assert found["how"] == "fitted"
        scale.append(found["scale"] - true)
        alone.append(sums.numerator / sums.information - true)
        none.append(default - true)
        said.append(found["deviation"])
    error, without_prior, without_fit = (np.sqrt(np.mean(np.square(e))) for e in (scale, alone, none))
    assert error < without_prior and error < without_fit
    assert error == pytest.approx(np.sqrt(np.mean(np.square(said))), rel=0.15)


def test_a_short_scan_of_a_body_with_much_scatter_keeps_its_scale():
    """600 scatter counts give 1.8 to 4 %; taking 1.25 for them raised the activity of a real scan by 12 %."""
    sums = TailSums()
    sums.add(*tails(1.8, level=1.0))
    assert 200 < sums.information < 1000
    found = sums.scale(default=1.25)
    assert found["how"] == "fitted" and found["scale"] == pytest.approx(1.8, abs=3 * found["deviation"] + 0.02)
