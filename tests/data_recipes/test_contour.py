"""Attenuation of measured images."""

import nibabel as nib
import numpy as np
import pytest
from dicom_files import ct_slice, write_series
from scipy import ndimage

from data_recipes.contour import BODY, LUNGS, MU_LUNG, MU_TISSUE, mu_from_pet, read_ct, read_mu, with_mu
from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from data_recipes.phantoms.whole_body import whole_body
from data_recipes.readers.read import read_source
from data_recipes.resample import resample
from data_recipes.subject import Injection, Subject

GRID = Grid.centered((72, 56, 90), (6.0, 6.0, 6.0))


def ellipse(center, radii, heights):
    x, y, z = np.meshgrid(*(GRID.axis_mm(a) for a in range(3)), indexing="ij", sparse=True)
    inside = ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 < 1
    return inside & (z >= heights[0]) & (z < heights[1])


def ball(center, radii):
    x, y, z = np.meshgrid(*(GRID.axis_mm(a) for a in range(3)), indexing="ij", sparse=True)
    return ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 + ((z - center[2]) / radii[2]) ** 2 < 1


TRUNK = ellipse((0, 0), (170, 110), (-270, 270))
LUNG = [ellipse((side * 85, 0), (55, 70), (10, 190)) for side in (-1, 1)]
HEART = ball((-20, 20, 60), (60, 50, 55))
LIVER = ball((70, 0, -50), (85, 75, 70))
BLADDER = ball((0, 0, -220), (35, 35, 35))
ARM = ellipse((-195, 0), (22, 22), (-270, 0))
BED = (np.abs(GRID.axis_mm(1) + 132) < 7)[None, :, None] & (np.abs(GRID.axis_mm(0)) < 180)[:, None, None]


def patient(lung=0.45):
    """Uptake of muscle 0.6, lungs, liver, heart, bladder, an arm, a warm bed and noise, in SUV."""
    suv = np.where(TRUNK | ARM, 0.6, 0.0)
    suv = np.where(BED & ~TRUNK, 0.35, suv)
    for lobe in LUNG:
        suv[lobe] = lung
    for organ, value in ((HEART, 5.0), (LIVER, 2.2), (BLADDER, 60.0)):
        suv[organ] = value
    noise = np.random.default_rng(3).normal(1.0, 0.15, suv.shape)
    return (suv * np.clip(noise, 0, None) * 4000).astype(np.float32)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def found():
    return mu_from_pet(patient(), GRID)


def test_body_without_bed_holes_or_hot_spots(found):
    mu, labels = found
    body = labels > 0
    assert dice(body, TRUNK | ARM) > 0.95
    assert body[HEART | LIVER | BLADDER | ARM].mean() > 0.95
    assert body[BED & ~TRUNK].mean() < 0.02
    assert set(np.unique(mu)) == {np.float32(0), np.float32(MU_LUNG), np.float32(MU_TISSUE)}
    assert (mu[labels == BODY] == np.float32(MU_TISSUE)).all()
    assert (mu[labels == LUNGS] == np.float32(MU_LUNG)).all()


def test_lungs_lie_where_lungs_are_though_they_take_up_like_muscle(found):
    _, labels = found
    lungs = (LUNG[0] | LUNG[1]) & ~HEART & ~LIVER
    assert dice(labels == LUNGS, lungs) > 0.7
    assert not (labels == LUNGS)[LIVER | HEART].mean() > 0.05
    # None in abdomen, pelvis and arm.
    below = GRID.axis_mm(2) < -40
    assert not (labels[:, :, below] == LUNGS).any()


@pytest.mark.parametrize("seed", [0, 1])
def test_contour_of_a_phantom_is_the_phantom(seed):
    phantom = whole_body(seed, spacing_mm=(6.0, 6.0, 6.0))
    blurred = ndimage.gaussian_filter(phantom.activity_bqml, 7.0 / 2.355 / 6.0)
    _, labels = mu_from_pet(blurred, phantom.grid)
    assert phantom.mu_per_cm is not None and phantom.labels is not None
    assert dice(labels > 0, phantom.mu_per_cm > 0.01) > 0.95
    lung = next(value for value, name in phantom.label_names.items() if name == "lung")
    assert dice(labels == LUNGS, phantom.labels == lung) > 0.6


def test_scale_of_the_image_changes_nothing(found):
    _, labels = mu_from_pet(patient() * np.float32(1e-4), GRID)
    assert dice(labels == LUNGS, found[1] == LUNGS) > 0.99
    assert dice(labels > 0, found[1] > 0) > 0.999


