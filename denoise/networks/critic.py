"""The critic of UniPET (arXiv 2606.11131), as its authors' code has it."""

from itertools import pairwise

import torch
from torch import nn

HALVINGS = 5
MULTIPLE = 2**HALVINGS
"""The edge of images must be a multiple of this."""


class Critic(nn.Module):
    """One score without bounds for each image.

    Five convolutions of 4^3 that halve the resolution; LeakyReLU; instance norm in the second to fourth; the last map,
    2 x 2 x 2 for a patch of 64^3, becomes one score by a linear layer, which is why a critic serves patches of one size.

    Parameters
    ----------
    patch : int
        Edge of the images, a multiple of 32; 64 as published. For others the linear layer takes another number of inputs.
    images : int
        Channels; 2 where the low dose is shown beside the image.
    width : int
        Channels of the first layer, doubled by each of the next three; 64 as published.
    """

    def __init__(self, patch: int = 64, images: int = 1, width: int = 64) -> None:
        super().__init__()
        widths = [images, *(width * 2**k for k in range(HALVINGS - 1)), 1]
        self.layers = nn.ModuleList(nn.Conv3d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.score = nn.Linear((patch // MULTIPLE) ** 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (n, channels, patch, patch, patch) to (n,)."""
        x = images
        for k, layer in enumerate(self.layers):
            x = layer(x)
            if 0 < k < HALVINGS - 1:
                x = nn.functional.instance_norm(x)
            if k < HALVINGS - 1:
                x = nn.functional.leaky_relu(x, 0.2)
        return self.score(x.flatten(1))[:, 0]
