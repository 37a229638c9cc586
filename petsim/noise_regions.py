"""Regions of the body in which noise is compared."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_recipes.errors import DataError
from petsim.noise import body_mask

RADII_MM = (60.0, 120.0)
"""Distances from the body's axis at which regions end: resolution and noise change with the distance from the center."""

DIAMETERS_MM = (200.0, 300.0)
"""Diameters of the circle of a slice's area at which regions end: attenuation, and so noise, grows with the body."""

CUBE_MM, CUBE_VOXELS = 64.0, 12
"""Least edge of the cubes that the body is cut into: noise is about the same all over one, and its correlation ends."""

_LEAST_FILLED = 1 / 16


@dataclass(frozen=True)
class Regions:
    """A body cut into regions.

    Parameters
    ----------
    names : tuple of str
    index : ndarray
        int16 (x, y, z): index into `names`, -1 outside.
    """

    names: tuple[str, ...]
    index: np.ndarray


@dataclass(frozen=True)
class Piece:
    """The part of a region that lies in one cube.

    Parameters
    ----------
    region : int
        Index into the regions' names.
    cube : int
        Number of the cube.
    box : tuple of slice
        Place of the cube.
    mask : ndarray
        bool (x, y, z) of the box.
    """

    region: int
    cube: int
    box: tuple[slice, slice, slice]
    mask: np.ndarray


def organ_regions(labels: np.ndarray, names: Mapping[int, str]) -> Regions:
    """One region for each organ; several labels may share a name, and label 0 is outside.

    Parameters
    ----------
    labels : ndarray
        uint8 (x, y, z).
    names : mapping
        Label to name.
    """
    organs = tuple(sorted({name for label, name in names.items() if label}))
    lookup = np.full(256, -1, np.int16)
    for label, name in names.items():
        if label:
            lookup[label] = organs.index(name)
    return Regions(organs, lookup[labels])


def place_regions(image: np.ndarray, spacing_mm: Sequence[float]) -> Regions:
    """Regions of an image without labels: by the distance from the body's axis and by the size of the body's slice.

    Parameters
    ----------
    image : ndarray
        float32 (x, y, z): the least noisy one.
    spacing_mm : sequence of float
        Voxel edges.

    Raises
    ------
    DataError
        Nothing is positive.
    """
    body = body_mask(image)
    x, y = (np.arange(n) * d for n, d in zip(body.shape[:2], spacing_mm[:2], strict=True))
    area = body.sum(axis=(0, 1))
    axis_x, axis_y = (
        np.tensordot(places, body.sum(axis=other), (0, 0)) / np.maximum(area, 1) for places, other in ((x, 1), (y, 0))
    )
    diameter_mm = 2 * np.sqrt(area * spacing_mm[0] * spacing_mm[1] / math.pi)
    sizes = np.searchsorted(DIAMETERS_MM, diameter_mm, side="right")
    index = np.empty(body.shape, np.int16)
    for k in range(body.shape[2]):
        radius_mm = np.hypot(x[:, None] - axis_x[k], y[None, :] - axis_y[k])
        index[:, :, k] = np.searchsorted(RADII_MM, radius_mm, side="right") * (len(DIAMETERS_MM) + 1) + sizes[k]
    index[~body] = -1
    names = tuple(f"radius {r}, body {d}" for r in _ranges(RADII_MM) for d in _ranges(DIAMETERS_MM))
    return Regions(names, index)


def _ranges(edges: Sequence[float]) -> list[str]:
    inner = [f"{low:g} to {high:g} mm" for low, high in pairwise(edges)]
    return [f"below {edges[0]:g} mm", *inner, f"above {edges[-1]:g} mm"]


def cube_edges(spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    """Voxels along the edges of the cubes."""
    x, y, z = (max(CUBE_VOXELS, math.ceil(CUBE_MM / d)) for d in spacing_mm)
    return x, y, z


def pieces(regions: Regions, spacing_mm: Sequence[float]) -> Iterator[Piece]:
    """Cut regions along a grid of cubes; what fills less than a sixteenth of a cube is left out.

    Raises
    ------
    DataError
        Nothing is left.
    """
    inside = regions.index >= 0
    spans = [np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    edges = cube_edges(spacing_mm)
    starts = [range(s[0], s[-1] + 1, e) if s.size else range(0) for s, e in zip(spans, edges, strict=True)]
    found = False
    corners = ((i, j, k) for i in starts[0] for j in starts[1] for k in starts[2])
    for cube, corner in enumerate(corners):
        x, y, z = (slice(c, c + e) for c, e in zip(corner, edges, strict=True))
        index = regions.index[x, y, z]
        for region in np.unique(index[index >= 0]):
            mask = index == region
            if np.count_nonzero(mask) >= _LEAST_FILLED * math.prod(edges):
                found = True
                yield Piece(int(region), cube, (x, y, z), mask)
    if not found:
        size = " x ".join(f"{e * d:g}" for e, d in zip(edges, spacing_mm, strict=True))
        raise DataError(f"no region fills a sixteenth of a cube of {size} mm, where noise is measured; give a larger body")
