"""How sensitive each sinogram bin is: crystals, gaps, acceptance, solid angle, and the absolute level.

A LOR joins two faces of area A at distance L. The share of isotropic annihilations on it whose photons hit both is
A^2 cos(alpha_1) cos(alpha_2) / (2 pi L^2) times the line integral of activity. On a cylinder of radius R, with the
transaxial incidence angle phi and the axial tilt theta, cos(alpha) = cos(phi) cos(theta) and
L = 2 R cos(phi) / cos(theta), so that only cos(theta)^4 / (4 R^2) is left: it does not depend on the radial position.
The constant follows from the scanner's published NEMA NU 2 sensitivity.
"""

from functools import lru_cache

import numba as nb
import numpy as np

from petsim.geometry.scanner import Scanner
from petsim.geometry.sinogram import SinogramLayout, covering_ring_difference

NEMA_LINE_MM = 700.0
"""Length of the NEMA NU 2 sensitivity source."""


def crystal_efficiencies(scanner: Scanner, spread: float, seed: int = 0) -> np.ndarray:
    """Efficiency of every crystal relative to the mean.

    Parameters
    ----------
    scanner : Scanner
    spread : float
        Relative standard deviation over crystals (log-normal, so never negative).
    seed : int
        Which scanner of the series it is.

    Returns
    -------
    ndarray
        float32 (crystals_per_ring, rings); 0 for virtual crystals, mean 1 over the others.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    draws = np.exp(rng.normal(0.0, spread, (scanner.crystals_per_ring, scanner.rings)))
    real = scanner.transaxial_is_real()[:, None] & scanner.ring_is_real()[None, :]
    draws *= real
    return (draws / draws[real].mean()).astype(np.float32)


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
    ends = layout.transaxial_ends(views)
    chord = np.hypot(ends[..., 2] - ends[..., 0], ends[..., 3] - ends[..., 1])
    plane_dz = np.diff(layout.plane_z_mm(), axis=1)[:, 0]
    dz = np.array([plane_dz[s.start : s.start + s.planes].mean() for s in layout.segments()])
    cos4 = (chord[..., None] ** 2 / (chord[..., None] ** 2 + dz**2)) ** 2
    bounds = np.array([(s.start, s.start + s.planes) for s in layout.segments()])
    out = np.zeros((len(views), layout.radials, layout.planes), np.float32)
    _sum_pairs(merged, first, second, ring_pairs, bounds, cos4.astype(np.float32), out)
    return out


@lru_cache(maxsize=4)
def elementary_ring_pairs(layout: SinogramLayout) -> np.ndarray:
    """Accepted pairs of elementary rings and the plane that counts them: int64 (pairs, 3) of ring1, ring2, plane."""
    rings = layout.scanner.rings
    first, second = np.meshgrid(np.arange(rings), np.arange(rings), indexing="ij")
    accepted = np.abs(second - first) <= layout.scanner.max_ring_difference
    first, second = first[accepted], second[accepted]
    m1, m2 = first // layout.merge_axial, second // layout.merge_axial
    plane = np.full(first.shape, -1)
    for seg in layout.segments():
        inside = (m2 - m1 >= seg.lowest) & (m2 - m1 <= seg.highest)
        plane[inside] = seg.start + (m1 + m2 - seg.first_sum)[inside] // seg.step
    counted = plane >= 0
    return np.stack([first[counted], second[counted], plane[counted]], axis=1)


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

    A line of strength 1 Bq/mm on the axis has the line integral 1000/(ds cos(theta)) Bq/mL mm, where ds is the distance
    of neighboring LORs and the factor turns mm^2 into mL/mm; summed over the scanner's own acceptance it has to give the
    published sensitivity of the 70 cm line [cps/kBq]. LORs within half a block of the center are averaged, since gaps
    in opposite blocks face each other there.

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
    layout = SinogramLayout(
        scanner,
        radials=scanner.transaxial_block,
        span=1,
        max_ring_difference=covering_ring_difference(scanner, 1),
    )
    efficiencies = crystal_efficiencies(scanner, spread, seed)
    norm = np.zeros(layout.planes)
    for views in np.array_split(np.arange(layout.views), layout.views // 8):
        norm += normalization(layout, efficiencies, views).mean(axis=1, dtype=np.float64).sum(axis=0)
    plane_z = layout.plane_z_mm()
    tilt = np.hypot(1.0, np.diff(plane_z, axis=1)[:, 0] / (2 * scanner.radius_mm))
    on_source = np.abs(plane_z.mean(axis=1)) <= NEMA_LINE_MM / 2
    response = float((tilt * norm)[on_source].sum())
    # 1 kBq over the line, as Bq/mm; and mm^2 to mL/mm.
    cps_per_kbq = response / layout.radial_pitch_mm * (1000 / NEMA_LINE_MM) * 1000
    return sensitivity / cps_per_kbq
