"""Iterative algorithms on small problems whose answers are known, and on the projectors."""

from functools import partial

import numpy as np
import pytest
from scipy.optimize import minimize

from petsim.recon.bsrem import bsrem
from petsim.recon.osem import em_back_of, osem
from petsim.recon.relative_difference import RelativeDifference

SHAPE = (4, 3, 2)
BINS = 60


def nothing(image):
    return image


class Small:
    """A random system matrix, all of it positive, counts of two images, and background."""

    def __init__(self, subsets=1, level=100.0, background=0.2, noise=True):
        rng = np.random.default_rng(3)
        self.matrix = rng.random((BINS, *SHAPE)) ** 4
        self.truth = (rng.random((2, *SHAPE)) + 0.05) * level / self.matrix[0].sum()
        self.background = np.full(BINS, background)
        mean = self.project(self.truth) + self.background
        self.counts = rng.poisson(mean).astype(float) if noise else mean
        self.parts = [slice(k, None, subsets) for k in range(subsets)]
        self.sensitivities = [self.matrix[p].sum(axis=0).astype(np.float32) for p in self.parts]
        self.em_back = em_back_of(
            lambda s, images: self.project(images, self.parts[s]),
            lambda s, data: np.tensordot(data, self.matrix[self.parts[s]], 1).astype(np.float32),
            lambda s: self.counts[:, self.parts[s]],
            lambda s: self.background[self.parts[s]],
        )

    def project(self, images, part=slice(None)):
        return np.tensordot(images, self.matrix[part], ([1, 2, 3], [1, 2, 3]))

    def likelihood(self, images, counts=None):
        mean = self.project(images) + self.background
        return ((self.counts if counts is None else counts) * np.log(mean) - mean).sum(axis=-1)

    def run(self, order, start=None, **options):
        start = np.ones((2, *SHAPE), np.float32) if start is None else start
        return osem(start, self.em_back, self.sensitivities, nothing, order, **options)


def test_likelihood_never_falls():
    small, found = Small(), []
    small.run([0] * 300, callback=lambda updates, images: found.append(small.likelihood(images)))
    rises = np.diff(found, axis=0)
    assert rises.min() > -1e-4 and rises[0].min() > 0.1
    assert len(found) == 300


