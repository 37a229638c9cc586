"""Shapes of lesions: bumpy balls, irregular clusters, and necrotic rims."""

from typing import Literal

import numpy as np

from data_recipes.phantoms.shapes import smooth_union

LesionShape = Literal["round", "irregular", "necrotic"]
SHAPES: tuple[LesionShape, ...] = ("round", "irregular", "necrotic")

REACH = {"round": 1.35, "irregular": 1.7, "necrotic": 1.35}
"""How far a shape can reach from its center, in radii."""

NECROTIC_SUV = 0.15
"""Uptake of a necrotic core over that of its rim; assumed, tumors in PET show dark centers."""


def bumpy(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, z: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in mm to a ball whose surface undulates by some ten per cent, float32; coordinates from its center."""
    r = np.sqrt(x * x + y * y + z * z) + 1e-6
    bumps = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape))
    for order in (2.0, 3.0, 3.0):
        way = rng.standard_normal(3)
        way /= np.linalg.norm(way)
        bumps += 0.06 * np.cos(order * np.arccos(np.clip((x * way[0] + y * way[1] + z * way[2]) / r, -1, 1)))
    return (r - radius * (1 + bumps)).astype(np.float32)


def lesion(rng: np.random.Generator, shape: LesionShape, x: np.ndarray, y: np.ndarray, z: np.ndarray,
           radius: float) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    """Signed distance in mm (float32) to a lesion, and to its cold core where it has one.

    "round": `bumpy`. "irregular": a bumpy ball with three to five lobes that grow out of it, of about the same volume.
    "necrotic": a bumpy ball whose core, 0.5 to 0.65 of the radius, has next to no uptake (`NECROTIC_SUV`).

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : str
    x, y, z : ndarray
        Coordinates from the center in mm, that broadcast.
    radius : float
        In mm, of the ball of the same volume.
    """
    if shape == "irregular":
        distance = bumpy(rng, x, y, z, 0.9 * radius)
        for _ in range(int(rng.integers(3, 6))):
            way = rng.standard_normal(3)
            way *= rng.uniform(0.7, 0.95) * radius / np.linalg.norm(way)
            lobe = bumpy(rng, x - way[0], y - way[1], z - way[2], radius * rng.uniform(0.35, 0.62))
            distance = smooth_union(distance, lobe, 0.15 * radius)
        return distance, None
    distance = bumpy(rng, x, y, z, radius)
    if shape == "necrotic":
        return distance, bumpy(rng, x, y, z, radius * rng.uniform(0.5, 0.65))
    return distance, None
