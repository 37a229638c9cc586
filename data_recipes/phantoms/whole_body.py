"""A generated patient for whole-body FDG PET, from vertex to mid-thigh, another one for every seed."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from data_recipes.errors import UsageError
from data_recipes.grid import Grid
from data_recipes.isotopes import decay_factor, isotope
from data_recipes.phantoms.anatomy import LABEL, LABEL_NAMES, Scene, draw
from data_recipes.phantoms.body import REFERENCE_HEIGHT_MM, Body
from data_recipes.phantoms.budget import close_budget
from data_recipes.phantoms.families import DEFAULT, HELD_OUT_SHAPES, REFERENCE, family_named
from data_recipes.phantoms.lesion_shapes import NECROTIC_SUV, REACH, SHAPES, LesionShape, lesion
from data_recipes.phantoms.shapes import Canvas, smooth_field
from data_recipes.phantoms.uptake import MASS_ATTENUATION_CM2_PER_G, TISSUES, draw_suv
from data_recipes.subject import Injection, Subject
from data_recipes.units import suv_to_bqml

FIRST_LESION_LABEL = 100
_WIDTH_MM = 480.0
_AIR_ABOVE_MM = 14.0
_LENGTH_MM = (860.0, 1022.0)
_SPAN_MM = (500.0, 500.0, 1060.0)
_SITES = ("liver", "lung", "mediastinal_node", "axillary_node", "pelvic_node", "bone")
_SITE_ODDS = (0.24, 0.22, 0.20, 0.07, 0.09, 0.18)
_NODES = {
    "mediastinal_node": ((18, -4, 396), (-24, 6, 392), (0, -16, 428), (40, -8, 430), (-44, -8, 420), (26, 12, 352)),
    "axillary_node": ((136, -4, 385), (128, 8, 405), (140, -18, 400)),
    "pelvic_node": ((42, 2, 815), (52, 22, 850), (30, -8, 790), (62, 44, 900)),
}


def whole_body(seed: int, *, spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0), mbq_per_kg: float = 3.0,
               uptake_s: float = 3600.0, family: str = DEFAULT,
               lesions: LesionShape = "round") -> Subject:  # fmt: skip
    """A patient injected with FDG, as an image from above the vertex to mid-thigh.

    Stature, sex, weight, build, arm position, organ sizes and outlines, uptake and lesions are all drawn from `seed`.
    Uptake follows the table in `data_recipes.phantoms.uptake`, attenuation likewise. Voxels on an edge hold the average
    of both sides; labels are those of the voxel's center.

    Parameters
    ----------
    seed : int
        0 or more; the same seed gives the same person on any grid, and the same bits on one machine.
    spacing_mm : tuple of float
        Voxel edges in mm. The image is at least 480 mm wide and 850 to 1030 mm long.
    mbq_per_kg : float
        Injected activity in MBq per kg of body weight.
    uptake_s : float
        Seconds from injection to scan start.
    family : str
        A name in `data_recipes.phantoms.families`.
    lesions : str
        Their shape, see `data_recipes.phantoms.lesion_shapes`.

    Returns
    -------
    Subject
        Activity in Bq/mL at scan start, mu in 1/cm and labels. Each lesion has its own label from 100 on and is listed
        in `provenance["lesions"]` with site, diameter_mm, suv, center_mm and label.
    """
    if seed < 0 or mbq_per_kg <= 0 or uptake_s < 0:
        raise UsageError(
            f"seed must be >= 0, mbq_per_kg > 0 and uptake_s >= 0, got {seed}, {mbq_per_kg} and {uptake_s}; change them"
        )
    if lesions not in SHAPES:
        raise UsageError(f"--lesions: '{lesions}' is not known; give one of {', '.join(SHAPES)}")
    kind = family_named(family)
    rng = np.random.Generator(np.random.Philox(seed))
    body, bmi = _draw_body(rng, kind.bmi)
    grid = _grid(body, spacing_mm)
    body = replace(body, top_mm=grid.center_mm[2] + grid.extent_mm[2] / 2 - _AIR_ABOVE_MM)
    suv = draw_suv(rng, bmi)
    warp = np.stack([kind.warp_mm * smooth_field(rng, grid, kind.warp_knot_mm, _SPAN_MM) for _ in range(2)])
    rough = smooth_field(rng, grid, 24.0, _SPAN_MM)
    canvas = Canvas(grid, warp, rough)
    scene = Scene(canvas, body, suv, rng)
    draw(scene, kind.skin)

    mass_kg = float(canvas.mu.sum(dtype=np.float64)) * grid.voxel_ml / MASS_ATTENUATION_CM2_PER_G * 1e-3
    weight_kg = round(mass_kg / body.mass_share(), 1)
    if kind.closed:
        close_budget(canvas, suv, weight_kg, mass_kg, uptake_s)
    _texture(canvas, kind.texture * smooth_field(rng, grid, 20.0, _SPAN_MM))
    found = _lesions(scene, lesions)
    if kind.mirrored:
        _mirror(canvas, found)

    injected_mbq = mbq_per_kg * weight_kg
    at_scan_mbq = injected_mbq * decay_factor(isotope("F-18"), uptake_s)
    activity = canvas.suv
    activity *= np.float32(suv_to_bqml(at_scan_mbq, weight_kg))
    painted = {value: name for value, name in LABEL_NAMES.items() if kind.skin or name != "skin"}
    names = painted | {one["label"]: f"lesion_{i}_{one['site']}" for i, one in enumerate(found, start=1)}
    digest = hashlib.sha256()
    for array in (activity, canvas.mu, canvas.labels):
        digest.update(array.tobytes())
    provenance: dict[str, Any] = {
        "kind": "generated", "recipe": "whole-body", "seed": seed, "license": "generated, Apache-2.0",
        "sex": body.sex, "height_cm": round(body.height_mm / 10, 1), "weight_kg": weight_kg,
        "arms": "raised" if body.arms_up else "down", "mass_in_image_kg": round(mass_kg, 1), "lesions": found,
    }  # fmt: skip
    if (family, lesions) != (REFERENCE.name, "round"):
        held = kind.held_out or lesions in HELD_OUT_SHAPES
        provenance |= {"family": family, "lesion_shape": lesions} | ({"held_out": True} if held else {})
    return Subject(
        name=phantom_name(seed, family, lesions),
        activity_bqml=activity, grid=grid, mu_per_cm=canvas.mu,
        mu_source="phantom", labels=canvas.labels, label_names=names, content_sha256=digest.hexdigest(),
        provenance=provenance,
        injection=Injection("F-18", "FDG", injected_mbq, uptake_s, weight_kg),
    )  # fmt: skip


def phantom_name(seed: int, family: str = DEFAULT, lesions: str = "round") -> str:
    """Name of a generated patient; "reference", the oldest family, goes without its name."""
    words = [family] * (family != REFERENCE.name) + [lesions] * (lesions != "round")
    return "-".join(["phantom", *words, f"{seed:04d}"])


def _mirror(canvas: Canvas, found: list[dict[str, Any]]) -> None:
    """Exchange right and left. The grid is centered, so that a flip of its voxels does it."""
    for values in (canvas.suv, canvas.mu, canvas.labels):
        values[:] = values[::-1].copy()
    for one in found:
        one["center_mm"][0] = -one["center_mm"][0]


def _draw_body(rng: np.random.Generator, median_bmi: float) -> tuple[Body, float]:
    """Sex, stature and weight, and the layer of fat that makes the drawn outline weigh that much."""
    sex = "M" if rng.uniform() < 0.5 else "F"
    mean, low, high = (1755.0, 1600.0, 1930.0) if sex == "M" else (1630.0, 1500.0, 1780.0)
    height = float(np.clip(rng.normal(mean, 68.0), low, high))
    bmi = float(np.clip(rng.lognormal(np.log(median_bmi), 0.17), 17.5, 38.0))
    weight = float(np.clip(bmi * (height * 1e-3) ** 2, 44.0, 114.0))
    bmi = weight / (height * 1e-3) ** 2
    build = float(np.clip(rng.normal(0.965 + 0.006 * (bmi - 22.0), 0.02), 0.90, 1.08))
    arms_up = bool(rng.uniform() < 0.75)
    length = np.clip(height * rng.uniform(0.565, 0.595) + _AIR_ABOVE_MM, *_LENGTH_MM)
    end_t = (length - _AIR_ABOVE_MM) * REFERENCE_HEIGHT_MM / height
    body = Body(sex, height, weight, 3.0, build, arms_up, 0.0, float(end_t))
    body = _fatten(body)
    if not body.arms_fit():
        body = _fatten(replace(body, arms_up=True))
    return body, bmi


def _fatten(body: Body) -> Body:
    """The same body with the fat that gives its weight, or as near as 2 to 70 mm allow."""
    low, high = 2.0, 70.0
    lungs_ml = 2900.0 * body.tall**3
    for _ in range(24):
        body = replace(body, fat_mm=(low + high) / 2)
        if (body.volume_ml() - lungs_ml) * 1e-3 > body.weight_kg * body.mass_share():
            high = body.fat_mm
        else:
            low = body.fat_mm
    return body


def _grid(body: Body, spacing_mm: tuple[float, float, float]) -> Grid:
    length = body.end_t * body.tall + _AIR_ABOVE_MM
    across = [int(np.ceil(_WIDTH_MM / d - 1e-6)) for d in spacing_mm[:2]]
    return Grid.centered((across[0], across[1], max(1, round(length / spacing_mm[2]))), spacing_mm)


def _texture(canvas: Canvas, field: np.ndarray) -> None:
    """Let uptake wander inside organs by the relative SD in the tissue table."""
    names = {"brain": "brain_gray", "bowel": "small_bowel", "gland": "gland", "airway": "air"}
    sd = np.zeros(256, dtype=np.float32)
    for value, name in LABEL_NAMES.items():
        tissue = names.get(name, name)
        sd[value] = TISSUES[tissue].texture if tissue in TISSUES else 0.0
    canvas.suv *= 1 + sd[canvas.labels] * np.clip(field, -2.5, 2.5)


def _lesions(scene: Scene, shape: LesionShape) -> list[dict[str, Any]]:
    """Hot lesions, none in about a fifth of subjects."""
    rng = scene.rng
    count = 0 if rng.uniform() < 0.2 else int(min(1 + rng.poisson(2.6), 8))
    found: list[dict[str, Any]] = []
    for _ in range(count):
        site = str(rng.choice(_SITES, p=_SITE_ODDS))
        diameter = float(np.clip(rng.lognormal(np.log(15.0), 0.45), 6.0, 24.0 if "node" in site else 35.0))
        value = float(np.clip(rng.lognormal(np.log(7.5), 0.45), 4.5 if site == "liver" else 3.0, 20.0))
        center = _lesion_place(scene, site, diameter / 2, found)
        if center is None:
            continue
        label = FIRST_LESION_LABEL + len(found)
        _paint_lesion(scene, shape, center, diameter / 2, value, label, None if site == "bone" else 0.096)
        found.append({"site": site, "diameter_mm": round(diameter, 1), "suv": round(value, 2),
                      "center_mm": [round(float(c), 1) for c in center], "label": label})  # fmt: skip
    return found


def _lesion_place(scene: Scene, site: str, radius: float, others: list[dict[str, Any]]) -> np.ndarray | None:
    """A voxel center of the site's tissue where the lesion fits without touching another; None when there is none."""
    rng, grid, labels = scene.rng, scene.canvas.grid, scene.canvas.labels
    tissue = {"liver": ("liver",), "lung": ("lung",), "bone": ("marrow", "bone")}.get(site, ())
    where = np.argwhere(np.isin(labels, [LABEL[name] for name in tissue]))
    spacing, origin = np.asarray(grid.spacing_mm), np.asarray(grid.origin_mm)
    around = rng.standard_normal((40, 3))
    around *= (radius + 2.0) / np.linalg.norm(around, axis=1, keepdims=True)
    for _ in range(60):
        if tissue:
            index = where[int(rng.integers(len(where)))]
        else:
            spots = _NODES[site]
            point = np.asarray(spots[int(rng.integers(len(spots)))]) + rng.normal(0, 5, 3)
            side = 1.0 if site == "mediastinal_node" else float(rng.choice([-1.0, 1.0]))
            index = np.rint((scene.body.place(point, side)[0] - origin) / spacing).astype(int)
        center = origin + index * spacing
        near = np.rint((center + around - origin) / spacing).astype(int)
        if np.any(near < 0) or np.any(near >= grid.shape):
            continue
        depth = scene.skin[near[:, 0], near[:, 1], near[:, 2]]
        ring = labels[near[:, 0], near[:, 1], near[:, 2]]
        inside = float(np.isin(ring, [LABEL[name] for name in tissue]).mean()) if tissue else 1.0
        clear = all(
            np.linalg.norm(center - other["center_mm"]) > radius + other["diameter_mm"] / 2 + 6.0 for other in others
        )
        enough = {"liver": 1.0, "lung": 0.7, "bone": 0.1}.get(site, 0.0)
        if clear and inside >= enough and depth.max() < -3.0:
            return center
    return None


def _paint_lesion(scene: Scene, shape: LesionShape, center: np.ndarray, radius: float, suv: float, label: int,
                  mu: float | None) -> None:  # fmt: skip
    """A lesion of the given mean radius; a necrotic core has its label too."""
    canvas = scene.canvas
    reach = REACH[shape] * radius
    box = canvas.box(center - reach, center + reach)
    x, y, z = (axis[s] - c for axis, s, c in zip((canvas.grid.axis_mm(i) for i in range(3)), box, center, strict=True))
    distance, core = lesion(scene.rng, shape, x[:, None, None], y[None, :, None], z[None, None, :], radius)
    canvas.paint(box, distance, suv, mu, label)
    if core is not None:
        canvas.paint(box, core, NECROTIC_SUV * suv, mu, label)
