"""Trained networks as safetensors files that describe themselves."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data_recipes.errors import DataError
from denoise.data import Condition, Target
from denoise.methods import Method, MethodName, Variant
from denoise.networks.unet import UNet, UNetShape, placed
from denoise.scaling import Scaling, Transform
from petsim.cache.store import whole_or_nothing

FORMAT = "petsim-denoise 1"
_CHECKS = ("check.low", "check.condition", "check.sd", "check.estimate")
_TOLERANCE = 2e-3


@dataclass(frozen=True)
class ModelCard:
    """What a model is and what it was trained for.

    Parameters
    ----------
    method, shape, scaling
    target : str
        What it was trained to give.
    condition : str
        What a conditioned network is told.
    drfs : tuple of float
    noise_range : tuple of float
        Least and largest relative noise level of the training images (standard deviation over mean of the body).
    condition_range : tuple of float
        Least and largest condition.
    voxel_mm : tuple of float
    scanners : tuple of str
    data_sha256 : str
        Of the training dataset's configuration and subjects.
    steps : int
    unit : str
    """

    method: Method
    shape: UNetShape
    scaling: Scaling
    target: Target
    condition: Condition
    drfs: tuple[float, ...]
    noise_range: tuple[float, float]
    condition_range: tuple[float, float]
    voxel_mm: tuple[float, float, float]
    scanners: tuple[str, ...]
    data_sha256: str
    steps: int
    unit: str = "SUV"


def save_model(path: Path, network: UNet, card: ModelCard) -> None:
    """Write a model with a small input and its output; a file that exists is whole."""
    tensors = {f"network.{k}": v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    tensors |= dict(zip(_CHECKS, _check(network, card), strict=True))
    header = {"format": FORMAT, "card": json.dumps(asdict(card), sort_keys=True)}
    with whole_or_nothing(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def _check(network: UNet, card: ModelCard) -> tuple[torch.Tensor, ...]:
    """A fixed input and what the network makes of it."""
    rng = np.random.default_rng(0)
    n = card.shape.multiple
    low = torch.from_numpy(rng.gamma(2.0, 1.0, (1, card.shape.slices, 2 * n[0], 2 * n[1], 2 * n[2])).astype(np.float32))
    condition, sd = torch.tensor([np.mean(card.condition_range)], dtype=torch.float32), torch.tensor([0.3])
    with torch.inference_mode():
        network = network.eval()
        device = next(network.parameters()).device
        given = [t.to(device) for t in (low, condition, sd)]
        estimate = card.method.estimate(network, card.scaling, *given).cpu()
    return low, condition, sd, estimate.contiguous()


def read_card(path: Path) -> ModelCard:
    """Card of a model file.

    Raises
    ------
    DataError
        Not a model file of this format, damaged, or one whose description makes no sense.
    """
    return _read(path)[0]


def load_model(path: Path, device: str = "cpu") -> tuple[UNet, ModelCard]:
    """Network and card of a model file; the network must give the stored output for the stored input.

    Raises
    ------
    DataError
        As `read_card`; or tensors that do not fit the description, or another output.
    """
    card, tensors = _read(path)
    try:
        with torch.device("meta"):
            network = UNet(card.shape)
        own = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        network.load_state_dict(own, assign=True)
        low, condition, sd, wanted = (tensors[name] for name in _CHECKS)
        network = placed(network, device).eval()
        with torch.inference_mode():
            got = card.method.estimate(network, card.scaling, *(t.to(device) for t in (low, condition, sd))).cpu()
        same = bool(torch.isfinite(got).all()) and got.shape == wanted.shape
        same = same and bool(((got - wanted).abs().max() <= _TOLERANCE * (1 + wanted.abs().max())).item())
    except (RuntimeError, KeyError, ValueError, TypeError, IndexError):
        raise DataError(f"{path.name}: its tensors do not fit its description; train again or fetch the file anew") from None
    if not same:
        raise DataError(f"{path.name}: does not give the output that was stored with it; fetch the file anew")
    return network, card


def _read(path: Path) -> tuple[ModelCard, dict[str, torch.Tensor]]:
    if not path.is_file():
        raise DataError(f"{path.name}: no such model file; give a folder that denoise train made")
    try:
        with safe_open(path, "pt") as f:
            header = f.metadata() or {}
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (f cannot be iterated)
    except (SafetensorError, OSError, ValueError):
        raise DataError(f"{path.name}: not a readable safetensors file; train again or fetch the file anew") from None
    if header.get("format") != FORMAT:
        raise DataError(f"{path.name}: not a model of this toolkit (format {header.get('format')}, expected {FORMAT})")
    try:
        return _card(json.loads(header["card"])), tensors
    except (KeyError, TypeError, ValueError, DataError):
        raise DataError(f"{path.name}: its description is damaged; train again or fetch the file anew") from None


def _card(values: dict[str, Any]) -> ModelCard:
    shape = UNetShape(**{**values["shape"], "channels": tuple(int(n) for n in values["shape"]["channels"])})
    small = 1 <= len(shape.channels) <= 8 and all(1 <= n <= 4096 for n in shape.channels)
    if not (small and shape.slices in range(1, 32, 2) and shape.depth in (1, 3)):
        raise DataError("unreasonable network")
    chosen = (
        (values["method"]["name"], MethodName), (values["method"]["variant"], Variant),
        (values["scaling"]["transform"], Transform), (values["condition"], Condition), (values["target"], Target),
    )  # fmt: skip
    if any(value not in get_args(known) for value, known in chosen):
        raise DataError("unknown method, transform, condition or target")
    numbers = {"noise_range": 2, "condition_range": 2, "voxel_mm": 3, "drfs": max(1, len(values["drfs"]))}
    for name, length in numbers.items():
        if len(values[name]) != length or not np.isfinite(np.asarray(values[name], np.float64)).all():
            raise DataError(f"unreasonable {name}")
    if not (min(values["noise_range"]) > 0 and min(values["voxel_mm"]) > 0 and min(values["drfs"]) >= 1):
        raise DataError("unreasonable ranges")
    return ModelCard(**{
        **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()},
        "method": Method(**values["method"]), "shape": shape, "scaling": Scaling(**values["scaling"]),
    })  # fmt: skip
