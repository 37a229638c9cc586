"""The report is one page that needs nothing else, says everything, and shows patients the right way round."""

import base64
import dataclasses
import io
import re
import shutil
import subprocess

import numpy as np
import pytest

from data_recipes.errors import DataError
from petsim import figures
from petsim.cache.schema import SubjectRecord
from petsim.cache.store import write_index, write_subject
from petsim.report import ILLUSTRATED, write_report

SHAPE, SPACING = (24, 16, 40), (8.0, 10.0, 5.0)
DRFS = (1.0, 4.0, 20.0)
WARNING = "the isotope is not stated: F-18 is assumed"
CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)


def record(name="phantom-0000", **changes):
    """A box of soft tissue with a warm half and noise that grows with DRF."""
    rng = np.random.default_rng(1)
    body = np.zeros(SHAPE, bool)
    body[3:-3, 3:-3, 3:-3] = True
    labels = np.zeros(SHAPE, np.uint8)
    labels[12:-3, 3:-3, 12:30] = 7
    activity = np.where(labels == 7, 4000.0, np.where(body, 1000.0, 0.0)).astype(np.float32)
    noise = rng.normal(0, 60, SHAPE).astype(np.float32) * body
    full = 1_234_567
    prompts = np.array([[full], [308_700], [61_700]])
    nothing = np.zeros_like(prompts)
    values = SubjectRecord(
        name=name, shape=SHAPE, spacing_mm=SPACING, origin_mm=(0.0, 0.0, 0.0), suv_factor=5e-4, drfs=DRFS,
        images=np.stack([activity + noise * np.float32(np.sqrt(d)) for d in DRFS])[:, None], noise_free=activity,
        activity=activity, mu=np.where(body, 0.096, 0.0).astype(np.float32), labels=labels, sinogram=None,
        doses={"prompts": prompts, "trues": prompts, "scatter": nothing, "randoms": nothing, "nec": prompts * 1.0,
               "mbq_s_per_kg": 1800.0 / np.array(DRFS)[:, None], "liver_cov": np.array([[0.015], [0.03], [0.067]])},
        label_names={7: "liver"}, mode="thin", seed=3,
        configuration={"scanner": "biograph_mmr", "preset": "fast", "preset_values": {"voxel_mm": 8.0}, "voxel_mm": None},
        configuration_sha256="c0ffee" * 8,
        provenance={
            "scanner_title": "Siemens Biograph mMR", "not_modeled": ["scatter", "randoms"], "mu_source": "pet_contour",
            "full_dose": "simulated", "noise_region": "30 mm sphere deepest in the labeled liver", "warnings": [],
            "layout": {"merged": {"crystals": "2 transaxial x 2 axial"}}, "duration_s": 600.0,
            "reconstruction": {"algorithm": "OSEM", "iterations": 2, "subsets": 7, "psf_fwhm_mm": [4.0, 4.0, 4.0]},
            "injection": {"tracer": "FDG", "isotope": "F-18", "injected_mbq": 240.5, "uptake_s": 3600.0, "weight_kg": 80.0},
            "source": {"kind": "nifti", "fraction_in_image": 0.631, "notes": ["uneven steps were resampled"]},
        },
        versions={"petsim": "0.1.0"}, license="CC-BY-4.0", origin="nifti",
    )  # fmt: skip
    return dataclasses.replace(values, **changes)


def page_of(folder, *records):
    for r in records:
        write_subject(folder / f"{r.name}.h5", r)
    write_index(folder)
    return write_report(folder)


def provenance(**changes):
    return record().provenance | changes


def pictures(page):
    from matplotlib.image import imread

    found = re.findall(r'<img src="data:image/png;base64,([^"]+)"[^>]*alt="([^"]*)"', page.read_text())
    return {alt: imread(io.BytesIO(base64.b64decode(data)), "png") for data, alt in found}


