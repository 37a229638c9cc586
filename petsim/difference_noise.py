"""Noise of low minus full dose images of one subject: anatomy and frozen noise cancel, the noise of the counts is left."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_recipes.errors import DataError
from petsim.dose_pairs import DoseImages
from petsim.noise_covariance import lag_products
from petsim.noise_regions import Piece, Regions, cube_edges, organ_regions, pieces, place_regions

GROUPS = 16
"""Parts that a body's cubes are dealt out to, alternately; a bootstrap draws among them."""

SLICE_LAGS = (1, 2)
"""Slices apart at which the correlation of noise is followed along the axis."""

AGREE = 0.05
"""Doses whose noise, by the DRFs of their names, differs by less than this part are taken at their word."""

_COLD = 0.2
"""Pieces with less than this part of the body's mean activity are left out."""


@dataclass(frozen=True)
class AxialNoise:
    """Noise of each slice of the body.

    Parameters
    ----------
    variance : ndarray
        float64 (z,): of the full dose's noise, squared image unit; NaN in slices without body.
    mean : ndarray
        float64 (z,): of the full dose.
    correlation : ndarray
        float64 (lag, z): of a slice with the slice `SLICE_LAGS` further on.
    """

    variance: np.ndarray
    mean: np.ndarray
    correlation: np.ndarray


@dataclass(frozen=True)
class DifferenceNoise:
    """What is kept of a subject's difference images.

    Parameters
    ----------
    name : str
    drfs : tuple of float
        Of the lower doses.
    activity_ratios : ndarray
        float64 (dose,): activity of the body in the low dose over that in the full one; what differs is taken off.
    regions : tuple of str
    piece_voxels : ndarray
        int (piece,).
    piece_variance : ndarray
        float64 (piece, dose): squared coefficient of variation of the full dose: variance of the difference over the DRF's
        `variance_factor` and the piece's squared mean. The piece's mean difference is taken off.
    pairs : ndarray
        float64 (group, region, lag x, y, z): pairs of voxels.
    products : ndarray
        float64 (group, region, lag x, y, z): sums over these of products of the noise over its standard deviation in the
        piece, mean of the `trusted` doses. So each piece counts by its size, not by how noisy it is.
    logs : ndarray
        float64 (group, region): sums over voxels of the logarithm of their piece's variance, mean of the `trusted` doses.
    axial : AxialNoise
    """

    name: str
    drfs: tuple[float, ...]
    activity_ratios: np.ndarray
    regions: tuple[str, ...]
    piece_voxels: np.ndarray
    piece_variance: np.ndarray
    pairs: np.ndarray
    products: np.ndarray
    logs: np.ndarray
    axial: AxialNoise


def variance_factor(drf: float, nested: bool) -> float:
    """Variance of low minus full dose over that of the full dose.

    A nested low dose is the full dose's counts thinned: variance D s^2, covariance s^2, so (D - 1) s^2 is left; of
    independent scans it is (D + 1) s^2.
    """
    return drf - 1 if nested else drf + 1


