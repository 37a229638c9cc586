"""Filtered back projection of corrected data: rebinned to slices, or in three dimensions with reprojection (3DRP).

Bins are interpolated to parallel projections (`petsim.recon.parallel_beams`). Then

- `fbp_2d`: single-slice rebinning (Daube-Witherspoon and Muehllehner 1987): a line counts for the slice of its middle, with
  its length in that slice; ramp filter. Between slices, which need not be even, data are interpolated linearly.
- `fbp_3d`: Kinahan and Rogers 1989, doi 10.1109/23.34585. Oblique projections lack what left the scanner at its ends; it
  is taken from the forward projection of an image of the direct planes. Then all of them are filtered after Colsher 1980,
  doi 10.1088/0031-9155/25/1/009: with Theta the steepest angle, and psi that of a frequency nu with the axis,

      H(nu) = |nu| / (2 arcsin(sin(Theta) / sin(psi))),      |nu| / pi where psi < Theta,

  and the image is the sum over half the circle of angles and all tilts theta of filtered projections times cos(theta).

The filters reach to the highest frequency of the samples, without a window. (Formulas were derived anew; dois are
from memory, not verified.)
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numba as nb
import numpy as np
import scipy.fft

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from petsim.geometry.sinogram import SinogramLayout
from petsim.projectors.sinogram import SinogramProjector
from petsim.recon.parallel_beams import ParallelBeams

fft: Any = scipy.fft
"""Its own types are too loose for pyright."""

_FINER = 4
"""Frequencies of Colsher's filter are sampled so much finer before it is cut to the size of the data: sampled at their
spacing, it would shift the image's mean."""


_ROUND = 0.02
"""Range of the distances of LOR ends from the axis, over their mean, up to which 3DRP takes lines to rise as in a round
scanner."""

_DENSER, _DENSER_AXIALLY = 4, 2
"""Filtered projections are sampled so much denser (by their spectrum) that back projection can interpolate linearly."""


def fbp_2d(layout: SinogramLayout, data: np.ndarray, grid: Grid, center_mm: tuple[float, float, float] | None = None,
           max_ring_difference: float = math.inf) -> np.ndarray:  # fmt: skip
    """Rebin to slices, filter, back project.

    Parameters
    ----------
    layout : SinogramLayout
    data : ndarray
        (view, radial, plane): line integrals, image unit x mm, all corrections made, TOF bins summed. What it has for pairs
        of virtual crystals or rings is left out; other gaps are to be filled (`fill_gaps`).
    grid : Grid
    center_mm : tuple of float, optional
        Position of the scanner's center in the grid's coordinates; None: the middle of the grid.
    max_ring_difference : float
        Segments of larger mean ring difference are left out.

    Returns
    -------
    ndarray
        float32 (x, y, z).

    Raises
    ------
    DataError
        Data that do not fit.
    """
    beams = ParallelBeams(layout)
    beams.check(data)
    return _of_slices(beams, data, grid, center_mm, max_ring_difference)


def _of_slices(beams: ParallelBeams, data: np.ndarray, grid: Grid, center_mm: tuple[float, float, float] | None,
               max_ring_difference: float) -> np.ndarray:  # fmt: skip
    """`fbp_2d`."""
    z = grid.axis_mm(2) - (grid.center_mm if center_mm is None else center_mm)[2]
    slices = _rebinned(beams, data, z, max_ring_difference)
    slices = beams.resample(slices, slices)
    n = len(beams.s_mm)
    size = fft.next_fast_len(2 * n, real=True)
    # The ramp up to the highest frequency, sampled in space (Kak and Slaney 1988, section 3.3).
    at = np.minimum(np.arange(size), size - np.arange(size))
    kernel = np.where(at % 2 == 1, -1 / np.maximum(math.pi * at, 1) ** 2, 0.0)
    kernel[0] = 0.25
    response = (fft.rfft(kernel).real / beams.step_mm).astype(np.float32)
    spectrum = fft.rfft(slices, size, axis=1) * (_DENSER * response[:, None])
    filtered = fft.irfft(spectrum, _DENSER * size, axis=1)[:, : _DENSER * (n - 1) + 1]
    image = np.zeros(grid.shape, np.float32)
    filtered *= math.pi / len(filtered)
    _back(beams, filtered, (float(z[0]), grid.spacing_mm[2]), np.zeros(n), grid, center_mm, image)
    return image


