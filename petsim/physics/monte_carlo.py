"""Photon pairs by Monte Carlo: from the decay through the object to the crystals.

An analogue simulation, independent of the projectors. The object scatters by Klein-Nishina alone and its attenuation follows
the energy as `petsim.physics.photons.attenuation_ratio`; coherent scattering, positron range and non-collinearity are left
out. Decay i has its own random numbers (Philox, keyed by seed and i), so results depend neither on threads nor on batches.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numba as nb
import numpy as np

from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from petsim.geometry.scanner import SPEED_OF_LIGHT_MM_PER_PS, Scanner
from petsim.philox import stream_key
from petsim.physics.crystals import (
    MOST_DEPOSITS,
    TRIGGER_KEV,
    compton,
    crystal_at,
    crystal_center,
    crystal_ring,
    deposit,
    follow,
    measured,
    move,
    read_out,
    start_random,
    sum_blocks,
    to_cylinder,
    turn_isotropic,
    uniform,
)
from petsim.physics.photons import (
    CUTOFF_KEV,
    ELECTRON_KEV,
    POLYETHYLENE_G_CM3,
    POLYETHYLENE_PER_CM,
    attenuation_ratio_table,
)
from petsim.projectors.choose import choose_backend

BORE_COVER_G_CM2 = 0.5
"""Polyethylene between object and crystals; assumed, the same for all scanners."""

COVER_GAP_MM = 25.0
"""Distance of the bore cover from the crystals; assumed, the same for all scanners."""

LUTETIUM_BQ_CM3 = {"LSO": 300.0, "LYSO": 261.0, "BGO": 0.0}
"""176Lu in the crystals; 270 to 310 Bq/cm3 of LSO are usual, LYSO in proportion to its lutetium."""

_LUTETIUM_GAMMAS = ((306.8, 0.936), (201.8, 0.78), (88.3, 0.145))
_LUTETIUM_BETA_KEV = 593.0
_CHUNK = 1024


@dataclass(frozen=True)
class PhotonPairs:
    """Decays of a batch of which at least one photon was detected. Rows are decays, columns their two photons.

    Parameters
    ----------
    decays : int
        How many were simulated for the batch.
    energy_kev : ndarray
        float32 (n, 2); 0 where not detected. "crystals": energy that the readout block measured, with its resolution,
        whether in the window or not. "cylinder": energy of the photon.
    crystal, ring : ndarray
        int32 (n, 2), virtual crystals and rings counted; -1 where not detected.
    position_mm : ndarray
        float32 (n, 2, 3) from the scanner's center: of the crystal at the scanner's interaction depth, or where the photon
        crosses the cylinder.
    path_mm : ndarray
        float32 (n, 2), flown until the first interaction in a crystal, or to the cylinder.
    scatters : ndarray
        int16 (n, 2), Compton scatters in the object and the bore cover.
    triggers : ndarray
        int16 (n, 2), readout blocks that received more than `petsim.physics.crystals.TRIGGER_KEV` (0 for "cylinder").
    """

    decays: int
    energy_kev: np.ndarray
    crystal: np.ndarray
    ring: np.ndarray
    position_mm: np.ndarray
    path_mm: np.ndarray
    scatters: np.ndarray
    triggers: np.ndarray

    def in_window(self, scanner: Scanner) -> np.ndarray:
        """bool (n, 2): detected in the scanner's energy window."""
        low, high = scanner.given("energy_window_kev")
        return (self.energy_kev >= low) & (self.energy_kev <= high)

    def coincident(self, scanner: Scanner) -> np.ndarray:
        """bool (n,): both photons in the energy window and within the maximum ring difference."""
        near = np.abs(self.ring[:, 0] - self.ring[:, 1]) <= scanner.max_ring_difference
        return self.in_window(scanner).all(axis=1) & near


class _Object(NamedTuple):
    mu: np.ndarray
    low: np.ndarray
    spacing: np.ndarray
    highest: float
    ratio: np.ndarray


