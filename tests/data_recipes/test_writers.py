"""Results written back: on the source's own grid and in its unit, to the bit, whatever kind of file it was."""

import hashlib
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import factor, pet_slice, write_series
from nibabel.nifti1 import Nifti1Extension
from nibabel.openers import ImageOpener
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian

from data_recipes.errors import DataError, UsageError
from data_recipes.readers.read import read_source
from data_recipes.writers.like import from_canonical, read_volume, to_canonical, write_like

SHAPE = (4, 6, 5)  # columns, rows, slices
TEXTS = {"series_description": "PET AC denoised", "derivation_description": "denoised by model abc", "uid_key": "abc"}
# Nifti1 header fields that say where voxels lie and in which units.
PLACE = (
    "dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
    "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip


def oblique(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[2 * c, -3 * s, 0.1, 7.7], [2 * s, 3 * c, 0.3, -1 / 3], [0.0, -0.2, 4.0, 1e3], [0, 0, 0, 1]])


# Column k is the patient direction in which file axis k runs.
AFFINES = {
    "RAS": np.diag([2.0, 3.0, 4.0, 1.0]),
    "LPS": np.array([[-2.0, 0, 0, 90.1], [0, -3.0, 0, 80.2], [0, 0, 4.0, -70.3], [0, 0, 0, 1]]),
    "permuted": np.array([[0, 0, -4.0, 1.5], [2.0, 0, 0, 2.5], [0, -3.0, 0, 3.5], [0, 0, 0, 1]]),
    "oblique": oblique(0.4),
}


def values(shape=SHAPE, seed=3):
    return np.random.default_rng(seed).uniform(0.0, 9e3, shape).astype(np.float32)


def write_nifti(path, affine, data=None, qform=None):
    image = nib.Nifti1Image(values() if data is None else data, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine if qform is None else qform, code="aligned")
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = image.header["aux_file"] = b"Secret^Person"
    image.header["db_name"] = b"Secret^Study"
    image.header.extensions.append(Nifti1Extension("comment", b"Secret^Patient"))
    image.to_filename(path)
    return path


def raw_header(path):
    with ImageOpener(path) as handle:
        return nib.Nifti1Header.from_fileobj(handle, check=False)


@pytest.fixture
def slices():
    """Five slices with different slopes, stored head first."""
    stored = np.random.default_rng(1).integers(1, 3000, (5, 6, 4))
    made = [pet_slice(k, stored[k], 6.0 - 3.0 * k) for k in range(5)]
    for ds in made:
        ds.StudyInstanceUID, ds.FrameOfReferenceUID = "1.2", "1.2.9"
        ds.SeriesNumber, ds.InstanceNumber = 3, 1
    return made


def derived(folder):
    """Tags of a derived series in the order of its file names."""
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def refused(call, *words):
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert "/" not in message.replace("Bq/mL", "")
    for word in words:
        assert word in message


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_keeps_its_place_to_the_bit(tmp_path, affine, ending):
    # The scanner's qform and a registered sform: two different places that both have to come back.
    source = write_nifti(tmp_path / "pet.nii.gz", affine, qform=AFFINES["LPS"])
    volume = read_volume(source)
    np.testing.assert_array_equal(volume.values, values())
    result = values(seed=4) - 10
    write_like(volume, result, tmp_path / f"out{ending}", **TEXTS)
    before, after = raw_header(source), raw_header(tmp_path / f"out{ending}")
    for field in PLACE:
        assert before[field].tobytes() == after[field].tobytes(), field
    assert after.get_data_dtype() == np.float32
    assert (float(after["scl_slope"]), float(after["scl_inter"]), bytes(after["magic"])) == (1.0, 0.0, b"n+1\0")
    image = nib.Nifti1Image.from_filename(tmp_path / f"out{ending}")
    assert image.affine.tobytes() == nib.Nifti1Image.from_filename(source).affine.tobytes()
    np.testing.assert_array_equal(np.asarray(image.dataobj), result)


