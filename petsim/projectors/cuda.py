"""The projectors of sinograms and list-mode events on a GPU: CUDA through CuPy, kernels in joseph.cu.

Numbers agree with the CPU's to 1e-5 of a line integral. Forward projections are the same in every run. Back projections are
not, bit for bit: float32 sums depend on the order of atomic additions, and repeated runs agree to rounding only. Planes add
to their line's tile in shared memory, tiles to the image once a voxel and step, so what a voxel sums in an order of chance
are a few terms of every line through it (for list-mode, of every event through it).

CuPy is imported when a projector is made, never before.
"""

import functools
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from petsim.geometry.sinogram import TOF_SIGMAS, SinogramLayout
from petsim.gpu import Gpu, fill
from petsim.projectors.listmode import Events, ListmodeProjector, Tof
from petsim.projectors.sinogram import TOF_CDF, SinogramProjector

SOURCE = Path(__file__).with_name("joseph.cu")

# Constants of joseph.cu.
THREADS = 256
MAX_TILE, TOF_TILE, LANES, DOSES, PAD, CLIMB_BITS = 64, 16, 4, 4, 2, 18

SHARED_FLOATS = (7500, 11500)
"""Shared memory of a block: the first, with which several fit a multiprocessor, unless tiles get shorter than TOF_TILE."""

CHUNK_BYTES = 1 << 30
"""Data on their way between GPU and main memory, or expected by an EM update, take no more than this at once."""

_CPU = 1
"""DLPack's number for main memory."""

_GRID = np.dtype([("voxel_mm", "f8", 3), ("origin_mm", "f8", 3), ("support_mm", "f8"), ("shape", "i4", 3)], align=True)
_TOF = np.dtype([("bins", "i4"), ("width_mm", "f4"), ("cut_mm", "f4"), ("cdf", "f4", 11)], align=True)
SINOGRAM = np.dtype(
    [("grid", _GRID), ("tof", _TOF), ("planes", "i4"), ("items", "i4"), ("tile", "i4")]
    + [(name, "u8") for name in ("ends", "middle", "climb", "lanes", "image", "expected", "data", "back")],
    align=True,
)
LISTMODE = np.dtype(
    [("grid", _GRID), ("tof", _TOF), ("events", "i8"), ("doses", "i4"), ("first_dose", "i4")]
    + [(name, "u8") for name in ("crystal_xy_mm", "ring_z_mm", "address", "tof_bin", "event_doses", "weight", "background",
                                 "images", "values", "backs")],
    align=True,
)  # fmt: skip
"""Parameters of the kernels, laid out as C++ does; pointers are integers."""


@functools.cache
def cuda() -> Any:
    """The GPU; DataError with what to do about it where there is none."""
    return Gpu(SOURCE)


def _taken(array: Any) -> Any:
    """What a caller gave as a NumPy array, or as a CuPy one if it lies on a GPU; without a copy."""
    if isinstance(array, (np.ndarray, cuda().xp.ndarray)):
        return array
    if hasattr(array, "__dlpack_device__"):
        return (np if array.__dlpack_device__()[0] == _CPU else cuda().xp).from_dlpack(array)
    return np.asarray(array)


def _given_back(result: Any, given: Any) -> Any:
    """A result on the device as the kind of array that the caller gave."""
    if isinstance(given, cuda().xp.ndarray):
        return result
    if isinstance(given, np.ndarray) or not hasattr(given, "__dlpack_device__"):
        return cuda().to_host(result)
    if given.__dlpack_device__()[0] == _CPU:
        result = cuda().to_host(result)
    return import_module(type(given).__module__.partition(".")[0]).from_dlpack(result)


def _new_parameters(dtype: np.dtype, grid: Grid, center_mm: Any, support_mm: float, tof: Tof | None) -> np.ndarray:
    parameters = np.zeros(1, dtype)
    center = grid.center_mm if center_mm is None else center_mm
    parameters["grid"] = grid.spacing_mm, np.subtract(grid.origin_mm, center), support_mm, grid.shape
    if tof is not None:
        parameters["tof"] = tof.bins, tof.bin_mm, TOF_SIGMAS * tof.sigma_mm, TOF_CDF
    return parameters


