"""Cross sections: textbook values, integrals and limits."""

import math

import numpy as np
import pytest

from data_recipes.errors import DataError
from petsim.physics.photons import (
    ELECTRON_KEV,
    attenuation_ratio,
    attenuation_ratio_table,
    crystal_attenuation,
    klein_nishina_differential,
    klein_nishina_total,
    scattered_energy,
)

THOMSON_BARN = 0.665246


@pytest.mark.parametrize(("material", "photo", "incoherent"), [
    ("LSO", 0.281, 0.539), ("LYSO", 0.254, 0.520), ("BGO", 0.396, 0.509),
])  # fmt: skip
def test_crystals_at_511_kev(material, photo, incoherent):
    """shared/reference/physics.md, section 2 (LYSO: xraydb for Lu1.8Y0.2SiO5 at 7.1 g/cm3)."""
    assert crystal_attenuation(material, 511.0) == pytest.approx((photo, incoherent), abs=6e-4)


@pytest.mark.parametrize(("material", "edge"), [("LSO", 63.3), ("LYSO", 63.3), ("BGO", 90.5)])
def test_the_photoelectric_effect_jumps_at_the_k_edge_and_falls_elsewhere(material, edge):
    below, above = (crystal_attenuation(material, e)[0] for e in (edge - 0.2, edge + 0.2))
    assert 4 < above / below < 6
    energies = np.arange(math.ceil(edge), 601)
    assert np.all(np.diff(crystal_attenuation(material, energies)[0]) < 0)


def test_incoherent_attenuation_of_crystals_follows_klein_nishina_at_high_energy():
    """Electrons of LSO at 7.4 g/cm3, (2 x 71 + 14 + 5 x 8) / 458; binding takes 1.4 % off at 511 keV and 3 % at 300."""
    per_cm = 7.4 * 6.02214e23 * (196 / 458.0) * 1e-24
    for energy in (300.0, 511.0, 600.0):
        assert crystal_attenuation("LSO", energy)[1] == pytest.approx(per_cm * klein_nishina_total(energy), rel=0.035)


def test_total_cross_section():
    """0.2866 barn at the electron's rest energy, Thomson's at low energy."""
    k1 = 2 * math.pi * 0.0794078 * (2 * (4 / 3 - math.log(3)) + math.log(3) / 2 - 4 / 9)
    assert klein_nishina_total(ELECTRON_KEV) == pytest.approx(k1, rel=1e-9)
    assert klein_nishina_total(ELECTRON_KEV) == pytest.approx(0.2865, abs=1e-4)
    assert klein_nishina_total(2.0) == pytest.approx(THOMSON_BARN * (1 - 2 * 2.0 / ELECTRON_KEV), rel=1e-3)


@pytest.mark.parametrize("energy", [30.0, 150.0, 511.0])
def test_the_differential_integrates_to_the_total(energy):
    cos, weight = np.polynomial.legendre.leggauss(40)
    integral = 2 * math.pi * sum(w * klein_nishina_differential(energy, c) for c, w in zip(cos, weight, strict=True))
    assert integral == pytest.approx(klein_nishina_total(energy), rel=1e-9)
    assert klein_nishina_differential(energy, 1.0) == pytest.approx(THOMSON_BARN * 3 / (8 * math.pi), rel=1e-5)


def test_compton_kinematics():
    assert scattered_energy(ELECTRON_KEV, 0.0) == pytest.approx(ELECTRON_KEV / 2)
    assert scattered_energy(ELECTRON_KEV, -1.0) == pytest.approx(ELECTRON_KEV / 3)
    assert scattered_energy(100.0, 1.0) == 100.0


def test_tissue_attenuation_follows_water():
    """Incoherent attenuation of water relative to 511 keV, xraydb 4.5.8."""
    for energy, ratio in ((150.0, 0.1474 / 0.09575), (250.0, 0.1258 / 0.09575), (400.0, 0.1058 / 0.09575)):
        assert attenuation_ratio(energy) == pytest.approx(ratio, rel=0.01)
    table = attenuation_ratio_table()
    assert table[511] == pytest.approx(1.0, abs=1e-5) and table[0] == table[25] and len(table) == 601
    assert not table.flags.writeable


def test_wrong_requests_are_one_clear_line():
    for material, energy in (("NaI", 511.0), ("LSO", 10.0), ("LSO", 700.0)):
        with pytest.raises(DataError) as raised:
            crystal_attenuation(material, energy)
        assert "\n" not in str(raised.value)