def test_nifti_result_names_nobody_and_is_the_same_when_made_again(tmp_path):
    volume = read_volume(write_nifti(tmp_path / "pet.nii", AFFINES["LPS"]))
    for name in ("one", "two"):
        write_like(volume, values(), tmp_path / f"{name}.nii.gz", **TEXTS)
        write_like(volume, values(), tmp_path / f"{name}.nii", **TEXTS)
    written = (tmp_path / "one.nii").read_bytes()
    assert b"Secret" in (tmp_path / "pet.nii").read_bytes()
    assert b"Secret" not in written
    assert b"petsim denoised" in written
    assert len(written) == 352 + 4 * values().size
    packed = (tmp_path / "one.nii.gz").read_bytes()
    assert packed == (tmp_path / "two.nii.gz").read_bytes()
    # The time of writing, and no file name.
    assert (packed[4:8], packed[3]) == (bytes(4), 0)


def test_integers_with_a_slope_and_a_fourth_axis_are_read_and_come_back_as_floats(tmp_path):
    stored = np.random.default_rng(5).integers(-50, 3000, (*SHAPE, 1)).astype(np.int16)
    image = nib.Nifti1Image(stored, AFFINES["permuted"])
    image.header.set_slope_inter(0.5, 1.0)
    image.to_filename(tmp_path / "pet.nii")
    on_disk = nib.Nifti1Image.from_filename(tmp_path / "pet.nii").get_fdata()
    volume = read_volume(tmp_path / "pet.nii")
    np.testing.assert_array_equal(volume.values, on_disk[..., 0].astype(np.float32))
    assert volume.values.dtype == np.float32
    assert volume.spacing_mm == pytest.approx((2.0, 3.0, 4.0))
    write_like(volume, volume.values, tmp_path / "out.nii", **TEXTS)
    back = nib.Nifti1Image.from_filename(tmp_path / "out.nii")
    assert back.shape == (*SHAPE, 1)
    np.testing.assert_array_equal(np.asarray(back.dataobj)[..., 0], volume.values)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_canonical_axes_and_exactly_back(tmp_path, affine):
    volume = read_volume(write_nifti(tmp_path / "pet.nii", affine))
    upright = to_canonical(volume.values, volume)
    canonical = nib.as_closest_canonical(nib.Nifti1Image.from_filename(tmp_path / "pet.nii"))
    np.testing.assert_array_equal(upright, np.asarray(canonical.dataobj))
    assert upright.flags.c_contiguous
    back = from_canonical(upright, volume)
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, volume.values)


def test_unit_is_that_of_the_sidecar(tmp_path):
    path = write_nifti(tmp_path / "pet.nii.gz", AFFINES["RAS"])
    assert read_volume(path).unit == "unknown"
    for said, unit in (("Bq/mL", "bqml"), ("kBq/mL", "kbqml"), ("SUV", "suv"), (None, "unknown")):
        (tmp_path / "pet.json").write_text(json.dumps({} if said is None else {"Units": said}))
        volume = read_volume(path)
        assert volume.unit == unit
        np.testing.assert_array_equal(volume.values, values())


def test_what_is_no_single_volume_is_refused(tmp_path):
    refused(lambda: read_volume(tmp_path / "nowhere"), "nowhere", "no such")
    (tmp_path / "notes.txt").write_text("no image")
    refused(lambda: read_volume(tmp_path / "notes.txt"), "notes.txt", "NIfTI")
    (tmp_path / "torn.nii.gz").write_bytes(b"\x1f\x8b no gzip")
    refused(lambda: read_volume(tmp_path / "torn.nii.gz"), "torn.nii.gz", "damaged")
    for name, shape in (("flat.nii", (4, 5)), ("slice.nii", (4, 5, 1)), ("film.nii", (4, 5, 6, 2))):
        nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)).to_filename(tmp_path / name)
        refused(lambda name=name: read_volume(tmp_path / name), name, "3D volume")
    nib.Nifti1Image(np.ones(SHAPE, np.complex64), np.eye(4)).to_filename(tmp_path / "c.nii")
    refused(lambda: read_volume(tmp_path / "c.nii"), "c.nii", "real numbers")
    nib.Nifti1Image(np.full(SHAPE, np.nan, np.float32), np.eye(4)).to_filename(tmp_path / "nan.nii")
    refused(lambda: read_volume(tmp_path / "nan.nii"), "nan.nii", "NaN")
    image = nib.Nifti1Image(values(), np.eye(4))
    image.header.set_xyzt_units("micron")
    image.to_filename(tmp_path / "small.nii")
    refused(lambda: read_volume(tmp_path / "small.nii"), "small.nii", "micron")
    flat = nib.Nifti1Image(values(), np.eye(4))
    flat.header["srow_x"] = 0
    flat.header["sform_code"] = 1
    (tmp_path / "flat.nii").write_bytes(nib.Nifti1Image(values(), None, flat.header).to_bytes())
    refused(lambda: read_volume(tmp_path / "flat.nii"), "flat.nii", "affine")


