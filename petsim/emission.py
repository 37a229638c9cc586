"""Which part of a source's activity takes part in a simulation."""

import numpy as np
from scipy.ndimage import maximum_filter1d

from data_recipes.subject import Subject

MATTER_PER_CM = 0.02
"""Attenuation at 511 keV that is no air; lungs have some 0.03."""

MARGIN_MM = 10.0
"""How far from matter activity is believed: resolution and a shifted mu-map smear the skin that far."""


def near_matter(subject: Subject) -> np.ndarray:
    """bool (x, y, z): voxels within `MARGIN_MM` of matter along the axes."""
    assert subject.mu_per_cm is not None
    near = (subject.mu_per_cm > MATTER_PER_CM).astype(np.uint8)
    for axis, spacing in enumerate(subject.grid.spacing_mm):
        near = maximum_filter1d(near, 2 * round(MARGIN_MM / spacing) + 1, axis=axis, mode="constant")
    return near.astype(bool)


def emitted(subject: Subject) -> np.ndarray:
    """Activity that is simulated, float32 (x, y, z) in Bq/mL: of a measured image without what it shows in air.

    Nothing takes up tracer in air: what an image shows there is noise and imperfect correction. Simulated, it would put
    trues into the tails beside the body by which scatter is scaled: 1.2 % of the activity of a whole-body scan made the
    estimated scatter 1.5 times the true one, and the image 15 % too dark.
    """
    if not subject.is_noisy:
        return subject.activity_bqml
    return subject.activity_bqml * near_matter(subject)


def share_in_air(subject: Subject) -> float:
    """Part of the activity that `emitted` leaves out."""
    total = float(subject.activity_bqml.sum(dtype=np.float64))
    return 1 - float(emitted(subject).sum(dtype=np.float64)) / total if total > 0 else 0.0
