"""One self-contained HTML page about a dataset: no scripts, no network, figures inline."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from petsim import figures
from petsim import page as html
from petsim.cache.store import SubjectFile, read_index, whole_or_nothing
from petsim.noise import SPHERE_MM, coefficient_of_variation, sphere

ILLUSTRATED = 6
"""Subjects shown with figures; the others are in the table."""

_MATCHING = 0.7
"""Inserted noise below this part of the source's is pointed out: as if the simulated scan had twice the source's counts."""

_DRF_MEANS = {
    "thin": "counts / DRF",
    "window": "counts / DRF, the middle of the scan",
    "dose": "injected dose / DRF",
}
_MODES = {
    "thin": "recorded counts thinned binomially, as a shorter scan of the same injection would have them; the full dose's "
    "fraction of randoms and its dead time stay",
    "window": "the counts of a window of duration / DRF in the middle of the scan, with its own decay back to scan start",
    "dose": "a lower injection with the randoms and the dead time of its own rates, so that prompts do not fall as 1 / DRF",
}
_SCATTER_HOW = {
    "bounded": "the fit to the tails beside the body was held at its bound",
    "fallback": "the tails beside the body hold too few counts for a fit",
}
_CORRECTIONS = {
    "estimated": "estimated from the noisy data of each dose and realization, as a scanner does",
    "oracle": "oracle: the true randoms, scatter, normalization and mu-map",
}
_MU_SOURCES = {
    "phantom": "phantom: exact, as built",
    "pet_contour": "pet_contour: body outline and lungs found in the PET image itself; there is no CT, so bone is missing",
    "ct": "ct: from a CT of the subject",
    "given": "given: a mu-map supplied by the user",
    "none": "none: attenuation is not corrected",
}


@dataclass(frozen=True)
class _Summary:
    """What tables and the page's head need of a subject; no images."""

    name: str
    split: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    suv_factor: float | None
    drfs: list[float]
    doses: dict[str, np.ndarray]
    mode: str
    seed: int
    configuration: dict[str, Any]
    configuration_sha256: str
    provenance: dict[str, Any]
    versions: dict[str, str]
    license: str
    origin: str

    @property
    def warnings(self) -> list[str]:
        return [str(w) for w in self.provenance.get("warnings", [])]

    @property
    def source_is_full_dose(self) -> bool:
        return self.provenance.get("full_dose") == "source"

    @property
    def is_recorded(self) -> bool:
        return self.provenance.get("full_dose") == "recorded"

    @property
    def is_measured(self) -> bool:
        """Real images at several doses, of which nobody told the counts."""
        return self.provenance.get("full_dose") == "measured"

    @property
    def is_truncated(self) -> bool:
        return bool(self.provenance.get("source", {}).get("truncated_fov"))

    @property
    def realizations(self) -> int:
        return self.doses["prompts"].shape[1]

    @property
    def drf_means(self) -> str:
        return _DRF_MEANS.get(self.mode, self.mode)

    @property
    def corrections(self) -> dict[str, Any]:
        return self.provenance.get("reconstruction", {})

    @property
    def scatter_scales(self) -> list[list[dict[str, Any]]]:
        """By realization and image: all doses, then perhaps the noise-free one."""
        return [found.get("scatter_scales", []) for found in self.corrections.get("by_realization", [])]

    def image_name(self, image: int) -> str:
        return f"DRF {self.drfs[image]:g}" if image < len(self.drfs) else "noise-free"

    @property
    def liver_is_labeled(self) -> bool:
        return "labeled liver" in str(self.provenance.get("noise_region", ""))

    def live(self, dose: int) -> float:
        """Mean live fraction of the blocks; NaN where it was not recorded."""
        rates = self.provenance.get("rates", [])
        return float(rates[dose]["mean_live_fraction"]) if dose < len(rates) else float("nan")

    def components(self) -> figures.Components:
        prompts, trues, scatter, randoms, nec = (
            np.array([_mean(v) for v in self.doses[name]]) for name in ("prompts", "trues", "scatter", "randoms", "nec")
        )
        return figures.Components(self.drfs, prompts, trues, scatter, randoms, nec)

    def ladder(self, noise_free_cov: float | None = None) -> figures.Ladder:
        return figures.Ladder(
            self.name, self.drfs, self.doses["prompts"], self.doses["liver_cov"], noise_free_cov, self.source_is_full_dose
        )