def pixels(ds):
    return np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns)


def test_dicom_is_read_along_its_own_axes(tmp_path, slices):
    folder = write_series(tmp_path / "s", slices)
    volume = read_volume(folder)
    # Slices were stored head first; the normal of (1,0,0), (0,1,0) points to the head.
    wanted = [pixels(ds) * float(ds.RescaleSlope) for ds in slices[::-1]]
    np.testing.assert_allclose(volume.values, np.stack(wanted, axis=-1).transpose(1, 0, 2), rtol=1e-6)
    assert volume.spacing_mm == pytest.approx((4.0, 5.0, 3.0))
    assert volume.unit == "bqml"
    np.testing.assert_array_equal(to_canonical(volume.values, volume), read_source(folder).activity_bqml)
    np.testing.assert_array_equal(from_canonical(read_source(folder).activity_bqml, volume), volume.values)


@pytest.mark.parametrize(("units", "suv_type", "unit"),
                         [("BQML", None, "bqml"), ("GML", None, "suv"), ("GML", "BW", "suv"), ("GML", "LBM", "unknown"),
                          ("CNTS", None, "unknown"), (None, None, "unknown")])  # fmt: skip
def test_unit_of_a_series(tmp_path, slices, units, suv_type, unit):
    for ds in slices:
        del ds.Units
        if units is not None:
            ds.Units = units
        if suv_type is not None:
            ds.SUVType = suv_type
    assert read_volume(write_series(tmp_path / "s", slices)).unit == unit


def half_a_step(result):
    """By slice, with the rounding of float32 on top."""
    peak = np.abs(result).max(axis=(0, 1)).astype(np.float64)
    return peak / 32767 / 2 + peak * 2.0**-24


def test_derived_series_reads_back_on_the_same_grid_within_half_a_step(tmp_path, slices):
    folder = write_series(tmp_path / "s", slices)
    volume = read_volume(folder)
    result = values() * np.array([1e-3, 1.0, 0.0, 50.0, 7.0], np.float32)
    write_like(volume, result, tmp_path / "out", **TEXTS)
    before, after = read_source(folder), read_source(tmp_path / "out")
    assert after.grid == before.grid
    assert after.injection == before.injection
    error = np.abs(from_canonical(after.activity_bqml, volume).astype(np.float64) - result)
    assert (error <= half_a_step(result)).all()
    assert error.max() > 0
    for ds, plane in zip(derived(tmp_path / "out"), np.moveaxis(result, 2, 0), strict=True):
        assert ds.RescaleIntercept == 0
        assert ds.PixelRepresentation == 0
        assert int(ds.pixel_array.max()) == (32767 if plane.any() else 0)


def test_negative_values_are_stored_signed(tmp_path, slices):
    volume = read_volume(write_series(tmp_path / "s", slices))
    result = values() - np.float32(6e3)
    write_like(volume, result, tmp_path / "out", **TEXTS)
    back = read_volume(tmp_path / "out")
    assert (np.abs(back.values.astype(np.float64) - result) <= half_a_step(result)).all()
    assert back.values.min() < -5e3
    assert {ds.PixelRepresentation for ds in derived(tmp_path / "out")} == {1}