def fbp_3d(layout: SinogramLayout, data: np.ndarray, grid: Grid, center_mm: tuple[float, float, float] | None = None,
           projector: Callable[..., SinogramProjector] = SinogramProjector) -> np.ndarray:  # fmt: skip
    """Complete by reprojection, filter, back project.

    Parameters
    ----------
    layout, data, grid, center_mm
        As for `fbp_2d`. Radial bins must hold all activity, rings lie at one pitch; virtual ones are to be filled too.
    projector : callable
        Makes the projector that completes the data.

    Returns
    -------
    ndarray
        float32 (x, y, z).

    Raises
    ------
    DataError
        A scanner or data that do not fit.
    """
    beams = ParallelBeams(layout)
    beams.check(data)
    distances = np.diff(layout.ring_z_mm())
    if beams.roundness > _ROUND or np.ptp(distances) > 1e-3 * layout.ring_pitch_mm:
        raise DataError(
            f"3D filtered back projection needs rings at one pitch and nearly round; {layout.scanner.name} has axial gaps "
            "or few sides (even_rings=True places rings evenly; fbp_2d takes any scanner)"
        )
    wide, starts = _wider(layout, float(beams.s_mm[-1]), beams.radius_mm)
    pitch, middle = layout.ring_pitch_mm, float(layout.ring_z_mm().mean())
    whole = Grid.centered((len(beams.s_mm), len(beams.s_mm), 2 * layout.rings), (beams.step_mm, beams.step_mm, pitch / 2))
    direct = _of_slices(beams, data, whole, (0.0, 0.0, -middle), 1 if layout.span == 1 else 0)
    operator = projector(wide, whole, (0.0, 0.0, 0.0), float(beams.s_mm[-1]), tof=False)
    completed = operator.forward(direct)[:, :, 0]
    for seg, start in zip(layout.segments(), starts, strict=True):
        completed[..., start : start + seg.planes] = data[..., seg.start : seg.start + seg.planes]
    steepest = math.atan((layout.max_ring_difference + 0.5) * pitch / (2 * beams.radius_mm))
    image = np.zeros(grid.shape, np.float32)
    first_planes = {seg.ring_difference: seg.start for seg in wide.segments()}
    for seg in wide.segments():
        low, tilt, high = (math.atan(d * pitch / (2 * beams.radius_mm))
                           for d in (seg.lowest - 0.5, seg.ring_difference, seg.highest + 0.5))  # fmt: skip
        planes, step = slice(seg.start, seg.start + seg.planes), seg.step * pitch / 2
        back = first_planes[-seg.ring_difference]
        part = beams.resample(completed[..., planes], completed[..., back : back + seg.planes])
        filtered = _colsher(part, beams.step_mm, step * math.cos(tilt), tilt, steepest)
        filtered *= math.pi / layout.views * (high - low) * math.cos(tilt)
        first = float(wide.plane_z_mm()[seg.start].mean()) + middle
        slope = seg.ring_difference * pitch / beams.chord_mm()
        _back(beams, filtered, (first, step / _DENSER_AXIALLY), slope, grid, center_mm, image)
    return image


