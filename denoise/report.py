"""Tables, figures and one HTML page of an evaluation."""

import base64
import csv
import io
import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from denoise.conventions import over_doses
from denoise.evaluate import FALSE_ABOVE_SUV, FALSE_ML, PEAK_SUV, SPECTRUM_MM, Evaluation
from denoise.metrics import variance_ceiling_db
from petsim.cache.store import make_folder, whole_or_nothing
from petsim.figures import displayed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {
    "subjects": "subjects",
    "gain_db": "gain [dB]",
    "fraction_of_ceiling": "of the ceiling",
    "psnr_db": f"PSNR [dB], peak {PEAK_SUV:g} SUV",
    "ssim": "SSIM",
    "nrmse": "NRMSE",
    "equivalent_counts": "equivalent dose",
    "squared_bias": "bias² [SUV²]",
    "variance": "variance [SUV²]",
    "total_activity": "total activity",
    "liver_cov": "liver COV",
    "liver_local_sd": "liver local SD [SUV]",
    "liver_noise_sd": "liver noise SD [SUV]",
    "lesion_suv_max": "lesion SUVmax",
    "lesion_contrast": "lesion contrast",
    "lesion_sharpness": "lesion edges",
    "missed_lesions": "missed lesions",
    "false_blobs": "false hot blobs",
    "noise_per_mm": "noise frequency [1/mm]",
    "residual_correlation": "residual correlation",
    "p_against_gaussian": "p against Gaussian",
    "unipet_psnr_db": "UniPET's PSNR [dB]",
    "unipet_ssim": "UniPET's SSIM",
    "challenge_nrmse": "challenge: NRMSE",
    "challenge_psnr_db": "challenge: PSNR [dB]",
    "challenge_ssim": "challenge: SSIM",
}


def write_evaluation(result: Evaluation, out: Path, targets: dict[str, str]) -> None:
    """Write subjects.csv, organs.csv, summary.csv, summary.md and index.html.

    Parameters
    ----------
    result : Evaluation
    out : Path
        Folder.
    targets : dict
        What each run was trained to give.

    Raises
    ------
    DataError
        A folder that cannot be written.
    """
    make_folder(out)
    for name, rows in (("subjects", result.rows), ("organs", result.organs), ("summary", result.summary)):
        with whole_or_nothing(out / f"{name}.csv") as temporary:
            temporary.write_text(_csv(rows), encoding="utf-8")
    with whole_or_nothing(out / "summary.md") as temporary:
        temporary.write_text(markdown(result, targets), encoding="utf-8")
    with whole_or_nothing(out / "index.html") as temporary:
        temporary.write_text(_page(result, targets), encoding="utf-8")


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cell(key: str, line: dict[str, Any]) -> str:
    value = line.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if key == "subjects":
        return str(value)
    if key == "equivalent_counts" and value == 1:
        return "≥ 1"
    text = f"{value:.3g}" if key in ("p_against_gaussian", "squared_bias", "variance") else f"{value:.3f}"
    if f"{key}_low" in line:
        text += f" ({line[f'{key}_low']:.3f} to {line[f'{key}_high']:.3f})"
    return text


def _columns(result: Evaluation) -> dict[str, str]:
    return {k: v for k, v in COLUMNS.items() if any(line.get(k) is not None for line in result.summary)}


