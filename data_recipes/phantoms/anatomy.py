"""Where the organs of the whole-body phantom lie, and what shape they have.

Places are reference (x, y, t) as in `data_recipes.phantoms.body`. Organ sizes follow the reference adult of ICRP
Publication 89 (liver 1.8 L, lungs 1.2 kg, brain 1.45 L, kidneys 0.31 L, spleen 0.15 L for a man); positions are those
of a textbook.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline, PchipInterpolator

from data_recipes.grid import Grid
from data_recipes.phantoms.body import MAX_RADIUS_MM, Body
from data_recipes.phantoms.shapes import Box, Canvas, Profile, smooth_field, smooth_union
from data_recipes.phantoms.uptake import TISSUES, urine_suv

BLEND_MM = 18.0
# Skin of 3.3 and 2.3 kg (ICRP Publication 89), 1.09 g/mL, over 1.90 and 1.66 m2.
SKIN_MM = {"M": 1.6, "F": 1.3}

LABEL_NAMES = {
    0: "outside", 1: "body", 2: "fat", 3: "muscle", 4: "lung", 5: "liver", 6: "spleen", 7: "kidney",
    8: "renal_pelvis", 9: "stomach", 10: "bowel", 11: "bladder", 12: "myocardium", 13: "blood_pool", 14: "brain",
    15: "cerebellum", 16: "bone", 17: "marrow", 18: "skull", 19: "pancreas", 20: "gland", 21: "airway",
    22: "spinal_cord", 23: "pelvic_organ", 24: "breast", 25: "visceral_fat", 26: "fluid",
    27: "skin",
}  # fmt: skip
LABEL = {name: value for value, name in LABEL_NAMES.items()}

_THORAX_T = [288, 303, 340, 390, 450, 520, 590, 660]
_THORAX_A = [30, 60, 96, 116, 127, 131, 127, 116]
_THORAX_B = [22, 40, 62, 77, 86, 88, 83, 72]
_THORAX_Y = [-18, -16, -8, -2, 2, 4, 0, -6]
_SPINE_T = [150, 200, 260, 330, 430, 520, 600, 680, 740, 790, 830, 880, 930]
_SPINE = PchipInterpolator(_SPINE_T, [-6, -8, -18, -36, -49, -46, -36, -26, -26, -34, -48, -62, -58])


class Scene:
    """A canvas with one body's measures and uptake, and brushes that know tissues by name."""

    def __init__(self, canvas: Canvas, body: Body, suv: dict[str, float], rng: np.random.Generator) -> None:
        self.canvas = canvas
        self.body = body
        self.suv = suv
        self.rng = rng
        self.skin = np.full(canvas.grid.shape, 1e3, dtype=np.float32)
        self.lean = np.full(canvas.grid.shape, 1e3, dtype=np.float32)

    def paint(
        self, box: Box, distance: np.ndarray, tissue: str, label: str | None, suv: float | np.ndarray | None = None
    ) -> None:
        """Fill a solid with a tissue."""
        value = self.suv[tissue] if suv is None else suv
        self.canvas.paint(box, distance, value, TISSUES[tissue].mu_per_cm, None if label is None else LABEL[label])

    def blob_distance(self, center: ArrayLike, half: ArrayLike, *, side: float = 1.0, head: bool = False,
                      axes: np.ndarray | None = None, n: float = 2.0, rough: float = 0.0,
                      box: Box | None = None) -> tuple[Box, np.ndarray]:  # fmt: skip
        """Box and signed distance of an ellipsoid given in reference mm; half axes scale as the body does."""
        body = self.body
        across = body.head_wide if head else body.wide
        middle = body.place(center, side, head)[0]
        size = np.asarray(half, dtype=float) * [across, across, body.tall]
        reach = size if axes is None else np.full(3, size.max())
        box = self.canvas.box(middle - reach, middle + reach) if box is None else box
        return box, self.canvas.ellipsoid(box, middle, size, axes=axes, n=n, rough_mm=rough)

    def blob(self, tissue: str, label: str | None, center: ArrayLike, half: ArrayLike,
             suv: float | None = None, **shape) -> None:  # fmt: skip
        """Paint an ellipsoid given in reference mm."""
        box, distance = self.blob_distance(center, half, **shape)
        self.paint(box, distance, tissue, label, suv)

    def pipe(self, tissue: str, label: str | None, points: ArrayLike, radius: ArrayLike, *,
             side: float = 1.0, head: bool = False, rough: float = 0.0, suv: float | None = None,
             patchy: float = 0.0) -> None:  # fmt: skip
        """Paint a tube along reference points; `patchy` is the relative SD of its uptake along the way."""
        line = self.body.place(points, side, head)
        r = np.asarray(radius, dtype=float) * (self.body.head_wide if head else self.body.wide)
        box = self.canvas.path_box(line, float(r.max()))
        level = self.suv[tissue] if suv is None else suv
        value = level * np.clip(1 + patchy * self.canvas.rough[box], 0.4, 2.2) if patchy else level
        self.paint(box, self.canvas.path(box, line, r, rough), tissue, label, value)

    def spine_y(self, t: float) -> float:
        """Middle of the vertebral bodies, reference mm."""
        return float(_SPINE(np.clip(t, _SPINE_T[0], _SPINE_T[-1])))


