"""The projector of a sinogram layout computed by parallelproj (https://parallelproj.readthedocs.io), where it is installed.

Versions 1.x and 2.x name and order things differently; `load_library` gives both as one small table of calls, and
`ParallelprojProjector` knows only that table.
"""

import ctypes
import functools
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from petsim.geometry.sinogram import TOF_SIGMAS, SinogramLayout
from petsim.projectors.contract import support_mask

LIBRARY_VARIABLE = "PETSIM_PARALLELPROJ_LIB"
"""Environment variable with the path of a C library (libparallelproj.so or libparallelproj_c.so)."""

END_POINT_BYTES = 128_000_000
"""LORs are projected in chunks whose end points take no more than this."""


class Tof(NamedTuple):
    """TOF bins along a LOR: their width, the kernel's standard deviation (mm), its cut (standard deviations), how many."""

    width_mm: float
    sigma_mm: float
    sigmas: float
    bins: int


@dataclass(frozen=True)
class Library:
    """parallelproj's calls, the same for every version.

    Arrays are float32 and C-contiguous. `start` and `end` are (n, 3) in mm, `origin` is the center of voxel (0, 0, 0) and
    `voxel` its size, (3,) in mm. Values are (n,), for TOF sinograms (n, bins); bin 0 lies nearest to `start`. Forward calls
    overwrite `values`, back calls add to `image`. List-mode calls take the events' bins, int16 (n,), before `tof`.

    Attributes
    ----------
    version, how : str
        "1.10.2", say, and what it was loaded from.
    forward, back : callable
        (start, end, image, origin, voxel, values)
    tof_sino_forward, tof_sino_back : callable
        (start, end, image, origin, voxel, values, tof)
    tof_list_forward, tof_list_back : callable
        (start, end, image, origin, voxel, values, bins, tof)
    """

    version: str
    how: str
    forward: Callable[..., None]
    back: Callable[..., None]
    tof_sino_forward: Callable[..., None]
    tof_sino_back: Callable[..., None]
    tof_list_forward: Callable[..., None]
    tof_list_back: Callable[..., None]


def load_library(path: str | None = None) -> Library:
    """Load parallelproj.

    Parameters
    ----------
    path : str, optional
        A C library. None: the C library that the environment variable PETSIM_PARALLELPROJ_LIB names, else the module
        parallelproj_core (2.x), else the module parallelproj (1.x).

    Raises
    ------
    DataError
        Nothing of these is there, or the library is not parallelproj's.
    """
    return _load(path, os.environ.get(LIBRARY_VARIABLE))


@functools.cache
def _load(path: str | None, variable: str | None) -> Library:
    if path is not None:
        return _from_file(path)
    if variable:
        return _from_file(variable)
    found = _from_core_module() or _from_module()
    if found is not None:
        return found
    raise DataError(
        f"parallelproj is not installed and {LIBRARY_VARIABLE} names no library; "
        f"run `conda install -c conda-forge parallelproj`, or set {LIBRARY_VARIABLE} to libparallelproj.so"
    )


def _from_core_module() -> Library | None:
    """Python bindings of 2.x."""
    try:
        core: Any = importlib.import_module("parallelproj_core")
    except ImportError:
        return None

    def with_tof(call: Callable) -> Callable:
        def project(start, end, image, origin, voxel, values, *rest):
            *bins, tof = rest
            call(start, end, image, origin, voxel, values, tof.width_mm, _one(tof.sigma_mm), _one(0), *bins, tof.bins,
                 tof.sigmas)  # fmt: skip

        return project

    calls = (core.joseph3d_tof_sino_fwd, core.joseph3d_tof_sino_back, core.joseph3d_tof_lm_fwd, core.joseph3d_tof_lm_back)
    return Library(core.__version__, "module parallelproj_core", core.joseph3d_fwd, core.joseph3d_back,
                   *map(with_tof, calls))  # fmt: skip


