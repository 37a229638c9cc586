"""Filtered back projection of objects whose line integrals are known."""

from dataclasses import replace

import numpy as np
import pytest

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from petsim.geometry.sinogram import SinogramLayout
from petsim.nema.resolution import point_widths
from petsim.recon.fbp import fbp_2d, fbp_3d, fill_gaps
from petsim.recon.parallel_beams import ParallelBeams
from tests.petsim.test_projector import polygonal_scanner, tiny_scanner

FWHM = 2.3548200450309493


def layout(crystals=168, span=3, **options):
    """Rings of 200 mm radius, 5 mm apart; the steepest lines rise by 5 degrees."""
    scanner = replace(
        tiny_scanner(), inner_radius_mm=193.0, crystals_per_ring=crystals, transaxial_block=crystals,
        transaxial_block_real=crystals, rings=12, axial_block=12, axial_block_real=12, ring_spacing_mm=5.0,
        max_ring_difference=7, tof_fwhm_ps=None, tof_bin_ps=None, tof_bins=None,
    )  # fmt: skip
    options = {"radials": 44, "max_ring_difference": 7, **options}
    return SinogramLayout(scanner, span=span, **options)


def distances(lines, center_mm):
    """Of all lines of a layout from a point, (view, radial, plane), and what lines along it measure."""
    ends = lines.transaxial_ends(np.arange(lines.views))[:, :, None]
    z = lines.plane_z_mm()
    start = np.stack(np.broadcast_arrays(ends[..., 0], ends[..., 1], z[:, 0]), axis=-1) - center_mm
    way = np.stack(np.broadcast_arrays(ends[..., 2], ends[..., 3], z[:, 1]), axis=-1) - center_mm - start
    length = np.linalg.norm(way, axis=-1)
    return np.linalg.norm(np.cross(start, way), axis=-1) / length


def sphere(lines, center_mm, radius_mm):
    return 2 * np.sqrt(np.maximum(radius_mm**2 - distances(lines, center_mm) ** 2, 0))


def blob(lines, center_mm, sigma_mm):
    """Line integrals of exp(-r^2 / 2 sigma^2)."""
    return np.sqrt(2 * np.pi) * sigma_mm * np.exp(-(distances(lines, center_mm) ** 2) / (2 * sigma_mm**2))


def grid_at(center_mm, size=19, voxel=3.0):
    return Grid.centered((size, size, size), (voxel, voxel, voxel), center_mm)


def radii(grid, center_mm):
    x, y, z = (grid.axis_mm(a) - c for a, c in enumerate(center_mm))
    return np.sqrt(x[:, None, None] ** 2 + y[None, :, None] ** 2 + z**2)


CASES = [
    pytest.param(layout(), id="span3"),
    pytest.param(layout(span=1), id="span1"),
    pytest.param(layout(crystals=335), id="odd-ring"),
    pytest.param(layout(crystals=336, mash=2, radials=88), id="mashed"),
]


@pytest.mark.parametrize("lines", CASES)
def test_a_sphere_has_its_value(lines):
    """Off the axis: the mean of a core is within 1.5 %, outside it is zero within 2 % of it."""
    center = (30.0, -20.0, 4.0)
    grid = grid_at(center)
    image = fbp_3d(lines, sphere(lines, center, 20.0), grid, (0.0, 0.0, 0.0))
    r = radii(grid, center)
    assert image.dtype == np.float32
    assert image[r < 12].mean() == pytest.approx(1, abs=0.015)
    assert abs(image[r > 27].mean()) < 0.02
    assert image[r < 12].std() < 0.05


@pytest.mark.parametrize("place", [(0.0, 0.0, 0.0), (35.0, 10.0, 5.0)])
def test_a_blob_has_its_width_and_height(place):
    """12 mm wide: to 2 % in width in all directions, 3 % in height; linear interpolation broadens it a little."""
    sigma, lines, grid = 12 / FWHM, layout(), grid_at(place)
    image = fbp_3d(lines, blob(lines, place, sigma), grid, (0.0, 0.0, 0.0))
    widths = [w[0] for w in point_widths(image, grid, place, (12.0, 12.0, 12.0))]
    np.testing.assert_allclose(widths, 12.0, rtol=0.02)
    assert image.max() == pytest.approx(1, abs=0.04)


def test_slices_are_right_near_the_axis_and_blurred_axially_away_from_it():
    """What single-slice rebinning is known for."""
    sigma, lines, found = 12 / FWHM, layout(), []
    for place in ((0.0, 0.0, 0.0), (40.0, 0.0, 0.0)):
        grid = grid_at(place)
        image = fbp_2d(lines, blob(lines, place, sigma), grid, (0.0, 0.0, 0.0))
        found.append([w[0] for w in point_widths(image, grid, place, (12.0, 12.0, 12.0))])
    np.testing.assert_allclose(found[0], 12.0, rtol=0.03)
    np.testing.assert_allclose(found[1][:2], 12.0, rtol=0.03)
    assert found[1][2] > found[0][2] + 0.4


