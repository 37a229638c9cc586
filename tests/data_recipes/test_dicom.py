"""PET DICOM series: what is read must be what was measured, and what cannot be interpreted must be refused."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from dicom_files import FRAME_S, LAMBDA, factor, pet_slice, write_series
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from data_recipes.errors import DataError, UsageError
from data_recipes.readers.dicom import read_dicom
from data_recipes.readers.read import read_source, read_suv_per_value

SHAPE = (5, 6, 4)  # slices, rows, columns
STEP = 3.0


def stored_values():
    return np.random.default_rng(1).integers(1, 3000, SHAPE)


@pytest.fixture
def slices():
    values = stored_values()
    return [pet_slice(k, values[k], -30.0 + STEP * k) for k in range(SHAPE[0])]


def tracer(ds) -> Dataset:
    return ds.RadiopharmaceuticalInformationSequence[0]


def in_all(slices, **tags):
    with disable_value_validation():
        for ds in slices:
            for tag, value in tags.items():
                ds.pop(tag, None)
                setattr(ds, tag, value)
    return slices


def beds(slices, starts):
    """Give every slice its bed's frame start as GE writes it, with the right decay factor."""
    for ds, start in zip(slices, starts, strict=True):
        ds.FrameReferenceTime = str(int(start * 1000))
        ds.DecayFactor = f"{factor(start):.6g}"
    return slices


def refused(folder, *words, **options):
    with pytest.raises(DataError) as caught:
        read_dicom(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) not in message
    for word in words:
        assert word in message
    return message


def test_voxels_are_rescaled_by_slice_and_turned_to_ras(tmp_path, slices):
    subject = read_dicom(write_series(tmp_path / "s", slices))
    stored = stored_values()
    # DICOM x grows to the left and y to the back; RAS+ is the reverse of both. Slope of slice k is 1 + k.
    wanted = np.array([[[stored[k, 5 - j, 3 - i] * (1 + k) for k in range(5)] for j in range(6)] for i in range(4)])
    np.testing.assert_allclose(subject.activity_bqml, wanted, rtol=1e-6)
    assert subject.activity_bqml.dtype == np.float32
    assert subject.grid.spacing_mm == pytest.approx((4.0, 5.0, 3.0))
    # The last column's center, -10 + 3 x 4 mm to the left, is the most rightward voxel.
    assert subject.grid.origin_mm == pytest.approx((-2.0, -5.0, -30.0))


def test_injection_is_read_from_the_tags(tmp_path, slices):
    subject = read_dicom(write_series(tmp_path / "s", slices))
    assert asdict(subject.injection) == {
        "isotope": "F-18", "tracer": "FDG", "injected_mbq": 370.0, "uptake_s": 3600.0, "weight_kg": 70.0,
        "duration_s": FRAME_S,
    }  # fmt: skip
    assert subject.is_noisy
    assert subject.mu_per_cm is None
    left_mbq = 370.0 * 2 ** (-3600 / 6586.2)
    image_mbq = subject.activity_bqml.sum(dtype=float) * 4.0 * 5.0 * 3.0 * 1e-3 * 1e-6
    assert subject.provenance["fraction_in_image"] == pytest.approx(image_mbq / left_mbq, rel=1e-5)
    assert any("injected activity" in w for w in subject.provenance["warnings"])


def test_file_names_and_their_order_change_nothing(tmp_path, slices):
    one = read_dicom(write_series(tmp_path / "a", slices))
    two = read_dicom(write_series(tmp_path / "b", slices[::-1], name="other{}".format))
    assert one.content_sha256 == two.content_sha256
    np.testing.assert_array_equal(one.activity_bqml, two.activity_bqml)
    slices[2].RescaleSlope = "3.001"
    three = read_dicom(write_series(tmp_path / "c", slices))
    assert three.content_sha256 != one.content_sha256


