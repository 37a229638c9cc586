"""The generator of UniPET (arXiv 2606.11131, Yang et al. 2026), as its authors' code has it.

A base denoising network of residual blocks, and a style alignment network: an encoder of the first features whose four
embeddings modulate every convolution of the blocks (as in StyleGAN2, Karras et al. 2020, arXiv 1912.04958).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Slopes = Literal["shared", "separate"]

STAGES = 4
"""Of the style alignment network."""

EPSILON = 1e-8


@dataclass(frozen=True)
class UniPETShape:
    """Size of a network.

    Parameters
    ----------
    channels : tuple of int
        One number, a multiple of 16: 64 as published. Embeddings and the encoder's features have four times as many.
    blocks : int
        Residual blocks of two convolutions.
    aligned : bool
        Has a style alignment network; else convolutions are plain, and what is left is the base network.
    slopes : str
        "shared": one slope of PReLU for all blocks, and one for all stages of the encoder, as in the authors' code, where
        that seems to be an accident; "separate": one for each.
    tile : int
        Edge of the patches of training and of the tiles in which volumes are denoised: embeddings are means over a tile.
    """

    channels: tuple[int, ...] = (64,)
    blocks: int = 8
    aligned: bool = True
    slopes: Slopes = "shared"
    tile: int = 64

    slices, depth, conditioned = 1, 3, False

    @property
    def multiple(self) -> tuple[int, int, int]:
        """Sizes of an input must be multiples of this, (x, y, z): each stage halves them."""
        n = 2**STAGES
        return n, n, n


@dataclass(frozen=True)
class Mix:
    """What MixStyle (Zhou et al. 2021, arXiv 2104.02008) does to a batch.

    Parameters
    ----------
    share : Tensor
        (n,): weight of an image's own statistics; 1 leaves it as it is.
    partner : Tensor
        int64 (n,): the image whose statistics are mixed in.
    """

    share: torch.Tensor
    partner: torch.Tensor


class UniPET(nn.Module):
    """One channel out of one: the input and what the network adds to it."""

    def __init__(self, shape: UniPETShape) -> None:
        super().__init__()
        self.shape = shape
        width, wide = shape.channels[0], 4 * shape.channels[0]
        one = nn.PReLU() if shape.slopes == "shared" else None
        self.stem = nn.Conv3d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width, wide, shape.aligned, one) for _ in range(shape.blocks))
        self.head = nn.Conv3d(width, 1, 3, padding=1)
        self.encoder = None
        if shape.aligned:
            slope = nn.PReLU() if shape.slopes == "shared" else None
            self.encoder = nn.ModuleList(_Stage(width if k == 0 else wide, wide, slope) for k in range(STAGES))

    def forward(self, images: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Map (n, 1, x, y, z) to the like; a condition is not used."""
        return self.with_features(images)[0]

    def with_features(self, images: torch.Tensor, mixes: Sequence[Mix] = ()) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The output, and what each block gives.

        Parameters
        ----------
        images : Tensor
            (n, 1, x, y, z).
        mixes : sequence of Mix
            For the output of the stem, of the first block, and so on.
        """
        x = self.stem(images)
        embeddings = self._embeddings(x)
        features = []
        for k, (block, stage) in enumerate(zip(self.blocks, stages_of(len(self.blocks)), strict=True)):
            if k < len(mixes):
                x = mixed(x, mixes[k])
            x = block(x, None if embeddings is None else embeddings[stage])
            features.append(x)
        return images + self.head(x), features

    def base_parameters(self) -> list[nn.Parameter]:
        """Those of the base network: all but the encoder's and the maps from embeddings to styles."""
        return [p for name, p in self.named_parameters() if not name.startswith("encoder.") and ".style." not in name]

    def _embeddings(self, x: torch.Tensor) -> list[torch.Tensor] | None:
        if self.encoder is None:
            return None
        found = []
        for stage in self.encoder:
            x, embedding = stage(x)
            found.append(embedding)
        return found


