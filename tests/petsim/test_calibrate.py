"""Calibration recovers count level, filter and doses that are known, wherever the body lies and whatever its size."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from data_recipes.errors import DataError
from petsim.bed_pattern import bed_period_mm
from petsim.calibrate import degenerate_pairs, signed_root
from petsim.difference_noise import measure
from petsim.effective_dose import effective_drfs
from petsim.noise_covariance import FrequencyBins, lag_products, spectrum_of
from petsim.noise_fit import match, pool
from petsim.noise_regions import cube_edges, organ_regions, pieces, place_regions
from tests.helpers import one_line
from tests.petsim.noisy_pairs import (
    ORGANS,
    SPACING,
    Made,
    body,
    ladder,
    record,
    subject,
    white_to_correlated,
    write_dataset,
    write_folder,
    write_nifti,
)

SIMULATED = Made()
REAL = replace(SIMULATED, counts=60.0, fwhm_mm=(5.0, 5.0, 6.0), unit=1e-3)
SMALL, LARGE = (75.0, 55.0), (105.0, 85.0)
DRFS = (4.0, 10.0, 20.0)
TINY = (40, 36, 32)
NAMED = re.compile(r"Jane|Doe|/")


def noise(made, seeds, drfs=DRFS, names=None, labeled=True, nested=True):
    return [
        measure(subject(made, drfs, seed, f"subject-{seed:04d}", names, labeled, nested), labeled, nested, lambda _: None)
        for seed in seeds
    ]


def test_lag_products_are_sums_over_pairs():
    values = np.random.default_rng(0).normal(size=(5, 4, 3))
    found = lag_products(values, (2, 1, 2))
    assert found.shape == (3, 2, 3)
    for lag in np.ndindex(found.shape):
        total = []
        for signs in np.ndindex(2, 2, 2):
            shift = [k if s else -k for k, s in zip(lag, signs, strict=True)]
            total.append(sum(
                values[i] * values[j]
                for i in np.ndindex(values.shape)
                if all(0 <= a + b < n for a, b, n in zip(i, shift, values.shape, strict=True))
                for j in [tuple(a + b for a, b in zip(i, shift, strict=True))]
            ))  # fmt: skip
        assert found[lag] == pytest.approx(np.mean(total), abs=1e-12)


def test_spectrum_of_filtered_noise():
    """Gaussian noise of FWHM 6 and 9 mm has the power that its filter passes, in a region of any shape."""
    fwhm, reach = (6.0, 6.0, 9.0), (12, 12, 10)
    white = np.random.default_rng(0).normal(size=(96, 96, 80))
    ball = sum(((np.arange(n) / n - 0.5) ** 2).reshape([-1 if a == k else 1 for a in range(3)])
               for k, n in enumerate(white.shape)) < 0.4**2  # fmt: skip
    sums = [lag_products(values, reach) for values in (white_to_correlated(white, fwhm) * ball, ball)]
    bins = FrequencyBins.up_to(SPACING, [r * d for r, d in zip(reach, SPACING, strict=True)])
    power = spectrum_of(sums[0] / sums[1], SPACING, bins)
    falloff = math.pi**2 / (2 * math.log(2))
    squares = 36 * bins.transaxial_per_mm[:, None] ** 2 + 81 * bins.axial_per_mm**2
    expected = math.prod(SPACING) * np.exp(-falloff * squares)
    strong = (expected > 0.1 * expected.max()) & (squares > 0)
    assert np.count_nonzero(strong) > 15
    ratio = power[strong] / expected[strong]
    # Half of the cells of frequency space mirror the others; each is exponential.
    cells = bins.cells_per_mm3[strong] * np.count_nonzero(ball) * math.prod(SPACING) / 2
    assert np.all(np.abs(ratio - 1) < 4 / np.sqrt(cells))
    assert np.average(ratio, weights=cells) == pytest.approx(1, abs=0.03)
    assert (power * bins.cells_per_mm3).sum() == pytest.approx(sums[0][0, 0, 0] / sums[1][0, 0, 0], rel=0.02)


def test_regions_by_place_and_organ():
    labels = body(Made(half_axes_mm=LARGE))
    places = place_regions((labels > 0).astype(np.float32), SPACING)
    assert (places.index >= 0).sum() == pytest.approx((labels > 0).sum(), rel=0.1)
    found = {places.names[k] for k in np.unique(places.index[places.index >= 0])}
    # 2 sqrt(105 x 85) = 189 mm; the farthest point of the body lies 105 mm from its own axis, which is not the image's.
    assert found == {"radius below 60 mm, body below 200 mm", "radius 60 to 120 mm, body below 200 mm"}
    organs = organ_regions(labels, ORGANS)
    assert organs.names == ("liver", "lung", "soft tissue")
    assert np.array_equal(organs.index == 0, labels == 2) and np.array_equal(organs.index < 0, labels == 0)
    covered = np.zeros(labels.shape, int)
    for piece in pieces(organs, SPACING):
        covered[piece.box] += piece.mask
        assert np.count_nonzero(piece.mask) >= math.prod(cube_edges(SPACING)) / 16
    assert covered.max() == 1 and covered.sum() > 0.9 * (labels > 0).sum()


@pytest.mark.parametrize("labeled", [True, False], ids=["organs", "places"])
@pytest.mark.parametrize("half_axes_mm", [SMALL, LARGE], ids=["small", "large"])
def test_known_counts_and_filter_come_back(half_axes_mm, labeled):
    real, simulated = (replace(made, half_axes_mm=half_axes_mm) for made in (REAL, SIMULATED))
    seeds = range(4 if half_axes_mm == SMALL else 2)
    found = match(
        pool(noise(real, seeds, labeled=labeled), SPACING),
        pool(noise(simulated, range(10, 10 + len(seeds)), (5.0, 25.0), labeled=labeled), SPACING), seed=0,
    )  # fmt: skip
    counts, transaxial, axial = found.fit.values
    assert counts == pytest.approx(0.6, rel=0.05)
    assert math.sqrt(3**2 + transaxial) == pytest.approx(5, abs=0.3)
    assert math.sqrt(4**2 + axial) == pytest.approx(6, abs=0.3)
    low, high = np.quantile(found.draws, (0.005, 0.995), axis=0)
    assert np.all(low < [0.6, 16, 20]) and np.all(high > [0.6, 16, 20])
    assert high[0] / low[0] < 1.3
    assert np.all(np.abs(found.fit.correlation - found.correlation_of_draws) < 0.4)


def test_a_simulation_that_is_too_smooth():
    """Filters differ by 3 mm less transaxially and none axially: a negative square and about zero."""
    real = replace(SIMULATED, fwhm_mm=(4.0, 4.0, 5.0), half_axes_mm=LARGE)
    simulated = replace(real, fwhm_mm=(5.0, 5.0, 5.0))
    found = match(pool(noise(real, [0, 1]), SPACING), pool(noise(simulated, [2, 3]), SPACING), seed=0)
    assert found.fit.values[0] == pytest.approx(1, rel=0.05)
    assert signed_root(found.fit.values[1]) == pytest.approx(-3, abs=0.3)
    assert abs(found.fit.values[2]) < 1.5
    matched = found.fit.matched(found.simulated_spectra, found.bins)
    sums = [np.tensordot(found.shares, s, 1)[found.used] for s in (found.real_spectra, found.simulated_spectra, matched)]
    before, after = (np.median(np.abs(s / sums[0] - 1)) for s in sums[1:])
    assert after < 0.1 < before


def test_another_scale_of_the_low_doses_changes_nothing():
    """Corrections of few counts are off by some percent, which must not bring anatomy into the noise."""
    plain = subject(REAL, DRFS, 0, labeled=True)
    scaled = replace(plain, image=lambda drf, r: plain.image(drf, r) * np.float32(1 if drf == 1 else 1.1))
    a, b = (measure(s, True, True, lambda _: None) for s in (plain, scaled))
    np.testing.assert_allclose(b.piece_variance, a.piece_variance, rtol=0.02)
    np.testing.assert_allclose(b.activity_ratios, 1.1, rtol=0.01)


def test_a_wrong_name_of_a_dose_is_found():
    """Data at DRF 8 named 10, in two of three subjects."""
    lying = noise(REAL, [0, 1], (4.0, 8.0, 20.0), (4.0, 10.0, 20.0), labeled=False)
    found = effective_drfs([*lying, *noise(REAL, [2], labeled=False)], True, seed=0)
    scans = {(d.subjects, d.drf): d for d in found}
    for name, true in (("0000", 8), ("0001", 8), ("0002", 10)):
        dose = scans[(f"subject-{name}",), 10.0]
        assert dose.effective_drf == pytest.approx(true, rel=0.05)
        assert dose.interval[0] < true < dose.interval[1]
        assert dose.contradicts == (true == 8)
        for drf in (4.0, 20.0):
            honest = scans[(f"subject-{name}",), drf]
            assert honest.effective_drf == pytest.approx(drf, rel=0.05) and not honest.contradicts
    everyone = scans[("subject-0000", "subject-0001", "subject-0002"), 10.0]
    assert everyone.effective_drf == pytest.approx(26 / 3, rel=0.05)
    assert everyone.interval[0] < 8.2 and everyone.interval[1] > 9.5


def test_a_dose_with_a_wrong_name_is_left_out_of_the_counts():
    names = noise(REAL, [0], (4.0, 5.0, 20.0), names=DRFS)
    honest = pool(noise(REAL, [0], (4.0, 20.0)), SPACING)
    np.testing.assert_allclose(pool(names, SPACING).variance, honest.variance, rtol=0.1)


def test_independent_doses():
    """Of independent scans (D + 1) s^2 is left; the nested law would read the counts and DRFs wrongly."""
    scans = noise(REAL, [0, 1], labeled=True, nested=False)
    np.testing.assert_allclose(pool(scans, SPACING).variance, pool(noise(REAL, [0, 1]), SPACING).variance, rtol=0.12)
    assert {round(d.effective_drf / d.drf, 1) for d in effective_drfs(scans, False, seed=0)} == {1.0}


def test_one_low_dose_tells_no_drf():
    assert effective_drfs(noise(REAL, [0], (4.0,)), True, seed=0) == []


def test_beds_are_seen_and_none_are_invented():
    made = replace(REAL, shape=(72, 60, 160), bed_mm=96.0)
    beds = [n.axial for n in noise(made, [0], labeled=False)]
    assert bed_period_mm([a.variance for a in beds], [a.mean for a in beds], SPACING[2]) == pytest.approx(96, abs=3)
    plain = [n.axial for n in noise(replace(made, bed_mm=None), [0], labeled=False)]
    assert bed_period_mm([a.variance for a in plain], [a.mean for a in plain], SPACING[2]) is None
    # Neighbors correlate as the axial filter of 6 mm makes them: exp(-2 ln 2 z^2 / FWHM^2) at z = 3 mm.
    assert np.nanmean(plain[0].correlation[0]) == pytest.approx(math.exp(-2 * math.log(2) * 9 / 36), abs=0.02)


def test_command_fits_a_dataset_to_a_folder(tmp_path, petsim):
    real = write_folder(tmp_path / "real", replace(REAL, unit=1.0), (4.0, 8.0, 20.0), [0, 1], names=DRFS)
    records = [record(SIMULATED, (5.0, 25.0), seed, f"phantom-{seed}") for seed in (2, 3)]
    simulated = write_dataset(tmp_path / "sim", records)
    status, out, error = petsim("calibrate", "--real", real, "--sim", simulated, "--out", tmp_path / "out", "--json")
    assert status == 0 and error == ""
    result = json.loads(out.splitlines()[-1])
    assert result == json.loads((tmp_path / "out/calibration.json").read_text())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["calibration.json", "calibration.png"]
    assert (tmp_path / "out/calibration.png").read_bytes().startswith(b"\x89PNG")
    assert not NAMED.search((tmp_path / "out/calibration.json").read_text())
    assert result["real"] == "multi-dose folder" and result["nested"] is True
    assert result["fit"]["count_factor"]["value"] == pytest.approx(0.6, rel=0.07)
    assert result["fit"]["extra_fwhm_transaxial_mm"]["value"] == pytest.approx(4, abs=0.3)
    (duration,) = re.findall(r"--duration-s ([\d.]+) instead of 600", "".join(result["advice"]))
    (filter_mm,) = re.findall(r"--filter-mm ([\d.]+) instead of 3", "".join(result["advice"]))
    assert float(duration) == pytest.approx(360, rel=0.07)
    assert float(filter_mm) == pytest.approx(math.sqrt(9 + (2 * 16 + 20) / 3), abs=0.3)
    assert all(f"advice: {line}" in out for line in result["advice"])
    told = re.compile(r"(.*): the noise at DRF 10 is that of DRF (\S+) \(.*\)")
    found = [(m[1], round(float(m[2]))) for line in result["warnings"] if (m := told.fullmatch(line))]
    assert found == [("subject-0001", 8), ("subject-0002", 8), ("all subjects", 8)]
    assert [r["ratio"] for r in result["activity_over_full"]] == [pytest.approx(1, abs=0.02)] * 6
    ratios = {r["region"]: r["variance_ratio_after"] for r in result["regions"]}
    assert len(ratios) >= 2 and all(ratio == pytest.approx(1, abs=0.15) for ratio in ratios.values())
    held = {r["drf"]: r["effective_drf"] for r in result["effective_drf_at_simulated_counts"]}
    assert held[20] == pytest.approx(1 + 19 / result["fit"]["count_factor"]["value"])


def test_command_says_that_pairs_are_simulated(tmp_path, petsim):
    folder = write_dataset(tmp_path / "sim", [record(SIMULATED, (4.0, 20.0), 0, "phantom-0", mode="dose")])
    status, out, _ = petsim("calibrate", "--real", folder, "--sim", folder, "--out", tmp_path / "out")
    assert status == 0
    assert out.startswith("simulated pairs: 1 subject,") and "filter: fits" in out and "count level: fits" in out
    assert "--mode dose" in out
    status, out, _ = petsim("calibrate", "--real", folder, "--out", tmp_path / "alone", "--json")
    assert status == 0 and "fit" not in json.loads(out.splitlines()[-1])
    assert (tmp_path / "alone/calibration.png").exists()


def test_parameters_that_cannot_be_told_apart_are_named():
    found = match(pool(noise(REAL, [0]), SPACING), pool(noise(SIMULATED, [1]), SPACING), seed=0)
    assert degenerate_pairs(found) == []
    # More counts and a wider filter both lower the noise, so that one makes up for the other.
    blurred = np.array([[1.0, 0.97, 0.0], [0.97, 1.0, 0.0], [0.0, 0.0, 1.0]])
    (line,) = degenerate_pairs(replace(found, fit=replace(found.fit, covariance=blurred)))
    assert line == "count_factor and fwhm2_transaxial_mm2: correlation -0.97"


def test_noise_without_a_band_is_refused():
    smooth = pool(noise(replace(SIMULATED, fwhm_mm=(24.0, 24.0, 24.0)), [0]), SPACING)
    with pytest.raises(DataError, match="too few spatial frequencies"):
        match(smooth, smooth, seed=0)


def test_bad_input_gives_one_line_and_no_files(tmp_path, petsim):
    made = replace(SIMULATED, shape=TINY, half_axes_mm=(40.0, 35.0), center_mm=(0.0, 0.0))

    def fails(folder, *words):
        status, _, error = petsim("calibrate", "--real", folder, "--out", tmp_path / "out")
        one_line(status, error, 1, *words)
        assert not NAMED.search(error)
        assert not (tmp_path / "out").exists()

    fails(tmp_path / "absent", "no such folder")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "no subject with a full and a lower dose")
    alone = write_dataset(tmp_path / "full only", [record(made, (), 0, "phantom-0")])
    fails(alone, "no subject with a lower dose", "--drf")
    _, images = ladder(made, (4.0,), 0)
    for name, low, spacing, words in (
        ("voxels", images[4.0], (3.0, 2.5, 3.0), "DRF 4 has (40, 36, 32) voxels of 3 x 2.5 x 3 mm"),
        ("shape", images[4.0][1:], SPACING, "voxels of 2.5 x 2.5 x 3 mm"),
        ("nan", np.where(images[4.0] > 1, np.nan, images[4.0]), SPACING, "NaN"),
        ("same", images[1.0], SPACING, "are the same"),
        ("nothing", 0 * images[4.0], SPACING, "no activity"),
    ):
        write_nifti(tmp_path / name / "one" / "full_dose.nii", images[1.0])
        write_nifti(tmp_path / name / "one" / "drf4.nii", low, spacing)
        fails(tmp_path / name, words)
    for k, spacing in enumerate((SPACING, (2.0, 2.0, 2.0))):
        for drf, image in images.items():
            write_nifti(tmp_path / "mixed" / f"Jane Doe {k}" / f"drf{drf:g}.nii", image, spacing)
    fails(tmp_path / "mixed", "subject-0002: voxels of 2 x 2 x 2 mm", "one scanner")


def test_what_serves_no_figure_of_noise_is_left_out_or_refused(tmp_path, petsim):
    made = record(SIMULATED, (4.0, 20.0), 0, "phantom-0")
    cut = replace(made, name="phantom-1", provenance=made.provenance | {"source": {"truncated_fov": True}})
    folder = write_dataset(tmp_path / "sim", [made, cut])
    status, out, _ = petsim("calibrate", "--real", folder, "--out", tmp_path / "out")
    assert status == 0 and out.startswith("simulated pairs: 1 subject,")
    assert "warning: phantom-1 was left out: its body is cut off at the sides of the image" in out
    alone = write_dataset(tmp_path / "cut", [cut])
    status, _, error = petsim("calibrate", "--real", alone, "--out", tmp_path / "no")
    one_line(status, error, 1, "cut off at the sides")
    real = write_dataset(tmp_path / "measured", [replace(made, provenance=made.provenance | {"full_dose": "measured"})])
    status, _, error = petsim("calibrate", "--real", folder, "--sim", real, "--out", tmp_path / "no")
    one_line(status, error, 1, "--sim: measured holds real scans")
    assert not (tmp_path / "no").exists()