def test_nothing_that_identifies_reaches_the_subject(tmp_path, slices):
    tracer(slices[0]).Radiopharmaceutical = "FDG for Secret^Person"
    subject = read_dicom(write_series(tmp_path / "Secret", slices))
    told = json.dumps([subject.name, asdict(subject.injection), subject.provenance, subject.label_names])
    for secret in ("Secret", "4711", "1961", "Hospital", "1.2.3", "2020", "slice0", str(tmp_path)):
        assert secret not in told
    assert subject.name == "subject-" + subject.content_sha256[:8]
    tracer(slices[0]).Radiopharmaceutical = "Secret^Person"
    assert read_dicom(write_series(tmp_path / "Secret", slices)).injection.tracer == "unknown"


def test_feet_first_order_and_other_orientations_show_the_same_patient(tmp_path, slices):
    plain = read_dicom(write_series(tmp_path / "a", slices))
    turned = []
    for ds in slices:
        # The same plane written with rows running to the right: mirrored columns, mirrored direction.
        pixels = np.frombuffer(ds.PixelData, "<u2").reshape(6, 4)[:, ::-1]
        ds.PixelData = pixels.tobytes()
        ds.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [2.0, -20.0, ds.ImagePositionPatient[2]]
        turned.append(ds)
    mirrored = read_dicom(write_series(tmp_path / "b", turned))
    np.testing.assert_array_equal(mirrored.activity_bqml, plain.activity_bqml)
    assert mirrored.grid.origin_mm == pytest.approx(plain.grid.origin_mm)


def test_uneven_steps_are_resampled_linearly(tmp_path):
    positions = [0.0, 3.0, 6.3, 9.0, 12.0]
    ramp = [np.full((6, 4), 100) for _ in positions]
    slices = [pet_slice(k, ramp[k], z) for k, z in enumerate(positions)]
    for ds, z in zip(slices, positions, strict=True):
        ds.RescaleSlope = str(1.0 + z)
    subject = read_dicom(write_series(tmp_path / "s", slices))
    # A value linear in z stays exactly linear on the even grid.
    np.testing.assert_allclose(subject.activity_bqml[1, 1], 100 * (1 + 3.0 * np.arange(5)), rtol=1e-5)
    assert "resampled" in subject.provenance["notes"][0]


def test_missing_and_repeated_slices_are_refused(tmp_path, slices):
    refused(write_series(tmp_path / "gap", slices[:2] + slices[3:]), "missing slice", "slice01.dcm", "slice02.dcm")
    slices[0].NumberOfSlices = 6
    refused(write_series(tmp_path / "end", slices), "NumberOfSlices", "copy the whole series")
    del slices[0].NumberOfSlices
    slices[3].ImagePositionPatient = slices[2].ImagePositionPatient
    refused(write_series(tmp_path / "twice", slices), "ImagePositionPatient", "both at -24.00 mm")


def test_units_have_to_be_known(tmp_path, slices):
    bad = in_all(slices, Units="")
    folder = write_series(tmp_path / "s", bad)
    refused(folder, "Units", "--source-units", "slice00.dcm")
    assert read_dicom(folder, units="bqml").activity_bqml.max() > 0
    refused(write_series(tmp_path / "c", in_all(slices, Units="CNTS")), "Units is CNTS")
    refused(write_series(tmp_path / "g", in_all(slices, Units="GML")), "Units is GML", "--source-units", units="bqml")
    with pytest.raises(UsageError, match="--source-units"):
        read_dicom(folder, units="counts")


def test_suv_becomes_activity_with_weight_dose_and_uptake(tmp_path, slices):
    plain = read_dicom(write_series(tmp_path / "a", slices))
    suv = read_dicom(write_series(tmp_path / "b", in_all(slices, Units="GML")))
    scale = 370e6 * math.exp(-math.log(2) / 6586.2 * 3600) / 70e3
    np.testing.assert_allclose(suv.activity_bqml, plain.activity_bqml * scale, rtol=1e-5)
    assert suv.suv_factor() == pytest.approx(1 / scale)
    refused(write_series(tmp_path / "c", in_all(slices, PatientWeight=None)), "--weight-kg")
    assert read_dicom(tmp_path / "c", weight_kg=70.0).activity_bqml.max() == pytest.approx(suv.activity_bqml.max())
    refused(write_series(tmp_path / "d", in_all(slices, SUVType="LBM")), "SUVType")