def test_tags_of_a_derived_series(tmp_path, slices):
    for ds in slices:
        ds.ImageType = ["ORIGINAL", "PRIMARY"]
        ds.SmallestImagePixelValue, ds.LargestImagePixelValue, ds.PixelPaddingValue = 1, 2, 3
        ds.InstanceCreationDate, ds.SeriesDescription, ds.AccessionNumber = "20200907", "PET AC", "A-12"
        ds.RealWorldValueMappingSequence = Sequence([Dataset()])
        ds.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x02, "LO", "private")
        info = ds.RadiopharmaceuticalInformationSequence[0]
        info.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x02, "LO", "private")
    volume = read_volume(write_series(tmp_path / "s", slices))
    write_like(volume, values(), tmp_path / "out", **TEXTS)
    made = derived(tmp_path / "out")
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [f"denoised-{k:04d}.dcm" for k in range(1, 6)]
    changed = {
        "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "ImageType", "SeriesDescription", "DerivationDescription",
        "SourceImageSequence", "RescaleSlope", "RescaleIntercept", "PixelData", "SmallestImagePixelValue",
        "LargestImagePixelValue", "PixelPaddingValue", "InstanceCreationDate", "RealWorldValueMappingSequence",
        "RadiopharmaceuticalInformationSequence",
    }  # fmt: skip
    for source, ds in zip(slices[::-1], made, strict=True):
        assert ds.ImageType == ["DERIVED", "SECONDARY"]
        assert (ds.SeriesDescription, ds.DerivationDescription) == ("PET AC denoised", "denoised by model abc")
        assert ds.SeriesNumber == 1003
        (reference,) = ds.SourceImageSequence
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        for gone in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue", "InstanceCreationDate",
                     "RealWorldValueMappingSequence"):  # fmt: skip
            assert gone not in ds
        assert "private" not in str(ds)
        assert {e.keyword for e in source if not e.tag.is_private} - {e.keyword for e in ds} <= changed
        for element in source:
            if not element.tag.is_private and element.keyword not in changed:
                assert ds[element.tag].value == element.value, element.keyword


def test_uids_are_new_and_the_same_when_made_again(tmp_path, slices):
    folder = write_series(tmp_path / "s", slices)
    volume = read_volume(folder)
    write_like(volume, values(), tmp_path / "a", **TEXTS)
    # From the same volume in memory: writing must not have changed it.
    write_like(volume, values(), tmp_path / "b", **TEXTS)
    write_like(read_volume(folder), values(), tmp_path / "c", **TEXTS)
    write_like(volume, values(), tmp_path / "other", **(TEXTS | {"uid_key": "xyz"}))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert path.read_bytes() == (tmp_path / "c" / path.name).read_bytes()
    made, other = derived(tmp_path / "a"), derived(tmp_path / "other")
    sources = {ds.SOPInstanceUID for ds in slices}
    assert len({ds.SOPInstanceUID for ds in made} | {ds.SOPInstanceUID for ds in other} | sources) == 15
    assert len({ds.SeriesInstanceUID for ds in (*made, *other, *slices)}) == 3
    assert all(ds.SOPInstanceUID.is_valid and ds.SeriesInstanceUID.is_valid for ds in made)
    assert {ds.StudyInstanceUID for ds in made} == {"1.2"}


def test_names_in_other_alphabets_and_implicit_files_come_back(tmp_path, slices):
    for ds in slices:
        ds.SpecificCharacterSet, ds.PatientName = "ISO_IR 100", "Müller^Jürgen"
    folder = write_series(tmp_path / "s", slices)
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        ds.save_as(path, implicit_vr=True)
    write_like(read_volume(folder), values(), tmp_path / "out", **TEXTS)
    assert {str(ds.PatientName) for ds in derived(tmp_path / "out")} == {"Müller^Jürgen"}