def test_page_is_self_contained_and_repeatable(tmp_path):
    page = page_of(tmp_path, record())
    assert page == tmp_path / "report.html"
    text = page.read_text()
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    references = re.findall(r'(?:src|href|action|srcset)\s*=\s*"?([^\s">]{0,40})', text)
    assert references and all(r.startswith("data:image/png;base64") for r in references)
    assert not re.search(r"<script|<link|@import|url\(|https?://", text)
    write_report(tmp_path, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.html", "dataset.json", "phantom-0000.h5", "report.html"]


def test_page_says_what_the_dataset_is(tmp_path):
    text = page_of(tmp_path, record()).read_text()
    for drf, prompts in (("1", "1,234,567"), ("4", "308,700"), ("20", "61,700")):
        assert f"<td class=left>{drf}</td><td>{prompts}</td>" in text
    assert "1.00019 ± 0.00156" in text
    for expected in ("counts / DRF", "Siemens Biograph mMR", "DRF 1, 4, 20", "Scatter, randoms.", "2 transaxial x 2 axial",
                     "2 iterations of 7 subsets", "pet_contour", "no CT", "63.1 %", "CC-BY-4.0", "c0ffee" * 8, "0.1.0",
                     "preset_values.voxel_mm", "uneven steps were resampled",
                     "240.5 MBq", "80.0 kg", "60.0 min", "6.7 %"):  # fmt: skip
        assert expected in text, expected
    assert "DRF 1 is the source image itself" not in text


def text_of(page):
    return re.sub(r'base64,[^"]+', "", page.read_text())


def rows_of(text, heading):
    """Cells of the first table after a heading, a list a row, its head first."""
    table = text.split(f"<h3>{heading}</h3>")[1].split("</table>")[0]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", table)]


def test_counts_by_component_and_what_follows_from_them(tmp_path):
    """Randoms 20 % of prompts, scatter a quarter of the rest, NEC = T^2 / prompts = 36 % of prompts."""
    prompts = np.array([[1_000_000], [250_000], [0]])
    part = prompts // 5
    doses = record().doses | {
        "prompts": prompts, "trues": 3 * part, "scatter": part, "randoms": part, "nec": 0.36 * prompts
    }  # fmt: skip
    rates = [{"drf": d, "mean_live_fraction": live} for d, live in zip(DRFS, (0.9, 0.97, 0.99), strict=True)]
    head, full, quarter, nothing = rows_of(
        text_of(page_of(tmp_path, record(doses=doses, provenance=provenance(rates=rates)))), "Counts by dose"
    )
    assert head == ["DRF", "Prompts", "Trues", "Scatter", "Randoms", "Randoms fraction", "Scatter fraction", "NEC",
                    "NEC / prompts", "Live fraction", "MBq s/kg", "Liver COV"]  # fmt: skip
    assert full == ["1", "1,000,000", "600,000", "200,000", "200,000", "20.0 %", "25.0 %", "360,000", "36.0 %", "0.900",
                    "1,800.0", "1.5 %"]  # fmt: skip
    assert quarter[:5] == ["4", "250,000", "150,000", "50,000", "50,000"] and quarter[9] == "0.970"
    assert nothing[5:9] == ["unknown", "unknown", "0", "unknown"]


@pytest.mark.parametrize(
    ("mode", "drf", "more"),
    [
        ("thin", "counts / DRF", "thinned binomially"),
        ("window", "counts / DRF, the middle of the scan", "with its own decay"),
        ("dose", "injected dose / DRF", "the randoms and the dead time of its own rates"),
    ],
)
def test_every_mode_says_what_drf_is(tmp_path, mode, drf, more):
    text = text_of(page_of(tmp_path, record(mode=mode, provenance=provenance(full_dose="source"))))
    assert f"DRF 1, 4, 20 ({drf})</p>" in text and f"{mode}: {drf}: " in text and more in text
    assert f"DRF: {drf}. Left" in text
    assert ("counts / DRF" in text) == (mode != "dose")
    # The error of thinning and the lines through DRF 1 are those of thinned counts only.
    assert ("±" in text) == ("what is expected from DRF 1" in text) == (mode == "thin")


def estimated(scales, singles):
    """Provenance of estimated corrections, one realization a list of (scale, how)."""
    found = [
        {"scatter_scales": [{"scale": s, "how": how, "counts": 1000.0 * s, "deviation": 0.02} for s, how in one],
         "estimated_minus_true": {"mu_per_cm": 0.0035, "normalization": 0.0101, "singles": singles}}
        for one in scales
    ]  # fmt: skip
    return provenance(reconstruction={
        "corrections": "estimated", "mu_mismatch": {"shift_mm": [0.4, -1.3, 5.5], "truncation_mm": 250.0},
        "normalization_drift": 0.01, "by_realization": found,
    })  # fmt: skip


def test_how_corrections_were_found_is_said(tmp_path):
    scales = [(1.31, "fitted"), (1.25, "fitted"), (1.2, "fitted"), (1.3, "fitted")]
    held = estimated([scales], [0.01, 0.02, 0.09, 1e-4])
    asked = record().configuration | {"mu_shift": 1.0}
    text = text_of(page_of(tmp_path, record(provenance=held, configuration=asked)))
    for words in ("estimated from the noisy data of each dose and realization", "crystal efficiencies off by 1.0 %",
                  "mu-map moved against the emission", "+0.4 mm to the right, -1.3 mm to the front, +5.5 mm to the head",
                  "nothing beyond 500 mm across", "0.0035 /cm", "1 % rms error of crystals"):  # fmt: skip
        assert words in text, words
    table = rows_of(text, "Corrections")
    assert table[1] == ["1", "1.310 ± 0.020", "fitted", "1,310", "1.0 %"]
    assert table[3] == ["20", "1.200 ± 0.020", "fitted", "1,200", "9.0 %"]
    assert table[4][0] == "noise-free"
    assert "could not be fitted" not in text


def test_scatter_scales_that_are_no_fit_are_pointed_out(tmp_path):
    fit, low, high = (1.3, "fitted"), (0.5, "bounded"), (1.25, "fallback")
    images, doses = (
        np.repeat(record().images, 2, axis=1), {k: np.repeat(v, 2, axis=1) for k, v in record().doses.items()}
    )  # fmt: skip
    held = estimated([[fit, fit, high, fit], [fit, low, high]], [0.01, 0.02, 0.09])
    text = text_of(page_of(tmp_path, record(provenance=held, images=images, doses=doses)))
    aside = re.search(r"<aside class=limit><h2>Scatter that could not be fitted.*?</aside>", text, re.S)
    assert aside
    for where in (text.split("<h3>Corrections</h3>")[1], aside.group()):
        assert "bounded at DRF 4 (1 of 2 realizations): the fit" in where
        assert "fallback at DRF 20: the tails" in where
    table = rows_of(text, "Corrections")
    assert table[2][1:3] == ["0.900 (0.500 to 1.300)", "fitted, bounded"] and table[3][1] == "1.250"


def test_corrections_of_the_oracle_are_called_so(tmp_path):
    exact = {"scatter_scales": [], "estimated_minus_true": {"mu_per_cm": 0.0, "normalization": 0.0, "singles": [0.0] * 4}}
    text = text_of(page_of(tmp_path, record(
        provenance=provenance(reconstruction={"corrections": "oracle", "mu_mismatch": None, "by_realization": [exact]})
    )))  # fmt: skip
    assert "oracle: the true randoms, scatter, normalization and mu-map" in text
    assert "mu-map mismatch" not in text and "Counts in tails" not in text


def test_components_are_told_apart_without_color_and_zeros_are_left_out():
    counts = np.array([1000.0, 250.0, 50.0])
    figure = figures.component_figure(
        figures.Components(DRFS, counts, 0.6 * counts, 0.3 * counts, 0.1 * counts, 0.36 * counts)
    )
    for axes, names in zip(figure.axes, (["trues", "NEC", "scatter", "randoms"],
                                         ["NEC / prompts", "scatter fraction S / (T + S)", "randoms fraction R / prompts"]),
                           strict=True):  # fmt: skip
        assert [line.get_label() for line in axes.lines] == names
        for kind in ("get_color", "get_marker", "get_linestyle"):
            assert len({getattr(line, kind)() for line in axes.lines}) == len(names)
    left, right = figure.axes
    assert left.get_xscale() == left.get_yscale() == right.get_xscale() == "log" and right.get_ylim()[0] == 0
    np.testing.assert_allclose(left.lines[0].get_ydata(), 0.6 * counts)
    np.testing.assert_allclose([line.get_ydata()[0] for line in right.lines], [36, 100 / 3, 10])
    nothing = np.zeros(3)
    left, right = figures.component_figure(figures.Components(DRFS, counts, counts, nothing, nothing, counts)).axes
    assert [line.get_label() for line in left.lines] == ["trues", "NEC"] and len(right.lines) == 1


def test_every_warning_of_every_subject_is_shown(tmp_path):
    first = record(provenance=provenance(warnings=[WARNING]))
    second = record("phantom-0001", provenance=provenance(warnings=["no lungs were found", "outside the field of view"]))
    text = page_of(tmp_path, first, second).read_text()
    top = re.search(r"<aside class=warn>.*?</aside>", text, re.S)
    assert top
    for name, warning in (("phantom-0000", WARNING), ("phantom-0001", "no lungs were found"),
                          ("phantom-0001", "outside the field of view")):  # fmt: skip
        assert f"<b>{name}</b>: {warning}" in top.group()


def test_strings_are_escaped(tmp_path):
    evil = '<img src=x onerror=alert(1)> & "quotes"'
    hostile = record(
        license=evil, origin=evil, versions={evil: evil}, configuration={"scanner": evil, evil: {evil: evil}},
        provenance=provenance(warnings=[evil], mu_source=evil, not_modeled=[evil], scanner_title=evil, noise_region=evil,
                              source={"kind": evil, "notes": [evil], "lesions": [{"site": evil}]},
                              injection={"tracer": evil}, layout={"merged": {evil: evil}}),
    )  # fmt: skip
    text = page_of(tmp_path, hostile).read_text()
    assert "<img src=x" not in text
    assert text.count("&lt;img src=x onerror=alert(1)&gt; &amp; &quot;quotes&quot;") > 15


def test_source_as_full_dose_is_said_and_shown_once(tmp_path):
    measured = record(noise_free=None, provenance=provenance(full_dose="source", truth_is_noisy=True))
    page = page_of(tmp_path, measured)
    text = page.read_text()
    assert "DRF 1 is the source image itself" in text and "noise of the lower doses was inserted" in text
    panels = {}
    for name, r in (("source", measured), ("simulated", record())):
        folder = tmp_path / name
        folder.mkdir()
        picture = pictures(page_of(folder, r))["Maximum-intensity projections of phantom-0000"]
        panels[name] = picture.shape[1] / picture.shape[0]
    assert panels["source"] < 0.85 * panels["simulated"]


def test_unknown_suv_weight_and_noise_are_said(tmp_path):
    doses = record().doses | {"mbq_s_per_kg": np.full((3, 1), np.nan), "liver_cov": np.full((3, 1), np.nan)}
    injection = {"tracer": "FDG", "isotope": "F-18", "injected_mbq": None, "uptake_s": None, "weight_kg": None}
    bare = record(
        suv_factor=None, labels=None, label_names={}, noise_free=None, doses=doses,
        provenance=provenance(noise_region="none found", injection=injection),
    )  # fmt: skip
    text = page_of(tmp_path, bare).read_text()
    assert "kBq/mL 0 to 4" in text and "Inverse gray scale SUV" not in text
    assert not re.search(r"\bnan\b", re.sub(r'base64,[^"]+', "", text))


def test_only_the_first_subjects_are_illustrated(tmp_path, monkeypatch):
    monkeypatch.setattr("petsim.report.ILLUSTRATED", 1)
    text = page_of(tmp_path, record("a"), record("b"), record("c")).read_text()
    assert text.count("Attenuation map of") == 1
    assert "first 1 of 3 subjects" in text
    assert all(f"<td class=left>{name}</td>" in text for name in "abc")
    every = text.split("Counts by dose of all subjects</summary>")[1].split("</table>")[0]
    assert all(every.count(f"<td class=left>{name}</td>") == len(DRFS) for name in "abc")
    assert ILLUSTRATED == 6


def test_bad_places_are_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match="not a dataset"):
        write_report(tmp_path)
    page_of(tmp_path, record())
    with pytest.raises(DataError, match="folder that exists"):
        write_report(tmp_path, tmp_path / "nowhere" / "page.html")
    with pytest.raises(DataError, match="folder that exists"):
        write_report(tmp_path, tmp_path)


