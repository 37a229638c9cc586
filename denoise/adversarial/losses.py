"""Parts of UniPET's loss (arXiv 2606.11131), as intended: in its authors' code the alignment is between equal styles."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch

Align = Literal["off", "full", "mean"]

Score = Callable[[torch.Tensor], torch.Tensor]
"""(n, 1, x, y, z) -> (n,)."""


def style_of(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean and unbiased standard deviation over space, by channel, of each block's output: (n, 2 channels blocks)."""
    over = (2, 3, 4)
    return torch.cat([s for f in features for s in (f.float().mean(over), f.float().std(over))], dim=1)


def alignment_error(style: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference; the target is given no gradient."""
    return (style - target.detach()).abs().mean()


def critic_error(score: Score, real: torch.Tensor, made: torch.Tensor, share: torch.Tensor, weight: float) -> torch.Tensor:
    """Wasserstein critic with gradient penalty (Gulrajani et al. 2017, arXiv 1704.00028).

    mean D(made) - mean D(real) + weight mean (|grad D(share real + (1 - share) made)| - 1)^2.

    Parameters
    ----------
    score : callable
    real, made : Tensor
        (n, 1, x, y, z), where a mask holds them.
    share : Tensor
        (n,): even in 0 to 1.
    weight : float
    """
    return score(made).mean() - score(real).mean() + weight * gradient_penalty(score, real, made, share)


def gradient_penalty(score: Score, real: torch.Tensor, made: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Mean squared deviation from 1 of the norm of the score's gradient between real and made images."""
    part = share[:, None, None, None, None]
    between = (part * real + (1 - part) * made).detach().requires_grad_()
    (slope,) = torch.autograd.grad(score(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def adversarial_error(score: Score, made: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """- mean D(M made): no gradient reaches a voxel outside the mask."""
    return -score(mask * made).mean()
