"""Figures of calibrations and comparisons.

Every function takes the JSON result of its command, returns a `matplotlib.figure.Figure` and touches no global state.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colors of Okabe and Ito, which people with any color vision tell apart; markers and dashes tell too.
REAL, SIMULATED, MATCHED = ("#000000", "o", "-"), ("#D55E00", "s", "--"), ("#0072B2", "^", ":")
_INK, _SOFT = "#1d232b", "#66707c"
_MOST_REGIONS = 16


def calibration_figure(result: dict[str, Any]) -> "Figure":
    """Noise by region, spectra before and after the fit, effective DRFs, and noise along the axis.

    Parameters
    ----------
    result : dict
        Of `petsim.calibrate.result_of`; without a simulation the first row is left out.
    """
    from matplotlib.figure import Figure

    fitted = "fit" in result
    figure = Figure(figsize=(13, 8.6 if fitted else 4.4), facecolor="white", layout="constrained")
    figure.suptitle(f"Calibration: {_title(result)}", fontsize=11, color=_INK)
    rows: Any = figure.subfigures(2 if fitted else 1, 1, squeeze=False)[:, 0]
    if fitted:
        regions, transaxial, axial = rows[0].subplots(1, 3)
        _regions(regions, result["regions"])
        _spectrum(transaxial, result["spectra"], "transaxial", "mm2")
        _spectrum(axial, result["spectra"], "axial", "mm")
    doses, noise, correlation = rows[-1].subplots(1, 3)
    _doses(doses, result["effective_drf"])
    _along(noise, result, "relative_noise", "Noise of the full dose, % of the slice's mean", 100)
    _along(correlation, result, "correlation_1_slices", "Correlation of neighboring slices", 1)
    return figure


def _title(result: dict[str, Any]) -> str:
    subjects = result["subjects"]
    return f"{result['real']}, {subjects} subject{'s' if subjects > 1 else ''}"


def _style(axes: "Axes", x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=8, color=_INK)
    axes.set_ylabel(y, fontsize=8, color=_INK)
    axes.grid(color="#e4e7eb", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=7.5, length=2.5, color=_SOFT, labelcolor=_INK, which="both")
    for side, spine in axes.spines.items():
        spine.set(color=_SOFT, linewidth=0.6, visible=side in ("left", "bottom"))


def _legend(axes: "Axes") -> None:
    axes.legend(frameon=False, fontsize=7.5, labelcolor=_INK)


def _regions(axes: "Axes", rows: Sequence[dict[str, Any]]) -> None:
    shown = sorted(rows, key=lambda r: -r["real_ml"])[:_MOST_REGIONS][::-1]
    places = np.arange(len(shown))
    for name, (color, marker, _) in (("simulated", SIMULATED), ("matched", MATCHED), ("real", REAL)):
        label = {"matched": "simulated, after the fit"}.get(name, name)
        axes.plot([r[f"{name}_noise_percent"] for r in shown], places, marker, color=color, ms=5, label=label,
                  mfc="none" if name == "real" else color)  # fmt: skip
    axes.set_yticks(places, [r["region"].replace(", ", ",\n") for r in shown])
    axes.set_xlim(left=0)
    axes.set_ylim(-0.6, len(shown) - 0.1 + 0.12 * len(shown))
    _style(axes, "Noise of the full dose, % of the mean", "")
    _legend(axes)


def _spectrum(axes: "Axes", spectra: dict[str, Any], direction: str, unit: str) -> None:
    """The sums over regions, to which the fit is made."""
    frequency = np.array(spectra[f"{direction}_frequency_per_mm"])
    top = 0.0
    for name, (color, marker, dashes) in (("real", REAL), ("simulated", SIMULATED), ("matched", MATCHED)):
        power = np.array(spectra["sum_over_simulated_variance"][f"{name}_{direction}_{unit}"])
        label = {"matched": "simulated, after the fit"}.get(name, name)
        # Weak power is a difference of covariances and may come out below zero.
        shown = np.where(power > 0, power, np.nan)
        axes.semilogy(frequency, shown, linestyle=dashes, marker=marker, color=color, ms=4, lw=1.2, label=label,
                      mfc="none" if name == "real" else color)  # fmt: skip
        top = max(top, power.max())
    axes.set_ylim(top / 300, top * 2)
    power_unit = {"mm2": "mm²", "mm": "mm"}[unit]
    _style(axes, f"{direction.capitalize()} frequency, cycles/mm", f"Noise power / simulated variance, {power_unit}")
    _legend(axes)


def _doses(axes: "Axes", rows: Sequence[dict[str, Any]]) -> None:
    scans = [r for r in rows if r["subject"] != "all"]
    if not scans:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "effective DRF: needs two low doses", ha="center", fontsize=8, color=_SOFT)
        return
    drf, value = (np.array([r[key] for r in scans]) for key in ("drf", "effective_drf"))
    low, high = np.array([r["interval_95"] for r in scans]).T
    # Intervals of bootstraps need not hold the estimate.
    errors = np.maximum([value - low, high - value], 0) / drf
    # Scans of one dose side by side.
    subjects = sorted({r["subject"] for r in scans})
    places = np.array([subjects.index(r["subject"]) for r in scans]) - (len(subjects) - 1) / 2
    axes.axhline(1, color=_SOFT, lw=0.9)
    axes.errorbar(drf * 1.1 ** (places / len(subjects)), value / drf, errors, fmt="o", color=REAL[0], ms=4, lw=1, capsize=2)
    axes.set_xscale("log")
    ticks = sorted(set(drf.tolist()))
    axes.set_xticks(ticks, [f"{d:g}" for d in ticks])
    axes.set_xticks([], minor=True)
    reach = 1.15 * max(0.2, float(np.abs(value / drf - 1).max() + errors.max()))
    axes.set_ylim(max(0, 1 - reach), 1 + reach)
    _style(axes, "DRF by name", "Effective DRF / DRF by name")


def _along(axes: "Axes", result: dict[str, Any], key: str, label: str, scale: float) -> None:
    sides = [("real", REAL, result["axial"])]
    if "simulated" in result:
        sides.append(("simulated", SIMULATED, result["simulated"]["axial"]))
    values: list[float] = []
    for name, (color, _, dashes), side in sides:
        for k, subject in enumerate(side["subjects"]):
            line = scale * np.array([np.nan if v is None else v for v in subject[key]])
            z = (np.arange(line.size) - (line.size - 1) / 2) * side["slice_mm"]
            axes.plot(z, line, linestyle=dashes, color=color, lw=0.9, alpha=0.8, label=name if k == 0 else None)
            values += line[np.isfinite(line)].tolist()
    # Slices at the ends hold little body, and set no scale.
    top = 1.3 * float(np.quantile(values, 0.97))
    axes.set_ylim(0, min(top, 1.2) if scale == 1 else top)
    _style(axes, "Along the axis from the body's middle, mm", label)
    _legend(axes)


def comparison_figure(result: dict[str, Any]) -> "Figure":
    """Noise by region, noise power spectrum, histogram and profiles of two images.

    Parameters
    ----------
    result : dict
        Of `petsim.compare.compare`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8.6), facecolor="white", layout="constrained")
    figure.suptitle(f"{result['real'].capitalize()} against simulation", fontsize=11, color=_INK)
    (regions, spectrum, axial_spectrum), (histogram, axial, transaxial) = figure.subplots(2, 3)
    shown = result["regions"][:_MOST_REGIONS][::-1]
    places = np.arange(len(shown))
    edges = np.array(result["histogram"]["edges_over_body_mean"])
    for name, (color, marker, dashes) in (("real", REAL), ("simulated", SIMULATED)):
        style = {"color": color, "linestyle": dashes, "lw": 1.2, "label": name}
        face = "none" if name == "real" else color
        regions.plot([r[name]["cov_percent"] for r in shown], places, marker, color=color, ms=5, mfc=face, label=name)
        power = result["noise_power_spectrum"][name]
        if power is not None:
            for axes, direction, unit in ((spectrum, "transaxial", "mm2"), (axial_spectrum, "axial", "mm")):
                values = np.array(power[f"{direction}_{unit}"])
                axes.semilogy(power[f"{direction}_frequency_per_mm"], np.where(values > 0, values, np.nan), marker=marker,
                              ms=4, mfc=face, **style)  # fmt: skip
        histogram.step(edges[:-1], result["histogram"][name], where="post", **style)
        for axes, key in ((axial, "axial_profile"), (transaxial, "transaxial_profile")):
            axes.plot(result[key][name]["mm"], result[key][name]["over_body_mean"], **style)
    regions.set_yticks(places, [r["region"].replace(", ", ",\n") for r in shown])
    regions.set_xlim(left=0)
    _style(regions, "COV in cubes, anatomy included, %", "")
    _style(spectrum, "Transaxial frequency, cycles/mm", "Noise power in a sphere / squared mean, mm²")
    _style(axial_spectrum, "Axial frequency, cycles/mm", "Noise power in a sphere / squared mean, mm")
    _style(histogram, "Voxel value / mean of the body", "Part of the body")
    _style(axial, "Along the axis from the body's middle, mm", "Mean of the slice / mean of the body")
    _style(transaxial, "From left to right, from the body's axis, mm", "Mean of the band / mean of the body")
    for axes in (regions, spectrum, axial_spectrum, histogram, axial, transaxial):
        if axes.lines:
            _legend(axes)
    return figure