def rotation(about_x: float = 0.0, about_y: float = 0.0, about_z: float = 0.0) -> np.ndarray:
    """Unit axes (rows) of a solid turned by angles in degrees."""
    cx, cy, cz = np.cos(np.radians([about_x, about_y, about_z]))
    sx, sy, sz = np.sin(np.radians([about_x, about_y, about_z]))
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return (rz @ ry @ rx).T


def aligned(direction: np.ndarray) -> np.ndarray:
    """Unit axes (rows) whose third points along `direction`."""
    third = np.asarray(direction, dtype=float) / np.linalg.norm(direction)
    first = np.cross([0.0, 1.0, 0.0], third)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(third, first), third])


def draw(scene: Scene, skin: bool) -> None:
    """Paint everything, from the outside in; with or without skin."""
    outline(scene)
    lungs_and_cavities(scene)
    abdomen(scene)
    vessels_and_heart(scene)
    skeleton(scene)
    pelvis(scene)
    head(scene)
    surface(scene, SKIN_MM[scene.body.sex] if skin else 0.0)


def surface(scene: Scene, skin_mm: float) -> None:
    """Put skin around, and cut off what lies outside.

    Skin is thinner than most voxels: these hold its part of activity and mu (partial volume), and the label goes by the
    center, so that about `skin_mm / voxel` of the voxels at the surface have it, each of them mixed with air and fat.
    """
    # Until here the world is solid fat, so that what lies under the skin is not thinned twice at the surface.
    canvas = scene.canvas
    inside = canvas.covered(scene.skin)
    if skin_mm:
        deep = scene.skin + np.float32(skin_mm)
        under = canvas.covered(deep)
        canvas.suv *= under
        canvas.suv += (inside - under) * np.float32(scene.suv["skin"])
        canvas.mu *= under
        canvas.mu += (inside - under) * np.float32(TISSUES["skin"].mu_per_cm)
        canvas.labels[deep > 0] = LABEL["skin"]
    else:
        canvas.suv *= inside
        canvas.mu *= inside
    canvas.labels[scene.skin > 0] = LABEL["outside"]


def outline(scene: Scene) -> None:
    """Skin, subcutaneous fat and muscle."""
    canvas, body = scene.canvas, scene.body

    def add(target: np.ndarray, box: Box, distance: np.ndarray) -> None:
        target[box] = smooth_union(target[box], distance, BLEND_MM)

    for target, skin in ((scene.skin, True), (scene.lean, False)):
        profiles = [body.trunk(skin=skin), body.thigh(1.0, skin=skin), body.thigh(-1.0, skin=skin)]
        for profile in profiles:
            a, b, x, y = profile.at(profile.z)
            box = canvas.box([(x - a).min(), (y - b).min(), profile.z[0]], [(x + a).max(), (y + b).max(), profile.z[-1]])
            add(target, box, canvas.tube(box, profile))
        line, radius = body.arm()
        radius = radius + (0.22 * body.fat_mm + 1.5 if skin else 0.0)
        for side in (1.0, -1.0):
            box = canvas.path_box(line * [side, 1, 1], float(radius.max()))
            add(target, box, canvas.path(box, line * [side, 1, 1], radius))
        thick = 6.0 + 0.05 * body.fat_mm if skin else 0.0
        neck_fat = 0.3 * body.fat_mm if skin else 0.0
        neck = Profile(body.z([140, 200, 250, 295]), a=np.array([50, 53, 58, 74]) * body.wide + neck_fat,
                       b=np.array([56, 56, 56, 60]) * body.wide + neck_fat, y=[-14, -12, -10, -10])  # fmt: skip
        a, b, _, y = neck.at(neck.z)
        box = canvas.box([-a.max(), (y - b).min(), neck.z[0]], [a.max(), (y + b).max(), neck.z[-1]])
        add(target, box, canvas.tube(box, neck))
        for center, half in (((0, -2, 98), (70, 91, 91)), ((0, 32, 152), (55, 60, 72)), ((0, 92, 148), (10, 14, 16))):
            box, distance = scene.blob_distance(center, half, head=True)
            add(target, box, distance - thick)
        if body.sex == "F":
            for side in (1.0, -1.0):
                if skin:
                    box, distance = scene.blob_distance(
                        (72, 88 + 0.6 * body.fat_mm, 470), (50, 34 + 0.3 * body.fat_mm, 52), side=side
                    )
                    add(target, box, distance)
        elif skin:
            box, distance = scene.blob_distance((0, 58, 948), (30, 30, 30))
            add(target, box, distance)
    x, y = canvas.grid.axis_mm(0), canvas.grid.axis_mm(1)
    wall = (np.hypot(x[:, None], y[None, :]) - MAX_RADIUS_MM).astype(np.float32)[:, :, None]
    np.maximum(scene.skin, wall, out=scene.skin)
    np.maximum(scene.lean, scene.skin + 1.5, out=scene.lean)
    everywhere = (slice(None), slice(None), slice(None))
    canvas.suv[:], canvas.mu[:], canvas.labels[:] = scene.suv["fat"], TISSUES["fat"].mu_per_cm, LABEL["fat"]
    scene.paint(everywhere, scene.lean, "muscle", "muscle")
    if body.sex == "F":
        for side in (1.0, -1.0):
            scene.blob("breast", "breast", (72, 98 + 0.6 * body.fat_mm, 468), (32, 16, 34), side=side, rough=3.0)


