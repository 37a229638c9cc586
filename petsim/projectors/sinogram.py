"""The projector of a sinogram layout on an image grid."""

import math

import numba as nb
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from scipy.special import ndtr

from data_recipes.grid import Grid
from petsim.geometry.sinogram import TOF_SIGMAS, SinogramLayout
from petsim.projectors import numba_sinogram as kernels
from petsim.projectors.contract import support_mask
from petsim.projectors.planes import plane_sets


def _tof_cdf() -> np.ndarray:
    """Polynomial p, highest power first, with x p(x^2) = integral of the cut and normalized Gaussian from 0 to x cuts.

    Its 11 coefficients are good to 1e-8.
    """
    nodes = np.cos((np.arange(200) + 0.5) * math.pi / 400)
    values = (ndtr(TOF_SIGMAS * nodes) - 0.5) / (2 * ndtr(TOF_SIGMAS) - 1) / nodes
    fit = Chebyshev.fit(nodes**2, values, 10, domain=[0, 1])
    return fit.convert(kind=Polynomial).coef[::-1].copy()


TOF_CDF = _tof_cdf()

BLOCKS = (48, 32, 24, 16)
"""Steps worked on at once: with TOF the most whose planes take no more than BLOCK_BYTES, to leave room in the L1 cache;
without always 48, since more would cost accuracy (the error grows with the square)."""

BLOCK_BYTES = 16384

PAD = 12
"""Voxels around a row beyond what a LOR climbs: those of its last interpolation, and 8 to which planes are rounded."""

PARTS = 4
"""Back projections are summed in this many fixed parts, whatever the number of threads."""


