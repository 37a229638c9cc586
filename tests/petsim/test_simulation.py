"""Counts, noise and images of whole simulations against what physics demands."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import petsim
from data_recipes.contour import with_mu
from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from data_recipes.isotopes import effective_seconds, isotope
from data_recipes.phantoms.analytic import cylinder, line_source
from data_recipes.phantoms.whole_body import whole_body
from data_recipes.readers.read import read_source
from data_recipes.subject import Injection
from petsim import counts
from petsim.counts import draw_thinned, storage
from petsim.dose import DoseLadder
from petsim.model import build_model, expected_total
from petsim.noise import noise_region, sphere
from petsim.physics.attenuation import survival
from petsim.physics.normalization import crystal_efficiencies, normalization
from petsim.plan import plan_subject
from petsim.realizations import Realizations
from petsim.settings import SimulationSettings
from petsim.simulation import add_figures, insert_noise, simulate_plan

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")


@pytest.mark.parametrize("scanner", ["biograph_mmr", "biograph_vision_600", "biograph_vision_quadra"])
def test_a_70_cm_line_source_gives_the_published_sensitivity(scanner):
    """Through projector, gaps, acceptance and solid angle: within 2 % of the NEMA figure (the issue's bar).

    The source is 30 mm thick, wider than the distance of merged LORs, so that no sampling error of theirs enters.
    """
    settings = SimulationSettings(
        scanner=scanner, preset="fast", center_mm=0.0, duration_s=1.0, scatter="none", randoms="none"
    )
    source = line_source(diameter_mm=30.0)
    plan = plan_subject(source, settings)
    rate = expected_total(build_model(plan, settings), every=5)
    assert abs(rate / (source.total_mbq() * 1e3) / plan.scanner.sensitivity_cps_per_kbq - 1) < 0.02


def test_counts_follow_duration_decay_and_branching():
    """Integral of exp(-lambda t) over the frame; Ga-68 has fewer positrons a decay and a shorter half-life."""
    fluorine, gallium = isotope("F-18"), isotope("Ga-68")
    assert effective_seconds(fluorine, 1.0) == pytest.approx(1.0, rel=1e-4)
    half_life = gallium.half_life_s
    expected = half_life / np.log(2) * 0.5 * gallium.branching / fluorine.branching
    assert effective_seconds(gallium, half_life) == pytest.approx(expected, rel=1e-9)


def test_survival_through_20_cm_of_tissue():
    assert survival(np.float32(0.096 * 200)) == pytest.approx(np.exp(-0.096 * 20), rel=1e-6)


def test_virtual_crystals_see_nothing_and_merged_bins_sum_their_parts():
    plain = plan_subject(cylinder(length_mm=60.0), SimulationSettings(scanner=SMALL, preset="fast")).layout
    efficiencies = crystal_efficiencies(plain.scanner, 0.1)
    assert np.all((efficiencies == 0) == ~plain.scanner.transaxial_is_real()[:, None])
    real = efficiencies[plain.scanner.transaxial_is_real()]
    assert real.mean() == pytest.approx(1, rel=1e-5) and real.std() == pytest.approx(0.1, rel=0.1)

    views = np.arange(plain.views)
    merged = normalization(plain, efficiencies, views)
    fine = replace(plain, merge_transaxial=1, merge_axial=1, span=1, max_ring_difference=15, radials=165)
    first = np.stack([fine.crystal_pairs(v)[0][0] for v in range(fine.views)])
    second = np.stack([fine.crystal_pairs(v)[1][0] for v in range(fine.views)])
    total = 0.0
    for a, b in zip(first.ravel(), second.ravel(), strict=True):
        total += np.outer(efficiencies[a], efficiencies[b]).sum()
    wide = replace(plain, radials=plain.crystals - 1)
    whole = normalization(wide, efficiencies, views)
    chord = np.diff(wide.transaxial_ends(views).reshape(*whole.shape[:2], 2, 2), axis=2)[:, :, 0]
    length2 = (chord**2).sum(axis=-1)[..., None]
    dz = np.concatenate([np.full(s.planes, s.ring_difference * wide.ring_pitch_mm) for s in wide.segments()])
    without_solid_angle = (whole / (length2 / (length2 + dz**2)) ** 2).sum(dtype=np.float64)
    # Pairs inside one merged crystal lie in no merged bin, and the outermost fine radials are left out: under 3 %.
    assert without_solid_angle == pytest.approx(total, rel=0.03)
    assert merged.min() >= 0


@pytest.mark.parametrize(("corrections", "within"), [("oracle", 0.005), ("estimated", 0.03)])
def test_images_have_the_activity_of_the_subject(corrections, within):
    """Absolute scale end to end: a uniform cylinder is reconstructed at its concentration, at every dose.

    With estimated corrections it may be off as it is on a scanner: by scatter, mu-map and normalization.
    """
    subject = cylinder(radius_mm=90.0, length_mm=160.0, bqml=8000.0)
    result = petsim.simulate(subject, "biograph_vision_600", drf=[10], preset="fast", corrections=corrections)
    x, y, z = (result.grid.axis_mm(a) for a in range(3))
    inside = (np.hypot(x[:, None], y[None, :]) < 60)[:, :, None] & (np.abs(z) < 40)[None, None, :]
    assert result.noise_free is not None
    assert result.noise_free[inside].mean() == pytest.approx(8000, rel=within)
    for image in result.images[:, 0]:
        assert image[inside].mean() == pytest.approx(result.noise_free[inside].mean(), rel=0.01)


@pytest.mark.parametrize("place", ["disk", "redrawn"])
def test_streamed_counts_give_the_same_images_bit_for_bit(place, monkeypatch):
    share = {"disk": 0.5, "redrawn": 0.0}
    monkeypatch.setattr(counts, "DISK_SHARE", share[place])
    settings = SimulationSettings(scanner=SMALL, preset="fast", drf=(5.0,))
    plan = plan_subject(cylinder(length_mm=80.0), settings)
    kept = simulate_plan(plan, settings, 8e9)
    least = plan.bytes_needed(3, 2, settings.live_fractions)
    assert storage(plan, settings, True, 1e6, least * 1.0001).counts == place
    streamed = simulate_plan(plan, settings, least * 1.0001)
    np.testing.assert_array_equal(kept.images, streamed.images)
    assert kept.counts == streamed.counts


def test_the_second_realization_does_not_depend_on_the_first_ones_company():
    """It is reconstructed with the sensitivities found for the first one, which has the noise-free image beside it."""
    settings = SimulationSettings(scanner=SMALL, preset="fast", drf=(20.0,), mode="dose", realizations=2)
    assert settings.live_fractions == 2 and replace(settings, mode="thin").live_fractions == 1
    plan = plan_subject(cylinder(length_mm=80.0), settings)
    model = build_model(plan, settings)
    held = storage(plan, settings, True, 1e6, 8e9)
    both = Realizations(plan, settings, model, held)
    both.make(0, noise_free=True)
    np.testing.assert_array_equal(both.make(1).images, Realizations(plan, settings, model, held).make(1).images)


def test_a_dose_looks_the_same_whatever_the_others_are():
    """--drf 20 equals the 20 of --drf 4 10 20 100, to the bit, in counts and images."""
    settings = SimulationSettings(scanner=SMALL, preset="fast", drf=(4.0, 10.0, 20.0, 100.0), iterations=1)
    plan = plan_subject(cylinder(length_mm=80.0), settings)
    many = simulate_plan(plan, settings, keep_sinograms=True)
    alone = simulate_plan(plan, replace(settings, drf=(20.0,)), keep_sinograms=True)
    np.testing.assert_array_equal(many.images[3], alone.images[1])
    assert many.sinograms is not None and alone.sinograms is not None
    np.testing.assert_array_equal(many.sinograms[0][3], alone.sinograms[0][1])


def test_too_little_memory_is_said_before_starting():
    settings = SimulationSettings(scanner=SMALL, preset="fast")
    plan = plan_subject(cylinder(length_mm=80.0), settings)
    with pytest.raises(DataError, match="--memory-gb"):
        simulate_plan(plan, settings, 1e6)


def test_independent_realizations_are_poisson():
    """Variance over mean of the counts of one bin between realizations is 1."""
    settings = SimulationSettings(scanner=SMALL, preset="fast")
    plan = plan_subject(cylinder(length_mm=80.0), settings)
    views = np.array([3])
    expected = build_model(plan, settings).expected(views)
    draws = np.stack([draw_thinned(DoseLadder((1.0, 4.0), 0, "x", r), expected, views)[:, 0]
                      for r in range(60)]).astype(float)  # fmt: skip
    for k, d in enumerate((1, 4)):
        used = expected[0] / d > 0.05
        ratio = draws[:, k][:, used].var(axis=0, ddof=1).sum() / (expected[0][used] / d).sum()
        assert abs(ratio - 1) < 0.02


def test_counts_flag_sets_the_level():
    settings = SimulationSettings(scanner=SMALL, preset="fast", counts=250_000.0, drf=(2.0,))
    result = simulate_plan(plan_subject(cylinder(length_mm=80.0), settings), settings)
    assert abs(result.counts[0]["prompts"] - 250_000) < 5 * 500


def test_arrays_can_be_simulated():
    subject = cylinder(length_mm=80.0)
    result = petsim.simulate(subject.activity_bqml, SMALL, drf=[3], preset="fast", voxel_mm=subject.grid.spacing_mm,
                             mu_per_cm=subject.mu_per_cm, keep_sinograms=True)  # fmt: skip
    assert result.drfs == (1.0, 3.0)
    assert result.sinograms is not None
    assert [int(s.sum()) for s in result.sinograms[0]] == [row["prompts"] for row in result.counts]
    with pytest.raises(UsageError, match="voxel_mm"):
        petsim.simulate(subject.activity_bqml, SMALL)


def test_a_subject_that_is_too_long_names_scanners_and_center_mm():
    with pytest.raises(DataError, match=r"biograph_vision_quadra.*--center-mm"):
        plan_subject(cylinder(length_mm=500.0), SimulationSettings(scanner="biograph_mmr"))
    plan = plan_subject(cylinder(length_mm=500.0), SimulationSettings(scanner="biograph_mmr", center_mm=50.0))
    assert plan.subject.grid.extent_mm[2] <= 260


@pytest.fixture(scope="module")
def liver_scans():
    """Ten realizations of a generated patient's liver on the Biograph Vision 600, DRF 1 to 20."""
    patient = whole_body(3)
    box, _ = noise_region(patient.activity_bqml, patient.labels, patient.label_names, patient.grid)
    assert box is not None
    middle = float(patient.grid.axis_mm(2)[(box[2].start + box[2].stop) // 2])
    settings = SimulationSettings(scanner="biograph_vision_600", preset="fast", drf=(4.0, 10.0, 20.0), realizations=12,
                                  corrections="oracle", scatter="none", randoms="none", center_mm=middle)  # fmt: skip
    result = simulate_plan(plan_subject(patient, settings), settings)
    box, how = noise_region(result.activity_bqml, result.labels, patient.label_names, result.grid)
    assert box is not None and "liver" in how
    return result, result.images[(slice(None), slice(None), *box)][:, :, sphere(result.grid)].astype(np.float64)


def test_noise_grows_as_the_square_root_of_drf(liver_scans):
    result, liver = liver_scans
    spread = liver.std(axis=1, ddof=1).mean(axis=1)
    for k, d in enumerate(result.drfs):
        assert spread[k] / spread[0] == pytest.approx(np.sqrt(d), rel=0.10)


def test_mean_uptake_does_not_change_with_dose(liver_scans):
    _, liver = liver_scans
    means = liver.mean(axis=(1, 2))
    np.testing.assert_allclose(means, means[0], rtol=0.02)


def test_inserted_noise_is_that_of_nested_data(liver_scans):
    """Var(recon_D - recon_1) = (D - 1) Var(recon_1) and no covariance with recon_1, on one draw."""
    result, liver = liver_scans
    source = np.full(result.images.shape[2:], 7.0, np.float32)
    inserted = insert_noise(source, result.images)
    np.testing.assert_array_equal(inserted[0], np.broadcast_to(source, inserted[0].shape))
    added = liver - liver[:1]
    full = liver[0] - liver[0].mean(axis=0)
    variance = (full**2).sum(axis=0).mean()
    for k, d in enumerate(result.drfs[1:], start=1):
        noise = added[k] - added[k].mean(axis=0)
        assert (noise**2).sum(axis=0).mean() / variance == pytest.approx(d - 1, rel=0.2)
        correlation = (noise * full).sum() / np.sqrt((noise**2).sum() * (full**2).sum())
        assert abs(correlation) < 0.1


def test_noise_inserted_into_a_real_scan_is_that_of_nested_data(real_data):
    """Variance between realizations at DRF D is D - 1 times that of a simulated DRF 1; no covariance with its draw."""
    scan = with_mu(read_source(real_data("wholebody_fdg_dicom/image")))
    box, _ = noise_region(scan.activity_bqml, None, {}, scan.grid)
    assert box is not None
    middle = float(scan.grid.axis_mm(2)[(box[2].start + box[2].stop) // 2])
    settings = SimulationSettings(scanner="biograph_vision_600", preset="fast", drf=(4.0, 20.0), realizations=8,
                                  corrections="oracle", scatter="none", randoms="none", center_mm=middle, slab_mm=80.0,
                                  iterations=1)  # fmt: skip
    plan = plan_subject(scan, settings)
    simulated = simulate_plan(plan, settings)
    inserted = simulate_plan(plan, replace(settings, full_dose="source", realizations=2))
    # More realizations would be the same draws again.
    np.testing.assert_array_equal(inserted.images, insert_noise(inserted.activity_bqml, simulated.images[:, :2]))
    inserted = replace(inserted, images=insert_noise(inserted.activity_bqml, simulated.images))
    place = tuple(slice(*p) for p in simulated.provenance["noise_sphere"])
    inside = (slice(None), slice(None), *place)
    draws, noisy = (r.images[inside][:, :, sphere(r.grid)].astype(np.float64) for r in (simulated, inserted))
    np.testing.assert_allclose(noisy[0], np.broadcast_to(noisy[0, :1], noisy[0].shape))
    full = draws[0] - draws[0].mean(axis=0)
    for k, d in ((1, 4), (2, 20)):
        noise = noisy[k] - noisy[k].mean(axis=0)
        assert (noise**2).sum() / (full**2).sum() == pytest.approx(d - 1, rel=0.2)
        assert abs((noise * full).sum() / np.sqrt((noise**2).sum() * (full**2).sum())) < 0.12
    assert any("noise" in w and "--counts" in w for w in inserted.provenance["warnings"])


def test_no_noise_is_measured_where_the_body_is_cut_off():
    """Of the same images, with and without the flag."""
    rng = np.random.default_rng(0)
    images = rng.normal(1.0, 0.1, (1, 1, 40, 40, 40)).astype(np.float32)
    grid = Grid.centered((40, 40, 40), (4.0, 4.0, 4.0))
    labels = np.ones((40, 40, 40), np.uint8)
    for flagged in (False, True):
        subject = SimpleNamespace(provenance={"truncated_fov": True} if flagged else {}, label_names={1: "liver"},
                                  injection=Injection("F-18"), activity_at_scan_mbq=lambda: None)  # fmt: skip
        result = SimpleNamespace(images=images, activity_bqml=images[0, 0], labels=labels, grid=grid, drfs=[1.0],
                                 provenance={}, counts=[{"drf": 1.0, "realization": 0}])  # fmt: skip
        add_figures(result, subject, 60.0)
        (row,) = result.counts
        assert (row["liver_cov"] is None) == flagged and (result.provenance["noise_sphere"] is None) == flagged
    assert "cut off" in result.provenance["noise_region"]
