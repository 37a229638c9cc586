"""How tall, wide and fat a generated person is, and the outline that follows from it.

Places are given for a person of 1750 mm as (x, y, t) in mm: x to the right, y forward from the middle of the trunk, and
t down from the vertex. `Body` scales them to the subject and puts them on the image's axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator
from scipy.special import gamma

from data_recipes.phantoms.shapes import Profile

REFERENCE_HEIGHT_MM = 1750.0
MAX_RADIUS_MM = 231.0

# Trunk without fat: heights, half-width of a man and a woman, half-depth, center.
_TRUNK_T = [225, 262, 290, 315, 350, 400, 470, 560, 640, 700, 760, 850, 900, 935, 960]
_TRUNK_A = {
    "M": [58, 76, 122, 160, 177, 171, 159, 152, 143, 141, 149, 162, 166, 150, 60],
    "F": [52, 68, 110, 145, 160, 155, 145, 138, 130, 131, 149, 168, 172, 155, 62],
}
_TRUNK_B = [58, 58, 64, 72, 84, 96, 106, 105, 97, 93, 96, 102, 102, 90, 50]
_TRUNK_Y = [-4, -8, -12, -12, -8, -4, 0, 0, 0, 0, 0, -2, -4, -6, -6]
_TRUNK_N = 2.35
_THIGH_T = [850, 900, 960, 1030, 1100]
_THIGH_X, _THIGH_A, _THIGH_B = [78, 84, 88, 88, 86], [74, 82, 82, 76, 70], [82, 90, 88, 82, 76]

# How thick subcutaneous fat is at each height, relative to the abdomen, and how far visceral fat pushes the wall out.
_FAT_T = [140, 225, 262, 315, 400, 470, 560, 640, 700, 760, 850, 900, 960, 1100]
_FAT = {
    "M": [0.10, 0.25, 0.30, 0.35, 0.40, 0.50, 0.65, 0.90, 1.00, 0.95, 0.75, 0.70, 0.50, 0.45],
    "F": [0.10, 0.25, 0.32, 0.40, 0.45, 0.55, 0.65, 0.80, 0.90, 1.00, 1.10, 1.10, 0.90, 0.80],
}
_VISCERAL = {
    "M": [0, 0, 0, 0, 0, 0.10, 0.40, 0.85, 1.00, 0.80, 0.25, 0.05, 0, 0],
    "F": [0, 0, 0, 0, 0, 0.05, 0.20, 0.45, 0.55, 0.45, 0.15, 0.05, 0, 0],
}


@dataclass(frozen=True)
class Body:
    """One person's build.

    Parameters
    ----------
    sex : str
        "M" or "F".
    height_mm : float
        Stature.
    weight_kg : float
        Aim for the whole person's weight; the drawn volume gives the final one.
    fat_mm : float
        Thickness of subcutaneous fat at the belly.
    build : float
        Width of frame relative to height; 1 is average.
    arms_up : bool
        Raised beside the head, else at the sides with the hands on the belly.
    top_mm : float
        z of the vertex on the image grid.
    end_t : float
        Where the image ends, down from the vertex in reference mm.
    """

    sex: str
    height_mm: float
    weight_kg: float
    fat_mm: float
    build: float
    arms_up: bool
    top_mm: float
    end_t: float

    @property
    def tall(self) -> float:
        """Scale along z."""
        return self.height_mm / REFERENCE_HEIGHT_MM

    @property
    def wide(self) -> float:
        """Scale across the trunk."""
        return self.build * self.tall

    @property
    def head_wide(self) -> float:
        """Scale across the head, which varies less than stature."""
        return self.tall**0.3 * (1.01 if self.sex == "M" else 0.99)

    def z(self, t: ArrayLike) -> np.ndarray:
        """Height on the grid in mm of reference distance `t` below the vertex."""
        return self.top_mm - np.asarray(t, dtype=float) * self.tall

    def place(self, points: ArrayLike, side: float = 1.0, head: bool = False) -> np.ndarray:
        """Reference (x, y, t) to grid mm; `side` -1 mirrors to the left."""
        p = np.atleast_2d(np.asarray(points, dtype=float))
        across = self.head_wide if head else self.wide
        return np.stack([side * p[:, 0] * across, p[:, 1] * across, self.z(p[:, 2])], axis=1)

    def _curve(self, t: Sequence[float], values: Sequence[float], at: np.ndarray) -> np.ndarray:
        return PchipInterpolator(t, values)(np.clip(at, t[0], t[-1]))

    def trunk(self, *, skin: bool) -> Profile:
        """The trunk's outline, with or without subcutaneous fat."""
        t = np.asarray(_TRUNK_T, dtype=float)
        belly = self._curve(_FAT_T, _VISCERAL[self.sex], t) * self.fat_mm
        fat = self._curve(_FAT_T, _FAT[self.sex], t) * self.fat_mm + 2.0 if skin else 0.0
        a = np.asarray(_TRUNK_A[self.sex]) * self.wide + 0.30 * belly + fat
        b = np.asarray(_TRUNK_B) * self.wide + 0.35 * belly + 0.9 * np.asarray(fat)
        y = np.asarray(_TRUNK_Y) * self.wide + 0.30 * belly + 0.10 * np.asarray(fat)
        limit = MAX_RADIUS_MM - 11.0 - (0.0 if skin else 0.35 * self.fat_mm)
        return Profile(self.z(t), a=np.minimum(a, limit), b=b, y=y, n=_TRUNK_N)

    def thigh(self, side: float, *, skin: bool) -> Profile:
        """One thigh's outline, with or without subcutaneous fat."""
        t = np.asarray(_THIGH_T, dtype=float)
        fat = self._curve(_FAT_T, _FAT[self.sex], t) * self.fat_mm + 2.0 if skin else np.zeros(len(t))
        a, x = np.asarray(_THIGH_A) * self.wide, np.asarray(_THIGH_X) * self.wide
        outer = np.minimum(x + a + fat, MAX_RADIUS_MM - 11.0)
        inner = np.maximum(x - a - 0.4 * fat, 2.0)
        b = np.asarray(_THIGH_B) * self.wide + 0.8 * fat
        return Profile(self.z(t), a=(outer - inner) / 2, b=b, x=side * (outer + inner) / 2, y=-4 * self.wide)

    def arm(self) -> tuple[np.ndarray, np.ndarray]:
        """Middle line of the right arm (k, 3) in mm and its radius without fat."""
        fat = 0.22 * self.fat_mm
        if self.arms_up:
            line = self.place([(150, -8, 322), (166, -6, 270), (186, 0, 170), (196, 4, 70), (200, 6, -60)])
            radius = np.array([46.0, 43.0, 40.0, 37.0, 35.0]) * self.wide
        else:
            trunk = self.trunk(skin=True)
            line = self.place(
                [(146, -8, 330), (176, -10, 400), (180, -12, 500), (178, -8, 610), (150, 70, 660), (70, 0, 700)]
            )
            radius = np.array([44.0, 40.0, 37.0, 33.0, 29.0, 21.0]) * self.wide
            for i in (1, 2, 3, 4):
                line[i, 0] = trunk.at(line[i, 2:])[0][0] + (0.6 * radius[i] if i < 4 else -20.0)
            _, b, _, y = trunk.at(line[4:, 2])
            line[4:, 1] = [0.75 * b[0] + y[0], b[1] + y[1] + 12.0]
        line[:, 0] = np.minimum(line[:, 0], MAX_RADIUS_MM - 3.0 - radius - fat)
        return line, radius

    def arms_fit(self) -> bool:
        """Whether the arms lie beside the trunk within the tunnel without sinking into it by more than a third."""
        line, radius = self.arm()
        trunk = self.trunk(skin=True).at(line[:, 2])[0]
        return bool(self.arms_up or np.all(line[1:4, 0] - trunk[1:4] > 0.1 * radius[1:4]))

    def volume_ml(self) -> float:
        """Volume of the body inside the image in mL, to a few per cent, without drawing it."""
        z = np.arange(float(self.z(self.end_t)), self.top_mm, 2.0)
        total = np.zeros(len(z))
        for parts in ((self.trunk(skin=True),), (self.thigh(1.0, skin=True), self.thigh(-1.0, skin=True))):
            area = np.zeros(len(z))
            for part in parts:
                a, b, _, _ = part.at(z)
                there = (z >= part.z[0]) & (z <= part.z[-1])
                area += there * 4 * a * b * gamma(1 + 1 / part.n) ** 2 / gamma(1 + 2 / part.n)
            total = np.maximum(total, area)
        line, radius = self.arm()
        steps = np.linalg.norm(np.diff(line, axis=0), axis=1) * (line[1:, 2] < self.top_mm + 60)
        arms = 2 * np.pi * float(np.sum(steps * ((radius[1:] + radius[:-1]) / 2 + 0.22 * self.fat_mm) ** 2)) * 0.85
        head_and_neck = 4.9e6 * self.head_wide**2 * self.tall
        return (float(total.sum()) * 2.0 + arms + head_and_neck) * 1e-3

    def mass_share(self) -> float:
        """Part of the whole body's mass that lies inside the image.

        Head and neck 8.1, trunk 49.7, a thigh 10, an upper arm 2.8, a forearm with hand 2.2 % (Winter, Biomechanics and
        Motor Control of Human Movement, doi 10.1002/9780470549148, table 4.1); thigh from 0.47 to 0.715 of stature.
        """
        thigh = np.clip((self.end_t / REFERENCE_HEIGHT_MM - 0.47) / 0.245, 0, 1)
        arms = 0.050 if self.arms_up else 0.100
        return float(0.081 + 0.497 + 0.20 * (1 - (1 - thigh) ** 1.3) + arms)
