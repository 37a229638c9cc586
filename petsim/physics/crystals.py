"""A photon in the crystals: the ring's geometry, transport, and what its readout blocks measure.

Every real crystal is a box on a flat side of the ring; reflectors between crystals, wedges between sides, virtual
crystals and axial gaps stop nothing. Photons move by Woodcock tracking (Woodcock et al., ANL-7050, 1965), with photoelectric
absorption and Klein-Nishina scattering, and may cross the bore. Energy is summed over the crystals that share a readout.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numba as nb
import numpy as np

from petsim.geometry.scanner import Scanner
from petsim.philox import philox
from petsim.physics.photons import CUTOFF_KEV, ELECTRON_KEV, HIGHEST_KEV, crystal_attenuation

TRIGGER_KEV = 150.0
"""A block that holds more than this is busy for its dead time; assumed, the same for all scanners."""

MOST_DEPOSITS = 48
"""Energy deposits that are kept of one decay; what follows is added to the last."""


class Ring(NamedTuple):
    """A scanner's crystals as the kernels want them. Lengths in mm, energies in keV, attenuation in 1/mm."""

    inner: float
    outer: float
    depth: float
    interaction: float
    half_length: float
    sides: int
    first_angle: float
    cos: np.ndarray
    sin: np.ndarray
    block: int
    real: int
    middle: float
    pitch: float
    width: float
    rings: int
    axial_block: int
    axial_real: int
    unit: float
    ring_pitch: float
    height: float
    sum_around: int
    sum_along: int
    sigma_511: float
    photo: np.ndarray
    total: np.ndarray


def energy_block(scanner: Scanner) -> tuple[int, int]:
    """Crystals (transaxial, axial) whose energies are added: the `energy_block` of the file, else its readout block."""
    return scanner.energy_block or scanner.given("readout_block")


@lru_cache(maxsize=32)
def crystal_ring(scanner: Scanner) -> Ring:
    """The scanner's crystals for the kernels.

    A scanner whose crystals its file spreads over a circle gets flat sides, one a transaxial block, at the mean pitch on the
    front face.
    """
    size = scanner.crystal_size_mm
    sides = scanner.crystals_per_ring // scanner.transaxial_block
    step = 2 * math.pi / sides
    polygon = scanner.transaxial_pitch_mm is not None
    pitch = scanner.transaxial_pitch_mm or 2 * math.pi * scanner.inner_radius_mm / scanner.crystals_per_ring
    # Where a circle has virtual crystals, a side is the arc of its real ones.
    middle = (scanner.transaxial_block if polygon else scanner.transaxial_block_real) / 2
    first_angle = scanner.view_offset_rad + step * middle / scanner.transaxial_block
    angles = first_angle + step * np.arange(sides)
    outer = math.hypot(scanner.inner_radius_mm + size[2], scanner.transaxial_block * pitch / 2)
    energies = np.clip(np.arange(HIGHEST_KEV + 1), CUTOFF_KEV, None)
    photo, incoherent = crystal_attenuation(scanner.crystal_material, energies)
    around, along = energy_block(scanner)
    return Ring(
        inner=scanner.inner_radius_mm, outer=outer, depth=size[2], interaction=scanner.interaction_depth_mm,
        half_length=scanner.axial_length_mm / 2, sides=sides, first_angle=first_angle,
        cos=np.cos(angles), sin=np.sin(angles),
        block=scanner.transaxial_block, real=scanner.transaxial_block_real, middle=middle, pitch=pitch, width=size[0],
        rings=scanner.rings, axial_block=scanner.axial_block, axial_real=scanner.axial_block_real,
        unit=scanner.axial_block * scanner.ring_spacing_mm + scanner.axial_gap_mm, ring_pitch=scanner.ring_spacing_mm,
        height=size[1], sum_around=around, sum_along=along,
        sigma_511=scanner.given("energy_resolution") * ELECTRON_KEV / math.sqrt(8 * math.log(2)),
        photo=photo / 10, total=(photo + incoherent) / 10,
    )  # fmt: skip


@nb.njit(cache=True, nogil=True)
def start_random(random, key, index):
    """Begin the random numbers of decay `index`; `random` is int64 (8,) and belongs to one thread."""
    random[0], random[1], random[2], random[3] = key, index, 0, 4


