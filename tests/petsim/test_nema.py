"""The virtual NEMA bench: its estimators, and ours against published, with every miss named."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_recipes.errors import UsageError
from petsim.cli import Nema, parse
from petsim.geometry.scanner import load_scanner, scanner_names
from petsim.nema import TESTS, Figure, as_json, run_tests, table
from petsim.nema.count_rate import SAME_DETECTORS, draw
from petsim.nema.scatter_fraction import BED_G_CM2, BED_MM, RADIUS_MM, measure, phantom
from petsim.physics.rates import CHOSEN_ON, LIGHT_SHARING, TAU_AREA_US_CM2, count_rates
from petsim.physics.sensitivity import closed_form_sensitivity, sensitivity

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "nema.json"

SENSITIVITY = 0.10
SENSITIVITY_MISSES = {
    # The RF coil inside the ring is not modeled: 1 g/cm2 more in the bore would give 1.00. 21 is the vendor's figure (also
    # in doi 10.1186/s40658-019-0247-x).
    "signa_pet_mr": 1.15,
    # Energy is summed over a tile of 8 x 8 crystals: an assumption. 4 x 4 would give 0.96, single crystals 0.55.
    "vereos": 1.15,
    # Ring of which only the length, and the radius by inference, are known. A line of 200 cm has 0.53 of the sensitivity of
    # one of 70 cm (published 0.515).
    "umi_panorama_gs": 1.115,
    # As the Vereos; gaps of 7.6 cm. Published for equal detectors: 55 here, but 78 with twice the rings and gaps, where
    # geometry alone gives 2.2 times.
    "pennpet_3seg": 0.89,
    # Not the acceptance: closing the gaps gains 1.97 (published 1.8), a line of 142 cm 46 % of counts (published 47 %).
    # Photons are lost, 18 % of them; the trigger of the digital sensors is not modeled.
    "pennpet_6ring": 1.50,
}
"""Ours / published outside the target, for scanners with silicon photomultipliers and a verified sensitivity."""

SCATTER, SCATTER_WISHED = 0.05, 0.03
SCATTER_ABOVE_WISHED = {"biograph_vision_600", "discovery_mi_3ring", "signa_pet_mr"}
"""Scatter fractions 3 to 5 points below the published ones."""

NECR = 0.20
BLOCKS_ALONE = {"biograph_vision_quadra": 0.80, "biograph_vision_quadra_322": 0.80}
"""Ours / published of long scanners if dead blocks are to explain the activity of their peak. 0.82 without 176Lu, 0.81 with
a window of 4.2 ns, 0.84 with 3.5 ns (its own is not published); 0.98 with the blocks of the Vision 600 and a link."""

GLOBAL_MISSES = {
    "biograph_mmr": 0.61, "discovery_690": 0.75, "discovery_mi_4ring": 0.80, "umi_panorama_gs": 0.67,
}  # fmt: skip
"""Ours / published peak with the global dead time, outside 20 %, for scanners that it was not chosen on."""


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def ratios(results, figure, wanted):
    """Ours / published of the scanners with a verified figure that are wanted."""
    found = {}
    for name, scanner in results["scanners"].items():
        if figure in scanner["verified"] and wanted(name):
            found[name] = scanner["ours"][figure] / scanner["published"][figure]
    return found


def without_light_sharing(name):
    return load_scanner(name).photosensor not in LIGHT_SHARING


def check(found, target, misses):
    """All inside the target but the named ones, and those near what is named."""
    outside = {name: ratio for name, ratio in found.items() if abs(ratio - 1) > target}
    assert set(outside) == set(misses), outside
    for name, ratio in outside.items():
        assert ratio == pytest.approx(misses[name], abs=0.03), name


def test_the_results_are_those_of_this_library(results):
    assert list(results["scanners"]) == scanner_names()
    assert results["tau_area_us_cm2"] == TAU_AREA_US_CM2 and tuple(results["chosen_on"]) == CHOSEN_ON
    assert results["chosen"] == pytest.approx(TAU_AREA_US_CM2, rel=0.05)
    for name, scanner in results["scanners"].items():
        for figure, published in scanner["published"].items():
            field = figure.removesuffix("_at_published_activity").removesuffix("_behind_a_link")
            assert published == getattr(load_scanner(name), field, None)


def test_sensitivity_meets_its_target(results):
    found = ratios(results, "sensitivity_cps_per_kbq", without_light_sharing)
    assert len(found) >= 12
    check(found, SENSITIVITY, SENSITIVITY_MISSES)


def test_light_sharing_loses_photons(results):
    """Not predicted: mCT and mMR, by 10 and 19 % of the photons; the Discovery 690 hardly needs it."""
    kept = {n: s["ours"]["photons_kept_by_light_sharing"] for n, s in results["scanners"].items()
            if "photons_kept_by_light_sharing" in s["ours"]}  # fmt: skip
    assert kept == pytest.approx({"biograph_mct": 0.90, "biograph_mmr": 0.81, "discovery_690": 0.985}, abs=0.015)
    assert all("peak_necr_kcps" in results["scanners"][n]["calibrated"] for n in kept)


def test_scatter_fraction_meets_its_target(results):
    found = {n: s["deviation"]["scatter_fraction"] for n, s in results["scanners"].items()
             if s["deviation"]["scatter_fraction"] is not None}  # fmt: skip
    assert len(found) >= 13
    assert all(abs(d) < SCATTER for d in found.values()), found
    assert {n for n, d in found.items() if abs(d) > SCATTER_WISHED} == SCATTER_ABOVE_WISHED
    # The standard's estimator misses scatter that peaks under the line.
    for scanner in results["scanners"].values():
        assert 0.005 < scanner["true_scatter_fraction"] - scanner["ours"]["scatter_fraction"] < 0.035


def test_peak_necr_at_the_published_activity_meets_its_target(results):
    """One calibrated number each: the dead time, or the link of long scanners, whose dead time is that of the short one."""
    blocks, link = "peak_necr_kcps_at_published_activity", "peak_necr_kcps_behind_a_link"
    alone = ratios(results, blocks, lambda name: True)
    assert len(alone) >= 9 and all(blocks in results["scanners"][n]["calibrated"] for n in alone)
    check({n: r for n, r in alone.items() if n not in SAME_DETECTORS}, NECR, {})
    check({n: alone[n] for n in SAME_DETECTORS}, NECR, BLOCKS_ALONE)
    linked = ratios(results, link, lambda name: True)
    assert set(linked) == set(SAME_DETECTORS) and all(link in results["scanners"][n]["calibrated"] for n in linked)
    check(linked, NECR, {})
    # One piece of hardware: both peaks were published at one activity, where the singles are the same.
    limits = [results["scanners"][n]["ours"]["link_singles_kcps"] for n in SAME_DETECTORS]
    assert limits[0] == pytest.approx(limits[1], rel=0.02)


def test_peak_necr_with_the_global_dead_time_is_scored_on_the_other_half(results):
    found = ratios(results, "peak_necr_kcps", lambda name: name not in CHOSEN_ON)
    assert len(found) >= 5
    check(found, NECR, GLOBAL_MISSES)


@pytest.mark.parametrize("name", ["biograph_vision_quadra", "omni_legend_32", "discovery_mi_4ring"])
def test_the_bench_still_gives_the_kept_results(name, results):
    """A short run of the code as it is against the long one that is kept."""
    scanner, kept = load_scanner(name), results["scanners"][name]["ours"]
    share = kept["sensitivity_cps_per_kbq"] / 1000 / 0.9686
    assert sensitivity(scanner, 200_000, 1) == pytest.approx(
        kept["sensitivity_cps_per_kbq"], rel=4 / math.sqrt(200_000 * share)
    )
    short = measure(scanner, 500_000, 1)
    sigma = 1.4 * math.sqrt(kept["scatter_fraction"] / short.coincidences)
    assert short.response.scatter_fraction == pytest.approx(kept["scatter_fraction"], abs=4 * sigma)
    response = measure(scanner, 500_000, 1).response
    assert response.pairs.sum() == pytest.approx(1) and response.random_pairs.sum() == pytest.approx(1)
    peak = count_rates(scanner, response).peak()
    assert peak == pytest.approx((kept["peak_necr_kbqml"], kept["peak_necr_kcps"]), rel=0.12)


@pytest.mark.parametrize("name", ["biograph_vision_quadra", "omni_legend_32", "umi_550", "biograph_mmr", "signa_pet_mr"])
def test_the_closed_form_agrees_with_the_monte_carlo(name, results):
    """shared/reference/physics.md, section 1: within 5 % (7 % for the mCT, 24 % with the gaps of the PennPET)."""
    kept = results["scanners"][name]["ours"]["sensitivity_cps_per_kbq"]
    assert closed_form_sensitivity(load_scanner(name), 50_000) == pytest.approx(kept, rel=0.05)


def test_the_phantom():
    grid, activity, mu = phantom()
    x, y, z = (grid.axis_mm(i) for i in range(3))
    assert grid.extent_mm[2] == 700 and np.allclose(grid.center_mm[::2], 0)
    assert np.argwhere(activity.sum(axis=2)).tolist() == [[np.argmin(np.abs(x)), np.argmin(np.abs(y + 45))]]
    assert y[np.argmin(np.abs(y + 45))] == pytest.approx(-45)
    area = grid.spacing_mm[0] * grid.spacing_mm[1] / 100
    above = y > -RADIUS_MM + 2
    bed = mu[:, y < -RADIUS_MM - 2, 0].sum() * area
    assert mu[:, above, 0].sum() * area == pytest.approx(0.0945 * math.pi * 10.15**2, rel=0.01)
    assert bed == pytest.approx(0.0945 / 0.96 * BED_G_CM2 * BED_MM[0] / 10, rel=0.15)
    assert np.ptp(mu, axis=2).max() == 0 and z[0] == -300


def test_figures_and_deviations():
    ratio = Figure("a", 11.0, 10.0, source="somewhere", verified=True)
    points = Figure("b", 0.37, 0.40, point=0.01, source="elsewhere")
    alone = Figure("c", 3.0, kind="calibrated")
    assert ratio.deviation == pytest.approx(0.1) and points.deviation == pytest.approx(-0.03) and alone.deviation is None
    text = table([ratio, points, alone])
    assert "+10.0 %" in text and "-3.0 pt" in text and "elsewhere (not verified)" in text and "calibrated" in text
    written = as_json(load_scanner("vereos"), [ratio, points, alone])
    assert written["calibrated"] == ["c"] and written["verified"] == ["a"] and written["published"]["c"] is None
    json.dumps(written)


def test_command_line(tmp_path):
    """Last line is JSON, curves and picture are written; help and parsing import neither numba nor matplotlib."""
    run = [sys.executable, "-c", "from petsim.cli import main; main()"]
    arguments = ["nema", "--scanner", "omni_legend_32", "--decays", "100000", "--json", "--out", str(tmp_path / "out")]
    done = subprocess.run([*run, *arguments], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"scanner", "ours", "published", "deviation", "is_met", "calibrated", "verified"}
    assert set(result["ours"]) == set(result["published"]) == set(result["deviation"])
    assert result["deviation"]["sensitivity_cps_per_kbq"] == pytest.approx(
        result["ours"]["sensitivity_cps_per_kbq"] / 47.3 - 1
    )
    assert "47.3" in done.stdout and "Yamagishi" in done.stdout
    picture = tmp_path / "out" / "omni_legend_32_count_rate.png"
    assert picture.read_bytes()[:4] == b"\x89PNG"
    curves = np.loadtxt(picture.with_suffix(".csv"), delimiter=",", skiprows=1)
    np.testing.assert_allclose(curves[:, 1], curves[:, 2:5].sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(curves[1:, 5], curves[1:, 2] ** 2 / curves[1:, 1], rtol=1e-4)
    code = "import sys, petsim.cli; petsim.cli.parse(['nema']); print({'numba', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_a_scanner_without_published_figures_still_runs():
    """Nothing to compare with, and nothing to calibrate on."""
    scanner = load_scanner("vereos")
    figures = {f.name: f for f in run_tests(scanner, ["scatter", "count-rate"], 50_000)}
    assert figures["peak_necr_kcps"].published is None and "tau_area_us_cm2" not in figures
    assert draw(scanner, count_rates(scanner, measure(scanner, 50_000, 0).response)).get_axes()


def test_wrong_requests_are_one_clear_line(tmp_path):
    scanner = load_scanner("vereos")
    taken = tmp_path / "file"
    taken.write_text("")
    for names, decays, out in ((["speed"], None, None), (["scatter"], 10, None), (["scatter"], None, taken / "under")):
        with pytest.raises(UsageError) as raised:
            run_tests(scanner, names, decays, 0, out)
        assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="--test"):
        parse(["nema", "--test", "speed"])
    assert isinstance(parse(["nema", "--test", "sensitivity"]), Nema)
    assert {"sensitivity", "scatter", "count-rate"} <= set(TESTS)
