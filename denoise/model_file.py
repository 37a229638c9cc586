"""Trained networks as safetensors files that describe themselves."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data_recipes.errors import DataError, UsageError
from denoise.data import Condition, Target
from denoise.diffusion.anchors import digest_of
from denoise.diffusion.method import Anchors, Diffusion, DiffusionName, Prediction, Way
from denoise.diffusion.noise import LAG, ColoredNoise
from denoise.diffusion.schedule import Kind, NoiseSchedule
from denoise.methods import Method, MethodName, Variant
from denoise.networks.made import Network, Shape, made_network
from denoise.networks.unet import UNetShape, placed
from denoise.networks.unipet import Slopes, UniPETShape
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

    method: Method | Diffusion
    shape: Shape
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


def save_model(path: Path, network: Network, card: ModelCard) -> None:
    """Write a model with a small input and its output; a file that exists is whole."""
    # Copies, since layers that share a weight would share memory, which the format refuses.
    tensors = {f"network.{k}": v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}
    tensors |= dict(zip(_CHECKS, _check(network, card), strict=True))
    header = {"format": FORMAT, "card": json.dumps(asdict(card), sort_keys=True)}
    with whole_or_nothing(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def _check(network: Network, card: ModelCard) -> tuple[torch.Tensor, ...]:
    """A fixed input and what the network makes of it."""
    rng = np.random.default_rng(0)
    n = card.shape.multiple
    low = torch.from_numpy(rng.gamma(2.0, 1.0, (1, card.shape.slices, 2 * n[0], 2 * n[1], 2 * n[2])).astype(np.float32))
    condition, sd = torch.tensor([np.mean(card.condition_range)], dtype=torch.float32), torch.tensor([0.3])
    with torch.inference_mode():
        network = network.eval()
        device = next(network.parameters()).device
        estimate = _estimate(card, network, *(t.to(device) for t in (low, condition, sd))).cpu()
    return low, condition, sd, estimate.contiguous()


def _estimate(
    card: ModelCard, network: Network, low: torch.Tensor, condition: torch.Tensor, sd: torch.Tensor
) -> torch.Tensor:
    """What a model makes of an input; a generative one at half of its schedule, given the input as diffusing image too."""
    if isinstance(card.method, Method):
        return card.method.estimate(network, card.scaling, low, condition, sd)
    numbers = card.scaling.to_network(low)
    half = torch.full((len(low),), card.method.schedule.steps / 2, dtype=torch.float64, device=low.device)
    return card.method.estimate(network, numbers, numbers, half)


def read_card(path: Path) -> ModelCard:
    """Card of a model file.

    Raises
    ------
    DataError
        Not a model file of this format, damaged, or one whose description makes no sense.
    """
    return _read(path)[0]


def load_model(path: Path, device: str = "cpu") -> tuple[Network, ModelCard]:
    """Network and card of a model file; the network must give the stored output for the stored input.

    Raises
    ------
    DataError
        As `read_card`; or tensors that do not fit the description, or another output.
    """
    card, tensors = _read(path)
    try:
        with torch.device("meta"):
            network = made_network(card.shape)
        own = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        network.load_state_dict(own, assign=True)
        low, condition, sd, wanted = (tensors[name] for name in _CHECKS)
        network = placed(network, device).eval()
        with torch.inference_mode():
            got = _estimate(card, network, *(t.to(device) for t in (low, condition, sd))).cpu()
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
    except (KeyError, TypeError, ValueError, AttributeError, DataError, UsageError):
        raise DataError(f"{path.name}: its description is damaged; train again or fetch the file anew") from None


def _card(values: dict[str, Any]) -> ModelCard:
    channels = tuple(int(n) for n in values["shape"]["channels"])
    shape = _shape(values["method"]["name"], {**values["shape"], "channels": channels})
    chosen = (
        (values["scaling"]["transform"], Transform), (values["condition"], Condition), (values["target"], Target),
    )  # fmt: skip
    if any(value not in get_args(known) for value, known in chosen):
        raise DataError("unknown transform, condition or target")
    numbers = {"noise_range": 2, "condition_range": 2, "voxel_mm": 3, "drfs": max(1, len(values["drfs"]))}
    for name, length in numbers.items():
        if len(values[name]) != length or not np.isfinite(np.asarray(values[name], np.float64)).all():
            raise DataError(f"unreasonable {name}")
    if not (min(values["noise_range"]) > 0 and min(values["voxel_mm"]) > 0 and min(values["drfs"]) >= 1):
        raise DataError("unreasonable ranges")
    method, scaling = _method(values["method"]), Scaling(**values["scaling"])
    if isinstance(method, Diffusion) and method.anchors is not None:
        reference = "full" if values["target"] == "full" else "noise-free"
        if method.anchors.digest != digest_of(method.schedule, scaling, method.colored, reference):
            raise DataError("anchors of another calibration")
    return ModelCard(**{
        **_tuples(values), "method": method, "shape": shape, "scaling": scaling,
    })  # fmt: skip


def _shape(method: str, values: dict[str, Any]) -> Shape:
    if method == "unipet":
        own = UniPETShape(**values)
        small = len(own.channels) == 1 and own.channels[0] in range(16, 4097, 16) and 1 <= own.blocks <= 64
        if not (small and own.slopes in get_args(Slopes) and 16 <= own.tile <= 1024):
            raise DataError("unreasonable network")
        return own
    shape = UNetShape(**values)
    small = 1 <= len(shape.channels) <= 8 and all(1 <= n <= 4096 for n in shape.channels)
    small = small and shape.images in (1, 2) and 1 <= shape.told <= 256
    if not (small and shape.slices in range(1, 32, 2) and shape.depth in (1, 3)):
        raise DataError("unreasonable network")
    return shape


def _method(values: dict[str, Any]) -> Method | Diffusion:
    if values["name"] in get_args(MethodName):
        if values["variant"] not in get_args(Variant):
            raise DataError("unknown variant")
        return Method(**values)
    chosen = (
        (values["name"], DiffusionName), (values["prediction"], Prediction), (values["way"], Way),
        (values["schedule"]["kind"], Kind),
    )  # fmt: skip
    if any(value not in get_args(known) for value, known in chosen):
        raise DataError("unknown method, prediction, way or schedule")
    noise, anchors = values["colored"], values["anchors"]
    if noise is not None and (len(noise["kernel"]) != (2 * LAG + 1) ** 3 or not np.isfinite(noise["kernel"]).all()):
        raise DataError("unreasonable noise")
    if not (
        math.isfinite(values["data_sd"]) and values["data_sd"] > 0 and 10 <= int(values["schedule"]["steps"]) <= 100_000
    ):
        raise DataError("unreasonable scale or schedule")
    return Diffusion(**{
        **_tuples(values), "schedule": NoiseSchedule(**values["schedule"]),
        "colored": None if noise is None else ColoredNoise(**_tuples(noise)),
        "anchors": None if anchors is None else Anchors(**_tuples(anchors)),
    })  # fmt: skip


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as tuples, also those in lists."""

    def one(v: Any) -> Any:
        return tuple(one(part) for part in v) if isinstance(v, list) else v

    return {k: one(v) for k, v in values.items()}
