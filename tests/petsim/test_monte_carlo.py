"""The photon Monte Carlo against known answers."""

import math
from dataclasses import replace

import numba as nb
import numpy as np
import pytest

from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from petsim.geometry.scanner import load_scanner, scanner_names
from petsim.physics.crystals import MOST_DEPOSITS, compton, crystal_center, crystal_ring, energy_block, follow, start_random
from petsim.physics.monte_carlo import _beta_quantiles, acceptance, lutetium, photon_pairs
from petsim.physics.photons import ELECTRON_KEV, crystal_attenuation, klein_nishina_differential

CENTER = (0.0, 0.0, 0.0)


def point(spacing_mm=(1.0, 1.0, 1.0), mu=0.0):
    """Grid of one voxel in the middle, its activity and mu."""
    grid = Grid.centered((1, 1, 1), spacing_mm)
    return np.ones(grid.shape, np.float32), np.full(grid.shape, mu, np.float32), grid


def joined(pairs, field):
    return np.concatenate([getattr(batch, field) for batch in pairs])


@pytest.fixture(scope="module")
def vision():
    return load_scanner("biograph_vision_600")


def test_solid_angle_of_a_cylinder(vision):
    """A point in the middle of a cylinder of length L and radius R sees the share L / sqrt(L^2 + 4 R^2)."""
    decays = 200_000
    pairs = list(photon_pairs(vision, *point((0.1, 0.1, 0.1)), CENTER, decays, detector="cylinder"))
    share = vision.axial_length_mm / math.hypot(vision.axial_length_mm, 2 * vision.radius_mm)
    sigma = math.sqrt(share * (1 - share) / decays)
    energy, position = joined(pairs, "energy_kev"), joined(pairs, "position_mm").astype(float)
    assert abs(energy.all(axis=1).sum() / decays - share) < 4 * sigma
    np.testing.assert_allclose(np.hypot(position[..., 0], position[..., 1])[energy > 0], vision.radius_mm, rtol=1e-5)
    both = energy.all(axis=1)
    np.testing.assert_allclose(position[both].sum(axis=1), 0, atol=0.6)
    # Directions: z of an isotropic direction is uniform, so z / distance is.
    cos = position[both, 0, 2] / np.linalg.norm(position[both, 0], axis=1)
    histogram = np.histogram(cos, 20, (-share, share))[0]
    expected = both.sum() / 20
    assert ((histogram - expected) ** 2 / expected).sum() < 45
    np.testing.assert_allclose(joined(pairs, "path_mm")[both], np.linalg.norm(position[both], axis=2), atol=0.3)


def test_transmission_through_a_slab(vision):
    """Both photons of a decay in the middle of a slab of width d get out unscattered with exp(-mu d / cos)."""
    grid = Grid.centered((41, 81, 1), (5.0, 5.0, 400.0))
    activity, mu = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.float32)
    activity[20, 40] = 1
    slab = np.abs(grid.axis_mm(0)) < 51
    mu[slab] = 0.096
    settings = {"center_mm": CENTER, "decays": 200_000, "detector": "cylinder"}
    free = list(photon_pairs(vision, activity, np.zeros_like(mu), grid, **settings))
    kept = list(photon_pairs(vision, activity, mu, grid, **settings))

    def steep(pairs):
        """Cosine to x of the pairs that leave through the slab's faces, unscattered."""
        energy, position = joined(pairs, "energy_kev"), joined(pairs, "position_mm").astype(float)
        delta = position[:, 1] - position[:, 0]
        cos = np.abs(delta[:, 0]) / np.linalg.norm(delta, axis=1)
        return cos[energy.all(axis=1) & (joined(pairs, "scatters").sum(axis=1) == 0) & (cos > 0.9)]

    expected = np.exp(-0.0096 * slab.sum() * 5.0 / steep(free))
    assert len(steep(kept)) == pytest.approx(expected.sum(), abs=4 * math.sqrt(expected.sum()))
    assert len(steep(kept)) < 0.45 * len(steep(free))