def _thorax(body: Body, grow: float = 0.0) -> Profile:
    woman = 1.0 if body.sex == "M" else 0.93
    return Profile(body.z(_THORAX_T), a=np.asarray(_THORAX_A) * body.wide * woman + grow,
                   b=np.asarray(_THORAX_B) * body.wide * 0.97 + grow, y=np.asarray(_THORAX_Y) * body.wide)  # fmt: skip


def _below_diaphragm(scene: Scene, box: Box) -> np.ndarray:
    """Signed distance in mm to the space under both domes."""
    _, right = scene.blob_distance((68, 0, 648), (74, 92, 143), box=box)
    _, left = scene.blob_distance((-62, -2, 655), (74, 94, 132), box=box)
    _, middle = scene.blob_distance((0, 6, 652), (72, 84, 116), box=box)
    return smooth_union(smooth_union(right, left, 12.0), middle, 12.0)


def _torso_box(scene: Scene, t_low: float, t_high: float) -> Box:
    corners = scene.body.place([(-165, -115, t_high), (165, 150, t_low)])
    return scene.canvas.box(corners.min(axis=0), corners.max(axis=0))


def lungs_and_cavities(scene: Scene) -> None:
    """Abdominal cavity, mediastinum, lungs and airways."""
    canvas, body = scene.canvas, scene.body
    trunk = body.trunk(skin=False)
    t = np.array([560, 640, 700, 760, 800, 850, 892, 918])
    a, b, _, y = trunk.at(body.z(t))
    narrow = np.array([0.84, 0.86, 0.87, 0.84, 0.74, 0.58, 0.42, 0.12])
    cavity = Profile(body.z(t), a=a * narrow, b=b * np.array([0.76, 0.78, 0.78, 0.78, 0.76, 0.70, 0.5, 0.2]),
                     y=y + b * np.array([0.08, 0.1, 0.1, 0.1, 0.08, 0.04, 0.0, 0.0]), n=2.2)  # fmt: skip
    box = canvas.box([-a.max(), (y - b).min(), cavity.z[0]], [a.max(), (y + b).max(), cavity.z[-1]])
    scene.paint(box, canvas.tube(box, cavity), "visceral_fat", "visceral_fat")

    box = _torso_box(scene, 285, 665)
    thorax = canvas.tube(box, _thorax(body))
    below = _below_diaphragm(scene, box)
    scene.paint(box, np.maximum(thorax, below), "visceral_fat", "visceral_fat")
    scene.paint(box, np.maximum(thorax, -below), "body", "body")
    middle = Profile(body.z([288, 330, 380, 430, 500, 560, 660]), a=np.array([25, 29, 33, 40, 45, 46, 42]) * body.wide,
                     b=np.array([45, 60, 76, 92, 98, 98, 92]) * body.wide, y=np.full(7, -6 * body.wide))  # fmt: skip
    air = np.maximum(np.maximum(thorax, -canvas.tube(box, middle)), 1.5 - below)
    low = body.z(638)
    air = np.maximum(air, (low - canvas.z[:, :, box[2]]).astype(np.float32))
    scene.paint(box, air + 0.8 * canvas.rough[box], "lung", "lung", _lung_suv(scene, box))
    scene.pipe("air", "airway", [(0, 18, 236), (0, 8, 300), (0, -4, 350), (0, -10, 388)], 8.0)
    for side in (1.0, -1.0):
        scene.pipe("air", "airway", [(0, -10, 386), (20, -12, 402), (36, -12, 420)], [7.5, 6.5, 5.5], side=side)


def _lung_suv(scene: Scene, box: Box) -> np.ndarray:
    """Lung uptake: denser and hotter toward the back of a person lying down."""
    _, y, _ = scene.canvas.coordinates(box)
    return scene.suv["lung"] * (1 - 0.0022 * np.clip(y, -90, 90))