class ModulatedConv(nn.Module):
    """Convolution whose weights are each sample's own: W' = W (1 + s) by input, then W' / sqrt(sum W'^2 + 1e-8) by output.

    That is the same as an input times 1 + s, common weights, and an output over the root: one batched convolution, where the
    authors' code has a grouped one; `benchmarks/unipet_convolution.py` measures both. A style of zero leaves what divides.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width, 3, 3, 3))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Map (n, channels, x, y, z) with styles (n, channels)."""
        # In float32 also under autocast: a sum of squares over all weights.
        with torch.autocast(x.device.type, enabled=False):
            modulation = 1 + style.float()
            squares = self.weight.float().square().sum(dim=(2, 3, 4))
            size = torch.rsqrt(modulation.square() @ squares.T + EPSILON)
        y = nn.functional.conv3d(x * _spread(modulation.to(x.dtype)), self.weight, padding=1)
        return y * _spread(size.to(y.dtype))


class _Block(nn.Module):
    """Two convolutions with PReLU between them, scaled by channel, beside the input."""

    def __init__(self, width: int, embedding: int, modulated: bool, slope: nn.PReLU | None) -> None:
        super().__init__()

        def conv() -> nn.Module:
            if modulated:
                return ModulatedConv(width)
            layer = nn.Conv3d(width, width, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(layer.weight)
            return layer

        self.first, self.second = conv(), conv()
        self.slope = slope or nn.PReLU()
        self.scale = nn.Parameter(torch.ones(width))
        self.style = nn.ModuleList(nn.Linear(embedding, width) for _ in range(2)) if modulated else None

    def forward(self, x: torch.Tensor, embedding: torch.Tensor | None) -> torch.Tensor:
        if self.style is None:
            y = self.second(self.slope(self.first(x)))
        else:
            y = self.second(self.slope(self.first(x, self.style[0](embedding))), self.style[1](embedding))
        return x + y * self.scale[:, None, None, None]


class _Stage(nn.Module):
    """A bottleneck with channel attention that halves the resolution, and the head of an embedding."""

    def __init__(self, inside: int, outside: int, slope: nn.PReLU | None) -> None:
        super().__init__()
        narrow = inside // 4
        self.enter = nn.Conv3d(inside, narrow, 1, bias=False)
        self.squeeze, self.excite = nn.Linear(narrow, narrow // 4), nn.Linear(narrow // 4, narrow)
        self.shrink = nn.Conv3d(narrow, narrow, 3, 2, 1, bias=False)
        self.leave = nn.Conv3d(narrow, outside, 1, bias=False)
        self.embed = nn.Linear(outside, outside)
        self.slopes = nn.ModuleList(slope or nn.PReLU() for _ in range(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.slopes[0](self.enter(x))
        y = y * _spread(torch.sigmoid(self.excite(torch.relu(self.squeeze(_pooled(y))))))
        y = self.slopes[1](self.shrink(y))
        y = self.slopes[2](self.leave(y))
        return y, self.slopes[3](self.embed(_pooled(y)))


def stages_of(blocks: int) -> list[int]:
    """The stage whose embedding modulates each block; early stages take what is left over."""
    return [stage for stage in range(STAGES) for _ in range(blocks // STAGES + (stage < blocks % STAGES))]


def mixed(x: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Features whose means and standard deviations by channel are mixed with another image's; no gradient by these."""
    over = (2, 3, 4)
    mean, sd = x.mean(over, keepdim=True).detach(), x.std(over, keepdim=True).detach() + 1e-6
    share = _spread(mix.share.to(x.dtype)[:, None])
    new_mean, new_sd = (share * own + (1 - share) * own[mix.partner] for own in (mean, sd))
    return new_sd * (x - mean) / sd + new_mean


def _pooled(x: torch.Tensor) -> torch.Tensor:
    return x.mean(dim=(2, 3, 4))


def _spread(values: torch.Tensor) -> torch.Tensor:
    """One value an image and channel, for arithmetic with (n, channels, x, y, z)."""
    return values[:, :, None, None, None]
