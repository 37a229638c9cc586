"""A mu-map that does not fit the emission data: breathing and movement between CT and PET, and a CT too narrow for the body.

The CT is taken in seconds at one point of the breathing cycle, the PET over many cycles, so that the diaphragm and what lies
around it differ. Attenuation, and the scatter estimated from it, are then wrong in a way that no noise model shows.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_recipes.errors import UsageError
from data_recipes.grid import Grid
from petsim.philox import stream_key

AXIAL_SIGMA_MM = 4.4
"""Standard deviation of the axial shift; its mean size is 3.5 mm, the mean distance of lesions up to 3 cm in lung and upper
abdomen between ungated PET and CT in "Improved alignment of PET and CT images in whole-body PET/CT in cases of respiratory
motion during CT" (J Nucl Med, abstract). The border of lung and liver was 5.6 +- 7.3 mm apart between gated PET and
free-breathing CT, 1.7 +- 2.1 mm with breath-hold CT (doi 10.2967/jnmt.118.215970, abstract)."""

TRANSAXIAL_SIGMA_MM = 1.0
"""Standard deviation of the shift along x and along y; assumed."""


@dataclass(frozen=True)
class MuMismatch:
    """How the mu-map used in reconstruction differs from the true one.

    Parameters
    ----------
    shift_mm : tuple of float
        What the whole map is moved by along x, y and z (patient left to right, posterior to anterior, feet to head).
    truncation_mm : float, optional
        Radius of the CT's field of view; nothing attenuates outside (arms beside the body are lost). None: no limit.
    """

    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    truncation_mm: float | None = None

    def __post_init__(self) -> None:
        if not all(math.isfinite(s) for s in self.shift_mm):
            raise UsageError(f"mu-map shift {self.shift_mm} mm is not finite; give three lengths in mm")
        if self.truncation_mm is not None and not self.truncation_mm > 0:
            raise UsageError(f"mu-map truncation radius must be positive, got {self.truncation_mm:g} mm")

    @property
    def is_none(self) -> bool:
        """Whether nothing differs."""
        return not any(self.shift_mm) and self.truncation_mm is None

    def describe(self) -> dict[str, Any]:
        """JSON types: shift_mm (x, y, z) rounded to 1 um, truncation_mm."""
        return {"shift_mm": [round(s, 3) for s in self.shift_mm], "truncation_mm": self.truncation_mm}


def draw_mismatch(seed: int, subject_name: str, scale: float = 1.0, truncation_mm: float | None = None) -> MuMismatch:
    """Normal shifts of `AXIAL_SIGMA_MM` along z and `TRANSAXIAL_SIGMA_MM` along x and y, the same for a subject at any dose.

    Parameters
    ----------
    seed : int
    subject_name : str
        Neutral name of the subject.
    scale : float
        Factor on all standard deviations; 0 gives a map in place.
    truncation_mm : float, optional
        As in `MuMismatch`; it is not random.

    Returns
    -------
    MuMismatch
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise UsageError(f"scale of the mu-map mismatch must be 0 or more, got {scale:g}")
    rng = np.random.Generator(np.random.Philox(key=stream_key(seed, subject_name, "mu-map mismatch")))
    x, y, z = scale * rng.standard_normal(3) * (TRANSAXIAL_SIGMA_MM, TRANSAXIAL_SIGMA_MM, AXIAL_SIGMA_MM)
    return MuMismatch((float(x), float(y), float(z)), truncation_mm)


def apply_mismatch(
    mu_per_cm: np.ndarray, grid: Grid, mismatch: MuMismatch, center_mm: tuple[float, float, float] | None = None
) -> np.ndarray:
    """The mu-map as a mismatched CT would give it.

    Parameters
    ----------
    mu_per_cm : ndarray
        (x, y, z) in 1/cm.
    grid : Grid
        Its grid.
    mismatch : MuMismatch
    center_mm : tuple of float, optional
        Center of the CT's field of view in the grid's coordinates; None: the middle of the grid.

    Returns
    -------
    ndarray
        float32 (x, y, z) in 1/cm: linear interpolation between voxels; what enters at an edge continues the outermost voxel.
    """
    out = np.array(mu_per_cm, np.float32, order="C")
    for axis, (shift, spacing) in enumerate(zip(mismatch.shift_mm, grid.spacing_mm, strict=True)):
        if shift:
            out = _shifted(out, axis, shift / spacing)
    if mismatch.truncation_mm is not None:
        x, y, _ = grid.center_mm if center_mm is None else center_mm
        radius = np.hypot((grid.axis_mm(0) - x)[:, None], (grid.axis_mm(1) - y)[None, :])
        out[radius > mismatch.truncation_mm] = 0
    return out


def _shifted(image: np.ndarray, axis: int, voxels: float) -> np.ndarray:
    whole = math.floor(voxels)
    fraction = np.float32(voxels - whole)
    source = np.arange(image.shape[axis]) - whole
    last = image.shape[axis] - 1
    near, far = (np.take(image, np.clip(source - k, 0, last), axis=axis) for k in (0, 1))
    return near * (1 - fraction) + far * fraction
