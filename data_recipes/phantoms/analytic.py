"""Phantoms with a known answer: a line source, a cylinder and Derenzo rods, exact in volume and activity."""

import hashlib
from dataclasses import replace

import numpy as np

from data_recipes.errors import UsageError
from data_recipes.grid import Grid
from data_recipes.subject import Injection, Subject

MU_WATER_PER_CM = 0.096  # at 511 keV, as in `data_recipes.phantoms.uptake`
_COLUMNS_ACROSS = 96


def line_source(length_mm: float = 700.0, *, activity_mbq: float = 10.0, diameter_mm: float = 2.0,
                spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0), center_mm: tuple[float, float] = (0.0, 0.0),
                ) -> Subject:  # fmt: skip
    """A thin F-18 source in air along the scanner's axis, as sensitivity is measured with (NEMA NU 2-2018, section 5).

    Parameters
    ----------
    length_mm : float
        Length along z; NEMA asks for 700 mm.
    activity_mbq : float
        Activity in MBq in the whole source at scan start.
    diameter_mm : float
        Of the active core.
    spacing_mm : tuple of float
        Voxel edges in mm.
    center_mm : tuple of float
        Where the source crosses x and y, in mm.

    Returns
    -------
    Subject
        Activity in Bq/mL whose sum is `activity_mbq`; mu is zero, since NEMA extrapolates to no attenuation.
    """
    _positive(length_mm=length_mm, activity_mbq=activity_mbq, diameter_mm=diameter_mm)
    reach = [2 * abs(c) + diameter_mm + 4 * d for c, d in zip(center_mm, spacing_mm[:2], strict=True)]
    grid = _grid((reach[0], reach[1], length_mm + 2 * spacing_mm[2]), spacing_mm)
    part = _cylinder_fraction(grid, diameter_mm / 2, length_mm, center_mm)
    volume_ml = np.pi * (diameter_mm / 2) ** 2 * length_mm * 1e-3
    activity = (part * (activity_mbq * 1e6 / volume_ml)).astype(np.float32)
    labels = (part > 0).astype(np.uint8)
    return _subject("line-source", activity, np.zeros_like(activity), labels, "source", grid, activity_mbq)


def cylinder(radius_mm: float = 100.0, length_mm: float = 200.0, *, bqml: float = 5000.0,
             mu_per_cm: float = MU_WATER_PER_CM, spacing_mm: tuple[float, float, float] = (4.0, 4.0, 4.0),
             margin_mm: float = 20.0, center_mm: tuple[float, float] = (0.0, 0.0)) -> Subject:  # fmt: skip
    """A uniform F-18 cylinder along z, water by default.

    Parameters
    ----------
    radius_mm, length_mm : float
        Size in mm.
    bqml : float
        Activity concentration in Bq/mL at scan start.
    mu_per_cm : float
        Linear attenuation coefficient at 511 keV in 1/cm.
    spacing_mm : tuple of float
        Voxel edges in mm.
    margin_mm : float
        Air around the cylinder in mm.
    center_mm : tuple of float
        Axis of the cylinder in x and y, in mm.

    Returns
    -------
    Subject
        Label 1 is "background"; edge voxels hold their covered fraction of activity and mu.
    """
    _positive(radius_mm=radius_mm, length_mm=length_mm, bqml=bqml)
    if mu_per_cm < 0 or margin_mm < 0:
        raise UsageError(f"mu_per_cm and margin_mm must be >= 0, got {mu_per_cm} and {margin_mm}; change them")
    reach = [2 * (abs(c) + radius_mm + margin_mm) for c in center_mm]
    grid = _grid((reach[0], reach[1], length_mm + 2 * margin_mm), spacing_mm)
    part = _cylinder_fraction(grid, radius_mm, length_mm, center_mm)
    activity = (part * bqml).astype(np.float32)
    mu = (part * mu_per_cm).astype(np.float32)
    total_mbq = bqml * np.pi * radius_mm**2 * length_mm * 1e-9
    labels = (part >= 0.5).astype(np.uint8)
    return _subject("cylinder", activity, mu, labels, "background", grid, total_mbq)


DERENZO_MM = (4.8, 6.4, 7.9, 9.5, 11.1, 12.7)
"""Diameters of the rods of the usual insert, a sector each (not verified)."""