def test_stated_values_win_over_tags(tmp_path, slices):
    tracer(slices[0]).RadionuclideTotalDose = "370"
    folder = write_series(tmp_path / "s", slices)
    refused(folder, "RadionuclideTotalDose", "--activity-mbq")
    subject = read_dicom(folder, injected_mbq=300.0, weight_kg=60.0, uptake_s=1800.0, duration_s=120.0, fwhm_mm=5.0)
    assert subject.injection.injected_mbq == 300.0
    assert subject.injection.weight_kg == 60.0
    assert subject.injection.uptake_s == 1800.0
    assert subject.injection.duration_s == 120.0
    assert subject.fwhm_mm == (5.0, 5.0, 5.0)
    assert subject.provenance["source_fwhm"] == "given"
    for wrong in ({"weight_kg": -1.0}, {"uptake_s": math.nan}, {"injected_mbq": 0.0}, {"fwhm_mm": -2.0}):
        with pytest.raises(UsageError, match="--"):
            read_dicom(folder, **wrong)


def test_beds_with_ge_frame_reference_times_are_accepted(tmp_path, slices):
    subject = read_dicom(write_series(tmp_path / "s", beds(slices, [0.0, 0.0, 243.0, 243.0, 486.0])))
    assert subject.provenance["decay_factors"] == pytest.approx([factor(0), factor(243), factor(486)], rel=1e-5)


def test_beds_with_standard_frame_reference_times_and_acquisition_times_are_accepted(tmp_path, slices):
    for k, ds in enumerate(beds(slices, [0.0, 0.0, 300.0, 300.0, 300.0])):
        late = 300.0 if k > 1 else 0.0
        ds.AcquisitionTime = "112511.00" if late else "112011.00"
        # The standard's Frame Reference Time: when the activity equals its mean over the frame.
        ds.FrameReferenceTime = f"{1000 * math.log(factor(late)) / LAMBDA:.1f}"
    by_clock = read_dicom(write_series(tmp_path / "a", slices))
    assert by_clock.injection.uptake_s == 3600.0
    by_frame = read_dicom(write_series(tmp_path / "b", in_all(slices, AcquisitionTime="112011.00")))
    assert by_frame.provenance["decay_factors"] == by_clock.provenance["decay_factors"]


def test_a_decay_factor_that_disagrees_is_refused(tmp_path, slices):
    good = beds(slices, [0.0, 0.0, 243.0, 243.0, 486.0])
    good[3].DecayFactor = f"{factor(243) * (1 + 5e-5):.7g}"
    read_dicom(write_series(tmp_path / "near", good))
    good[3].DecayFactor = f"{factor(243) * (1 + 2e-4):.7g}"
    refused(write_series(tmp_path / "far", good), "DecayFactor", "slice03.dcm")
    good[3].DecayFactor = f"{factor(243):.6g}"
    for ds in good:
        tracer(ds).RadionuclideHalfLife = "6600"
    refused(write_series(tmp_path / "half", good), "DecayFactor")
    del good[1].DecayFactor
    refused(write_series(tmp_path / "none", good), "DecayFactor is missing", "slice01.dcm")


def test_frame_times_that_miss_scan_start_are_refused(tmp_path, slices):
    # The series was opened five minutes before the first frame: FrameReferenceTime 0 cannot then be series time.
    refused(write_series(tmp_path / "s", in_all(slices, SeriesTime="111511.00")), "DecayFactor")


