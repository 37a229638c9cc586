"""petsim calibrate: fit a simulation to real scans at several doses, by the noise of their difference images."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from petsim.bed_pattern import bed_period_mm
from petsim.cache.store import make_folder, whole_or_nothing
from petsim.difference_noise import SLICE_LAGS, DifferenceNoise, measure, variance_factor
from petsim.dose_pairs import Collection, DoseImages, open_collection
from petsim.effective_dose import EffectiveDRF, effective_drfs, interval
from petsim.noise_fit import PARAMETERS, Match, match, pool

RESULT, FIGURE = "calibration.json", "calibration.png"

_DEGENERATE_ABOVE = 0.95

ALWAYS_DEGENERATE = (
    "count level and a common factor of all DRF - 1: difference images show their product only, so one of them is taken "
    "at its word",
    "scanner resolution, reconstruction and post-filter: all shape the noise power spectrum, and the fitted filter stands "
    "for their sum",
)


@dataclass(frozen=True)
class Calibration:
    """Everything that was measured.

    Parameters
    ----------
    real, simulated : Collection
        The latter None where no simulation was given.
    real_noise, simulated_noise : tuple of DifferenceNoise
    doses : tuple of EffectiveDRF
    match : Match or None
    nested : bool
    """

    real: Collection
    simulated: Collection | None
    real_noise: tuple[DifferenceNoise, ...]
    simulated_noise: tuple[DifferenceNoise, ...]
    doses: tuple[EffectiveDRF, ...]
    match: Match | None
    nested: bool

    @property
    def origin(self) -> str:
        """What the real side is: figures of simulated pairs say nothing about a scanner."""
        if self.real.simulated:
            return "simulated pairs"
        return "dataset of real scans" if self.real.mode else "multi-dose folder"


Told = Callable[[str, str, float], None]


def calibrate(
    real: Path, simulated: Path | None, nested: bool = True, units: str | None = None, seed: int = 0,
    told: Told = lambda subject, what, fraction: None,
) -> Calibration:  # fmt: skip
    """Measure real pairs of low and full dose, and fit a simulation to them.

    Parameters
    ----------
    real : Path
        Multi-dose folder, or dataset of make-dataset.
    simulated : Path, optional
        The same; without, only effective DRFs and the noise of the real scans are measured.
    nested : bool
        Low doses are parts of the full one, which those of the simulation always are.
    units : str, optional
        "bqml" or "suv", of NIfTI images that do not say.
    seed : int
        Of the bootstrap.
    told : callable
        Is told (subject, what is being done, what part of all work of this subject is done).

    Raises
    ------
    DataError
        As `open_collection`, `measure` and `match`.
    """
    scans = open_collection(real, units)
    copies = None if simulated is None else open_collection(simulated, units)
    if copies is not None and copies.mode and not copies.simulated:
        raise DataError(f"--sim: {simulated.name if simulated else ''} holds real scans; give a dataset that make-dataset "
                        "simulated, and this one with --real")  # fmt: skip
    both = [*scans.subjects, *(copies.subjects if copies else ())]
    organs = all(s.labels is not None for s in both)

    def noise_of(collection: Collection, side: str, nested: bool) -> tuple[DifferenceNoise, ...]:
        def one(subject: DoseImages) -> DifferenceNoise:
            return measure(subject, organs, nested, lambda f: told(f"{side} {subject.name}", "noise", f / len(both)))

        return tuple(one(subject) for subject in collection.subjects)

    real_noise = noise_of(scans, "real", nested)
    simulated_noise = () if copies is None else noise_of(copies, "simulated", True)
    fitted = None
    if copies is not None:
        fitted = match(pool(real_noise, scans.spacing_mm), pool(simulated_noise, copies.spacing_mm), seed)
    doses = tuple(effective_drfs(real_noise, nested, seed))
    return Calibration(scans, copies, real_noise, simulated_noise, doses, fitted, nested)


def result_of(c: Calibration) -> dict[str, Any]:
    """All figures, JSON types; what is not known is null."""
    result: dict[str, Any] = {
        "real": c.origin, "nested": c.nested,
        "subjects": len(c.real_noise), "drf": c.real.drfs, "voxel_mm": list(c.real.spacing_mm),
        "effective_drf": [
            {"subject": d.subjects[0] if len(d.subjects) == 1 else "all", "drf": d.drf, "effective_drf": d.effective_drf,
             "interval_95": list(d.interval)} for d in c.doses
        ],
        "activity_over_full": [
            {"subject": n.name, "drf": drf, "ratio": float(ratio)}
            for n in c.real_noise for drf, ratio in zip(n.drfs, n.activity_ratios, strict=True)
        ],
        "axial": _axial(c.real_noise, c.real.spacing_mm[2]),
        "warnings": warnings_of(c),
    }  # fmt: skip
    if c.match is not None and c.simulated is not None:
        draws = {name: list(interval(c.match.draws[:, k])) for k, name in enumerate(PARAMETERS)}
        values = dict(zip(PARAMETERS, c.match.fit.values.tolist(), strict=True))
        result["simulated"] = {
            "subjects": len(c.simulated_noise), "drf": c.simulated.drfs, "voxel_mm": list(c.simulated.spacing_mm),
            "axial": _axial(c.simulated_noise, c.simulated.spacing_mm[2]),
        }  # fmt: skip
        result["fit"] = {
            name: {"value": values[name], "interval_95": draws[name]} for name in PARAMETERS
        } | {
            f"extra_fwhm_{axis}_mm": {
                "value": signed_root(values[f"fwhm2_{axis}_mm2"]),
                "interval_95": [signed_root(v) for v in draws[f"fwhm2_{axis}_mm2"]],
            } for axis in ("transaxial", "axial")
        }  # fmt: skip
        result["correlation"] = {
            "parameters": list(PARAMETERS), "jacobian": c.match.fit.correlation.tolist(),
            "bootstrap": [_plain(row) for row in c.match.correlation_of_draws],
        }  # fmt: skip
        result["degenerate"] = [*ALWAYS_DEGENERATE, *degenerate_pairs(c.match)]
        result["effective_drf_at_simulated_counts"] = _at_simulated_counts(c)
        result["advice"] = advice(c)
        result["regions"] = region_rows(c.match)
        result["spectra"] = _spectra(c.match)
    return result


def signed_root(square: float) -> float:
    """Square root with the sign of the square: a negative width is blur that has to go."""
    return math.copysign(math.sqrt(abs(square)), square)


def region_rows(m: Match) -> list[dict[str, Any]]:
    """Noise of the full dose over the mean by region, in percent, geometric mean of its parts; matched: after the fit."""
    rows = []
    cells = m.bins.cells_per_mm3
    matched = m.fit.matched(m.simulated_spectra, m.bins)
    for k, name in enumerate(m.real.regions):
        real, simulated = (float(n.variance[k]) for n in (m.real, m.simulated))
        after = simulated * float((matched[k] * cells).sum() / (m.simulated_spectra[k] * cells).sum())
        rows.append({
            "region": name, "real_ml": m.real.volume_mm3[k] / 1000, "simulated_ml": m.simulated.volume_mm3[k] / 1000,
            "real_noise_percent": 100 * math.sqrt(real), "simulated_noise_percent": 100 * math.sqrt(simulated),
            "matched_noise_percent": 100 * math.sqrt(after), "variance_ratio_before": real / simulated,
            "variance_ratio_after": real / after,
        })  # fmt: skip
    return rows


def transaxial(spectrum: np.ndarray, m: Match) -> np.ndarray:
    """Spectrum of slices, (..., rings) in mm^2, from (..., rings, axial)."""
    return spectrum @ m.bins.lengths_per_mm


def axial(spectrum: np.ndarray, m: Match) -> np.ndarray:
    """Spectrum of lines along the axis, (..., axial) in mm, from (..., rings, axial)."""
    return m.bins.areas_per_mm2 @ spectrum


def _spectra(m: Match) -> dict[str, Any]:
    kinds = {"real": m.real_spectra, "simulated": m.simulated_spectra,
             "matched": m.fit.matched(m.simulated_spectra, m.bins)}  # fmt: skip
    sums = {kind: np.tensordot(m.shares, s, 1) for kind, s in kinds.items()}
    return {
        "sum_over_simulated_variance": {f"{kind}_transaxial_mm2": transaxial(s, m).tolist() for kind, s in sums.items()}
        | {f"{kind}_axial_mm": axial(s, m).tolist() for kind, s in sums.items()},
        "transaxial_frequency_per_mm": m.bins.transaxial_per_mm.tolist(),
        "axial_frequency_per_mm": m.bins.axial_per_mm.tolist(),
        "regions": [
            {"region": name}
            | {f"{kind}_transaxial_mm2": transaxial(s[k], m).tolist() for kind, s in kinds.items()}
            | {f"{kind}_axial_mm": axial(s[k], m).tolist() for kind, s in kinds.items()}
            for k, name in enumerate(m.real.regions)
        ],
    }


def _axial(noise: Sequence[DifferenceNoise], spacing_mm: float) -> dict[str, Any]:
    return {
        "slice_mm": spacing_mm,
        "period_mm": bed_period_mm([n.axial.variance for n in noise], [n.axial.mean for n in noise], spacing_mm),
        "subjects": [
            {"subject": n.name, "relative_noise": _plain(relative_noise(n))}
            | {f"correlation_{lag}_slices": _plain(n.axial.correlation[k]) for k, lag in enumerate(SLICE_LAGS)}
            for n in noise
        ],
    }


def relative_noise(noise: DifferenceNoise) -> np.ndarray:
    """Standard deviation of the full dose's noise over the mean by slice; NaN without body."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(noise.axial.mean > 0, np.sqrt(noise.axial.variance) / noise.axial.mean, np.nan)


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(v) if math.isfinite(v) else None for v in values]