def derenzo(rods_mm: tuple[float, ...] = DERENZO_MM, *, hot: bool = True, radius_mm: float = 100.0, length_mm: float = 60.0,
            bqml: float = 20_000.0, spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)) -> Subject:  # fmt: skip
    """Rods along z in a cylinder of water: sectors of equal rods in triangles, twice their diameter apart.

    Parameters
    ----------
    rods_mm : tuple of float
        Diameter by sector, counterclockwise from the right, in mm.
    hot : bool
        Activity is in the rods alone; else everywhere but in them.
    radius_mm, length_mm : float
        Of the cylinder.
    bqml : float
        Where there is activity, in Bq/mL at scan start.
    spacing_mm : tuple of float
        Voxel edges in mm.

    Returns
    -------
    Subject
        Labels: 1 background, 2 on the sectors' rods in the order of `rods_mm`.
    """
    _positive(radius_mm=radius_mm, length_mm=length_mm, bqml=bqml, rod=min(rods_mm, default=0.0))
    side = 2 * radius_mm + 20.0
    grid = _grid((side, side, length_mm + 20.0), spacing_mm)
    body = _cylinder_fraction(grid, radius_mm, length_mm, (0.0, 0.0))
    labels = (body >= 0.5).astype(np.uint8)
    rods = np.zeros(grid.shape)
    slab = Grid((*grid.shape[:2], 1), grid.spacing_mm, (*grid.origin_mm[:2], 0.0))
    along = _cylinder_fraction(grid, side, length_mm, (0.0, 0.0))[:1, :1]
    for number, diameter in enumerate(rods_mm):
        across = np.zeros(slab.shape)
        for center in _sector_mm(number, len(rods_mm), diameter, radius_mm):
            across += _cylinder_fraction(slab, diameter / 2, 10 * spacing_mm[2], center)
        part = across * along
        labels[part >= 0.5] = number + 2
        rods += part
    filled = rods if hot else body - rods
    names = {f"rods_{d:g}": k for k, d in enumerate(rods_mm, start=2)}
    activity, mu = (filled * bqml).astype(np.float32), (body * MU_WATER_PER_CM).astype(np.float32)
    subject = _subject(
        "derenzo", activity, mu, labels, "background", grid, float(activity.sum(dtype=float)) * grid.voxel_ml * 1e-6
    )
    return replace(subject, label_names=subject.label_names | {v: k for k, v in names.items()})


def _sector_mm(number: int, sectors: int, diameter: float, radius_mm: float) -> list[tuple[float, float]]:
    """Centers of a sector's rods that lie in it and in the cylinder."""
    middle, half = 2 * np.pi * (number + 0.5) / sectors, np.pi / sectors
    pitch, found = 2 * diameter, []
    rows = int(radius_mm / pitch) + 2
    for row in range(rows):
        # Rows of an equilateral lattice, from the sector's tip outward.
        away = (1.5 + row * np.sqrt(0.75) * 2) * diameter
        for k in range(row + 1):
            sideways = (k - row / 2) * pitch
            rod, turn = np.hypot(away, sideways), np.arctan2(sideways, away)
            free = rod * np.sin(half - abs(turn)) >= diameter / 2 if abs(turn) < half else False
            if free and rod + diameter / 2 <= radius_mm - 2.0:
                found.append((float(rod * np.cos(middle + turn)), float(rod * np.sin(middle + turn))))
    return found


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise UsageError(f"{name} must be positive, got {value}; change it")


def _grid(extent_mm: tuple[float, float, float], spacing_mm: tuple[float, float, float]) -> Grid:
    counts = [int(np.ceil(e / d - 1e-9)) for e, d in zip(extent_mm, spacing_mm, strict=True)]
    return Grid.centered((counts[0], counts[1], counts[2]), spacing_mm)


def _cylinder_fraction(grid: Grid, radius_mm: float, length_mm: float, center_mm: tuple[float, float]) -> np.ndarray:
    """Fraction of each voxel (float64, the grid's shape) inside an upright cylinder in the middle of the grid's z.

    Exact in y and z; along x the circle's chord is summed by the midpoint rule, to some 1e-4 of the area.
    """
    x, y, z = (grid.axis_mm(i) for i in range(3))
    dx, dy, dz = grid.spacing_mm
    columns = max(16, int(np.ceil(_COLUMNS_ACROSS * dx / (2 * radius_mm))))
    offsets = ((np.arange(columns) + 0.5) / columns - 0.5) * dx
    across = x[:, None] + offsets[None, :] - center_mm[0]
    chord = np.sqrt(np.maximum(radius_mm**2 - across**2, 0.0))[:, None, :]
    middle = (y - center_mm[1])[None, :, None]
    covered = np.minimum(middle + dy / 2, chord) - np.maximum(middle - dy / 2, -chord)
    area = np.clip(covered, 0, dy).mean(axis=2) / dy
    top, bottom = np.minimum(z + dz / 2, length_mm / 2), np.maximum(z - dz / 2, -length_mm / 2)
    return area[:, :, None] * (np.clip(top - bottom, 0, dz) / dz)[None, None, :]


def _subject(name: str, activity: np.ndarray, mu: np.ndarray, labels: np.ndarray, label: str, grid: Grid,
             total_mbq: float) -> Subject:  # fmt: skip
    digest = hashlib.sha256()
    for array in (activity, mu, labels):
        digest.update(array.tobytes())
    return Subject(
        name=name, activity_bqml=activity, grid=grid, mu_per_cm=mu, mu_source="phantom", labels=labels,
        label_names={0: "outside", 1: label}, content_sha256=digest.hexdigest(),
        injection=Injection("F-18", "FDG", injected_mbq=total_mbq, uptake_s=0.0),
        provenance={"kind": "generated", "recipe": name, "license": "generated, Apache-2.0"},
    )  # fmt: skip