def _tile_steps(row: int, most: int, more_rows: int) -> int:
    """Steps of a tile: as many rows of `row` floats as fit the shared memory."""
    steps = 0
    for floats in SHARED_FLOATS:
        steps = min(most, floats // row - more_rows)
        if steps >= TOF_TILE:
            break
    if steps < 1:
        raise DataError(f"a grid of {row - 2} axial voxels is too long for a GPU's shared memory; use larger axial voxels")
    return steps


def _lanes(climb: np.ndarray) -> np.ndarray:
    """int32 (LANES, n): planes with one |z2 - z1| (`climb`, in units of 2^-CLIMB_BITS voxels), -1 where there are no more.

    Neighboring columns hold neighboring planes.
    """
    columns = []
    for size in np.unique(np.abs(climb)):
        planes = np.flatnonzero(np.abs(climb) == size)
        filled = np.full(-(-len(planes) // LANES) * LANES, -1)
        filled[: len(planes)] = planes
        columns.append(filled.reshape(LANES, -1))
    lanes = np.concatenate(columns, axis=1)
    # The first of a column tells the kernel what its planes have in common.
    assert (lanes[0] >= 0).all()
    return lanes.astype(np.int32)


class CudaProjector:
    """`petsim.projectors.sinogram.SinogramProjector` on a GPU: same arguments, methods, units and order of data.

    `prepare` and `new_sums` return CuPy arrays. `forward` and `adjoint` take NumPy or CuPy arrays, or anything with
    `__dlpack__` (torch tensors), which is read where it lies, and return the same kind. With arrays on the GPU all data
    must fit its memory; NumPy arrays pass through it in chunks. Only back projections depend on the order of atomic
    additions, see the module's docstring.

    Parameters
    ----------
    layout, grid, center_mm, support_mm, shift, tof
        As for `SinogramProjector`; any axial voxel size and any gaps cost the same.

    Raises
    ------
    DataError
        There is no CuPy or no CUDA device, or the grid has thousands of axial voxels.
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
        xp = cuda().xp
        self._cpu = SinogramProjector(layout, grid, center_mm, support_mm, shift, tof)
        self.layout, self.grid, self.shift, self.bins = layout, grid, shift, self._cpu.bins
        self.support_mm, self.support = self._cpu.support_mm, self._cpu.support
        self._with_tof = tof and layout.is_tof
        row = grid.shape[2] + 2
        more_rows = 0 if self._with_tof else 3
        tile = _tile_steps(row, TOF_TILE if self._with_tof else MAX_TILE, more_rows)
        self._shared_floats = row * (tile + more_rows)

        kernel = Tof(self.bins, layout.tof_bin_mm, layout.tof_sigma_mm) if self._with_tof else None
        parameters = _new_parameters(SINOGRAM, grid, center_mm, self.support_mm, kernel)
        z = (layout.plane_z_mm(shift[1]) - parameters["grid"]["origin_mm"][0, 2]) / grid.spacing_mm[2]
        climb = np.round(np.diff(z)[:, 0] * 2**CLIMB_BITS)
        if np.abs(climb).max() >= 2**31:
            raise DataError(f"LORs climb more than {2 ** (31 - CLIMB_BITS)} axial voxels; use larger ones")
        lanes = _lanes(climb)
        self._arrays = {
            "middle": xp.asarray(np.round(z.mean(axis=1) * 2**32).astype(np.int64)),
            "climb": xp.asarray(climb.astype(np.int32)),
            "lanes": xp.asarray(lanes),
        }
        work = lanes.shape[1] if self._with_tof else layout.planes
        self._threads = min(THREADS, -(-max(work, row) // 32) * 32)
        self._parameters = fill(cuda(), parameters, planes=layout.planes, items=lanes.shape[1], tile=tile)

    def data_shape(self, views: int) -> tuple[int, int, int, int]:
        """Shape (views, radial, tof, plane) of the data of some views."""
        return self._cpu.data_shape(views)

    def _lines(self, views: np.ndarray | None) -> Any:
        """Transaxial ends (lines, 4) in mm of all (view, radial)."""
        views = np.arange(self.layout.views) if views is None else np.asarray(views)
        return cuda().xp.asarray(self.layout.transaxial_ends(views, self.shift[0], self.shift[2]).reshape(-1, 4))

    def _chunks(self, lines: int) -> Iterator[slice]:
        at_once = max(1, CHUNK_BYTES // (4 * self.bins * self.layout.planes))
        for first in range(0, lines, at_once):
            yield slice(first, min(first + at_once, lines))

    def _launch(self, direction: str, lines: Any, **arrays: Any) -> None:
        kernel = f"sinogram_{'tof_' if self._with_tof else ''}{direction}"
        parameters = fill(cuda(), self._parameters.copy(), ends=lines, **self._arrays, **arrays)
        cuda().launch(kernel, parameters, len(lines), self._threads, self._shared_floats)

    def _project(self, image: Any, lines: Any) -> Any:
        """Line integrals (lines, tof, plane) on the device."""
        data = cuda().xp.zeros((len(lines), self.bins, self.layout.planes), np.float32)
        self._launch("forward", lines, image=image, data=data)
        return data

    def prepare(self, images: Any) -> Any:
        """Images (n, x, y, z) as the kernels read them."""
        xp = cuda().xp
        if images.shape[1:] != self.grid.shape:
            raise ValueError(f"image has shape {images.shape[1:]}, the projector's grid {self.grid.shape}")
        return xp.ascontiguousarray(xp.asarray(_taken(images)) * xp.asarray(self.support), np.float32)

    def forward(self, image: Any, views: np.ndarray | None = None) -> Any:
        """Line integrals.

        Parameters
        ----------
        image : array
            (x, y, z) on the grid.
        views : ndarray of int, optional
            Views wanted; None: all.

        Returns
        -------
        array
            float32 (views, radial, tof, plane), image unit x mm, of the image's kind.
        """
        taken = _taken(image)
        prepared = self.prepare(taken[None])[0]
        if isinstance(image, np.ndarray):
            return self.forward_prepared(prepared, views)
        lines = self._lines(views)
        data = self._project(prepared, lines)
        return _given_back(data.reshape(self.data_shape(len(lines) // self.layout.radials)), image)

    def forward_prepared(self, prepared: Any, views: np.ndarray | None = None) -> np.ndarray:
        """`forward` of one image that went through `prepare`, as a NumPy array."""
        lines = self._lines(views)
        data = np.empty(self.data_shape(len(lines) // self.layout.radials), np.float32)
        rows = data.reshape(len(lines), self.bins, -1)
        for chunk in self._chunks(len(lines)):
            rows[chunk] = cuda().to_host(self._project(prepared, lines[chunk]))
        return data

    def adjoint(self, data: Any, views: np.ndarray | None = None) -> Any:
        """Back projection: the transpose of `forward`. `data` is (views, radial, tof, plane); returns (x, y, z)."""
        views = np.arange(self.layout.views) if views is None else np.asarray(views)
        sums = self.new_sums(1)
        self.add_back(sums, views, _taken(data)[None])
        return _given_back(sums[0] * cuda().xp.asarray(self.support), data)

    def new_sums(self, images: int) -> Any:
        """Zeroed accumulators for the back projections of several images."""
        return cuda().xp.zeros((images, *self.grid.shape), np.float32)

    def image_of(self, sums: Any) -> np.ndarray:
        """Images (n, x, y, z) of finished accumulators, as a NumPy array."""
        return cuda().to_host(sums) * self.support

    def add_back(self, sums: Any, views: np.ndarray, data: Any) -> None:
        """Add the back projection of some views.

        Parameters
        ----------
        sums : cupy.ndarray
            Accumulators of `new_sums`.
        views : ndarray of int
        data : array
            (n, views, radial, tof, plane), float32 or unsigned integers.
        """
        self._back(sums, views, data, None, None)

    def add_em_back(self, sums: Any, views: np.ndarray, data: Any, prepared: Any, background: Any = None) -> None:
        """Add the back projection of data / (forward(image) + background).

        Bins where nothing is expected, or whose data are not finite, are left out. `background` is shaped as `data`.
        """
        self._back(sums, views, data, prepared, background)

    def _back(self, sums: Any, views: np.ndarray, data: Any, prepared: Any, background: Any) -> None:
        xp = cuda().xp
        lines, data = self._lines(views), _taken(data)
        expected = (len(sums), *self.data_shape(len(views)))
        if tuple(data.shape) != expected:
            raise ValueError(f"data have shape {tuple(data.shape)}, expected {expected}")
        for m, values in enumerate(data):
            rows = values.reshape(len(lines), self.bins, self.layout.planes)
            more = None if background is None else background[m].reshape(rows.shape)
            for chunk in self._chunks(len(lines)):
                arrays = {"data": xp.ascontiguousarray(xp.asarray(rows[chunk]), np.float32)}
                if prepared is not None:
                    arrays["expected"] = self._project(prepared[m], lines[chunk])
                    if more is not None:
                        arrays["expected"] += xp.asarray(more[chunk])
                self._launch("back", lines[chunk], back=sums[m], **arrays)


class CudaListmodeProjector:
    """`petsim.projectors.listmode.ListmodeProjector` on a GPU: same arguments, methods, units and order of events.

    Takes NumPy or CuPy arrays, or anything with `__dlpack__`, and returns the same kind. Only back projections depend on
    the order of atomic additions, see the module's docstring.

    Parameters
    ----------
    crystal_xy_mm, ring_z_mm, grid, events, center_mm, support_mm, tof
        As for `ListmodeProjector`.

    Raises
    ------
    DataError
        There is no CuPy or no CUDA device; or what `ListmodeProjector` raises.
    """

    def __init__(
        self,
        crystal_xy_mm: np.ndarray,
        ring_z_mm: np.ndarray,
        grid: Grid,
        events: Events,
        center_mm: tuple[float, float, float] | None = None,
        support_mm: float | None = None,
        tof: Tof | None = None,
    ) -> None:
        xp = cuda().xp
        cpu = ListmodeProjector(crystal_xy_mm, ring_z_mm, grid, events, center_mm, support_mm, tof)
        self.grid, self.tof, self.support = grid, tof, cpu.support
        self._parameters = _new_parameters(LISTMODE, grid, center_mm, float(support_mm or 0.0), tof)
        # Sorted by geometry, neighboring threads read neighboring voxels.
        order = np.arange(len(events)) if cpu._events.order is None else cpu._events.order
        assert events.doses is not None
        address = np.stack([events.crystal1, events.ring1, events.crystal2, events.ring2])
        self._arrays = {
            "crystal_xy_mm": xp.asarray(np.ascontiguousarray(crystal_xy_mm, np.float64)),
            "ring_z_mm": xp.asarray(np.ascontiguousarray(ring_z_mm, np.float64)),
            "address": xp.asarray(np.take(address, order, axis=1)),
            "event_doses": xp.asarray(events.doses[order]),
        }
        if tof is not None:
            assert events.tof_bin is not None
            self._arrays["tof_bin"] = xp.asarray(events.tof_bin[order])
        self._order = xp.asarray(order)

    def __len__(self) -> int:
        return len(self._order)

    def _launch(self, mode: str, doses: int, **arrays: Any) -> None:
        """Run a kernel for all doses, some at a time; `arrays` with a dose axis are cut along it."""
        for first in range(0, doses, DOSES):
            part = slice(first, first + DOSES)
            cut = {name: array if array.ndim == 1 else array[part] for name, array in arrays.items()}
            parameters = fill(cuda(), self._parameters.copy(), events=len(self), doses=min(DOSES, doses - first),
                              first_dose=first, **self._arrays, **cut)  # fmt: skip
            cuda().launch(f"listmode_{mode}", parameters, -(-len(self) // THREADS), THREADS)

    def _padded(self, images: Any) -> Any:
        """Images (doses, x, y, z) with PAD voxels on every side: zeros, but axially copies of the outermost planes."""
        if tuple(images.shape[1:]) != self.grid.shape:
            raise ValueError(f"images have shape {tuple(images.shape)}, the projector's grid {self.grid.shape}")
        xp = cuda().xp
        padded = self._zeros(len(images))
        self._inside(padded)[:] = xp.asarray(images) * xp.asarray(self.support)
        padded[..., PAD - 1], padded[..., -PAD] = padded[..., PAD], padded[..., -PAD - 1]
        return padded

    def _zeros(self, doses: int) -> Any:
        return cuda().xp.zeros((doses, *(n + 2 * PAD for n in self.grid.shape)), np.float32)

    def _inside(self, padded: Any) -> Any:
        return padded[:, PAD:-PAD, PAD:-PAD, PAD:-PAD]

    def _images_of(self, backs: Any) -> Any:
        backs[..., PAD] += backs[..., PAD - 1]
        backs[..., -PAD - 1] += backs[..., -PAD]
        return self._inside(backs) * cuda().xp.asarray(self.support)

    def forward(self, images: Any) -> Any:
        """Line integrals of the events.

        Parameters
        ----------
        images : array
            (dose, x, y, z) on the grid, or (x, y, z), which is the first dose.

        Returns
        -------
        array
            float32 (dose, events), or (events,), image unit x mm; 0 at doses that the event does not belong to.
        """
        taken = _taken(images)
        padded = self._padded(taken if taken.ndim == 4 else taken[None])
        values = cuda().xp.zeros((len(padded), len(self)), np.float32)
        self._launch("forward", len(padded), images=padded, values=values)
        out = cuda().xp.empty_like(values)
        out[:, self._order] = values
        return _given_back(out if taken.ndim == 4 else out[0], images)

    def adjoint(self, values: Any) -> Any:
        """Back projection: the transpose of `forward`.

        Parameters
        ----------
        values : array
            (dose, events), or (events,) for the first dose.

        Returns
        -------
        array
            float32 (dose, x, y, z), or (x, y, z).
        """
        taken = _taken(values)
        if taken.ndim not in (1, 2) or taken.shape[-1] != len(self):
            raise ValueError(f"values have shape {tuple(taken.shape)}, the projector {len(self)} events")
        xp = cuda().xp
        ordered = xp.asarray(taken, np.float32).reshape(-1, len(self))[:, self._order]
        backs = self._zeros(len(ordered))
        self._launch("back", len(ordered), values=xp.ascontiguousarray(ordered), backs=backs)
        images = self._images_of(backs)
        return _given_back(images if taken.ndim == 2 else images[0], values)

    def em_back(self, images: Any, weight: Any = None, background: Any = None) -> Any:
        """Back projection of an EM update, in one pass: the adjoint of weight / (weight x forward(images) + background).

        Parameters
        ----------
        images : array
            (dose, x, y, z) or (x, y, z).
        weight : array, optional
            (events,): attenuation x normalization of an event's bin. None: 1.
        background : array, optional
            (events,), or (dose, events) where doses differ: expected counts besides trues of an event's bin. None: 0.

        Returns
        -------
        array
            float32, like `images`. An event of whose bin nothing is expected adds nothing.
        """
        xp = cuda().xp
        taken = _taken(images)
        padded = self._padded(taken if taken.ndim == 4 else taken[None])
        factors = {}
        for name, given, default in (("weight", weight, 1.0), ("background", background, 0.0)):
            factor = xp.full(len(self), default, np.float32) if given is None else xp.asarray(_taken(given), np.float32)
            if factor.shape != (len(self),) and (name == "weight" or factor.shape != (len(padded), len(self))):
                raise ValueError(f"{name} has shape {factor.shape}, the projector {len(self)} events")
            factors[name] = factor[..., self._order]
        factors["background"] = xp.ascontiguousarray(xp.broadcast_to(factors["background"], (len(padded), len(self))))
        backs = self._zeros(len(padded))
        self._launch("em", len(padded), images=padded, backs=backs, **factors)
        out = self._images_of(backs)
        return _given_back(out if taken.ndim == 4 else out[0], images)
