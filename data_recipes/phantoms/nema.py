"""The phantoms of NEMA NU 2-2018 for image quality and resolution, with exact partial volumes.

Positions are mm from the scanner's center, which for the body phantom is the middle of the lung insert in the plane of the
spheres. Measures and materials are those of the IEC body phantom as GATE has it (opengate/contrib/phantoms/nemaiec.py); the
outer wall of 3 mm and the capillaries to the spheres are left out.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

from data_recipes.errors import UsageError
from data_recipes.grid import Grid
from data_recipes.subject import Injection, Subject

SPHERES_MM = (10.0, 13.0, 17.0, 22.0, 28.0, 37.0)
"""Inner diameters."""

BACKGROUND_BQML = 5300.0
RATIO = 4.0
"""Concentration in the spheres over that of the background, all six hot."""

BODY_Z_MM = (-124.0, 70.0)
"""Ends of the body: 194 mm inside, the spheres 27 mm above its middle."""

SPHERE_WALL_MM = 1.0
"""Of plastic, which is cold: it lowers the contrast of small spheres."""

LUNG_RADIUS_MM = 25.0
MU_WATER_PER_CM = 0.096
MU_LUNG_PER_CM = 0.3 * MU_WATER_PER_CM
"""Of 0.3 g/mL."""

MU_PLASTIC_PER_CM = 1.147 * MU_WATER_PER_CM
"""C5H8O2 of 1.18 g/mL has 1.147 times the electrons of water, which nearly all attenuation at 511 keV goes with."""

# The body is half a disk on two quarter disks and a box; their common center lies 35 mm below that of the insert.
_DISK_MM, _CORNER_MM, _BOX_HALF_MM, _DOWN_MM = 147.0, 77.0, 70.0, 35.0
_SPHERE_RING_MM = 57.2
_LINE_MBQ = 116.6
_SCATTER_RADIUS_MM, _SCATTER_LENGTH_MM, _LINE_DOWN_MM, _LINE_RADIUS_MM = 101.5, 700.0, 45.0, 1.6
_MU_POLYETHYLENE_PER_CM = 0.0945
_SAMPLES = 12


def sphere_centers_mm() -> dict[float, tuple[float, float]]:
    """Diameter to (x, y): 60 degrees apart, the 37 mm and the 17 mm sphere level with the insert."""
    out = {}
    for k, diameter in enumerate((37.0, 28.0, 22.0, 17.0, 13.0, 10.0)):
        angle = math.pi + k * math.pi / 3
        out[diameter] = (_SPHERE_RING_MM * math.cos(angle), _SPHERE_RING_MM * math.sin(angle))
    return out


def body_outline_mm(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest y of the body's inside at x, in mm; both equal where there is none."""
    away = np.abs(x)
    top = np.sqrt(np.maximum(_DISK_MM**2 - away**2, 0.0))
    bottom = np.sqrt(np.maximum(_CORNER_MM**2 - np.maximum(away - _BOX_HALF_MM, 0.0) ** 2, 0.0))
    return -_DOWN_MM - bottom, -_DOWN_MM + top