def notes(result: Evaluation) -> list[str]:
    """What the columns mean."""
    ceiling = "10 log10(D + 1)" if result.target_kind == "independent" else "10 log10 D"
    return [
        f"Means over the subjects of the split '{result.split}', in brackets 95 % bootstrap intervals. "
        "All figures but the gain are against the noise-free reconstruction (of a measured image: against the full dose), "
        "in the body.",
        *(
            [f"Left out, since the body is cut off at the sides of the image: {', '.join(result.left_out)}."]
            if result.left_out
            else []
        ),
        f"Gain: PSNR over that of the input, both against the {result.target_kind} full dose; its ceiling is {ceiling} with "
        "D the measured ratio of noise variances.",
        "Equivalent dose (median): part of the full dose at which the plain reconstruction errs as much.",
        "Bias and variance are over noise realizations. Total activity, lesion SUVmax and contrast are over those "
        "of the noise-free image.",
        f"False hot blobs: regions of at least {FALSE_ML:g} mL more than {FALSE_ABOVE_SUV:g} SUV above the noise-free "
        "image. Missed lesions keep less than half of their contrast.",
        f"Noise frequency: mean of the noise power spectrum in slices of the liver, {SPECTRUM_MM:g} mm wide; lower is "
        "blotchier. Residual correlation: of input minus output with itself one voxel away (of the input: of its noise); "
        "what exceeds the input's is structure taken out.",
        "Local SD: over 3 x 3 x 3 voxels, of structure and noise together; beside it the SD of the noise alone, between two "
        "realizations. Lesion edges: slope across them over that of the noise-free image; noise of itself adds nothing. An "
        "image with the full dose's texture has noise like its, synthesized where the counts do not hold it.",
        f"Gaussian and non-local means are tuned by dose on {result.tuned_on} subjects against the same reference.",
        "Model observers and readers: not done.",
        *_convention_notes(result),
    ]


def _convention_notes(result: Evaluation) -> list[str]:
    some = [figure for figure in result.summary[0] if figure.startswith(("unipet_", "challenge_"))]
    found = []
    if any(figure.startswith("unipet_") for figure in some):
        found.append(
            f"UniPET's PSNR and SSIM: against the {result.target_kind} full dose, whole volume with air, clipped to SUV 0 "
            "to 20, peak 20; SSIM with a dynamic range of 1 and zeros beyond the border."
        )
    if any(figure.startswith("challenge_") for figure in some):
        found.append(
            f"Challenge (Ultra-low Dose PET Imaging): against the {result.target_kind} full dose, whole volume; normalizer "
            "and range are ours (root mean square and largest value of the full dose), since its script is not public; "
            "local figures are not made."
        )
        found += [
            f"Challenge, {line['method']}: mean over DRF {', '.join(f'{d:g}' for d in line['drfs'])} with its weights: "
            f"NRMSE {line['challenge_nrmse']:.3f}, PSNR {line['challenge_psnr_db']:.2f} dB, "
            f"SSIM {line['challenge_ssim']:.3f}."
            for line in over_doses(result.summary)
        ]
    return found


def markdown(result: Evaluation, targets: dict[str, str]) -> str:
    """Summary table as Markdown."""
    columns = _columns(result)
    lines = ["| DRF | method | trained for | " + " | ".join(columns.values()) + " |", "|" + "---|" * (len(columns) + 3)]
    for line in result.summary:
        cells = [f"{line['drf']:g}", line["method"], targets.get(line["method"], ""), *(_cell(k, line) for k in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(result)), ""])


def _page(result: Evaluation, targets: dict[str, str]) -> str:
    columns = _columns(result)
    head = "".join(f"<th>{escape(t)}</th>" for t in ("DRF", "method", "trained for", *columns.values()))
    body = "".join(
        "<tr>"
        + "".join(
            f"<td>{escape(t)}</td>"
            for t in (
                f"{line['drf']:g}",
                line["method"],
                targets.get(line["method"], ""),
                *(_cell(k, line) for k in columns),
            )
        )
        + "</tr>"
        for line in result.summary
    )
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes(result))
    pictures = "".join(
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{_png(figure)}"><figcaption>{escape(alt)}</figcaption>'
        "</figure>"
        for figure, alt in (
            (
                gain_figure(result),
                "Gain over the input against dose; bars: 95 % intervals over subjects; dashed: the ceiling where known",
            ),
            (slice_figure(result), "Coronal slice of the first subject at the lowest dose, and what is wrong in it"),
            *(
                [(spectrum_figure(result), "Noise power spectrum in the liver at the lowest dose, mean over subjects")]
                if result.spectra
                else []
            ),
        )
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Evaluation of denoisers</title>'
        "<style>"
        "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1200px;padding:0 1em;color:#222}"
        "table{border-collapse:collapse;font-size:13px}"
        "td,th{border-bottom:1px solid #ddd;padding:.3em .6em;text-align:right}td{white-space:nowrap}"
        "td:nth-child(2),td:nth-child(3),th:nth-child(2),th:nth-child(3){text-align:left}div{overflow-x:auto}"
        "img{max-width:100%}figure{margin:2em 0}figcaption{color:#555}</style></head><body>"
        f"<h1>Evaluation of denoisers</h1>{pictures}<h2>Summary</h2><div><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div><ul>{listed}</ul></body></html>"
    )


