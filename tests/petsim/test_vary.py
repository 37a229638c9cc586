"""Breathing, reconstruction without point spread function, and subjects that differ in all of it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data_recipes.errors import UsageError
from data_recipes.phantoms.whole_body import whole_body
from petsim.cache.store import SubjectFile, read_index
from petsim.dataset import make_dataset
from petsim.fresh import Paths, Simulator, origins
from petsim.physics.breathing import breathed, displacement_kernel
from petsim.settings import SimulationSettings
from petsim.vary import RANGES, draw
from petsim.verify import verify
from tests import kill_driver


def moments(kernel):
    place = np.arange(kernel.size) - kernel.size // 2
    mean = (kernel * place).sum()
    return kernel.sum(), mean, (kernel * (place - mean) ** 2).sum()


@pytest.mark.parametrize("spacing_mm", [0.25, 1.0, 3.3])
def test_breathing_spends_its_time_as_lujans_model_says(spacing_mm):
    """Variance of A cos^6: A^2 (E cos^12 - (E cos^6)^2), E cos^12 = 231 / 1024 and E cos^6 = 5 / 16."""
    total, mean, variance = moments(displacement_kernel(20.0, spacing_mm))
    expected = (20.0 / spacing_mm) ** 2 * (231 / 1024 - (5 / 16) ** 2)
    assert total == pytest.approx(1) and mean == pytest.approx(0, abs=1e-9)
    # Sharing a place by two voxels adds at most a quarter of a voxel squared.
    assert expected <= variance + 1e-9 <= expected + 0.25
    # Most of the time near the end of expiration, above the mean position.
    kernel = displacement_kernel(20.0, 0.25)
    assert np.argmax(kernel) > kernel.size // 2


def test_breathing_keeps_activity():
    image = np.zeros((3, 3, 41), np.float32)
    image[1, 1, 20] = 5.0
    blurred = breathed(image, 12.0, 3.0)
    assert blurred.sum() == pytest.approx(5.0, rel=1e-5) and blurred.max() < 4 and blurred.dtype == np.float32
    assert breathed(image, 0.0, 3.0) is image
    np.testing.assert_allclose(breathed(np.ones((2, 2, 9), np.float32), 12.0, 3.0), 1, rtol=1e-5)


@pytest.fixture(scope="module")
def patient():
    return replace(whole_body(0, spacing_mm=(12.0, 12.0, 12.0)), name="phantom-0000")


def test_draws_are_a_subjects_own_and_lie_in_their_ranges(patient):
    settings = SimulationSettings(vary=True, preset="fast")
    drawn = [draw(replace(patient, name=f"phantom-{k}"), settings, 100.0) for k in range(300)]
    own = [s for _, s in drawn]
    for name, low, high in (("duration_s", 50, 200), ("filter_mm", *RANGES.filter_mm), ("voxel_mm", 4.8, 7.8),
                            ("mu_shift", *RANGES.mu_shift), ("drift", *RANGES.drift),
                            ("respiratory_mm", *RANGES.respiratory_mm)):  # fmt: skip
        values = np.array([getattr(s, name) for s in own])
        assert low <= values.min() < low + 0.1 * (high - low) and high - 0.1 * (high - low) < values.max() <= high
    assert {s.iterations for s in own} == set(RANGES.iterations) and {s.subsets for s in own} == set(RANGES.subsets)
    assert np.mean([not s.psf for s in own]) == pytest.approx(RANGES.no_psf, abs=0.1)
    again = draw(replace(patient, name="phantom-7"), settings, 100.0)
    assert again[1] == own[7] and again[1] != own[8]
    assert draw(replace(patient, name="phantom-7"), replace(settings, seed=1), 100.0)[1] != own[7]
    activities = [s.injection.injected_mbq / patient.injection.injected_mbq for s, _ in drawn]
    assert RANGES.activity[0] <= min(activities) < max(activities) <= RANGES.activity[1] and len(set(activities)) > 100


def test_suv_do_not_change_with_the_injection(patient):
    other, _ = draw(patient, SimulationSettings(vary=True), 100.0)
    factor = other.injection.injected_mbq / patient.injection.injected_mbq
    assert factor != 1
    np.testing.assert_allclose(other.activity_bqml, factor * patient.activity_bqml, rtol=1e-6)
    assert other.suv_factor() * factor == pytest.approx(patient.suv_factor())


def test_what_is_given_is_not_drawn_and_a_measured_image_stays_what_it_is(patient):
    settings = SimulationSettings(vary=True, iterations=9, subsets=3, filter_mm=0.0, voxel_mm=5.0, psf=False)
    _, own = draw(patient, settings, 100.0)
    named = replace(settings, duration_s=300.0, drift=0.0, mu_shift=0.5, respiratory_mm=10.0)
    _, kept = draw(patient, named, 300.0)
    assert (kept.duration_s, kept.drift, kept.mu_shift, kept.respiratory_mm) == (300.0, 0.0, 0.5, 10.0)
    assert (own.iterations, own.subsets, own.filter_mm, own.voxel_mm, own.psf) == (9, 3, 0.0, 5.0, False)
    measured = replace(patient, is_noisy=True)
    same, own = draw(measured, settings, 100.0)
    assert same is measured and own.respiratory_mm == 0 and own.duration_s != 100
    # Noise below a measured full dose is that of its own duration.
    assert draw(measured, replace(settings, full_dose="source"), 100.0)[1].duration_s == 100


def test_a_negative_amplitude_is_refused():
    with pytest.raises(UsageError, match="--respiratory-mm"):
        SimulationSettings(respiratory_mm=-1.0)


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        import data_recipes.phantoms.whole_body as module

        patch.setattr(module, "whole_body", module.whole_body)
        kill_driver.coarse_patients()
        request = kill_driver.request(str(tmp_path_factory.mktemp("vary") / "set"))
        request = replace(request, settings=replace(request.settings, vary=True, voxel_mm=None, iterations=None))
        make_dataset(request)
        yield kill_driver.Path(request.out)


def test_a_varied_dataset_says_how_every_subject_was_made(varied):
    assert verify(varied)["problems"] == []
    index = read_index(varied)
    assert index["configuration"]["vary"] and index["configuration"]["vary_ranges"]["no_psf"] == RANGES.no_psf
    drawn = []
    for subject in index["subjects"]:
        with SubjectFile(varied / subject["file"]) as f:
            held = f.json("provenance")
            drawn.append(held["vary"]["drawn"])
            assert f.spacing_mm[0] == drawn[-1]["voxel_mm"]
            assert held["duration_s"] == drawn[-1]["duration_s"]
            assert held["forward"]["respiratory_mm"] == drawn[-1]["respiratory_mm"]
            assert held["reconstruction"]["iterations"] == drawn[-1]["iterations"]
            assert (held["reconstruction"]["psf_fwhm_mm"] is None) == (not drawn[-1]["psf"])
    assert len({json.dumps(d) for d in drawn}) == 3


def test_fresh_realizations_vary_as_the_subject_did(varied, tmp_path):
    subjects = origins(varied, Paths(scanner=kill_driver.SCANNER))
    (name,) = subjects
    made = Simulator(subjects, tmp_path, 1e9, 4e9)(name, (4.0, 20.0), 0)
    with SubjectFile(varied / f"{name}.h5") as f:
        for dose, one in zip((1, 2), made, strict=True):
            np.testing.assert_allclose(one.image, f.image(dose), atol=2e-3 * f.image(dose).max())