@nb.njit(cache=True, nogil=True)
def uniform(random):
    """Next uniform number, above 0 and below 1."""
    if random[3] == 4:
        a, b, c, d = philox(random[2], random[1], random[1] >> 32, 0, random[0])
        random[4], random[5], random[6], random[7] = a, b, c, d
        random[2] += 1
        random[3] = 0
    word = random[4 + random[3]]
    random[3] += 1
    return (word + 0.5) * 2.0**-32


@nb.njit(cache=True, nogil=True)
def gaussian(random):
    """Next standard normal number (Box and Muller)."""
    radius = math.sqrt(-2 * math.log(uniform(random)))
    return radius * math.cos(2 * math.pi * uniform(random))


@nb.njit(cache=True, nogil=True)
def turn_isotropic(photon, random):
    """Give the photon (x, y, z, dx, dy, dz, keV, mm flown) a random direction."""
    cos = 2 * uniform(random) - 1
    sin = math.sqrt(1 - cos * cos)
    phi = 2 * math.pi * uniform(random)
    photon[3], photon[4], photon[5] = sin * math.cos(phi), sin * math.sin(phi), cos


@nb.njit(cache=True, nogil=True)
def compton(photon, random):
    """Scatter the photon: Butcher and Messel, Nucl Phys 1960;20:15, doi 10.1016/0029-5582(60)90162-0."""
    k = photon[6] / ELECTRON_KEV
    least = 1 / (1 + 2 * k)
    logarithm = -math.log(least)
    share = logarithm / (logarithm + 0.5 * (1 - least * least))
    while True:
        if uniform(random) < share:
            ratio = math.exp(-logarithm * uniform(random))
        else:
            ratio = math.sqrt(least * least + (1 - least * least) * uniform(random))
        away = (1 - ratio) / (k * ratio)
        sin2 = max(0.0, away * (2 - away))
        if uniform(random) < 1 - ratio * sin2 / (1 + ratio * ratio):
            break
    cos, sin = 1 - away, math.sqrt(sin2)
    phi = 2 * math.pi * uniform(random)
    a, b = sin * math.cos(phi), sin * math.sin(phi)
    dx, dy, dz = photon[3], photon[4], photon[5]
    across = math.sqrt(dx * dx + dy * dy)
    if across < 1e-9:
        photon[3], photon[4], photon[5] = a, b, cos * math.copysign(1.0, dz)
    else:
        photon[3] = dx * cos + (dx * dz * a - dy * b) / across
        photon[4] = dy * cos + (dy * dz * a + dx * b) / across
        photon[5] = dz * cos - across * a
    photon[6] *= ratio


@nb.njit(cache=True, nogil=True)
def to_cylinder(photon, radius):
    """Distance along the photon to where it leaves a cylinder around the axis; negative where it does not."""
    a = photon[3] ** 2 + photon[4] ** 2
    b = photon[0] * photon[3] + photon[1] * photon[4]
    c = photon[0] ** 2 + photon[1] ** 2 - radius * radius
    root = b * b - a * c
    if a < 1e-12 or root < 0:
        return -1.0
    return (-b + math.sqrt(root)) / a


@nb.njit(cache=True, nogil=True)
def move(photon, length):
    """Move the photon in its direction."""
    photon[0] += length * photon[3]
    photon[1] += length * photon[4]
    photon[2] += length * photon[5]
    photon[7] += length


@nb.njit(cache=True, nogil=True)
def crystal_at(ring, x, y, z):
    """Transaxial and axial index of the crystal at a point; the first is -1 where there is none."""
    side = math.floor((math.atan2(y, x) - ring.first_angle) * ring.sides / (2 * math.pi) + 0.5) % ring.sides
    c, s = ring.cos[side], ring.sin[side]
    deep = x * c + y * s - ring.inner
    if deep < 0 or deep > ring.depth:
        return -1, 0
    along = (y * c - x * s) / ring.pitch + ring.middle
    crystal = math.floor(along)
    if crystal < 0 or crystal >= ring.real or abs(along - crystal - 0.5) * ring.pitch > ring.width / 2:
        return -1, 0
    above = z + ring.half_length
    unit = math.floor(above / ring.unit)
    place = (above - unit * ring.unit) / ring.ring_pitch
    row = math.floor(place)
    if unit < 0 or row >= ring.axial_real or abs(place - row - 0.5) * ring.ring_pitch > ring.height / 2:
        return -1, 0
    row += unit * ring.axial_block
    if row >= ring.rings:
        return -1, 0
    return side * ring.block + crystal, row


