"""The vectorized projector against an independent LOR-by-LOR one, analytic line integrals and symmetries."""

import dataclasses

import numpy as np
import pytest

from data_recipes.grid import Grid
from petsim.geometry.scanner import load_scanner, parse_scanner
from petsim.geometry.sinogram import TOF_SIGMAS, SinogramLayout, fitting_grid, preset_layout, tof_bins_for
from petsim.projectors.planes import plane_sets
from petsim.projectors.sinogram import SinogramProjector
from petsim.settings import PRESETS
from tests import helpers

TINY = """
[sources]
made = "made up for tests"
[fields]
inner_radius_mm = { value = 93.0, source = "made" }
interaction_depth_mm = { value = 7.0, source = "made" }
crystals_per_ring = { value = 36, source = "made" }
rings = { value = 7, source = "made" }
ring_spacing_mm = { value = 8.0, source = "made" }
transaxial_block = { value = 6, source = "made" }
transaxial_block_real = { value = 5, source = "made" }
axial_block = { value = 7, source = "made" }
axial_block_real = { value = 7, source = "made" }
view_offset_rad = { value = 0.1, source = "made" }
radial_bins = { value = 20, source = "made" }
crystal_size_mm = { value = [8.0, 8.0, 20.0], source = "made" }
crystal_material = { value = "LSO", source = "made" }
max_ring_difference = { value = 6, source = "made" }
tof_fwhm_ps = { value = 300.0, source = "made" }
tof_bin_ps = { value = 50.0, source = "made" }
tof_bins = { value = 40, source = "made" }
resolution_fwhm_mm = { value = [5.0, 5.0, 5.0], source = "made" }
energy_resolution = { value = 0.1, source = "made" }
energy_window_kev = { value = [435.0, 585.0], source = "made" }
coincidence_window_ns = { value = 4.7, source = "made" }
sensitivity_cps_per_kbq = { value = 10.0, source = "made" }
protocol_mbq_per_kg = { value = 3.0, source = "made" }
protocol_uptake_s = { value = 3600.0, source = "made" }
protocol_duration_s = { value = 100.0, source = "made" }
"""

CASES = [
    pytest.param("tiny", {"span": 1, "max_ring_difference": 4}, 1, id="span1"),
    pytest.param("tiny", {"span": 1, "max_ring_difference": 4}, 3, id="span1-three-voxels-a-ring"),
    pytest.param("tiny", {"span": 3, "max_ring_difference": 4}, 2, id="span3"),
    pytest.param("tiny", {"span": 3, "max_ring_difference": 4}, 3, id="span3-odd-ratio"),
    pytest.param("tiny", {"span": 3, "max_ring_difference": 4, "merge_tof": 4}, 4, id="span3-tof"),
    pytest.param("tiny", {"span": 3, "max_ring_difference": 5, "merge_tof": 4}, 2, id="short-last-segment"),
    pytest.param("tiny", {"span": 3, "max_ring_difference": 3}, 2, id="single-last-segment"),
    pytest.param("tiny", {"span": 1, "max_ring_difference": 2, "merge_axial": 2, "merge_transaxial": 2,
                          "merge_tof": 6}, 2, id="merged-tof"),
    pytest.param("tiny", {"span": 1, "max_ring_difference": 2, "merge_transaxial": 4, "radials": 3}, 1, id="odd-ring"),
    pytest.param("tiny", {"span": 1, "max_ring_difference": 2, "mash": 3}, 1, id="mashed"),
    pytest.param("gaps", {"span": 1, "max_ring_difference": 5}, 2, id="gaps"),
    pytest.param("gaps", {"span": 1, "max_ring_difference": 5, "merge_tof": 4}, 2.2, id="gaps-tof"),
    pytest.param("whole-voxel-gaps", {"span": 1, "max_ring_difference": 6, "merge_tof": 4, "merge_transaxial": 2}, 2.0,
                 id="whole-voxel-gaps-tof"),
    pytest.param("gaps", {"span": 3, "max_ring_difference": 4, "even_rings": True}, 2, id="even-rings"),
    pytest.param("tiny", {"span": 1, "max_ring_difference": 4}, 1.7, id="any-voxel"),
    pytest.param("tiny", {"span": 3, "max_ring_difference": 4, "merge_tof": 4}, 2.3, id="any-voxel-tof"),
]  # fmt: skip


def tiny_scanner():
    return parse_scanner("tiny", TINY)


