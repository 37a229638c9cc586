"""What every sinogram projector offers, whatever computes it."""

from typing import Any, Protocol

import numpy as np

from data_recipes.grid import Grid
from petsim.geometry.sinogram import SinogramLayout


def support_mask(grid: Grid, center_mm: tuple[float, float, float] | None, support_mm: float | None) -> np.ndarray:
    """bool, broadcasts to the grid's shape: voxels whose centers lie within `support_mm` of the scanner's axis.

    The axis passes through `center_mm` (None: the middle of the grid); without a radius every voxel counts.
    """
    if not support_mm:
        return np.ones((1, 1, 1), bool)
    center = grid.center_mm if center_mm is None else center_mm
    x, y = (grid.origin_mm[axis] - center[axis] + grid.spacing_mm[axis] * np.arange(grid.shape[axis]) for axis in range(2))
    return (np.hypot(x[:, None], y[None, :]) < support_mm)[:, :, None]


class SinogramOperator(Protocol):
    """Linear operator from an image on a grid to the sinogram of a layout, with its exact adjoint.

    Built as `Operator(layout, grid, center_mm, support_mm, shift, tof)`; see `petsim.projectors.sinogram`. Images are
    float32 (x, y, z), data (view, radial, tof, plane) in image unit x mm. `prepare` and `new_sums` return what only the same
    backend can read.
    """

    layout: SinogramLayout
    grid: Grid
    bins: int
    support: np.ndarray

    def data_shape(self, views: int) -> tuple[int, int, int, int]:
        """Shape of the data of some views."""
        ...

    def forward(self, image: Any, views: np.ndarray | None = None) -> Any:
        """Line integrals of an image, of the image's kind of array."""
        ...

    def adjoint(self, data: Any, views: np.ndarray | None = None) -> Any:
        """Back projection, of the data's kind of array."""
        ...

    def prepare(self, images: np.ndarray) -> Any:
        """Images (n, x, y, z) in the backend's own order; item k is image k."""
        ...

    def forward_prepared(self, prepared: Any, views: np.ndarray | None = None) -> np.ndarray:
        """`forward` of one prepared image."""
        ...

    def new_sums(self, images: int) -> Any:
        """Accumulators for the back projections of several images; a slice is a view."""
        ...

    def add_back(self, sums: Any, views: np.ndarray, data: np.ndarray) -> None:
        """Add the back projection of data (n, views, radial, tof, plane)."""
        ...

    def add_em_back(
        self, sums: Any, views: np.ndarray, data: np.ndarray, prepared: Any, background: np.ndarray | None = None
    ) -> None:
        """Add the back projection of data / (forward(image) + background).

        Bins where nothing is expected, or whose data are not finite, are left out.
        """
        ...

    def image_of(self, sums: Any) -> np.ndarray:
        """Images (n, x, y, z) of finished accumulators."""
        ...