def test_direct_planes_alone_can_be_used():
    """Interpolation halfway between slices 5 mm apart adds 25 / 4 mm^2 to the axial variance."""
    lines, place = layout(span=1), (35.0, 10.0, 0.0)
    grid = grid_at(place)
    image = fbp_2d(lines, blob(lines, place, 12 / FWHM), grid, (0.0, 0.0, 0.0), max_ring_difference=0)
    widths = [w[0] for w in point_widths(image, grid, place, (12.0, 12.0, 12.0))]
    np.testing.assert_allclose(widths[:2], 12.0, rtol=0.03)
    assert widths[2] == pytest.approx(np.sqrt(144 + FWHM**2 * 25 / 4), rel=0.03)


def test_the_value_does_not_depend_on_the_place_along_the_axis():
    """Where oblique lines are missing they are completed: a sphere near the end has the value of one in the middle."""
    lines = layout()
    for z in (0.0, 15.0):
        center = (0.0, 25.0, z)
        grid = grid_at(center, size=9)
        image = fbp_3d(lines, sphere(lines, center, 14.0), grid, (0.0, 0.0, 0.0))
        assert image[radii(grid, center) < 7].mean() == pytest.approx(1, abs=0.02)


def test_gaps_are_filled():
    """One of 14 crystals missing, and a ring: the sphere's value stays within 2 %, and lines that were known stay."""
    lines, center = layout(span=1), (20.0, 0.0, 0.0)
    data, grid = sphere(lines, center, 20.0), grid_at(center)
    crystal, ring = np.arange(168) % 14 != 3, np.arange(12) != 4
    pairs = np.stack([np.concatenate(lines.crystal_pairs(v)) for v in range(lines.views)])
    planes = np.zeros(lines.planes, bool)
    for a in range(12):
        for b in range(12):
            if abs(a - b) <= 7:
                planes[lines.planes_of_ring_pairs()[a, b]] = ring[a] and ring[b]
    known = (crystal[pairs[:, 0]] & crystal[pairs[:, 1]])[..., None] & planes
    assert 0.6 < known.mean() < 0.85
    filled = fill_gaps(np.where(known, data, np.nan), known)
    np.testing.assert_array_equal(filled[known], data[known].astype(np.float32))
    image = fbp_3d(lines, filled, grid, (0.0, 0.0, 0.0))
    assert image[radii(grid, center) < 12].mean() == pytest.approx(1, abs=0.02)


# Flat sides and gaps


def gappy(span=1, **changes):
    """14 flat sides of 11 crystals and a virtual one, 4 mm apart where they meet; every fourth ring is virtual."""
    changes = {"transaxial_pitch_mm": 7.3, "transaxial_block": 12, "transaxial_block_real": 11, "axial_block": 4,
               "axial_block_real": 3, **changes}  # fmt: skip
    return replace(layout(span=span), scanner=replace(layout().scanner, name="gappy", **changes))


FLAT = [
    pytest.param(gappy(), id="flat-virtual"),
    pytest.param(gappy(transaxial_block_real=12, transaxial_pitch_mm=7.0, axial_block_real=4, axial_gap_mm=2.0),
                 id="flat-gaps"),
    pytest.param(gappy(transaxial_pitch_mm=None), id="round-virtual"),
    pytest.param(gappy(span=3, axial_block_real=4, axial_gap_mm=2.0), id="flat-virtual-gaps-span3"),
]  # fmt: skip


def spoilt(lines, data):
    """Data with nonsense where no crystals are."""
    ring, crystal = lines.scanner.ring_is_real(), lines.scanner.transaxial_is_real()
    plane = np.zeros(lines.planes, bool)
    first, second = np.nonzero((lines.planes_of_ring_pairs() >= 0) & np.outer(ring, ring))
    plane[lines.planes_of_ring_pairs()[first, second]] = True
    pairs = np.stack([np.concatenate(lines.crystal_pairs(v)) for v in range(lines.views)])
    known = (crystal[pairs[:, 0]] & crystal[pairs[:, 1]])[..., None] & plane
    return np.where(known, data, 1e3)


@pytest.mark.parametrize("lines", FLAT)
@pytest.mark.parametrize("place", [(0.0, 0.0, 0.0), (35.0, -12.0, 4.0)])
def test_a_blob_comes_back_between_flat_sides_and_gaps(lines, place):
    """12 mm wide: in place to 0.15 mm, of the right width to 3 % and total to 2 % (4 % with a missing ring).

    Along the axis, linear interpolation between slices 5 mm apart, where a ring is missing, adds at most 25 / 4 mm^2.
    """
    sigma, grid = 12 / FWHM, grid_at(place)
    image = fbp_2d(lines, spoilt(lines, blob(lines, place, sigma)), grid, (0.0, 0.0, 0.0), max_ring_difference=2)
    image = image.astype(np.float64)
    assert image.sum() * 27 == pytest.approx(
        (2 * np.pi) ** 1.5 * sigma**3, rel=0.02 if lines.scanner.ring_is_real().all() else 0.04
    )
    for axis in range(3):
        profile = image.sum(axis=tuple(a for a in range(3) if a != axis))
        assert profile @ grid.axis_mm(axis) / profile.sum() == pytest.approx(place[axis], abs=0.15)
    widths = [w[0] for w in point_widths(image, grid, place, (12.0, 12.0, 12.0))]
    np.testing.assert_allclose(widths[:2], 12.0, rtol=0.03)
    assert 11.8 < widths[2] < np.sqrt(144 + FWHM**2 * 25 / 4)