def degenerate_pairs(m: Match) -> list[str]:
    """Parameters that the spectra hardly tell apart, a line for each pair."""
    found = []
    tables = m.fit.correlation, m.correlation_of_draws
    for i, j in ((0, 1), (0, 2), (1, 2)):
        worst = max((t[i, j] for t in tables if math.isfinite(t[i, j])), key=abs, default=0.0)
        if abs(worst) > _DEGENERATE_ABOVE:
            found.append(f"{PARAMETERS[i]} and {PARAMETERS[j]}: correlation {worst:.2f}")
    return found


def _at_simulated_counts(c: Calibration) -> list[dict[str, Any]]:
    """The other reading of the count factor: the simulation's counts hold, and the DRFs are others than named."""
    assert c.match is not None
    offset = variance_factor(0.0, c.nested)
    rows = []
    for drf in c.real.drfs:
        value, draws = (variance_factor(drf, c.nested) / f - offset for f in (c.match.fit.values[0], c.match.draws[:, 0]))
        rows.append({"drf": drf, "effective_drf": float(value), "interval_95": list(interval(draws))})
    return rows


def advice(c: Calibration) -> list[str]:
    """What to change in make-dataset, with values."""
    assert c.match is not None and c.simulated is not None
    counts, *squares = c.match.fit.values.tolist()
    s = c.simulated
    lines = []
    low, high = interval(c.match.draws[:, 0])
    if low <= 1 <= high:
        lines.append(f"count level: fits (factor {counts:.3g}, 95 % {low:.3g} to {high:.3g})")
    else:
        ways = [f"--duration-s {s.duration_s * counts:.4g} instead of {s.duration_s:.4g}"] if s.duration_s else []
        ways += [f"--counts {s.full_prompts * counts:.4g} instead of {s.full_prompts:.4g}"] if s.full_prompts else []
        lines.append(f"count level: {' or '.join(ways) or f'{counts:.3g} times the counts'}")
    spans = [interval(c.match.draws[:, 1 + k]) for k in range(2)]
    if all(low <= 0 <= high for low, high in spans):
        return [*lines, "filter: fits"]
    if s.filter_mm is None:
        ways = [f"{name} {math.sqrt(abs(q)):.2g} mm {'more' if q > 0 else 'less'}"
                for name, q in zip(("transaxially", "axially"), squares, strict=True)]  # fmt: skip
        return [*lines, f"filter: {', '.join(ways)} (squared FWHM add or subtract)"]
    wanted = [s.filter_mm**2 + q for q in squares]
    mean = (2 * wanted[0] + wanted[1]) / 3
    if mean <= 0:
        return [*lines, "filter: --filter-mm 0 is still too smooth; take more iterations (--iterations) or smaller voxels"]
    apart = ", ".join(f"{name} {signed_root(w):.3g}" for name, w in zip(("transaxially", "axially"), wanted, strict=True))
    return [*lines, f"filter: --filter-mm {math.sqrt(mean):.3g} instead of {s.filter_mm:.3g} ({apart}; one for all axes)"]


