"""Lesions put into a subject, with masks: for tests of detection on measured bodies."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from data_recipes.errors import DataError, UsageError
from data_recipes.phantoms.lesion_shapes import NECROTIC_SUV, REACH, SHAPES, LesionShape, lesion
from data_recipes.subject import Subject

SOFT_TISSUE_PER_CM = (0.08, 0.115)
"""Attenuation of where lesions are put: soft tissue, no lung, air or bone."""

CONTRAST = (2.0, 8.0)
"""Uptake of a lesion over the mean around it; drawn evenly on a logarithmic scale."""

DIAMETER_MM = (8.0, 35.0)
CLEARANCE_MM = 8.0
_MOST_LABEL = 255
_TRIES = 400


def insert_lesions(subject: Subject, count: int, seed: int, shapes: tuple[LesionShape, ...] = ("round", "irregular"),
                   remove_background: bool = True) -> Subject:  # fmt: skip
    """A subject with lesions added to its activity, each with a label of its own.

    They lie in soft tissue of the mu-map, away from each other and from what is labeled as a lesion already. A measured
    image has a resolution: activity is blurred by it (`fwhm_mm`), so that lesions look as measured ones do, while labels
    keep the true outline.

    Parameters
    ----------
    subject : Subject
        With mu.
    count : int
        Number of lesions, 1 or more.
    seed : int
        The same seed and subject give the same lesions.
    shapes : tuple of str
        Drawn evenly, see `data_recipes.phantoms.lesion_shapes`.
    remove_background : bool
        The lesion replaces the tissue where it lies; else its uptake comes on top.

    Returns
    -------
    Subject
        With labels from the first free one of 100 on, and `provenance["inserted_lesions"]`: shape, diameter_mm (of the drawn
        ball), contrast (to the mean around), bqml, center_mm, label.

    Raises
    ------
    UsageError
        A count below 1, or an unknown shape.
    DataError
        No mu, no room, or no label left.
    """
    if count < 1 or any(shape not in SHAPES for shape in shapes) or not shapes:
        raise UsageError(f"--insert-lesions: give a number of at least 1 (shapes: {', '.join(SHAPES)})")
    if subject.mu_per_cm is None:
        raise DataError(f"{subject.name}: lesions are put into soft tissue, which only a mu-map shows; add one first")
    rng = np.random.default_rng([seed, int(subject.content_sha256[:8] or "0", 16)])
    labels = np.zeros(subject.grid.shape, np.uint8) if subject.labels is None else subject.labels.copy()
    names = dict(subject.label_names) or {0: "unlabeled"}
    label = max([99, *(value for value in names if value >= 100)])
    if label + count > _MOST_LABEL:
        raise DataError(f"{subject.name}: has {label - 99} lesions already, {count} more have no label left; insert fewer")
    low, high = SOFT_TISSUE_PER_CM
    taken = labels >= 100
    free = (subject.mu_per_cm >= low) & (subject.mu_per_cm <= high) & ~taken
    activity, found = subject.activity_bqml.copy(), []
    for _ in range(count):
        label += 1
        drawn = _place(subject, free, rng, str(rng.choice(shapes)))
        mask, told = _paint(subject, activity, rng, drawn, remove_background)
        labels[mask] = label
        names[label] = f"lesion_{label - 99}_inserted"
        found.append(told | {"label": label})
        reach = drawn["diameter_mm"] / 2 * REACH[drawn["shape"]] + CLEARANCE_MM
        free &= _distance_from(subject, drawn["center_mm"]) > reach
    told = {"lesions": found, "seed": seed, "background": "removed" if remove_background else "kept"}
    digest = hashlib.sha256((subject.content_sha256 + json.dumps(told, sort_keys=True)).encode()).hexdigest()
    name = f"subject-{digest[:8]}" if subject.is_noisy else f"{subject.name}-lesions"
    return replace(
        subject, name=name, activity_bqml=activity, labels=labels, label_names=names, content_sha256=digest,
        provenance=subject.provenance | {"inserted_lesions": told},
    )  # fmt: skip


def _place(subject: Subject, free: np.ndarray, rng: np.random.Generator, shape: str) -> dict[str, Any]:
    """Shape, size, contrast and a center whose surroundings are soft tissue."""
    low, high = np.log(DIAMETER_MM)
    depth = _depth(subject, free).ravel()
    for attempt in range(_TRIES):
        # The longer it takes, the smaller the lesion that is tried.
        diameter = float(np.exp(rng.uniform(low, high - (high - low) * attempt / _TRIES)))
        reach = diameter / 2 * REACH[shape] + 2.0
        where = np.flatnonzero(depth > reach)
        if not where.size:
            continue
        index = np.unravel_index(int(where[rng.integers(where.size)]), free.shape)
        center = [float(subject.grid.axis_mm(a)[i]) for a, i in enumerate(index)]
        contrast = float(np.exp(rng.uniform(*np.log(CONTRAST))))
        return {"shape": shape, "diameter_mm": diameter, "contrast": contrast, "center_mm": center}
    raise DataError(f"{subject.name}: no room for another lesion in its soft tissue; insert fewer")


def _depth(subject: Subject, free: np.ndarray) -> np.ndarray:
    """Distance in mm of every free voxel from what is not free, or from the image's border."""
    padded = np.pad(free, 1)
    return np.asarray(ndimage.distance_transform_edt(padded, sampling=subject.grid.spacing_mm))[1:-1, 1:-1, 1:-1]


def _distance_from(subject: Subject, center_mm: list[float]) -> np.ndarray:
    x, y, z = (subject.grid.axis_mm(a) - c for a, c in enumerate(center_mm))
    return np.sqrt(x[:, None, None] ** 2 + y[None, :, None] ** 2 + z[None, None, :] ** 2)


def _paint(subject: Subject, activity: np.ndarray, rng: np.random.Generator, drawn: dict[str, Any],
           remove_background: bool) -> tuple[np.ndarray, dict[str, Any]]:  # fmt: skip
    """Change the activity; returns the lesion's mask and what is told of it."""
    grid = subject.grid
    x, y, z = (grid.axis_mm(a) - c for a, c in enumerate(drawn["center_mm"]))
    x, y, z = x[:, None, None], y[None, :, None], z[None, None, :]
    radius = drawn["diameter_mm"] / 2
    distance, core = lesion(rng, drawn["shape"], x, y, z, radius)
    edge = float(np.prod(grid.spacing_mm) ** (1 / 3))
    part = np.clip(0.5 - distance / edge, 0, 1).astype(np.float32)
    around = np.sqrt(x**2 + y**2 + z**2) < radius * REACH[drawn["shape"]] + 2.0
    bqml = drawn["contrast"] * float(subject.activity_bqml[around].mean())
    hot = part if core is None else part * (1 - (1 - NECROTIC_SUV) * np.clip(0.5 - core / edge, 0, 1)).astype(np.float32)
    if subject.fwhm_mm is not None:
        sigma = np.asarray(subject.fwhm_mm) / np.sqrt(8 * np.log(2)) / grid.spacing_mm
        part, hot = (np.asarray(ndimage.gaussian_filter(v, sigma, mode="constant")) for v in (part, hot))
    if remove_background:
        activity *= 1 - part
    activity += np.float32(bqml) * hot
    rounded = {"diameter_mm": round(drawn["diameter_mm"], 1), "contrast": round(drawn["contrast"], 3), "bqml": bqml}
    return distance <= 0, drawn | rounded | {"center_mm": [round(c, 1) for c in drawn["center_mm"]]}
