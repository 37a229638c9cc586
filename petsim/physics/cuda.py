"""The photon Monte Carlo on a GPU: CUDA through CuPy, kernel in monte_carlo.cu.

Decays have the random numbers that they have on the CPU and are given back in the same order, so every run gives the same
bits. From the CPU's, only the last bits of logarithms, exponentials, sines, cosines and arc tangents differ: crystals,
rings, scatters, triggers, and with crystals positions too, are the same bit for bit; energies and paths, and positions on
the cylinder, agree within 2.5e-7 of their value or 1e-5 mm. Excepted are decays of which such a bit leads a photon another
way, less than one in 10^4: with these functions shaken by 4 units in the last place, on the CPU, none of 2.9 million.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from petsim.gpu import Gpu, fill
from petsim.physics.crystals import Ring

SOURCE = Path(__file__).with_name("monte_carlo.cu")

OPTIONS = ("--fmad=false",)
"""No fused multiply-adds, which numba's code has not either."""

THREADS = 128
"""Of a block; constant of monte_carlo.cu."""

_RING = np.dtype(
    [(name, "f8") for name in ("inner", "outer", "depth", "interaction", "half_length", "first_angle", "middle", "pitch",
                               "width", "unit", "ring_pitch", "height", "sigma_511")]
    + [(name, "u8") for name in ("cos", "sin", "photo", "total")]
    + [(name, "i4") for name in ("sides", "block", "real", "rings", "axial_block", "axial_real", "sum_around", "sum_along")],
    align=True,
)  # fmt: skip
_OBJECT = np.dtype(
    [(name, "u8") for name in ("mu", "cumulative", "ratio")]
    + [("low", "f8", 3), ("spacing", "f8", 3), ("highest", "f8"), ("shape", "i4", 3)],
    align=True,
)
DECAYS = np.dtype(
    [("ring", _RING), ("object", _OBJECT), ("bound", "f8"), ("cover_mm", "f8"), ("radius", "f8"), ("key", "i8"),
     ("start", "i8"), ("decays", "i4"), ("crystals", "i4")]
    + [(name, "u8") for name in ("found", "decay", "numbers", "indices")],
    align=True,
)  # fmt: skip
"""Parameters of the kernel, laid out as C++ does; pointers are integers."""


@functools.cache
def cuda() -> Any:
    """The GPU; DataError with what to do about it where there is none."""
    return Gpu(SOURCE, *OPTIONS)


class CudaDecays:
    """`petsim.physics.monte_carlo._simulate` on a GPU, which holds the maps from now on.

    Parameters
    ----------
    ring : Ring
    obj : petsim.physics.monte_carlo._Object
    cumulative : ndarray
        Activity up to and with a voxel.
    **others
        `crystals`, `key`, `bound`, `cover_mm` and `radius` of `_simulate`.

    Raises
    ------
    DataError
        There is no CuPy or no CUDA device.
    """

    def __init__(self, ring: Ring, obj: Any, cumulative: np.ndarray, **others: Any) -> None:
        self._gpu = gpu = cuda()
        put = gpu.xp.asarray
        # Kept, since the kernel knows addresses only.
        self._ring = {name: put(value) if isinstance(value, np.ndarray) else value for name, value in ring._asdict().items()}
        self._maps = {"mu": put(obj.mu), "cumulative": put(cumulative), "ratio": put(obj.ratio)}
        self._parameters = np.zeros(1, DECAYS)
        fill(gpu, self._parameters["ring"], **self._ring)
        fill(gpu, self._parameters["object"], low=tuple(obj.low), spacing=tuple(obj.spacing), highest=obj.highest,
             shape=obj.mu.shape, **self._maps)  # fmt: skip
        fill(gpu, self._parameters, **others)

    def __call__(self, start: int, decays: int) -> tuple[np.ndarray, np.ndarray]:
        """Simulate decays from index `start` on.

        Returns
        -------
        numbers, indices : ndarray
            float32 (n, 2, 5) and int32 (n, 2, 4) as `_simulate` fills them, of the decays with a detected photon alone.
        """
        gpu, xp = self._gpu, self._gpu.xp
        found, decay = xp.zeros(1, np.int32), xp.empty(decays, np.int32)
        numbers, indices = xp.empty((decays, 2, 5), np.float32), xp.empty((decays, 2, 4), np.int32)
        parameters = fill(gpu, self._parameters.copy(), start=start, decays=decays, found=found, decay=decay,
                          numbers=numbers, indices=indices)  # fmt: skip
        gpu.launch("photon_pairs", parameters, -(-decays // THREADS), THREADS)
        order = xp.argsort(decay[: int(found[0])])
        return gpu.to_host(numbers[order]), gpu.to_host(indices[order])