def _from_module() -> Library | None:
    """Python functions of 1.x, which allocate what they return."""
    os.environ.setdefault("PARALLELPROJ_SILENT_IMPORT", "1")  # It greets on standard output otherwise.
    try:
        module: Any = importlib.import_module("parallelproj")
        version = metadata.version("parallelproj")
    except (ImportError, OSError):  # OSError: the C library that PARALLELPROJ_C_LIB names cannot be loaded.
        return None
    if not hasattr(module, "joseph3d_fwd_tof_sino"):
        return None

    def forward(start, end, image, origin, voxel, values):
        values[:] = module.joseph3d_fwd(start, end, image, origin, voxel)

    def back(start, end, image, origin, voxel, values):
        image += module.joseph3d_back(start, end, image.shape, origin, voxel, values)

    def rest_of(tof):
        return tof.width_mm, _one(tof.sigma_mm), _one(0), tof.sigmas

    def sino_forward(start, end, image, origin, voxel, values, tof):
        values[:] = module.joseph3d_fwd_tof_sino(start, end, image, origin, voxel, *rest_of(tof), tof.bins)

    def sino_back(start, end, image, origin, voxel, values, tof):
        image += module.joseph3d_back_tof_sino(start, end, image.shape, origin, voxel, values, *rest_of(tof), tof.bins)

    def list_forward(start, end, image, origin, voxel, values, bins, tof):
        values[:] = module.joseph3d_fwd_tof_lm(start, end, image, origin, voxel, *rest_of(tof), _centered(bins, tof))

    def list_back(start, end, image, origin, voxel, values, bins, tof):
        image += module.joseph3d_back_tof_lm(start, end, image.shape, origin, voxel, values, *rest_of(tof),
                                             _centered(bins, tof))  # fmt: skip

    return Library(version, "module parallelproj", forward, back, sino_forward, sino_back, list_forward, list_back)


def _from_file(path: str) -> Library:
    """A C library, 2.x or 1.x."""
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise DataError(f"cannot load parallelproj's C library ({error}); check the path in {LIBRARY_VARIABLE}") from None
    if hasattr(library, "parallelproj_version"):
        library.parallelproj_version.restype = ctypes.c_char_p
        version = library.parallelproj_version().decode()
        names = ("joseph3d_fwd", "joseph3d_back", "joseph3d_tof_sino_fwd", "joseph3d_tof_sino_back", "joseph3d_tof_lm_fwd",
                 "joseph3d_tof_lm_back")  # fmt: skip
        # First device and the default number of its threads; a library without CUDA ignores both.
        device = (ctypes.c_int(0), ctypes.c_int(64))
    elif hasattr(library, "joseph3d_fwd_tof_sino"):
        # 1.x tells its version in the file's name only: libparallelproj_c.so.1.10.2.
        version = Path(path).resolve().name.partition(".so.")[2] or "1.x"
        names = ("joseph3d_fwd", "joseph3d_back", "joseph3d_fwd_tof_sino", "joseph3d_back_tof_sino", "joseph3d_fwd_tof_lm",
                 "joseph3d_back_tof_lm")  # fmt: skip
        device = ()
    else:
        raise DataError(f"{path} is not parallelproj's C library; set {LIBRARY_VARIABLE} to libparallelproj.so")
    old = not device

    def call(name: str) -> Callable:
        function = getattr(library, name)
        function.restype = None

        def project(start, end, image, origin, voxel, values, *rest):
            arguments = [*map(_pointer, (start, end, image, origin, voxel, values)), ctypes.c_longlong(len(start)),
                         (ctypes.c_int * 3)(*image.shape)]  # fmt: skip
            if rest:
                *bins, tof = rest
                same_for_all = (ctypes.c_ubyte(0), ctypes.c_ubyte(0))
                sigma, offset = (ctypes.c_float * 1)(tof.sigma_mm), (ctypes.c_float * 1)(0.0)
                bins = [_centered(b, tof) if old else b for b in bins]
                arguments += [ctypes.c_float(tof.width_mm), sigma, offset, ctypes.c_float(tof.sigmas)]
                arguments += [_pointer(b, np.int16) for b in bins]
                arguments += [] if old and bins else [ctypes.c_short(tof.bins)]
                arguments += same_for_all
            function(*arguments, *device)

        return project

    return Library(version, f"C library {Path(path).name}", *map(call, names))