def test_cold_lungs_are_found_without_a_liver_and_no_lungs_in_uniform_tissue():
    suv = np.where(TRUNK, 0.6, 0.0)
    _, none = mu_from_pet(suv.astype(np.float32), GRID)
    assert dice(none == BODY, TRUNK) > 0.95
    assert not (none == LUNGS).any()
    for lobe in LUNG:
        suv[lobe] = 0.15
    _, labels = mu_from_pet(suv.astype(np.float32), GRID)
    assert dice(labels == LUNGS, LUNG[0] | LUNG[1]) > 0.75


def test_an_empty_image_is_refused():
    with pytest.raises(DataError, match="no body"):
        mu_from_pet(np.zeros(GRID.shape, np.float32), GRID)


def subject(grid=GRID, activity=None):
    values = np.ones(grid.shape, np.float32) if activity is None else activity
    return Subject("subject-x", values, grid, Injection(), provenance={"warnings": ["old"]})


def test_with_mu_from_the_pet():
    done = with_mu(subject(activity=patient()))
    assert done.mu_source == "pet_contour"
    assert done.label_names == {1: "body", 2: "lungs"}
    assert done.labels is not None and done.labels.dtype == np.uint8
    assert done.provenance["warnings"] == ["old"]
    # A subject that brings its mu keeps it.
    assert with_mu(done) is done


def write(path, data, spacing, origin):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    nib.Nifti1Image(np.asarray(data, np.float32), affine).to_filename(path)
    return path


SMALL = Grid((4, 5, 6), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))


def test_mu_map_is_interpolated_linearly_and_zero_outside(tmp_path):
    ramp = np.broadcast_to(0.05 + 0.001 * np.arange(10)[:, None, None] * 5.0, (10, 10, 3))
    path = write(tmp_path / "mu.nii", ramp, (5.0, 5.0, 5.0), (-5.0, -5.0, 0.0))
    mu = read_mu(path, SMALL)
    # Linear in x: 0.055 at x = 0 and 0.001 /cm a mm. In z the file ends at 12.5 mm.
    np.testing.assert_allclose(mu[:, 2, 1], 0.055 + 0.001 * 4.0 * np.arange(4), rtol=1e-5)
    assert (mu[:, :, :4] > 0).all()
    assert (mu[:, :, 4:] == 0).all()
    done = with_mu(subject(SMALL), mu=path)
    assert done.mu_source == "given"
    assert "33% of the activity" in done.provenance["warnings"][1]


def test_a_fine_image_is_averaged_and_keeps_its_sum():
    fine = Grid.centered((80, 80, 40), (1.0, 1.0, 1.0))
    coarse = Grid.centered((20, 20, 10), (4.0, 4.0, 4.0))
    values = np.random.default_rng(4).uniform(0, 1, fine.shape)
    values[:6] = values[-6:] = values[:, :6] = values[:, -6:] = values[:, :, :6] = values[:, :, -6:] = 0
    out = resample(values, fine, coarse)
    # Tents four voxels wide, four apart, share out every fine voxel exactly once.
    assert out.sum(dtype=float) * coarse.voxel_ml == pytest.approx(values.sum() * fine.voxel_ml, rel=1e-5)


def test_maps_that_do_not_belong_are_refused(tmp_path):
    far = write(tmp_path / "far.nii", np.full((3, 3, 3), 0.096), (5, 5, 5), (500, 0, 0))
    with pytest.raises(DataError, match=r"^far.nii: .*do not overlap: along x"):
        read_mu(far, SMALL)
    with pytest.raises(DataError, match=r"far.nii: .*do not overlap"):
        read_ct(write(tmp_path / "far.nii", np.arange(27.0).reshape(3, 3, 3), (5, 5, 5), (0, 0, 500)), SMALL, kvp=120)
    for wrong, word in ((9.6, "1/cm"), (0.0096, "1/cm"), (-0.1, "negative"), (np.nan, "NaN")):
        with pytest.raises(DataError, match=word):
            read_mu(write(tmp_path / "wrong.nii", np.full((3, 3, 3), wrong), (5, 5, 5), (0, 0, 0)), SMALL)
    with pytest.raises(UsageError, match="--ct, --mu"):
        with_mu(subject(SMALL), ct=far, mu=far)
    with pytest.raises(UsageError, match="--ct-remove-table: there is no --ct"):
        with_mu(subject(SMALL), without_table=True)
    with pytest.raises(UsageError, match="--ct-kvp"):
        with_mu(subject(SMALL), kvp=120)