def test_counts_are_preserved_without_background():
    """What is expected of the image of every iteration sums to the counts (Shepp and Vardi 1982)."""
    small = Small(background=0.0)
    for updates in (1, 2, 20):
        images = small.run([0] * updates)
        np.testing.assert_allclose(small.project(images).sum(axis=1), small.counts.sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("subsets", [1, 3])
def test_consistent_data_lead_to_the_truth(subsets):
    small = Small(subsets, noise=False)
    images = small.run(list(range(subsets)) * (20000 // subsets))
    np.testing.assert_allclose(images, small.truth, rtol=0.01, atol=0.01 * small.truth.max())


def test_images_do_not_depend_on_their_company():
    small, order = Small(3), [0, 1, 2] * 4
    both = small.run(order)
    alone = Small(3)
    alone.counts = alone.counts[1:]
    np.testing.assert_allclose(alone.run(order, np.ones((1, *SHAPE), np.float32))[0], both[1], rtol=1e-5)


def test_resumed_is_unbroken_and_a_callback_stops():
    small, order = Small(3), [0, 1, 2] * 5
    whole = small.run(order)
    first = small.run(order, callback=lambda updates, images: updates == 7)
    np.testing.assert_array_equal(small.run(order[:7]), first)
    np.testing.assert_array_equal(small.run(order[7:], first), whole)


def test_no_counts_and_bins_without_numbers_leave_finite_images():
    small = Small(3)
    small.counts[0] = 0
    small.counts[1, 5] = np.nan
    small.background[7] = np.inf
    for sensitivity in small.sensitivities:
        sensitivity[0, 0, 0] = 0
    images = small.run([0, 1, 2] * 3)
    np.testing.assert_array_equal(images[0], 0)
    assert np.isfinite(images).all() and images[1, 0, 0, 0] == 0 and images[1].max() > 0


# ---- Relative difference prior ----


def prior(beta=2.0, gamma=2.0, inside=None):
    inside = np.ones(SHAPE, bool) if inside is None else inside
    return RelativeDifference(beta, (2.0, 2.0, 3.0), inside, gamma)


@pytest.mark.parametrize("gamma", [0.0, 2.0, 7.0])
def test_gradient_is_that_of_the_value(gamma):
    rng = np.random.default_rng(1)
    inside = rng.random(SHAPE) < 0.8
    penalty, image = prior(gamma=gamma, inside=inside), rng.random(SHAPE) + 0.1
    gradient = penalty.gradient(image.astype(np.float32))
    for index in np.ndindex(SHAPE):
        step = np.zeros(SHAPE)
        step[index] = 1e-2 * image[index]
        difference = (penalty.value(image + step) - penalty.value(image - step)) / (2 * step[index])
        assert gradient[index] == pytest.approx(difference, rel=2e-3, abs=2e-3)
    assert gradient[~inside].max() == 0 and np.abs(gradient).max() > 0.1


def test_two_voxels_by_hand():
    """w (a - b)^2 / (a + b + gamma |a - b|) with w = 1 along the shortest edge: 2 x 9 / (5 + 6)."""
    inside = np.zeros(SHAPE, bool)
    inside[1:3, 1, 1] = True
    image = np.ones(SHAPE, np.float32)
    image[1, 1, 1], image[2, 1, 1] = 4, 1
    assert prior(inside=inside).value(image) == pytest.approx(18 / 11)


def test_value_scales_with_the_image_and_is_finite_at_zero():
    image = np.random.default_rng(1).random(SHAPE).astype(np.float32)
    assert prior().value(7 * image) == pytest.approx(7 * prior().value(image), rel=1e-5)
    for factor in (7, 1e-30):
        gradient = prior().gradient(np.float32(factor) * image)
        np.testing.assert_allclose(gradient, prior().gradient(image), rtol=1e-4, atol=1e-5)
    assert np.isfinite(prior().gradient(np.float32(1e-40) * image)).all()
    assert not prior().gradient(np.zeros(SHAPE, np.float32)).any() and prior().value(np.zeros(SHAPE)) == 0


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_curvature_bounds_that_of_the_penalty(gamma):
    rng = np.random.default_rng(1)
    penalty = prior(gamma=gamma)
    for spread in (0.01, 3.0):
        image = np.exp(spread * rng.standard_normal(SHAPE)).astype(np.float32)
        at = rng.standard_normal(SHAPE)
        move = (1e-2 * at * image).astype(np.float32)
        change = penalty.gradient(image + move) - penalty.gradient(image - move)
        # The bound is one on v' H v by sums of v^2 / x.
        assert (change * move).sum() / 2 <= 1.02 * (penalty.curvature() * move**2 / image).sum()


# ---- BSREM ----


def run_bsrem(small, order, beta, start=None, **options):
    penalty = prior(beta)
    start = np.ones((2, *SHAPE), np.float32) if start is None else start
    return bsrem(start, small.em_back, small.sensitivities, nothing, order, penalty.gradient, penalty.curvature(), **options)


def test_without_penalty_and_subsets_it_is_mlem():
    small = Small()
    np.testing.assert_allclose(run_bsrem(small, [0] * 30, 0.0, relaxation=0.0), small.run([0] * 30), rtol=1e-4)


@pytest.mark.parametrize(("beta", "subsets"), [(0.3, 1), (0.3, 4), (10.0, 4)])
def test_bsrem_finds_the_maximum_of_the_penalized_likelihood(beta, subsets):
    """The same maximum as a quasi-Newton search of the logarithms of the voxels."""
    small, penalty = Small(subsets), prior(beta)
    found = run_bsrem(small, list(range(subsets)) * 1500, beta, relaxation=0.02)
    for k in range(2):

        def loss(logs, k=k):
            image = np.exp(np.clip(logs, -25, 25)).reshape(SHAPE)
            mean = small.project(image[None])[0] + small.background
            slope = np.tensordot(1 - small.counts[k] / mean, small.matrix, 1) + penalty.gradient(image.astype(np.float32))
            return (mean - small.counts[k] * np.log(mean)).sum() + penalty.value(image), (slope * image).ravel()

        best = minimize(
            loss, np.zeros(np.prod(SHAPE)), jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-13}
        )
        wanted = np.exp(best.x).reshape(SHAPE)
        assert loss(np.log(np.maximum(found[k], 1e-9)).ravel())[0] - best.fun < 2e-3
        np.testing.assert_allclose(found[k], wanted, atol=0.02 * wanted.max())


def test_a_strong_penalty_flattens_and_does_not_overshoot():
    small, values = Small(), []
    penalty = prior(300.0)

    def watch(updates, images):
        values.append(small.likelihood(images)[0] - penalty.value(images[0]))

    images = run_bsrem(small, [0] * 300, 300.0, start=small.truth.astype(np.float32), relaxation=0.0, callback=watch)
    assert np.ptp(images[0]) < 0.01 * images[0].mean()
    assert np.diff(values[5:]).min() > -0.5


def test_bsrem_resumes_exactly():
    small, order = Small(3), [0, 1, 2] * 4
    run = partial(run_bsrem, small, beta=1.0)
    first = run(order, callback=lambda updates, images: updates == 5)
    np.testing.assert_array_equal(run(order[5:], start=first, made=5), run(order))


def test_bsrem_of_no_counts_is_finite():
    small = Small(3)
    small.counts[0], small.counts[1, 3] = 0, np.nan
    for sensitivity in small.sensitivities:
        sensitivity[0, 0, 0] = 0
    images = run_bsrem(small, [0, 1, 2] * 30, 1.0)
    assert np.isfinite(images).all() and images[0].max() < 0.01 * images[1].max() and images[1, 0, 0, 0] == 0
