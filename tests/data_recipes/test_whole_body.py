"""The generated patient must be a patient: right sizes, balanced activity, labels that mean what they say."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from data_recipes.errors import UsageError
from data_recipes.isotopes import decay_factor, isotope
from data_recipes.phantoms.uptake import TISSUES
from data_recipes.phantoms.whole_body import whole_body

COARSE = (6.0, 6.0, 6.0)
SEEDS = range(18)


@pytest.fixture(scope="module")
def people():
    return [whole_body(seed, spacing_mm=COARSE) for seed in SEEDS]


@pytest.fixture(scope="module")
def fine():
    return whole_body(3)


def mask(subject, name):
    value = next(v for v, n in subject.label_names.items() if n == name)
    return subject.labels == value


def suv_of(subject):
    return subject.activity_bqml * subject.suv_factor()


def test_activity_in_the_image_balances_with_what_was_injected(people):
    for subject in people:
        inside = subject.total_mbq() / subject.activity_at_scan_mbq()
        assert 0.5 < inside < 0.9, f"{subject.name}: {inside:.2f} of the decayed injection lies in the image"


def test_injection_follows_the_parameters():
    # In the other families more urine after a longer uptake leaves less to the body.
    first = whole_body(1, spacing_mm=COARSE, family="reference")
    other = whole_body(1, spacing_mm=COARSE, family="reference", mbq_per_kg=1.5, uptake_s=5400.0)
    assert first.injection.injected_mbq == pytest.approx(3.0 * first.injection.weight_kg)
    assert (other.injection.uptake_s, other.injection.duration_s, other.injection.isotope) == (5400.0, None, "F-18")
    ratio = 0.5 * decay_factor(isotope("F-18"), 1800.0)
    np.testing.assert_allclose(other.activity_bqml, ratio * first.activity_bqml, rtol=1e-5)
    np.testing.assert_array_equal(other.labels, first.labels)


def test_measures_of_people(people):
    weights = [s.injection.weight_kg for s in people]
    assert min(weights) >= 40 and max(weights) <= 120 and np.std(weights) > 8
    assert {s.provenance["sex"] for s in people} == {"M", "F"}
    assert {s.provenance["arms"] for s in people} == {"raised", "down"}
    for subject in people:
        assert 850.0 <= subject.grid.extent_mm[2] <= 1030.0
        bmi = subject.injection.weight_kg / (subject.provenance["height_cm"] / 100) ** 2
        assert 16.5 < bmi < 39.5


def test_weight_is_that_of_the_drawn_anatomy(people):
    """Head, trunk and half the thighs are 64 to 80 % of a body's mass."""
    density = {
        "lung": 0.28,
        "fat": 0.95,
        "visceral_fat": 0.96,
        "bone": 1.3,
        "skull": 1.5,
        "airway": 0.0,
        "outside": 0.0,
    }
    for subject in people:
        per_label = np.array([density.get(subject.label_names.get(v, ""), 1.04) for v in range(256)])
        mass_kg = per_label[subject.labels].sum() * subject.grid.voxel_ml * 1e-3
        assert 0.62 < mass_kg / subject.injection.weight_kg < 0.84, subject.name


def test_everything_lies_inside_the_tunnel(people, fine):
    for subject in [*people, fine]:
        x, y = subject.grid.axis_mm(0), subject.grid.axis_mm(1)
        outside = np.hypot(x[:, None], y[None, :]) > 235.0
        for array in (subject.activity_bqml, subject.mu_per_cm, subject.labels):
            assert not array[outside].any()
        assert subject.mu_per_cm[:, :, -1].max() == 0 or subject.provenance["arms"] == "raised"


def test_organs_have_the_volumes_of_adults(people):
    """Ranges around the reference man and woman of ICRP Publication 89."""
    ranges = {
        "liver": (850, 2700), "lung": (1900, 6000), "brain": (900, 1750), "spleen": (45, 400), "kidney": (130, 560),
        "bladder": (40, 450), "myocardium": (50, 260), "cerebellum": (70, 200), "marrow": (250, 1100),
    }  # fmt: skip
    for subject in people:
        for name, (low, high) in ranges.items():
            volume = mask(subject, name).sum() * subject.grid.voxel_ml
            assert low < volume < high, f"{subject.name}: {name} has {volume:.0f} mL"


def test_left_is_left_and_up_is_up(people):
    for subject in people:
        middle = {
            name: np.array([subject.grid.axis_mm(i)[np.nonzero(mask(subject, name))[i]].mean() for i in range(3)])
            for name in ("liver", "spleen", "brain", "bladder", "lung", "myocardium", "cerebellum", "marrow")
        }
        assert middle["liver"][0] > 20 > -20 > middle["spleen"][0] and middle["myocardium"][0] < -10
        heights = [middle[n][2] for n in ("bladder", "liver", "lung", "cerebellum", "brain")]
        assert heights == sorted(heights)
        assert middle["bladder"][1] > middle["marrow"][1] and middle["brain"][1] > middle["cerebellum"][1]


def test_liver_is_flat_and_has_its_uptake(fine):
    inner = ndimage.binary_erosion(mask(fine, "liver"), iterations=2)
    values = suv_of(fine)[inner]
    assert inner.sum() * fine.grid.voxel_ml > 500
    assert 0.002 < values.std() / values.mean() <= 0.03
    assert TISSUES["liver"].low <= values.mean() <= TISSUES["liver"].high


