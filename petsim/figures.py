"""Figures of dose ladders: projections, slices, attenuation, counts and noise.

Every function returns a `matplotlib.figure.Figure` and touches no global state. Images are (x, y, z) with axes to the
patient's right, front and head; they are shown in radiological convention.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIP_SUV = 7.0
SLICE_SUV = 5.0
"""Upper ends of the gray scales of projections and slices."""

MU_TOP = 0.15
"""Upper end of the gray scale of mu-maps, 1/cm."""

MU_CONTOURS = ((0.06, "#1666c5", "soft\ntissue"), (0.115, "#d9660a", "bone"))
"""Level in 1/cm (halfway from lung to soft tissue, and from there to bone); color; what the contour bounds."""

_BODY_MU = 0.013

_WIDTH = 11.2
_MAX_HEIGHT = 13.0
_MAX_INCH_PER_MM = 0.0075
_GAP, _TITLE, _BAR, _EDGE = 0.09, 0.36, 0.62, 0.02
_COLUMNS = 7
_INK, _SOFT = "#1d232b", "#66707c"


@dataclass(frozen=True)
class Window:
    """Inverse gray scale: white at 0, black at `top`.

    Parameters
    ----------
    factor : float
        Displayed value for 1 Bq/mL.
    top : float
        Displayed value that is black.
    unit : str
    """

    factor: float
    top: float
    unit: str


@dataclass(frozen=True)
class Shown:
    """An image with the two lines above it.

    Parameters
    ----------
    title, subtitle : str
    image : ndarray
        (x, y, z) in Bq/mL.
    """

    title: str
    subtitle: str
    image: np.ndarray


@dataclass(frozen=True)
class Sphere:
    """A sphere to be outlined.

    Parameters
    ----------
    center : tuple of float
        Voxel indices.
    diameter_mm : float
    """

    center: tuple[float, float, float]
    diameter_mm: float


@dataclass(frozen=True)
class Ladder:
    """Counts and noise of one subject.

    Parameters
    ----------
    name : str
    drfs : sequence of float
        1 first.
    prompts, cov : ndarray
        (dose, realization); COV as a fraction, NaN where it was not measured.
    noise_free_cov : float, optional
        COV of the reference: what structure alone gives.
    inserted : bool
        DRF 1 is the source image, and the noise of lower doses was inserted.
    """

    name: str
    drfs: Sequence[float]
    prompts: np.ndarray
    cov: np.ndarray
    noise_free_cov: float | None = None
    inserted: bool = False

    def expected_cov(self) -> np.ndarray:
        """COV (dose,) that DRF 1 predicts: times sqrt(DRF); with inserted noise sqrt(full^2 + (DRF - 1) inserted^2)."""
        full = _mean_of_finite(self.cov[0])
        drfs = np.asarray(self.drfs, float)
        return np.sqrt(full**2 + (drfs - 1) * self.full_dose_noise() ** 2)

    def full_dose_noise(self) -> float:
        """COV of the simulated full dose: that of DRF 1, or as the growth of inserted noise shows it."""
        full = _mean_of_finite(self.cov[0])
        if not self.inserted or len(self.drfs) == 1:
            return full
        drfs, cov = np.asarray(self.drfs[1:], float), np.array([_mean_of_finite(c) for c in self.cov[1:]])
        # A measured variance scatters in proportion to itself, so that is its weight.
        slope = np.sum((drfs - 1) * (cov**2 - full**2) / cov**4) / np.sum((drfs - 1) ** 2 / cov**4)
        return math.sqrt(max(0.0, slope))


@dataclass(frozen=True)
class Components:
    """Counts of one subject by dose: arrays (dose,).

    Parameters
    ----------
    drfs : sequence of float
        1 first.
    prompts, trues, scatter, randoms, nec : ndarray
        Counts; NEC is that of expected counts.
    """

    drfs: Sequence[float]
    prompts: np.ndarray
    trues: np.ndarray
    scatter: np.ndarray
    randoms: np.ndarray
    nec: np.ndarray

    @property
    def randoms_fraction(self) -> np.ndarray:
        """R / prompts; NaN without prompts."""
        return _ratio(self.randoms, self.prompts)

    @property
    def scatter_fraction(self) -> np.ndarray:
        """S / (T + S); NaN without either."""
        return _ratio(self.scatter, self.trues + self.scatter)

    @property
    def nec_fraction(self) -> np.ndarray:
        """NEC / prompts; NaN without prompts."""
        return _ratio(self.nec, self.prompts)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


@dataclass(frozen=True)
class _Panel:
    pixels: np.ndarray
    size_mm: tuple[float, float]
    side: str
    top: float
    title: tuple[str, str] = ("", "")
    cmap: str = "gray_r"
    circle: tuple[float, float, float] | None = None
    mu: np.ndarray | None = None


def displayed(plane: np.ndarray) -> np.ndarray:
    """Rows and columns of a plane as radiologists see it.

    Parameters
    ----------
    plane : ndarray
        (x, z) coronal, (y, z) sagittal or (x, y) axial; indices rise to the patient's right, front and head.

    Returns
    -------
    ndarray
        (row, column), first row on top: the patient's right (sagittal: front) on the left, the head (axial: front) on top.
    """
    return plane[::-1, ::-1].T


def coronal_mip(image: np.ndarray) -> np.ndarray:
    """Maximum-intensity projection seen from the front, (row, column) as displayed."""
    return displayed(image.max(axis=1))


def display_window(reference_bqml: np.ndarray, suv_factor: float | None, top_suv: float) -> Window:
    """Gray scale for all doses of a subject.

    Parameters
    ----------
    reference_bqml : ndarray
        Image with the least noise.
    suv_factor : float, optional
        SUV for 1 Bq/mL. None: kBq/mL up to the 99th percentile of the body, rounded to two digits.
    top_suv : float
    """
    if suv_factor is not None:
        return Window(suv_factor, top_suv, "SUV")
    positive = reference_bqml[reference_bqml > 0]
    if not positive.size:
        return Window(1e-3, 1.0, "kBq/mL")
    top = float(np.percentile(positive[positive > 0.1 * positive.mean()], 99)) * 1e-3
    return Window(1e-3, float(f"{top:.2g}"), "kBq/mL")


def body_box(
    mu_per_cm: np.ndarray, spacing_mm: tuple[float, float, float], margin_mm: float = 15.0
) -> tuple[slice, slice, slice]:
    """Part of the grid that holds the body and a margin; all of it where the mu-map is empty.

    Parameters
    ----------
    mu_per_cm : ndarray
        (x, y, z) in 1/cm.
    spacing_mm : tuple of float
    margin_mm : float
    """
    body = mu_per_cm > _BODY_MU
    if not body.any():
        return slice(None), slice(None), slice(None)
    box = []
    for axis, step in enumerate(spacing_mm):
        filled = np.flatnonzero(body.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = math.ceil(margin_mm / step)
        box.append(slice(max(0, int(filled[0]) - margin), min(body.shape[axis], int(filled[-1]) + 1 + margin)))
    return box[0], box[1], box[2]


def mip_figure(shown: Sequence[Shown], spacing_mm: tuple[float, float, float], window: Window) -> "Figure":
    """Coronal maximum-intensity projections side by side.

    Parameters
    ----------
    shown : sequence of Shown
    spacing_mm : tuple of float
    window : Window
    """
    columns = []
    for s in shown:
        pixels = coronal_mip(s.image) * window.factor
        columns.append([_Panel(pixels, _size(pixels, spacing_mm[0], spacing_mm[2]), "R", window.top, (s.title, s.subtitle))])
    return _figure(columns, window)


def slice_figure(
    shown: Sequence[Shown],
    spacing_mm: tuple[float, float, float],
    window: Window,
    index: tuple[int, int, int],
    sphere: Sphere | None = None,
) -> "Figure":
    """Coronal, sagittal and axial slices through one voxel, a column an image.

    Parameters
    ----------
    shown : sequence of Shown
    spacing_mm : tuple of float
    window : Window
    index : tuple of int
        The voxel.
    sphere : Sphere, optional
        Outlined in the first column.
    """
    columns = []
    for k, s in enumerate(shown):
        panels = []
        for view in _VIEWS:
            circle = None if sphere is None or k else _circle(sphere, view, s.image.shape, spacing_mm)
            title = ("", "") if panels else (s.title, s.subtitle)
            panels.append(_slice_panel(s.image * window.factor, view, index, spacing_mm, window.top, title, circle=circle))
        columns.append(panels)
    return _figure(columns, window)


def mu_figure(
    image: np.ndarray,
    mu_per_cm: np.ndarray,
    spacing_mm: tuple[float, float, float],
    window: Window,
    index: tuple[int, int, int],
) -> "Figure":
    """Attenuation map, and its contours on an image, in three slices.

    Parameters
    ----------
    image : ndarray
        (x, y, z) in Bq/mL.
    mu_per_cm : ndarray
        (x, y, z) in 1/cm.
    spacing_mm : tuple of float
    window : Window
    index : tuple of int
        Voxel through which the slices go.
    """
    scaled = image * window.factor
    maps = [_slice_panel(mu_per_cm, v, index, spacing_mm, MU_TOP, ("mu-map", v.name), cmap="gray") for v in _VIEWS]
    over = [
        _slice_panel(
            scaled, v, index, spacing_mm, window.top, ("mu on DRF 1", v.name), mu=displayed(v.cut(mu_per_cm, index))
        )
        for v in _VIEWS
    ]
    columns = [[maps[0]], [over[0]], [maps[1]], [over[1]]]
    tall = maps[0].size_mm[1] > 2 * maps[2].size_mm[1]
    columns += [[maps[2], over[2]]] if tall else [[maps[2]], [over[2]]]
    return _figure(columns, window, [c for c in MU_CONTOURS if c[0] < mu_per_cm.max()])


def ladder_figure(ladders: Sequence[Ladder]) -> "Figure":
    """Counts and noise against DRF on logarithmic axes, with the lines that are expected from DRF 1.

    Parameters
    ----------
    ladders : sequence of Ladder
        One a subject.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 3.4), facecolor="white")
    counts, noise = figure.add_axes((0.06, 0.13, 0.41, 0.78)), figure.add_axes((0.565, 0.13, 0.41, 0.78))
    colors = _colors(len(ladders))
    for color, ladder in zip(colors, ladders, strict=True):
        drfs = np.asarray(ladder.drfs, float)
        _points(counts, drfs, ladder.prompts, _mean_of_finite(ladder.prompts[0]) / drfs, color, ladder.name)
        _points(noise, drfs, 100 * ladder.cov, 100 * ladder.expected_cov(), color, ladder.name)
        if ladder.noise_free_cov is not None and len(ladders) == 1:
            noise.axhline(100 * ladder.noise_free_cov, color=_SOFT, lw=0.9, ls=":", label="noise-free reference")
    drfs = sorted({float(d) for ladder in ladders for d in ladder.drfs})
    _log_axes(counts, drfs, "Prompts", "line: full dose / DRF")
    inserted = any(ladder.inserted for ladder in ladders)
    line = "line: √(source² + (DRF - 1) inserted²)" if inserted else "line: full dose x √DRF"
    _log_axes(noise, drfs, "COV in the sphere, %", line)
    if 1 < len(ladders) <= 8:
        counts.legend(frameon=False, fontsize=7, loc="lower left", labelcolor=_INK)
    if len(ladders) == 1 and ladders[0].noise_free_cov is not None:
        noise.legend(
            handles=[line for line in noise.lines if line.get_linestyle() == ":"],
            frameon=False, fontsize=7, loc="upper left", labelcolor=_INK,
        )  # fmt: skip
    return figure