@nb.njit(cache=True, nogil=True)
def crystal_center(ring, crystal, row):
    """Position in mm of a crystal's center across, at the scanner's interaction depth."""
    side = crystal // ring.block
    c, s = ring.cos[side], ring.sin[side]
    along = (crystal - side * ring.block + 0.5 - ring.middle) * ring.pitch
    deep = ring.inner + ring.interaction
    unit = row // ring.axial_block
    z = unit * ring.unit + (row - unit * ring.axial_block + 0.5) * ring.ring_pitch - ring.half_length
    return deep * c - along * s, deep * s + along * c, z


@nb.njit(cache=True, nogil=True)
def deposit(deposits, count, crystal, row, energy):
    """Append (crystal, row, energy) to the list of a decay; returns its new length."""
    if count == MOST_DEPOSITS:
        deposits[count - 1, 2] += energy
        return count
    deposits[count, 0], deposits[count, 1], deposits[count, 2] = crystal, row, energy
    return count + 1


@nb.njit(cache=True, nogil=True)
def follow(ring, photon, random, deposits, count):
    """Follow a photon through the crystals until it is absorbed or gone.

    Appends its deposits and returns their new number and the path flown to the first of them.
    """
    first = -1.0
    while True:
        r2 = photon[0] ** 2 + photon[1] ** 2
        if r2 < ring.inner**2:
            length = to_cylinder(photon, ring.inner)
            if length < 0:
                return count, first
            move(photon, length + 1e-6)
            # Shields cover the ends of the ring.
            if abs(photon[2]) > ring.half_length:
                return count, first
        material = int(photon[6] + 0.5)
        move(photon, -math.log(uniform(random)) / ring.total[material])
        r2 = photon[0] ** 2 + photon[1] ** 2
        if r2 > ring.outer**2 or abs(photon[2]) > ring.half_length:
            return count, first
        if r2 < ring.inner**2:
            continue
        crystal, row = crystal_at(ring, photon[0], photon[1], photon[2])
        if crystal < 0:
            continue
        if first < 0:
            first = photon[7]
        energy = photon[6]
        if uniform(random) * ring.total[material] < ring.photo[material]:
            return deposit(deposits, count, crystal, row, energy), first
        compton(photon, random)
        if photon[6] < CUTOFF_KEV:
            return deposit(deposits, count, crystal, row, energy), first
        count = deposit(deposits, count, crystal, row, energy - photon[6])


@nb.njit(cache=True, nogil=True)
def sum_blocks(ring, deposits, count, blocks):
    """Add up the deposits by readout block.

    Fills `blocks` with block address, energy, and energy-weighted crystal and row, and returns how many blocks there are.
    """
    found = 0
    for i in range(count):
        crystal, row, energy = int(deposits[i, 0]), int(deposits[i, 1]), deposits[i, 2]
        side, unit = crystal // ring.block, row // ring.axial_block
        around = (crystal - side * ring.block) // ring.sum_around
        along = (row - unit * ring.axial_block) // ring.sum_along
        address = ((side * ring.block + around) * ring.rings + unit) * ring.axial_block + along
        k = 0
        while k < found and blocks[k, 0] != address:
            k += 1
        if k == found:
            blocks[k, 0], blocks[k, 1], blocks[k, 2], blocks[k, 3] = address, 0.0, 0.0, 0.0
            found += 1
        blocks[k, 1] += energy
        blocks[k, 2] += energy * crystal
        blocks[k, 3] += energy * row
    for k in range(found):
        blocks[k, 2] /= blocks[k, 1]
        blocks[k, 3] /= blocks[k, 1]
    return found


@nb.njit(cache=True, nogil=True)
def measured(ring, energy, random):
    """Energy that a block reports: Gaussian, its variance in proportion to the energy."""
    return max(energy + ring.sigma_511 * math.sqrt(energy / ELECTRON_KEV) * gaussian(random), 0.0)


@nb.njit(cache=True, nogil=True)
def read_out(ring, deposits, count, blocks, random):
    """Block with the most energy: what it measures, its crystal and row; and how many blocks trigger."""
    found = sum_blocks(ring, deposits, count, blocks)
    best, triggers = 0, 0
    for k in range(found):
        triggers += blocks[k, 1] > TRIGGER_KEV
        if blocks[k, 1] > blocks[best, 1]:
            best = k
    if found == 0:
        return 0.0, -1, -1, 0
    # A measured energy of 0 stands for "not detected".
    energy = max(measured(ring, blocks[best, 1], random), 1e-3)
    return energy, int(blocks[best, 2] + 0.5), int(blocks[best, 3] + 0.5), triggers