def warnings_of(c: Calibration) -> list[str]:
    """What the figures do not show by themselves, a line each."""
    lines = []
    for d in c.doses:
        if d.contradicts:
            who = d.subjects[0] if len(d.subjects) == 1 else "all subjects"
            low, high = d.interval
            lines.append(
                f"{who}: the noise at DRF {d.drf:g} is that of DRF {d.effective_drf:.3g} ({low:.3g} to {high:.3g})"
                + (", if the other dose is as named" if len(c.real.drfs) == 2 else "")
            )
    if len(c.real.drfs) == 1:
        lines.append("one low dose only: its DRF cannot be told from the count level of the full dose")
    for name, collection in (("real", c.real), ("simulated", c.simulated)):
        for one in () if collection is None else collection.left_out:
            lines.append(f"{one} was left out: its body is cut off at the sides of the image")
        if collection is not None and "dose" in collection.mode:
            lines.append(f"the {name} dataset was made with --mode dose, where (DRF - 1) is not the factor of the variance: "
                         "make it with --mode thin")  # fmt: skip
    if c.match is not None and c.simulated is not None:
        if not np.allclose(c.real.spacing_mm, c.simulated.spacing_mm, rtol=0.05):
            sizes = [" x ".join(f"{d:.3g}" for d in s.spacing_mm) for s in (c.real, c.simulated)]
            lines.append(f"voxels differ (real {sizes[0]} mm, simulated {sizes[1]} mm): the fitted filter contains that")
        lines += [f"degenerate: {line}" for line in degenerate_pairs(c.match)]
    return lines