def polygonal_scanner(gap_mm):
    """Six flat sides of six crystals, rings in blocks of three with gaps."""
    return dataclasses.replace(tiny_scanner(), name="polygon", transaxial_pitch_mm=8.0, axial_block=3, axial_block_real=3,
                               axial_gap_mm=gap_mm)  # fmt: skip


SCANNERS = {
    "tiny": tiny_scanner,
    "gaps": lambda: polygonal_scanner(5.0),
    "whole-voxel-gaps": lambda: polygonal_scanner(4.0),
}


def build(scanner, options, ratio, shape=(17, 14), spacing=(7.0, 8.0), **kwargs):
    scanner = SCANNERS[scanner]()
    options = {"radials": 12, **options}
    if options.get("merge_tof"):
        options["tof_bins"] = tof_bins_for(scanner, options["merge_tof"], 140.0, 3.0)
    layout = SinogramLayout(scanner, **options)
    nz = int(5 * ratio) + 1
    grid = Grid.centered((*shape, nz), (*spacing, layout.ring_pitch_mm / ratio), (3.0, -4.0, 2.5))
    return SinogramProjector(layout, grid, center_mm=(0.0, 0.0, 0.0), **kwargs)


def reference(projector, image, view, radial, plane):
    """TOF data of one bin by the independent projector."""
    grid, layout = projector.grid, projector.layout
    start, end = helpers.lor_ends(layout, view, radial, plane, projector.shift)
    values, positions = helpers.joseph_lor(image, grid.spacing_mm, grid.origin_mm, start, end)
    if projector.bins == 1:
        return np.array([values.sum()])
    weights = [helpers.tof_weight(layout.tof_bins, layout.tof_bin_mm, layout.tof_sigma_mm, TOF_SIGMAS, p)
               for p in positions]  # fmt: skip
    return values @ np.array(weights)


@pytest.mark.parametrize(("scanner", "options", "ratio"), CASES)
@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (0.2, -0.2, 3.0)])
def test_agrees_with_the_independent_projector(scanner, options, ratio, shift):
    projector = build(scanner, options, ratio, shift=shift)
    image = np.random.default_rng(1).random(projector.grid.shape).astype(np.float32)
    data = projector.forward(image)
    rng = np.random.default_rng(2)
    scale = data.sum(axis=2).max()
    for _ in range(150):
        v, r, p = (int(rng.integers(n)) for n in (data.shape[0], data.shape[1], data.shape[3]))
        np.testing.assert_allclose(data[v, r, :, p], reference(projector, image, v, r, p), atol=1e-5 * scale)


def test_agrees_on_a_real_scanner_with_tof():
    """Biograph Vision, span 9, unmerged: 1e-5 of the LOR's value away from the image border."""
    scanner = load_scanner("biograph_vision_600")
    layout = SinogramLayout(scanner, radials=300, span=9, max_ring_difference=76, merge_tof=16, tof_bins=13)
    grid = Grid.centered((100, 100, 80), (4.0, 4.0, scanner.ring_spacing_mm))
    projector = SinogramProjector(layout, grid)
    rng = np.random.default_rng(3)
    image = np.zeros(grid.shape, np.float32)
    image[8:-8, 8:-8, 6:-6] = rng.random((84, 84, 68))
    views = np.array([0, 57, 100, 391])
    data = projector.forward(image, views)
    worst = 0.0
    for _ in range(300):
        v, r, p = (int(rng.integers(n)) for n in (4, data.shape[1], data.shape[3]))
        expected = reference(projector, image, int(views[v]), r, p)
        if expected.sum() > 0:
            worst = max(worst, float(np.abs(data[v, r, :, p] - expected).max() / expected.sum()))
    assert worst < 1e-5


def test_agrees_on_a_long_scanner_without_tof():
    """Biograph Vision Quadra, steep LORs and long running sums: 1e-5 of the LOR's value away from the image border."""
    layout = preset_layout(load_scanner("biograph_vision_quadra"), PRESETS["standard"], 480.0)
    grid = fitting_grid(layout, 4.0, 4.0, 480.0, layout.scanner.axial_length_mm, (0.0, 0.0, 0.0))
    projector = SinogramProjector(layout, grid, tof=False)
    rng = np.random.default_rng(3)
    image = np.zeros(grid.shape, np.float32)
    image[8:-8, 8:-8, 8:-8] = rng.random([n - 16 for n in grid.shape])
    data = projector.forward(image, np.array([7]))[0, :, 0]
    for _ in range(300):
        r, p = (int(rng.integers(n)) for n in data.shape)
        expected = reference(projector, image, 7, r, p).sum()
        if expected > 0.01 * data.max():
            assert abs(data[r, p] / expected - 1) < 1e-5


