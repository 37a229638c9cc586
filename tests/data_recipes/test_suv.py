"""SUV in its variants, worked by hand."""

import math
from itertools import pairwise

import numpy as np
import pydicom
import pytest
from dicom_files import FRAME_S, LAMBDA, factor, pet_slice, write_series

from data_recipes.errors import DataError
from data_recipes.readers.dicom import read_dicom
from data_recipes.readers.read import read_source, read_suv_per_value
from data_recipes.units import body_surface_m2, james_lean_body_mass_kg, lean_body_mass_kg

HALF_LIFE_S = 6586.2  # of F-18, DDEP


def test_lean_body_mass_by_hand():
    """178 cm and 110 kg: BMI 34.718; 9270 x 110 / (6680 + 216 x 34.718) = 71.92 kg."""
    assert lean_body_mass_kg(110.0, 1.78, "M") == pytest.approx(9270 * 110 / (6680 + 216 * 110 / 3.1684), rel=1e-12)
    assert lean_body_mass_kg(110.0, 1.78, "M") == pytest.approx(71.92, abs=0.01)
    # 160 cm and 60 kg: BMI 23.4375; 556200 / (8780 + 5718.75) = 38.362 kg.
    assert lean_body_mass_kg(60.0, 1.60, "F") == pytest.approx(38.3619, abs=1e-4)
    # 1.07 x 60 - 148 (60 / 160)^2 = 43.3875; 1.10 x 80 - 128 (80 / 180)^2 = 62.7160.
    assert james_lean_body_mass_kg(60.0, 1.60, "F") == pytest.approx(43.3875, abs=1e-9)
    assert james_lean_body_mass_kg(80.0, 1.80, "M") == pytest.approx(62.71605, abs=1e-5)


@pytest.mark.parametrize("sex", ["M", "F"])
def test_james_fails_where_janmahasatian_goes_on(sex):
    grown = [lean_body_mass_kg(w, 1.70, sex) for w in range(40, 260, 5)]
    assert all(b > a for a, b in pairwise(grown))
    with pytest.raises(ValueError, match="James falls"):
        james_lean_body_mass_kg(130.0, 1.70, sex)
    assert james_lean_body_mass_kg(100.0, 1.70, sex) < 100
    with pytest.raises(ValueError, match="height in m"):
        lean_body_mass_kg(70.0, 170.0, sex)


def test_surface_by_hand():
    """0.007184 x 70^0.425 x 170^0.725 = exp(ln 0.007184 + 0.425 ln 70 + 0.725 ln 170) = 1.8097 m2."""
    by_hand = math.exp(math.log(0.007184) + 0.425 * math.log(70) + 0.725 * math.log(170))
    assert body_surface_m2(70.0, 1.70) == pytest.approx(by_hand, rel=1e-12)
    assert body_surface_m2(70.0, 1.70) == pytest.approx(1.810, abs=1e-3)


def series(change=lambda ds: None, count=5):
    stored = np.random.default_rng(1).integers(1, 3000, (count, 6, 4))
    slices = [pet_slice(k, stored[k], 3.0 * k) for k in range(count)]
    for ds in slices:
        ds.PatientSize, ds.PatientSex = "1.60", "F"
        change(ds)
    return slices


def changed(**tags):
    def change(ds):
        for tag, value in tags.items():
            setattr(ds, tag, value)

    return change