def test_energies_of_photons_scattered_once():
    """An isotropic source inside a small cube: energies are distributed as Klein-Nishina says."""
    quadra = load_scanner("biograph_vision_quadra")
    pairs = list(photon_pairs(quadra, *point((20.0, 20.0, 20.0), 0.02), CENTER, 400_000, detector="cylinder"))
    energy, scatters = joined(pairs, "energy_kev"), joined(pairs, "scatters")
    assert np.all(energy[scatters == 0][energy[scatters == 0] > 0] == np.float32(ELECTRON_KEV))
    once = energy[(scatters == 1) & (energy > 0)]
    assert len(once) > 5000
    edges = np.linspace(ELECTRON_KEV / 3, ELECTRON_KEV, 13)
    fine = (np.arange(2400) + 0.5) / 2400 * (edges[-1] - edges[0]) + edges[0]
    cos = 2 - ELECTRON_KEV / fine
    density = np.array([klein_nishina_differential(ELECTRON_KEV, c) for c in cos]) / fine**2
    expected = density.reshape(12, 200).sum(axis=1)
    expected *= len(once) / expected.sum()
    observed = np.histogram(once, edges)[0]
    assert observed.sum() == len(once)
    assert ((observed - expected) ** 2 / expected).sum() < 32


def test_scattering_turns_the_photon_by_the_angle_that_its_energy_tells():
    random, photon = np.zeros(8, np.int64), np.zeros(8)
    start_random(random, 1, 0)
    for before in ([0.6, 0.0, 0.8], [0.0, 0.0, -1.0], [-0.36, 0.48, -0.8]):
        turned = []
        for _ in range(300):
            photon[3:6], photon[6] = before, ELECTRON_KEV
            compton(photon, random)
            assert np.linalg.norm(photon[3:6]) == pytest.approx(1)
            assert np.dot(before, photon[3:6]) == pytest.approx(2 - ELECTRON_KEV / photon[6], abs=1e-9)
            turned.append(photon[3:6] - np.dot(before, photon[3:6]) * np.array(before))
        assert np.linalg.norm(np.mean(turned, axis=0)) < 0.15


def test_results_depend_neither_on_threads_nor_on_batches(vision):
    grid = Grid.centered((8, 8, 8), (25.0, 25.0, 25.0))
    activity = np.random.default_rng(1).random(grid.shape).astype(np.float32)
    mu = np.full(grid.shape, 0.096, np.float32)
    fields = ("energy_kev", "crystal", "ring", "position_mm", "path_mm", "scatters", "triggers")
    before = nb.get_num_threads()
    results = []
    try:
        for threads, batch in ((1, 20_000), (before, 20_000), (before, 7_001)):
            nb.set_num_threads(threads)
            pairs = list(photon_pairs(vision, activity, mu, grid, CENTER, 20_000, seed=3, batch=batch))
            assert sum(p.decays for p in pairs) == 20_000
            results.append([joined(pairs, f) for f in fields])
    finally:
        nb.set_num_threads(before)
    other = list(photon_pairs(vision, activity, mu, grid, CENTER, 20_000, seed=4))
    for result in results[1:]:
        for one, two in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(one, two)
    assert not np.array_equal(joined(other, "energy_kev"), results[0][0])


def test_activity_decides_where_decays_happen(vision):
    """Two voxels, 1 to 3: LORs pass one of them; the shares follow."""
    grid = Grid.centered((21, 1, 1), (10.0, 1.0, 1.0))
    activity = np.zeros(grid.shape, np.float32)
    activity[0], activity[20] = 1, 3
    pairs = list(photon_pairs(vision, activity, 0 * activity, grid, (20.0, 0.0, 0.0), 40_000, detector="cylinder"))
    both = joined(pairs, "energy_kev").all(axis=1)
    ends, paths = joined(pairs, "position_mm")[both].astype(float), joined(pairs, "path_mm")[both].astype(float)
    first = paths[:, :1] / paths.sum(axis=1, keepdims=True)
    origin = ends[:, 0] + first * (ends[:, 1] - ends[:, 0])
    left = np.abs(origin[:, 0] + 120) < 5.1
    assert np.all(left | (np.abs(origin[:, 0] - 80) < 5.1)) and np.all(np.abs(origin[:, 1:]) < 0.6)
    # The nearer to the crystals, the larger the share of photons that both hit; 120 mm against 80 mm: some per cent.
    assert left.mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("name", ["biograph_vision_quadra", "signa_pet_mr", "biograph_mct", "pennpet_3seg"])
