"""Attenuation by organ label."""

import numpy as np
import pytest

from data_recipes.errors import DataError
from data_recipes.phantoms.anatomy import LABEL_NAMES
from data_recipes.phantoms.uptake import mu_from_labels
from data_recipes.phantoms.whole_body import whole_body


def test_every_label_of_the_whole_body_phantom_has_its_attenuation():
    labels = np.array(sorted(LABEL_NAMES), np.uint8)
    mu = dict(zip((LABEL_NAMES[v] for v in labels), mu_from_labels(labels, LABEL_NAMES), strict=True))
    assert mu["outside"] == mu["airway"] == 0
    assert mu["lung"] == np.float32(0.027) and mu["liver"] == np.float32(0.096) and mu["skull"] == np.float32(0.145)
    assert all(0.08 < v < 0.16 for name, v in mu.items() if name not in ("outside", "airway", "lung"))


def test_labels_give_back_the_phantoms_own_map():
    person = whole_body(2, spacing_mm=(8.0, 8.0, 8.0))
    mu = mu_from_labels(person.labels, person.label_names)
    # Edges of the phantom are averages, and bone is drawn in more kinds than it is labeled.
    assert mu.sum(dtype=float) == pytest.approx(person.mu_per_cm.sum(dtype=float), rel=0.02)
    inside = person.labels == 5
    np.testing.assert_allclose(np.median(person.mu_per_cm[inside]), mu[inside][0], rtol=1e-5)


def test_lesions_contours_and_shapes():
    names = {1: "body", 2: "lungs", 100: "lesion_1_liver", 101: "lesion_2_bone"}
    mu = mu_from_labels(np.array([[0, 1], [2, 100], [101, 101]], np.uint8), names)
    np.testing.assert_allclose(mu, [[0, 0.096], [0.027, 0.096], [0.107, 0.107]], rtol=1e-6)


def test_labels_without_a_name_or_tissue_are_refused_in_one_line():
    with pytest.raises(DataError, match=r"^label 3 has no name[^\n]+$"):
        mu_from_labels(np.array([3]), {1: "body"})
    with pytest.raises(DataError, match=r"^label 1: no attenuation is known for 'femur'[^\n]+$"):
        mu_from_labels(np.array([1]), {1: "femur"})