class SinogramProjector:
    """Line integrals (mm x image unit) along the LORs of a layout, and the exact adjoint.

    Joseph's method with steps along the transaxial axis that a LOR follows most closely; samples outside the image are
    zero, but its outermost planes reach to their outer faces.
    The grid must be centered on the scanner's axis transaxially in scanner coordinates, which are the grid's
    millimeters less `center_mm`.

    Parameters
    ----------
    layout : SinogramLayout
    grid : Grid
        Fastest where the axial voxel is the merged ring pitch divided by an integer (an even one for span > 1); with any
        other the planes are projected one by one, to the same accuracy.
    center_mm : tuple of float
        Position of the scanner's center in the grid's coordinates.
    support_mm : float, optional
        Radius of the cylinder outside which the image counts as zero; lines are cut there. None: the whole grid.
    shift : tuple of float
        Shift of all LORs, transaxially and axially, as a fraction of the merged crystal pitch, and how much deeper in the
        crystals, in mm, both ends lie (sub-crystal rays).
    tof : bool
        False gives the projector of the same LORs without TOF bins.

    Attributes
    ----------
    support : ndarray
        bool, broadcasts to the grid's shape: voxels that count.
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
        self.layout, self.grid, self.shift = layout, grid, shift
        self.bins = layout.tof_bins if tof else 1
        center = grid.center_mm if center_mm is None else center_mm
        origin = [o - c for o, c in zip(grid.origin_mm, center, strict=True)]
        self.support_mm = float(support_mm or 0.0)
        nx, ny, nz = grid.shape
        vx, vy, vz = grid.spacing_mm
        self._geometry = np.array([nx, ny, vx, vy, origin[0], origin[1]])
        self._sets, self._groups, self.phases = plane_sets(layout.plane_z_mm(shift[1]), vz)
        self.support = support_mask(grid, center_mm, support_mm)

        # Voxels (of one phase) that a LOR can climb from one step to the next, and over a block of steps.
        self._ends = layout.transaxial_ends(np.arange(layout.views), shift[0], shift[2])
        shortest = np.hypot(*np.moveaxis(self._ends[..., 2:] - self._ends[..., :2], -1, 0)).min()
        climb = np.abs(self._sets[:, 0]).max() / shortest * math.sqrt(2) * max(vx, vy) / vz / self.phases
        per_phase = -(-nz // self.phases)
        for block in BLOCKS if self.bins > 1 else BLOCKS[:1]:
            if (block + 3) * self.phases * per_phase * 4 <= BLOCK_BYTES:
                break
        self._block = block
        pad = math.ceil(block * climb) + PAD
        self._z_geometry = np.array([nz, vz, origin[2], self.phases, pad])

        if tof and layout.is_tof:
            self._tof = np.array([layout.tof_bins, layout.tof_bin_mm, TOF_SIGMAS * layout.tof_sigma_mm])
        else:
            self._tof = np.array([1.0, 0.0, 0.0])

    def _views(self, views: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        views = np.arange(self.layout.views) if views is None else np.asarray(views)
        return views, self._ends[views]

    def data_shape(self, views: int) -> tuple[int, int, int, int]:
        """Shape (views, radial, tof, plane) of the data of some views."""
        return views, self.layout.radials, self.bins, self.layout.planes

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
        """`forward` of one image that went through `prepare` (of this projector, or one with the same grid)."""
        views, ends = self._views(views)
        data = np.empty(self.data_shape(len(views)), np.float32)
        kernels.forward(ends, self._geometry, self.support_mm, self._sets, self._groups, self._z_geometry,
                        self._tof, TOF_CDF, self._block, prepared, data)  # fmt: skip
        return data

    def adjoint(self, data: np.ndarray, views: np.ndarray | None = None) -> np.ndarray:
        """Back projection: the transpose of `forward`. `data` is (views, radial, tof, plane); returns (x, y, z)."""
        views, _ = self._views(views)
        if data.shape != self.data_shape(len(views)):
            raise ValueError(f"data have shape {data.shape}, expected {self.data_shape(len(views))}")
        sums = self.new_sums(1)
        self.add_back(sums, views, np.asarray(data, np.float32)[None])
        return self.image_of(sums)[0]

    def _order_shape(self) -> tuple[int, int, int]:
        """Shape of an image in the kernels' order: one zero voxel around (x, y), z split by phase, Z_PAD around it."""
        nx, ny, nz = self.grid.shape
        return (nx + 2) * (ny + 2), self.phases, -(-nz // self.phases) + 2 * kernels.Z_PAD

    def new_sums(self, images: int) -> np.ndarray:
        """Zeroed accumulators for the back projections of several images."""
        return np.zeros((images, PARTS, *self._order_shape()), np.float32)

    def image_of(self, sums: np.ndarray) -> np.ndarray:
        """Images (n, x, y, z) of finished accumulators."""
        images = np.empty((len(sums), *self.grid.shape), np.float32)
        kernels.from_order(sums, np.broadcast_to(self.support[..., 0], self.grid.shape[:2]), images)
        return images

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Images (n, x, y, z) in the order that the kernels read."""
        if images.shape[1:] != self.grid.shape:
            raise ValueError(f"image has shape {images.shape[1:]}, the projector's grid {self.grid.shape}")
        prepared = np.zeros((len(images), *self._order_shape()), np.float32)
        kernels.to_order(images, np.broadcast_to(self.support[..., 0], self.grid.shape[:2]), prepared)
        return prepared

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
        # No image is read here; the kernel takes contiguous arrays only.
        self._back(kernels.ADJOINT, sums, views, data, sums.reshape(-1, *sums.shape[2:]), None)

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
        self._back(kernels.EM, sums, views, data, prepared, background)

    def _back(
        self, mode: int, sums: np.ndarray, views: np.ndarray, data: np.ndarray, images: np.ndarray,
        background: np.ndarray | None,
    ) -> None:  # fmt: skip
        _, ends = self._views(views)
        # One type of data, since the kernels take 13 s to compile for each.
        data = np.ascontiguousarray(data, np.float32)
        if background is None:
            background = np.empty((*data.shape[:3], 0, data.shape[4]), np.float32)
        background = np.ascontiguousarray(background, np.float32)
        # They share TOF weights, so all together where that leaves work for every thread; else one after another, since
        # they would drive each other out of the caches.
        together = min(len(data), max(1, len(data) * PARTS // (2 * nb.get_num_threads()))) if self._tof[1] else 1
        kernels.back_project(mode, ends, self._geometry, self.support_mm, self._sets, self._groups, self._z_geometry,
                             self._tof, TOF_CDF, self._block, together, images, data, background, sums)  # fmt: skip