def test_patients_right_is_on_the_left_and_the_head_on_top():
    image = np.zeros((10, 8, 20), np.float32)
    image[8, 5, 17] = 1.0
    mip = figures.coronal_mip(image)
    assert mip.shape == (20, 10)
    assert np.argwhere(mip).tolist() == [[2, 1]]
    assert np.argwhere(figures.displayed(image[:, :, 17])).tolist() == [[2, 1]]
    assert np.argwhere(figures.displayed(image[8])).tolist() == [[2, 2]]


def spots(figure, dpi=100):
    """Dark pixels of a figure's first panel, as fractions of its width and height from the upper left; its shape in mm."""
    axes = figure.axes[0]
    data = axes.images[0].get_array()
    row, column = np.unravel_index(int(np.argmax(data)), data.shape)
    left, right, bottom, top = axes.images[0].get_extent()
    x, y = axes.transData.transform((left + (column + 0.5) / data.shape[1] * (right - left),
                                     top + (row + 0.5) / data.shape[0] * (bottom - top)))  # fmt: skip
    low, high = axes.transAxes.transform([(0, 0), (1, 1)])
    size = high - low
    return (x - low[0]) / size[0], (high[1] - y) / size[1], size[1] / size[0]


@pytest.mark.parametrize("spacing", [(2.0, 3.0, 4.0), (4.0, 3.0, 2.0)])
def test_figures_show_true_proportions_and_sides(spacing):
    image = np.zeros((10, 8, 20), np.float32)
    image[8, 5, 17] = 10.0
    shown = [figures.Shown("DRF 1", "", image)]
    window = figures.display_window(image, 1.0, figures.MIP_SUV)
    x, y, proportion = spots(figures.mip_figure(shown, spacing, window))
    assert x < 0.5 and y < 0.5
    assert proportion == pytest.approx(20 * spacing[2] / (10 * spacing[0]), rel=1e-6)
    sphere = figures.Sphere((8, 5, 17), 6.0)
    slices = figures.slice_figure(shown, spacing, window, (8, 5, 17), sphere)
    for axes, (a, b) in zip(slices.axes, ((0, 2), (1, 2), (0, 1)), strict=False):
        w, h = axes.get_window_extent().size
        assert h / w == pytest.approx(image.shape[b] * spacing[b] / (image.shape[a] * spacing[a]), rel=1e-6)
        u, v = axes.patches[0].center
        row, column = np.argwhere(axes.images[0].get_array())[0]
        assert (u, v) == pytest.approx(((column + 0.5) * spacing[a], (row + 0.5) * spacing[b]))


