"""Which tests there are, and how their figures are put beside the published ones."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from data_recipes.errors import UsageError
from petsim.geometry.scanner import Scanner

TESTS = {
    "sensitivity": "petsim.nema.sensitivity",
    "scatter": "petsim.nema.scatter_fraction",
    "count-rate": "petsim.nema.count_rate",
    "image-quality": "petsim.nema.image_quality",
    "resolution": "petsim.nema.resolution",
}
"""Test on the command line, and the module whose `run` makes it."""

SLOW = ("image-quality", "resolution")
"""Tests that reconstruct images, which takes minutes; "all" leaves them out."""


@dataclass(frozen=True)
class Figure:
    """One figure of merit.

    Parameters
    ----------
    name : str
        Field of the scanner's file, or that with a suffix for a second way to the same figure.
    ours : float
    published : float or None
    point : float, optional
        What a point is, where the deviation is a difference: 0.01 for a fraction, 1 for percent. None: it is a ratio.
    kind : str
        "predicted" from geometry and global constants, or "calibrated" where a published number of this scanner went in.
    source : str
        Of the published value.
    verified : bool
        Whether the source of the published value was read.
    tolerance_points : float, optional
        Deviation up to which the published value counts as met; None: no verdict.
    """

    name: str
    ours: float
    published: float | None = None
    point: float | None = None
    kind: str = "predicted"
    source: str = ""
    verified: bool = False
    tolerance_points: float | None = None

    @property
    def deviation(self) -> float | None:
        """Ours - published where there are points, else ours / published - 1; None where nothing is published."""
        if self.published is None:
            return None
        return self.ours / self.published - 1 if self.point is None else self.ours - self.published

    @property
    def is_met(self) -> bool | None:
        """Whether the deviation is no larger than the tolerance; None without a verdict."""
        if self.tolerance_points is None or self.deviation is None or self.point is None:
            return None
        return abs(self.deviation) <= self.tolerance_points * self.point


def figure(scanner: Scanner, field: str, ours: float, *, suffix: str = "", point: float | None = None,
           kind: str = "predicted") -> Figure:  # fmt: skip
    """A figure beside the scanner's own field."""
    published = getattr(scanner, field)
    source = scanner.sources.get(field, "")
    return Figure(field + suffix, ours, published, point, kind, source, published is not None and scanner.is_verified(field))


def run_tests(scanner: Scanner, names: Iterable[str], decays: int | None = None, seed: int = 0,
              out: Path | None = None) -> list[Figure]:  # fmt: skip
    """Make some of the tests.

    Parameters
    ----------
    scanner : Scanner
    names : iterable of str
        Keys of `TESTS`.
    decays : int, optional
        Simulated annihilations a test; None: each test's own default.
    seed : int
    out : Path, optional
        Folder for curves and pictures; made where missing. None: none are written.

    Returns
    -------
    list of Figure

    Raises
    ------
    UsageError
        An unknown test, or no decays.
    """
    names = list(names)
    for name in names:
        if name not in TESTS:
            raise UsageError(f"--test: '{name}' is not known; known are {', '.join(TESTS)} and all")
    if decays is not None and decays < 1000:
        raise UsageError(f"--decays: at least 1000 are needed for a figure, got {decays}")
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {out}: {error.strerror}; give a folder that can be written") from None
    return [f for name in names for f in import_module(TESTS[name]).run(scanner, decays, seed, out)]


def table(figures: Iterable[Figure]) -> str:
    """Ours beside published, one line a figure."""
    lines = [f"{'figure':32s} {'ours':>9s} {'published':>10s} {'deviation':>10s}  how         source"]
    for f in figures:
        published = "" if f.published is None else f"{f.published:.4g}"
        unit, one = ("% ", 0.01) if f.point is None else ("pt", f.point)
        deviation = "" if f.deviation is None else f"{f.deviation / one:+.1f} {unit}"
        note = f.source if f.verified or not f.source or "not verified" in f.source else f"{f.source} (not verified)"
        if f.is_met is not None:
            note = f"{'within' if f.is_met else 'NOT within'} {f.tolerance_points:g} points; {note}"
        lines.append(f"{f.name:32s} {f.ours:9.4g} {published:>10s} {deviation:>10s}  {f.kind:10s}  {note}".rstrip())
    return "\n".join(lines)


def as_json(scanner: Scanner, figures: Iterable[Figure]) -> dict[str, Any]:
    """Ours, published and deviation by figure, verdicts (is_met) where there are any, what was calibrated and which
    published values are verified."""
    figures = list(figures)
    return {
        "scanner": scanner.name,
        "ours": {f.name: f.ours for f in figures},
        "published": {f.name: f.published for f in figures},
        "deviation": {f.name: f.deviation for f in figures},
        "is_met": {f.name: f.is_met for f in figures if f.is_met is not None},
        "calibrated": [f.name for f in figures if f.kind == "calibrated"],
        "verified": [f.name for f in figures if f.verified],
    }
