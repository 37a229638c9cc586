"""Parallel projections (even angles, even radial positions) from the lines that a scanner has.

A line is a point in the plane of its angle and its distance s from the axis. On a round scanner these points lie in rows
that are shifted by half a view from column to column and draw together outwards; flat sides shift them about, and between
blocks some are missing. Values at other points are interpolated from the nearest lines by ordinary kriging: with
c(d) = exp(-d^2 / 2 l^2) as the covariance of values at a distance d, counted in views and radial pitches, the weights w of
lines i for the value at 0 are the solution of

    sum_j w_j c(d_ij) + m = c(d_i0) for all i,      sum_j w_j = 1,

so that a constant stays one, and the value at a line is that line's. Lines of virtual crystals take no part.
"""

import math

import numpy as np
from scipy import sparse
from scipy.spatial import KDTree

from data_recipes.errors import DataError
from petsim.geometry.sinogram import SinogramLayout

NEAREST = 32
"""Lines that a value is interpolated from."""

CORRELATED = 1.5
"""l: a shorter one takes height from what is narrow along s, a longer one from what moves fast from view to view."""

NUGGET = 1e-6
"""Added to c(0): what values differ by at one place."""

_MARGIN = 8
"""Views that are repeated beyond half a turn, with the other direction."""


class ParallelBeams:
    """Even angles and radial positions of a layout, and how its bins are interpolated to them.

    Parameters
    ----------
    layout : SinogramLayout

    Attributes
    ----------
    angle : ndarray
        (views,): direction of lines from end 1 to end 2, rad.
    s_mm : ndarray
        Radial positions x sin(angle) - y cos(angle), `step_mm` apart.
    length_mm : ndarray
        (views, radials): transaxial length of the layout's lines.
    radius_mm : float
        Mean distance of their ends from the axis; `roundness` is the range of these distances over it.
    """

    def __init__(self, layout: SinogramLayout) -> None:
        self.layout, self.step_mm = layout, layout.radial_pitch_mm
        ends = layout.transaxial_ends(np.arange(layout.views)).reshape(layout.views, layout.radials, 2, 2)
        (x1, y1), (dx, dy) = np.moveaxis(ends[:, :, 0], -1, 0), np.moveaxis(ends[:, :, 1] - ends[:, :, 0], -1, 0)
        radius = np.hypot(*np.moveaxis(ends, -1, 0))
        self.radius_mm, self.roundness = float(radius.mean()), float(np.ptp(radius) / radius.mean())
        self.length_mm = np.hypot(dx, dy)
        angle, s = np.arctan2(dy, dx), (x1 * dy - y1 * dx) / self.length_mm
        self.angle = angle[0, layout.radials // 2] + math.pi / layout.views * np.arange(layout.views)
        count = int(np.abs(s[:, [0, -1]]).min() / self.step_mm)
        self.s_mm = self.step_mm * np.arange(-count, count + 1)
        self._along, self._against = self._weights(angle.reshape(-1), s.reshape(-1))

    def _weights(self, angle: np.ndarray, s: np.ndarray) -> tuple[sparse.csr_array, sparse.csr_array]:
        """Matrices (view x s, bins): of lines with the direction of parallel ones, and with the opposite direction."""
        layout, middle = self.layout, self.angle.mean()
        bins = np.flatnonzero(_has_crystals(layout).reshape(-1))
        turns = np.round((angle[bins] - middle) / math.pi)
        places, sources = [], []
        for more in (-1, 0, 1):
            sign = 1 - 2 * np.mod(turns + more, 2)
            view = (angle[bins] - (turns + more) * math.pi - self.angle[0]) / (math.pi / layout.views)
            near = (view > -_MARGIN) & (view < layout.views - 1 + _MARGIN)
            places.append(np.stack([view, sign * s[bins] / self.step_mm], axis=1)[near])
            sources.append((bins + (sign < 0) * s.size)[near])
        place, source = np.concatenate(places), np.concatenate(sources)
        tree, count = KDTree(place), min(NEAREST, len(place))
        rows, columns = [], []
        for view in range(layout.views):
            wanted = np.stack([np.full(self.s_mm.size, view), self.s_mm / self.step_mm], axis=1)
            near = tree.query(wanted, count)[1]
            rows.append(_kriging(place[near] - wanted[:, None]))
            columns.append(source[near])
        values, column = np.concatenate(rows).astype(np.float32).reshape(-1), np.concatenate(columns).reshape(-1)
        first = count * np.arange(layout.views * self.s_mm.size + 1)
        both = sparse.csr_array((values, column, first), shape=(first.size - 1, 2 * s.size))
        return both[:, : s.size], both[:, s.size :]

    def check(self, data: np.ndarray) -> None:
        """Refuse data of another shape, or with values that are no numbers."""
        wanted = (self.layout.views, self.layout.radials, self.layout.planes)
        if data.shape != wanted:
            raise DataError(f"data have shape {data.shape}, the layout (view, radial, plane) {wanted}; sum TOF bins first")
        if not np.isfinite(data).all():
            raise DataError("data hold values that are no numbers; see petsim.recon.fbp.fill_gaps")

    def resample(self, data: np.ndarray, opposite: np.ndarray) -> np.ndarray:
        """Data (view, radial, n) at even angles and radial positions.

        Parameters
        ----------
        data : ndarray
            (view, radial, n).
        opposite : ndarray
            The same lines with ends interchanged: of planes with the opposite ring difference. Half a turn on, they go on
            where `data` end.

        Returns
        -------
        ndarray
            float32 (view, s, n).
        """
        flat = (np.ascontiguousarray(d, np.float32).reshape(-1, d.shape[2]) for d in (data, opposite))
        along, against = (w @ d for w, d in zip((self._along, self._against), flat, strict=True))
        return (along + against).reshape(self.layout.views, self.s_mm.size, data.shape[2])

    def chord_mm(self) -> np.ndarray:
        """Transaxial length of the lines of a radial position, on a circle of the mean radius."""
        return 2 * np.sqrt(self.radius_mm**2 - self.s_mm**2)


def _has_crystals(layout: SinogramLayout) -> np.ndarray:
    """bool (view, radial): whether a real crystal is at both ends."""
    real = np.logical_or.reduce(layout.scanner.transaxial_is_real().reshape(-1, layout.merge_transaxial), axis=1)
    first, second = np.moveaxis(np.stack([layout.crystal_pairs(v) for v in range(layout.views)]), 1, 0)
    return np.logical_or.reduce(real[first] & real[second], axis=1)


def _kriging(offset: np.ndarray) -> np.ndarray:
    """Weights (n, lines) of values at offsets (n, lines, 2) for the value at offset 0."""
    n, lines, _ = offset.shape
    between = ((offset[:, :, None] - offset[:, None]) ** 2).sum(axis=-1)
    system = np.ones((n, lines + 1, lines + 1))
    system[:, :lines, :lines] = np.exp(between / (-2 * CORRELATED**2)) + NUGGET * np.eye(lines)
    system[:, lines, lines] = 0
    wanted = np.ones((n, lines + 1, 1))
    wanted[:, :lines, 0] = np.exp((offset**2).sum(axis=-1) / (-2 * CORRELATED**2))
    return np.linalg.solve(system, wanted)[:, :lines, 0]