def photon_pairs(scanner: Scanner, activity_bqml: np.ndarray, mu_per_cm: np.ndarray, grid: Grid,
                 center_mm: tuple[float, float, float], decays: int, seed: int = 0,
                 detector: Literal["crystals", "cylinder"] = "crystals", batch: int = 1_000_000,
                 cover_g_cm2: float = BORE_COVER_G_CM2, backend: str = "numba") -> Iterator[PhotonPairs]:  # fmt: skip
    """Simulate decays of an activity map and what a scanner detects of their photons.

    Parameters
    ----------
    scanner : Scanner
    activity_bqml : ndarray
        On the grid; only its shape in space matters. Decays are uniform inside a voxel.
    mu_per_cm : ndarray
        Attenuation at 511 keV on the grid. What lies beyond the bore cover (or the cylinder) is left out.
    grid : Grid
    center_mm : tuple of float
        The scanner's center in the grid's coordinates.
    decays : int
        Number of annihilations (branching is the caller's).
    seed : int
    detector : {"crystals", "cylinder"}
        "crystals": the real crystals behind the bore cover. "cylinder": an ideal surface at `scanner.radius_mm` over the
        scanner's axial length, without cover, that every photon above 25 keV is detected on.
    batch : int
        Decays simulated at once.
    cover_g_cm2 : float
        Polyethylene of the bore cover, for "crystals".
    backend : str
        One of `petsim.projectors.choose.BACKENDS`. What that projects with on a GPU follows photons there too
        (`petsim.physics.cuda`: the same decays); all others follow them on the CPU.

    Yields
    ------
    PhotonPairs

    Raises
    ------
    DataError
        Maps that are not on the grid, or without activity; a backend that cannot run here.
    UsageError
        An unknown detector or backend, or no decays.
    """
    if detector not in ("crystals", "cylinder"):
        raise UsageError(f"detector must be crystals or cylinder, got '{detector}'")
    if decays < 1 or batch < 1:
        raise UsageError(f"decays and batch must be at least 1, got {decays} and {batch}")
    for name, image in (("activity", activity_bqml), ("mu", mu_per_cm)):
        if image.shape != grid.shape:
            raise DataError(f"{name} has shape {image.shape}, its grid {grid.shape}; give both on one grid")
        if not np.all(np.isfinite(image)) or image.min() < 0:
            raise DataError(f"{name} must be finite and not negative; check the map")
    cumulative = np.cumsum(activity_bqml.ravel(), dtype=np.float64)
    if cumulative[-1] <= 0:
        raise DataError("the activity map is zero everywhere; there is nothing to simulate")
    obj, on_gpu = _object(mu_per_cm, grid, center_mm), choose_backend(backend)[0] == "cuda"
    return _batches(scanner, cumulative, obj, decays, seed, detector, batch, cover_g_cm2, on_gpu)