def _loop(rng: np.random.Generator, center: np.ndarray, half: tuple[float, float, float], turns: int) -> np.ndarray:
    """A random winding line inside an ellipsoid, reference mm."""
    knots = np.empty((turns, 3))
    for i in range(turns):
        away = rng.standard_normal(3)
        away *= rng.uniform(0.3, 0.95) / np.linalg.norm(away)
        # Bowel lies in folds from side to side.
        away[0] = (1 if i % 2 else -1) * rng.uniform(0.25, 0.95)
        away[1:] *= (1 - 0.8 * float(away[0]) ** 2) ** 0.5
        knots[i] = np.asarray(center) + away * np.asarray(half)
    return CubicSpline(np.arange(turns), knots)(np.linspace(0, turns - 1, 7 * turns))


def abdomen(scene: Scene) -> None:
    """Stomach, bowel, liver, spleen, pancreas and kidneys."""
    canvas, body, rng = scene.canvas, scene.body, scene.rng
    size = 1.0 if body.sex == "M" else 0.93
    box = _torso_box(scene, 470, 760)
    wall = np.minimum(canvas.tube(box, _thorax(body)), scene.lean[box] + 14.0)
    under = np.maximum(_below_diaphragm(scene, box), scene.lean[box] + 14.0)
    jitter = rng.normal(0, 4, (6, 3))

    for loop in range(4):
        center = np.array([(-32, 32, -22, 24)[loop], 26, (743, 751, 799, 795)[loop]], dtype=float)
        line = _loop(rng, center, (46, 30 + 0.3 * body.fat_mm, 34), 8)
        scene.pipe("small_bowel", "bowel", line, rng.uniform(10, 13), rough=1.5,
                   suv=scene.suv["small_bowel"] * rng.uniform(0.75, 1.4), patchy=0.2)  # fmt: skip
    front = 0.35 * body.fat_mm
    colon = [
        [(84, 2, 806), (90, -6, 765), (90, -8, 722), (84, 4, 694)],
        [
            (84, 4, 694),
            (58, 40 + front, 706),
            (20, 56 + front, 722),
            (-24, 56 + front, 718),
            (-62, 34, 680),
            (-90, -8, 640),
        ],
        [(-90, -8, 640), (-97, -22, 680), (-96, -20, 730), (-90, -4, 790)],
        [(-90, -4, 790), (-66, 14, 826), (-26, 6, 812), (6, -18, 822), (2, -36, 850)],
        [(2, -36, 850), (4, -46, 880), (0, -44, 908), (0, -34, 932)],
    ]
    for part in colon:
        line = np.asarray(part, dtype=float)
        line[1:-1] += rng.normal(0, 5, line[1:-1].shape)
        fine = CubicSpline(np.arange(len(line)), line)(np.linspace(0, len(line) - 1, 6 * len(line)))
        level = scene.suv["colon"] * float(np.clip(rng.lognormal(0, 0.3), 0.5, 2.0))
        scene.pipe("colon", "bowel", fine, rng.uniform(14, 19), rough=2.5, suv=level, patchy=0.35)

    fill = rng.uniform(0.8, 1.15)
    stomach = np.array([(-58, -12, 560), (-72, 4, 588), (-66, 28, 628), (-40, 46, 664), (-10, 48, 680), (16, 38, 672)])
    radii = np.array([28, 34, 30, 23, 17, 13]) * fill
    line = body.place(stomach + jitter[0])
    outer = np.maximum(canvas.path(box, line, radii * body.wide, 2.0), under + 4)
    scene.paint(box, outer, "stomach", "stomach")
    scene.paint(box, outer + rng.uniform(5.5, 8), "stomach_lumen", "stomach")

    grow = size * rng.normal(1.0, 0.045)
    _, right = scene.blob_distance(np.array([74, 2, 591]) + jitter[1] * [0.5, 1, 1], np.array([74, 85, 83]) * grow,
                                   axes=rotation(about_y=-14), rough=3.0, box=box)  # fmt: skip
    _, left = scene.blob_distance(np.array([2, 34, 566]) + jitter[2] * [2, 1, 1], np.array([74, 38, 40]) * grow,
                                  axes=rotation(about_y=14), rough=3.0, box=box)  # fmt: skip
    _, fossa = scene.blob_distance((44, -62, 706), (58, 58, 98), box=box)
    liver = np.maximum(np.maximum(smooth_union(right, left, 20.0), under + 3.0), np.maximum(wall + 2.0, -fossa))
    scene.paint(box, liver, "liver", "liver")
    if rng.uniform() < 0.85:
        scene.blob("fluid", "fluid", np.array([40, 46, 640]) + jitter[3], (13, 14, 27), axes=rotation(about_x=-25))

    grow = size * rng.normal(1.0, 0.09)
    _, spleen = scene.blob_distance(np.array([-93, -34, 588]) + jitter[4], np.array([23, 40, 52]) * grow,
                                    axes=rotation(-30, -12, -20), rough=2.0, box=box)  # fmt: skip
    scene.paint(box, np.maximum(np.maximum(spleen, under + 3), wall + 2), "spleen", "spleen")
    scene.pipe(
        "pancreas",
        "pancreas",
        [(30, 18, 672), (8, 26, 650), (-30, 14, 640), (-64, -14, 622)],
        [15, 11, 10, 8],
        rough=1.5,
    )

    for side, drop in ((1.0, 672.0), (-1.0, 656.0)):
        kidney(scene, side, drop + rng.normal(0, 7), 1.06 * size * rng.normal(1.0, 0.05))


