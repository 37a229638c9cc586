"""U-Net (Ronneberger et al. 2015, doi 10.1007/978-3-319-24574-4_28) without normalization layers.

Normalization over a patch would make an output depend on what else lies in the patch, and take away the intensity that PET
is measured for. Two- and three-dimensional networks are one module: the former has kernels of (3, 3, 1).
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class UNetShape:
    """Size of a network.

    Parameters
    ----------
    slices : int
        Axial slices of the input that are channels: 1, or an odd number of neighbors whose middle one is the output's.
    depth : int
        Axial kernel size, 3 or 1.
    channels : tuple of int
        At every level, finest first; each level but the first halves the resolution.
    conditioned : bool
        Is told numbers of an image, which scale and shift features (FiLM, Perez et al. 2018, arXiv 1709.07871).
    images : int
        Images in the input, each of `slices` channels.
    told : int
        How many numbers.
    """

    slices: int = 1
    depth: int = 3
    channels: tuple[int, ...] = (16, 32, 64)
    conditioned: bool = False
    images: int = 1
    told: int = 1

    @property
    def multiple(self) -> tuple[int, int, int]:
        """Sizes of an input must be multiples of this, (x, y, z)."""
        n = 2 ** (len(self.channels) - 1)
        return n, n, n if self.depth > 1 else 1


class UNet(nn.Module):
    """One channel out of `shape.slices` times `shape.images`; the last layer starts at zero."""

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.shape = shape
        stride = (2, 2, 2) if shape.depth > 1 else (2, 2, 1)
        widths = shape.channels
        self.enter = _conv(shape.slices * shape.images, widths[0], shape.depth)
        self.down = nn.ModuleList(_Block(n, n, shape) for n in widths)
        self.shrink = nn.ModuleList(nn.Conv3d(a, b, stride, stride) for a, b in pairwise(widths))
        self.grow = nn.ModuleList(nn.ConvTranspose3d(b, a, stride, stride) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_Block(2 * n, n, shape) for n in widths[:-1])
        self.leave = _conv(widths[0], 1, shape.depth)
        nn.init.zeros_(self.leave.weight)
        if self.leave.bias is not None:
            nn.init.zeros_(self.leave.bias)

    def forward(self, images: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Map (n, channels, x, y, z) and conditions (n,) or (n, told), which not all networks use, to (n, 1, x, y, z)."""
        x = self.enter(images)
        passed = []
        for k, block in enumerate(self.down):
            x = block(x, condition)
            if k < len(self.shrink):
                passed.append(x)
                x = self.shrink[k](x)
        for k in reversed(range(len(self.grow))):
            x = self.up[k](torch.cat([passed[k], self.grow[k](x)], dim=1), condition)
        return self.leave(x)


class _Block(nn.Module):
    """Two convolutions beside a shortcut, the first of them modulated by the condition."""

    def __init__(self, inside: int, outside: int, shape: UNetShape) -> None:
        super().__init__()
        self.first, self.second = _conv(inside, outside, shape.depth), _conv(outside, outside, shape.depth)
        self.shortcut = nn.Conv3d(inside, outside, 1) if inside != outside else nn.Identity()
        self.film = None
        if shape.conditioned:
            last = nn.Linear(32, 2 * outside)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.film = nn.Sequential(nn.Linear(shape.told, 32), nn.SiLU(), last)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        y = self.first(nn.functional.silu(x))
        if self.film is not None:
            factor, offset = self.film(condition.reshape(len(condition), -1).to(y.dtype))[:, :, None, None, None].chunk(
                2, dim=1
            )
            y = (1 + factor) * y + offset
        return self.shortcut(x) + self.second(nn.functional.silu(y)) / math.sqrt(2)


def placed(network: N, device: str | torch.device) -> N:
    """The network on a device, its weights in the layout with channels last, for which convolutions are quicker."""
    return network.to(device=device, memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]


def _conv(inside: int, outside: int, depth: int) -> nn.Conv3d:
    layer = nn.Conv3d(inside, outside, (3, 3, depth), padding=(1, 1, depth // 2))
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
