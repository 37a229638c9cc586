"""The reconstruction that a preset asks for: OSEM, or BSREM with its prior on the scale of the scanner."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_recipes.phantoms.analytic import cylinder
from petsim.corrections import oracle
from petsim.dose import DoseLadder
from petsim.model import build_model
from petsim.plan import plan_subject
from petsim.recon.bsrem import bsrem
from petsim.reconstruct import PRIOR_UNIT, Reconstructor
from petsim.settings import SimulationSettings
from petsim.simulation import simulate_plan

SMALL = str(Path(__file__).parent.parent / "small_scanner.toml")
SETTINGS = SimulationSettings(
    scanner=SMALL, preset="fast", drf=(4.0, 20.0), scatter="none", randoms="none", corrections="oracle", counts=2e6, rays=1,
    fov_mm=240.0,
)  # fmt: skip
SUBJECT = cylinder(radius_mm=90.0, length_mm=80.0, bqml=10_000.0)


def run(recon, data, order, **options):
    return recon.run(recon.em_back(data), order, **options)


def with_prior(plan, beta):
    return replace(plan, preset=replace(plan.preset, algorithm="bsrem", beta=beta))


class Scan:
    """Counts of a small scan, held, and reconstructors of them."""

    def __init__(self):
        self.plan = plan_subject(SUBJECT, SETTINGS)
        self.model = build_model(self.plan, SETTINGS)
        self.order = list(range(self.plan.preset.subsets))
        self.ladder = DoseLadder(SETTINGS.ladder(), 0, "x", 0)
        self.held = {}

    def reconstructor(self, beta, plan=None):
        plan = plan or self.plan
        return Reconstructor(with_prior(plan, beta), self.model.operator, oracle(plan, self.model, 3))

    def data(self, images=slice(None)):
        def read(views):
            key = views.tobytes()
            if key not in self.held:
                rng = np.random.default_rng(int(views[0]))
                full = rng.poisson(self.model.expected(views))
                quarter = rng.binomial(full, 0.25)
                self.held[key] = np.stack([full, quarter, rng.binomial(quarter, 0.2)]).astype(np.float32)
            return [self.held[key][images]]

        return read

    def inside(self):
        x, y, z = (self.plan.grid.axis_mm(a) for a in range(3))
        return (np.hypot(x[:, None], y[None, :])[:, :, None] < 60) & (np.abs(z - self.plan.center_mm[2]) < 25)


@pytest.fixture(scope="module")
def scan():
    return Scan()


def test_without_strength_it_is_bsrem_without_penalty_after_an_iteration_of_osem(scan):
    recon = scan.reconstructor(0.0)
    found = run(recon, scan.data(), scan.order * 3)
    osem = Reconstructor(scan.plan, scan.model.operator, oracle(scan.plan, scan.model, 3))
    projector = osem._projector

    def em_back(subset, images):
        sums, prepared = projector.new_sums(3), projector.prepare(images)
        for views in osem.groups(subset):
            (counts,) = scan.data()(views)
            projector.add_em_back(sums, views, counts, prepared, osem.background(views, 0, 3))
        return projector.image_of(sums)

    first = run(osem, scan.data(), scan.order)
    np.testing.assert_array_equal(run(recon, scan.data(), scan.order), first)
    plain = bsrem(first, em_back, osem._sensitivities, osem.blur, scan.order * 2, np.zeros_like, 0.0)
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-5 * plain.max())


def test_a_stronger_prior_lowers_noise_and_keeps_the_mean(scan):
    spread, inside = [], scan.inside()
    for beta in (0.0, 400.0, 4000.0):
        images = scan.reconstructor(beta)
        values = images.finish(run(images, scan.data(), scan.order * 6))[:, inside]
        assert values.mean(axis=1) == pytest.approx([10_000.0] * 3, rel=0.05)
        spread.append(values.std(axis=1))
    assert (np.diff(spread, axis=0) < 0).all()


def test_the_prior_is_as_strong_at_all_doses(scan):
    """Of noise-free counts c times as high, the image is c times as high, voxel by voxel."""
    recon = scan.reconstructor(2000.0)

    def data(views):
        expected = scan.model.expected(views)
        return [np.stack([expected, expected / 4, expected / 20])]

    images = recon.finish(run(recon, data, scan.order * 4))
    for image in images[1:]:
        np.testing.assert_allclose(image, images[0], rtol=2e-3, atol=2e-3 * images[0].max())


def test_the_weight_is_a_share_of_the_sensitivity_in_air_whatever_attenuates(scan):
    true = oracle(scan.plan, scan.model, 1)
    alike = replace(true, mu_per_cm=0 * true.mu_per_cm, efficiencies=scan.plan.scanner.is_real().astype(np.float32))
    air = Reconstructor(scan.plan, scan.model.operator, alike, psf=False)
    near = scan.inside() & (np.abs(scan.plan.grid.axis_mm(2) - scan.plan.center_mm[2]) < scan.plan.layout.ring_pitch_mm)
    wanted = np.sum([s[0] for s in air._sensitivities], axis=0)[near].mean()
    weights = [prior.beta for beta in (400.0, 800.0) if (prior := scan.reconstructor(beta)._prior)]
    assert weights[0] == pytest.approx(400 * PRIOR_UNIT * wanted, rel=0.05)
    assert weights[1] == pytest.approx(2 * weights[0])


def test_a_dose_alone_is_that_of_the_ladder(scan):
    recon = scan.reconstructor(400.0)
    whole = run(recon, scan.data(), scan.order * 2)
    alone = run(recon.of_first(1), scan.data(slice(1)), scan.order * 2)
    np.testing.assert_allclose(alone[0], whole[0], rtol=1e-5, atol=1e-5 * whole[0].max())
    last = recon.believing(replace(recon.corrections, rates=recon.corrections.rates[2:]))
    own = run(last, scan.data(slice(2, 3)), scan.order * 2)
    np.testing.assert_allclose(own[0], whole[2], rtol=1e-5, atol=1e-5 * whole[2].max())


def test_resumed_is_uninterrupted(scan):
    recon, order = scan.reconstructor(400.0), scan.order * 3
    whole = run(recon, scan.data(), order)
    for stop in (3, len(scan.order), len(scan.order) + 2):
        first = run(recon, scan.data(), order[:stop])
        np.testing.assert_array_equal(run(recon, scan.data(), order[stop:], start=first, made=stop), whole)


def test_a_simulation_with_scatter_found_on_the_way_says_what_reconstructed():
    settings = replace(SETTINGS, preset="ge-qclear", drf=(10.0,), voxel_mm=8.0, iterations=2, subsets=7, photons=20_000,
                       scatter="simulated", randoms="simulated", corrections="estimated")  # fmt: skip
    result = simulate_plan(plan_subject(SUBJECT, settings), settings)
    said = result.provenance["reconstruction"]
    assert (said["algorithm"], said["beta"], said["iterations"]) == ("BSREM", 400.0, 2)
    assert np.isfinite(result.images).all() and result.images.max() > 0
