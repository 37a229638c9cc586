"""Folders with several doses of the same subjects."""

import json

import nibabel as nib
import numpy as np
import pytest

from data_recipes.collections.multi_dose import dose_in, find_multi_dose, read_dose
from data_recipes.errors import DataError
from tests.data_recipes.dicom_files import pet_slice, write_series


@pytest.mark.parametrize(
    ("name", "drf"),
    [
        *(
            ("Full_dose", 1),
            ("full dose", 1),
            ("1-20 dose", 20),
            ("1-2 dose", 2),
            ("subject_drf20.nii.gz", 20),
            ("DRF_4", 4),
        ),
        *(("1-100_dose", 100), ("drf2.5", 2.5), ("phantom-0000_drf-002p5_real-0.nii.gz", 2.5), ("phantom_noise-free", None)),
        *(("21-20 dose", None), ("dose", None), ("Subject_10-12", None), ("drf0", None)),
    ],
)
def test_doses_of_names(name, drf):
    assert dose_in(name) == drf


def write(path, value=1.0, units="suv"):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((4, 5, 6), value, np.float32), np.diag([-2.0, 3.0, 4.0, 1.0])), path)
    path.with_name(path.name.split(".nii")[0] + ".json").write_text(json.dumps({"Units": units}))


def test_subjects_hold_doses(tmp_path):
    for subject in ("site/Jane Doe", "site/John Doe"):
        for dose in ("Full_dose", "1-4 dose"):
            write(tmp_path / subject / f"{dose}.nii.gz")
    write(tmp_path / "no full dose" / "1-4 dose.nii.gz")
    found = find_multi_dose(tmp_path)
    assert [(s.name, s.drfs) for s in found] == [("subject-0001", (1, 4)), ("subject-0002", (1, 4))]
    assert found[1].paths[4] == tmp_path / "site/John Doe/1-4 dose.nii.gz"
    image = read_dose(found[0].paths[1])
    assert image.suv.shape == (4, 5, 6) and image.spacing_mm == (2, 3, 4)


def test_doses_hold_subjects(tmp_path):
    for name in ("a", "b"):
        for dose in ("Full_dose", "1-10 dose"):
            write(tmp_path / dose / f"{name}.nii")
    assert [s.paths for s in find_multi_dose(tmp_path)] == [
        {d: tmp_path / folder / f"{name}.nii" for d, folder in ((1, "Full_dose"), (10, "1-10 dose"))} for name in ("a", "b")
    ]


def test_files_of_one_folder(tmp_path):
    """As petsim export writes them."""
    for name in ("a", "b"):
        for dose in ("drf-001", "drf-020"):
            for realization in (0, 1):
                write(tmp_path / f"{name}_{dose}_real-{realization}.nii.gz")
        write(tmp_path / f"{name}_noise-free.nii.gz")
    found = find_multi_dose(tmp_path)
    assert [s.paths for s in found] == [
        {d: tmp_path / f"{name}_drf-{d:03d}_real-0.nii.gz" for d in (1, 20)} for name in ("a", "b")
    ]


def test_dicom_series_below_doses(tmp_path):
    series = [pet_slice(k, np.full((4, 5), 100 + k, np.uint16), 3.0 * k) for k in range(3)]
    for dose in ("Full_dose", "1-50 dose"):
        (tmp_path / "one" / dose).mkdir(parents=True)
        write_series(tmp_path / "one" / dose / f"series of {dose.split()[0]}", series)
    (subject,) = find_multi_dose(tmp_path)
    assert subject.drfs == (1, 50)
    assert read_dose(subject.paths[50]).suv.max() > 0


def test_refusals(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_multi_dose(tmp_path / "absent")
    with pytest.raises(DataError, match="no subject with a full and a lower dose"):
        find_multi_dose(tmp_path)
    for name in ("drf4", "1-4 dose", "full_dose"):
        write(tmp_path / "one" / f"{name}.nii")
    with pytest.raises(DataError, match="second image at DRF 4"):
        find_multi_dose(tmp_path)
