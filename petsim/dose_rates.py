"""Count rates at every dose: what a mode of the dose ladder changes."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from data_recipes.isotopes import Isotope, decay_factor, effective_seconds, isotope, mean_decay_factor
from petsim.geometry.sinogram import SinogramLayout
from petsim.physics.normalization import cos4_tilt
from petsim.physics.randoms import Ends, end_product, tof_share
from petsim.physics.rates import TAU_AREA_US_CM2
from petsim.physics.singles import DetectorAreas, Singles


@dataclass(frozen=True)
class DoseRates:
    """Rates of one dose, averaged over its frame.

    Parameters
    ----------
    drf : float
    seconds : float
        Time for which counts were taken.
    counts_per_unit : float
        Counts of a bin with normalization 1 for a line integral of 1 Bq/mL mm of the activity at scan start, full dose.
    singles_cps : ndarray
        (across, along) of `petsim.physics.singles.DetectorAreas`: singles a crystal of efficiency 1, dead time not counted;
        the product of two is the mean product of both rates over the frame, but for `extra_cps2`.
    extra_cps2 : float
        Added to the products.
    live : ndarray
        (across, along): live fraction of the blocks.
    """

    drf: float
    seconds: float
    counts_per_unit: float
    singles_cps: np.ndarray
    extra_cps2: float
    live: np.ndarray


@dataclass(frozen=True)
class BinRates:
    """What rates over the detectors mean in sinogram bins.

    Parameters
    ----------
    layout : SinogramLayout
    areas : DetectorAreas
        On which `rates` gives singles and live fractions.
    rates : tuple of DoseRates
    """

    layout: SinogramLayout
    areas: DetectorAreas
    rates: tuple[DoseRates, ...]

    @cached_property
    def _ends(self) -> list[tuple[Ends, Ends]]:
        """Singles and live fractions at the ends of LORs."""
        at_ends = self.areas.at_ends
        return [(at_ends(self.layout, r.singles_cps), at_ends(self.layout, r.live)) for r in self.rates]

    def live(self, views: np.ndarray, item: int = 0) -> np.ndarray:
        """Live fraction of both blocks by the rates of an item, float32 (views, radial, plane)."""
        return end_product(self.layout, self._ends[item][1], views)

    def randoms(self, views: np.ndarray, item: int = 0) -> np.ndarray:
        """Random counts a TOF bin over normalization and live fraction, float32 (views, radial, plane)."""
        rates = self.rates[item]
        product = end_product(self.layout, self._ends[item][0], views) + np.float32(rates.extra_cps2)
        window_s = 1e-9 * (self.layout.scanner.coincidence_window_ns or 0.0)
        product *= np.float32(rates.seconds * window_s * tof_share(self.layout))
        product /= _tilt(self.layout, np.asarray(views, np.int64).tobytes())
        return product


@lru_cache(maxsize=1)
def _tilt(layout: SinogramLayout, views: bytes) -> np.ndarray:
    """cos(theta)^4 of a group of views (int64 as bytes), kept since every image asks for that of the same group."""
    return cos4_tilt(layout, np.frombuffer(views, np.int64))


def frame_means(iso: Isotope, seconds: float) -> tuple[float, float]:
    """Means of exp(-k t) and exp(-2 k t) over a frame."""
    return mean_decay_factor(iso, seconds), mean_decay_factor(Isotope(iso.name, iso.half_life_s / 2, iso.branching), seconds)


def dose_rates(
    singles: Singles, drf: float, mode: str, duration_s: float, isotope_name: str, counts_per_activity: float, scale: float,
    tau_area_us_cm2: float = TAU_AREA_US_CM2,
) -> DoseRates:  # fmt: skip
    """Rates of one dose.

    thin: the frame is D times shorter at the rates of the full dose. window: the middle 1/D of the frame. dose: the
    activity is D times lower, so that singles are a / D + b and the live fraction rises. Singles decay during the frame:
    with the means f1 of exp(-k t) and f2 of exp(-2 k t), the mean product of two rates is a a f2 + (a b + b a) f1 + b b,
    which is the product of (a sqrt(f2) + b f1 / sqrt(f2)) for both, plus b b (1 - f1^2 / f2).

    Parameters
    ----------
    singles : Singles
    drf : float
    mode : str
        "thin", "window" or "dose".
    duration_s : float
        Frame duration at full dose.
    isotope_name : str
    counts_per_activity : float
        K of `petsim.physics.normalization.counts_per_activity`.
    scale : float
        Factor on the duration, for `--counts`.
    tau_area_us_cm2 : float
        Dead-time constant, see `Singles.live`.
    """
    iso = isotope(isotope_name)
    window = duration_s / drf if mode == "window" else duration_s
    start = decay_factor(iso, (duration_s - window) / 2)
    f1, f2 = frame_means(iso, window)
    f1, f2 = start * f1, start**2 * f2
    lowered = drf if mode == "dose" else 1.0
    shortened = 1.0 if mode == "dose" else drf
    b = singles.lutetium_cps
    unit = counts_per_activity * effective_seconds(iso, window) * start * scale
    return DoseRates(
        drf=drf,
        seconds=duration_s * scale / shortened,
        counts_per_unit=unit / (drf if mode != "window" else 1.0),
        singles_cps=singles.activity_cps * (np.sqrt(f2) / lowered) + b * f1 / np.sqrt(f2),
        extra_cps2=b * b * (1 - f1**2 / f2),
        live=singles.live(lowered, f1, tau_area_us_cm2),
    )
