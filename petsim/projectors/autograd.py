"""Projections that torch differentiates."""

from collections.abc import Callable
from typing import Any

import torch


class _Linear(torch.autograd.Function):
    """A linear map and its transpose, each the other's gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, apply: Callable, transpose: Callable) -> torch.Tensor:
        ctx.maps = apply, transpose
        return apply(x.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        apply, transpose = ctx.maps
        return _Linear.apply(gradients[0], transpose, apply), None, None


def differentiable(x: torch.Tensor, apply: Callable[[Any], Any], transpose: Callable[[Any], Any]) -> torch.Tensor:
    """`apply(x)` for a map of arrays, with `transpose` as its gradient, of any order.

    Parameters
    ----------
    x : torch.Tensor
        On the CPU it is handed over as a NumPy array, on a GPU as it is (through DLPack), as float32.
    apply, transpose : callable
        Array to array, linear, float32.

    Returns
    -------
    torch.Tensor
        On the device and of the floating type of `x`.
    """

    def on_tensors(call: Callable[[Any], Any]) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(tensor: torch.Tensor) -> torch.Tensor:
            given = tensor.to(torch.float32).contiguous()
            result = call(given.numpy() if given.device.type == "cpu" else given)
            if not isinstance(result, torch.Tensor):
                result = torch.from_dlpack(result)
            return result.to(device=tensor.device, dtype=tensor.dtype)

        return run

    return _Linear.apply(x, on_tensors(apply), on_tensors(transpose))  # pyright: ignore[reportReturnType]