def kidney(scene: Scene, side: float, t: float, size: float) -> None:
    """Cortex, a hot pelvis of varying fill, and pieces of the ureter."""
    rng = scene.rng
    y = scene.spine_y(t) - 20
    axes = rotation(about_x=-12, about_y=side * 13, about_z=side * 25)
    scene.blob("kidney", "kidney", (59, y, t), np.array([27, 25, 55]) * size, side=side, axes=axes, rough=1.5)
    scene.blob(
        "fluid",
        "kidney",
        (48, y + 3, t),
        np.array([13, 11, 26]) * size,
        side=side,
        axes=axes,
        suv=scene.suv["kidney"] * 0.8,
    )
    fill = rng.uniform(0.45, 1.1)
    hot = scene.suv["renal_pelvis"] * rng.uniform(0.5, 1.2)
    scene.blob(
        "renal_pelvis", "renal_pelvis", (43, y + 4, t), (9 * fill, 8 * fill, 19 * fill), side=side, axes=axes, suv=hot
    )
    for calyx in (-18, 16):
        scene.blob(
            "renal_pelvis",
            "renal_pelvis",
            (51, y + 2, t + calyx),
            (6 * fill, 6 * fill, 7 * fill),
            side=side,
            suv=0.8 * hot,
        )
    ureter = np.array([(38, y + 8, t + 16), (32, y + 16, t + 60), (32, y + 14, 770), (40, -14, 810), (34, -10, 860)])
    line = CubicSpline(np.arange(5), ureter)(np.linspace(0, 4, 40))
    for _ in range(rng.integers(0, 4)):
        start = int(rng.integers(0, 32))
        scene.pipe(
            "fluid",
            "renal_pelvis",
            line[start : start + int(rng.integers(3, 8))],
            2.6,
            side=side,
            suv=hot * rng.uniform(0.4, 1.0),
        )


def vessels_and_heart(scene: Scene) -> None:
    """Large vessels, blood in the heart's chambers, and the left ventricle's wall."""
    y = scene.spine_y
    aorta = [(-4, 18, 452), (12, 30, 422), (8, 22, 388), (-4, 4, 372), (-15, -12, 380), (-18, y(420) + 27, 420)]
    aorta += [(-17, y(t) + 29, t) for t in (470, 520, 560, 600)] + [(-8, y(t) + 32, t) for t in (640, 690, 735)]
    scene.pipe("body", "body", [(0, 10, 345), (0, 5, 400), (0, 0, 440)], [22, 34, 36])
    scene.pipe("blood_pool", "blood_pool", aorta, [15, 15, 14, 13, 13, 12, 12, 12, 11, 11, 10, 9, 9])
    scene.pipe("blood_pool", "blood_pool", [(23, 14, 340), (25, 12, 380), (24, 10, 440)], 9)
    scene.pipe("blood_pool", "blood_pool", [(22, 4, 540), (20, y(620) + 30, 620), (18, y(735) + 30, 735)], 10.5)
    scene.pipe("blood_pool", "blood_pool", [(-12, 36, 446), (-16, 22, 420), (8, 0, 420), (42, -4, 426)], [13, 13, 11, 9])
    scene.pipe("blood_pool", "blood_pool", [(-16, 20, 418), (-32, 2, 412), (-48, -8, 418)], [12, 10, 8])
    for side in (1.0, -1.0):
        scene.pipe(
            "blood_pool",
            "blood_pool",
            [(4, y(735) + 30, 733), (30, -8, 790), (46, 14, 845), (54, 44, 900), (62, 44, 960), (66, 30, 1060)],
            [7, 6, 5, 4.5, 4, 4],
            side=side,
        )
        scene.pipe(
            "blood_pool",
            "blood_pool",
            [(9, 8, 372), (18, 12, 330), (25, 6, 260), (26, 2, 190)],
            [5, 3.4, 3.2, 3],
            side=side,
        )

    rng, body = scene.rng, scene.body
    size = (1.08 if body.sex == "M" else 1.0) * rng.normal(1.0, 0.05)
    long_axis = np.array([-0.66, 0.50, -0.50]) + rng.normal(0, 0.07, 3)
    axes = aligned(long_axis)
    middle = np.array([-18.0, 22.0, 480.0]) + rng.normal(0, 3, 3)
    scene.blob("body", "body", middle, np.array([50, 46, 64]) * size, axes=axes)
    scene.blob("blood_pool", "blood_pool", middle + np.array([4, 0, -3]), np.array([44, 40, 56]) * size, axes=axes)
    scene.blob("blood_pool", "blood_pool", middle + np.array([26, -14, -18]), np.array([27, 27, 32]) * size)
    scene.blob(
        "muscle",
        "body",
        middle + np.array([-4, 2, 6]),
        np.array([36, 36, 48]) * size,
        axes=axes,
        suv=scene.suv["blood_pool"],
    )
    ventricle = middle + np.array([-24, 8, 12])
    box, outer = scene.blob_distance(ventricle, np.array([33, 33, 47]) * size, axes=axes)
    place = body.place(ventricle)[0]
    x, yy, z = scene.canvas.coordinates(box)
    along = (x - place[0]) * axes[2, 0] + (yy - place[1]) * axes[2, 1] + (z - place[2]) * axes[2, 2]
    base = (-24.0 * size * body.wide - along).astype(np.float32)
    hot = scene.suv["myocardium"]
    # Fasting uptake is patchy: lateral wall and base keep more than septum and apex.
    patchy = hot * np.clip(1 + 0.13 * scene.canvas.rough[box] + 0.004 * along, 0.5, 1.5)
    scene.paint(box, np.maximum(outer, base), "myocardium", "myocardium", patchy.astype(np.float32))
    _, inner = scene.blob_distance(ventricle - 5 * axes[2] * [1, 1, -1], np.array([22, 22, 38]) * size, axes=axes, box=box)
    scene.paint(box, inner, "blood_pool", "blood_pool")


