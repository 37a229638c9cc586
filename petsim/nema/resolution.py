"""NEMA NU 2-2018 section 3: width of the image of a point at 1, 10 and 20 cm from the axis.

Written from memory of the standard and of papers that report by it; the text of NU 2-2018 was not read. The standard asks
for filtered back projection; with an iterative reconstruction the figures are not comparable unless a background is given.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.phantoms.nema import point_sources
from data_recipes.subject import Subject
from petsim.geometry.scanner import Scanner
from petsim.nema.bench import Figure

RADII_MM = (10.0, 100.0, 200.0)
AXIAL_PLACES = (0.0, 0.375)
"""Axial positions as a fraction of the axial field of view, from its middle."""

REACH_FWHM = 2.0
"""Profiles are summed this far to either side, and followed three times as far, in expected widths."""

BACKGROUND_BQML = 2e5
"""Warm background: some percent of a point's peak."""

SPAN = 3
"""Ring differences that take part: neighboring rings at most, since oblique planes cost time and tell nothing more."""

VOXELS_PER_FWHM = 3
ITERATIONS, SUBSETS = 5, 14
"""Without noise, many subsets do no harm."""

REACH_BACKGROUND = 9.0
"""Axial reach of the background in expected widths: blur at its end must stay away from the profiles."""


def run(scanner: Scanner, decays: int | None, seed: int, out: Path | None, *, voxel_mm: float | None = None,
        iterations: int = ITERATIONS) -> list[Figure]:  # fmt: skip
    """FWHM in mm at 1, 10 and 20 cm, of noise-free images.

    By OSEM without TOF, point spread function or filter, of single crystals and planes across the axis: not the filtered
    back projection that the standard asks for. The published resolution enters the simulation, so that the widths at 1 cm
    are calibrated: beside the published ones they show what crystals, voxels and reconstruction add.

    Parameters
    ----------
    scanner : Scanner
    decays, seed : int
        Without effect: there is neither noise nor scatter.
    out : Path, optional
        Folder for a table.
    voxel_mm : float, optional
        Transaxial voxel; None: a third of the published resolution.
    iterations : int
        Of OSEM with `SUBSETS` subsets.
    """
    fwhm: tuple[float, float, float] = scanner.given("resolution_fwhm_mm")
    simulate = partial(_scan, scanner, voxel_mm or min(fwhm) / VOXELS_PER_FWHM, iterations)
    found = resolution(scanner, simulate, BACKGROUND_BQML)
    if out is not None:
        rows = [[r, *found["fwhm_mm"][f"{r:g}"].values(), *found["fwtm_mm"][f"{r:g}"].values()] for r in RADII_MM]
        names = list(found["fwhm_mm"]["10"])
        header = ",".join(["radius mm", *(f"{w} {n} mm" for w in ("FWHM", "FWTM") for n in names)])
        np.savetxt(out / f"{scanner.name}_resolution.csv", rows, "%.6g", ",", header=header, comments="")
    published = dict(zip(("tangential", "radial", "axial"), fwhm, strict=True))
    source, verified = scanner.sources.get("resolution_fwhm_mm", ""), scanner.is_verified("resolution_fwhm_mm")
    figures = []
    for radius in ("10", "100", "200"):
        for name in ("radial", "tangential", "axial"):
            width = Figure(f"fwhm_{name}_{radius}mm", found["fwhm_mm"][radius][name], kind="calibrated")
            if radius == "10":
                width = replace(width, published=published[name], source=source, verified=verified)
            figures.append(width)
    return figures


