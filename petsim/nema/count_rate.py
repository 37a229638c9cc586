"""NEMA NU 2-2018 section 4: trues, scatter, randoms and the noise equivalent count rate against activity."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from petsim.geometry.scanner import Scanner, load_scanner
from petsim.nema.bench import Figure, figure
from petsim.nema.scatter_fraction import DECAYS, measure
from petsim.physics.rates import (
    TAU_AREA_US_CM2,
    CountRates,
    calibrated_link_kcps,
    calibrated_tau_area,
    count_rates,
    light_sharing,
)
from petsim.physics.sensitivity import sensitivity

if TYPE_CHECKING:
    import matplotlib.figure

SAME_DETECTORS = {
    "biograph_vision_quadra": "biograph_vision_600",
    "biograph_vision_quadra_322": "biograph_vision_600",
}
"""Long scanners made of a short one's detectors, whose blocks are then dead for as long. The published peaks lie at a lower
activity than that explains, at one for both acceptances and hence at one rate of singles, so that something between blocks
and coincidences must be the limit: how many singles it carries is the one number calibrated there."""


def run(scanner: Scanner, decays: int | None, seed: int, out: Path | None) -> list[Figure]:
    """Peak of the NECR, predicted with the global dead time and with that calibrated on the published activity of the peak.

    Of scanners in `SAME_DETECTORS` also with the dead time of the short scanner and a calibrated link instead. Scanners
    whose blocks share light have their photons scaled to the published sensitivity (calibrated).
    """
    response = measure(scanner, decays or DECAYS, seed).response
    loss = 1.0
    if light_sharing(scanner, 1e9) < 1:
        loss = light_sharing(scanner, sensitivity(scanner, seed=seed))
    kind = "predicted" if loss == 1 else "calibrated"
    rates = count_rates(scanner, response, TAU_AREA_US_CM2, loss)
    activity, peak = rates.peak()
    figures = [
        figure(scanner, "peak_necr_kbqml", activity, kind=kind),
        figure(scanner, "peak_necr_kcps", peak, kind=kind),
    ]
    if loss != 1:
        figures.append(Figure("photons_kept_by_light_sharing", loss, kind="calibrated"))
    if scanner.peak_necr_kbqml is not None:
        tau_area = calibrated_tau_area(scanner, response, loss)
        rates = count_rates(scanner, response, tau_area, loss)
        figures += [
            figure(scanner, "peak_necr_kcps", rates.peak()[1], suffix="_at_published_activity", kind="calibrated"),
            Figure("tau_area_us_cm2", tau_area, kind="calibrated"),
        ]
    if scanner.name in SAME_DETECTORS:
        rates, link_kcps = _behind_link(scanner, decays or DECAYS, seed)
        figures += [
            figure(scanner, "peak_necr_kcps", rates.peak()[1], suffix="_behind_a_link", kind="calibrated"),
            Figure("link_singles_kcps", link_kcps, kind="calibrated"),
        ]
    if out is not None:
        _write(scanner, rates, out)
    return figures


def _behind_link(scanner: Scanner, decays: int, seed: int) -> tuple[CountRates, float]:
    """Rates with the dead time of the short scanner and a link whose limit puts the peak at the published activity."""
    short = load_scanner(SAME_DETECTORS[scanner.name])
    tau_area = calibrated_tau_area(short, measure(short, decays, seed).response)
    rates = count_rates(scanner, measure(scanner, decays, seed).response, tau_area)
    link_kcps = calibrated_link_kcps(scanner, rates)
    return rates.behind_link(link_kcps), link_kcps


def _write(scanner: Scanner, rates: CountRates, out: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = draw(scanner, rates)
    FigureCanvasAgg(picture).print_png(str(out / f"{scanner.name}_count_rate.png"))
    columns = np.column_stack([rates.kbqml, rates.prompts, rates.trues, rates.scatter, rates.randoms, rates.necr])
    header = "kBq/mL,prompts kcps,trues kcps,scatter kcps,randoms kcps,NECR kcps"
    np.savetxt(out / f"{scanner.name}_count_rate.csv", columns, "%.6g", ",", header=header, comments="")


def draw(scanner: Scanner, rates: CountRates) -> "matplotlib.figure.Figure":
    """Count-rate curves, and the NECR with its published peak where there is one."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(9.6, 4.0), layout="constrained")
    left, right = picture.subplots(1, 2)
    shown = rates.kbqml <= 1.8 * max(rates.peak()[0], scanner.peak_necr_kbqml or 0.0)
    for name in ("prompts", "trues", "scatter", "randoms"):
        left.plot(rates.kbqml[shown], getattr(rates, name)[shown], label=name)
    right.plot(rates.kbqml[shown], rates.necr[shown], "k", label="noise equivalent count rate")
    if scanner.peak_necr_kbqml is not None and scanner.peak_necr_kcps is not None:
        right.plot(scanner.peak_necr_kbqml, scanner.peak_necr_kcps, "r+", ms=12, label="published peak")
    for axes in (left, right):
        axes.set(xlabel="activity concentration [kBq/mL]", ylabel="rate [kcps]", xlim=(0, None), ylim=(0, None))
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    picture.suptitle(scanner.title)
    return picture