def skeleton(scene: Scene) -> None:
    """Spine, ribs, sternum, shoulder girdle and humerus."""
    body = scene.body
    y = scene.spine_y
    heights = [*np.arange(5) * 18.0 + 188, *np.arange(12) * 27.0 + 281, *np.arange(5) * 37.5 + 611]
    scene.pipe("spinal_cord", "spinal_cord", [(0, y(t) - 21, t) for t in (172, 230, 290, 380, 470, 560, 640)], 5.2)
    for i, t in enumerate(heights):
        pitch = 18.0 if i < 5 else 27.0 if i < 17 else 37.5
        wide = float(np.interp(i, [0, 4, 8, 16, 21], [11, 14, 16, 22, 26]))
        deep = float(np.interp(i, [0, 4, 8, 16, 21], [9, 11, 15, 17, 19]))
        at = y(t)
        tilt = rotation(about_x=float(np.degrees(np.arctan2(y(t + 10) - y(t - 10), 20.0))))
        scene.blob("disc", "body", (0, at, t + pitch / 2), (wide * 0.95, deep * 0.95, pitch * 0.22), n=3.0, axes=tilt)
        back = [(10, at - 8, t), (12, at - 22, t), (5, at - 31, t + 3), (0, at - (30 if i < 5 else 44), t + 10)]
        for side in (1.0, -1.0):
            scene.pipe("bone", "bone", back, [6, 5, 5, 4.5], side=side, suv=0.7 * scene.suv["marrow"])
            scene.pipe(
                "bone",
                "bone",
                [(12, at - 20, t), (wide + 12, at - 26, t)],
                4.5,
                side=side,
                suv=0.6 * scene.suv["marrow"],
            )
        scene.blob("marrow", "marrow", (0, at, t), (wide, deep, pitch * 0.40), n=3.0, axes=tilt)

    cage = _thorax(body, grow=5.0)
    for i in range(12):
        t0 = heights[5 + i] - 4
        ends = 148 if i < 7 else 128 - 8 * (i - 7) if i < 10 else 75 - 15 * (i - 10)
        drop = np.interp(i, [0, 3, 8, 11], [24, 62, 78, 50])
        angle = np.radians(np.linspace(14, ends, 15))
        t = t0 + drop * (1 - np.cos(angle)) / 1.85
        a, b, _, yc = cage.at(body.z(t))
        for side in (1.0, -1.0):
            line = np.stack([side * a * np.sin(angle), yc - b * np.cos(angle), body.z(t)], axis=1)
            box = scene.canvas.path_box(line, 6.0)
            scene.paint(box, scene.canvas.path(box, line, 5.8), "bone", "bone", 0.75 * scene.suv["marrow"])

    sternum = body.z([346, 400, 460, 512])
    _, b, _, yc = cage.at(sternum)
    for offset in (-8.0, 8.0):
        line = np.stack([np.full(4, offset), yc + b + 1.0, sternum], axis=1)
        box = scene.canvas.path_box(line, 8.0)
        scene.paint(box, scene.canvas.path(box, line, [8, 7, 7, 5]), "bone", "bone", 0.85 * scene.suv["marrow"])

    raised = 14.0 if body.arms_up else 0.0
    arm, _ = body.arm()
    for side in (1.0, -1.0):
        scene.pipe(
            "bone",
            "bone",
            [(14, 54, 342), (60, 34, 326), (100, 2, 314 - raised), (134, -10, 312 - raised)],
            5.5,
            side=side,
        )
        glenoid = np.array([132, -22, 330 - raised])
        for tip in ((92, -66, 322), (78, -82, 345), (74, -88, 372), (74, -92, 400), (80, -94, 432)):
            scene.pipe(
                "bone",
                "bone",
                [glenoid, np.asarray(tip) - [0, 0, raised]],
                [7, 4],
                side=side,
                suv=0.6 * scene.suv["marrow"],
            )
        line = arm * [side, 1, 1]
        box = scene.canvas.path_box(line, 22.0)
        bone = np.array([20.0, *[11.0] * (len(line) - 2), 9.0])
        scene.paint(box, scene.canvas.path(box, line, bone), "cortical_bone", "bone")
        scene.paint(box, scene.canvas.path(box, line, bone - 4.5), "marrow_limb", "bone")


