"""Count rates: singles, randoms, 176Lu, dead time, and the noise equivalent count rate.

Model (global constants, no fitted number of a scanner): every readout block is dead for `block_dead_time_us` after each
deposit above the trigger threshold, paralyzably, so that a block with n triggers per second lives exp(-n tau) of the time.
Dead time of a block is taken in inverse proportion to its face, tau = `TAU_AREA_US_CM2` / area: then only the density of
triggers matters and one constant serves blocks of all sizes. Trues and scatter live with both of their blocks, randoms are
2 tau s_i s_j of the live singles. A photon that piles up on another within the block's integration time leaves the energy
window, which is lost by the same exp(-n tau): the constant stands for both losses together, and only their sum could be told
from count rates. Scattered photons that pile-up lifts into the window are not modeled. A link that carries no more than so
many singles a second (`CountRates.behind_link`) is there for long scanners.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_recipes.errors import DataError
from data_recipes.isotopes import isotope
from petsim.geometry.scanner import Scanner
from petsim.physics.crystals import energy_block
from petsim.physics.monte_carlo import lutetium

PHANTOM_ML = 22_000.0
"""Volume that NEMA NU 2 refers the activity of its 70 cm phantom to."""

TAU_AREA_US_CM2 = 10.0
"""Dead time of a block times its face, the same for all scanners: median (rounded) of what the published activity of the
peak asks for on `CHOSEN_ON`. The other scanners are there to be predicted."""

CHOSEN_ON = ("biograph_mct", "biograph_vision_quadra", "discovery_mi_3ring", "omni_legend_32", "umi_550")
"""Every other one, in alphabetical order, of the scanners whose published peak of the NECR is verified."""

LIGHT_SHARING = ("PMT", "APD")
"""Photosensors whose blocks share light, and lose photons at their edges in a way that is not modeled."""

_KBQML = np.concatenate([np.linspace(0.05, 4.95, 99), np.linspace(5.0, 120.0, 1151)])


@dataclass(frozen=True)
class Response:
    """What a scanner makes of one annihilation in a phantom, before dead time; by Monte Carlo.

    Parameters
    ----------
    trues, scatter : float
        Coincidences per annihilation in the accepted field of view.
    singles : float
        Photons in the energy window per annihilation.
    random_share : float
        Share of all pairs of singles that lie in the accepted field of view.
    triggers_per_cm2 : ndarray
        (rows,), triggers per annihilation and cm2 of block face, by axial row of readout blocks.
    pairs, random_pairs : ndarray
        (rows, rows), share of the coincidences and of the random ones that a pair of rows holds; each sums to 1.
    """

    trues: float
    scatter: float
    singles: float
    random_share: float
    triggers_per_cm2: np.ndarray
    pairs: np.ndarray
    random_pairs: np.ndarray

    @property
    def scatter_fraction(self) -> float:
        """Scatter / (trues + scatter)."""
        return self.scatter / (self.trues + self.scatter)


@dataclass(frozen=True)
class CountRates:
    """Rates in kcps against the activity concentration in kBq/mL, float64 arrays of one length; singles of live blocks."""

    kbqml: np.ndarray
    trues: np.ndarray
    scatter: np.ndarray
    randoms: np.ndarray
    singles: np.ndarray

    @property
    def prompts(self) -> np.ndarray:
        """Trues, scatter and randoms together."""
        return self.trues + self.scatter + self.randoms

    @cached_property
    def necr(self) -> np.ndarray:
        """Noise equivalent count rate T^2 / (T + S + R), for randoms known without noise."""
        return self.trues**2 / np.maximum(self.prompts, 1e-300)

    def peak(self) -> tuple[float, float]:
        """Activity (kBq/mL) and height (kcps) of the largest NECR, by a parabola through the three highest points."""
        i = int(np.argmax(self.necr))
        if i in (0, len(self.necr) - 1):
            return float(self.kbqml[i]), float(self.necr[i])
        a, b, c = np.polyfit(self.kbqml[i - 1 : i + 2] - self.kbqml[i], self.necr[i - 1 : i + 2], 2)
        return float(self.kbqml[i] - b / (2 * a)), float(c - b * b / (4 * a))

    def behind_link(self, most_kcps: float) -> "CountRates":
        """The same behind a link that carries at most so many singles.

        Every coincidence needs two of them: trues, scatter and randoms all lose f^2, f = min(1, most / singles), and with
        them the NECR.
        """
        share = np.minimum(1, most_kcps / np.maximum(self.singles, 1e-300))
        both = share**2
        return CountRates(self.kbqml, self.trues * both, self.scatter * both, self.randoms * both, self.singles * share)


def random_rate(singles_i: np.ndarray, singles_j: np.ndarray, window_ns: float) -> np.ndarray:
    """Random coincidences of two detectors, 2 tau s_i s_j in 1/s.

    Parameters
    ----------
    singles_i, singles_j : ndarray
        Singles rates in 1/s.
    window_ns : float
        Full width of the coincidence window, which is 2 tau.
    """
    return window_ns * 1e-9 * singles_i * singles_j


def live_fraction(triggers_per_s: np.ndarray, dead_time_us: float) -> np.ndarray:
    """Share of the time that a paralyzable detector is live: exp(-n tau) (Knoll, Radiation Detection, chapter 4)."""
    return np.exp(-np.asarray(triggers_per_s) * dead_time_us * 1e-6)


def _block(scanner: Scanner) -> tuple[int, int]:
    return scanner.readout_block or energy_block(scanner)


def block_area_cm2(scanner: Scanner) -> float:
    """Crystal face of one readout block."""
    around, along = _block(scanner)
    return around * along * scanner.crystal_size_mm[0] * scanner.crystal_size_mm[1] * 1e-2


def block_dead_time_us(scanner: Scanner, tau_area_us_cm2: float = TAU_AREA_US_CM2) -> float:
    """Dead time of one readout block in microseconds."""
    return tau_area_us_cm2 / block_area_cm2(scanner)


def block_rows(scanner: Scanner) -> np.ndarray:
    """Axial row of readout blocks that each ring (virtual ones counted) belongs to, int64 (rings,)."""
    along = _block(scanner)[1]
    unit, place = np.divmod(np.arange(scanner.rings), scanner.axial_block)
    each = -(-scanner.axial_block_real // along)
    return unit * each + np.minimum(place, scanner.axial_block_real - 1) // along


def row_areas_cm2(scanner: Scanner) -> np.ndarray:
    """Crystal face of each axial row of readout blocks."""
    around = int(scanner.transaxial_is_real().sum())
    rings = np.bincount(block_rows(scanner), scanner.ring_is_real())
    return rings * around * scanner.crystal_size_mm[0] * scanner.crystal_size_mm[1] * 1e-2


def count_rates(scanner: Scanner, response: Response, tau_area_us_cm2: float = TAU_AREA_US_CM2, photon_loss: float = 1.0,
                kbqml: np.ndarray = _KBQML) -> CountRates:  # fmt: skip
    """Count rates of the NEMA phantom.

    176Lu adds to triggers and singles; its own coincidences across the field of view need more than the energy that one
    transition offers and are left out.

    Parameters
    ----------
    scanner : Scanner
    response : Response
    tau_area_us_cm2 : float
        Dead time times face of a block.
    photon_loss : float
        Share of the photons in the window that light sharing leaves, see `light_sharing`.
    kbqml : ndarray
        Activity concentrations in kBq/mL.

    Returns
    -------
    CountRates
    """
    annihilations = kbqml * 1e3 * PHANTOM_ML * isotope("F-18").branching
    background = lutetium(scanner)
    lutetium_triggers = background.decays_per_s * background.triggers / row_areas_cm2(scanner).sum()
    density = annihilations[:, None] * response.triggers_per_cm2 + lutetium_triggers
    live = live_fraction(density, tau_area_us_cm2)
    live_pairs = (live @ response.pairs * live).sum(axis=1)
    live_randoms = (live @ response.random_pairs * live).sum(axis=1)
    singles = (annihilations * response.singles + background.decays_per_s * background.singles) * photon_loss
    # Half of the ordered pairs of singles.
    randoms = random_rate(singles, singles, scanner.given("coincidence_window_ns")) / 2 * response.random_share
    pairs = annihilations * photon_loss**2 * live_pairs * 1e-3
    rows = row_areas_cm2(scanner)
    live_singles = (live * density * rows).sum(axis=1) / np.maximum((density * rows).sum(axis=1), 1e-300)
    return CountRates(
        kbqml, pairs * response.trues, pairs * response.scatter, randoms * live_randoms * 1e-3, singles * live_singles * 1e-3
    )


def calibrated_tau_area(scanner: Scanner, response: Response, photon_loss: float = 1.0) -> float:
    """Dead time times face (us cm2) that puts the peak of the NECR at the published activity: calibrated, not predicted.

    Parameters
    ----------
    scanner, response, photon_loss
        As in `count_rates`.

    Returns
    -------
    float

    Raises
    ------
    DataError
        A scanner without a published peak, or whose peak no dead time explains.
    """
    wanted = scanner.given("peak_necr_kbqml")
    low, high = 0.01, 300.0
    if count_rates(scanner, response, low, photon_loss).peak()[0] < wanted:
        raise DataError(f"scanner {scanner.name}: no dead time puts the peak of the NECR as high as {wanted:g} kBq/mL")
    while high > low * 1.0005:
        middle = math.sqrt(low * high)
        if count_rates(scanner, response, middle, photon_loss).peak()[0] > wanted:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def calibrated_link_kcps(scanner: Scanner, rates: CountRates) -> float:
    """Singles that a link carries whose limit puts the peak of the NECR at the published activity: calibrated.

    Beyond the limit the NECR falls as (most / singles)^2 T^2 / (T + S + R), before it nothing is lost. So the peak lies
    where the limit is reached, if the NECR still rises there without it.

    Parameters
    ----------
    scanner : Scanner
    rates : CountRates
        Without the link.

    Returns
    -------
    float

    Raises
    ------
    DataError
        Without a link the NECR peaks before the published activity.
    """
    wanted = scanner.given("peak_necr_kbqml")
    if rates.peak()[0] < wanted:
        raise DataError(f"scanner {scanner.name}: its NECR peaks below {wanted:g} kBq/mL without any limit of a link")
    return float(np.interp(wanted, rates.kbqml, rates.singles))


def light_sharing(scanner: Scanner, sensitivity_cps_per_kbq: float) -> float:
    """Share of the photons that blocks with light sharing keep, from the published sensitivity: calibrated, not predicted.

    Parameters
    ----------
    scanner : Scanner
    sensitivity_cps_per_kbq : float
        What the simulation gives without the loss.

    Returns
    -------
    float
        Square root of published over simulated, at most 1; exactly 1 for scanners with silicon photomultipliers.
    """
    if scanner.photosensor not in LIGHT_SHARING or scanner.sensitivity_cps_per_kbq is None:
        return 1.0
    return min(1.0, math.sqrt(scanner.sensitivity_cps_per_kbq / sensitivity_cps_per_kbq))
