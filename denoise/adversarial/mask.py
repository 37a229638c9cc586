"""Where an image is textured, and where it is flat: only the former is shown to a critic.

UniPET (arXiv 2606.11131) takes as textured what has a local variance in the full-dose image of at least 1e-3 SUV^2. A full
dose of clinical counts has more than that nearly everywhere in the body, of noise alone. So there is a second way: what has
more than some times the local variance of the reference's own noise, which simulation knows.
"""

from typing import Literal

import torch

MaskKind = Literal["off", "absolute", "relative"]

EDGE = 3
"""Voxels across which a local variance is taken, along each axis."""

SMOOTHED = 9
"""Voxels across which the local variance of noise is averaged: of 3 x 3 x 3 correlated voxels alone it is mostly chance."""

PUBLISHED = 1e-3
"""Local variance from which on a voxel is textured, SUV^2."""


def local_variance(images: torch.Tensor) -> torch.Tensor:
    """Variance over 3 x 3 x 3 voxels, mean of squares minus square of mean; at borders over the voxels that there are.

    Parameters
    ----------
    images : Tensor
        (n, 1, x, y, z).

    Returns
    -------
    Tensor
        Like `images`, in its unit squared.
    """
    # A small difference of large squares.
    wide = images.double()
    return (_mean(wide.square(), EDGE) - _mean(wide, EDGE).square()).clamp(min=0).to(images.dtype)


def noise_variance(reference: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Local variance of a reference's own noise, its difference from the noise-free image, averaged over 9^3 voxels."""
    return _mean(local_variance(reference - clean), SMOOTHED)


def region_mask(
    reference: torch.Tensor, kind: MaskKind, threshold: float, clean: torch.Tensor | None = None
) -> torch.Tensor:
    """1 where an image is textured, else 0.

    Parameters
    ----------
    reference : Tensor
        (n, 1, x, y, z) in SUV: the full dose.
    kind : str
        "off": everywhere. "absolute": from a local variance of `threshold` SUV^2 on, as published. "relative": above
        `threshold` times the local variance of its noise.
    threshold : float
    clean : Tensor, optional
        The noise-free images, for "relative".
    """
    if kind == "off":
        return torch.ones_like(reference)
    variance = local_variance(reference)
    if kind == "absolute":
        return (variance >= threshold).to(reference.dtype)
    assert clean is not None
    # Where there is neither signal nor noise nothing is textured.
    return (variance > threshold * noise_variance(reference, clean)).to(reference.dtype)


def _mean(images: torch.Tensor, edge: int) -> torch.Tensor:
    """Mean over a cube, at borders over what lies inside."""
    return torch.nn.functional.avg_pool3d(images, edge, 1, edge // 2, count_include_pad=False)