def test_all_doses_share_one_gray_scale():
    image = np.full((4, 4, 4), 3000.0, np.float32)
    shown = [figures.Shown(f"DRF {d}", "", image * d) for d in (1, 4, 10)]
    for suv, top in ((1e-3, 7.0), (None, 3.0)):
        window = figures.display_window(image, suv, figures.MIP_SUV)
        figure = figures.mip_figure(shown, (4.0, 4.0, 4.0), window)
        assert {axes.images[0].get_clim() for axes in figure.axes[:3]} == {(0, top)}
        assert [float(axes.images[0].get_array().max()) for axes in figure.axes[:3]] == pytest.approx([3, 12, 30])


def test_expected_lines_follow_counts_and_noise():
    drfs = [1.0, 4.0, 100.0]
    ladder = figures.Ladder("a", drfs, np.array([[1000, 1020], [250, 240], [11, 9]]), np.array([[0.02], [0.05], [np.nan]]))
    counts, noise = figures.ladder_figure([ladder]).axes
    points, line = counts.lines
    assert len(points.get_xdata()) == 6
    np.testing.assert_allclose(line.get_ydata(), [1010, 252.5, 10.1])
    points, line = noise.lines
    assert len(points.get_xdata()) == 2
    np.testing.assert_allclose(line.get_ydata(), [2, 4, 20])
    assert counts.get_xscale() == counts.get_yscale() == noise.get_yscale() == "log"