def test_uptake_varies_between_people_within_its_ranges(people):
    for name, tissue in (("liver", "liver"), ("bladder", "bladder"), ("myocardium", "myocardium"), ("lung", "lung")):
        means = []
        for subject in people:
            inner = ndimage.binary_erosion(mask(subject, name)) if name != "myocardium" else mask(subject, name)
            means.append(np.median(suv_of(subject)[inner]))
        low, high = TISSUES[tissue].low, TISSUES[tissue].high
        assert 0.55 * low < min(means) and max(means) < 1.2 * high
        assert np.std(means) / np.mean(means) > 0.08, name
    gray = [np.percentile(suv_of(s)[mask(s, "brain")], 90) for s in people]
    assert min(gray) > 4.5 and max(gray) < 13.5


def test_mu_matches_tissue(people):
    for subject in people:
        mu = subject.mu_per_cm
        wanted = {"lung": 0.027, "liver": 0.096, "fat": 0.090, "brain": 0.099, "bladder": 0.097, "muscle": 0.096}
        for name, value in wanted.items():
            # Fat of the thin shares its voxels with skin and muscle.
            rel = 0.02 if name == "fat" else 0.01
            assert np.median(mu[mask(subject, name)]) == pytest.approx(value, rel=rel), name
        assert mu[subject.labels == 0].max() <= mu.max() / 2, "a voxel whose center is outside is at most half tissue"
        assert 0.10 < mu[mask(subject, "skull")].mean() < mu.max() <= 0.17


def test_edges_are_averages_of_both_sides(fine):
    """Total activity and mass barely depend on the voxel size, and edges hold values in between."""
    coarse = whole_body(3, spacing_mm=COARSE)
    assert coarse.injection.weight_kg == pytest.approx(fine.injection.weight_kg, rel=0.01)
    inside = [s.total_mbq() / s.activity_at_scan_mbq() for s in (fine, coarse)]
    assert inside[0] == pytest.approx(inside[1], rel=0.03)
    for name in ("liver", "lung", "brain", "kidney"):
        fine_ml, coarse_ml = (mask(s, name).sum() * s.grid.voxel_ml for s in (fine, coarse))
        assert fine_ml == pytest.approx(coarse_ml, rel=0.06), name
    lung = mask(fine, "lung")
    rim = ndimage.binary_dilation(lung) & ~ndimage.binary_erosion(lung)
    partial = (fine.mu_per_cm[rim] > 0.035) & (fine.mu_per_cm[rim] < 0.085)
    assert partial.mean() > 0.3


def test_lesions_are_where_the_list_says(people, fine):
    counts = []
    for subject in [*people, fine]:
        lesions = subject.provenance["lesions"]
        counts.append(len(lesions))
        assert [lesion["label"] for lesion in lesions] == list(range(100, 100 + len(lesions)))
        assert set(np.unique(subject.labels[subject.labels >= 100])) == {lesion["label"] for lesion in lesions}
        for lesion in lesions:
            inside = subject.labels == lesion["label"]
            assert 6.0 <= lesion["diameter_mm"] <= 35.0 and 3.0 <= lesion["suv"] <= 20.0
            assert lesion["site"] in subject.label_names[lesion["label"]]
            near = [subject.grid.axis_mm(i)[np.nonzero(inside)[i]].mean() for i in range(3)]
            assert (
                np.linalg.norm(np.array(near) - lesion["center_mm"])
                < 0.15 * lesion["diameter_mm"] + 0.5 * subject.grid.spacing_mm[0]
            )
            hottest = suv_of(subject)[inside].max()
            assert hottest <= lesion["suv"] * 1.001
            if lesion["diameter_mm"] > 3 * subject.grid.spacing_mm[0]:
                assert hottest == pytest.approx(lesion["suv"], rel=0.02)
                # A ball around a voxel's center holds 19 centers at a radius of 1.5 voxels, 4.5 pi (14.1) by its volume.
                volume = inside.sum() * subject.grid.voxel_ml
                assert volume == pytest.approx(np.pi / 6 * lesion["diameter_mm"] ** 3 * 1e-3, rel=0.36)
    assert min(counts) == 0 and max(counts) >= 4


def test_labels_cover_exactly_what_is_there(people):
    for subject in people:
        assert subject.labels.dtype == np.uint8 and subject.activity_bqml.dtype == np.float32
        assert set(np.unique(subject.labels)) <= set(subject.label_names)
        assert {"outside", "body", "liver", "lung", "brain", "bladder"} <= set(subject.label_names.values())
        empty = (subject.mu_per_cm == 0) & (subject.labels != 0)
        assert np.all(subject.labels[empty] == next(v for v, n in subject.label_names.items() if n == "airway"))
        assert not subject.is_noisy and subject.fwhm_mm is None and subject.mu_source == "phantom"
        assert len(subject.content_sha256) == 64


def test_every_seed_is_another_person(people):
    assert len({s.content_sha256 for s in people}) == len(people)
    livers = [round(float(mask(s, "liver").sum() * s.grid.voxel_ml)) for s in people]
    assert len(set(livers)) > 0.8 * len(people)


def test_same_seed_gives_the_same_bits_in_another_process():
    code = """from data_recipes.phantoms.whole_body import whole_body
print(whole_body(5, spacing_mm=(8.0, 8.0, 8.0)).content_sha256)"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert whole_body(5, spacing_mm=(8.0, 8.0, 8.0)).content_sha256 == other


@pytest.mark.parametrize("bad", [{"seed": -1}, {"seed": 0, "mbq_per_kg": 0.0}, {"seed": 0, "uptake_s": -1.0}])
def test_nonsense_is_refused_in_one_line(bad):
    with pytest.raises(UsageError) as caught:
        whole_body(**bad)
    assert "\n" not in str(caught.value)