def _scan(scanner: Scanner, voxel_mm: float, iterations: int, subject: Subject) -> tuple[np.ndarray, Grid]:
    """Noise-free image."""
    from petsim.corrections import oracle
    from petsim.geometry.sinogram import SinogramLayout, fitting_grid, radials_for
    from petsim.model import build_model
    from petsim.plan import plan_subject
    from petsim.reconstruct import Reconstructor
    from petsim.settings import SimulationSettings

    fov = 2 * (max(RADII_MM) + 3 * REACH_FWHM * max(scanner.given("resolution_fwhm_mm")))
    settings = SimulationSettings(
        drf=(), scanner=scanner.name, preset="full", fov_mm=fov, voxel_mm=voxel_mm, iterations=iterations, subsets=SUBSETS,
        filter_mm=0.0, center_mm=0.0, scatter="none", randoms="none",
    )  # fmt: skip
    plan = plan_subject(subject, settings, scanner)
    half = SPAN // 2
    layout = SinogramLayout(scanner, radials_for(scanner, 1, fov), span=SPAN, max_ring_difference=half)
    # Only the slices that hold activity, where rings are.
    step, ends = layout.ring_pitch_mm, [subject.grid.center_mm[2] + s * subject.grid.extent_mm[2] / 2 for s in (-1, 1)]
    low, high = max(ends[0], -scanner.axial_length_mm / 2), min(ends[1], scanner.axial_length_mm / 2)
    center = (0.0, 0.0, round((low + high) / 2 / step) * step)
    grid = fitting_grid(layout, voxel_mm, voxel_mm, fov, 2 * round((high - low) / 2 / step) * step, center)
    blind = replace(scanner, resolution_fwhm_mm=(0.0, 0.0, 0.0))
    plan = replace(plan, scanner=blind, layout=layout, grid=grid, simulation_grid=grid)
    model = build_model(plan, settings)
    reconstructor = Reconstructor(plan, model.operator, oracle(plan, model, images=1))
    held: dict[bytes, np.ndarray] = {}

    def expected(views: np.ndarray) -> list[np.ndarray]:
        group = views.tobytes()
        if group not in held:
            held[group] = model.expected(views)[None]
        return [held[group]]

    raw = reconstructor.run(reconstructor.em_back(expected), list(range(plan.preset.subsets)) * plan.preset.iterations)
    return reconstructor.finish(raw)[0], grid


def resolution(scanner: Scanner, simulate: Callable[[Subject], tuple[np.ndarray, Grid]],
               background_bqml: float = 0.0) -> dict[str, Any]:  # fmt: skip
    """Make the resolution test with a simulation.

    Parameters
    ----------
    scanner : Scanner
    simulate : callable
        Subject to its image in Bq/mL (best without noise) and that image's grid, in the subject's mm. The scanner's center
        must lie at z = 0, voxels should be no wider than a third of the resolution, also those of the forward model.
    background_bqml : float
        Warm background; it is measured in the image and subtracted.

    Returns
    -------
    dict
        scanner, fwhm_mm and fwtm_mm: radius in mm ("10", "100", "200") to radial, tangential and axial width, means over
        both axial places; published_fwhm_mm (x, y, z at 1 cm) of the scanner's file. JSON types.
    """
    expected = scanner.resolution_fwhm_mm or (4.0, 4.0, 4.0)
    found: dict[str, list[tuple[tuple[float, float], ...]]] = {f"{r:g}": [] for r in RADII_MM}
    for fraction in AXIAL_PLACES:
        z = fraction * scanner.axial_length_mm
        places = [(0.0, r, z) for r in RADII_MM]
        image, grid = simulate(
            point_sources(places, background_bqml=background_bqml, background_reach_mm=REACH_BACKGROUND * max(expected))
        )
        for r in RADII_MM:
            found[f"{r:g}"].append(point_widths(image, grid, (0.0, r, z), expected, subtract=background_bqml > 0))
    names = ("tangential", "radial", "axial")
    means = {r: np.mean(widths, axis=0) for r, widths in found.items()}
    fwhm, fwtm = ({r: dict(zip(names, map(float, m[:, k]), strict=True)) for r, m in means.items()} for k in (0, 1))
    return {
        "scanner": scanner.name,
        "fwhm_mm": fwhm,
        "fwtm_mm": fwtm,
        "published_fwhm_mm": None if scanner.resolution_fwhm_mm is None else list(scanner.resolution_fwhm_mm),
    }