def test_detected_photons_lie_in_real_crystals_inside_the_limits(name):
    scanner = load_scanner(name)
    pairs = list(photon_pairs(scanner, *point((1.0, 1.0, 200.0)), CENTER, 40_000))
    energy, crystal, ring = (joined(pairs, f) for f in ("energy_kev", "crystal", "ring"))
    seen = energy > 0
    assert np.all(seen.any(axis=1)) and np.all((crystal >= 0) == seen) and np.all((ring >= 0) == seen)
    assert scanner.transaxial_is_real()[crystal[seen]].all() and scanner.ring_is_real()[ring[seen]].all()
    assert len(np.unique(crystal[seen])) == scanner.transaxial_is_real().sum()
    assert energy.max() < 511 * (1 + 5 * scanner.given("energy_resolution") / 2.355)
    position = joined(pairs, "position_mm")[seen]
    np.testing.assert_allclose(position[:, 2], scanner.ring_z_mm(ring[seen]), atol=1e-2)
    # Where a file spreads crystals over a circle, flat sides put them elsewhere, farthest with the 18 sides of PennPET.
    near = 0.01 if scanner.transaxial_pitch_mm else 6.0
    np.testing.assert_allclose(position[:, :2], scanner.crystal_xy_mm(crystal[seen] + 0.5), atol=near)
    path = joined(pairs, "path_mm")[seen]
    assert path.min() > scanner.inner_radius_mm - 1 and np.all(joined(pairs, "triggers") <= 4)
    cover = joined(pairs, "scatters")[seen]
    assert 0.03 < (cover > 0).mean() < 0.12