def test_noise_of_the_simulated_scan_is_found_below_that_of_the_source(tmp_path):
    drfs = np.array(DRFS)
    cov = np.sqrt(0.06**2 + (drfs - 1) * 0.018**2)[:, None]
    ladder = figures.Ladder("a", DRFS, np.ones((3, 1)), cov, inserted=True)
    assert ladder.full_dose_noise() == pytest.approx(0.018)
    np.testing.assert_allclose(ladder.expected_cov(), cov[:, 0])
    measured = record(doses=record().doses | {"liver_cov": cov}, provenance=provenance(full_dose="source"))
    assert "about 1.8 %. The source is noisier than the simulated scan" in page_of(tmp_path, measured).read_text()


def test_many_doses_wrap_into_rows():
    image = np.ones((20, 10, 40), np.float32)
    shown = [figures.Shown(f"DRF {d}", "", image) for d in range(1, 10)]
    figure = figures.mip_figure(shown, (10.0, 10.0, 10.0), figures.display_window(image, 1.0, 7.0))
    boxes = [axes.get_window_extent() for axes in figure.axes[:9]]
    assert len({round(b.y0) for b in boxes}) == 2
    assert all(b.width > 90 and b.y0 > 0 for b in boxes)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_chromium_renders_the_page(tmp_path):
    from matplotlib.image import imread

    page = page_of(tmp_path, record(provenance=provenance(warnings=[WARNING])))
    profile, shot = tmp_path / "profile", tmp_path / "shot.png"
    profile.mkdir()
    subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
         "--hide-scrollbars", "--window-size=1200,3200", f"--screenshot={shot}", page.as_uri()],
        check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    pixels = imread(shot)[:, :, :3]
    assert pixels.shape[:2] == (3200, 1200)
    assert (pixels.min(axis=2) < 0.2).sum() > 2000

    red, green, blue = np.moveaxis(pixels, 2, 0)
    warm = (abs(red - 0xFD / 255) < 0.01) & (abs(green - 0xF1 / 255) < 0.01) & (abs(blue - 0xEA / 255) < 0.01)
    assert warm.sum() > 5000, "the box of warnings"
    # Blue in the lower half of the page: the contours of mu and the plots, and a single line of text.
    assert (blue - red > 0.25)[1000:].sum() > 500, "the figures"


def test_no_noise_is_shown_of_a_body_that_is_cut_off(tmp_path):
    whole = provenance(noise_sphere=[[10, 13], [6, 9], [15, 22]])
    text = page_of(tmp_path, record(provenance=whole)).read_text()
    assert "3.0 %" in text and "Cut off at the sides" not in text
    cut = record(provenance=whole | {"source": {"kind": "nifti", "truncated_fov": True}})
    text = page_of(tmp_path, cut).read_text()
    assert "3.0 %" not in text and "6.7 %" not in text and "The body of phantom-0000 reaches beyond its image" in text