def dose_levels(variance: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Noise of each dose over the mean of the doses: 1 for all where their DRFs are what their names say.

    Every part of the body gives a ratio of variances, in which anatomy, uptake and position cancel.

    Parameters
    ----------
    variance : ndarray
        float64 (piece, dose), as in `DifferenceNoise`.
    voxels : ndarray
        int (piece,): weights.

    Returns
    -------
    ndarray
        float64 (dose,).
    """
    mean = variance.mean(axis=1, keepdims=True)
    used = mean[:, 0] > 0
    return voxels[used] @ (variance[used] / mean[used]) / voxels[used].sum()


def trusted(levels: np.ndarray) -> np.ndarray:
    """bool (dose,): doses whose level is within 5 % of the median, of three or more; of fewer all.

    Of three doses, one with a wrong name is found; of two, either may be wrong; one alone says nothing.
    """
    near = np.abs(levels / np.median(levels) - 1) < AGREE
    return near if levels.size > 2 and near.any() else np.ones(levels.size, bool)


def reach_of(spacing_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    """Longest lags in voxels: half of a cube."""
    x, y, z = (edge // 2 for edge in cube_edges(spacing_mm))
    return x, y, z


def measure(subject: DoseImages, organs: bool, nested: bool, told: Callable[[float], None]) -> DifferenceNoise:
    """Measure a subject's difference images.

    Parameters
    ----------
    subject : DoseImages
    organs : bool
        Regions are its labels; else places in the body.
    nested : bool
        Low doses are parts of the full one.
    told : callable
        Is told the fraction done.

    Raises
    ------
    DataError
        An image that cannot be read, no body, or a low dose that equals the full one.
    """
    full = subject.image(1.0, 0)
    if organs and subject.labels is not None:
        labels = subject.labels()
        regions = organ_regions(labels.values, labels.names)
    else:
        regions = place_regions(full, subject.spacing_mm)
    box = _bounds(regions.index)
    regions, full = Regions(regions.names, regions.index[box]), full[box]
    cut, means = _warm(list(pieces(regions, subject.spacing_mm)), full)
    reach = reach_of(subject.spacing_mm)
    sums = (GROUPS, len(regions.names), *(r + 1 for r in reach))
    products = np.zeros((len(subject.drfs), *sums))
    variance, ratios = np.zeros((len(cut), len(subject.drfs))), np.zeros(len(subject.drfs))
    inside = regions.index >= 0
    axial = _AxialSums(inside)
    steps = subject.realizations * len(subject.drfs)
    for realization in range(subject.realizations):
        base = full if realization == 0 else subject.image(1.0, realization)[box]
        for d, drf in enumerate(subject.drfs):
            scale = 1 / math.sqrt(variance_factor(drf, nested) * subject.realizations)
            low = subject.image(drf, realization)[box]
            ratio = _activity_ratio(low, base, inside)
            if not ratio > 0:
                raise DataError(f"{subject.name}: the image at DRF {drf:g} holds no activity; leave the subject out")
            ratios[d] += ratio / subject.realizations
            noise = (low / np.float32(ratio) - base) * np.float32(scale)
            if not noise.any():
                raise DataError(f"{subject.name}: the images at DRF 1 and {drf:g} are the same; give the low dose's own one")
            for k, piece in enumerate(cut):
                values = noise[piece.box].astype(np.float64)
                values = np.where(piece.mask, values - values[piece.mask].mean(), 0) / means[k]
                square = float((values**2).sum()) / (np.count_nonzero(piece.mask) - 1)
                variance[k, d] += square
                if square > 0:
                    products[d, piece.cube % GROUPS, piece.region] += lag_products(values, reach) / square
            axial.add(noise)
            told((realization * len(subject.drfs) + d + 1) / steps)
    voxels = np.array([np.count_nonzero(p.mask) for p in cut])
    words = trusted(dose_levels(variance, voxels))
    pairs, logs = np.zeros(sums), np.zeros(sums[:2])
    for piece, square in zip(cut, variance[:, words].mean(axis=1), strict=True):
        if square > 0:
            pairs[piece.cube % GROUPS, piece.region] += lag_products(piece.mask, reach)
            logs[piece.cube % GROUPS, piece.region] += math.log(square) * np.count_nonzero(piece.mask)
    return DifferenceNoise(
        subject.name, subject.drfs, ratios, regions.names, voxels, variance, pairs,
        products[words].mean(axis=0) / subject.realizations, logs, axial.result(full, len(subject.drfs)),
    )  # fmt: skip


def _activity_ratio(low: np.ndarray, full: np.ndarray, body: np.ndarray) -> float:
    """Activity of the body: corrections of few counts are a few percent off, and would leave anatomy in the difference."""
    own, total = (float(image[body].sum(dtype=np.float64)) for image in (low, full))
    return own / total if total > 0 else math.nan


def _warm(cut: list[Piece], full: np.ndarray) -> tuple[list[Piece], np.ndarray]:
    """Pieces that are not much colder than the body, whose relative noise would stand above all others, and their means."""
    means = np.array([full[p.box][p.mask].mean(dtype=np.float64) for p in cut])
    voxels = np.array([np.count_nonzero(p.mask) for p in cut])
    warm = means > _COLD * (voxels @ means) / voxels.sum()
    return [p for p, kept in zip(cut, warm, strict=True) if kept], means[warm]


def _bounds(index: np.ndarray) -> tuple[slice, slice, slice]:
    inside = index >= 0
    if not inside.any():
        raise DataError("no voxel lies in a region; give images with a body")
    x, y, z = (np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return slice(x[0], x[-1] + 1), slice(y[0], y[-1] + 1), slice(z[0], z[-1] + 1)


class _AxialSums:
    """Sums over the body's voxels of each slice."""

    def __init__(self, body: np.ndarray) -> None:
        self._body = body
        self._squares = np.zeros(body.shape[2])
        self._products = np.zeros((len(SLICE_LAGS), body.shape[2]))
        self._below, self._above = np.zeros_like(self._products), np.zeros_like(self._products)

    def add(self, noise: np.ndarray) -> None:
        inside = np.where(self._body, noise, 0).astype(np.float32)
        self._squares += _dot(inside, inside)
        for n, lag in enumerate(SLICE_LAGS):
            lower, upper = (part * both for both in [self._body[:, :, lag:] & self._body[:, :, :-lag]]
                            for part in (inside[:, :, :-lag], inside[:, :, lag:]))  # fmt: skip
            self._products[n, :-lag] += _dot(lower, upper)
            self._below[n, :-lag] += _dot(lower, lower)
            self._above[n, :-lag] += _dot(upper, upper)

    def result(self, full: np.ndarray, doses: int) -> AxialNoise:
        voxels = self._body.sum(axis=(0, 1), dtype=np.float64)
        total = np.where(self._body, full, 0).sum(axis=(0, 1), dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return AxialNoise(
                self._squares / voxels / doses, total / voxels, self._products / np.sqrt(self._below * self._above)
            )


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("xyz,xyz->z", a, b, dtype=np.float64)
