"""Which diffusion time stands for which dose: degradation matching.

After arXiv 2603.02012 (Jing et al. 2026), our implementation: the signature of a dose, averaged over training subjects, is
looked for along the forward diffusion. White noise does not look like that of a reconstruction, so that NMAE and SSIM give
different times; both are kept, and the one that fits both best, each error in units of its standard deviation over bootstrap
samples of the subjects.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from data_recipes.errors import DataError, UsageError
from denoise.diffusion.method import Anchors
from denoise.diffusion.noise import ColoredNoise
from denoise.diffusion.schedule import NoiseSchedule
from denoise.diffusion.signature import Signature
from denoise.scaling import Scaling
from petsim.cache.store import sha256_of

MATCHES = ("nmae", "ssim", "both")

APART = 0.15
"""Times from NMAE and from SSIM that differ by more than this part of their mean are warned of, and organs' by twice it."""

POOR = 0.25
"""So are anchors whose interval is wider than this part of themselves to either side."""

CLOSE_STEPS = 5.0
"""And anchors closer than this, or closer than half of a hundredth of the schedule."""

DRAWS = 200
_FINE = 100


@dataclass(frozen=True)
class Match:
    """Times for one dose.

    Parameters
    ----------
    drf : float
    nmae, ssim_loss : float
        Of the dose, mean over subjects.
    times : dict
        "nmae", "ssim", "both" -> time.
    intervals : dict
        The same -> (2.5 %, 97.5 %) over bootstrap samples of the subjects; of one subject, the time itself.
    organs : dict
        Organ -> time by its NMAE.
    """

    drf: float
    nmae: float
    ssim_loss: float
    times: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    organs: dict[str, float]


def digest_of(schedule: NoiseSchedule, scaling: Scaling, colored: ColoredNoise | None, reference: str) -> str:
    """Hash of all that an anchor's time depends on besides the images."""
    return sha256_of([asdict(schedule), asdict(scaling), None if colored is None else asdict(colored), reference])


def match(
    signatures: Sequence[Signature], ratios: np.ndarray, schedule: NoiseSchedule, drfs: Sequence[float], seed: int = 0
) -> list[Match]:
    """Times of doses.

    Parameters
    ----------
    signatures : sequence of Signature
        Of training subjects.
    ratios : ndarray
        Rising; where the curves of the signatures were measured.
    schedule : NoiseSchedule
    drfs : sequence of float
        Rising.
    seed : int
        Of the bootstrap.

    Raises
    ------
    DataError
        A dose that a subject lacks.
    """
    for s in signatures:
        missing = [d for d in drfs if d not in s.nmae]
        if missing:
            raise DataError(f"a subject has no image at DRF {missing[0]:g}; choose others with --drf")
    rng = np.random.default_rng(seed)
    everyone = np.arange(len(signatures))
    samples = (
        [everyone] if len(signatures) == 1 else [rng.integers(len(signatures), size=len(signatures)) for _ in range(DRAWS)]
    )
    units = np.array([s.noise_nmae for s in signatures])
    curves = np.stack([s.curve for s in signatures])
    organs = sorted({name for s in signatures for name in s.organs})
    found = []
    for drf in drfs:
        errors, losses = (
            np.array([v[drf] for v in values]) for values in zip(*((s.nmae, s.ssim_loss) for s in signatures), strict=True)
        )
        nearby = errors.mean() / units.mean()
        off = np.array([
            [errors[k].mean() - nearby * units[k].mean(), losses[k].mean() - _at(ratios, curves[k].mean(axis=0), nearby)]
            for k in samples
        ])  # fmt: skip
        # One subject alone has no spread; relative errors then count alike.
        spreads = off.std(axis=0) if len(signatures) > 1 else np.array([errors.mean(), losses.mean()])
        drawn = [_ratios(errors[k], losses[k], units[k], curves[k], ratios, spreads) for k in samples]
        whole = _ratios(errors, losses, units, curves, ratios, spreads)
        times = {name: float(schedule.time_of(r)) for name, r in zip(MATCHES, whole, strict=True)}
        quantiles = np.quantile(np.asarray(schedule.time_of(np.array(drawn))), (0.025, 0.975), axis=0)
        intervals = {name: (float(quantiles[0, k]), float(quantiles[1, k])) for k, name in enumerate(MATCHES)}
        by_organ = {}
        for name in organs:
            own = [s.organs[name] for s in signatures if name in s.organs]
            ratio = float(np.mean([doses[drf] for _, doses in own]) / np.mean([unit for unit, _ in own]))
            by_organ[name] = float(schedule.time_of(ratio))
        found.append(Match(drf, float(errors.mean()), float(losses.mean()), times, intervals, by_organ))
    return found


