"""The voxel grid on which an image lives."""

from dataclasses import dataclass

import numpy as np

from data_recipes.errors import DataError


@dataclass(frozen=True)
class Grid:
    """An axis-aligned voxel grid in patient space.

    Parameters
    ----------
    shape : tuple of int
        Voxels along (x, y, z): left to right, posterior to anterior, feet to head.
    spacing_mm : tuple of float
        Voxel edges in mm, all positive.
    origin_mm : tuple of float
        RAS+ coordinates in mm of the center of voxel (0, 0, 0).
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise DataError(f"an image grid needs three axes of at least one voxel, got shape {tuple(self.shape)}")
        if min(self.spacing_mm) <= 0 or not np.all(np.isfinite(self.spacing_mm + self.origin_mm)):
            raise DataError(f"voxel size must be positive and finite, got {self.spacing_mm} mm at {self.origin_mm} mm")

    @classmethod
    def centered(cls, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float],
                 center_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> "Grid":  # fmt: skip
        """Grid whose middle lies at `center_mm` (RAS+ mm)."""
        x, y, z = (c - (n - 1) / 2 * d for c, n, d in zip(center_mm, shape, spacing_mm, strict=True))
        return cls(shape, spacing_mm, (x, y, z))

    @property
    def affine(self) -> np.ndarray:
        """4 x 4 matrix, voxel index to RAS+ mm, as nibabel has it."""
        a = np.diag([*self.spacing_mm, 1.0])
        a[:3, 3] = self.origin_mm
        return a

    @property
    def voxel_ml(self) -> float:
        """Voxel volume in mL."""
        return float(np.prod(self.spacing_mm)) * 1e-3

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Edge lengths of the whole grid in mm."""
        x, y, z = (n * d for n, d in zip(self.shape, self.spacing_mm, strict=True))
        return x, y, z

    @property
    def center_mm(self) -> tuple[float, float, float]:
        """RAS+ mm of the middle of the grid."""
        x, y, z = (o + (n - 1) / 2 * d for o, n, d in zip(self.origin_mm, self.shape, self.spacing_mm, strict=True))
        return x, y, z

    def axis_mm(self, axis: int) -> np.ndarray:
        """Voxel center coordinates along `axis` in mm (float64)."""
        return self.origin_mm[axis] + self.spacing_mm[axis] * np.arange(self.shape[axis])
