"""Which crystal of a scanner lies at a place, for formats that tell where photons interacted."""

import math
from dataclasses import dataclass, replace

import numba as nb
import numpy as np

from petsim.geometry.scanner import Scanner

TURN_STEPS = 8
"""Angles a crystal pitch at which `CrystalFinder.fitting_view_offset_rad` looks."""


@dataclass(frozen=True, eq=False)
class CrystalFinder:
    """Tables of a scanner's crystals.

    Axes are those of `Scanner`: crystal 0 begins at `view_offset_rad`, counted from +x toward +y, and z grows with the ring.

    Parameters
    ----------
    scanner : Scanner
    xy_mm : ndarray
        float64 (crystals, 2): LOR ends.
    along : ndarray
        float64 (crystals, 2): unit vectors along the ring or side.
    rings, z_mm : ndarray
        int64 and float64: the real rings, and where they are.
    """

    scanner: Scanner
    xy_mm: np.ndarray
    along: np.ndarray
    rings: np.ndarray
    z_mm: np.ndarray

    @classmethod
    def of(cls, scanner: Scanner) -> "CrystalFinder":
        """Tables of a scanner."""
        place = np.arange(scanner.crystals_per_ring) + 0.5
        along = scanner.crystal_xy_mm(place, 0.25) - scanner.crystal_xy_mm(place, -0.25)
        rings = np.flatnonzero(scanner.ring_is_real())
        return cls(
            scanner, scanner.crystal_xy_mm(place), along / np.linalg.norm(along, axis=1, keepdims=True), rings,
            scanner.ring_z_mm(rings),
        )  # fmt: skip

    @property
    def pitch_mm(self) -> float:
        """Transaxial distance of neighboring crystals."""
        s = self.scanner
        return s.transaxial_pitch_mm or 2 * math.pi * s.radius_mm / s.crystals_per_ring

    def nearest(self, x_mm: np.ndarray, y_mm: np.ndarray, z_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nearest real crystals of some places.

        Parameters
        ----------
        x_mm, y_mm, z_mm : ndarray
            Of one length.

        Returns
        -------
        crystal, ring : ndarray
            uint16.
        offset_mm : ndarray
            float32 (n, 3): distance from that crystal's LOR end along the ring, axially and, signed, outward; infinite where
            the place is not finite.
        """
        s = self.scanner
        crystal, ring = np.zeros(len(x_mm), np.uint16), np.zeros(len(x_mm), np.uint16)
        offset = np.full((len(x_mm), 3), np.inf, np.float32)
        # A place beside the last real crystal of a block may be nearest to the first one of the next block.
        around = s.transaxial_block - s.transaxial_block_real + 1
        sides = s.crystals_per_ring // s.transaxial_block if s.transaxial_pitch_mm else 0
        _nearest(x_mm, y_mm, z_mm, self.xy_mm, self.along, s.transaxial_is_real(), self.rings, self.z_mm, s.view_offset_rad,
                 sides, self.pitch_mm, around, crystal, ring, offset)  # fmt: skip
        return crystal, ring, offset

    def is_outside(self, offset_mm: np.ndarray) -> np.ndarray:
        """bool (n,): farther than one crystal pitch from the crystal's volume, along the ring, axially or in depth."""
        s = self.scanner
        across, axial, depth = s.crystal_size_mm
        front, back = -s.interaction_depth_mm, depth - s.interaction_depth_mm
        return (
            (offset_mm[:, 0] > across / 2 + self.pitch_mm)
            | (offset_mm[:, 1] > axial / 2 + s.ring_spacing_mm)
            | ~((offset_mm[:, 2] >= front - self.pitch_mm) & (offset_mm[:, 2] <= back + self.pitch_mm))
        )

    def is_between(self, offset_mm: np.ndarray) -> np.ndarray:
        """bool (n,): beside the crystal, in a gap of the ring."""
        return offset_mm[:, 0] > self.scanner.crystal_size_mm[0] / 2

    def fitting_view_offset_rad(self, x_mm: np.ndarray, y_mm: np.ndarray, z_mm: np.ndarray) -> float:
        """The `view_offset_rad`, within half a block of the scanner's, with which places lie nearest to crystals."""
        s = self.scanner
        step = 2 * math.pi / s.crystals_per_ring / TURN_STEPS
        half = s.transaxial_block * TURN_STEPS // 2
        offsets = s.view_offset_rad + step * np.arange(-half, half + 1)
        away = [
            float(CrystalFinder.of(replace(s, view_offset_rad=a)).nearest(x_mm, y_mm, z_mm)[2][:, 0].mean())
            for a in offsets.tolist()
        ]
        return float(offsets[int(np.argmin(away))])


@nb.njit(cache=True, nogil=True)
def _nearest(xs, ys, zs, xy, along, is_real, rings, ring_z, first_angle, sides, pitch, around, crystal, ring, offset):
    crystals = xy.shape[0]
    between = (ring_z[1:] + ring_z[:-1]) / 2
    block = crystals // max(sides, 1)
    for k in range(xs.size):
        x, y, z = np.float64(xs[k]), np.float64(ys[k]), np.float64(zs[k])
        if not (np.isfinite(x) and np.isfinite(y) and np.isfinite(z)):
            continue
        turn = ((math.atan2(y, x) - first_angle) / (2 * math.pi)) % 1.0
        if sides:
            side = int(turn * sides)
            angle = (side + 0.5) * 2 * math.pi / sides + first_angle
            place = (y * math.cos(angle) - x * math.sin(angle)) / pitch + block / 2
            guess = side * block + math.floor(min(max(place, 0.0), block - 1.0))
        else:
            guess = int(turn * crystals)
        best, nearest = 0, np.inf
        for near in range(guess - around, guess + around + 1):
            c = near % crystals
            away = abs((x - xy[c, 0]) * along[c, 0] + (y - xy[c, 1]) * along[c, 1])
            if is_real[c] and away < nearest:
                best, nearest = c, away
        n = np.searchsorted(between, z)
        crystal[k], ring[k] = best, rings[n]
        offset[k, 0], offset[k, 1] = nearest, abs(z - ring_z[n])
        offset[k, 2] = (x - xy[best, 0]) * along[best, 1] - (y - xy[best, 1]) * along[best, 0]