def test_scan_start_of_a_private_tag_moves_to_the_series_time(tmp_path, slices):
    """Processed after the scan: without the private tag, uptake and decay factors would refer to another start."""
    for ds in slices:
        ds.SeriesTime, ds.AcquisitionTime, ds.FrameReferenceTime = "180000", "112111", "60000"
        ds.DecayFactor = f"{factor(60.0):.6g}"
        ds.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20200907112011.00")
    folder = write_series(tmp_path / "s", slices)
    before = read_source(folder)
    assert before.injection.uptake_s == 3600.0
    write_like(read_volume(folder), values(), tmp_path / "out", **TEXTS)
    assert read_source(tmp_path / "out").injection == before.injection


def test_uneven_slices_stay_where_they_are(tmp_path):
    stored = np.random.default_rng(7).integers(1, 3000, (5, 6, 4))
    positions = [0.0, 3.0, 6.3, 9.0, 12.0]
    folder = write_series(tmp_path / "s", [pet_slice(k, stored[k], z) for k, z in enumerate(positions)])
    volume = read_volume(folder)
    write_like(volume, volume.values, tmp_path / "out", **TEXTS)
    assert [float(ds.ImagePositionPatient[2]) for ds in derived(tmp_path / "out")] == positions
    before, after = read_source(folder), read_source(tmp_path / "out")
    assert after.grid == before.grid
    np.testing.assert_allclose(after.activity_bqml, before.activity_bqml, atol=half_a_step(volume.values).max())


def test_oblique_series_is_left_oblique(tmp_path, slices):
    turned = oblique(0.4)[:3, :2] / (2.0, 3.0)
    row, column = turned[:, 0], np.cross([0, 0, 1.0], turned[:, 0])
    for k, ds in enumerate(slices):
        ds.ImageOrientationPatient = [f"{v:.10f}" for v in (*row, *column)]
        ds.ImagePositionPatient = [0.0, 0.0, 3.0 * k]
    volume = read_volume(write_series(tmp_path / "s", slices))
    write_like(volume, volume.values, tmp_path / "out", **TEXTS)
    back = read_volume(tmp_path / "out")
    assert back.affine.tobytes() == volume.affine.tobytes()
    np.testing.assert_allclose(back.values, volume.values, atol=half_a_step(volume.values).max())
    np.testing.assert_array_equal(to_canonical(volume.values, volume), volume.values[::-1, ::-1])


def test_series_that_cannot_be_referred_to_or_is_no_image_is_refused(tmp_path, slices):
    (tmp_path / "empty").mkdir()
    refused(lambda: read_volume(tmp_path / "empty"), "empty", "no DICOM file")
    slices[4].SeriesType = ["DYNAMIC", "IMAGE"]
    refused(lambda: read_volume(write_series(tmp_path / "dynamic", slices)), "slice04.dcm", "SeriesType")
    slices[4].SeriesType = ["STATIC", "IMAGE"]
    slices[4].NumberOfSlices = 6
    refused(lambda: read_volume(write_series(tmp_path / "short", slices)), "slice04.dcm", "NumberOfSlices")
    del slices[4].NumberOfSlices
    slices[1].SOPInstanceUID = slices[0].SOPInstanceUID
    refused(lambda: read_volume(write_series(tmp_path / "twice", slices)), "slice0", "SOPInstanceUID")
    for ds in slices:
        ds.SeriesInstanceUID = ""
    refused(lambda: read_volume(write_series(tmp_path / "none", slices)), "SeriesInstanceUID is missing")


@pytest.fixture(params=["nifti", "dicom"])
def source(request, tmp_path, slices):
    """A volume, and a free output of its kind."""
    if request.param == "dicom":
        return read_volume(write_series(tmp_path / "in", slices)), tmp_path / "out"
    return read_volume(write_nifti(tmp_path / "in.nii.gz", AFFINES["LPS"])), tmp_path / "out.nii.gz"


def left_behind(tmp_path):
    return {path.name for path in tmp_path.iterdir()} - {"in", "in.nii.gz"}