@pytest.mark.parametrize(
    ("tags", "mass_g"),
    [
        ({"Units": "GML", "SUVType": "BW"}, 70_000.0),
        ({"Units": "GML", "SUVType": "LBMJANMA"}, 9270e3 * 70 / (8780 + 244 * 70 / 2.56)),
        ({"Units": "GML", "SUVType": "LBMJAMES128"}, 1e3 * (1.07 * 70 - 148 * (70 / 160) ** 2)),
        ({"Units": "CM2ML", "SUVType": "BSA"}, 1e4 * 0.007184 * 70**0.425 * 160**0.725),
        ({"Units": "CM2ML"}, 1e4 * 0.007184 * 70**0.425 * 160**0.725),
    ],
)
def test_suv_of_every_kind_becomes_the_same_activity(tmp_path, tags, mass_g):
    """SUV = c M / A: a value v stands for c = v A / M Bq/mL, with A = 370 MBq decayed over an hour."""
    plain = read_dicom(write_series(tmp_path / "plain", series()))
    at_scan_bq = 370e6 * 2 ** (-3600 / HALF_LIFE_S)
    subject = read_dicom(write_series(tmp_path / "suv", series(changed(**tags))))
    np.testing.assert_allclose(subject.activity_bqml, plain.activity_bqml * (at_scan_bq / mass_g), rtol=2e-6)
    assert read_suv_per_value(tmp_path / "suv") == pytest.approx(70_000.0 / mass_g, rel=1e-12)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"Units": "GML", "SUVType": "LBM"}, ["SUVType is LBM", "BQML"]),
        ({"Units": "GML", "SUVType": "IBW"}, ["SUVType is IBW"]),
        ({"Units": "GML", "SUVType": "BSA"}, ["Units is GML but SUVType is BSA"]),
        ({"Units": "GML", "SUVType": "LBMJANMA", "PatientSize": None}, ["PatientSize is missing"]),
        ({"Units": "GML", "SUVType": "LBMJANMA", "PatientSex": "O"}, ["PatientSex is missing"]),
        ({"Units": "GML", "SUVType": "LBMJANMA", "PatientSize": "160"}, ["height in m"]),
        ({"Units": "GML", "SUVType": "LBMJAMES128", "PatientWeight": "120"}, ["James falls"]),
        ({"Units": "CNTS"}, ["(7053,1009)", "(7053,1000)"]),
        ({"Units": "PROPCPS"}, ["Units is PROPCPS"]),
    ],
)
def test_suv_that_cannot_be_interpreted_is_refused(tmp_path, tags, words):
    with pytest.raises(DataError) as caught:
        read_dicom(write_series(tmp_path / "s", series(changed(**tags))))
    for word in ("slice00.dcm", *words):
        assert word in str(caught.value)


def philips(element, value, vr="DS"):
    def change(ds):
        ds.Units = "CNTS"
        ds.private_block(0x7053, "Philips PET Private Group", create=True).add_new(element, vr, value)

    return change


def test_counts_of_philips(tmp_path):
    plain = read_dicom(write_series(tmp_path / "plain", series()))
    by_activity = read_dicom(write_series(tmp_path / "a", series(philips(0x09, "2.5"))))
    np.testing.assert_allclose(by_activity.activity_bqml, 2.5 * plain.activity_bqml, rtol=1e-6)
    by_suv = read_dicom(write_series(tmp_path / "b", series(philips(0x00, b"0.001 ", "UN"))))
    bqml = 0.001 * 370e6 * 2 ** (-3600 / HALF_LIFE_S) / 70e3
    np.testing.assert_allclose(by_suv.activity_bqml, bqml * plain.activity_bqml, rtol=2e-6)

    def both(ds):
        philips(0x00, "0.001")(ds)
        philips(0x09, "0")(ds)

    # A factor of 0 is Philips' way of saying none.
    zero = read_dicom(write_series(tmp_path / "c", series(both)))
    np.testing.assert_array_equal(zero.activity_bqml, by_suv.activity_bqml)
    slices = series(philips(0x09, "2.5"))
    philips(0x09, "2.6")(slices[3])
    with pytest.raises(DataError, match="differs between slices"):
        read_dicom(write_series(tmp_path / "d", slices))


