"""NEMA NU 2-2018 section 4: scatter fraction of the 70 cm polyethylene phantom, by the standard's own estimator."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_recipes.grid import Grid
from petsim.geometry.scanner import Scanner
from petsim.nema.bench import Figure, figure
from petsim.physics.monte_carlo import PhotonPairs, photon_pairs
from petsim.physics.photons import POLYETHYLENE_G_CM3, POLYETHYLENE_PER_CM
from petsim.physics.rates import Response, block_rows, row_areas_cm2

LENGTH_MM, RADIUS_MM, LINE_Y_MM = 700.0, 101.5, -45.0
"""Phantom; the line lies on the side of the bed."""

BED_MM = (400.0, 20.0)
BED_G_CM2 = 1.0
"""Width, thickness and areal density of the bed under the phantom; assumed, the same for all scanners."""

FOV_MM, STRIP_MM, EDGE_MM, SLICES_MM = 120.0, 20.0, 5.0, 325.0
"""Half widths: of the accepted field, of the strip around the line that holds trues, of where its edges are read (the
standard interpolates between two bins), and of the accepted slices."""

DECAYS = 10_000_000
_VOXEL_MM = 2.0
_RANDOM_PAIRS = 1_000_000


def run(scanner: Scanner, decays: int | None, seed: int, out: Path | None) -> list[Figure]:
    """The scatter fraction beside the published one."""
    measured = measure(scanner, decays or DECAYS, seed)
    return [figure(scanner, "scatter_fraction", measured.response.scatter_fraction, point=0.01)]


def phantom() -> tuple[Grid, np.ndarray, np.ndarray]:
    """The phantom on its bed: grid, activity of the line (relative) and mu at 511 keV in 1/cm. Its middle is (0, 0, 0)."""
    below = RADIUS_MM + BED_MM[1]
    nx = 2 * int(np.ceil(BED_MM[0] / 2 / _VOXEL_MM)) + 1
    ny = int(np.ceil((below + RADIUS_MM) / _VOXEL_MM)) + 2
    # The line goes through the middle of a voxel.
    y0 = LINE_Y_MM - _VOXEL_MM * np.ceil((below + LINE_Y_MM) / _VOXEL_MM)
    grid = Grid(
        (nx, ny, 7), (_VOXEL_MM, _VOXEL_MM, LENGTH_MM / 7), (-(nx - 1) / 2 * _VOXEL_MM, float(y0), -3 * LENGTH_MM / 7)
    )
    offsets = ((np.arange(8) + 0.5) / 8 - 0.5) * _VOXEL_MM
    x = (grid.axis_mm(0)[:, None] + offsets).ravel()[:, None]
    y = (grid.axis_mm(1)[:, None] + offsets).ravel()[None, :]
    fine = (np.hypot(x, y) < RADIUS_MM) * POLYETHYLENE_PER_CM
    on_bed = (np.abs(x) < BED_MM[0] / 2) & (y < -RADIUS_MM) & (y > -below)
    fine = fine + on_bed * (BED_G_CM2 / (BED_MM[1] / 10) / POLYETHYLENE_G_CM3 * POLYETHYLENE_PER_CM)
    flat = fine.reshape(nx, 8, ny, 8).mean(axis=(1, 3))
    mu = np.repeat(flat[:, :, None], grid.shape[2], axis=2).astype(np.float32)
    activity = np.zeros(grid.shape, np.float32)
    activity[nx // 2, round((LINE_Y_MM - y0) / _VOXEL_MM)] = 1.0
    return grid, activity, mu


@dataclass(frozen=True)
class Measured:
    """What the phantom gives.

    Parameters
    ----------
    response : Response
        Trues and scatter by the standard's estimator.
    true_scatter_fraction : float
        Share of the accepted coincidences of which a photon scattered in phantom, bed or bore cover.
    coincidences : int
        Simulated and accepted.
    """

    response: Response
    true_scatter_fraction: float
    coincidences: int


@lru_cache(maxsize=32)
def measure(scanner: Scanner, decays: int = DECAYS, seed: int = 0) -> Measured:
    """Simulate the phantom.

    Coincidences count within 12 cm of the axis, in the slices (single-slice rebinned) of the central 65 cm and within the
    maximum ring difference. The position of the line in every projection is known, so that profiles need no alignment.

    Parameters
    ----------
    scanner : Scanner
    decays : int
        Simulated annihilations.
    seed : int

    Returns
    -------
    Measured
    """
    grid, activity, mu = phantom()
    rows = block_rows(scanner)
    count = int(rows.max()) + 1
    pairs, triggers = np.zeros((count, count)), np.zeros(count)
    singles = np.zeros(scanner.crystals_per_ring * scanner.rings, np.int64)
    inside = outside = edge = scattered = 0
    for batch in photon_pairs(scanner, activity, mu, grid, (0.0, 0.0, 0.0), decays, seed):
        seen = batch.energy_kev > 0
        triggers += np.bincount(rows[batch.ring[seen]], batch.triggers[seen], count)
        in_window = batch.in_window(scanner)
        address = batch.crystal[in_window].astype(np.int64) * scanner.rings + batch.ring[in_window]
        singles += np.bincount(address, minlength=singles.size)
        both = batch.coincident(scanner)
        offset, accepted = _offsets(batch, both)
        inside += int(accepted.sum())
        outside += int((offset[accepted] > STRIP_MM).sum())
        edge += int((np.abs(offset[accepted] - STRIP_MM) < EDGE_MM).sum())
        scattered += int((batch.scatters[both][accepted].sum(axis=1) > 0).sum())
        first, second = rows[batch.ring[both][accepted]].T
        pairs += np.bincount(first * count + second, minlength=count**2).reshape(count, count)
    # Counts a mm at the two edges, times the width of the strip.
    scatter = min(outside + edge / (4 * EDGE_MM) * 2 * STRIP_MM, inside)
    share, random_pairs = _randoms(scanner, singles, rows, seed)
    response = Response(
        trues=(inside - scatter) / decays, scatter=scatter / decays, singles=float(singles.sum() / decays),
        random_share=share,
        triggers_per_cm2=triggers / decays / row_areas_cm2(scanner), pairs=pairs / max(inside, 1), random_pairs=random_pairs,
    )  # fmt: skip
    return Measured(response, scattered / max(inside, 1), inside)


def _offsets(batch: PhotonPairs, both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each LOR from the line source, and whether the standard counts it."""
    first, second = batch.position_mm[both, 0].astype(np.float64), batch.position_mm[both, 1].astype(np.float64)
    distance, chord = _distance(first, second)
    accepted = (distance <= FOV_MM) & (np.abs(first[:, 2] + second[:, 2]) <= 2 * SLICES_MM)
    shift = LINE_Y_MM * (second[:, 0] - first[:, 0])
    signed = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    return np.abs(signed + shift) / chord, accepted