def digests(path: Path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {f.name: (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns) for f in files}


def test_wrong_results_are_refused_and_nothing_is_left(tmp_path, source):
    volume, out = source
    for bad in (np.nan, np.inf, 1e300):
        broken = values().astype(np.float64)
        broken[1, 2, 3] = bad
        refused(lambda broken=broken: write_like(volume, broken, out, **TEXTS), "NaN", volume.path.name)
    refused(lambda: write_like(volume, values()[1:], out, **TEXTS), "shape (3, 6, 5)", "(4, 6, 5)")
    assert left_behind(tmp_path) == set()


def test_input_is_not_touched_and_cannot_be_the_output(tmp_path, source):
    volume, out = source
    before = digests(volume.path)
    write_like(volume, values(), out, **TEXTS)
    refused(lambda: write_like(volume, values(), volume.path, **TEXTS, overwrite=True), "this is the input")
    inside = volume.path / "out" if volume.path.is_dir() else tmp_path / "sub" / ".." / "in.nii.gz"
    (tmp_path / "sub").mkdir()
    refused(lambda: write_like(volume, values(), inside, **TEXTS, overwrite=True), "this is the input")
    assert digests(volume.path) == before
    assert {p.name for p in tmp_path.iterdir()} == {volume.path.name, out.name, "sub"}


def test_output_is_replaced_only_when_asked(tmp_path, source):
    volume, out = source
    out = tmp_path / "new" / "folder" / out.name
    write_like(volume, values(), out, **TEXTS)
    first = digests(out)
    refused(lambda: write_like(volume, values(seed=8), out, **TEXTS), out.name, "exists", "--overwrite")
    assert digests(out) == first
    write_like(volume, values(seed=8), out, **TEXTS, overwrite=True)
    np.testing.assert_allclose(read_volume(out).values, values(seed=8), atol=0.2)
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_only_an_earlier_result_is_replaced(tmp_path, source, slices):
    volume, out = source
    if out.suffix:
        out.mkdir()
    else:
        write_series(out, slices)
    refused(lambda: write_like(volume, values(), out, **TEXTS, overwrite=True), out.name, "no earlier result")
    other = "out.nii" if volume.path.is_dir() else "out.txt"
    refused(lambda: write_like(volume, values(), tmp_path / other, **TEXTS), other)
    if not out.suffix:
        (tmp_path / "file").write_text("a file")
        refused(lambda: write_like(volume, values(), tmp_path / "file", **TEXTS, overwrite=True), "no earlier result")


def test_failure_to_write_leaves_the_earlier_result(tmp_path, source, monkeypatch):
    volume, out = source
    write_like(volume, values(), out, **TEXTS)
    first = digests(out)
    replace = os.replace

    def fails(old, new):
        if Path(old).name == "new":
            raise OSError(28, "No space left on device", str(new))
        replace(old, new)

    monkeypatch.setattr(os, "replace", fails)
    refused(lambda: write_like(volume, values(seed=8), out, **TEXTS, overwrite=True), out.name, "No space left")
    assert digests(out) == first
    assert left_behind(tmp_path) == {out.name}


def test_descriptions_have_to_fit_their_tags(tmp_path, slices):
    volume = read_volume(write_series(tmp_path / "in", slices))
    for tag, bad in (("series_description", "x" * 65), ("series_description", "a\\b"), ("derivation_description", "é")):
        with pytest.raises(UsageError, match="ASCII"):
            write_like(volume, values(), tmp_path / "out", **(TEXTS | {tag: bad}))
    assert left_behind(tmp_path) == set()


def test_whole_body_series_comes_back(tmp_path, real_data):
    folder = real_data("wholebody_fdg_dicom") / "image"
    volume = read_volume(folder)
    assert (volume.values.shape, volume.unit) == ((128, 128, 267), "bqml")
    result = volume.values * np.float32(0.9)
    write_like(volume, result, tmp_path / "out", **TEXTS)
    before, after = read_source(folder), read_source(tmp_path / "out")
    assert after.grid == before.grid
    assert after.injection == before.injection
    assert volume.spacing_mm == pytest.approx(before.grid.spacing_mm)
    assert after.provenance["decay_factors"] == before.provenance["decay_factors"]
    back = read_volume(tmp_path / "out")
    assert (np.abs(back.values.astype(np.float64) - result) <= half_a_step(result)).all()
