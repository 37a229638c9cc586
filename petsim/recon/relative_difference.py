"""The relative difference prior.

Nuyts et al. 2002, doi 10.1109/TNS.2002.998681: with neighbors j, k, each pair once, and weights w falling as 1 / distance,

    R(x) = sum over pairs of w (x_j - x_k)^2 / (x_j + x_k + gamma |x_j - x_k|).

It is convex where x >= 0, and R(c x) = c R(x), as the log-likelihood of c times the counts: a weight gives noise-free data
the same smoothness at any dose.
"""

import math
from dataclasses import dataclass

import numba as nb
import numpy as np

_F32 = np.float32


@dataclass(frozen=True, eq=False)
class RelativeDifference:
    """beta R(x) over the 26 neighbors of every voxel.

    Parameters
    ----------
    beta : float
        Weight, for images in counts (`petsim.recon.osem`: times c). It goes with the scanner's sensitivity; vendors'
        numbers are on scales of their own.
    spacing_mm : tuple of float
        Voxel edges; w = shortest edge / distance.
    inside : ndarray
        bool (x, y, z): voxels that take part.
    gamma : float
        Higher values spare edges more; 2 is that of Q.Clear (from memory, not verified).
    """

    beta: float
    spacing_mm: tuple[float, float, float]
    inside: np.ndarray
    gamma: float = 2.0

    def _weights(self) -> np.ndarray:
        """w by offset, (3, 3, 3), 0 in the middle."""
        offsets = [np.arange(-1, 2) * mm for mm in self.spacing_mm]
        x, y, z = np.meshgrid(*offsets, indexing="ij")
        distance = np.sqrt(x * x + y * y + z * z)
        distance[1, 1, 1] = math.inf
        return (self.beta * min(self.spacing_mm) / distance).astype(np.float32)

    def value(self, image: np.ndarray) -> float:
        """beta R of an image (x, y, z) without negative values."""
        return float(_value(np.asarray(image, np.float32), self.inside, self._weights(), self.gamma))

    def gradient(self, image: np.ndarray) -> np.ndarray:
        """Of beta R at an image (x, y, z) without negative values, float32; pairs of zeros have none."""
        out = np.zeros(image.shape, np.float32)
        _gradient(np.asarray(image, np.float32), self.inside, self._weights(), _F32(self.gamma), out)
        return out

    def curvature(self) -> np.ndarray:
        """Bound by voxel of x times the curvature, float32 (x, y, z): 2 beta times the sum of w over neighbors.

        A pair's second derivatives, times x_j and summed in magnitude, are 8 x_j x_k / (x_j + x_k)^2 or less, which is 2 or
        less.
        """
        out = np.zeros(self.inside.shape, np.float32)
        _neighbors(self.inside, 2 * self._weights(), out)
        return out


@nb.njit(cache=True, nogil=True, parallel=True, fastmath={"contract", "nsz"})
def _gradient(image, inside, weights, gamma, out):
    nx, ny, nz = image.shape
    for task in nb.prange(nx):
        x = np.int64(task)  # numba's own is unsigned.
        for y in range(ny):
            row, own, sums = image[x, y], inside[x, y], out[x, y]
            for dx in range(max(-1, -x), min(2, nx - x)):
                for dy in range(max(-1, -y), min(2, ny - y)):
                    other, its = image[x + dx, y + dy], inside[x + dx, y + dy]
                    for dz in range(-1, 2):
                        w = weights[dx + 1, dy + 1, dz + 1]
                        for z in range(max(0, -dz), min(nz, nz - dz)):
                            a, b = row[z], other[z + dz]
                            d = a - b
                            bottom = a + b + gamma * abs(d)
                            if own[z] and its[z + dz] and bottom > _F32(0):
                                # Two ratios: the square of a small number may be 0, and its reciprocal infinite.
                                sums[z] += w * (d / bottom) * ((a + _F32(3) * b + gamma * abs(d)) / bottom)


@nb.njit(cache=True, nogil=True)
def _value(image, inside, weights, gamma):
    nx, ny, nz = image.shape
    total = 0.0
    for x in range(nx):
        for y in range(ny):
            for dx in range(max(-1, -x), min(2, nx - x)):
                for dy in range(max(-1, -y), min(2, ny - y)):
                    for dz in range(-1, 2):
                        w = weights[dx + 1, dy + 1, dz + 1]
                        for z in range(max(0, -dz), min(nz, nz - dz)):
                            a, b = np.float64(image[x, y, z]), np.float64(image[x + dx, y + dy, z + dz])
                            bottom = a + b + gamma * abs(a - b)
                            if inside[x, y, z] and inside[x + dx, y + dy, z + dz] and bottom > 0:
                                total += 0.5 * w * (a - b) ** 2 / bottom
    return total


@nb.njit(cache=True, nogil=True)
def _neighbors(inside, weights, out):
    """Sum of the weights of a voxel's neighbors inside."""
    nx, ny, nz = inside.shape
    for x in range(nx):
        for y in range(ny):
            for dx in range(max(-1, -x), min(2, nx - x)):
                for dy in range(max(-1, -y), min(2, ny - y)):
                    for dz in range(-1, 2):
                        for z in range(max(0, -dz), min(nz, nz - dz)):
                            if inside[x, y, z] and inside[x + dx, y + dy, z + dz]:
                                out[x, y, z] += weights[dx + 1, dy + 1, dz + 1]