def _distance(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of LORs from the axis and their transaxial length; ends above each other lie beyond every field."""
    chord = np.hypot(*(second - first)[:, :2].T)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / chord
    return np.nan_to_num(distance, nan=np.inf), np.maximum(chord, 1e-9)


def _randoms(scanner: Scanner, singles: np.ndarray, rows: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
    """Share of the pairs of singles that are accepted, and how it spreads over pairs of block rows."""
    count = int(rows.max()) + 1
    cumulative = np.cumsum(singles)
    rng = np.random.Generator(np.random.Philox(seed))
    drawn = rng.integers(0, max(int(cumulative[-1]), 1), (2, _RANDOM_PAIRS))
    crystal, ring = np.divmod(np.searchsorted(cumulative, drawn, side="right").clip(max=singles.size - 1), scanner.rings)
    xy, z = scanner.crystal_xy_mm(crystal + 0.5), scanner.ring_z_mm(ring)
    distance, _ = _distance(xy[0], xy[1])
    accepted = (distance <= FOV_MM) & (np.abs(z[0] + z[1]) <= 2 * SLICES_MM)
    accepted &= np.abs(ring[0] - ring[1]) <= scanner.max_ring_difference
    first, second = rows[ring[:, accepted]]
    pairs = np.bincount(first * count + second, minlength=count**2).reshape(count, count)
    return float(accepted.mean()), pairs / max(int(accepted.sum()), 1)
