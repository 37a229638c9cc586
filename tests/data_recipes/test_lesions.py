"""Lesions put into subjects: where they are, how hot they are, and what stays as it was."""

from dataclasses import replace

import numpy as np
import pytest

from data_recipes.contour import with_mu
from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from data_recipes.lesions import insert_lesions
from data_recipes.phantoms.analytic import cylinder
from data_recipes.phantoms.lesion_shapes import NECROTIC_SUV
from data_recipes.readers.nifti import read_nifti
from data_recipes.subject import Injection, Subject


@pytest.fixture(scope="module")
def water():
    return cylinder(radius_mm=110.0, length_mm=200.0, bqml=1000.0, spacing_mm=(4.0, 4.0, 4.0))


def lesions(subject):
    return subject.provenance["inserted_lesions"]["lesions"]


@pytest.mark.parametrize("shape", ["round", "irregular", "necrotic"])
def test_lesions_replace_the_tissue_and_are_labeled(water, shape):
    made = insert_lesions(water, 4, seed=1, shapes=(shape,))
    inserted = np.zeros(water.grid.shape, bool)
    for one in lesions(made):
        inside = made.labels == one["label"]
        inserted |= inside
        assert made.label_names[one["label"]].startswith("lesion_")
        volume = inside.sum() * water.grid.voxel_ml
        assert volume == pytest.approx(np.pi / 6 * one["diameter_mm"] ** 3 * 1e-3, rel=0.5)
        hot = made.activity_bqml[inside]
        # Small lesions, and the rims of necrotic ones, are thinner than a voxel or two.
        if one["diameter_mm"] > (24 if shape == "necrotic" else 14):
            assert hot.max() == pytest.approx(1000 * one["contrast"], rel=1e-3)
        if shape == "necrotic" and one["diameter_mm"] > 24:
            assert hot.min() == pytest.approx(NECROTIC_SUV * hot.max(), rel=0.05)
        assert (water.mu_per_cm[inside] > 0.08).all()
    far = made.activity_bqml == water.activity_bqml
    assert far[~inserted].mean() > 0.97 and not far[inserted].all()
    np.testing.assert_array_equal(made.labels[~inserted], water.labels[~inserted])
    assert made.content_sha256 != water.content_sha256 and made.name != water.name
    again = insert_lesions(water, 4, seed=1, shapes=(shape,))
    np.testing.assert_array_equal(again.activity_bqml, made.activity_bqml)
    assert not np.array_equal(insert_lesions(water, 4, seed=2, shapes=(shape,)).labels, made.labels)


def test_uptake_on_top_adds_contrast_times_background(water):
    removed, kept = (insert_lesions(water, 2, seed=5, shapes=("round",), remove_background=r) for r in (True, False))
    for one in lesions(removed):
        inside = removed.labels == one["label"]
        np.testing.assert_allclose((kept.activity_bqml - removed.activity_bqml)[inside].max(), 1000.0, rtol=1e-3)


def test_measured_images_get_lesions_of_their_own_resolution(water):
    """Blur keeps the activity of a lesion and lowers its peak; the label keeps the true outline."""
    measured = replace(water, fwhm_mm=(6.0, 6.0, 6.0), is_noisy=True)
    sharp, blurred = (insert_lesions(s, 3, seed=2, shapes=("round",)) for s in (water, measured))
    np.testing.assert_array_equal(sharp.labels, blurred.labels)
    added = [float((s.activity_bqml - water.activity_bqml).sum(dtype=float)) for s in (sharp, blurred)]
    assert added[1] == pytest.approx(added[0], rel=1e-3) and added[0] > 0
    small = min(lesions(sharp), key=lambda one: one["diameter_mm"])
    inside = sharp.labels == small["label"]
    assert blurred.activity_bqml[inside].max() < sharp.activity_bqml[inside].max()


def test_what_cannot_be_is_one_line(water):
    with pytest.raises(UsageError, match="--insert-lesions"):
        insert_lesions(water, 0, seed=0)
    with pytest.raises(DataError, match="mu-map"):
        insert_lesions(replace(water, mu_per_cm=None), 1, seed=0)
    with pytest.raises(DataError, match="no label left"):
        insert_lesions(water, 200, seed=0)
    small = cylinder(radius_mm=9.0, length_mm=20.0, spacing_mm=(3.0, 3.0, 3.0))
    with pytest.raises(DataError, match=r"^cylinder: no room[^\n]+$"):
        insert_lesions(small, 3, seed=0)


def test_bodies_that_reach_the_sides_are_flagged(tmp_path, real_data):
    grid = Grid.centered((12, 10, 6), (4.0, 4.0, 4.0))
    import nibabel as nib

    def flagged(mu):
        subject = Subject("one", np.ones(grid.shape, np.float32), grid, Injection())
        nib.save(nib.Nifti1Image(mu.astype(np.float32), grid.affine), tmp_path / "mu.nii")
        return with_mu(subject, mu=tmp_path / "mu.nii").provenance

    inner = np.zeros(grid.shape)
    inner[2:-2, 2:-2] = 0.096
    assert "truncated_fov" not in flagged(inner)
    cut = inner.copy()
    cut[0, 2:-2] = 0.096
    told = flagged(cut)
    assert told["truncated_fov"] is True and "sides of the image" in told["warnings"][-1]
    # The crops come out flagged also when they are read one by one.
    folder = real_data("petct_tumour_nifti") / "STS_003"
    pet = read_nifti(folder / "PET_image.nii.gz", units="suv", weight_kg=70.0, injected_mbq=370.0, uptake_s=3600.0)
    assert with_mu(pet, ct=folder / "CT_image.nii.gz", kvp=120.0).provenance["truncated_fov"] is True