def gain_figure(result: Evaluation) -> "Figure":
    """Gain in PSNR by dose and method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    methods = [m for m in dict.fromkeys(line["method"] for line in result.summary) if m != "identity"]
    doses: set[float] = set()
    for k, method in enumerate(methods):
        lines = [line for line in result.summary if line["method"] == method and line.get("gain_db") is not None]
        doses |= {line["drf"] for line in lines}
        gain = np.array([line["gain_db"] for line in lines])
        low, high = (np.array([line.get(f"gain_db_{side}", line["gain_db"]) for line in lines]) for side in ("low", "high"))
        apart = [line["drf"] * 1.02 ** (k - len(methods) / 2) for line in lines]
        axes.errorbar(apart, gain, [gain - low, high - gain], marker="o", capsize=3, label=method)
    some = sorted(doses)
    ceiling = [variance_ceiling_db(d, result.target_kind == "independent") for d in some]
    if any(line.get("fraction_of_ceiling") is not None for line in result.summary):
        axes.plot(some, ceiling, "k--", label="ceiling for thinned counts")
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(some, [f"{d:g}" for d in some])
    axes.minorticks_off()
    axes.set_xlabel("dose reduction factor")
    axes.set_ylabel(f"gain against the {result.target_kind} full dose [dB]")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def slice_figure(result: Evaluation) -> "Figure":
    """Slices by method in radiological convention, and their differences from the noise-free image."""
    from matplotlib.figure import Figure

    names = list(result.pictures)
    clean = result.pictures[names[-1]]
    top = float(np.percentile(clean[clean > 0], 99.5)) if (clean > 0).any() else 1.0
    across, along = result.slice_mm
    height = clean.shape[1] * along / (clean.shape[0] * across)
    figure = Figure(figsize=(1.8 * len(names), 2 * (1.6 * height + 0.4)), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False)
    shown, wrong = None, None
    for k, name in enumerate(names):
        image = result.pictures[name]
        shown = axes[0, k].imshow(displayed(image), cmap="gray_r", vmin=0, vmax=top, aspect=along / across)
        wrong = axes[1, k].imshow(
            displayed(image - clean), cmap="RdBu_r", vmin=-top / 2, vmax=top / 2, aspect=along / across
        )
        axes[0, k].set_title(name, fontsize=9)
        for row in (0, 1):
            axes[row, k].set_axis_off()
    if shown is not None and wrong is not None:
        figure.colorbar(shown, ax=axes[0], label="SUV", shrink=0.7)
        figure.colorbar(wrong, ax=axes[1], label="error in SUV", shrink=0.7)
    return figure


def spectrum_figure(result: Evaluation) -> "Figure":
    """Noise power against spatial frequency by method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, spectrum in result.spectra.items():
        # The input has no color of its own in the figure of gains.
        axes.plot(spectrum.frequency_per_mm, spectrum.power, "0.5" if name == "identity" else "-", label=name)
    axes.set_yscale("log")
    axes.set_xlabel("spatial frequency [1/mm]")
    axes.set_ylabel("noise power [SUV² mm²]")
    axes.legend(frameon=False)
    return figure


def _png(figure: "Figure") -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return base64.b64encode(stream.getvalue()).decode()
