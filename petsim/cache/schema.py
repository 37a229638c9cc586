"""Schema 1: what a subject's HDF5 file holds.

    /recon (dose, realization, x, y, z)   float16 x attribute `scale` = Bq/mL at scan start; dose 0 is DRF 1
    /reference/noise_free (x, y, z)       the same reconstruction of the expected counts; not for measured images
    /sinogram (dose, realization, view, radial, tof, plane)   integer counts, optional
    /truth/activity, mu, labels (x, y, z) activity float16 x scale, mu float16 in 1/cm, labels uint8 (optional)
    /doses/...                            drf (dose); prompts, trues, scatter, randoms, nec, mbq_s_per_kg, liver_cov
                                          (dose, realization); attributes mode, seed
    root attributes                       see `SubjectRecord`

Every dataset carries the SHA-256 of its bytes as attribute `sha256`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

VERSION = 1
CHUNK = 32
"""Edge of the cubic chunks of images; decided by measurement in the issue that brings training."""

FLOAT_ROWS = ("nec", "mbq_s_per_kg", "liver_cov")
INTEGER_ROWS = ("prompts", "trues", "scatter", "randoms")


@dataclass(frozen=True)
class SubjectRecord:
    """Everything of one subject that is stored.

    Parameters
    ----------
    name : str
    shape, spacing_mm, origin_mm : tuple
        The grid: voxels, voxel edges, RAS+ position of voxel (0, 0, 0).
    suv_factor : float, optional
        SUV for 1 Bq/mL.
    drfs : tuple of float
    images, noise_free, activity, mu, labels, sinogram : ndarray
        In Bq/mL, 1/cm and integers; noise_free, labels and sinogram may be None.
    doses : dict
        Name to array (dose, realization).
    label_names : dict
    mode : str
    seed : int
    configuration : dict
        Resolved settings; `configuration_sha256` identifies them.
    configuration_sha256 : str
    provenance : dict
    versions : dict
    license, origin : str
    """

    name: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    suv_factor: float | None
    drfs: tuple[float, ...]
    images: np.ndarray
    noise_free: np.ndarray | None
    activity: np.ndarray
    mu: np.ndarray
    labels: np.ndarray | None
    sinogram: np.ndarray | None
    doses: dict[str, np.ndarray]
    label_names: dict[int, str]
    mode: str
    seed: int
    configuration: dict[str, Any]
    configuration_sha256: str
    provenance: dict[str, Any]
    versions: dict[str, str]
    license: str
    origin: str

    @property
    def affine(self) -> np.ndarray:
        """Voxel index to RAS+ mm."""
        a = np.diag([*self.spacing_mm, 1.0])
        a[:3, 3] = self.origin_mm
        return a


def chunk_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Chunk in which an image of this shape is stored."""
    return tuple(min(CHUNK, n) for n in shape)


def pack(values: np.ndarray) -> tuple[np.ndarray, float]:
    """float16 array and the scale that restores it: the largest magnitude becomes 32768, so nothing overflows."""
    largest = float(np.abs(values).max()) if values.size else 0.0
    scale = largest / 32768 if largest > 0 else 1.0
    return (values / np.float32(scale)).astype(np.float16), scale


def unpack(stored: np.ndarray, scale: float) -> np.ndarray:
    """float32 values of a packed array; cast first, since float16 sums overflow."""
    return stored.astype(np.float32) * np.float32(scale)