def component_figure(components: Components) -> "Figure":
    """Trues, scatter, randoms and NEC against DRF on logarithmic axes, and the fractions that follow from them.

    Parameters
    ----------
    components : Components
        What is zero at all doses is left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 3.4), facecolor="white")
    counts, parts = figure.add_axes((0.06, 0.13, 0.41, 0.78)), figure.add_axes((0.565, 0.13, 0.41, 0.78))
    c, drfs = components, np.asarray(components.drfs, float)
    for values, style in ((c.trues, _TRUES), (c.nec, _NEC), (c.scatter, _SCATTER), (c.randoms, _RANDOMS)):
        _marked(counts, drfs, values, style)
    fractions = ((c.nec_fraction, _NEC, "NEC / prompts"), (c.scatter_fraction, _SCATTER, "scatter fraction S / (T + S)"),
                 (c.randoms_fraction, _RANDOMS, "randoms fraction R / prompts"))  # fmt: skip
    for values, style, name in fractions:
        _marked(parts, drfs, 100 * values, style, name)
    ticks = [float(d) for d in components.drfs]
    _log_axes(counts, ticks, "Counts", "")
    _log_axes(parts, ticks, "Fraction, %", "", log=False)
    for axes in (counts, parts):
        if axes.lines:
            axes.legend(frameon=False, fontsize=7.5, loc="best", labelcolor=_INK, handlelength=2.6)
    return figure


@dataclass(frozen=True)
class _Style:
    """Color, marker and dashes: any one of them tells components apart, in print too."""

    name: str
    color: str
    marker: str
    dashes: str


# Colors of Okabe and Ito, which people with any color vision tell apart.
_TRUES = _Style("trues", "#0072B2", "o", "-")
_SCATTER = _Style("scatter", "#D55E00", "s", "--")
_RANDOMS = _Style("randoms", "#009E73", "^", ":")
_NEC = _Style("NEC", "#000000", "D", "-.")


def _marked(axes: "Axes", drfs: np.ndarray, values: np.ndarray, style: _Style, name: str = "") -> None:
    shown = np.isfinite(values) & (values > 0)
    if shown.any():
        axes.plot(drfs[shown], values[shown], linestyle=style.dashes, marker=style.marker, color=style.color, lw=1.3, ms=4.6,
                  mew=0, label=name or style.name)  # fmt: skip


@dataclass(frozen=True)
class _View:
    name: str
    axis: int
    side: str

    @property
    def across(self) -> tuple[int, int]:
        """Horizontal and vertical axis of the image on screen."""
        a, b = (a for a in range(3) if a != self.axis)
        return a, b

    def cut(self, image: np.ndarray, index: tuple[int, int, int]) -> np.ndarray:
        return np.take(image, index[self.axis], axis=self.axis)


_VIEWS = (_View("coronal", 1, "R"), _View("sagittal", 0, "A"), _View("axial", 2, "R"))


def _slice_panel(
    image: np.ndarray,
    view: _View,
    index: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    top: float,
    title: tuple[str, str],
    cmap: str = "gray_r",
    circle: tuple[float, float, float] | None = None,
    mu: np.ndarray | None = None,
) -> _Panel:
    pixels = displayed(view.cut(image, index))
    a, b = view.across
    return _Panel(pixels, _size(pixels, spacing_mm[a], spacing_mm[b]), view.side, top, title, cmap, circle, mu)


def _size(pixels: np.ndarray, horizontal_mm: float, vertical_mm: float) -> tuple[float, float]:
    return pixels.shape[1] * horizontal_mm, pixels.shape[0] * vertical_mm


def _circle(
    sphere: Sphere, view: _View, shape: tuple[int, ...], spacing_mm: tuple[float, float, float]
) -> tuple[float, float, float]:
    a, b = view.across
    u, v = ((shape[k] - 0.5 - sphere.center[k]) * spacing_mm[k] for k in (a, b))
    return u, v, sphere.diameter_mm / 2


def _figure(columns: list[list[_Panel]], window: Window, contours: Sequence[tuple[float, str, str]] = ()) -> "Figure":
    """Place panels at one scale in mm: columns from left to right, wrapped into rows."""
    from matplotlib.figure import Figure

    row_count = math.ceil(len(columns) / _COLUMNS)
    per_row = math.ceil(len(columns) / row_count)
    rows = [columns[k : k + per_row] for k in range(0, len(columns), per_row)]
    widths = [[max(p.size_mm[0] for p in column) for column in row] for row in rows]
    tallest = [max(_column_mm(column) for column in row) for row in rows]
    fixed = sum(max(_fixed_height(column) for column in row) for row in rows)
    inch = min(
        *((_WIDTH - _BAR - _EDGE - _GAP * (len(w) - 1)) / sum(w) for w in widths),
        (_MAX_HEIGHT - fixed) / sum(tallest),
        _MAX_INCH_PER_MM,
    )
    width = max(sum(w) * inch + _GAP * (len(w) - 1) for w in widths) + _BAR + _EDGE
    heights = [max(_column_mm(column) * inch + _fixed_height(column) for column in row) for row in rows]
    height = max(sum(heights) + _EDGE, 2.0)
    figure = Figure(figsize=(width, height), facecolor="white")
    top = height
    for row, row_widths, row_height in zip(rows, widths, heights, strict=True):
        left = _EDGE
        for column, column_mm in zip(row, row_widths, strict=True):
            _draw_column(figure, column, left, top, column_mm * inch, inch)
            left += column_mm * inch + _GAP
        top -= row_height
    _bar(figure, width, height, window, 0.6 * len(contours))
    for k, (level, color, what) in enumerate(contours):
        place = (width - _BAR + 0.08) / width, (0.5 + 0.6 * (len(contours) - 1 - k)) / height
        figure.text(*place, f"{what}\n{level:g} /cm", color=color, fontsize=7, va="top")
    return figure


def _column_mm(column: list[_Panel]) -> float:
    return sum(p.size_mm[1] for p in column)


def _fixed_height(column: list[_Panel]) -> float:
    return sum(_TITLE if p.title[0] else _GAP for p in column)


def _draw_column(figure: "Figure", column: list[_Panel], left: float, top: float, width: float, inch: float) -> None:
    total_width, total_height = figure.get_size_inches()
    for panel in column:
        w, h = (v * inch for v in panel.size_mm)
        top -= (_TITLE if panel.title[0] else _GAP) + h
        start = left + (width - w) / 2
        axes = figure.add_axes((start / total_width, top / total_height, w / total_width, h / total_height))
        _draw_panel(axes, panel)


def _draw_panel(axes: "Axes", panel: _Panel) -> None:
    w, h = panel.size_mm
    axes.imshow(
        panel.pixels, cmap=panel.cmap, vmin=0, vmax=panel.top, extent=(0, w, h, 0), aspect="auto", interpolation="nearest"
    )
    axes.set(xticks=[], yticks=[], xlim=(0, w), ylim=(h, 0))
    for spine in axes.spines.values():
        spine.set(color="#c9ced6", linewidth=0.5)
    ink = "white" if panel.cmap == "gray" else _INK
    axes.annotate(panel.side, (0, 1), (3, -3), "axes fraction", "offset points", va="top", fontsize=6.5, color=ink)
    if panel.title[0]:
        axes.annotate(panel.title[0], (0.5, 1), (0, 13), "axes fraction", "offset points",
                      ha="center", va="bottom", fontsize=8.5, fontweight="bold", color=_INK)  # fmt: skip
        axes.annotate(panel.title[1], (0.5, 1), (0, 3), "axes fraction", "offset points",
                      ha="center", va="bottom", fontsize=7.5, color=_SOFT)  # fmt: skip
    if panel.circle is not None:
        from matplotlib.patches import Circle

        axes.add_patch(Circle(panel.circle[:2], panel.circle[2], fill=False, edgecolor="#d0342c", linewidth=0.9))
    if panel.mu is not None:
        rows, columns = panel.mu.shape
        x, y = (np.arange(columns) + 0.5) * w / columns, (np.arange(rows) + 0.5) * h / rows
        for level, color, _ in MU_CONTOURS:
            # matplotlib warns of a level that no pixel reaches.
            if panel.mu.min() < level < panel.mu.max() and min(panel.mu.shape) > 1:
                axes.contour(x, y, panel.mu, levels=[level], colors=[color], linewidths=0.8)


def _bar(figure: "Figure", width: float, height: float, window: Window, below: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    tall = min(2.0, height - _TITLE - below - 0.2)
    axes = figure.add_axes(
        ((width - _BAR + 0.12) / width, (height - _TITLE - 0.06 - tall) / height, 0.11 / width, tall / height)
    )
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, window.top), "gray_r"), cax=axes, ticks=[0, window.top / 2, window.top]
    )
    bar.ax.tick_params(labelsize=7, length=2, color=_SOFT, labelcolor=_INK)
    bar.ax.set_yticklabels([f"{v:g}" for v in (0, window.top / 2, window.top)])
    bar.ax.set_title(window.unit, fontsize=7.5, color=_INK, pad=5, loc="left")
    for spine in bar.ax.spines.values():
        spine.set(linewidth=0.5, color=_SOFT)


def _colors(count: int) -> list:
    if count == 1:
        return ["#1f5fa8"]
    from matplotlib import colormaps

    return [colormaps["viridis"](v) for v in np.linspace(0, 0.85, count)]


def _points(axes: "Axes", drfs: np.ndarray, values: np.ndarray, expected: np.ndarray, color: str, name: str) -> None:
    """Points of all realizations, and the expected line."""
    where, realization = np.nonzero(np.isfinite(values) & (values > 0))
    axes.plot(drfs[where], values[where, realization], "o", color=color, ms=4.2, mew=0, label=name)
    if np.isfinite(expected).all():
        axes.plot(drfs, expected, "-", color=color, lw=0.9, alpha=0.7)


def _mean_of_finite(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def _log_axes(axes: "Axes", drfs: list[float], label: str, title: str, log: bool = True) -> None:
    """DRF on a logarithmic axis, and values on another (`log`) or on a plain one from 0."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    if not any(np.size(line.get_xdata()) for line in axes.lines):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, f"{label}: not measured", ha="center", fontsize=8, color=_SOFT)
        return
    axes.set_xscale("log")
    axes.set_xlim(0.8, 1.25 * drfs[-1])
    axes.xaxis.set_major_locator(FixedLocator(drfs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    if log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(low / 1.3, high * 1.3)
        decades = math.log10(axes.get_ylim()[1] / axes.get_ylim()[0])
        subs = (1.0,) if decades > 2.5 else (1.0, 2.0, 5.0)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda v, _: _scientific(v) if v >= 1e5 else f"{v:,.0f}" if v >= 1e3 else f"{v:.4g}")
        )
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    axes.set_xlabel("DRF", fontsize=8, color=_INK)
    axes.set_ylabel(label, fontsize=8, color=_INK)
    axes.set_title(title, fontsize=8, color=_SOFT, loc="left", pad=5)
    axes.grid(color="#e4e7eb", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=7.5, length=2.5, color=_SOFT, labelcolor=_INK, which="both")
    for side, spine in axes.spines.items():
        spine.set(color=_SOFT, linewidth=0.6, visible=side in ("left", "bottom"))


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.0e}".split("e")
    power = f"$10^{{{int(exponent)}}}$"
    return power if mantissa == "1" else f"{mantissa}·{power}"