@pytest.mark.parametrize(("scanner", "options", "ratio"), CASES)
@pytest.mark.parametrize("support", [None, 45.0])
def test_is_linear_with_an_exact_adjoint(scanner, options, ratio, support):
    projector = build(scanner, options, ratio, support_mm=support)
    helpers.check_linear_operator(projector.forward, projector.adjoint, projector.grid.shape,
                                  projector.data_shape(projector.layout.views))  # fmt: skip


@pytest.mark.parametrize("tof", [True, False])
def test_dense_matrix_is_the_transpose(tof):
    projector = build("tiny", {"span": 3, "max_ring_difference": 1, "merge_transaxial": 3, "merge_axial": 2,
                               "radials": 6, "merge_tof": 8}, 3, shape=(5, 6), spacing=(20.0, 18.0), tof=tof)  # fmt: skip
    helpers.check_dense_transpose(projector.forward, projector.adjoint, projector.grid.shape,
                                  projector.data_shape(projector.layout.views))  # fmt: skip


def test_pickles():
    projector = build("tiny", {"span": 3, "max_ring_difference": 4, "merge_tof": 4}, 2)
    helpers.check_pickles(projector, np.ones(projector.grid.shape, np.float32))


def test_views_can_be_projected_one_by_one():
    projector = build("tiny", {"span": 3, "max_ring_difference": 4, "merge_tof": 4}, 2)
    image = np.random.default_rng(0).random(projector.grid.shape).astype(np.float32)
    whole = projector.forward(image)
    np.testing.assert_array_equal(whole[[3, 7]], projector.forward(image, np.array([3, 7])))


def test_tof_bins_sum_to_the_line_integral():
    options = {"span": 3, "max_ring_difference": 4, "merge_tof": 4}
    image = np.random.default_rng(0).random(build("tiny", options, 2).grid.shape).astype(np.float32)
    tof = build("tiny", options, 2, support_mm=60.0).forward(image).sum(axis=2)
    plain = build("tiny", options, 2, support_mm=60.0, tof=False).forward(image)[:, :, 0]
    np.testing.assert_allclose(tof, plain, atol=1e-4 * plain.max())


