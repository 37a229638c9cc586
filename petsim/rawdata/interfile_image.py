"""Images in Interfile, as STIR has them (`.hv` and `.v`).

A file holds x fastest, then y, then z. In STIR's own axes x points right and y down for who looks from the bed into the
gantry, z from the gantry towards the bed, so that a patient who lies head first and supine (assumed where the header does
not say) is stored from right to left, front to back and head to feet (STIR-developers-overview.tex;
`swap_axes_based_on_orientation` in DiscretisedDensity.inl); here images are RAS+. "first pixel offset" is the center of
the first voxel in those axes; without it voxel n // 2 of x and y and the first of z are at 0 (interfile.cxx). STIR's images
carry no unit: values are kept as they are.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from petsim.cache.store import whole_or_nothing
from petsim.rawdata.interfile import Facts, fact_lines, number_lines, read_facts, read_storage
from petsim.rawdata.interfile_header import InterfileHeader, Line, header_bytes, read_header

SUFFIX = ".hv"

_SIGNS = {"HFS": (-1, -1, -1), "HFP": (1, 1, -1), "FFS": (1, -1, 1), "FFP": (-1, 1, 1)}
"""STIR's axes in RAS+, by patient position."""


def read_image(path: Path) -> tuple[np.ndarray, Grid]:
    """Read an image.

    Parameters
    ----------
    path : Path
        `.hv` header.

    Returns
    -------
    values : ndarray
        float32 (x, y, z) in RAS+, in whatever unit they were stored.
    grid : Grid

    Raises
    ------
    DataError
        In one line: a missing, damaged or short file, one that holds no single 3D image, or a position without RAS+.
    """
    header = read_header(path)
    if header.word("PET data type", "image") != "image":
        raise DataError(
            f"{header.name}: 'PET data type' is '{header.word('PET data type')}', not an image; give an .hv file"
        )
    dimensions = header.integer("number of dimensions")
    labels = [header.word("matrix axis label", "xyz"[k], k + 1) for k in range(3)]
    if dimensions != 3 or labels != ["x", "y", "z"]:
        raise DataError(f"{header.name}: its {dimensions} axes begin with {', '.join(labels)}; only images x, y, z are read")
    if header.find_integer("number of image data types", 1) != 1:
        raise DataError(f"{header.name}: holds several kinds of images (parametric); write them one by one")
    position = _position(header)
    x, y, z = (header.sizes(k)[0] for k in (1, 2, 3))
    spacing = np.array([header.number("scaling factor (mm/pixel)", k) for k in (1, 2, 3)])
    default = np.array([-(x // 2), -(y // 2), 0]) * spacing
    given = [header.find_number("first pixel offset (mm)", k) for k in (1, 2, 3)]
    first = np.array([d if g is None else g for g, d in zip(given, default, strict=True)])
    storage = read_storage(header)
    storage.check_size(header, x * y * z)
    if len(storage.scale) not in (1, z):
        raise DataError(f"{header.name}: has {len(storage.scale)} image scaling factors; 1 or one a plane ({z}) are needed")
    stored = storage.map((z, y, x))
    scaled = stored.transpose(2, 1, 0) * np.array(storage.scale)
    return _turned(scaled, position), _grid((x, y, z), spacing, first, position)


def image_facts(path: Path) -> Facts:
    """Facts of an image's header; `DataError` as `read_image`."""
    return read_facts(read_header(path))


def write_image(path: Path, values: np.ndarray, grid: Grid, facts: Facts) -> None:
    """Write `.hv` and `.v` (float32, little endian) that STIR reads, whole or not at all.

    Parameters
    ----------
    path : Path
        Of the header, ending in .hv.
    values : ndarray
        (x, y, z) in RAS+. STIR has no units.
    grid : Grid
    facts : Facts
        An image without a position is written for "HFS"; corrections and the view offset are not written.

    Raises
    ------
    UsageError, DataError
        A wrong ending or shape; failures of the file system.
    """
    if path.suffix != SUFFIX:
        raise UsageError(f"{path.name}: images are written for STIR; let the name end in {SUFFIX}")
    if values.shape != grid.shape:
        raise UsageError(f"{path.name}: the image has shape {values.shape} but its grid has {grid.shape}")
    position, data = facts.position or "HFS", path.with_suffix(".v")
    text = header_bytes(_lines(grid, replace(facts, position=position), data.name))
    turned = _turned(values, position).transpose(2, 1, 0)
    with whole_or_nothing(path) as head, whole_or_nothing(data) as temporary:
        head.write_bytes(text)
        temporary.write_bytes(np.ascontiguousarray(turned, "<f4").data)
        # A header that was there before does not describe the data that now take their name.
        path.unlink(missing_ok=True)


def _position(header: InterfileHeader) -> str:
    known = read_facts(header).position
    orientation, rotation = header.word("patient orientation", "unknown"), header.word("patient rotation", "unknown")
    if known is None and "unknown" not in (orientation, rotation):
        raise DataError(
            f"{header.name}: patient position '{orientation}, {rotation}' cannot be turned to RAS+; mend the header"
        )
    return known or "HFS"


def _turned(values: np.ndarray, position: str) -> np.ndarray:
    """From STIR's axes to RAS+, or back: float32, contiguous."""
    x, y, z = (slice(None, None, sign) for sign in _SIGNS[position])
    return np.ascontiguousarray(values[x, y, z], np.float32)


def _grid(shape: tuple[int, int, int], spacing: np.ndarray, first: np.ndarray, position: str) -> Grid:
    """Grid in RAS+ of voxels whose first center is at `first` in STIR's axes; the same the other way round."""
    signs = np.array(_SIGNS[position])
    last = first + (np.array(shape) - 1) * spacing
    x, y, z = np.where(signs > 0, first, -last).tolist()
    a, b, c = spacing.tolist()
    return Grid(shape, (a, b, c), (x, y, z))


def _lines(grid: Grid, facts: Facts, data_name: str) -> list[Line]:
    general, of_type, last = fact_lines(facts)
    assert facts.position is not None
    offset = _grid(grid.shape, np.array(grid.spacing_mm), np.array(grid.origin_mm), facts.position).origin_mm
    axes: list[Line] = []
    for k in range(3):
        axes += [
            (f"matrix axis label [{k + 1}]", "xyz"[k]), (f"!matrix size [{k + 1}]", grid.shape[k]),
            (f"scaling factor (mm/pixel) [{k + 1}]", grid.spacing_mm[k]),
        ]  # fmt: skip
    return [
        ("!imaging modality", "PT"), ("!version of keys", "STIR6.0"), ("name of data file", data_name),
        ("!GENERAL DATA", None), *general, ("!GENERAL IMAGE DATA", None), ("!type of data", "PET"),
        ("imagedata byte order", "LITTLEENDIAN"), *of_type, ("!PET STUDY (General)", None), ("!PET data type", "Image"),
        ("process status", "Reconstructed"), *number_lines(np.dtype(np.float32)), ("number of dimensions", 3), *axes,
        *((f"first pixel offset (mm) [{k + 1}]", offset[k]) for k in range(3)), *last,
    ]  # fmt: skip
