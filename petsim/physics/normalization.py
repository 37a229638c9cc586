"""How sensitive each sinogram bin is: crystals, gaps, acceptance, solid angle, and the absolute level.

A LOR joins two faces of area A at distance L. The share of isotropic annihilations on it whose photons hit both is
A^2 cos(alpha_1) cos(alpha_2) / (2 pi L^2) times the line integral of activity. On a cylinder of radius R, with the
transaxial incidence angle phi and the axial tilt theta, cos(alpha) = cos(phi) cos(theta) and
L = 2 R cos(phi) / cos(theta), so that only cos(theta)^4 / (4 R^2) is left: it does not depend on the radial position.
The constant follows from the scanner's published NEMA NU 2 sensitivity.
"""

import math
from functools import lru_cache

import numba as nb
import numpy as np

from petsim.geometry.scanner import Scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.philox import stream_key

NEMA_LINE_MM = 700.0
"""Length of the NEMA NU 2 sensitivity source."""


BLOCK_DROP = 1.0
"""How much less efficient the outermost crystals of a block are than its middle, per unit of the crystals' spread, in each
direction; assumed (edges lose light and scattered photons). With a spread of 5 % edges are 5 % below the middle."""


def efficiency_components(scanner: Scanner, spread: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Factors of the efficiency of every crystal, each of mean 1 over real crystals.

    "block_transaxial" and "block_axial" fall by a parabola from the middle of a readout block to its outermost crystals, by
    `BLOCK_DROP` x `spread`. "crystal" is log-normal, so never negative, and as wide as makes the product's relative standard
    deviation `spread`. A spread of 0 stands for perfect detectors.

    Parameters
    ----------
    scanner : Scanner
    spread : float
        Relative standard deviation over real crystals.
    seed : int
        Which scanner of the series it is.

    Returns
    -------
    dict
        Name to float64 (crystals_per_ring, rings); virtual crystals have some value too.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    shape = (scanner.crystals_per_ring, scanner.rings)
    real = scanner.is_real()
    transaxial, axial = (1 - BLOCK_DROP * spread * place**2 for place in _places(scanner))
    blocks = np.outer(transaxial, axial)[real]
    left = (1 + spread**2) / (1 + blocks.var() / blocks.mean() ** 2)
    parts = {
        "crystal": np.exp(rng.normal(0.0, math.sqrt(math.log(max(left, 1.0))), shape)),
        "block_transaxial": np.broadcast_to(transaxial[:, None], shape),
        "block_axial": np.broadcast_to(axial[None, :], shape),
    }
    return {name: part / part[real].mean() for name, part in parts.items()}


def crystal_efficiencies(scanner: Scanner, spread: float, seed: int = 0) -> np.ndarray:
    """Efficiency of every crystal relative to the mean: the product of `efficiency_components`.

    Parameters
    ----------
    scanner : Scanner
    spread : float
        Relative standard deviation over real crystals.
    seed : int
        Which scanner of the series it is.

    Returns
    -------
    ndarray
        float32 (crystals_per_ring, rings); 0 for virtual crystals, mean 1 over the others.
    """
    real = scanner.is_real()
    product = np.prod(list(efficiency_components(scanner, spread, seed).values()), axis=0) * real
    return (product / product[real].mean()).astype(np.float32)


def drifted(scanner: Scanner, efficiencies: np.ndarray, spread: float, seed: int) -> np.ndarray:
    """Efficiencies some time after the normalization scan.

    Every crystal and every readout block is multiplied by a log-normal factor of mean 1, with variances that add up to
    `spread` squared in equal parts: crystals age and warm up alone, their photosensors and electronics together.

    Parameters
    ----------
    scanner : Scanner
    efficiencies : ndarray
        (crystals_per_ring, rings) of `crystal_efficiencies`.
    spread : float
        Relative standard deviation of the drift; 0 gives the same efficiencies.
    seed : int

    Returns
    -------
    ndarray
        float32, same shape; virtual crystals stay 0.
    """
    rng = np.random.Generator(np.random.Philox(key=stream_key(seed, "normalization drift")))
    sigma = math.sqrt(math.log1p(spread**2 / 2))
    blocks = []
    for count, period, size in _blocks(scanner):
        index = np.arange(count)
        blocks.append(index // period * -(-period // size) + index % period // size)
    crystal = rng.normal(-(sigma**2) / 2, sigma, efficiencies.shape)
    block = rng.normal(-(sigma**2) / 2, sigma, [b[-1] + 1 for b in blocks])
    return (efficiencies * np.exp(crystal + block[np.ix_(*blocks)])).astype(np.float32)


def _blocks(scanner: Scanner) -> list[tuple[int, int, int]]:
    """Crystals, crystals from gap to gap, and crystals of a readout block, transaxially and axially.

    Where the readout block is not known, it is taken for what lies between two gaps.
    """
    size = scanner.readout_block or (scanner.transaxial_block_real, scanner.axial_block_real)
    return [
        (scanner.crystals_per_ring, scanner.transaxial_block, size[0]),
        (scanner.rings, scanner.axial_block, size[1]),
    ]


def _places(scanner: Scanner) -> tuple[np.ndarray, np.ndarray]:
    """Where crystals (and rings) lie in their block: -1 and 1 for the outermost, 0 in the middle."""
    places = []
    for count, period, size in _blocks(scanner):
        index = np.arange(count) % period % size
        places.append((2 * index - (size - 1)) / max(size - 1, 1))
    return places[0], places[1]


def normalization(layout: SinogramLayout, efficiencies: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Relative sensitivity of bins: sum over their elementary crystal pairs of both efficiencies, times cos(theta)^4.

    Only pairs of elementary rings within the scanner's maximum ring difference count, also in merged bins.

    Parameters
    ----------
    layout : SinogramLayout
    efficiencies : ndarray
        (crystals_per_ring, rings), elementary.
    views : ndarray of int

    Returns
    -------
    ndarray
        float32 (views, radial, plane).
    """
    scanner = layout.scanner
    merged = efficiencies.reshape(layout.crystals, layout.merge_transaxial, scanner.rings).sum(axis=1)
    pairs = [layout.crystal_pairs(int(v)) for v in views]
    first = np.stack([p[0] for p in pairs]).astype(np.int64)
    second = np.stack([p[1] for p in pairs]).astype(np.int64)
    ring_pairs = elementary_ring_pairs(layout)
    bounds = np.array([(s.start, s.start + s.planes) for s in layout.segments()])
    out = np.zeros((len(views), layout.radials, layout.planes), np.float32)
    _sum_pairs(merged, first, second, ring_pairs, bounds, _segment_cos4(layout, views), out)
    return out


def cos4_tilt(layout: SinogramLayout, views: np.ndarray) -> np.ndarray:
    """cos(theta)^4 of the LORs of some views, float32 (views, radial, plane); normalization over it is efficiencies only."""
    return np.repeat(_segment_cos4(layout, views), [s.planes for s in layout.segments()], axis=2)


def _segment_cos4(layout: SinogramLayout, views: np.ndarray) -> np.ndarray:
    """float32 (views, radial, segment)."""
    ends = layout.transaxial_ends(views)
    chord = np.hypot(ends[..., 2] - ends[..., 0], ends[..., 3] - ends[..., 1])
    plane_dz = np.diff(layout.plane_z_mm(), axis=1)[:, 0]
    dz = np.array([plane_dz[s.start : s.start + s.planes].mean() for s in layout.segments()])
    return ((chord[..., None] ** 2 / (chord[..., None] ** 2 + dz**2)) ** 2).astype(np.float32)


@lru_cache(maxsize=4)
def elementary_ring_pairs(layout: SinogramLayout) -> np.ndarray:
    """Accepted pairs of elementary rings and the plane that counts them: int64 (pairs, 3) of ring1, ring2, plane."""
    rings = layout.scanner.rings
    first, second = np.meshgrid(np.arange(rings), np.arange(rings), indexing="ij")
    accepted = np.abs(second - first) <= layout.scanner.max_ring_difference
    first, second = first[accepted], second[accepted]
    plane = layout.planes_of_ring_pairs()[first // layout.merge_axial, second // layout.merge_axial]
    counted = plane >= 0
    return np.stack([first[counted], second[counted], plane[counted]], axis=1)


def ring_pairs_by_plane(layout: SinogramLayout) -> tuple[np.ndarray, np.ndarray]:
    """`elementary_ring_pairs`, sorted by their plane, and the first of every plane: int64 (planes + 1,)."""
    pairs = elementary_ring_pairs(layout)
    pairs = pairs[np.argsort(pairs[:, 2], kind="stable")]
    return pairs, np.searchsorted(pairs[:, 2], np.arange(layout.planes + 1))


@nb.njit(cache=True, nogil=True, parallel=True)
def _sum_pairs(efficiencies, first, second, ring_pairs, bounds, cos4, out):
    views, mash, radials = first.shape
    for task in nb.prange(views * radials):
        v, r = task // radials, task % radials
        row = out[v, r]
        for m in range(mash):
            a, b = efficiencies[first[v, m, r]], efficiencies[second[v, m, r]]
            for k in range(ring_pairs.shape[0]):
                row[ring_pairs[k, 2]] += a[ring_pairs[k, 0]] * b[ring_pairs[k, 1]]
        for s in range(bounds.shape[0]):
            for p in range(bounds[s, 0], bounds[s, 1]):
                row[p] *= cos4[v, r, s]


@lru_cache(maxsize=8)
def counts_per_activity(scanner: Scanner, spread: float, seed: int = 0) -> float:
    """Constant K: counts/s = K x normalization x line integral of activity [Bq/mL mm].

    It follows from the published sensitivity and `line_response`.

    Parameters
    ----------
    scanner : Scanner
    spread, seed
        As in `crystal_efficiencies`.

    Returns
    -------
    float

    Raises
    ------
    DataError
        A scanner without a published sensitivity.
    """
    sensitivity: float = scanner.given("sensitivity_cps_per_kbq")
    return sensitivity / line_response(scanner, spread, seed)


@lru_cache(maxsize=8)
def line_response(scanner: Scanner, spread: float, seed: int = 0) -> float:
    """What K = 1 would give for the NEMA line source of 70 cm on the axis, in cps/kBq.

    A line of strength 1 Bq/mm on the axis has the line integral 1000/(ds cos(theta)) Bq/mL mm, where ds is the distance
    of neighboring LORs and the factor turns mm^2 into mL/mm; it is summed over the scanner's own acceptance. LORs within
    half a block of the center are averaged, since gaps in opposite blocks face each other there.

    Parameters
    ----------
    scanner : Scanner
    spread, seed
        As in `crystal_efficiencies`.

    Returns
    -------
    float
    """
    layout = SinogramLayout(scanner, radials=scanner.transaxial_block)
    views = np.arange(layout.views)
    pairs = [layout.crystal_pairs(int(v)) for v in views]
    first = np.stack([p[0][0] for p in pairs], axis=1)
    second = np.stack([p[1][0] for p in pairs], axis=1)
    ends = layout.transaxial_ends(views)
    chord2 = (((ends[..., 2:] - ends[..., :2]) ** 2).sum(axis=2)).mean(axis=0)
    efficiencies = crystal_efficiencies(scanner, spread, seed)
    z = scanner.ring_z_mm(np.arange(scanner.rings))
    dz2 = (z[None, :] - z[:, None]) ** 2
    on_source = np.abs(z[None, :] + z[:, None]) / 2 <= NEMA_LINE_MM / 2
    seen = np.sqrt(1 + dz2 / (2 * scanner.radius_mm) ** 2) * on_source
    sums = np.zeros((scanner.rings, scanner.rings))
    response = 0.0
    for radial in range(layout.radials):
        _sum_products(efficiencies, first[radial], second[radial], scanner.max_ring_difference, sums)
        response += float((sums * seen * (chord2[radial] / (chord2[radial] + dz2)) ** 2).sum()) / layout.radials
    # 1 kBq over the line, as Bq/mm; and mm^2 to mL/mm.
    return response / layout.radial_pitch_mm * (1000 / NEMA_LINE_MM) * 1000


@nb.njit(cache=True, nogil=True, parallel=True)
def _sum_products(efficiencies, first, second, farthest, out):
    """out[i, j] = sum over LORs of the efficiencies of ring i at one end and ring j at the other."""
    rings = out.shape[0]
    for i in nb.prange(rings):
        low, high = max(0, i - farthest), min(rings, i + farthest + 1)
        row = out[i, low:high]
        row[:] = 0.0
        for k in range(first.size):
            a = np.float64(efficiencies[first[k], i])
            other = efficiencies[second[k], low:high]
            for j in range(row.size):
                row[j] += a * other[j]