def point_widths(image: np.ndarray, grid: Grid, place_mm: tuple[float, float, float],
                 expected_fwhm_mm: tuple[float, float, float], *, subtract: bool = False,
                 ) -> tuple[tuple[float, float], ...]:  # fmt: skip
    """Full widths at half and at tenth maximum of the image of a point, along x, y and z.

    For each axis the profiles along it are summed over `REACH_FWHM` expected widths to all sides of the brightest voxel near
    the given place.

    Parameters
    ----------
    image : ndarray
        (x, y, z).
    grid : Grid
    place_mm : tuple of float
        Where the point is; other points must be at least 6 expected widths away.
    expected_fwhm_mm : tuple of float
        By axis; a guess within a factor of two is enough.
    subtract : bool
        Take off the background first: the median of the voxels farther than `REACH_FWHM` expected widths from the point
        along every axis.

    Returns
    -------
    tuple
        ((FWHM, FWTM) in mm) for x, y and z.

    Raises
    ------
    DataError
        A point outside the image, or one whose profile does not fall to a tenth inside.
    """
    near = _box(grid, place_mm, [REACH_FWHM * f for f in expected_fwhm_mm])
    if any(b.stop <= b.start for b in near):
        raise DataError(f"the point at {_text(place_mm)} mm lies outside the image; use a wider field of view")
    brightest = np.unravel_index(int(np.argmax(image[near])), image[near].shape)
    peak = [grid.axis_mm(a)[near[a].start + int(i)] for a, i in enumerate(brightest)]
    narrow = _box(grid, peak, [REACH_FWHM * f for f in expected_fwhm_mm])
    wide = _box(grid, peak, [3 * REACH_FWHM * f for f in expected_fwhm_mm])
    background = 0.0
    if subtract:
        far = [np.abs(grid.axis_mm(a)[wide[a]] - peak[a]) > REACH_FWHM * expected_fwhm_mm[a] for a in range(3)]
        background = float(np.median(image[wide][np.ix_(*far)]))
    widths = []
    for axis in range(3):
        box = tuple(wide[a] if a == axis else narrow[a] for a in range(3))
        others = tuple(a for a in range(3) if a != axis)
        profile = (image[box].astype(np.float64) - background).sum(axis=others)
        try:
            widths.append((full_width(profile, grid.spacing_mm[axis], 0.5), full_width(profile, grid.spacing_mm[axis], 0.1)))
        except DataError as error:
            raise DataError(f"the point at {_text(place_mm)} mm, along {'xyz'[axis]}: {error}") from error
    return tuple(widths)


def full_width(profile: np.ndarray, step_mm: float, level: float) -> float:
    """Full width of a peak at a fraction of its maximum.

    The maximum is that of the parabola through the highest sample and its neighbors; the crossings are found by linear
    interpolation between neighboring samples.

    Parameters
    ----------
    profile : ndarray
        Samples of one peak.
    step_mm : float
        Between samples.
    level : float
        0.5 for the FWHM, 0.1 for the FWTM.

    Returns
    -------
    float
        mm.

    Raises
    ------
    DataError
        When the peak lies at an end, or does not fall to the level on both sides.
    """
    top = int(np.argmax(profile))
    if not 0 < top < len(profile) - 1:
        raise DataError("the peak lies at the edge of the image; use a wider field of view")
    before, at, after = (float(v) for v in profile[top - 1 : top + 2])
    curvature = before - 2 * at + after
    maximum = at - (after - before) ** 2 / (8 * curvature) if curvature else at
    wanted = level * maximum
    ends = []
    for way in (-1, 1):
        side = profile[top::way]
        below = np.flatnonzero(side < wanted)
        if below.size == 0:
            raise DataError(f"the peak does not fall to {level:g} of its maximum; use a wider field of view")
        k = int(below[0])
        ends.append(k - 1 + float((side[k - 1] - wanted) / (side[k - 1] - side[k])))
    return sum(ends) * step_mm


def _box(grid: Grid, center_mm: Any, reach_mm: Any) -> tuple[slice, slice, slice]:
    slices = []
    for axis in range(3):
        index = [
            (center_mm[axis] + sign * reach_mm[axis] - grid.origin_mm[axis]) / grid.spacing_mm[axis] for sign in (-1, 1)
        ]
        low, high = math.ceil(index[0] - 1e-9), math.floor(index[1] + 1e-9) + 1
        slices.append(slice(max(low, 0), max(0, min(high, grid.shape[axis]))))
    return slices[0], slices[1], slices[2]


def _text(place_mm: tuple[float, float, float]) -> str:
    return "(" + ", ".join(f"{v:g}" for v in place_mm) + ")"
