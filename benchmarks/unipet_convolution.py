"""What do convolutions with weights of each sample's own cost, against one batched convolution of as many operations?

    python -m benchmarks.unipet_convolution [--device cuda]

Three ways: "batched", one convolution with common weights and no modulation, which is what is to be reached; "grouped", own
weights by a grouped convolution, as in the code published with UniPET; "modulated", `denoise.networks.unipet.ModulatedConv`.
Patches of 32^3, in the layout with channels last that networks have here, and as they come. Median time of forward and
backward pass over `REPEATS`, processor time of one thread on a CPU, time between synchronizations on a GPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.common import emit
from denoise.networks.unipet import EPSILON, ModulatedConv

REPEATS = 3


def batched(layer: ModulatedConv, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Without modulation."""
    return torch.nn.functional.conv3d(x, layer.weight, padding=1)


def grouped(layer: ModulatedConv, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Own weights, one group a sample."""
    n, c = x.shape[:2]
    own = layer.weight[None] * (1 + style)[:, None, :, None, None, None]
    own = own * torch.rsqrt(own.square().sum(dim=(2, 3, 4, 5), keepdim=True) + EPSILON)
    flat = x.reshape(1, n * c, *x.shape[2:])
    return torch.nn.functional.conv3d(flat, own.flatten(0, 1), padding=1, groups=n).reshape(x.shape)


def modulated(layer: ModulatedConv, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """As the network does it."""
    return layer(x, style)


def seconds(way: Callable[..., torch.Tensor], width: int, batch: int, layout: torch.memory_format, device: str) -> float:
    """Median time of a forward and backward pass."""
    torch.manual_seed(0)
    layer = ModulatedConv(width).to(device=device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    x = torch.randn(batch, width, 32, 32, 32, device=device).to(memory_format=layout).requires_grad_()
    style = torch.randn(batch, width, device=device, requires_grad=True)
    clock = time.perf_counter if device == "cuda" else time.process_time
    found = []
    for _ in range(REPEATS + 1):
        began = clock()
        way(layer, x, style).square().sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(clock() - began)
    return statistics.median(found[1:])


def main() -> None:
    """Time the three ways and print the JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    device = parser.parse_args().device
    torch.set_num_threads(1)
    rows = []
    for width, batch in ((16, 2), (64, 2)) if device == "cpu" else ((16, 8), (64, 2), (64, 8)):
        for name, layout in (("as they come", torch.contiguous_format), ("channels last", torch.channels_last_3d)):
            row = {"channels": width, "batch": batch, "layout": name}
            rows.append(row | {w.__name__: seconds(w, width, batch, layout, device) for w in (batched, grouped, modulated)})
    emit("unipet_convolution" + ("_gpu" if device == "cuda" else ""), {"torch": torch.__version__, "seconds": rows})


if __name__ == "__main__":
    main()
