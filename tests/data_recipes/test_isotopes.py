"""Positron ranges: two published fits agree, and the kernel has the moments that it claims."""

import numpy as np
import pytest

from data_recipes.errors import DataError
from data_recipes.isotopes import Isotope, isotope, mean_range_mm, range_terms
from data_recipes.readers.tracers import resolve_isotope

NAMES = ("F-18", "C-11", "N-13", "O-15", "Ga-68", "Cu-64", "Zr-89", "Rb-82")


@pytest.mark.parametrize("name", NAMES)
def test_fitted_distances_agree_with_the_range_formula(name):
    terms = range_terms(isotope(name))
    assert sum(weight for weight, _ in terms) == pytest.approx(1)
    assert sum(2 * weight / k for weight, k in terms) == pytest.approx(mean_range_mm(isotope(name)), rel=0.06)


def test_projection_of_the_kernel_is_the_published_sum_of_exponentials():
    """F-18: 0.519 exp(-27.9 x) + 0.481 exp(-2.91 x), integrated here from the density in space."""
    terms = range_terms(isotope("F-18"))
    x = np.array([0.05, 0.2, 0.5, 1.0])
    u = np.linspace(0, 8, 40001)
    projected = []
    for at in x:
        r = np.hypot(at, u)
        density = sum(weight * k**2 * np.exp(-k * r) / (4 * np.pi * r) for weight, k in terms)
        projected.append(np.trapezoid(2 * np.pi * u * density, u))
    published = 0.519 * np.exp(-27.9 * x) + 0.481 * np.exp(-2.91 * x)
    np.testing.assert_allclose(np.array(projected) / projected[0], published / published[0], rtol=1e-3)


def test_branches_are_those_of_the_decay_and_ranges_grow_with_energy():
    for name in NAMES:
        iso = isotope(name)
        assert sum(b.per_decay for b in iso.betas) == pytest.approx(iso.branching, rel=0.01)
        assert all(0.35 < b.mean_mev / b.end_point_mev < 0.47 for b in iso.betas)
    ranges = [mean_range_mm(isotope(n)) for n in ("F-18", "Cu-64", "Zr-89", "C-11", "N-13", "O-15", "Ga-68", "Rb-82")]
    assert ranges == sorted(ranges)


def test_the_half_life_of_a_file_changes_nothing_else():
    assert resolve_isotope("Ga-68", 4062.0) == Isotope("Ga-68", 4062.0, isotope("Ga-68").branching, isotope("Ga-68").betas)


def test_unknown_isotopes_and_missing_energies_are_one_line():
    with pytest.raises(DataError, match=r"^isotope 'Xx-99' is not known; known are F-18[^\n]*$"):
        isotope("Xx-99")
    with pytest.raises(DataError, match=r"^isotope I-124: its positron energies are not known[^\n]*$"):
        range_terms(Isotope("I-124", 360806.4, 0.227))