def table(c: Calibration, result: dict[str, Any]) -> str:
    """The figures to be read in a terminal."""
    many = "s" if len(c.real_noise) > 1 else ""
    lines = [f"{c.origin}: {len(c.real_noise)} subject{many}, DRF {' '.join(f'{d:g}' for d in c.real.drfs)}"]
    if "fit" in result:
        labels = {"count_factor": "real / simulated counts", "extra_fwhm_transaxial_mm": "extra filter transaxially, mm",
                  "extra_fwhm_axial_mm": "extra filter axially, mm"}  # fmt: skip
        for key, label in labels.items():
            row = result["fit"][key]
            lines.append(f"{label:36s} {row['value']:8.3f}  ({row['interval_95'][0]:.3f} to {row['interval_95'][1]:.3f})")
        lines.append(f"{'noise of the full dose, % of mean':52s} {'real':>8s} {'sim.':>8s} {'matched':>8s}")
        lines += [
            f"  {r['region']:50s} {r['real_noise_percent']:8.2f} {r['simulated_noise_percent']:8.2f} "
            f"{r['matched_noise_percent']:8.2f}" for r in result["regions"]
        ]  # fmt: skip
        lines += [f"advice: {line}" for line in result["advice"]]
    lines += [
        f"effective DRF of {r['subject']} at DRF {r['drf']:g}: {r['effective_drf']:.3g} "
        f"({r['interval_95'][0]:.3g} to {r['interval_95'][1]:.3g})" for r in result["effective_drf"]
    ]  # fmt: skip
    if result["axial"]["period_mm"] is not None:
        lines.append(f"noise repeats along the axis every {result['axial']['period_mm']:.0f} mm: bed positions")
    lines += [f"  warning: {line}" for line in result["warnings"]]
    return "\n".join(lines)


def write_calibration(c: Calibration, result: dict[str, Any], out: Path) -> list[str]:
    """Write calibration.json and calibration.png into a folder; names of the files."""
    from petsim.calibration_figures import calibration_figure

    make_folder(out)
    with whole_or_nothing(out / RESULT) as temporary:
        temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with whole_or_nothing(out / FIGURE) as temporary:
        calibration_figure(result).savefig(temporary, format="png", dpi=130)
    return [RESULT, FIGURE]