def body_phantom(*, background_bqml: float = BACKGROUND_BQML, ratio: float = RATIO, cold_mm: Sequence[float] = (),
                 scatter_phantom: bool = False, spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0),
                 margin_mm: float = 10.0, grid: Grid | None = None) -> Subject:  # fmt: skip
    """The torso-shaped phantom of the image quality test (section 7): six spheres and a cold lung insert in F-18 water.

    Parameters
    ----------
    background_bqml : float
        Concentration in Bq/mL at scan start.
    ratio : float
        Concentration in hot spheres over that of the background.
    cold_mm : sequence of float
        Diameters of spheres of water without activity: (28, 37) in NU 2-2007 and NU 2-2012; in NU 2-2018 all are hot.
    scatter_phantom : bool
        Put the polyethylene cylinder of 70 cm with its line source (116.6 MBq at the standard background) against the feet,
        as activity outside the field of view. Simulate with the scanner's center at z = 0 then.
    spacing_mm : tuple of float
        Voxel edges in mm.
    margin_mm : float
        Air around.
    grid : Grid, optional
        Voxels, instead of those of `spacing_mm` that span the phantom and its margin; what lies outside is cut off.

    Returns
    -------
    Subject
        Labels: 1 background, 2 lung_insert, 3 to 8 the spheres by size, 9 scatter_phantom.
    """
    for name, value in (("background_bqml", background_bqml), ("ratio", ratio)):
        if not value > 0:
            raise UsageError(f"{name} must be positive, got {value:g}; change it")
    if unknown := set(cold_mm) - set(SPHERES_MM):
        known = ", ".join(f"{d:g}" for d in SPHERES_MM)
        raise UsageError(f"cold_mm: there is no sphere of {min(unknown):g} mm; take some of {known}")
    if grid is None:
        # The sphere plane is the middle of the grid, so that it is the scanner's center unless another is asked for.
        half = (_DISK_MM + margin_mm, _DOWN_MM + _CORNER_MM + margin_mm, -BODY_Z_MM[0] + margin_mm)
        low_z = BODY_Z_MM[0] - (_SCATTER_LENGTH_MM if scatter_phantom else 0.0) - margin_mm
        grid = _spanning(((-half[0], half[0]), (-half[1], half[1]), (low_z, half[2])), spacing_mm)

    body = _prism(grid, body_outline_mm, BODY_Z_MM)
    activity, mu = body * background_bqml, body * MU_WATER_PER_CM
    labels = np.zeros(grid.shape, np.uint8)
    labels[body >= 0.5] = 1
    # What was there before makes way for a part.
    lung = _prism(grid, _disk(0.0, 0.0, LUNG_RADIUS_MM), BODY_Z_MM)
    activity -= lung * background_bqml
    mu += lung * (MU_LUNG_PER_CM - MU_WATER_PER_CM)
    labels[lung >= 0.5] = 2
    names = {0: "outside", 1: "background", 2: "lung_insert"}
    for label, d in enumerate(SPHERES_MM, start=3):
        center = (*sphere_centers_mm()[d], 0.0)
        inside, whole = (sphere_fraction(grid, center, d / 2 + wall) for wall in (0.0, SPHERE_WALL_MM))
        activity += (inside * (0.0 if d in cold_mm else ratio) - whole) * background_bqml
        mu += (whole - inside) * (MU_PLASTIC_PER_CM - MU_WATER_PER_CM)
        labels[inside >= 0.5] = label
        names[label] = f"sphere_{d:g}"
    if scatter_phantom:
        ends = (BODY_Z_MM[0] - _SCATTER_LENGTH_MM, BODY_Z_MM[0])
        cylinder = _prism(grid, _disk(0.0, 0.0, _SCATTER_RADIUS_MM), ends)
        line = _prism(grid, _disk(0.0, -_LINE_DOWN_MM, _LINE_RADIUS_MM), ends)
        mu += cylinder * _MU_POLYETHYLENE_PER_CM
        part = _covered(grid.axis_mm(2), grid.spacing_mm[2], *ends).sum() * grid.spacing_mm[2] / _SCATTER_LENGTH_MM
        if part > 0:
            line_bq = _LINE_MBQ * 1e6 * background_bqml / BACKGROUND_BQML * part
            activity += line * line_bq / (line.sum() * grid.voxel_ml)
        labels[cylinder >= 0.5] = 9
        names[9] = "scatter_phantom"
    return _subject("nema-image-quality", np.clip(activity, 0, None), np.clip(mu, 0, None), labels, names, grid)