def test_a_late_series_time_gives_way_to_vendor_tags_then_acquisition(tmp_path, slices):
    in_all(slices, SeriesTime="150000.00")
    by_acquisition = read_dicom(write_series(tmp_path / "a", slices))
    assert by_acquisition.injection.uptake_s == 3600.0
    assert "earliest AcquisitionTime" in by_acquisition.provenance["notes"][0]
    for ds in slices:
        ds.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20200907112010.00")
        ds.AcquisitionTime = "112010.00"
    by_vendor = read_dicom(write_series(tmp_path / "b", slices))
    assert by_vendor.injection.uptake_s == 3599.0
    assert "vendor" in by_vendor.provenance["notes"][0]
    siemens = [pet_slice(k, stored_values()[k], STEP * k) for k in range(5)]
    for ds in in_all(siemens, SeriesTime="150000.00", AcquisitionTime="112012.00"):
        ds.private_block(0x0071, "SIEMENS MED PT", create=True).add_new(0x22, "DT", "20200907112011.50")
    assert read_dicom(write_series(tmp_path / "c", siemens)).injection.uptake_s == 3600.5


def test_uptake_across_midnight_and_injection_after_the_scan(tmp_path, slices):
    in_all(slices, SeriesTime="001000.00", AcquisitionTime="001000.00")
    for ds in slices:
        tracer(ds).RadiopharmaceuticalStartTime = "232000.00"
    assert read_dicom(write_series(tmp_path / "a", slices)).injection.uptake_s == 3000.0
    for ds in slices:
        tracer(ds).RadiopharmaceuticalStartTime = "001500.00"
    refused(write_series(tmp_path / "b", slices), "RadiopharmaceuticalStartTime", "--uptake-s")
    for ds in slices:
        tracer(ds).RadiopharmaceuticalStartDateTime = "20200906234000.00"
    assert read_dicom(write_series(tmp_path / "c", slices)).injection.uptake_s == 1800.0


def test_admin_correction_is_moved_to_scan_start(tmp_path, slices):
    start = read_dicom(write_series(tmp_path / "a", slices))
    for ds in in_all(slices, DecayCorrection="ADMIN"):
        ds.DecayFactor = f"{factor(3600.0):.6g}"
    admin = read_dicom(write_series(tmp_path / "b", slices))
    np.testing.assert_allclose(admin.activity_bqml, start.activity_bqml * math.exp(-LAMBDA * 3600), rtol=1e-5)
    # The same value stands for less SUV when it was corrected to the injection.
    at_start, at_injection = (read_suv_per_value(tmp_path / name) for name in "ab")
    assert at_start == pytest.approx(start.suv_factor())
    assert at_injection == pytest.approx(at_start * math.exp(-LAMBDA * 3600), rel=1e-5)
    with pytest.raises(DataError, match="Units is BQML"):
        read_suv_per_value(tmp_path / "a", units="suv")
    refused(write_series(tmp_path / "c", in_all(slices, DecayCorrection="NONE")), "DecayCorrection is NONE")


def test_spect_in_pet_clothing_is_refused(tmp_path, slices):
    refused(write_series(tmp_path / "nm", in_all(slices, Modality="NM")), "SPECT", "Modality")
    in_all(slices, Modality="PT", SOPClassUID="1.2.840.10008.5.1.4.1.1.20")
    refused(write_series(tmp_path / "sop", slices), "SPECT", "SOPClassUID")
    in_all(slices, SOPClassUID="1.2.840.10008.5.1.4.1.1.128")
    for name in ("^99m^Technetium", "177Lu", "I-123", "^111^Indium"):
        for ds in slices:
            tracer(ds).RadionuclideCodeSequence[0].CodeMeaning = name
        refused(write_series(tmp_path / "iso", slices), "SPECT", "RadionuclideCodeSequence")
    for ds in slices:
        del tracer(ds).RadionuclideCodeSequence
        tracer(ds).RadionuclideHalfLife = "21672"
    refused(write_series(tmp_path / "life", slices), "RadionuclideHalfLife", "SPECT")


def test_half_life_has_to_be_that_of_the_isotope(tmp_path, slices):
    for ds in slices:
        tracer(ds).RadionuclideHalfLife = "4062.6"
    refused(write_series(tmp_path / "s", slices), "F-18", "4062.6")