def pelvis(scene: Scene) -> None:
    """Pelvic bones, femora, bladder and sex organs."""
    rng, body = scene.rng, scene.body
    pelvic = 0.85 * scene.suv["marrow"]
    scene.blob("marrow", "marrow", (0, -44, 812), (44, 17, 24), axes=rotation(about_x=35), suv=pelvic)
    scene.blob("marrow", "marrow", (0, -60, 850), (30, 12, 30), axes=rotation(about_x=20), suv=pelvic)
    scene.pipe("bone", "bone", [(0, -66, 875), (0, -60, 905)], [10, 6])
    crest = [
        (116, 38, 796),
        (122, 20, 766),
        (116, -8, 750),
        (96, -34, 752),
        (66, -54, 768),
        (42, -56, 792),
        (36, -50, 824),
    ]
    for side in (1.0, -1.0):
        socket = (84, -2, 852)
        for tip in crest:
            scene.pipe("marrow", "bone", [socket, tip], [12, 7.5], side=side, suv=pelvic)
        scene.pipe("marrow", "bone", crest, 8, side=side, suv=pelvic)
        ring = [
            (84, -16, 858),
            (82, 10, 864),
            (44, 44, 880),
            (8, 50, 892),
            (34, 4, 932),
            (56, -36, 934),
            (80, -22, 880),
        ]
        scene.pipe("marrow", "bone", ring, [12, 12, 9, 9, 8, 12, 12], side=side, suv=0.8 * pelvic)
        scene.blob("marrow_limb", "bone", (90, -2, 876), (23, 23, 23), side=side)
        scene.pipe("marrow_limb", "bone", [(90, -2, 876), (112, -4, 894), (122, -8, 905)], [16, 15, 19], side=side)
        shaft = [(122, -6, 915), (118, 0, 960), (108, 6, 1040), (100, 8, 1110)]
        scene.pipe("cortical_bone", "bone", shaft, [17, 15, 14, 14], side=side)
        scene.pipe("marrow_limb", "bone", shaft, [13, 9, 8, 8], side=side)

    volume_ml = float(np.exp(rng.uniform(np.log(70), np.log(380))))
    radius = (volume_ml * 1e3 * 3 / (4 * np.pi * 1.15 * 0.92)) ** (1 / 3)
    half = np.array([1.15 * radius / body.wide, radius / body.wide, 0.92 * radius / body.tall])
    if body.sex == "F":
        scene.blob(
            "pelvic_organ",
            "pelvic_organ",
            (0, 4 - 0.4 * half[1], 858),
            (26, 20, 33),
            axes=rotation(about_x=35),
            rough=1.5,
        )
    else:
        scene.blob("pelvic_organ", "pelvic_organ", (0, 8, 910), (22, 17, 17))
        for side in (1.0, -1.0):
            scene.blob("testis", "gland", (15, 58, 950), (12, 13, 18), side=side)
    center = (rng.normal(0, 3), 22 + 0.2 * half[1], 900 - half[2])
    scene.blob("pelvic_organ", "pelvic_organ", center, half + 3.5, rough=1.5)
    # A fuller bladder has collected for longer.
    excreted = rng.uniform(0.010, 0.025) + rng.uniform(0.2, 1.0) * 0.045 * volume_ml / 380.0
    urine = urine_suv(excreted, volume_ml, body.weight_kg)
    scene.blob("bladder", "bladder", center, half, rough=1.5, suv=urine)


