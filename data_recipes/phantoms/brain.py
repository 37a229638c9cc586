"""A brain phantom in the manner of Hoffman's: gray matter with four times the activity of white matter, none in fluid."""

import hashlib

import numpy as np

from data_recipes.errors import UsageError
from data_recipes.grid import Grid
from data_recipes.subject import Injection, Subject

GRAY_TO_WHITE = 4.0
"""Of Hoffman et al. 1990 (doi 10.1109/23.106630, not verified); fluid has none."""

MU_PER_CM = 0.096
LABEL_NAMES = {0: "outside", 1: "fluid", 2: "white_matter", 3: "gray_matter"}

_HALF_MM = np.array([66.0, 84.0, 66.0])
_CORTEX_MM, _FOLD_MM = 4.5, 26.0
# Half of the places in a voxel where it is sampled, beside its center; the others are their mirror images. They are those of
# the additive sequence of the root of x**4 = x + 1, all at different heights along every axis: on a regular lattice a
# flat face between the hemispheres adds or loses a whole layer of samples, 1 to 3 % of all activity.
_PAIRS = 13
_ROOT = 1.2207440846057596
# Centers and half-axes in mm of ventricles (fluid) and deep nuclei (gray), mirrored at the middle.
_VENTRICLES = (((9.0, 4.0, 8.0), (6.0, 30.0, 10.0)),)
_NUCLEI = (((13.0, -10.0, -4.0), (9.0, 14.0, 10.0)), ((26.0, 12.0, 0.0), (8.0, 20.0, 12.0)))


def brain_phantom(*, gray_bqml: float = 20_000.0, spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)) -> Subject:
    """A folded cortex, white matter, deep nuclei and ventricles in a skull-less head of water, all by formula.

    Not Hoffman's slices, whose drawing is not free, but what they are used for: fine gray and white structure of known
    ratio. Voxels on an edge hold means of 27 samples.

    Parameters
    ----------
    gray_bqml : float
        Activity concentration of gray matter in Bq/mL at scan start; white matter has a quarter.
    spacing_mm : tuple of float
        Voxel edges in mm.

    Returns
    -------
    Subject
        Labels 1 fluid, 2 white_matter, 3 gray_matter: those of the voxel's center.
    """
    if not gray_bqml > 0:
        raise UsageError(f"gray_bqml must be positive, got {gray_bqml:g}; change it")
    shape = [int(np.ceil(2 * (h + 10.0) / d)) for h, d in zip(_HALF_MM, spacing_mm, strict=True)]
    grid = Grid.centered((shape[0], shape[1], shape[2]), spacing_mm)
    half = (0.5 + np.arange(1, _PAIRS + 1)[:, None] * _ROOT ** -np.arange(1.0, 4.0)) % 1 - 0.5
    offsets = np.concatenate([np.zeros((1, 3)), half, -half]) * spacing_mm
    level = np.array([0.0, 0.0, 1 / GRAY_TO_WHITE, 1.0])
    activity, mu = np.zeros(grid.shape), np.zeros(grid.shape)
    axes = [grid.axis_mm(a) for a in range(3)]
    for dx, dy, dz in offsets:
        tissue = _tissue(axes[0] + dx, axes[1] + dy, axes[2] + dz)
        activity += level[tissue]
        mu += tissue > 0
    activity = (activity * (gray_bqml / len(offsets))).astype(np.float32)
    mu = (mu * (MU_PER_CM / len(offsets))).astype(np.float32)
    labels = _tissue(*axes).astype(np.uint8)
    digest = hashlib.sha256(activity.tobytes() + mu.tobytes() + labels.tobytes()).hexdigest()
    total_mbq = float(activity.sum(dtype=float)) * grid.voxel_ml * 1e-6
    return Subject(
        name="brain", activity_bqml=activity, grid=grid, mu_per_cm=mu, mu_source="phantom", labels=labels,
        label_names=LABEL_NAMES, content_sha256=digest,
        injection=Injection("F-18", "FDG", injected_mbq=total_mbq, uptake_s=0.0),
        provenance={"kind": "generated", "recipe": "brain", "license": "generated, Apache-2.0"},
    )  # fmt: skip


def _tissue(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Label at every place."""
    x, y, z = x[:, None, None], y[None, :, None], z[None, None, :]
    a, b, c = _HALF_MM
    rho = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    depth = (1 - rho) * 70.0
    # Sulci: a pattern that runs with the place on the surface, not with the depth.
    on = np.maximum(rho, 0.2)
    folds = np.sin(9 * x / (a * on)) * np.sin(8 * y / (b * on) + 1.0) + np.sin(8 * z / (c * on) + 2.0) * np.cos(
        7 * y / (b * on)
    )
    fold = _FOLD_MM * np.clip(folds, 0, 1)
    label = np.where(depth > 0, 1, 0)
    # Fluid fills the outer eighth of a sulcus; gray matter follows it all the way down.
    cortex = np.minimum(depth - 2.0 - fold / 8, np.abs(x) - 1.5)
    label = np.where(cortex > 0, 3, label)
    label = np.where(np.minimum(depth - 2.0 - fold, np.abs(x) - 1.5) > _CORTEX_MM, 2, label)
    for value, solids in ((1, _VENTRICLES), (3, _NUCLEI)):
        for middle, half in solids:
            inside = sum(((np.abs(v) if k == 0 else v) - m) ** 2 / h**2
                         for k, (v, m, h) in enumerate(zip((x, y, z), middle, half, strict=True)))  # fmt: skip
            label = np.where((np.asarray(inside) < 1) & (depth > 15), value, label)
    return label