@pytest.mark.parametrize("lines", FLAT)
def test_a_cylinder_is_uniform_between_flat_sides_and_gaps(lines):
    """Its mean is right to 1 %, that of every ring of 6 mm and every slice to 2 %; outside it is zero to 2 %."""
    center, radius = (10.0, -8.0), 50.0
    ends = lines.transaxial_ends(np.arange(lines.views))
    (x1, y1, x2, y2), z = np.moveaxis(ends, -1, 0), lines.plane_z_mm()
    length = np.hypot(x2 - x1, y2 - y1)
    away = ((x1 - center[0]) * (y2 - y1) - (y1 - center[1]) * (x2 - x1)) / length
    chords = 2 * np.sqrt(np.maximum(radius**2 - away**2, 0))
    data = chords[..., None] * np.hypot(1, (z[:, 1] - z[:, 0]) / length[..., None])
    grid = Grid.centered((43, 43, 7), (3.0, 3.0, 4.0), (*center, 0.0))
    image = fbp_2d(lines, spoilt(lines, data), grid, (0.0, 0.0, 0.0))
    x, y = (grid.axis_mm(a) - c for a, c in enumerate(center))
    r = np.hypot(x[:, None], y)
    assert image[r < 42].mean() == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(image[r < 42].mean(axis=0), 1, atol=0.02)
    for low in range(0, 42, 6):
        assert image[(r >= low) & (r < low + 6)].mean() == pytest.approx(1, abs=0.02)
    assert image[r < 42].std() < 0.05
    assert abs(image[(r > 55) & (r < 63)].mean()) < 0.02


@pytest.mark.parametrize("lines", [*CASES, *FLAT])
def test_parallel_beams_are_those_of_the_object(lines):
    """A blob of 15 mm, 45 mm from the axis: every even angle and radial position to 4 % of its largest value, most to 1 %.

    It lies where s changes most at the first and the last angle, which go on from each other: no more than 2 % there.
    """
    beams, sigma = ParallelBeams(lines), 15 / FWHM
    x, y = 45 * np.cos(beams.angle[0]), 45 * np.sin(beams.angle[0])
    data = spoilt(lines, blob(lines, (x, y, 0.0), sigma))[..., : 2 * lines.rings - 1]
    # The direct plane nearest to the middle, where z is far from the blob by the same for all lines.
    plane = int(np.argmin(np.abs(lines.plane_z_mm()[: lines.segments()[0].planes]).sum(axis=1)))
    height = float(np.exp(-(lines.plane_z_mm()[plane].mean() ** 2) / (2 * sigma**2)))
    found = beams.resample(data[..., [plane]], data[..., [plane]])[..., 0]
    away = x * np.sin(beams.angle) - y * np.cos(beams.angle)
    wanted = height * np.sqrt(2 * np.pi) * sigma * np.exp(-((beams.s_mm - away[:, None]) ** 2) / (2 * sigma**2))
    error = np.abs(found - wanted) / wanted.max()
    assert error.max() < 0.04
    assert np.mean(error > 0.01) < 0.02
    assert error[[0, -1]].max() < 0.02
    np.testing.assert_allclose(beams.resample(np.ones_like(data[..., :1]), np.ones_like(data[..., :1])), 1, rtol=1e-4)


def test_flat_sides_in_three_dimensions():
    lines, center = gappy(axial_block_real=4), (30.0, -20.0, 4.0)
    grid = grid_at(center)
    image = fbp_3d(lines, spoilt(lines, sphere(lines, center, 20.0)), grid, (0.0, 0.0, 0.0))
    r = radii(grid, center)
    assert image[r < 12].mean() == pytest.approx(1, abs=0.015)
    assert abs(image[r > 27].mean()) < 0.02


def test_wrong_scanners_and_data_are_refused():
    grid = grid_at((0.0, 0.0, 0.0), size=3)
    few = SinogramLayout(replace(polygonal_scanner(0.0), transaxial_pitch_mm=19.0), radials=12, max_ring_difference=1)
    apart = gappy(axial_block_real=4, axial_gap_mm=2.0)
    for lines in (few, apart):
        with pytest.raises(DataError, match="rings at one pitch"):
            fbp_3d(lines, np.zeros((lines.views, lines.radials, lines.planes)), grid)
    lines = layout()
    with pytest.raises(DataError, match="shape"):
        fbp_3d(lines, np.zeros((3, 4, 5)), grid)
    with pytest.raises(DataError, match="fill_gaps"):
        fbp_2d(lines, np.full((lines.views, lines.radials, lines.planes), np.nan), grid)
