"""What a region mask holds of the body and of each organ, at several thresholds: whether region-aware learning is active."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_recipes.phantoms.whole_body import FIRST_LESION_LABEL
from denoise.adversarial.mask import MaskKind, local_variance, noise_variance
from denoise.data import Ladder
from petsim.cache.store import SubjectFile
from petsim.noise import body_mask

THRESHOLDS: dict[MaskKind, tuple[float, ...]] = {
    "absolute": (1e-4, 1e-3, 1e-2, 1e-1, 1.0), "relative": (1.0, 2.0, 3.0, 5.0, 10.0),
}  # fmt: skip
"""At which shares are reported, besides the one that training takes."""

INACTIVE = 0.9
"""A mask that holds more of the body than this is as good as none."""

WARNING = "mask equals body: region-aware learning is inactive"


def mask_shares(
    reference: np.ndarray, clean: np.ndarray | None, labels: np.ndarray | None, names: Mapping[int, str],
    thresholds: Mapping[MaskKind, Sequence[float]] = THRESHOLDS,
) -> list[dict[str, Any]]:  # fmt: skip
    """Part of the body, of the air and of each organ that is in a mask, a line for each kind and threshold.

    Parameters
    ----------
    reference : ndarray
        float32 (x, y, z) in SUV: the full dose.
    clean : ndarray, optional
        The noise-free image; without it there are no relative masks.
    labels : ndarray, optional
        uint8 (x, y, z).
    names : mapping
        Label to organ; lesions are taken together.
    thresholds : mapping
    """
    body = body_mask(reference if clean is None else clean)
    regions = {"body": body, "air": ~body}
    if labels is not None:
        organs = {label: name if label < FIRST_LESION_LABEL else "lesions" for label, name in names.items() if label}
        for organ in dict.fromkeys(organs.values()):
            regions[organ] = np.isin(labels, [label for label, name in organs.items() if name == organ])
    full = torch.from_numpy(reference[None, None])
    variance = local_variance(full).numpy()[0, 0]
    noise = None if clean is None else noise_variance(full, torch.from_numpy(clean[None, None])).numpy()[0, 0]
    lines = []
    for kind, several in thresholds.items():
        for threshold in several if kind == "absolute" or noise is not None else ():
            inside = variance >= threshold if kind == "absolute" or noise is None else variance > threshold * noise
            shares = {name: float(inside[where].mean()) for name, where in regions.items() if where.any()}
            lines.append({"mask": kind, "threshold": threshold, **shares})
    return lines


def mask_report(ladders: Sequence[Ladder], files: Sequence[Path], kind: MaskKind, threshold: float) -> list[dict[str, Any]]:
    """Means of `mask_shares` over subjects of a dataset, at `THRESHOLDS` and at one more of a kind.

    Parameters
    ----------
    ladders, files : sequence
        The subjects, and where their labels are.
    kind : str
    threshold : float
    """
    thresholds: dict[MaskKind, tuple[float, ...]] = {
        k: tuple(sorted({*v, *((threshold,) if k == kind else ())})) for k, v in THRESHOLDS.items()
    }
    found = []
    for ladder, path in zip(ladders, files, strict=True):
        with SubjectFile(path) as f:
            labels, names = f.array("truth/labels"), f.label_names
        clean = None if ladder.noise_free is None else ladder.noise_free.volume()
        found.append(mask_shares(ladder.image(0), clean, labels, names, thresholds))
    lines = []
    for several in zip(*found, strict=True):
        regions = [name for name in dict.fromkeys(k for one in several for k in one) if name not in ("mask", "threshold")]
        means = {name: float(np.mean([one[name] for one in several if name in one])) for name in regions}
        lines.append({"mask": several[0]["mask"], "threshold": several[0]["threshold"], **means})
    return lines


def warnings_of(lines: Sequence[dict[str, Any]], kind: MaskKind, threshold: float) -> list[str]:
    """What is wrong with a mask."""
    own = [line for line in lines if (line["mask"], line["threshold"]) == (kind, threshold)]
    return [f"{WARNING} ({line['body']:.1%} of it at {kind} {threshold:g})" for line in own if line["body"] > INACTIVE]