def point_sources(places_mm: Sequence[tuple[float, float, float]] = ((0.0, 10.0, 0.0), (0.0, 100.0, 0.0), (0.0, 200.0, 0.0)),
                  *, activity_mbq: float = 1.0, diameter_mm: float = 1.0,
                  spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Subject:  # fmt: skip
    """F-18 points in air for the resolution test (section 3).

    Parameters
    ----------
    places_mm : sequence of tuple
        (x, y, z) of every point, mm from the scanner's center; the standard has 1, 10 and 20 cm above the axis, in the
        middle and at 3/8 of the axial field of view from it.
    activity_mbq : float
        Of every point.
    diameter_mm : float
        Of the ball that stands for a point; at most 1 mm by the standard. Voxels wider than that widen it.
    spacing_mm : tuple of float
        Voxel edges in mm.

    Returns
    -------
    Subject
        Without attenuation; the grid is centered on the scanner's axis. Where points lie off the middle axially, simulate
        with the scanner's center at z = 0.
    """
    if not activity_mbq > 0 or not diameter_mm > 0 or not places_mm:
        raise UsageError(
            f"activity_mbq and diameter_mm must be positive and places_mm not empty, got {activity_mbq:g}, "
            f"{diameter_mm:g} and {len(places_mm)} places; change them"
        )
    places, reach = np.asarray(places_mm, float), 10.0
    across = [np.abs(places[:, axis]).max() + reach for axis in (0, 1)]
    z = (min(places[:, 2].min() - reach, -reach), max(places[:, 2].max() + reach, reach))
    grid = _spanning(((-across[0], across[0]), (-across[1], across[1]), z), spacing_mm, odd=True)
    activity = np.zeros(grid.shape)
    labels = np.zeros(grid.shape, np.uint8)
    for place in places:
        ball = sphere_fraction(grid, tuple(place), diameter_mm / 2)
        activity += ball * (activity_mbq * 1e6 / (ball.sum() * grid.voxel_ml))
        labels[ball > 0] = 1
    return _subject("nema-points", activity, np.zeros(grid.shape), labels, {0: "outside", 1: "source"}, grid)


def sphere_fraction(grid: Grid, center_mm: tuple[float, float, float], radius_mm: float) -> np.ndarray:
    """Fraction of each voxel (float64, the grid's shape) inside a ball: exact along z, midpoint rule along x and y."""
    out = np.zeros(grid.shape)
    box = []
    for axis in range(3):
        index = np.flatnonzero(np.abs(grid.axis_mm(axis) - center_mm[axis]) <= radius_mm + grid.spacing_mm[axis])
        if index.size == 0:
            return out
        box.append(slice(int(index[0]), int(index[-1]) + 1))
    samples = max(_SAMPLES, math.ceil(8 * max(grid.spacing_mm[:2]) / radius_mm))
    offsets = (np.arange(samples) + 0.5) / samples - 0.5
    x, y = (
        (grid.axis_mm(a)[box[a], None] + offsets * grid.spacing_mm[a] - center_mm[a]).reshape(-1) for a in (0, 1)
    )  # fmt: skip
    half = np.sqrt(np.maximum(radius_mm**2 - x[:, None] ** 2 - y[None, :] ** 2, 0.0))
    z, dz = grid.axis_mm(2)[box[2]] - center_mm[2], grid.spacing_mm[2]
    inside = _covered(z, dz, -half[..., None], half[..., None])
    nx, ny = len(x) // samples, len(y) // samples
    part = inside.reshape(nx, samples, ny, samples, -1).mean(axis=(1, 3))
    out[tuple(box)] = part
    return out


def _covered(at: np.ndarray, width: float, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Fraction of intervals of a width around `at` that lies between `low` and `high`."""
    return np.clip(np.minimum(at + width / 2, high) - np.maximum(at - width / 2, low), 0, None) / width


def _disk(x_mm: float, y_mm: float, radius_mm: float) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    def outline(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        half = np.sqrt(np.maximum(radius_mm**2 - (x - x_mm) ** 2, 0.0))
        return y_mm - half, y_mm + half

    return outline


def _prism(grid: Grid, outline: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
           z_mm: tuple[float, float]) -> np.ndarray:  # fmt: skip
    """Fraction of each voxel inside an upright body of one cross-section: exact in y and z, by the midpoint rule in x."""
    dx, dy, dz = grid.spacing_mm
    samples = max(_SAMPLES, math.ceil(32 * dx))
    x = grid.axis_mm(0)[:, None] + ((np.arange(samples) + 0.5) / samples - 0.5) * dx
    low, high = outline(x)
    area = _covered(grid.axis_mm(1)[None, :, None], dy, low[:, None, :], high[:, None, :]).mean(axis=2)
    return area[:, :, None] * _covered(grid.axis_mm(2), dz, *z_mm)[None, None, :]


def _spanning(bounds_mm: Sequence[tuple[float, float]], spacing_mm: tuple[float, float, float], *,
              odd: bool = False) -> Grid:  # fmt: skip
    """Grid that covers some bounds, centered on their middle; `odd` puts the center of a voxel there."""
    counts = [math.ceil((high - low) / d - 1e-9) for (low, high), d in zip(bounds_mm, spacing_mm, strict=True)]
    if odd:
        counts = [n + 1 - n % 2 for n in counts]
    x, y, z = ((low + high) / 2 for low, high in bounds_mm)
    return Grid.centered((counts[0], counts[1], counts[2]), spacing_mm, (x, y, z))


def _subject(name: str, activity: np.ndarray, mu: np.ndarray, labels: np.ndarray, names: dict[int, str],
             grid: Grid) -> Subject:  # fmt: skip
    bqml, per_cm = activity.astype(np.float32), mu.astype(np.float32)
    digest = hashlib.sha256()
    for array in (bqml, per_cm, labels):
        digest.update(array.tobytes())
    total_mbq = float(bqml.sum(dtype=np.float64)) * grid.voxel_ml * 1e-6
    return Subject(
        name=name, activity_bqml=bqml, grid=grid, mu_per_cm=per_cm, mu_source="phantom", labels=labels, label_names=names,
        content_sha256=digest.hexdigest(), injection=Injection("F-18", "FDG", injected_mbq=total_mbq, uptake_s=0.0),
        provenance={"kind": "generated", "recipe": name, "license": "generated, Apache-2.0"},
    )  # fmt: skip