def test_images_without_decay_correction_are_corrected_to_scan_start(tmp_path):
    """A bed that starts t later and lasts T measures the mean activity over it: 1 / factor(t) of that at scan start."""
    corrected = read_dicom(write_series(tmp_path / "plain", series()))
    slices = series(changed(DecayCorrection="NONE", DecayFactor="1"))
    late = [0.0, 0.0, 300.0, 300.0, 300.0]
    for ds, t in zip(slices, late, strict=True):
        ds.AcquisitionTime = "112511.00" if t else "112011.00"
    subject = read_dicom(write_series(tmp_path / "none", slices))
    wanted = corrected.activity_bqml * np.array([factor(t) for t in late], np.float32)
    np.testing.assert_allclose(subject.activity_bqml, wanted, rtol=1e-6)
    assert factor(300.0) == pytest.approx(math.exp(LAMBDA * 300) * LAMBDA * FRAME_S / -math.expm1(-LAMBDA * FRAME_S))
    with pytest.raises(DataError, match="slices have different times"):
        read_suv_per_value(tmp_path / "none")
    for ds in slices:
        del ds.AcquisitionTime
    with pytest.raises(DataError, match=r"slice00.*NONE.*AcquisitionTime"):
        read_dicom(write_series(tmp_path / "missing", slices))


def test_suv_of_the_whole_body_scan_by_hand(real_data):
    """From the tags alone: 71 kg, 388.78 MBq injected 45 min 11 s before the series; each slice has its own slope."""
    folder = real_data("wholebody_fdg_dicom") / "image"
    subject = read_source(folder)
    slices = sorted((pydicom.dcmread(p) for p in folder.iterdir()), key=lambda ds: float(ds.ImagePositionPatient[2]))
    info = slices[0].RadiopharmaceuticalInformationSequence[0]
    clock = [sum(float(t[k : k + 2]) * s for k, s in ((0, 3600), (2, 60), (4, 1)))
             for t in (str(slices[0].SeriesTime), str(info.RadiopharmaceuticalStartTime))]  # fmt: skip
    assert clock[0] - clock[1] == 2711.0
    left_bq = float(info.RadionuclideTotalDose) * 2 ** (-2711.0 / HALF_LIFE_S)
    suv_per_bqml = float(slices[0].PatientWeight) * 1000 / left_bq
    assert subject.suv_factor() == pytest.approx(suv_per_bqml, rel=1e-6)
    # The scanner's own half-life (6588 s) would give an SUV that is 8e-5 lower.
    own = (
        float(slices[0].PatientWeight)
        * 1000
        / (float(info.RadionuclideTotalDose) * 2 ** (-2711.0 / float(info.RadionuclideHalfLife)))
    )
    assert own / suv_per_bqml - 1 == pytest.approx(-math.log(2) * 2711 * (1 / HALF_LIFE_S - 1 / 6588.0), abs=1e-6)
    # First and last slices stay where they are; all others are interpolated to an even step.
    stack = np.stack([ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in slices])
    z = np.array([float(ds.ImagePositionPatient[2]) for ds in slices])
    even = np.linspace(z[0], z[-1], len(z))
    for k in (0, 100, 266):
        lower = min(int(np.searchsorted(z, even[k], side="right")) - 1, len(z) - 2)
        w = (even[k] - z[lower]) / (z[lower + 1] - z[lower])
        plane = ((1 - w) * stack[lower] + w * stack[lower + 1]) * suv_per_bqml
        ours = subject.activity_bqml[:, :, k].T[::-1, ::-1] * subject.suv_factor()
        np.testing.assert_allclose(ours, plane, rtol=2e-5, atol=1e-6)
        assert ours.sum(dtype=float) == pytest.approx(plane.sum(), rel=1e-6)
    # Total activity: the integral of the piecewise linear image, by its values on the even grid.
    weights = np.zeros(len(z))
    for at in even:
        lower = min(int(np.searchsorted(z, at, side="right")) - 1, len(z) - 2)
        w = (at - z[lower]) / (z[lower + 1] - z[lower])
        weights[lower] += 1 - w
        weights[lower + 1] += w
    voxel_ml = 4.6875**2 * (even[1] - even[0]) * 1e-3
    total_bq = float(weights @ stack.sum(axis=(1, 2))) * voxel_ml
    assert subject.total_mbq() * 1e6 == pytest.approx(total_bq, rel=1e-6)
    assert subject.provenance["fraction_in_image"] == pytest.approx(total_bq / left_bq, rel=1e-6)