@pytest.mark.parametrize(
    ("tag", "value", "word"),
    [
        ("SeriesInstanceUID", "1.2.9", "mixed series"),
        ("Units", "CNTS", "mixed series"),
        ("PatientID", "ID-1", "mixed series"),
        ("Modality", "CT", "Modality"),
        ("ImageOrientationPatient", [0, 1, 0, 1, 0, 0], "ImageOrientationPatient"),
        ("ImagePositionPatient", [-8.0, -20.0, -24.0], "shifted sideways"),
        ("RescaleSlope", None, "RescaleSlope"),
        ("PixelData", b"\0\0", "PixelData"),
        ("NumberOfFrames", 2, "multi-frame"),
    ],
)
def test_one_wrong_slice_is_named(tmp_path, slices, tag, value, word):
    setattr(slices[2], tag, value)
    message = refused(write_series(tmp_path / "s", slices), word)
    assert "slice02.dcm" in message or tag == "ImagePositionPatient"


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("SeriesType", ["DYNAMIC", "IMAGE"]),
        ("SeriesType", ["STATIC", "REPROJECTION"]),
        ("CountsSource", "TRANSMISSION"),
        ("CorrectedImage", ["DECY"]),
        ("CollimatorType", "PARA"),
        ("DecayCorrection", ""),
        ("PatientWeight", "7000"),
        ("SeriesTime", "993000"),
    ],
)
def test_series_that_are_no_quantitative_static_image_are_refused(tmp_path, slices, tag, value):
    refused(write_series(tmp_path / "s", in_all(slices, **{tag: value})), tag)


def test_oblique_slices_are_refused(tmp_path, slices):
    c, s = math.cos(0.3), math.sin(0.3)
    for k, ds in enumerate(slices):
        ds.ImageOrientationPatient = [c, s, 0, -s, c, 0]
        ds.ImagePositionPatient = [0.0, 0.0, 3.0 * k]
    refused(write_series(tmp_path / "s", slices), "oblique")


def test_two_tracers_are_refused(tmp_path, slices):
    slices[0].RadiopharmaceuticalInformationSequence = Sequence([tracer(slices[0]), tracer(slices[0])])
    refused(write_series(tmp_path / "s", slices), "RadiopharmaceuticalInformationSequence")


def test_folders_without_a_series_are_refused(tmp_path, slices):
    (tmp_path / "notes.txt").write_text("no image")
    refused(tmp_path, "no DICOM file")
    refused(write_series(tmp_path / "one", slices[:1]), "single slice")
    with pytest.raises(DataError, match="neither a NIfTI"):
        read_source(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="no such file"):
        read_source(tmp_path / "nowhere")
    assert read_source(write_series(tmp_path / "s", slices)).provenance["kind"] == "dicom"


def test_whole_body_scan(real_data):
    subject = read_source(real_data("wholebody_fdg_dicom") / "image")
    assert subject.grid.shape == (128, 128, 267)
    assert subject.grid.spacing_mm == pytest.approx((4.6875, 4.6875, 3.27), abs=1e-4)
    assert subject.injection.injected_mbq == pytest.approx(388.777, abs=1e-3)
    assert subject.injection.uptake_s == 45 * 60 + 11
    assert (subject.injection.weight_kg, subject.injection.duration_s) == (71.0, 240.0)
    assert subject.provenance["decay_factors"] == [1.01268, 1.0389, 1.06581, 1.09341, 1.12172, 1.15077]
    assert "resampled" in subject.provenance["notes"][0]
    assert subject.provenance["fraction_in_image"] == pytest.approx(0.66, abs=0.01)
    assert subject.provenance["warnings"] == []
    told = json.dumps([subject.name, subject.provenance, asdict(subject.injection)])
    assert "STS" not in told
    assert "1.3.6.1" not in told
    assert "2000" not in told


def test_phantom_without_units(real_data):
    folder = real_data("nema_iq_dicom")
    with pytest.raises(DataError, match=r"^PT\..*Units is missing.*--source-units"):
        read_dicom(folder)
    subject = read_dicom(folder, units="bqml")
    assert subject.grid.shape == (192, 192, 89)
    assert subject.injection.injected_mbq is None
    assert subject.injection.uptake_s is None
    assert subject.injection.duration_s is None