def test_cylinder_gives_its_chords():
    """Line integral through a centered cylinder of radius a: 2 sqrt(a^2 - s^2) / cos(theta)."""
    layout = SinogramLayout(load_scanner("biograph_mmr"), radials=120, span=1, max_ring_difference=20)
    grid = Grid.centered((150, 150, 64), (2.0, 2.0, layout.ring_pitch_mm))
    x, y = grid.axis_mm(0)[:, None], grid.axis_mm(1)[None, :]
    sub = (np.arange(8) - 3.5) / 8 * 2.0
    inside = np.mean([np.hypot(x + a, y + b) < 100 for a in sub for b in sub], axis=0)
    image = np.repeat(inside[:, :, None], 64, axis=2).astype(np.float32)
    data = SinogramProjector(layout, grid).forward(image, np.arange(0, 252, 21))[:, :, 0]
    ends = layout.transaxial_ends(np.arange(0, 252, 21))
    s = (ends[..., 0] * ends[..., 3] - ends[..., 1] * ends[..., 2]) / np.hypot(
        ends[..., 2] - ends[..., 0], ends[..., 3] - ends[..., 1])  # fmt: skip
    for seg in (layout.segments()[0], layout.segments()[31]):
        middle = data[:, :, seg.start + seg.planes // 2]
        chord = np.sqrt(4 * layout.scanner.radius_mm**2 - 4 * s**2)
        expected = 2 * np.sqrt(np.maximum(0, 100**2 - s**2)) * np.hypot(
            chord, seg.ring_difference * layout.ring_pitch_mm) / chord  # fmt: skip
        well_inside = np.abs(s) < 90
        np.testing.assert_allclose(middle[well_inside], expected[well_inside], rtol=0.01)
        assert abs(np.mean(middle[well_inside] / expected[well_inside]) - 1) < 1e-3


def test_point_source_spreads_over_tof_bins_as_a_gaussian():
    """The mean TOF position is that of the source along the LOR, and the variance that of kernel plus bin."""
    scanner = load_scanner("biograph_vision_600")
    layout = SinogramLayout(scanner, radials=200, span=1, max_ring_difference=0, merge_tof=8, tof_bins=33)
    grid = Grid.centered((81, 81, 80), (2.0, 2.0, scanner.ring_spacing_mm))
    image = np.zeros(grid.shape, np.float32)
    image[60, 30, 40] = 1
    source = np.array([grid.axis_mm(0)[60], grid.axis_mm(1)[30]])
    views = np.arange(0, layout.views, 40)
    data = SinogramProjector(layout, grid).forward(image, views)[:, :, :, 40]
    ends = layout.transaxial_ends(views)
    centers = (np.arange(33) - 16) * layout.tof_bin_mm
    for v in range(len(views)):
        r = int(data[v].sum(axis=1).argmax())
        weight = data[v, r] / data[v, r].sum()
        start, end = ends[v, r, :2], ends[v, r, 2:]
        along = (source - (start + end) / 2) @ (end - start) / np.linalg.norm(end - start)
        mean = weight @ centers
        assert abs(mean - along) < 1.5
        cut = 3.0
        kernel = 1 - 2 * cut * np.exp(-(cut**2) / 2) / np.sqrt(2 * np.pi) / 0.9973002039367398
        variance = weight @ (centers - mean) ** 2
        assert abs(variance / (layout.tof_sigma_mm**2 * kernel + layout.tof_bin_mm**2 / 12) - 1) < 0.02


def test_turning_the_object_by_views_turns_the_data():
    """A quarter turn of the image moves the data of the mMR (252 views) by 126 views, exactly."""
    layout = SinogramLayout(load_scanner("biograph_mmr"), radials=100, span=1, max_ring_difference=3)
    grid = Grid.centered((40, 40, 64), (5.0, 5.0, layout.ring_pitch_mm))
    image = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    projector = SinogramProjector(layout, grid)
    turned = np.ascontiguousarray(np.rot90(image, k=-1, axes=(1, 0)))
    np.testing.assert_allclose(projector.forward(turned, np.array([126 + 17])), projector.forward(image, np.array([17])),
                               rtol=2e-5, atol=1e-3)  # fmt: skip


def test_moving_the_object_by_a_ring_moves_the_planes():
    projector = build("tiny", {"span": 1, "max_ring_difference": 4}, 3)
    rng = np.random.default_rng(0)
    image = np.zeros(projector.grid.shape, np.float32)
    image[:, :, 3:-6] = rng.random((*projector.grid.shape[:2], projector.grid.shape[2] - 9))
    moved = np.roll(image, 3, axis=2)
    a, b = projector.forward(image), projector.forward(moved)
    for seg in projector.layout.segments():
        planes = slice(seg.start, seg.start + seg.planes)
        np.testing.assert_allclose(b[..., planes][..., 1:], a[..., planes][..., :-1], atol=1e-5 * a.max())


def test_sums_do_not_depend_on_how_views_are_cut():
    projector = build("tiny", {"span": 3, "max_ring_difference": 4, "merge_tof": 4}, 2)
    views = np.arange(projector.layout.views)
    data = np.random.default_rng(0).random((2, *projector.data_shape(len(views)))).astype(np.float32)
    whole, pieces = projector.new_sums(2), projector.new_sums(2)
    projector.add_back(whole, views, data)
    for first in range(0, len(views), 5):
        projector.add_back(pieces, views[first : first + 5], data[:, first : first + 5])
    np.testing.assert_array_equal(whole, pieces)


@pytest.mark.parametrize("tof", [True, False])
def test_images_together_are_images_alone(tof):
    """Bit for bit, of a ladder whose last doses have empty lines and empty sets of planes."""
    projector = build("tiny", {"span": 3, "max_ring_difference": 4, "merge_tof": 4}, 2, tof=tof)
    rng = np.random.default_rng(0)
    views = np.arange(projector.layout.views)
    images = rng.random((4, *projector.grid.shape)).astype(np.float32)
    means = np.array([3, 0.1, 0.003, 0.0]).reshape(4, 1, 1, 1, 1)
    counts = rng.poisson(means, (4, *projector.data_shape(len(views)))).astype(np.float32)
    prepared, together = projector.prepare(images), projector.new_sums(4)
    projector.add_em_back(together, views, counts, prepared)
    for k in range(4):
        alone = projector.new_sums(1)
        projector.add_em_back(alone, views, counts[k : k + 1], prepared[k : k + 1])
        np.testing.assert_array_equal(together[k], alone[0])


@pytest.mark.parametrize("level", [0.0, 3.0])
def test_em_back_projection_is_that_of_the_ratio(level):
    projector = build("tiny", {"span": 3, "max_ring_difference": 4, "merge_tof": 4}, 2)
    rng = np.random.default_rng(0)
    views = np.arange(projector.layout.views)
    images = rng.random((2, *projector.grid.shape)).astype(np.float32)
    counts = rng.poisson(0.3, (2, *projector.data_shape(len(views)))).astype(np.float32)
    background = (level * rng.random(counts.shape)).astype(np.float32)
    sums = projector.new_sums(2)
    projector.add_em_back(sums, views, counts, projector.prepare(images), background if level else None)
    for image, count, more, back in zip(images, counts, background, projector.image_of(sums), strict=True):
        expected = projector.forward(image) + more
        ratio = np.divide(count, expected, out=np.zeros_like(count), where=expected > 0)
        wanted = projector.adjoint(ratio)
        np.testing.assert_allclose(back, wanted, atol=1e-4 * wanted.max())


@pytest.mark.parametrize(("scanner", "options", "ratio"), CASES)
def test_every_plane_is_in_one_set_at_its_place(scanner, options, ratio):
    projector = build(scanner, options, ratio)
    z = projector.layout.plane_z_mm()
    voxel = projector.grid.spacing_mm[2]
    sets, groups, phases = plane_sets(z, voxel)
    seen, lanes = [], []
    for dz, first, planes, start, stride, lane, width in sets:
        for p in range(int(planes)):
            plane = int(start + p * stride)
            seen.append(plane)
            lanes.append(int(lane) + p)
            np.testing.assert_allclose(z[plane], first + p * phases * voxel + np.array([-dz, dz]) / 2, atol=1e-4)
        assert width >= planes
    assert sorted(seen) == list(range(len(z)))
    assert len(set(lanes)) == len(lanes) and max(lanes) < groups[-1, 3]


def test_runs_between_gaps_are_projected_together():
    layout = SinogramLayout(polygonal_scanner(5.0), radials=12, span=1, max_ring_difference=0)
    sets, _, phases = plane_sets(layout.plane_z_mm(), 4.0)
    assert phases == 2
    assert sorted(sets[:, 2]) == [1, 3, 3]
    sets, _, _ = plane_sets(dataclasses.replace(layout, even_rings=True).plane_z_mm(), layout.ring_pitch_mm / 2)
    assert list(sets[:, 2]) == [7]


def test_two_million_equal_terms_lose_no_accuracy():
    """All bins hold 1: the back projection at a voxel is the sum of over a million weights, here checked in float64."""
    layout = SinogramLayout(load_scanner("biograph_mmr"), radials=200, span=1, max_ring_difference=40)
    grid = Grid.centered((9, 9, 17), (30.0, 30.0, layout.ring_pitch_mm * 4))
    projector = SinogramProjector(layout, grid)
    total, count = np.zeros(grid.shape), 0
    sums = projector.new_sums(1)
    for views in np.array_split(np.arange(layout.views), 63):
        ones = np.ones(projector.data_shape(len(views)), np.float32)
        total += projector.adjoint(ones, views)
        projector.add_back(sums, views, ones[None])
        count += ones.size
    assert count * grid.shape[0] / np.prod(grid.shape) > 1e6
    np.testing.assert_allclose(projector.image_of(sums)[0], total, rtol=2e-6)


@pytest.mark.parametrize("scanner", ["tiny", "gaps"])
def test_the_support_cuts_no_weight(scanner):
    """An image of ones within the support gives the same line integrals with the cut as without, on round and flat sides."""
    options = {"span": 1, "max_ring_difference": 2}
    cut = build(scanner, options, 2, shape=(40, 40), spacing=(3.0, 3.5), support_mm=48.0)
    whole = build(scanner, options, 2, shape=(40, 40), spacing=(3.0, 3.5))
    image = np.broadcast_to(cut.support, cut.grid.shape).astype(np.float32)
    expected = whole.forward(image)
    np.testing.assert_allclose(cut.forward(image), expected, atol=2e-6 * expected.max())
