"""Several bed positions: where and when they are, and how images are knitted, against answers by hand."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import petsim
from data_recipes.errors import DataError, UsageError
from data_recipes.phantoms.analytic import cylinder
from data_recipes.resample import resample
from petsim import cli
from petsim.bed_simulation import _Around, simulate_beds, sum_rows, true_counts
from petsim.beds import activity_extent_mm, axial_sensitivity, count_beds, knit, knitting_weights, margin_of, plan_beds
from petsim.cache.store import SubjectFile
from petsim.dataset import Request, check_request, make_dataset
from petsim.dose import DoseLadder
from petsim.fresh import Paths, origins
from petsim.geometry.scanner import load_scanner
from petsim.plan import plan_subject
from petsim.preview import preview
from petsim.reconstruct import Surroundings
from petsim.report import _scan_facts
from petsim.settings import ReadOptions, SimulationSettings
from petsim.simulation import Simulation
from petsim.verify import verify
from tests import kill_driver

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")
SETTINGS = SimulationSettings(
    scanner=SMALL, preset="fast", drf=(4.0, 20.0), voxel_mm=12.0, iterations=2, rays=1, duration_s=300.0, scatter="none",
    randoms="none", corrections="oracle", efficiency_spread=0.0, beds="auto", bed_overlap=0.25, fov_mm=240.0,
)  # fmt: skip
LENGTH_MM = 128.0  # of the scanner


def body(length_mm=300.0, isotope="C-11", **changes):
    subject = cylinder(radius_mm=80.0, length_mm=length_mm, bqml=2000.0, spacing_mm=(8.0, 8.0, 8.0))
    injection = replace(subject.injection, isotope=isotope, uptake_s=100.0)
    return replace(subject, injection=injection, **changes)


@pytest.fixture(scope="module")
def scan():
    return plan_beds(body(), SETTINGS)


@pytest.fixture(scope="module")
def result(scan) -> Simulation:
    return simulate_beds(scan, SETTINGS)


def inside(grid, radius_mm=50.0):
    return np.hypot(grid.axis_mm(0)[:, None], grid.axis_mm(1)[None, :]) < radius_mm


@pytest.mark.parametrize(
    ("extent", "step", "beds"), [(90, 75, 1), (100, 75, 1), (101, 75, 2), (175, 75, 2), (176, 75, 3), (250, 75, 3)]
)
def test_positions_are_as_few_as_cover_the_subject(extent, step, beds):
    assert count_beds(extent, 100.0, step) == beds


def test_the_extent_is_that_of_the_activity_not_of_the_image():
    subject = body()
    activity = np.zeros(subject.grid.shape, np.float32)
    activity[10:14, 10:14, 5:20] = 1.0
    activity[0, 0, 30] = 0.1  # less than 1 % of the 16 of a slice
    z = subject.grid.axis_mm(2)
    assert activity_extent_mm(replace(subject, activity_bqml=activity)) == (z[5] - 4, z[19] + 4)


def test_positions_overlap_evenly_around_the_middle_and_cover_all(scan):
    centers = np.array([bed.plan.center_mm[2] for bed in scan.beds])
    assert len(centers) == 3 and centers.sum() == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(np.diff(centers), (1 - scan.overlap) * LENGTH_MM)
    assert scan.overlap == pytest.approx(0.25, abs=0.5 * scan.grid.spacing_mm[2] / LENGTH_MM)
    low, high = scan.extent_mm
    assert centers[0] - LENGTH_MM / 2 <= low and high <= centers[-1] + LENGTH_MM / 2
    for bed in scan.beds:
        part = bed.plan.grid
        np.testing.assert_allclose(part.axis_mm(2), scan.grid.axis_mm(2)[bed.first : bed.first + part.shape[2]])
        assert part.center_mm == pytest.approx(bed.plan.center_mm) and part.extent_mm[2] == pytest.approx(LENGTH_MM)


def test_each_position_begins_when_the_one_before_has_ended(scan):
    """C-11: half of it is gone after 1221.7 s."""
    for k, bed in enumerate(scan.beds):
        assert bed.start_s == 300.0 * k
        assert bed.decay == pytest.approx(0.5 ** (300.0 * k / 1221.7))
        started = bed.started().subject
        assert started.injection.uptake_s == 100.0 + 300.0 * k
        np.testing.assert_allclose(started.activity_bqml, scan.subject.activity_bqml * bed.decay, rtol=1e-6)


def test_a_named_number_of_positions_lies_around_the_middle(scan):
    two = plan_beds(body(), replace(SETTINGS, beds=2))
    assert [bed.plan.center_mm[2] for bed in two.beds] == pytest.approx([-48.0, 48.0], abs=4)
    assert any("cover" in w for w in two.warnings) and not scan.warnings
    with pytest.raises(UsageError, match="4 positions are more than the 3"):
        plan_beds(body(), replace(SETTINGS, beds=4))
    assert len(plan_beds(body(length_mm=60.0), SETTINGS).beds) == 1


def test_the_overlap_of_the_scanners_protocol_is_the_default():
    scanner = replace(load_scanner(SMALL), protocol_bed_overlap=0.5)
    own = plan_beds(body(), replace(SETTINGS, bed_overlap=None), scanner)
    assert own.overlap == pytest.approx(0.5, abs=0.05) and len(own.beds) == 4


def test_sensitivity_falls_to_the_ends_as_a_triangle_or_has_a_plateau(scan):
    """All ring pairs on a short scanner: their number falls linearly from the middle. Few ring differences: it is flat."""
    plan = replace(scan.beds[0].plan)
    z = plan.grid.axis_mm(2) - plan.center_mm[2]
    triangle = 1 - np.abs(z) / (LENGTH_MM / 2)
    off = (np.abs(z) > 12) & (np.abs(z) < 50)
    profile = axial_sensitivity(plan)
    assert profile.max() == 1
    np.testing.assert_allclose(profile, profile[::-1], rtol=1e-6)
    np.testing.assert_allclose(profile[off] / profile[off].max(), triangle[off] / triangle[off].max(), atol=0.05)
    near = axial_sensitivity(replace(plan, scanner=replace(plan.scanner, max_ring_difference=3)))
    np.testing.assert_allclose(near[np.abs(z) < 30], 1, atol=0.08)


PROFILE = np.array([0.2, 0.6, 1.0, 0.6, 0.2])
FIRSTS = [0, 3, 6]


def test_weights_sum_to_one_and_follow_counts():
    weights = knitting_weights(PROFILE, FIRSTS, 11, [1.0, 0.5, 0.25])
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    np.testing.assert_allclose(weights[:, :3], np.outer([1, 0, 0], np.ones(3)))
    # Slice 3: 0.6 of the first at full strength against 0.2 of the second at half.
    np.testing.assert_allclose(weights[:, 3], [0.6 / 0.7, 0.1 / 0.7, 0])
    np.testing.assert_allclose(weights[:, 4], [0.2 / 0.5, 0.3 / 0.5, 0])


def test_end_slices_count_only_where_they_are_alone():
    weights = knitting_weights(PROFILE, FIRSTS, 11, [1.0, 1.0, 1.0], margin=1)
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    np.testing.assert_allclose(weights[:, 3], [1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(weights[:, 4], [0, 1, 0], atol=1e-5)
    assert weights[0, 0] == 1 and weights[2, 10] == 1


def test_the_variance_of_knitted_images_is_the_least_that_weights_can_give():
    """Variance of an image in proportion to 1 / counts: that of the best mean is 1 / (sum of counts)."""
    decays = np.array([1.0, 0.8, 0.64])
    weights = knitting_weights(PROFILE, FIRSTS, 11, decays)
    counts = np.zeros((3, 11))
    for row, first, decay in zip(counts, FIRSTS, decays, strict=True):
        row[first : first + 5] = decay * PROFILE
    variance = np.divide(1, counts, out=np.zeros_like(counts), where=counts > 0)
    knitted = (weights**2 * variance).sum(axis=0)
    np.testing.assert_allclose(knitted, 1 / counts.sum(axis=0))
    both = (counts > 0).sum(axis=0) == 2
    assert np.all(knitted[both] < np.where(counts > 0, variance, np.inf).min(axis=0)[both])


def test_uniform_images_are_knitted_to_a_uniform_one():
    weights = knitting_weights(PROFILE, FIRSTS, 11, [1.0, 0.7, 0.5], margin=1)
    images = [np.full((2, 3, 4, 5), 7.0, np.float32) for _ in FIRSTS]
    np.testing.assert_allclose(knit(images, weights, FIRSTS), 7.0, rtol=1e-6)
    assert knit(images, weights, FIRSTS).shape == (2, 3, 4, 11)


def test_a_uniform_cylinder_is_uniform_across_the_borders_in_spite_of_decay(result):
    body_slices = np.abs(result.grid.axis_mm(2)) < 120
    means = result.noise_free[inside(result.grid)].mean(axis=0)[body_slices]
    assert means.mean() == pytest.approx(2000, rel=0.02)
    np.testing.assert_allclose(means / means.mean(), 1, atol=0.03)


def test_counts_are_sums_and_fall_with_the_decay(result):
    """The first and the last position see mirror images of each other."""
    table = result.provenance["beds"]["table"]
    for k, row in enumerate(result.counts):
        parts = [bed["counts"][k] for bed in table]
        for name in ("prompts", "trues", "scatter", "randoms"):
            assert row[name] == sum(p[name] for p in parts)
        assert row["nec"] == pytest.approx(row["prompts"], rel=0.05)  # trues only
    first, _, last = (bed["counts"][0]["prompts"] for bed in table)
    expected = 0.5 ** (600 / 1221.7)
    assert abs(last / first / expected - 1) < 5 * np.sqrt(1 / first + 1 / last)


def test_noise_equivalent_counts_are_those_of_all_counts_together():
    def row(trues, others, prompts):
        return {"drf": 1.0, "realization": 0, "mode": "thin", "seed": 0, "prompts": prompts, "trues": trues,
                "scatter": others, "randoms": 0, "nec": trues**2 / (trues + others)}  # fmt: skip

    assert true_counts(row(300, 100, 401)) == pytest.approx(300)
    (total,) = sum_rows([[row(300, 100, 401)], [row(100, 300, 398)]])
    assert total["prompts"] == 799 and total["nec"] == pytest.approx(400**2 / 800)


def test_every_position_has_noise_of_its_own(scan):
    keys = {DoseLadder((1.0,), 0, bed.plan.noise_name, 0).key for bed in scan.beds}
    assert len(keys) == 3
    assert plan_subject(body(60.0), replace(SETTINGS, beds=None, bed_overlap=None)).noise_name == "cylinder"


def test_a_dose_does_not_depend_on_the_others(scan, result):
    alone = simulate_beds(scan, replace(SETTINGS, drf=(20.0,)))
    np.testing.assert_array_equal(alone.images[1], result.images[2])
    assert alone.counts[1]["prompts"] == result.counts[2]["prompts"]


def test_noise_is_inserted_into_a_measured_scan():
    source = body(isotope="F-18", is_noisy=True, fwhm_mm=(8.0, 8.0, 8.0))
    settings = replace(SETTINGS, full_dose="source", drf=(4.0,), duration_s=20.0)
    made = simulate_beds(plan_beds(source, settings), settings)
    assert made.noise_free is None and made.provenance["full_dose"] == "source"
    here = inside(made.grid, 110.0)
    truth = resample(source.activity_bqml, source.grid, made.grid)
    np.testing.assert_array_equal(made.images[0, 0][here], truth[here])
    added = (made.images[1, 0] - made.images[0, 0])[inside(made.grid)][:, np.abs(made.grid.axis_mm(2)) < 120]
    assert abs(added.mean()) < 0.02 * 2000 and added.std() > 0.01 * 2000


def test_what_lies_around_a_position_comes_from_the_knitted_image(scan, result):
    images = [result.images[..., bed.first : bed.first + bed.plan.grid.shape[2]] for bed in scan.beds]
    rough = [
        replace(result, images=image * bed.decay, noise_free=None) for image, bed in zip(images, scan.beds, strict=True)
    ]
    firsts, decays = [bed.first for bed in scan.beds], [bed.decay for bed in scan.beds]
    weights = knitting_weights(axial_sensitivity(scan.beds[0].plan), firsts, scan.grid.shape[2], decays, 1)
    around = _Around(scan, rough, weights / np.array(decays)[:, None]).of(1, 0)
    assert around.grid.shape == scan.grid.shape and around.first == scan.beds[1].first
    np.testing.assert_allclose(around.activity_bqml, result.images[:, 0] * scan.beds[1].decay, rtol=1e-4, atol=1e-2)
    held = around.holding(np.full((3, *scan.beds[1].plan.grid.shape), -1.0, np.float32))
    own = slice(around.first, around.first + scan.beds[1].plan.grid.shape[2])
    assert np.all(held[..., own] == -1)
    np.testing.assert_array_equal(np.delete(held, own, axis=3), np.delete(around.activity_bqml, own, axis=3))
    assert isinstance(around, Surroundings)


def test_estimated_scatter_takes_a_rough_pass_over_all_positions_first(scan, result, monkeypatch):
    calls = []

    def simulated(plan, settings, budget_bytes, progress, around=None):
        calls.append((plan.bed, plan.preset.iterations, None if around is None else around(0)))
        shape = (len(settings.ladder()), 1, *plan.grid.shape)
        found = {"scatter_scales": [{"scale": 1.0 + plan.bed, "how": how, "counts": 10.0, "deviation": 0.1}
                                    for how in ("fitted", "fallback" if plan.bed else "fitted", "fitted")],
                 "estimated_minus_true": {"mu_per_cm": 3.0, "normalization": 0.0, "singles": [0.1, 0.2, 0.3]}}  # fmt: skip
        told = {**result.provenance, "warnings": [], "reconstruction": {"by_realization": [found], "from_events_drf": []}}
        return replace(result, images=np.full(shape, 100.0 + plan.bed, np.float32), noise_free=None, provenance=told,
                       counts=[dict(row) for row in result.counts])  # fmt: skip

    monkeypatch.setattr("petsim.bed_simulation.simulate_plan", simulated)
    settings = replace(SETTINGS, scatter="simulated", corrections="estimated", iterations=4)
    made = simulate_beds(plan_beds(body(), settings), settings)
    assert [(bed, iterations) for bed, iterations, _ in calls] == [(0, 2), (1, 2), (2, 2), (0, 4), (1, 4), (2, 4)]
    assert [around is None for _, _, around in calls] == [True] * 3 + [False] * 3
    # What lies around the first, at its start: the others' activity, of which less was left when they began.
    first = calls[3][2]
    np.testing.assert_allclose(first.activity_bqml[..., -1], 102 / scan.beds[2].decay, rtol=1e-5)
    (found,) = made.provenance["reconstruction"]["by_realization"]
    assert [s["how"] for s in found["scatter_scales"]] == ["fitted", "fallback", "fitted"]
    assert found["scatter_scales"][0]["scale"] == pytest.approx(2.0) and found["scatter_scales"][0]["counts"] == 30
    assert found["estimated_minus_true"]["singles"] == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.slow
def test_a_short_scanner_leaves_no_seams_and_less_noise_in_overlaps():
    """Photons from beyond a position's ends scatter into it: unknown, they made the ends 11 % too hot.

    At the same distance from the middle of a position two of equal counts leave half of the variance.
    """
    settings = SimulationSettings(scanner="discovery_mi_4ring", preset="fast", drf=(4.0,), beds="auto", bed_overlap=0.25,
                                  photons=100_000, fov_mm=300.0, rays=1)  # fmt: skip
    subject = cylinder(radius_mm=100.0, length_mm=480.0)
    made = simulate_beds(plan_beds(subject, settings), settings)
    z = np.abs(made.grid.axis_mm(2))
    means = made.noise_free[inside(made.grid, 70.0)].mean(axis=0)[z < 200]
    np.testing.assert_allclose(means / means.mean(), 1, atol=0.03)
    noise = (made.images[1, 0] - made.images[0, 0])[inside(made.grid, 70.0)].var(axis=0)
    assert noise[(z > 65) & (z < 85)].mean() / noise[(z > 215) & (z < 235)].mean() == pytest.approx(0.5, abs=0.2)


def test_from_a_notebook():
    settings = {"beds": 2, "bed_overlap": 0.25, "voxel_mm": None}
    made = petsim.simulate(body(200.0), SMALL, drf=[4], duration_s=1.0, iterations=1, rays=1, scatter="none", fov_mm=240.0,
                           randoms="none", corrections="oracle", beds=settings["beds"], bed_overlap=0.25)  # fmt: skip
    assert len(made.provenance["beds"]["table"]) == 2
    with pytest.raises(UsageError, match="keep_sinograms"):
        petsim.simulate(body(200.0), SMALL, beds="auto", keep_sinograms=True)


@pytest.fixture(scope="module")
def made_and_told(tmp_path_factory):
    """A dataset of one subject in two positions, and what --dry-run said of it."""
    folder = tmp_path_factory.mktemp("beds") / "set"
    with pytest.MonkeyPatch.context() as patch:
        import data_recipes.phantoms.whole_body as module

        patch.setattr(module, "whole_body", module.whole_body)
        kill_driver.coarse_patients()
        request = kill_driver.request(str(folder))
        settings = replace(request.settings, slab_mm=None, beds=2, bed_overlap=0.3, randoms="simulated", photons=5000,
                           corrections="estimated")  # fmt: skip
        request = replace(request, subjects=1, settings=settings)
        told = preview(request)
        make_dataset(request)
    return folder, told


@pytest.fixture
def dataset(made_and_told) -> Path:
    return made_and_told[0]


def test_a_dry_run_counts_all_positions(made_and_told):
    folder, told = made_and_told
    with SubjectFile(next(folder.glob("*.h5"))) as f:
        prompts = f.doses()["prompts"][:, 0]
        assert told["beds"] == 2 and told["grid"]["shape"] == list(f.shape)
    assert told["expected_prompts"]["1"] == pytest.approx(prompts[0], rel=0.05)
    assert told["expected_prompts"]["4"] == pytest.approx(prompts[1], rel=0.05)


def test_a_dataset_of_bed_positions_verifies_and_is_reported(dataset):
    assert verify(dataset)["problems"] == []
    with SubjectFile(next(dataset.glob("*.h5"))) as f:
        told = f.json("provenance")["beds"]
        assert len(told["table"]) == 2 and told["table"][1]["start_s"] == 1.0
        np.testing.assert_allclose(np.sum(told["weights"], axis=0), 1, atol=2e-4)
        sums = [sum(bed["counts"][k]["prompts"] for bed in told["table"]) for k in range(3)]
        np.testing.assert_array_equal(f.doses()["prompts"][:, 0], sums)
        assert f.array("reference/noise_free").shape == f.shape
        assert f.json("configuration")["beds"] == 2
        facts = dict(_scan_facts(SimpleNamespace(provenance=f.json("provenance"))))
    assert facts["Scan"].startswith("2 bed positions that overlap by 25 %")


def test_fresh_realizations_are_refused(dataset):
    with pytest.raises(DataError, match="--beds"):
        origins(dataset, Paths(), split="train")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"center_mm": 0.0}, "--center-mm"),
        ({"slab_mm": 50.0}, "--slab"),
        ({"counts": 1e6}, "--duration-s"),
        ({"beds": None}, "--bed-overlap"),
        ({"beds": 0}, "--beds"),
        ({"bed_overlap": 0.95}, "--bed-overlap"),
        ({"grid": "cube"}, "--grid"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize("save", ["sinogram", "listmode"])
def test_counts_of_bed_positions_cannot_be_stored(save):
    with pytest.raises(UsageError, match="--save"):
        check_request(Request("x", settings=SETTINGS, save=("recon", save)))


def test_raw_data_have_their_positions_already(tmp_path):
    path = tmp_path / "scan.lm.h5"
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="--beds"):
        check_request(Request("x", sources=(str(path),), settings=SETTINGS, read=ReadOptions()))


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("3", 3)])
def test_positions_on_the_command_line(text, value):
    settings = cli.request_of(cli.parse(["make-dataset", "--beds", text, "--bed-overlap", "0.3"])).settings
    assert settings.beds == value and settings.bed_overlap == 0.3
    with pytest.raises(UsageError, match="--beds"):
        cli.request_of(cli.parse(["make-dataset", "--beds", "many"]))


def test_the_provenance_is_json(result):
    assert json.loads(json.dumps(result.provenance))["beds"]["order"].startswith("from the feet")


def test_end_slices_are_those_that_blur_reaches(scan):
    plan = scan.beds[0].plan
    reach = np.hypot(plan.preset.filter_mm, 8.0)
    assert (margin_of(plan) - 1) * plan.grid.spacing_mm[2] < reach <= margin_of(plan) * plan.grid.spacing_mm[2]