def fill_gaps(data: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Interpolate what no crystal pair recorded.

    Parameters
    ----------
    data : ndarray
        (view, radial, plane).
    known : ndarray
        bool, the same shape. Bins are filled linearly along the radial axis between known ones; planes without any
        along the planes.

    Returns
    -------
    ndarray
        float32.
    """
    out = np.where(known, data, 0).astype(np.float32)
    radials, planes = np.arange(data.shape[1]), np.arange(data.shape[2])
    for v, view in enumerate(known):
        some = view.any(axis=0)
        for p in np.flatnonzero(some & ~view.all(axis=0)):
            out[v, :, p] = np.interp(radials, radials[view[:, p]], out[v, view[:, p], p])
        if some.any() and not some.all():
            for r in radials:
                out[v, r] = np.interp(planes, planes[some], out[v, r, some])
    return out


def _rebinned(beams: ParallelBeams, data: np.ndarray, z_mm: np.ndarray, max_ring_difference: float) -> np.ndarray:
    """Data (view, radial, slice) of slices at `z_mm`."""
    layout = beams.layout
    planes = np.flatnonzero(_has_rings(layout) & (np.abs(_ring_differences(layout)) <= max_ring_difference))
    ends = layout.plane_z_mm()[planes]
    heights, level = np.unique(np.round(ends.mean(axis=1), 6), return_inverse=True)
    weights = _between(heights, z_mm, layout.ring_pitch_mm)[level] / np.bincount(level)[level][:, None]
    near = weights.any(axis=1)
    rise = np.diff(ends[near], axis=1)[:, 0]
    part = data[..., planes[near]] / np.hypot(1, rise / beams.length_mm[..., None])
    return part @ weights[near]


def _ring_differences(layout: SinogramLayout) -> np.ndarray:
    """Mean ring difference of every plane."""
    segments = layout.segments()
    return np.repeat([seg.ring_difference for seg in segments], [seg.planes for seg in segments])


def _has_rings(layout: SinogramLayout) -> np.ndarray:
    """bool (planes,): whether a plane has a pair of real rings."""
    real = np.logical_or.reduceat(layout.scanner.ring_is_real(), np.arange(layout.rings) * layout.merge_axial)
    pairs = layout.planes_of_ring_pairs()
    out = np.zeros(layout.planes, bool)
    out[pairs[np.outer(real, real) & (pairs >= 0)]] = True
    return out


def _between(heights: np.ndarray, z_mm: np.ndarray, pitch_mm: float) -> np.ndarray:
    """Weights (heights, z) of linear interpolation; the outermost heights reach half their distance to the next farther."""
    ends = np.diff(heights)[[0, -1]] / 2 if heights.size > 1 else np.full(2, pitch_mm / 2)
    inside = (z_mm >= heights[0] - ends[0]) & (z_mm <= heights[-1] + ends[1])
    return np.stack([np.interp(z_mm, heights, one) * inside for one in np.eye(heights.size)])


def _wider(layout: SinogramLayout, reach_mm: float, radius_mm: float) -> tuple[SinogramLayout, list[int]]:
    """A layout with more rings at both ends, and the place of each segment's first plane in it.

    Its lines of the largest ring difference reach every voxel within the radius `reach_mm` at the ends of the scanner.
    """
    climb = layout.max_ring_difference / (2 * math.sqrt(radius_mm**2 - reach_mm**2))
    more = math.ceil(reach_mm * climb) + 1
    rings = layout.rings + 2 * more
    scanner = replace(
        layout.scanner, rings=rings, ring_spacing_mm=layout.ring_pitch_mm, axial_block=rings, axial_block_real=rings,
        axial_gap_mm=0.0, max_ring_difference=layout.max_ring_difference,
    )  # fmt: skip
    wide = replace(layout, scanner=scanner, merge_axial=1, merge_tof=0, tof_bins=1, even_rings=False)
    return wide, [seg.start + 2 * more // seg.step for seg in wide.segments()]


def _colsher(data: np.ndarray, s_mm: float, u_mm: float, tilt: float, steepest: float) -> np.ndarray:
    """Projections (view, s, u) of one tilt, filtered (see the module's docstring) and denser."""
    size = [fft.next_fast_len(2 * n, real=True) for n in data.shape[1:]]
    nu_s = fft.rfftfreq(_FINER * size[0], s_mm)[:, None]
    nu_u = fft.fftfreq(_FINER * size[1], u_mm)[None, :]
    nu = np.hypot(nu_s, nu_u)
    # The mean over the cell around zero frequency, about.
    nu[0, 0] = nu[1, 0] / 4
    sine = np.sqrt(np.maximum(1 - (nu_u * math.cos(tilt) / nu) ** 2, 1e-12))
    response = nu / (2 * np.arcsin(np.minimum(math.sin(steepest) / sine, 1)))
    kernel = fft.irfftn(response, [_FINER * n for n in size[::-1]], axes=(1, 0))
    near = [np.r_[: -(-n // 2), _FINER * n - n // 2 : _FINER * n] for n in size]
    response = _DENSER * _DENSER_AXIALLY * fft.rfftn(kernel[np.ix_(*near)], axes=(1, 0)).real
    rows, planes = (k * (n - 1) + 1 for k, n in zip((_DENSER, _DENSER_AXIALLY), data.shape[1:], strict=True))
    dense = np.zeros((size[0] // 2 + 1, _DENSER_AXIALLY * size[1]), complex)
    half = size[1] // 2
    out = np.empty((len(data), rows, planes), np.float32)
    for filtered, view in zip(out, data, strict=True):
        spectrum = fft.rfftn(view, size[::-1], axes=(1, 0)) * response
        dense[:, :half], dense[:, -half:] = spectrum[:, :half], spectrum[:, -half:]
        filtered[:] = fft.irfftn(dense, (dense.shape[1], _DENSER * size[0]), axes=(1, 0))[:rows, :planes]
    return out


def _back(beams: ParallelBeams, data: np.ndarray, planes: tuple[float, float], slope: np.ndarray, grid: Grid,
          center_mm: tuple[float, float, float] | None, image: np.ndarray) -> None:  # fmt: skip
    """Add the sum over views of data (view, s, plane), interpolated at the lines through every voxel.

    `planes` are z of the middles of the first plane's lines and the planes' distance, `slope` the rise of lines by s.
    """
    dense = np.linspace(0, len(slope) - 1, data.shape[1])
    slope = np.interp(dense, np.arange(len(slope)), slope)
    center = grid.center_mm if center_mm is None else center_mm
    x, y, z = (grid.axis_mm(a) - center[a] for a in range(3))
    place = np.array([beams.s_mm[0], beams.step_mm / _DENSER, *planes])
    _back_project(data.astype(np.float32), np.cos(beams.angle), np.sin(beams.angle), place, slope, x, y, z, image)


@nb.njit(cache=True, nogil=True, parallel=True, fastmath={"contract", "nsz", "arcp"})
def _back_project(data, cosine, sine, place, slope, x, y, z, image):
    views, radials, planes = data.shape
    s0, ds, z0, dz = place
    step = (z[1] - z[0]) / dz if z.size > 1 else 0.0
    for i in nb.prange(x.size):
        line = np.empty(planes + 1, np.float32)
        for j in range(y.size):
            row = image[i, j]
            for v in range(views):
                s = (x[i] * sine[v] - y[j] * cosine[v] - s0) / ds
                n = int(np.floor(s))
                if n < 0 or n >= radials - 1:
                    continue
                f = np.float32(s - n)
                low, high = data[v, n], data[v, n + 1]
                for p in range(planes):
                    line[p] = low[p] + f * (high[p] - low[p])
                line[planes] = line[planes - 1]
                along = x[i] * cosine[v] + y[j] * sine[v]
                first = (z[0] - along * (slope[n] + f * (slope[n + 1] - slope[n])) - z0) / dz
                for k in range(z.size):
                    at = first + k * step
                    # Planes reach half their distance beyond the outermost ones.
                    if -0.5 <= at <= planes - 0.5:
                        at = max(at, 0.0)
                        p = int(at)
                        w = np.float32(at - p)
                        row[k] += line[p] + w * (line[p + 1] - line[p])