def _pointer(array: np.ndarray, dtype: type = np.float32) -> ctypes.c_void_p:
    """Address of a contiguous array; wrong kinds of array would be read as garbage."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(f"parallelproj needs contiguous {np.dtype(dtype)} arrays, got {array.dtype}")
    return ctypes.c_void_p(array.ctypes.data)


def _one(value: float) -> np.ndarray:
    """A TOF parameter that is the same for all LORs."""
    return np.array([value], np.float32)


def _centered(bins: np.ndarray, tof: Tof) -> np.ndarray:
    """TOF bins as 1.x counts them: 0 is the middle one."""
    return (bins - tof.bins // 2).astype(np.int16)


class ParallelprojProjector:
    """`SinogramProjector` with parallelproj's kernels: same arguments, methods, units and order of data.

    They differ in what the kernels do: 2.x leaves weight out at the image border, and 1.x lets the image fade over one voxel
    beyond its outermost planes, where ours reach to their outer faces; steps
    follow z where a LOR climbs more than it runs along x or y; TOF weights are cut and normalized by bins; and TOF back
    projection skips LORs whose bins sum to exactly 0. Sums depend on the order of atomic additions, so repeated back
    projections agree to rounding only.

    Parameters
    ----------
    layout, grid, center_mm, support_mm, shift, tof
        As for `SinogramProjector`; any axial voxel size will do.

    Raises
    ------
    DataError
        parallelproj is not there.
    """

    def __init__(
        self,
        layout: SinogramLayout,
        grid: Grid,
        center_mm: tuple[float, float, float] | None = None,
        support_mm: float | None = None,
        shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
        tof: bool = True,
    ) -> None:
        load_library()
        self.layout, self.grid, self.shift = layout, grid, shift
        self.bins = layout.tof_bins if tof else 1
        self.support_mm = float(support_mm or 0.0)
        center = grid.center_mm if center_mm is None else center_mm
        self._origin = np.subtract(grid.origin_mm, center).astype(np.float32)
        self._voxel = np.array(grid.spacing_mm, np.float32)
        self.support = support_mask(grid, center_mm, support_mm)
        self._z = layout.plane_z_mm(shift[1])
        self._tof = Tof(layout.tof_bin_mm, layout.tof_sigma_mm, TOF_SIGMAS, self.bins) if tof and layout.is_tof else None

    def data_shape(self, views: int) -> tuple[int, int, int, int]:
        """Shape (views, radial, tof, plane) of the data of some views."""
        return views, self.layout.radials, self.bins, self.layout.planes

    def _chunks(self, views: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """(view, radial) rows of the data as a slice of their flat index, with the end points of their LORs."""
        lines = self.layout.transaxial_ends(views, self.shift[0], self.shift[2]).reshape(-1, 2, 2)
        at_once = max(1, END_POINT_BYTES // (2 * 3 * 4 * len(self._z)))
        for first in range(0, len(lines), at_once):
            part = lines[first : first + at_once]
            ends = np.empty((2, len(part), len(self._z), 3), np.float32)
            ends[..., :2] = np.moveaxis(part, 1, 0)[:, :, None]
            ends[..., 2] = self._z.T[:, None]
            start, end = ends.reshape(2, -1, 3)
            yield slice(first, first + len(part)), start, end

    def _forward(self, image: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Values (lor, tof) of one chunk."""
        values = np.empty((len(start), self.bins), np.float32)
        if self._tof is None:
            load_library().forward(start, end, image, self._origin, self._voxel, values[:, 0])
        else:
            load_library().tof_sino_forward(start, end, image, self._origin, self._voxel, values, self._tof)
        return values

    def _add_back(self, image: np.ndarray, start: np.ndarray, end: np.ndarray, values: np.ndarray) -> None:
        if self._tof is None:
            load_library().back(start, end, image, self._origin, self._voxel, values[:, 0])
        else:
            load_library().tof_sino_back(start, end, image, self._origin, self._voxel, values, self._tof)

    def _values(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n, tof, plane) of the data in parallelproj's order (lor, tof)."""
        return np.ascontiguousarray(rows.swapaxes(1, 2), np.float32).reshape(-1, self.bins)

    def forward(self, image: np.ndarray, views: np.ndarray | None = None) -> np.ndarray:
        """Line integrals.

        Parameters
        ----------
        image : ndarray
            (x, y, z) on the grid.
        views : ndarray of int, optional
            Views wanted; None: all.

        Returns
        -------
        ndarray
            float32 (views, radial, tof, plane), image unit x mm.
        """
        return self.forward_prepared(self.prepare(image[None])[0], views)

    def forward_prepared(self, prepared: np.ndarray, views: np.ndarray | None = None) -> np.ndarray:
        """`forward` of one image that went through `prepare`."""
        views = np.arange(self.layout.views) if views is None else np.asarray(views)
        data = np.empty(self.data_shape(len(views)), np.float32)
        rows = data.reshape(-1, *data.shape[2:])
        for chunk, start, end in self._chunks(views):
            values = self._forward(prepared, start, end)
            rows[chunk] = values.reshape(-1, data.shape[3], self.bins).swapaxes(1, 2)
        return data

    def adjoint(self, data: np.ndarray, views: np.ndarray | None = None) -> np.ndarray:
        """Back projection: the transpose of `forward`. `data` is (views, radial, tof, plane); returns (x, y, z)."""
        views = np.arange(self.layout.views) if views is None else np.asarray(views)
        if data.shape != self.data_shape(len(views)):
            raise ValueError(f"data have shape {data.shape}, expected {self.data_shape(len(views))}")
        sums = self.new_sums(1)
        self.add_back(sums, views, data[None])
        return self.image_of(sums)[0]

    def new_sums(self, images: int) -> np.ndarray:
        """Zeroed accumulators for the back projections of several images."""
        return np.zeros((images, *self.grid.shape), np.float32)

    def image_of(self, sums: np.ndarray) -> np.ndarray:
        """Images (n, x, y, z) of finished accumulators."""
        return sums * self.support

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Images (n, x, y, z) as the kernels read them."""
        if images.shape[1:] != self.grid.shape:
            raise ValueError(f"image has shape {images.shape[1:]}, the projector's grid {self.grid.shape}")
        return np.ascontiguousarray(images * self.support, np.float32)

    def add_back(self, sums: np.ndarray, views: np.ndarray, data: np.ndarray) -> None:
        """Add the back projection of some views.

        Parameters
        ----------
        sums : ndarray
            Accumulators of `new_sums`.
        views : ndarray of int
        data : ndarray
            (n, views, radial, tof, plane), float32 or unsigned integers.
        """
        rows = data.reshape(len(data), -1, *data.shape[3:])
        for chunk, start, end in self._chunks(views):
            for image, row in zip(sums, rows, strict=True):
                self._add_back(image, start, end, self._values(row[chunk]))

    def add_em_back(
        self,
        sums: np.ndarray,
        views: np.ndarray,
        data: np.ndarray,
        prepared: np.ndarray,
        background: np.ndarray | None = None,
    ) -> None:
        """Add the back projection of data / (forward(image) + background).

        Bins where nothing is expected, or whose data are not finite, are left out. `background` is shaped as `data`.
        """
        rows = data.reshape(len(data), -1, *data.shape[3:])
        more = None if background is None else background.reshape(rows.shape)
        for chunk, start, end in self._chunks(views):
            for m, (image, row, estimate) in enumerate(zip(sums, rows, prepared, strict=True)):
                expected = self._forward(estimate, start, end)
                if more is not None:
                    expected += self._values(more[m, chunk])
                counts = self._values(row[chunk])
                used = (expected > 0) & np.isfinite(counts)
                ratio = np.divide(counts, expected, out=np.zeros_like(expected), where=used)
                self._add_back(image, start, end, ratio)