def test_ct_series_becomes_mu_by_its_voltage(tmp_path):
    # 1000 HU of bone in front of 0 HU of water, by rows: DICOM row 0 is the anterior one.
    stored = np.full((8, 6), 1024)
    stored[:4] = 2024
    slices = [ct_slice(k, stored, 4.0 * k) for k in range(5)]
    folder = write_series(tmp_path / "ct", slices)
    grid = Grid((2, 8, 5), (4.0, 5.0, 4.0), (-2.0, -15.0, 0.0))
    mu = read_ct(folder, grid)
    np.testing.assert_allclose(mu[:, :4], 0.096, rtol=1e-5)
    np.testing.assert_allclose(mu[:, 4:], 5.10e-5 * 2000 + 4.71e-2, rtol=1e-5)
    np.testing.assert_allclose(read_ct(folder, grid, kvp=80)[:, 4:], 3.64e-5 * 2000 + 6.26e-2, rtol=1e-5)
    assert with_mu(subject(grid), ct=folder).mu_source == "ct"
    for ds in slices:
        del ds.KVP
    folder = write_series(tmp_path / "nokvp", slices)
    with pytest.raises(DataError, match=r"^slice00.dcm: tag KVP is missing[^\n]+--ct-kvp$"):
        read_ct(folder, grid)
    with pytest.raises(DataError, match="Modality is 'CT' where PT is needed"):
        read_source(folder)


def test_the_couch_is_left_out_of_a_ct_where_asked(tmp_path):
    hu = np.full((12, 12, 4), -1000.0)
    hu[2:10, 4:11] = 20
    hu[:, 1:3] = 100
    path = write(tmp_path / "ct.nii", hu, (4.0, 4.0, 4.0), (0, 0, 0))
    grid = Grid(hu.shape, (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))
    whole, body = (read_ct(path, grid, kvp=120, without_table=flag) for flag in (False, True))
    assert whole[5, 1, 1] > 0.1 and np.all(body[:, :3] == 0)
    np.testing.assert_array_equal(body[:, 3:], whole[:, 3:])
    assert with_mu(subject(grid), ct=path, kvp=120, without_table=True).mu_per_cm[5, 1, 1] == 0
    with pytest.raises(DataError, match=r"^air.nii: the CT has no voxel above"):
        read_ct(write(tmp_path / "air.nii", hu - 1200, (4, 4, 4), (0, 0, 0)), grid, kvp=120, without_table=True)


def test_nifti_ct_needs_a_voltage(tmp_path):
    path = write(tmp_path / "ct.nii", np.linspace(-1000, 1000, 60).reshape(3, 4, 5), (5, 5, 5), (0, 0, 0))
    with pytest.raises(UsageError, match="--ct-kvp"):
        read_ct(path, SMALL)
    assert read_ct(path, SMALL, kvp=120).max() > 0.1
    with pytest.raises(DataError, match="not a CT in HU"):
        read_ct(write(tmp_path / "mu.nii", np.full((3, 3, 3), 0.096), (5, 5, 5), (0, 0, 0)), SMALL, kvp=120)


def test_ct_of_a_patient_covers_the_pet(real_data):
    folder = real_data("petct_tumour_nifti") / "STS_002"
    pet = read_source(folder / "PET_image.nii.gz", units="suv", weight_kg=70.0, injected_mbq=370.0, uptake_s=3600.0)
    done = with_mu(pet, ct=folder / "CT_image.nii.gz", kvp=120)
    assert done.mu_per_cm is not None
    tissue = done.mu_per_cm[done.mu_per_cm > 0.05]
    assert np.median(tissue) == pytest.approx(0.098, abs=0.006)
    assert tissue.size / done.mu_per_cm.size > 0.5


def test_contour_of_a_whole_body_scan(real_data):
    scan = read_source(real_data("wholebody_fdg_dicom") / "image")
    mu, labels = mu_from_pet(scan.activity_bqml, scan.grid)
    liters = scan.grid.voxel_ml * 1e-3
    # A 71 kg patient from the thighs to the eyes.
    assert 50 < (labels > 0).sum() * liters < 62
    assert 1.8 < (labels == LUNGS).sum() * liters < 4.5
    held = scan.activity_bqml[labels > 0].sum(dtype=float) / scan.activity_bqml.sum(dtype=float)
    assert held > 0.97
    left, right = (labels[half] == LUNGS for half in (slice(0, 60), slice(60, 128)))
    assert 0.4 < left.sum() / right.sum() < 2.5
    heights = np.flatnonzero((labels == LUNGS).any(axis=(0, 1)))
    # The shoulders are near slice 235 and the liver's dome near 172.
    assert 155 < heights.min() < 175
    assert 205 < heights.max() < 235
    assert mu.dtype == np.float32