def _ratios(
    errors: np.ndarray, losses: np.ndarray, units: np.ndarray, curves: np.ndarray, ratios: np.ndarray, spreads: np.ndarray
) -> tuple[float, float, float]:
    """Ratio s / a from NMAE, from SSIM, and from both."""
    unit, curve = units.mean(), curves.mean(axis=0)
    from_error = errors.mean() / unit
    # The curve rises; what little it may fall by rounding would make the inverse ambiguous.
    rising = np.maximum.accumulate(curve) + np.arange(len(curve)) * 1e-12
    from_loss = float(
        np.exp(PchipInterpolator(np.log(rising), np.log(ratios))(np.clip(np.log(losses.mean()), *np.log(rising[[0, -1]]))))
    )
    fine = np.geomspace(ratios[0], ratios[-1], _FINE)
    off = np.square((unit * fine - errors.mean()) / max(spreads[0], 1e-9))
    off += np.square((_at(ratios, curve, fine) - losses.mean()) / max(spreads[1], 1e-9))
    return from_error, from_loss, _least(fine, off)


def _at(ratios: np.ndarray, curve: np.ndarray, where: np.ndarray | float) -> Any:
    return np.exp(PchipInterpolator(np.log(ratios), np.log(np.maximum(curve, 1e-12)))(np.log(where)))


def _least(x: np.ndarray, y: np.ndarray) -> float:
    """Place of the least value of a sampled function, refined by a parabola in the logarithm of x."""
    k = int(np.clip(np.argmin(y), 1, len(x) - 2))
    before, here, after = y[k - 1 : k + 2]
    bend = before - 2 * here + after
    shift = 0.5 * (before - after) / bend if bend > 0 else 0.0
    return float(np.exp(np.log(x[k]) + np.clip(shift, -1, 1) * np.log(x[k + 1] / x[k])))


def warnings_of(matches: Sequence[Match], schedule: NoiseSchedule, by: str, colored: bool) -> list[str]:
    """What speaks against using the anchors, one line each."""
    found = []
    for m in matches:
        one, other = m.times["nmae"], m.times["ssim"]
        organs = sorted(m.organs, key=lambda name: m.organs[name])
        if abs(one - other) > APART * 0.5 * (one + other):
            found.append(f"DRF {m.drf:g}: time {one:.1f} by NMAE but {other:.1f} by SSIM; {_mend(colored)}")
        elif organs and m.organs[organs[-1]] > (1 + 2 * APART) * m.organs[organs[0]]:
            first, last = organs[0], organs[-1]
            found.append(
                f"DRF {m.drf:g}: time {m.organs[first]:.1f} in {first} but {m.organs[last]:.1f} in {last}; {_mend(colored)}"
            )
        low, high = m.intervals[by]
        if high - low > 2 * POOR * m.times[by]:
            found.append(f"DRF {m.drf:g}: time {m.times[by]:.1f}, but {low:.1f} to {high:.1f} over subjects; add subjects")
        if m.times[by] > 0.98 * schedule.steps:
            found.append(f"DRF {m.drf:g}: noisier than the schedule ever gets; raise --scale-suv")
    for a, b in pairwise(matches):
        if b.times[by] <= a.times[by]:
            found.append(f"DRF {b.drf:g} comes before DRF {a.drf:g}: the anchors are not ordered and cannot be trained with")
        elif b.times[by] - a.times[by] < max(CLOSE_STEPS, 0.005 * schedule.steps):
            found.append(
                f"anchors of DRF {a.drf:g} and {b.drf:g} collapse (times {a.times[by]:.1f} and {b.times[by]:.1f}); lower "
                "--scale-suv"
            )
    return found


def _mend(colored: bool) -> str:
    if colored:
        return "the measured noise fits badly"
    return "noise is not white: use the colored process (--noise measured)"


def shares_of(times: Sequence[float], steps: int) -> list[float]:
    """Part of the time axis before the first anchor, between anchors, and after the last."""
    return (np.diff([0.0, *times, float(steps)]) / steps).tolist()


def chosen(matches: Sequence[Match], by: str, digest: str) -> Anchors:
    """Anchors out of matches.

    Raises
    ------
    UsageError
        Times that do not rise with the dose reduction.
    """
    if by not in MATCHES:
        raise UsageError(f"--by {by}: choose among {', '.join(MATCHES)}")
    return Anchors(tuple(m.drf for m in matches), tuple(m.times[by] for m in matches), digest)