def write_report(dataset: Path, out: Path | None = None) -> Path:
    """Write one HTML page about a dataset.

    Parameters
    ----------
    dataset : Path
        Folder made by `petsim make-dataset`.
    out : Path, optional
        The page; report.html in the dataset's folder when None.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    DataError
        No dataset, a damaged file, or a place that cannot be written.
    """
    index = read_index(dataset)
    if not index["subjects"]:
        raise DataError("the dataset holds no finished subject; run make-dataset first")
    page = html.destination(dataset, out)
    entries = [(dataset / s["file"], s["split"]) for s in index["subjects"]]
    summaries = [_summarize(path, split) for path, split in entries]
    body = [_head(summaries)]
    for (path, _), summary in zip(entries[:ILLUSTRATED], summaries, strict=False):
        with SubjectFile(path) as f:
            body.append(_subject(f, summary))
    body.append(_settings(summaries[0]))
    with whole_or_nothing(page) as temporary:
        temporary.write_text(html.page(f"petsim: {_title(summaries)}", "\n".join(body)), encoding="utf-8")
    return page


def _summarize(path: Path, split: str) -> _Summary:
    with SubjectFile(path) as f:
        attributes: Any = f.h5.attrs
        doses: Any = f.h5["doses"].attrs
        table = f.doses()
        if f.json("provenance").get("counts") == "unknown":
            table = {name: np.full(values.shape, np.nan) for name, values in table.items()}
        if f.is_truncated:
            table["liver_cov"] = np.full(table["liver_cov"].shape, np.nan)
        return _Summary(
            name=f.name, split=split, shape=tuple(int(n) for n in attributes["shape"]), spacing_mm=f.spacing_mm,
            suv_factor=f.suv_factor, drfs=f.drfs, doses=table, mode=str(doses["mode"]),
            seed=int(doses["seed"]), configuration=f.json("configuration"),
            configuration_sha256=str(attributes["configuration_sha256"]), provenance=f.json("provenance"),
            versions=f.json("versions"), license=str(attributes["license"]), origin=str(attributes["origin"]),
        )  # fmt: skip


def _head(subjects: list[_Summary]) -> str:
    first = subjects[0]
    scanner = first.provenance.get("scanner_title") or first.configuration.get("scanner", "unknown scanner")
    parts = [
        f"<header><p class=kicker>petsim report</p><h1>{escape(_title(subjects))}</h1>"
        f"<p class=lead>{escape(str(scanner))}, {escape(_doses_text(first))} ({escape(first.drf_means)})</p></header>",
        _warnings(subjects),
        _not_modeled(subjects),
        _full_dose_note(subjects),
        _truncated_note(subjects),
        _scatter_note(subjects),
        "<h2>Dataset</h2>",
        html.facts(_dataset_facts(subjects)),
        _overview(subjects),
    ]
    if len(subjects) > 1 and not all(s.is_measured for s in subjects):
        ladders = [s.ladder() for s in subjects]
        caption = f"All subjects. Points: measured in one sphere each; {_lines_text(first)}"
        parts.append(html.picture(figures.ladder_figure(ladders), "Counts and noise against DRF of all subjects", caption))
    if len(subjects) > ILLUSTRATED:
        if not all(s.is_measured for s in subjects):
            parts.append(_all_counts(subjects))
        parts.append(
            f"<p class=note>The first {ILLUSTRATED} of {len(subjects):,} subjects are illustrated below; "
            "the table above holds all of them.</p>"
        )
    return "\n".join(parts)


def _title(subjects: list[_Summary]) -> str:
    return f"{_number(len(subjects), 'subject')} at {_number(len(subjects[0].drfs), 'dose')}"


def _doses_text(subject: _Summary) -> str:
    return "DRF " + ", ".join(f"{d:g}" for d in subject.drfs)


def _warnings(subjects: list[_Summary]) -> str:
    items = [f"<li><b>{escape(s.name)}</b>: {escape(w)}</li>" for s in subjects for w in s.warnings]
    if not items:
        return "<aside class=calm><h2>Warnings</h2><p>None.</p></aside>"
    return f"<aside class=warn><h2>Warnings</h2><ul>{''.join(items)}</ul></aside>"


