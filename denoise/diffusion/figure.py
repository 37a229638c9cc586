"""The figure of a calibration."""

from typing import TYPE_CHECKING

import numpy as np

from denoise.diffusion.calibration import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def anchors_figure(calibration: Calibration) -> "Figure":
    """Both parts of the signature against time, doses where they meet the curves, and times by organ."""
    from matplotlib.figure import Figure

    c = calibration
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    by_error, by_loss, by_organ = figure.subplots(1, 3)
    times = c.schedule.time_of(c.ratios)
    for axes, curve, name, label in (
        (by_error, c.unit * c.ratios, "nmae", "NMAE in the body"), (by_loss, c.curve, "ssim", "1 - SSIM in the body"),
    ):  # fmt: skip
        axes.plot(times, curve, color="black", label="noise added, mean of subjects")
        for k, m in enumerate(c.matches):
            level = m.nmae if name == "nmae" else m.ssim_loss
            low, high = m.intervals[name]
            color = f"C{k}"
            axes.axhline(level, color=color, linewidth=0.8, linestyle=":")
            axes.plot(m.times[name], level, "o", color=color, label=f"DRF {m.drf:g}: t = {m.times[name]:.1f}")
            axes.plot([low, high], [level, level], color=color, linewidth=3, alpha=0.5)
        axes.set(xlabel=f"time (of {c.schedule.steps}, {c.schedule.kind})", ylabel=label, yscale="log")
        axes.legend(fontsize=7)
    for k, m in enumerate(c.matches):
        low, high = m.intervals[c.by]
        by_organ.axhspan(low, high, color=f"C{k}", alpha=0.2)
        by_organ.axhline(m.times[c.by], color=f"C{k}", label=f"DRF {m.drf:g}, body, {c.by}")
        names = sorted(m.organs)
        by_organ.plot(np.arange(len(names)), [m.organs[n] for n in names], "o", color=f"C{k}")
        by_organ.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=7)
    by_organ.set(ylabel="time by NMAE, organ by organ")
    by_organ.legend(fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    process = "white noise" if c.colored is None else "noise of measured covariance"
    figure.suptitle(f"{c.pairs}, {c.subjects} subjects, {process}, against {c.reference}", fontsize=10)
    return figure