@pytest.mark.parametrize("name", scanner_names())
def test_every_scanner_can_be_simulated(name):
    """Sides are flat: crystal centers from the kernels' geometry lie near those of the library."""
    scanner = load_scanner(name)
    ring = crystal_ring(scanner)
    for crystal, row in ((0, 0), (scanner.crystals_per_ring // 3, scanner.rings - 1)):
        x, y, z = crystal_center(ring, crystal, row)
        np.testing.assert_allclose((x, y), scanner.crystal_xy_mm(np.array(crystal + 0.5)), atol=6)
        assert z == pytest.approx(float(scanner.ring_z_mm(np.array(row))), abs=1e-6)
    around, along = energy_block(scanner)
    assert scanner.transaxial_block_real % around == 0 and scanner.axial_block_real % along == 0


@nb.njit
def _beam(ring, photons, z):
    """How many photons along the normal of side 0 interact, and how many leave all their energy."""
    random = np.zeros(8, np.int64)
    photon = np.zeros(8)
    deposits = np.zeros((MOST_DEPOSITS, 3))
    interact, first_photo = 0, 0
    for i in range(photons):
        start_random(random, 5, i)
        photon[0], photon[1], photon[2] = 0.0, 0.0, z
        photon[3], photon[4], photon[5] = math.cos(ring.first_angle), math.sin(ring.first_angle), 0.0
        photon[6], photon[7] = 511.0, 0.0
        count, first = follow(ring, photon, random, deposits, 0)
        interact += first >= 0
        first_photo += count > 0 and deposits[0, 2] == 511.0
    return interact, first_photo


@pytest.mark.parametrize(("name", "material"), [("biograph_mmr", "LSO"), ("omni_legend_32", "BGO")])
def test_a_slab_of_crystal_stops_what_it_should(name, material):
    """Normal incidence on the middle of a crystal: 1 - exp(-mu d) interact, the first time by the ratio of both effects."""
    scanner = load_scanner(name)
    # An odd number of crystals a side: one lies in its middle.
    block = scanner.transaxial_block_real - 1
    odd = replace(
        scanner, transaxial_block=block, transaxial_block_real=block,
        readout_block=(block, scanner.given("readout_block")[1]),
        crystals_per_ring=scanner.crystals_per_ring // scanner.transaxial_block * block, energy_block=None,
    )  # fmt: skip
    photons = 100_000
    interact, absorbed = _beam(crystal_ring(odd), photons, float(odd.ring_z_mm(np.array(odd.rings // 2))))
    photo, incoherent = (float(m) / 10 for m in crystal_attenuation(material, 511.0))
    stopped = 1 - math.exp(-(photo + incoherent) * scanner.crystal_size_mm[2])
    assert interact / photons == pytest.approx(stopped, abs=4 * math.sqrt(stopped * (1 - stopped) / photons))
    share = photo / (photo + incoherent)
    assert absorbed / interact == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / interact))


def test_acceptance_of_the_energy_window(vision):
    """Cylinder hits times acceptance are the detected singles of the full ring; and its limits."""
    energies, share = acceptance(vision)
    assert energies[0] == 151 and energies[-1] == 511 and np.all((share >= 0) & (share < 0.75))
    low, _ = vision.given("energy_window_kev")
    assert np.all(share[energies < low - 4 * vision.given("energy_resolution") * low / 2.355] == 0)
    assert share[-1] > 0.5 and share[energies < 420].max() < 0.35
    decays = 200_000
    source = point((140.0, 140.0, vision.axial_length_mm))
    hits = joined(photon_pairs(vision, *source, CENTER, decays, detector="cylinder"), "energy_kev") > 0
    energy = joined(photon_pairs(vision, *source, CENTER, decays, seed=1), "energy_kev")
    detected = np.count_nonzero((energy >= low) & (energy <= vision.given("energy_window_kev")[1]))
    assert detected / hits.sum() == pytest.approx(share[-1], rel=0.02)
    assert acceptance(vision)[1] is share and not share.flags.writeable


def test_the_cover_takes_its_share(vision):
    """Photons that reach the ring in the middle plane: about exp(-mu t) of them pass 0.5 g/cm2 unscattered."""
    uncovered, covered = acceptance(vision, 0.0)[1][-1], acceptance(vision)[1][-1]
    assert covered / uncovered == pytest.approx(math.exp(-0.0945 * 0.5 / 0.96), abs=0.02)


@pytest.mark.parametrize(("name", "singles"), [
    ("biograph_vision_600", 0.20), ("biograph_mct", 0.22), ("biograph_mmr", 0.19), ("discovery_mi_4ring", 0.28),
    ("uexplorer", 0.31),
])  # fmt: skip
def test_lutetium_background(name, singles):
    """shared/reference/physics.md, section 5."""
    scanner = load_scanner(name)
    background = lutetium(scanner, 50_000)
    assert background.singles == pytest.approx(singles, abs=0.04)
    assert 1.0 < background.triggers < 1.45
    assert 1e-4 < background.coincidences < 4e-3 and background.prompt <= background.coincidences
    assert lutetium(scanner, 50_000, 120.0).coincidences < 1e-4


def test_lutetium_activity_and_electrons(vision):
    """60 800 crystals of 0.2048 cm3 at 300 Bq/cm3; electrons of 182 keV on average and 593 keV at most."""
    assert lutetium(vision, 50_000).decays_per_s == pytest.approx(60_800 * 0.2048 * 300)
    electrons = _beta_quantiles()
    assert electrons.max() < 593 and electrons.mean() == pytest.approx(182, rel=0.06)
    assert lutetium(load_scanner("omni_legend_32")).decays_per_s == 0


def test_wrong_requests_are_one_clear_line(vision):
    activity, mu, grid = point()
    bad = [
        (DataError, {"activity_bqml": activity[0]}), (DataError, {"mu_per_cm": mu - 1}),
        (DataError, {"activity_bqml": 0 * activity}), (DataError, {"mu_per_cm": mu * np.nan}),
        (UsageError, {"detector": "sphere"}), (UsageError, {"decays": 0}),
    ]  # fmt: skip
    for error, change in bad:
        request = {"activity_bqml": activity, "mu_per_cm": mu, "grid": grid, "center_mm": CENTER, "decays": 10} | change
        with pytest.raises(error) as raised:
            photon_pairs(vision, **request)
        assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match="energy_resolution"):
        list(photon_pairs(replace(vision, energy_resolution=None), activity, mu, grid, CENTER, 10))
    bare = replace(vision, energy_resolution=None, energy_block=None, readout_block=None)
    assert next(photon_pairs(bare, activity, mu, grid, CENTER, 1000, detector="cylinder")).energy_kev.any()
