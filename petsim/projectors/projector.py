"""The projector for a notebook: any array in, the same kind out."""

from copy import copy
from functools import partial
from typing import Any

import numpy as np

from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from petsim.geometry.scanner import Scanner, load_scanner
from petsim.geometry.sinogram import SinogramLayout, fitting_grid, preset_layout
from petsim.projectors.choose import choose_backend, projector_class
from petsim.settings import PRESETS


class Projector:
    """Line integrals along the LORs of a scanner, `y = P(x)`, and the exact adjoint, `x = P.T(y)`.

    Takes and returns NumPy or CuPy arrays or torch tensors; torch differentiates through both directions. Leading axes
    (batch, channel) are kept. Values are float32, images (x, y, z), data (view, radial, tof, plane) in image unit x mm.

    Parameters
    ----------
    scanner : str, Scanner or SinogramLayout
        A scanner's name or TOML file takes the layout of `preset`; a layout is taken as it is.
    grid : Grid, optional
        Its center is the scanner's. None: what `preset` and `fov_mm` give, over the scanner's whole length.
    preset : str
        "fast", "standard" or "full".
    fov_mm : float
        Diameter of the field of view that the preset's sinogram and grid cover.
    tof : bool
        False leaves out the TOF bins of a scanner that has them.
    backend, device : str
        "auto", "numba", "cuda" or "parallelproj", and "auto", "cpu" or "cuda".

    Attributes
    ----------
    layout, grid
    views : ndarray
        Numbers of the views that are projected.
    image_shape, data_shape : tuple of int
    backend, reason : str
        What projects, and why that was chosen.

    Raises
    ------
    UsageError, DataError
        With one line that says what is wrong.
    """

    def __init__(
        self,
        scanner: str | Scanner | SinogramLayout,
        grid: Grid | None = None,
        *,
        preset: str = "standard",
        fov_mm: float = 480.0,
        tof: bool = True,
        backend: str = "auto",
        device: str = "auto",
    ) -> None:
        if preset not in PRESETS:
            raise UsageError(f"preset: '{preset}' is not known; known are {', '.join(PRESETS)}")
        chosen = PRESETS[preset]
        if isinstance(scanner, SinogramLayout):
            self.layout = scanner
        else:
            self.layout = preset_layout(load_scanner(scanner) if isinstance(scanner, str) else scanner, chosen, fov_mm)
        length = self.layout.scanner.axial_length_mm
        self.grid = grid or fitting_grid(self.layout, chosen.voxel_mm, chosen.voxel_mm, fov_mm, length, (0.0, 0.0, 0.0))
        self.backend, self.reason = choose_backend(backend, device)
        self._operator = projector_class(self.backend)(self.layout, self.grid, tof=tof)
        self.views = np.arange(self.layout.views)
        self.image_shape = self.grid.shape
        self.data_shape = self._operator.data_shape(self.layout.views)

    def subset(self, number: int, subsets: int) -> "Projector":
        """The projector of an ordered subset: every `subsets`-th view, from view `number` on.

        Its `views` are those of this projector's data that it takes and returns.
        """
        if not 0 <= number < subsets <= self.layout.views:
            raise UsageError(f"subset {number} of {subsets}: there are {self.layout.views} views")
        part = copy(self)
        part.views = self.layout.subset_views(number, subsets)
        part.data_shape = self._operator.data_shape(len(part.views))
        return part

    def __repr__(self) -> str:
        return (
            f"Projector({self.layout.scanner.name}: image {self.image_shape} -> data {self.data_shape}, "
            f"{self.backend}: {self.reason})"
        )

    def __call__(self, image: Any) -> Any:
        """Forward projection of images (..., x, y, z)."""
        return _apply(image, self._forward, self._adjoint)

    def adjoint(self, data: Any) -> Any:
        """Back projection of data (..., view, radial, tof, plane)."""
        return _apply(data, self._adjoint, self._forward)

    @property
    def T(self) -> "_Transpose":
        """The adjoint as an operator of its own."""
        return _Transpose(self)

    def _forward(self, images: Any) -> Any:
        return _one_by_one(images, partial(self._operator.forward, views=self.views), self.image_shape, "image")

    def _adjoint(self, data: Any) -> Any:
        return _one_by_one(data, partial(self._operator.adjoint, views=self.views), self.data_shape, "data")


class _Transpose:
    def __init__(self, projector: Projector) -> None:
        self.T = projector

    def __call__(self, data: Any) -> Any:
        """Back projection of data (..., view, radial, tof, plane)."""
        return self.T.adjoint(data)


def _apply(array: Any, apply: Any, transpose: Any) -> Any:
    if type(array).__module__.partition(".")[0] == "torch":
        from petsim.projectors.autograd import differentiable

        return differentiable(array, apply, transpose)
    return apply(array)


def _one_by_one(arrays: Any, apply: Any, shape: tuple[int, ...], what: str) -> Any:
    """Apply to every item of the leading axes; the result is of the items' kind."""
    if not hasattr(arrays, "shape"):
        arrays = np.asarray(arrays, np.float32)
    dims = len(shape)
    if tuple(arrays.shape[-dims:]) != shape:
        raise DataError(
            f"{what} has shape {tuple(arrays.shape)}, the projector's is {shape}; only leading axes may be added"
        )
    lead = tuple(arrays.shape[:-dims])
    if not lead:
        return apply(arrays)
    results = [apply(item) for item in arrays.reshape((-1, *shape))]
    if isinstance(results[0], np.ndarray):
        stacked = np.stack(results)
    else:
        import cupy  # pyright: ignore[reportMissingImports]

        stacked = cupy.stack([cupy.from_dlpack(r) for r in results])
    return stacked.reshape(lead + tuple(stacked.shape[1:]))