def _batches(scanner: Scanner, cumulative: np.ndarray, obj: _Object, decays: int, seed: int, detector: str, batch: int,
             cover_g_cm2: float, on_gpu: bool) -> Iterator[PhotonPairs]:  # fmt: skip
    crystals = detector == "crystals"
    # The cylinder asks nothing of the crystals but their length.
    ring = crystal_ring(scanner if crystals else replace(scanner, energy_resolution=1.0, energy_block=(1, 1)))
    key = np.uint64(stream_key("photon_pairs", seed)).astype(np.int64)
    bound, cover_mm = _bore(scanner, cover_g_cm2) if crystals else (scanner.radius_mm, 0.0)

    def on_cpu(start: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.zeros((n, 2, 5), np.float32)
        indices = np.full((n, 2, 4), -1, np.int32)
        _simulate(ring, crystals, obj, cumulative, key, start, bound, cover_mm, scanner.radius_mm, numbers, indices)
        return numbers, indices

    simulate = on_cpu
    if on_gpu:
        from petsim.physics.cuda import CudaDecays

        simulate = CudaDecays(
            ring, obj, cumulative, crystals=crystals, key=key, bound=bound, cover_mm=cover_mm, radius=scanner.radius_mm
        )
    for start in range(0, decays, batch):
        n = min(batch, decays - start)
        numbers, indices = simulate(start, n)
        if not crystals:
            _index_on_cylinder(scanner, numbers, indices)
        seen = (indices[:, :, 0] >= 0).any(axis=1)
        numbers, indices = numbers[seen], indices[seen]
        yield PhotonPairs(
            decays=n, energy_kev=numbers[:, :, 0], crystal=indices[:, :, 0], ring=indices[:, :, 1],
            position_mm=numbers[:, :, 2:5], path_mm=numbers[:, :, 1], scatters=indices[:, :, 2].astype(np.int16),
            triggers=indices[:, :, 3].astype(np.int16),
        )  # fmt: skip


def _bore(scanner: Scanner, cover_g_cm2: float) -> tuple[float, float]:
    """Radius of the bore cover and its thickness, mm."""
    return scanner.inner_radius_mm - COVER_GAP_MM, 10 * cover_g_cm2 / POLYETHYLENE_G_CM3


def _object(mu_per_cm: np.ndarray, grid: Grid, center_mm: tuple[float, float, float]) -> _Object:
    mu = np.ascontiguousarray(mu_per_cm, np.float32) / 10
    spacing = np.array(grid.spacing_mm, float)
    low = np.array(grid.origin_mm) - spacing / 2 - np.array(center_mm)
    return _Object(mu, low, spacing, float(mu.max()), attenuation_ratio_table())


def _index_on_cylinder(scanner: Scanner, numbers: np.ndarray, indices: np.ndarray) -> None:
    """Crystal by angle and ring by axial position, as if crystals were spread evenly."""
    hit = numbers[:, :, 0] > 0
    x, y, z = np.moveaxis(numbers[hit][:, 2:5].astype(np.float64), -1, 0)
    place = (np.arctan2(y, x) - scanner.view_offset_rad) / (2 * math.pi) * scanner.crystals_per_ring
    edges = (lambda at: (at[1:] + at[:-1]) / 2)(scanner.ring_z_mm(np.arange(scanner.rings)))
    indices[hit, 0] = np.floor(place).astype(np.int64) % scanner.crystals_per_ring
    indices[hit, 1] = np.searchsorted(edges, z)
    indices[hit, 3] = 0


@nb.njit(cache=True, nogil=True)
def _through_object(obj, photon, random, bound):
    """Follow a photon through the mu-map inside a cylinder; returns scatters, or -1 where it falls below the cutoff."""
    scatters = 0
    if obj.highest <= 0:
        return scatters
    while True:
        begin, end = 0.0, to_cylinder(photon, bound)
        if end < 0 and photon[3] ** 2 + photon[4] ** 2 < 1e-12:
            end = 1e6
        for axis in range(3):
            low = obj.low[axis]
            high = low + obj.mu.shape[axis] * obj.spacing[axis]
            if abs(photon[3 + axis]) < 1e-12:
                if photon[axis] < low or photon[axis] > high:
                    end = -1.0
            else:
                one = (low - photon[axis]) / photon[3 + axis]
                two = (high - photon[axis]) / photon[3 + axis]
                begin = max(begin, min(one, two))
                end = min(end, max(one, two))
        majorant = obj.highest * obj.ratio[int(photon[6] + 0.5)]
        at = begin
        collided = False
        while not collided:
            at -= math.log(uniform(random)) / majorant
            if at >= end:
                return scatters
            i = int((photon[0] + at * photon[3] - obj.low[0]) / obj.spacing[0])
            j = int((photon[1] + at * photon[4] - obj.low[1]) / obj.spacing[1])
            k = int((photon[2] + at * photon[5] - obj.low[2]) / obj.spacing[2])
            i, j, k = min(i, obj.mu.shape[0] - 1), min(j, obj.mu.shape[1] - 1), min(k, obj.mu.shape[2] - 1)
            collided = uniform(random) * obj.highest < obj.mu[i, j, k]
        move(photon, at)
        compton(photon, random)
        scatters += 1
        if photon[6] < CUTOFF_KEV:
            return -1


@nb.njit(cache=True, nogil=True)
def _out_of_bore(obj, photon, random, bound, cover_mm):
    """Follow a photon through object and bore cover; returns scatters, or -1 where it is lost."""
    scatters = 0
    while True:
        more = _through_object(obj, photon, random, bound)
        if more < 0:
            return -1
        scatters += more
        length = to_cylinder(photon, bound)
        if cover_mm <= 0 or length < 0:
            return scatters
        x, y = photon[0] + length * photon[3], photon[1] + length * photon[4]
        straight = (x * photon[3] + y * photon[4]) / bound
        depth = cover_mm / max(straight, 1e-3)
        mu = POLYETHYLENE_PER_CM / 10 * obj.ratio[int(photon[6] + 0.5)]
        if uniform(random) < math.exp(-mu * depth):
            return scatters
        move(photon, length)
        compton(photon, random)
        scatters += 1
        if photon[6] < CUTOFF_KEV:
            return -1
        if photon[0] * photon[3] + photon[1] * photon[4] >= 0:
            return scatters


@nb.njit(cache=True, nogil=True, parallel=True)
def _simulate(ring, crystals, obj, cumulative, key, start, bound, cover_mm, radius, numbers, indices):
    n = numbers.shape[0]
    ny, nz = obj.mu.shape[1], obj.mu.shape[2]
    for chunk in nb.prange((n + _CHUNK - 1) // _CHUNK):
        random = np.zeros(8, np.int64)
        photon = np.zeros(8)
        origin = np.zeros(6)
        deposits = np.zeros((MOST_DEPOSITS, 3))
        blocks = np.zeros((MOST_DEPOSITS, 4))
        for row in range(chunk * _CHUNK, min(n, (chunk + 1) * _CHUNK)):
            start_random(random, key, start + row)
            # Two words: maps have more voxels than one resolves.
            draw = (uniform(random) + (uniform(random) - 0.5) * 2.0**-32) * cumulative[-1]
            voxel = min(np.searchsorted(cumulative, draw, side="right"), cumulative.size - 1)
            cell = (voxel // (ny * nz), voxel // nz % ny, voxel % nz)
            for axis in range(3):
                photon[axis] = obj.low[axis] + (cell[axis] + uniform(random)) * obj.spacing[axis]
            turn_isotropic(photon, random)
            origin[:] = photon[:6]
            if origin[0] ** 2 + origin[1] ** 2 >= bound**2:
                continue
            for which in range(2):
                photon[:3] = origin[:3]
                photon[3:6] = origin[3:6] * (1 - 2 * which)
                photon[6], photon[7] = ELECTRON_KEV, 0.0
                scatters = _out_of_bore(obj, photon, random, bound, cover_mm)
                if scatters < 0:
                    continue
                if crystals:
                    count, first = follow(ring, photon, random, deposits, 0)
                    energy, crystal, line, triggers = read_out(ring, deposits, count, blocks, random)
                    if crystal < 0:
                        continue
                    indices[row, which, 0], indices[row, which, 1] = crystal, line
                    indices[row, which, 3] = triggers
                    x, y, z = crystal_center(ring, crystal, line)
                    numbers[row, which, 0], numbers[row, which, 1] = energy, first
                else:
                    length = to_cylinder(photon, radius)
                    if length < 0 or abs(photon[2] + length * photon[5]) > ring.half_length:
                        continue
                    move(photon, length)
                    x, y, z = photon[0], photon[1], photon[2]
                    numbers[row, which, 0], numbers[row, which, 1] = photon[6], photon[7]
                numbers[row, which, 2], numbers[row, which, 3], numbers[row, which, 4] = x, y, z
                indices[row, which, 2] = scatters


@lru_cache(maxsize=32)
def acceptance(scanner: Scanner, cover_g_cm2: float = BORE_COVER_G_CM2) -> tuple[np.ndarray, np.ndarray]:
    """Share of the photons that reach the ring of crystals and are detected inside the energy window, by energy.

    Photons start uniformly in a cylinder of 100 mm radius over the axial field of view and in all directions in which a
    straight line crosses the cylinder at `scanner.radius_mm` inside the scanner's axial length: the "cylinder" detector of
    `photon_pairs`. Losses in the bore cover are part of the share. Monte Carlo with a fixed seed.

    Parameters
    ----------
    scanner : Scanner
    cover_g_cm2 : float
        Polyethylene of the bore cover.

    Returns
    -------
    energies_kev, share : ndarray
        float64, read-only; 151 to 511 keV in steps of 15.
    """
    energies = np.linspace(151.0, 511.0, 25)
    low, high = scanner.given("energy_window_kev")
    key = np.uint64(stream_key("acceptance")).astype(np.int64)
    hits = np.zeros((len(energies), 64))
    bound, cover_mm = _bore(scanner, cover_g_cm2)
    nothing = _object(np.zeros((1, 1, 1)), Grid.centered((1, 1, 1), (1.0, 1.0, 1.0)), (0.0, 0.0, 0.0))
    _accept(crystal_ring(scanner), nothing, bound, cover_mm, scanner.radius_mm, key, energies, low, high, _ACCEPTED, hits)
    share = hits.sum(axis=1) / (hits.shape[1] * _ACCEPTED)
    energies.flags.writeable = share.flags.writeable = False
    return energies, share


_ACCEPTED = 640


@nb.njit(cache=True, nogil=True, parallel=True)
def _accept(ring, nothing, bound, cover_mm, radius, key, energies, low, high, photons, hits):
    for part in nb.prange(hits.shape[1]):
        random = np.zeros(8, np.int64)
        photon = np.zeros(8)
        deposits = np.zeros((MOST_DEPOSITS, 3))
        blocks = np.zeros((MOST_DEPOSITS, 4))
        for e in range(energies.size):
            for i in range(photons):
                start_random(random, key, part * photons + i)
                while True:
                    distance, angle = 100 * math.sqrt(uniform(random)), 2 * math.pi * uniform(random)
                    photon[0], photon[1] = distance * math.cos(angle), distance * math.sin(angle)
                    photon[2] = (2 * uniform(random) - 1) * ring.half_length
                    turn_isotropic(photon, random)
                    if abs(photon[2] + to_cylinder(photon, radius) * photon[5]) < ring.half_length:
                        break
                photon[6], photon[7] = energies[e], 0.0
                if _out_of_bore(nothing, photon, random, bound, cover_mm) < 0:
                    continue
                count, _ = follow(ring, photon, random, deposits, 0)
                energy, crystal, _, _ = read_out(ring, deposits, count, blocks, random)
                hits[e, part] += crystal >= 0 and low <= energy <= high


@dataclass(frozen=True)
class Lutetium:
    """What one decay of 176Lu in the crystals leaves on average, and how many decays there are.

    Parameters
    ----------
    decays_per_s : float
        In all crystals.
    singles : float
        Readout blocks inside the energy window, per decay.
    triggers : float
        Readout blocks above `petsim.physics.crystals.TRIGGER_KEV`, per decay.
    coincidences : float
        Pairs of blocks inside the energy window, the maximum ring difference and the field of view, per decay, whatever
        their times.
    prompt : float
        Those of them whose crystals are near enough to fall into the coincidence window as well.
    """

    decays_per_s: float
    singles: float
    triggers: float
    coincidences: float
    prompt: float


@lru_cache(maxsize=32)
def lutetium(scanner: Scanner, decays: int = 200_000, fov_radius_mm: float = math.inf) -> Lutetium:
    """Background of 176Lu: an electron (593 keV at most) and a cascade of 307, 202 and 88 keV, all in one decay.

    The transitions emit a photon in 93.6 %, 78 % and 14.5 % of the decays (nuclear data as used by Alva-Sanchez et al., Sci
    Rep 2018;8:17310, doi 10.1038/s41598-018-35684-x), else an electron that stays where it is.

    Parameters
    ----------
    scanner : Scanner
    decays : int
        Simulated, with a fixed seed.
    fov_radius_mm : float
        Largest distance of accepted LORs from the axis; infinite: every pair of blocks, neighbors included.

    Returns
    -------
    Lutetium
        All zeros for crystals without lutetium.
    """
    per_cm3 = LUTETIUM_BQ_CM3[scanner.crystal_material]
    if per_cm3 == 0:
        return Lutetium(0.0, 0.0, 0.0, 0.0, 0.0)
    real = int(scanner.transaxial_is_real().sum()) * int(scanner.ring_is_real().sum())
    rate = per_cm3 * real * math.prod(scanner.crystal_size_mm) * 1e-3
    low, high = scanner.given("energy_window_kev")
    key = np.uint64(stream_key("lutetium")).astype(np.int64)
    reach_mm = SPEED_OF_LIGHT_MM_PER_PS * 1e3 * scanner.given("coincidence_window_ns") / 2
    sums = np.zeros((64, 4))
    gammas = np.array(_LUTETIUM_GAMMAS)
    each = -(-decays // len(sums))
    limits = (low, high, scanner.max_ring_difference, min(fov_radius_mm, 1e6), reach_mm)
    _lutetium(crystal_ring(scanner), gammas, _beta_quantiles(), key, *limits, each, sums)
    singles, triggers, coincidences, prompt = (float(s) for s in sums.sum(axis=0) / (each * len(sums)))
    return Lutetium(rate, singles, triggers, coincidences, prompt)


@lru_cache(maxsize=1)
def _beta_quantiles() -> np.ndarray:
    """Electron energies in keV at equal steps of probability: allowed spectrum with the non-relativistic Fermi function."""
    kinetic = np.linspace(0, _LUTETIUM_BETA_KEV, 2001)[1:]
    momentum = np.sqrt(kinetic**2 + 2 * kinetic * ELECTRON_KEV)
    total = kinetic + ELECTRON_KEV
    eta = 2 * math.pi * 72 / 137.036 * total / momentum
    spectrum = momentum * total * (_LUTETIUM_BETA_KEV - kinetic) ** 2 * eta / (1 - np.exp(-eta))
    below = np.cumsum(spectrum) / spectrum.sum()
    return np.interp((np.arange(1024) + 0.5) / 1024, below, kinetic)


@nb.njit(cache=True, nogil=True, parallel=True)
def _lutetium(ring, gammas, betas, key, low, high, most_rings, fov, reach, decays, sums):
    for part in nb.prange(sums.shape[0]):
        random = np.zeros(8, np.int64)
        photon = np.zeros(8)
        origin = np.zeros(3)
        deposits = np.zeros((MOST_DEPOSITS, 3))
        blocks = np.zeros((MOST_DEPOSITS, 4))
        kept = np.zeros((MOST_DEPOSITS, 2), np.int64)
        for i in range(decays):
            start_random(random, key, part * decays + i)
            while True:
                side = int(uniform(random) * ring.sides)
                deep = ring.inner + uniform(random) * ring.depth
                along = (uniform(random) * ring.real - ring.middle) * ring.pitch
                c, s = ring.cos[side], ring.sin[side]
                origin[0], origin[1] = deep * c - along * s, deep * s + along * c
                origin[2] = (2 * uniform(random) - 1) * ring.half_length
                crystal, row = crystal_at(ring, origin[0], origin[1], origin[2])
                if crystal >= 0:
                    break
            count = deposit(deposits, 0, crystal, row, betas[int(uniform(random) * betas.size)])
            for g in range(gammas.shape[0]):
                if uniform(random) < gammas[g, 1]:
                    photon[:3] = origin
                    turn_isotropic(photon, random)
                    photon[6], photon[7] = gammas[g, 0], 0.0
                    count, _ = follow(ring, photon, random, deposits, count)
                else:
                    count = deposit(deposits, count, crystal, row, gammas[g, 0])
            found = sum_blocks(ring, deposits, count, blocks)
            inside = 0
            for k in range(found):
                sums[part, 1] += blocks[k, 1] > TRIGGER_KEV
                energy = measured(ring, blocks[k, 1], random)
                if low <= energy <= high:
                    crystal, row = int(blocks[k, 2] + 0.5), int(blocks[k, 3] + 0.5)
                    x, y, z = crystal_center(ring, crystal, row)
                    for other in range(inside):
                        x2, y2, z2 = crystal_center(ring, kept[other, 0], kept[other, 1])
                        chord = math.hypot(x2 - x, y2 - y)
                        if abs(kept[other, 1] - row) <= most_rings and abs(x * y2 - y * x2) < fov * chord:
                            sums[part, 2] += 1
                            sums[part, 3] += math.hypot(chord, z2 - z) <= reach
                    kept[inside, 0], kept[inside, 1] = crystal, row
                    inside += 1
            sums[part, 0] += inside
