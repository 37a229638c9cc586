"""A network over a whole volume, in overlapping windows that are weighted towards their middles."""

import itertools
from collections.abc import Callable

import numpy as np
import torch

from denoise.networks.made import Shape
from denoise.networks.unipet import UniPETShape

EDGES = (512, 256, 128, 96, 64)
"""Edges that a window may have, in voxels: large ones compute little twice."""

WINDOW_BYTES = 2**31
"""A window's features take no more memory, unless it is of the smallest edge; the same on every device, as results are."""

OVERLAP = 32
"""Voxels that a window shares with the next one; a U-Net of three levels sees 20 voxels far."""

SEAM = 3
"""Voxels before its middle from which on a tile of `in_tiles` overwrites the ones before."""

FEATURES = 16
"""Memory that a network takes: so many times its first level's channels for every voxel of a window (14 to 16 measured)."""


def in_windows(
    run: Callable[[torch.Tensor], torch.Tensor], shape: Shape, images: np.ndarray, device: torch.device
) -> np.ndarray:
    """What a network makes of a volume.

    Parameters
    ----------
    run : callable
        (n, channels, x, y, z) on the device -> (n, 1, x, y, z).
    shape : UNetShape or UniPETShape
    images : ndarray
        float32 (images, x, y, z); neighboring slices are put together here.
    device : torch.device

    Returns
    -------
    ndarray
        float32 (x, y, z).
    """
    edge, volume = _window_edge(shape), images.shape[1:]
    window = tuple(
        min(edge // m * m if shape.depth > 1 or axis < 2 else 1, -(-n // m) * m)
        for axis, (n, m) in enumerate(zip(volume, shape.multiple, strict=True))
    )
    padding = [(0, max(0, w - n)) for w, n in zip(window, volume, strict=True)]
    half = shape.slices // 2
    padded = np.pad(images, [(0, 0), *padding[:2], (padding[2][0] + half, padding[2][1] + half)], mode="edge")
    size = tuple(n + p[1] for n, p in zip(volume, padding, strict=True))
    starts = [_starts(n, w) for n, w in zip(size, window, strict=True)]
    weight = np.ones(window, np.float32)
    for axis, w in enumerate(window):
        ramp = np.minimum(np.arange(w) + 0.5, w - np.arange(w) - 0.5).astype(np.float32) / max(1.0, w / 2)
        weight *= ramp.reshape([-1 if a == axis else 1 for a in range(3)])
    total, weights = np.zeros(size, np.float32), np.zeros(size, np.float32)
    places = list(itertools.product(*starts))
    at_once = _windows_at_once(shape, window, device)
    for first in range(0, len(places), at_once):
        corners = places[first : first + at_once]
        shown = np.stack([
            np.concatenate([
                padded[:, x : x + window[0], y : y + window[1], z + k : z + k + window[2]] for k in range(shape.slices)
            ])
            for x, y, z in corners
        ])  # fmt: skip
        with torch.inference_mode():
            estimates = run(torch.from_numpy(shown).to(device))[:, 0].cpu().numpy()
        for (x, y, z), estimate in zip(corners, estimates, strict=True):
            part = slice(x, x + window[0]), slice(y, y + window[1]), slice(z, z + window[2])
            total[part] += weight * estimate
            weights[part] += weight
    total /= weights
    return total[: volume[0], : volume[1], : volume[2]]


def in_tiles(
    run: Callable[[torch.Tensor], torch.Tensor], shape: UniPETShape, image: np.ndarray, device: torch.device
) -> np.ndarray:
    """What a network makes of a volume, put together as in the authors' code of UniPET.

    Zeros on both sides of the volume make it a multiple of half a tile. Tiles start every half a tile, and each overwrites
    what is there from `SEAM` voxels before its middle on: tiles of 64, a stride of 32, from voxel 29 on as published.

    Parameters
    ----------
    run, device
        As of `in_windows`.
    shape : UniPETShape
    image : ndarray
        float32 (x, y, z).

    Returns
    -------
    ndarray
        float32 (x, y, z).
    """
    tile, step = shape.tile, shape.tile // 2
    sizes = [max(tile, -(-n // step) * step) for n in image.shape]
    before = [(size - n) // 2 for size, n in zip(sizes, image.shape, strict=True)]
    padding = [(b, size - n - b) for b, size, n in zip(before, sizes, image.shape, strict=True)]
    padded = np.pad(image, padding)
    out = np.zeros(sizes, np.float32)
    for corner in itertools.product(*(range(0, size - step, step) for size in sizes)):
        shown = padded[tuple(slice(c, c + tile) for c in corner)]
        with torch.inference_mode():
            estimate = run(torch.from_numpy(shown[None, None].copy()).to(device))[0, 0].cpu().numpy()
        kept = tuple(slice(step - SEAM if c else 0, None) for c in corner)
        out[tuple(slice(c + (step - SEAM if c else 0), c + tile) for c in corner)] = estimate[kept]
    return out[tuple(slice(b, b + n) for b, n in zip(before, image.shape, strict=True))]


def _starts(length: int, window: int) -> list[int]:
    """First voxels of evenly spread windows that share at least `OVERLAP` voxels, or half of a small one, with the next."""
    if length == window:
        return [0]
    if window == 1:
        return list(range(length))
    count = int(np.ceil((length - window) / (window - min(OVERLAP, window // 2)))) + 1
    return np.round(np.linspace(0, length - window, count)).astype(int).tolist()


def _window_edge(shape: Shape) -> int:
    if isinstance(shape, UniPETShape):
        return shape.tile
    voxels = WINDOW_BYTES // _bytes_a_voxel(shape)
    return next((edge for edge in EDGES if edge ** (3 if shape.depth > 1 else 2) <= voxels), EDGES[-1])


def _bytes_a_voxel(shape: Shape) -> int:
    return 4 * shape.channels[0] * FEATURES


def _windows_at_once(shape: Shape, window: tuple[int, ...], device: torch.device) -> int:
    """Windows that fit the device's free memory, at most 16; on a CPU few, since they gain nothing."""
    needed = _bytes_a_voxel(shape) * int(np.prod(window))
    free = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else 1e9
    return int(max(1, min(16, free // needed)))
