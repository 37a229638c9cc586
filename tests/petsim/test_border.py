"""What the projector makes of the image's border: line integrals of an image of ones against chords of the voxel box.

Across the axis, linear interpolation fades from 1 at the last voxel center to 0 one voxel on, half inside the box and half
outside; LORs fall everywhere in that zone, so that their mean is right. Along the axis they do not: planes of one ring
difference lie a whole ring pitch apart and meet the zone at a few depths only. There the image reaches to its outer face.
"""

import dataclasses

import numpy as np
import pytest

from data_recipes.grid import Grid
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.projectors.sinogram import SinogramProjector

VIEWS = np.array([3, 50, 110, 201])


def block_layout(max_ring_difference):
    """624 crystals on a radius of 396.7 mm, 32 rings of 4 mm."""
    scanner = dataclasses.replace(
        load_scanner("biograph_vision_600"), name="block", inner_radius_mm=396.7, interaction_depth_mm=0.0,
        crystals_per_ring=624, rings=32, ring_spacing_mm=4.0, transaxial_block=13, transaxial_block_real=13,
        axial_block=32, axial_block_real=32, max_ring_difference=31,
    )  # fmt: skip
    return SinogramLayout(scanner, radials=400, span=1, max_ring_difference=max_ring_difference)


def box_chords(ends, z, half):
    """Lengths in mm of the LORs (view, radial, plane) inside the box |x|, |y|, |z| < half.

    `ends` is that of `SinogramLayout.transaxial_ends`, `z` that of `plane_z_mm`.
    """
    inside = [0.0, 1.0]
    pairs = ((ends[:, :, None, 0], ends[:, :, None, 2]), (ends[:, :, None, 1], ends[:, :, None, 3]), (z[:, 0], z[:, 1]))
    length2 = 0.0
    for (start, end), edge in zip(pairs, half, strict=True):
        step = end - start
        length2 = length2 + step**2
        # A LOR parallel to these faces is inside or outside everywhere; a tiny step says so without a special case.
        step = np.where(step == 0, 1e-9, step)
        first, last = (-edge - start) / step, (edge - start) / step
        inside = [np.maximum(inside[0], np.minimum(first, last)), np.minimum(inside[1], np.maximum(first, last))]
    return np.sqrt(length2) * np.maximum(inside[1] - inside[0], 0)


def errors_mm(layout, voxels_z, shift=0.0):
    """Line integrals less chords, (view, radial, plane), of a 400 x 400 mm image of 2 mm voxels."""
    grid = Grid.centered((200, 200, voxels_z), (2.0, 2.0, 2.0))
    values = SinogramProjector(layout, grid, shift=(0.0, shift, 0.0)).forward(np.ones(grid.shape, np.float32), VIEWS)
    chords = box_chords(layout.transaxial_ends(VIEWS), layout.plane_z_mm(shift), np.array(grid.extent_mm) / 2)
    assert chords.max() > 400
    return values[:, :, 0] - chords


@pytest.mark.parametrize("voxels_z", [63, 32, 31, 16])
def test_the_mean_is_that_of_the_chords(voxels_z):
    """As long as the scanner, and shorter than the rings' span. Measured: +0.001 to +0.003 mm."""
    assert abs(errors_mm(block_layout(31), voxels_z).mean()) < 0.01


def test_single_lines_are_right_in_a_long_image():
    """Measured: mean magnitude 0.020 mm, no LOR off by more than 1 mm."""
    errors = np.abs(errors_mm(block_layout(31), 63))
    assert errors.mean() < 0.04
    assert errors.max() < 1


@pytest.mark.parametrize("depth_mm", [0.5, 0.9, 1.1, 3.0])
def test_planes_are_inside_to_the_outer_face(depth_mm):
    """Direct planes beyond the last voxel center give the whole chord up to the face 1 mm on, and nothing farther out."""
    layout = block_layout(0)
    rings = layout.ring_z_mm()
    grid = Grid.centered((200, 200, 9), (2.0, 2.0, 2.0), (0.0, 0.0, float(rings[-1]) - depth_mm - 8.0))
    projector = SinogramProjector(layout, grid, center_mm=(0.0, 0.0, 0.0))
    values = projector.forward(np.ones(grid.shape, np.float32), VIEWS)[:, :, 0, -1]
    around = dataclasses.replace(grid, origin_mm=(*grid.origin_mm[:2], float(rings[-1]) - 8.0))
    projector = SinogramProjector(layout, around, center_mm=(0.0, 0.0, 0.0))
    inner = projector.forward(np.ones(grid.shape, np.float32), VIEWS)[:, :, 0, -1]
    np.testing.assert_allclose(values, inner if depth_mm < 1 else 0 * inner, atol=1e-3)