def _not_modeled(subjects: list[_Summary]) -> str:
    missing = _distinct(str(m) for s in subjects for m in s.provenance.get("not_modeled", []))
    if not missing:
        return ""
    return (
        f"<aside class=limit><h2>Not modeled</h2><p><b>{escape(', '.join(missing).capitalize())}.</b> Counts, NEC and "
        "noise are those of a scan without them; a real scan of the same injection and duration is noisier.</p></aside>"
    )


def _truncated_note(subjects: list[_Summary]) -> str:
    names = [s.name for s in subjects if s.is_truncated]
    if not names:
        return ""
    return (
        f"<aside class=limit><h2>Cut off at the sides</h2><p>The body of {escape(', '.join(names))} reaches beyond its "
        "image: what lies there neither scattered nor counted, so no noise is shown, and <code>petsim calibrate</code> and "
        "<code>denoise evaluate</code> leave it out.</p></aside>"
    )


def _full_dose_note(subjects: list[_Summary]) -> str:
    if any(s.is_measured for s in subjects):
        return (
            "<aside class=limit><h2>Real images</h2><p>Every dose is an image that a scanner made, its DRF as the source "
            "names it. The source tells no counts, hence no NEC, and no attenuation; networks cannot be told the NEC. The "
            "full dose is not noise-free truth.</p></aside>"
        )
    if not any(s.source_is_full_dose for s in subjects):
        return ""
    return (
        "<aside class=limit><h2>DRF 1 is the source image itself</h2><p>The noise of the lower doses was inserted: DRF D is "
        "the source + reconstruction of the counts at DRF D &minus; reconstruction of the full counts, both from one "
        "simulated draw of the source. The source's own noise is part of every dose, and negative voxels are kept. The "
        "source is not noise-free truth, so no bias can be measured against it.</p></aside>"
    )


def _scatter_note(subjects: list[_Summary]) -> str:
    items = []
    for s in subjects:
        for how, why in _SCATTER_HOW.items():
            where = _unfitted(s, how)
            if where:
                items.append(f"<li><b>{escape(s.name)}</b>: {escape(f'{how} at {where}: {why}')}</li>")
    if not items:
        return ""
    return (
        "<aside class=limit><h2>Scatter that could not be fitted</h2><p>The scale of estimated scatter there is a bound or "
        f"a default.</p><ul>{''.join(items)}</ul></aside>"
    )


def _unfitted(s: _Summary, how: str) -> str:
    """Images, and how many of their realizations, whose scatter was scaled in a way other than by a fit."""
    parts = []
    for image in range(len(s.drfs) + 1):
        scaled = [scales[image] for scales in s.scatter_scales if image < len(scales)]
        count = sum(scale.get("how") == how for scale in scaled)
        if count:
            parts.append(s.image_name(image) + (f" ({count} of {len(scaled)} realizations)" if count < len(scaled) else ""))
    return ", ".join(parts)


def _scan_facts(s: _Summary) -> list[tuple[str, str]]:
    """Bed positions and output grid, where there are any."""
    beds, grid = s.provenance.get("beds"), s.provenance.get("output_grid")
    facts = []
    if beds:
        facts.append(("Scan", f"{len(beds['table'])} bed positions that overlap by {100 * beds['overlap']:.0f} %, "
                              f"{beds['order']}"))  # fmt: skip
    if grid:
        facts.append(("Output grid", f"{grid['title']}; {grid['noise']}"))
    return facts


def _lines_text(s: _Summary) -> str:
    if s.mode == "thin":
        return "lines: what is expected from DRF 1."
    return f"lines: what DRF 1 would give as a shorter scan at its own rates, for comparison (this is {s.drf_means})."


