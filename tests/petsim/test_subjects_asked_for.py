"""Families, lesion shapes and inserted lesions of make-dataset: in the configuration only where they are asked for."""

from dataclasses import replace

import numpy as np
import pytest

from data_recipes.errors import UsageError
from data_recipes.phantoms.analytic import cylinder
from data_recipes.subject_file import write_subject_file
from petsim.cache.store import sha256_of
from petsim.dataset import Job, Request, check_request, configuration, jobs_of, load_subject

USUAL = Request(out="")


def test_datasets_of_usual_patients_keep_their_hash():
    known = configuration(USUAL)
    assert not {"family", "lesions", "insert_lesions"} & set(known)
    other = configuration(replace(USUAL, family="heavy", lesions="irregular"))
    assert (other["family"], other["lesions"]) == ("heavy", "irregular")
    assert {k: v for k, v in other.items() if k not in ("family", "lesions")} == known
    assert sha256_of(other) != sha256_of(known)
    assert [job.name for job in jobs_of(USUAL)][:2] == ["phantom-0000", "phantom-0001"]
    assert jobs_of(replace(USUAL, family="heavy", lesions="irregular"))[1].name == "phantom-heavy-irregular-0001"


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
