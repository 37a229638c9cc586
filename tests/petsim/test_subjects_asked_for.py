"""Families, lesion shapes and inserted lesions of make-dataset: in the configuration only where they are asked for."""

from dataclasses import replace

import numpy as np
import pytest

from data_recipes.errors import DataError, UsageError
from data_recipes.phantoms.analytic import cylinder
from data_recipes.subject_file import write_subject_file
from petsim.cache.store import sha256_of, write_subject
from petsim.dataset import Job, Request, check_request, configuration, jobs_of, load_subject, make_dataset
from tests.petsim.test_report import record

USUAL = Request(out="")


def test_datasets_of_usual_patients_keep_their_hash(tmp_path):
    old = replace(USUAL, family="reference")
    known = configuration(old)
    assert not {"family", "lesions", "insert_lesions", "anatomy"} & set(known)
    other = configuration(replace(USUAL, family="heavy", lesions="irregular"))
    assert (other["family"], other["lesions"]) == ("heavy", "irregular")
    assert {k: v for k, v in other.items() if k not in ("family", "lesions", "anatomy")} == known
    assert configuration(USUAL)["family"] == "balanced" and "anatomy" in configuration(USUAL)
    images = configuration(replace(USUAL, sources=("pet.nii",)))
    assert not {"family", "anatomy"} & set(images)
    assert [job.name for job in jobs_of(old)][:2] == ["phantom-0000", "phantom-0001"]
    assert jobs_of(USUAL)[0].name == "phantom-balanced-0000"
    assert jobs_of(replace(USUAL, family="heavy", lesions="irregular"))[1].name == "phantom-heavy-irregular-0001"


def test_a_dataset_of_the_old_default_says_how_to_go_on(tmp_path):
    old = replace(USUAL, out=str(tmp_path), subjects=1, family="reference")
    made = record("phantom-0000", configuration=configuration(old), configuration_sha256=sha256_of(configuration(old)))
    write_subject(tmp_path / "phantom-0000.h5", made)
    with pytest.raises(DataError) as caught:
        make_dataset(replace(old, family="balanced"))
    assert str(caught.value).endswith("its patients are those of --family reference")
    assert [s["made"] for s in make_dataset(old)["subjects"]] == [False]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"family": "tall"}, "--family: 'tall'"),
        ({"insert_lesions": -1}, "--insert-lesions: must be 0 or more"),
        ({"insert_lesions": 2}, "--insert-lesions: needs a SOURCE"),
        ({"sources": ("pet.nii",), "family": "heavy"}, "--family"),
        ({"sources": ("pet.nii",), "lesions": "irregular"}, "--lesion-shape"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, word):
    with pytest.raises(UsageError) as caught:
        check_request(replace(USUAL, **changes))
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_lesions_are_inserted_into_every_source(tmp_path):
    path = tmp_path / "one.subject.h5"
    write_subject_file(path, cylinder(radius_mm=80.0, length_mm=100.0, spacing_mm=(5.0, 5.0, 5.0)))
    request = replace(USUAL, sources=(str(path),), insert_lesions=2)
    job = Job("source-1", path=str(path))
    made, plain = load_subject(job, request), load_subject(job, replace(request, insert_lesions=0))
    assert set(np.unique(made.labels)) == {0, 1, 100, 101}
    assert made.activity_bqml.max() > 1.5 * plain.activity_bqml.max() and made.name != plain.name
    np.testing.assert_array_equal(load_subject(job, request).activity_bqml, made.activity_bqml)