def _dataset_facts(subjects: list[_Summary]) -> list[tuple[str, str]]:
    first = subjects[0]
    config, layout = first.configuration, first.provenance.get("layout", {})
    recon, merged = first.provenance.get("reconstruction", {}), layout.get("merged", {})
    splits = {name: sum(s.split == name for s in subjects) for name in ("train", "val", "test")}
    shapes = _distinct(f"{' x '.join(str(n) for n in s.shape)} voxels of {_mm(s.spacing_mm)}" for s in subjects)
    psf = recon.get("psf_fwhm_mm")
    iterations = f"{recon.get('iterations', '?')} iterations of {recon.get('subsets', '?')} subsets"
    algorithm = [
        f"{recon.get('algorithm', 'unknown')}, {iterations}",
        f"PSF {_mm(psf)} FWHM" if psf else "",
        f"post-filter {recon['post_filter_fwhm_mm']:g} mm FWHM" if "post_filter_fwhm_mm" in recon else "",
    ]
    count = first.realizations
    realizations = f"{count} a dose" + (f", {first.provenance.get('realizations', '')}" if count > 1 else "")
    return [
        ("Subjects", f"{len(subjects):,} ({', '.join(f'{n:,} {name}' for name, n in splits.items() if n)})"),
        ("Scanner", str(first.provenance.get("scanner_title") or config.get("scanner", "unknown"))),
        ("Doses", _doses_text(first)),
        ("Dose mode", f"{first.mode}: {_mode_text(first)}"),
        ("Realizations", realizations),
        *_scan_facts(first),
        ("Preset", str(config.get("preset", "unknown"))),
        ("Merged", "; ".join(f"{'TOF' if k == 'tof' else k} {v}" for k, v in merged.items()) or "unknown"),
        ("Reconstruction", "; ".join(a for a in algorithm if a)),
        ("Corrections", _corrections_text(first)),
        ("Background", _background_text(first)),
        ("Images", "; ".join(shapes)),
        ("Seed", str(first.seed)),
        ("License", "; ".join(_distinct(s.license for s in subjects))),
        ("Origin", "; ".join(_distinct(s.origin for s in subjects))),
        ("Configuration", first.configuration_sha256),
    ]


def _mode_text(s: _Summary) -> str:
    return f"{s.drf_means}: {_MODES[s.mode]}" if s.mode in _MODES else s.mode


def _corrections_text(s: _Summary) -> str:
    kind = str(s.corrections.get("corrections", "unknown"))
    text = _CORRECTIONS.get(kind, kind)
    if s.is_recorded:
        return f"from each dose's own data: randoms from delayeds; crystal efficiencies {s.corrections.get('normalization')}"
    if kind != "estimated":
        return text
    drift, moved = s.corrections.get("normalization_drift", 0.0), s.configuration.get("mu_shift", 0.0)
    return "; ".join([
        text,
        f"crystal efficiencies off by {_percent(drift)}" if drift else "normalization without drift",
        f"mu-map moved against the emission ({moved:g} x the usual random shift)" if moved else "mu-map in place",
    ])  # fmt: skip


def _background_text(s: _Summary) -> str:
    forward = s.provenance.get("forward", {})
    if s.is_recorded:
        return "as recorded"
    return "; ".join(f"{name} {forward[name]}" for name in ("scatter", "randoms") if name in forward) or "unknown"


def _overview(subjects: list[_Summary]) -> str:
    head = ["Subject", "Split", "Tracer", "Weight, kg", "Injected, MBq", "Scan, s", "Prompts, DRF 1", "MBq s/kg, DRF 1",
            "COV, DRF 1", f"COV, DRF {subjects[0].drfs[-1]:g}", "mu source", "Warnings"]  # fmt: skip
    rows = []
    for s in subjects:
        injection = s.provenance.get("injection", {})
        rows.append([
            s.name, s.split, str(injection.get("tracer", "unknown")), _value(injection.get("weight_kg"), ",.1f"),
            _value(injection.get("injected_mbq"), ",.1f"), _value(s.provenance.get("duration_s"), ",.4g"),
            _value(_mean(s.doses["prompts"][0]), ",.0f"), _value(_mean(s.doses["mbq_s_per_kg"][0]), ",.1f"),
            _percent(_mean(s.doses["liver_cov"][0])), _percent(_mean(s.doses["liver_cov"][-1])),
            str(s.provenance.get("mu_source", "unknown")), f"{len(s.warnings)}",
        ])  # fmt: skip
    return html.table(head, rows, left=(0, 1, 2, 10))