def head(scene: Scene) -> None:
    """Skull, brain, face, glands and the upper airway."""
    canvas, body, rng = scene.canvas, scene.body, scene.rng
    corners = body.place([(-80, -100, 190), (80, 105, 0)], head=True)
    box = canvas.box(corners.min(axis=0), corners.max(axis=0))
    _, vault = scene.blob_distance((0, -3, 92), (63, 82, 80), head=True, n=2.2, box=box)
    x, y, z = canvas.coordinates(box)
    base = np.float32(body.z(123)) + 0.14 * y - z
    vault = np.maximum(vault, base) + 0.5 * canvas.rough[box]
    _, fossa = scene.blob_distance((0, -46, 138), (46, 32, 30), head=True, box=box)
    temples = [scene.blob_distance((44, 8, 124), (20, 40, 22), side=side, head=True, box=box)[1] for side in (1.0, -1.0)]
    inside = smooth_union(smooth_union(vault, fossa, 8.0), np.minimum(*temples), 8.0)
    scene.paint(box, inside - 6.5, "skull", "skull")
    face(scene)
    scene.paint(box, inside, "fluid", "fluid")

    span = (240.0, 270.0, 260.0)
    spacing = canvas.grid.spacing_mm
    ox, oy, oz = (o + s.start * d for o, s, d in zip(canvas.grid.origin_mm, box, spacing, strict=True))
    nx, ny, nz = (s.stop - s.start for s in box)
    local = Grid((nx, ny, nz), spacing, (ox, oy, oz))
    fold = smooth_field(rng, local, 9.0, span)
    _, cerebellum = scene.blob_distance((0, -48, 140), (43, 27, 23), head=True, box=box)
    cortex = np.minimum(vault, np.minimum(*temples)) + 2.5
    gap = np.abs(x)
    gray = np.maximum(np.maximum(cortex + 1.2 * np.maximum(fold, 0), 1.2 - gap), -cerebellum - 1.0)
    scene.paint(box, gray, "brain_gray", "brain")
    white = np.maximum(cortex + 10.5 + 5.5 * fold, 8.0 + 3.0 * fold - gap)
    scene.paint(box, white, "brain_white", "brain")
    for side in (1.0, -1.0):
        scene.blob("fluid", "fluid", (9, -4, 84), (5, 30, 10), side=side, head=True)
        scene.blob("brain_gray", "brain", (11, -14, 100), (9, 14, 9), side=side, head=True)
        scene.blob("brain_gray", "brain", (24, 8, 98), (8, 20, 11), side=side, head=True)
    scene.paint(box, cerebellum, "cerebellum", "cerebellum")
    scene.paint(box, cerebellum + 9 + 4 * fold, "cerebellum", "cerebellum", 0.6 * scene.suv["cerebellum"])
    scene.pipe(
        "brain_white",
        "brain",
        [(0, -12, 112), (0, -14, 140), (0, -22, 176)],
        [12, 11, 7],
        head=True,
        suv=1.35 * scene.suv["brain_white"],
    )


def face(scene: Scene) -> None:
    """Facial bones, air spaces, eyes and lymphatic and salivary tissue."""
    scene.blob("bone", "bone", (0, 64, 178), (28, 18, 15), head=True)
    scene.pipe("muscle", "muscle", [(0, 30, 200), (0, 55, 196)], [18, 14], head=True, suv=1.3 * scene.suv["muscle"])
    scene.blob("air", "airway", (0, 62, 148), (10, 26, 18), head=True)
    scene.pipe("air", "airway", [(0, 26, 165), (0, 16, 200), (0, 18, 238)], 6.5, head=True)
    scene.blob("tonsil", "gland", (0, 22, 158), (13, 5, 6), suv=0.8 * scene.suv["tonsil"], head=True)
    scene.blob("tonsil", "gland", (0, 34, 212), (11, 6, 7), suv=0.85 * scene.suv["tonsil"], head=True)
    for side in (1.0, -1.0):
        scene.pipe(
            "bone",
            "bone",
            [(47, 10, 150), (46, 12, 192), (38, 38, 214), (14, 68, 222), (0, 72, 222)],
            6,
            side=side,
            head=True,
        )
        scene.pipe("bone", "bone", [(58, 12, 145), (54, 42, 146), (36, 66, 150)], 5, side=side, head=True)
        scene.blob("air", "airway", (24, 58, 154), (10, 13, 13), side=side, head=True)
        scene.blob("fluid", "fluid", (31, 70, 122), (12, 12, 12), side=side, head=True)
        scene.blob("tonsil", "gland", (15, 24, 186), (6, 7, 10), side=side, head=True)
        scene.blob("gland", "gland", (53, -2, 168), (8, 16, 20), side=side, rough=1.0, head=True)
        scene.blob("gland", "gland", (28, 30, 222), (8, 13, 9), side=side, rough=1.0, head=True)
