"""Packed images read patch by patch, through a memory map of their uncompressed HDF5 chunks.

A patch touches a few chunks of 64 KiB, each in one piece, where a C-order volume would be touched in thousands of short
rows; and h5py's own reading takes longer to find its way than to copy.
"""

from functools import cached_property
from pathlib import Path

import h5py
import numba as nb
import numpy as np

from data_recipes.errors import DataError

_LARGEST = 65520.0
"""Halves are less; infinity and NaN come out as 65536 and more."""

_TO_SINGLE = 2.0**112
"""A half's exponent and fraction, put in their places in a single, stand for the half's value times 2^-112."""


class MappedImages:
    """Images of one dataset of a file, read as float32; safe to hand to other processes, which map the file anew.

    Parameters
    ----------
    path : Path
    name : str
        Dataset (..., x, y, z) of float16 in uncompressed chunks, with the attribute `scale`; all values finite.
    factor : float
        What values are multiplied with besides `scale`: that of SUV, for instance.

    Raises
    ------
    DataError
        A file that cannot be read, or a dataset that is stored in another way.
    """

    def __init__(self, path: Path, name: str, factor: float = 1.0) -> None:
        self.path, self.name, self._pinned = path, name, False
        try:
            with h5py.File(path, "r") as f:
                dataset = f[name]
                stored = isinstance(dataset, h5py.Dataset) and (dataset.dtype, dataset.compression) == (np.float16, None)
                if not (isinstance(dataset, h5py.Dataset) and stored and dataset.chunks and not dataset.shuffle):
                    raise DataError(f"{path.name}: /{name} is not float16 in uncompressed chunks; make the file again")
                self.shape: tuple[int, ...] = dataset.shape
                self.chunk = dataset.chunks[-3:]
                self.scale = float(dataset.attrs["scale"]) * factor  # pyright: ignore[reportArgumentType]
                self._offsets = _chunk_offsets(dataset)
        except (OSError, KeyError):
            raise DataError(f"{path.name}: no readable HDF5 file with /{name}; remove it and make it again") from None

    def __getstate__(self) -> dict[str, object]:
        if self._pinned:
            raise TypeError("volumes of a live cache may be evicted on their way; let the other process ask the cache")
        return {k: v for k, v in self.__dict__.items() if k != "_halves"}

    def pinned(self) -> "MappedImages":
        """The same, mapped already: it stays readable when the file is removed, in this process and those forked from it."""
        _ = self._halves
        self._pinned = True
        return self

    @cached_property
    def _halves(self) -> np.ndarray:
        return np.memmap(self.path, np.uint16, "r", shape=(self.path.stat().st_size // 2,))

    def volume(self, *index: int) -> np.ndarray:
        """A whole image, float32 (x, y, z).

        Raises
        ------
        DataError
            Values that are not finite, which `patch` does not look for.
        """
        image = self.patch(index, (0, 0, 0), self.shape[-3:])
        if np.abs(image).max() > _LARGEST * abs(self.scale):
            raise DataError(f"{self.path.name}: /{self.name} holds values that are not finite; make the file again")
        return image

    def patch(self, index: tuple[int, ...], corner: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
        """Part of an image.

        Parameters
        ----------
        index : tuple of int
            Place along the leading axes.
        corner, size : tuple of int
            First voxel and number of voxels along (x, y, z), within the image.

        Returns
        -------
        ndarray
            float32 `size`.
        """
        if any(c < 0 or c + s > n for c, s, n in zip(corner, size, self.shape[-3:], strict=True)):
            raise IndexError(f"patch of {size} at {corner} leaves the image of {self.shape[-3:]}")
        out = np.empty(size, np.float32)
        factor = np.float32(_TO_SINGLE * self.scale)
        _gather(self._halves, self._offsets[index], self.chunk, corner, factor, out.view(np.uint32), out)
        return out


def _chunk_offsets(dataset: h5py.Dataset) -> np.ndarray:
    """Place of every chunk in the file, counted in halves, int64 (..., chunks along x, y and z)."""
    chunks = dataset.chunks
    assert chunks is not None
    if any(c != 1 for c in chunks[:-3]):
        raise DataError(f"/{dataset.name}: chunks hold several images; make the file again")
    offsets = np.full([-(-n // c) for n, c in zip(dataset.shape, chunks, strict=True)], -1, np.int64)

    def note(found: h5py.h5d.StoreInfo) -> None:
        offsets[tuple(p // c for p, c in zip(found.chunk_offset, chunks, strict=True))] = found.byte_offset

    dataset.id.chunk_iter(note)
    if (offsets < 0).any() or (offsets % 2).any():
        raise DataError(f"/{dataset.name}: some chunks are missing; make the file again")
    return offsets // 2


@nb.njit(cache=True, nogil=True)
def _gather(halves, offsets, chunk, corner, factor, bits, out):
    nx, ny, nz = out.shape
    for i in range(nx):
        x = corner[0] + i
        for j in range(ny):
            y = corner[1] + j
            z, end = corner[2], corner[2] + nz
            while z < end:
                place = z // chunk[2]
                last = min(end, (place + 1) * chunk[2])
                row = (x % chunk[0] * chunk[1] + y % chunk[1]) * chunk[2] + z - place * chunk[2]
                start = offsets[x // chunk[0], y // chunk[1], place] + row
                source = halves[start : start + last - z]
                target = bits[i, j, z - corner[2] : last - corner[2]]
                for k in range(len(source)):
                    half = np.uint32(source[k])
                    target[k] = (half & np.uint32(0x8000)) << np.uint32(16) | (half & np.uint32(0x7FFF)) << np.uint32(13)
                z = last
            line = out[i, j]
            for k in range(nz):
                line[k] *= factor