def _subject(f: SubjectFile, s: _Summary) -> str:
    """Section of one subject: figures, dose table, what is known of it."""
    noise_free = f.array("reference/noise_free")
    activity, mu = f.array("truth/activity"), f.array("truth/mu")
    assert activity is not None and mu is not None
    mu = mu.astype(np.float32)
    grid = Grid((s.shape[0], s.shape[1], s.shape[2]), s.spacing_mm, (0.0, 0.0, 0.0))
    place = _noise_place(f)
    box = figures.body_box(mu, s.spacing_mm)
    images = [f.image(k) for k in range(len(s.drfs))]
    reference = noise_free if noise_free is not None else activity
    shown = [figures.Shown(f"DRF {d:g}", _prompts(s, k), images[k][box]) for k, d in enumerate(s.drfs)]
    if s.source_is_full_dose:
        shown[0] = figures.Shown("DRF 1", "the source image", shown[0].image)
    elif not (s.is_recorded or s.is_measured):
        subtitle = "noise-free" if noise_free is not None else "source image"
        shown.insert(0, figures.Shown("Reference", subtitle, reference[box]))
    center = _middle(activity[box]) if place is None else tuple(
        (p.start + p.stop - 1) // 2 - (b.start or 0) for p, b in zip(place, box, strict=True))  # fmt: skip
    index = (center[0], center[1], center[2])
    outline = None if place is None else figures.Sphere(index, SPHERE_MM)
    wide = figures.display_window(reference, s.suv_factor, figures.MIP_SUV)
    narrow = figures.display_window(reference, s.suv_factor, figures.SLICE_SUV)
    cov = None if noise_free is None or place is None else coefficient_of_variation(noise_free, place, grid)
    how = str(s.provenance.get("noise_region", "unknown"))
    first = "source image (DRF 1) and every lower dose" if s.source_is_full_dose else "reference and every dose"
    first = "every dose" if s.is_recorded or s.is_measured else first
    where = f"the center of the red circle, where noise is measured: {how}" if outline else "the middle of the activity"
    parts = [
        f"<section><h2>{escape(s.name)} <span class=tag>{escape(s.split)}</span></h2>",
        "".join(f"<p class=inline-warn>Warning: {escape(w)}</p>" for w in s.warnings),
        html.picture(
            figures.mip_figure(shown, s.spacing_mm, wide), f"Maximum-intensity projections of {s.name}",
            f"Maximum-intensity projections, {first}. {_window_text(wide)} R: the patient's right.",
        ),
        html.picture(
            figures.slice_figure(shown, s.spacing_mm, narrow, index, outline), f"Slices of {s.name}",
            f"Coronal, sagittal and axial slices through {where}. {_window_text(narrow)} A: front.",
        ),
        *([] if s.is_measured else [
            f"<h3>Counts by dose</h3>{_count_table([s])}",
            f"<p class=note>{escape(_count_note(s))}</p>",
            html.picture(
                figures.component_figure(s.components()), f"Trues, scatter, randoms and NEC against DRF of {s.name}",
                f"DRF: {s.drf_means}. " + ("Mean of all realizations. " if s.realizations > 1 else "") +
                "Left: counts; right: what part of the counts they are.",
            ),
            f"<h3>Noise and scale by dose</h3>{_noise_table(s, images, noise_free, place, grid, cov)}",
            f"<p class=note>{escape(_noise_note(s, how))}</p>",
            _inserted_note(s),
            html.picture(
                figures.ladder_figure([s.ladder(cov)]), f"Counts and noise against DRF of {s.name}",
                f"Points: measured in one sphere, so COV scatters; {_lines_text(s)}",
            ),
            _corrections_section(s),
            "<h3>Attenuation</h3>",
            html.picture(
                figures.mu_figure(images[0][box], mu[box], s.spacing_mm, narrow, index),
                f"Attenuation map of {s.name} on DRF 1",
                f"mu-map (black 0, white {figures.MU_TOP:g} /cm) and its contours on DRF 1. Source of mu: {_mu_text(s)}.",
            ),
        ]),
        "<h3>Subject and source</h3>", html.facts(_subject_facts(s)), _lesions(s),
        f"<details><summary>Provenance</summary><pre>{escape(_pretty(s.provenance))}</pre></details></section>",
    ]  # fmt: skip
    return "\n".join(parts)


def _noise_place(f: SubjectFile) -> tuple[slice, slice, slice] | None:
    """Where the stored noise was measured."""
    place = f.json("provenance").get("noise_sphere")
    return None if place is None or f.is_truncated else (slice(*place[0]), slice(*place[1]), slice(*place[2]))


def _middle(image: np.ndarray) -> tuple[int, ...]:
    """Voxel at the center of the activity."""
    weight = np.maximum(image, 0).astype(np.float64)
    if weight.sum() == 0:
        return tuple(n // 2 for n in image.shape)
    center = []
    for axis, n in enumerate(image.shape):
        profile = weight.sum(axis=tuple(a for a in range(3) if a != axis))
        center.append(round(float((profile * np.arange(n)).sum() / profile.sum())))
    return tuple(center)


def _prompts(s: _Summary, dose: int) -> str:
    if s.is_measured:
        return "real image"
    return f"{s.doses['prompts'][dose, 0]:,} prompts"


def _window_text(window: figures.Window) -> str:
    return f"Inverse gray scale {window.unit} 0 to {window.top:g}, the same for all."


def _mu_text(s: _Summary) -> str:
    source = str(s.provenance.get("mu_source", "unknown"))
    if s.is_measured:
        return "no map came with the images, which are corrected as the scanner did"
    return _MU_SOURCES.get(source, source)


def _count_table(subjects: list[_Summary]) -> str:
    """Counts by dose and, with several subjects, by subject."""
    several = len(subjects) > 1
    head = ["DRF", "Prompts", "Trues", "Scatter", "Randoms", "Randoms fraction", "Scatter fraction", "NEC", "NEC / prompts",
            "Live fraction", "MBq s/kg", "Liver COV" if all(s.liver_is_labeled for s in subjects) else "COV"]  # fmt: skip
    rows = []
    for s in subjects:
        c = s.components()
        for k, drf in enumerate(s.drfs):
            rows.append(([s.name] if several else []) + [
                f"{drf:g}", *(_value(v[k], ",.0f") for v in (c.prompts, c.trues, c.scatter, c.randoms)),
                _percent(c.randoms_fraction[k]), _percent(c.scatter_fraction[k]), _value(c.nec[k], ",.0f"),
                _percent(c.nec_fraction[k]), _value(s.live(k), ".3f"), _value(_mean(s.doses["mbq_s_per_kg"][k]), ",.1f"),
                _percent(_mean(s.doses["liver_cov"][k])),
            ])  # fmt: skip
    return html.table(["Subject", *head], rows, left=(0, 1)) if several else html.table(head, rows, left=(0,))


def _all_counts(subjects: list[_Summary]) -> str:
    return f"<details><summary>Counts by dose of all subjects</summary>{_count_table(subjects)}</details>"


def _count_note(s: _Summary) -> str:
    means = " Means of all realizations." if s.realizations > 1 else ""
    found = "recorded, scatter and randoms estimated" if s.is_recorded else "drawn, scatter and randoms expected"
    return (
        f"Mode {s.mode} = {_mode_text(s)}. Prompts are {found}, trues the rest. Randoms "
        "fraction R / prompts, scatter fraction S / (T + S), NEC = T² / (T + S + R) of expected counts. Live fraction: mean "
        f"over detector blocks; a pair of photons passes two.{means}"
    )


def _noise_table(
    s: _Summary, images: list[np.ndarray], noise_free: np.ndarray | None,
    place: tuple[slice, slice, slice] | None, grid: Grid, noise_free_cov: float | None,
) -> str:  # fmt: skip
    factor, unit = (1e-3, "kBq/mL") if s.suv_factor is None else (s.suv_factor, "SUV")
    noise = "Liver COV" if s.liver_is_labeled else "COV"
    head = ["DRF", "Prompts x DRF / full dose", noise, f"Mean in sphere, {unit}"]
    full = s.doses["prompts"][0]
    rows = []
    for k, drf in enumerate(s.drfs):
        ratio = _value(_mean(s.doses["prompts"][k] * drf / np.where(full > 0, full, np.nan)), ".5f")
        error = np.sqrt((drf - 1) / full.sum()) if full.sum() > 0 else np.nan
        rows.append([
            f"{drf:g}", f"{ratio} ± {_value(error, '.5f')}" if drf > 1 and s.mode == "thin" else ratio,
            _percent(_mean(s.doses["liver_cov"][k])), _value(_sphere_mean(images[k], place, grid) * factor, ".3f"),
        ])  # fmt: skip
    if noise_free is not None:
        mean = _value(_sphere_mean(noise_free, place, grid) * factor, ".3f")
        rows.append(["noise-free", "", _percent(noise_free_cov), mean])
    return html.table(head, rows, left=(0,))


def _noise_note(s: _Summary, how: str) -> str:
    spread = " ± is the standard deviation that binomial thinning gives." if s.mode == "thin" else ""
    means = " Means of all realizations, except the sphere's mean." if s.realizations > 1 else ""
    return (
        f"COV: standard deviation / mean in one sphere: {how}.{spread}{means} Images of all doses are on the full-dose "
        "scale: a low dose is noisier, not darker."
    )


def _corrections_section(s: _Summary) -> str:
    """How randoms, scatter, normalization and mu-map of the reconstruction were found, and how far off they are."""
    recon = s.corrections
    found = recon.get("by_realization", [])
    facts = [("Found", _corrections_text(s))]
    mismatch = recon.get("mu_mismatch")
    if mismatch:
        x, y, z = mismatch["shift_mm"]
        cut = mismatch.get("truncation_mm")
        facts.append((
            "mu-map mismatch",
            f"moved {x:+.1f} mm to the right, {y:+.1f} mm to the front, {z:+.1f} mm to the head; "
            + ("not truncated" if cut is None else f"nothing beyond {2 * cut:g} mm across"),
        ))  # fmt: skip
    differences = [f["estimated_minus_true"] for f in found if "estimated_minus_true" in f]
    if differences and recon.get("corrections") == "estimated":
        facts.append(("mu-map, rms error", f"{differences[0]['mu_per_cm']:.2g} /cm over the body"))
        facts.append(("Efficiencies", f"{100 * differences[0]['normalization']:.2g} % rms error of crystals"))
    parts = ["<h3>Corrections</h3>", html.facts(facts), _scatter_table(s, differences)]
    for how, why in _SCATTER_HOW.items():
        where = _unfitted(s, how)
        if where:
            parts.append(f"<p class=inline-warn>{escape(f'Scatter scale, {how} at {where}: {why}.')}</p>")
    return "\n".join(parts)


def _scale_text(scales: list[dict[str, Any]]) -> str:
    """Mean scale and, of several realizations, the range; of one, its statistical error."""
    if not scales:
        return ""
    values = np.array([scale["scale"] for scale in scales])
    deviation = scales[0].get("deviation", 0)
    if values.min() < values.max():
        return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"
    return f"{values[0]:.3f}" + (f" ± {deviation:.3f}" if deviation and len(values) == 1 else "")


def _scatter_table(s: _Summary, differences: list[dict[str, Any]]) -> str:
    rows = []
    for image in range(len(s.drfs) + 1):
        scales = [found[image] for found in s.scatter_scales if image < len(found)]
        singles = [d["singles"][image] for d in differences if image < len(d.get("singles", []))]
        if not scales and not any(singles):
            continue
        rows.append([
            s.image_name(image).removeprefix("DRF "), _scale_text(scales),
            ", ".join(_distinct(str(scale["how"]) for scale in scales)),
            _value(float(np.mean([scale["counts"] for scale in scales])), ",.0f") if scales else "",
            _percent(float(np.mean(singles))) if singles else "",
        ])  # fmt: skip
    if not rows:
        return ""
    head = ["DRF", "Scale of single scatter", "How", "Counts in tails", "Singles, rms error"]
    note = (
        "Scatter: single scatter simulated from the noisy image of the same dose and realization, scaled to counts in LORs "
        "beside the body. Singles give the randoms; theirs come from delayed coincidences, and the error is that of one "
        "detector area."
    )
    return html.table(head, rows, left=(0, 2)) + f"<p class=note>{escape(note)}</p>"


def _inserted_note(s: _Summary) -> str:
    """How the source's own noise compares with what was inserted: a ladder hides below a noisy source."""
    source, inserted = _mean(s.doses["liver_cov"][0]), s.ladder().full_dose_noise()
    if not s.source_is_full_dose or len(s.drfs) == 1 or not np.isfinite(source * inserted):
        return ""
    text = (
        f"COV of the source image: {_percent(source)}; of the simulated full dose, as the growth of noise shows it: "
        f"about {_percent(inserted)}."
    )
    if inserted > _MATCHING * source:
        return f"<p class=note>{escape(text)}</p>"
    text += (
        " The source is noisier than the simulated scan, so its own noise hides that of mild dose reductions; --counts sets "
        "the level of the simulated scan."
    )
    return f"<p class=inline-warn>{escape(text)}</p>"


def _sphere_mean(image: np.ndarray, place: tuple[slice, slice, slice] | None, grid: Grid) -> float:
    return float("nan") if place is None else float(image[place][sphere(grid)].mean(dtype=np.float64))


def _subject_facts(s: _Summary) -> list[tuple[str, str]]:
    source, injection = s.provenance.get("source", {}), s.provenance.get("injection", {})
    at = s.provenance
    measured = " (measured: its noise is not truth)" if at.get("truth_is_noisy") else ""
    facts = [
        ("Tracer", f"{injection.get('tracer', 'unknown')}, {injection.get('isotope', 'unknown isotope')}"),
        ("Injected", _value(injection.get("injected_mbq"), ",.1f", " MBq")),
        ("Weight", _value(injection.get("weight_kg"), ",.1f", " kg")),
        ("Uptake", _value(None if injection.get("uptake_s") is None else injection["uptake_s"] / 60, ",.1f", " min")),
        ("Scan duration", _value(at.get("duration_s"), ",.4g", " s")),
        ("In the image", f"{_percent(source['fraction_in_image'])} of the injected activity, decayed to scan start"
         if "fraction_in_image" in source else ""),
        ("Body", ", ".join(str(v) for v in (source.get("sex"), _value(source["height_cm"], ".1f", " cm"),
                                            f"arms {source.get('arms', 'unknown')}")) if "height_cm" in source else ""),
        ("SUV for 1 Bq/mL", "unknown (weight, activity or uptake time is missing)" if s.suv_factor is None
         else f"{s.suv_factor:.6g}"),
        ("Attenuation", _mu_text(s)),
        ("Source", f"{source.get('kind', s.origin)}{measured}"),
        ("Source resolution", str(source.get("source_fwhm", ""))),
        ("Source hash", str(at.get("source_sha256", ""))),
        ("License", s.license),
        ("Origin", s.origin),
        ("Field of view", _value(at.get("fov_mm"), ",.0f", " mm transaxial")),
        ("Notes", "; ".join(str(n) for n in source.get("notes", []))),
    ]  # fmt: skip
    return [(k, v) for k, v in facts if v]


def _lesions(s: _Summary) -> str:
    lesions = s.provenance.get("source", {}).get("lesions")
    if not lesions:
        return ""
    rows = [
        [str(x.get("site", "")).replace("_", " "), _value(x.get("diameter_mm"), ".1f"), _value(x.get("suv"), ".2f"),
         ", ".join(f"{v:.0f}" for v in x.get("center_mm", []))]
        for x in lesions
    ]  # fmt: skip
    return "<h4>Lesions</h4>" + html.table(["Site", "Diameter, mm", "SUV", "Center, RAS+ mm"], rows, left=(0,))


def _settings(s: _Summary) -> str:
    scanner = s.configuration.get("scanner_fields", {})
    rest = {k: v for k, v in s.configuration.items() if k != "scanner_fields"}
    return "\n".join([
        "<section><h2>Settings</h2>",
        f"<p class=note>Configuration hash: <code>{escape(s.configuration_sha256)}</code></p>",
        html.facts([(k, _plain(v)) for k, v in _flat(rest)], dense=True),
        "<h3>Scanner</h3>" if scanner else "",
        html.facts([(k, _plain(v)) for k, v in _flat(scanner)], dense=True),
        "<h3>Versions</h3>",
        html.facts(list(s.versions.items()), dense=True),
        "</section>",
    ])  # fmt: skip


def _flat(values: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(v) for v in value)
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _mm(values: Sequence[float]) -> str:
    return f"{' x '.join(f'{v:.3g}' for v in values)} mm"


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _value(value: float | None, style: str, unit: str = "") -> str:
    return "unknown" if value is None or not np.isfinite(value) else f"{value:{style}}{unit}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None or not np.isfinite(value) else f"{100 * value:.1f} %"
