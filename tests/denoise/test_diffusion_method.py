"""What generative networks give, and their errors, where the right network is known."""

import math
from dataclasses import replace

import pytest
import torch

from data_recipes.errors import UsageError
from denoise.diffusion.method import Anchors, Diffusion, limits
from denoise.diffusion.schedule import NoiseSchedule
from denoise.methods import Samples
from denoise.scaling import Scaling

FLOW, LINEAR = NoiseSchedule("flow"), NoiseSchedule("linear")
METHODS = [
    Diffusion("ddpm", LINEAR, "eps", 1.7),
    Diffusion("ddpm", NoiseSchedule("cosine"), "v", 1.7),
    Diffusion("ddpm", NoiseSchedule("edm"), "v", 0.4),
    Diffusion("ddpm", LINEAR, "image", 1.7),
    Diffusion("flow", FLOW, "velocity", 1.7),
    Diffusion("flow", FLOW, "v", 1.7),
]


def samples(n=3, beside=0, drf=20.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(n, 1, 4, 4, 4, generator=g) * 3
    low = target + 0.5 * torch.randn(target.shape, generator=g)
    others = target + torch.randn(n, beside, 4, 4, 4, generator=g) if beside else None
    ones = torch.ones(n)
    return Samples(low, target, ones, ones, ones, drf * torch.ones(n, dtype=torch.float64), list(range(n)), others)


class Knows(torch.nn.Module):
    """A network that knows the image: what it gives is what makes the estimate right."""

    def __init__(self, method, target):
        super().__init__()
        self.method, self.target, self.off = method, target, 0.0

    def forward(self, shown, features):
        return self.right(shown[:, :1]) + self.off

    def at(self, time):
        m = self.method
        t = time.numpy()
        a, s = (torch.from_numpy(v).float()[:, None, None, None, None] for v in (m.schedule.signal(t), m.schedule.noise(t)))
        self.a, self.s = a, s
        return self

    def right(self, shown):
        m, a, s = self.method, self.a, self.s
        x = shown * torch.sqrt((a * m.data_sd) ** 2 + s * s)
        noise = (x - a * self.target) / s
        if m.prediction == "eps":
            return noise
        if m.prediction == "image":
            return self.target / m.data_sd
        if m.prediction == "velocity":
            return noise - self.target
        # Karras et al. 2022, table 1, for z = x / a and sigma = s / a, multiplied out.
        sigma_squared_data = m.data_sd**2
        skip = a * sigma_squared_data / (s**2 + a**2 * sigma_squared_data)
        out = s * m.data_sd / torch.sqrt(s**2 + a**2 * sigma_squared_data)
        return (self.target - skip * x) / out


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.schedule.kind} {m.prediction}")
def test_a_network_that_knows(method):
    """It has no error, and its estimate is the image; one that is off by 1 has an error of 1."""
    given, scaling = samples(), Scaling()
    time = method.random_times(given.seeds)
    assert ((time > 0) & (time <= method.schedule.steps)).all()
    network = Knows(method, given.target).at(time)
    assert method.training_error(network, scaling, given).item() == pytest.approx(0, abs=2e-6)
    network.off = 1.0
    assert method.training_error(network, scaling, given).item() == pytest.approx(1.0, abs=1e-3)
    network.off = 0.0
    x = network.a * given.target + network.s * torch.randn(given.target.shape)
    tolerance = 1e-4 * float((network.s / network.a).clamp(max=1e3).max() + 1)
    assert torch.allclose(method.estimate(network, x, given.low, time), given.target, atol=tolerance)


def test_v_is_that_of_salimans_and_ho():
    """With unit variance and a^2 + s^2 = 1 what is asked of the network is -(a n - s x_0)."""
    method, given = Diffusion("ddpm", LINEAR, "v", 1.0), samples()
    time = method.random_times(given.seeds)
    network = Knows(method, given.target).at(time)
    noise = torch.randn(given.target.shape)
    x = network.a * given.target + network.s * noise
    v = network.a * noise - network.s * given.target
    assert torch.allclose(network.right(x / torch.sqrt(network.a**2 + network.s**2)), -v, atol=1e-3)


def test_times_and_noise_depend_on_the_seed_alone():
    method = METHODS[0]
    assert torch.equal(method.random_times([5, 6]), method.random_times([5, 6]))
    assert method.random_times([6])[0] == method.random_times([5, 6])[1]
    many = method.random_times(list(range(4000))) / 1000
    assert many.mean().item() == pytest.approx(0.5, abs=0.02) and many.min() > 0 and many.max() <= 1


ANCHORS = Anchors((2.0, 4.0, 10.0), (30.0, 60.0, 110.0), "x")


def test_anchors_of_intervals():
    """[0, tau_3) the target, [tau_3, tau_2) half dose, [tau_2, tau_1) a quarter, [tau_1, T] a tenth."""
    method = Diffusion("map-diff", anchors=ANCHORS, beside=ANCHORS.drfs)
    target, beside = (
        torch.zeros(5, 1, 1, 1, 1),
        torch.tensor([2.0, 4.0, 10.0])[None, :, None, None, None].expand(5, 3, 1, 1, 1),
    )
    time = torch.tensor([29.9, 30.0, 60.0, 110.0, 1000.0], dtype=torch.float64)
    assert method._anchor_images(target, beside, time).flatten().tolist() == [0, 2, 4, 10, 10]


def test_the_anchors_error_by_hand():
    """lambda (1 - t/T)^p |x0_hat - a(t)|^2, for a network that knows the image: its distance from the anchor."""
    given, scaling = samples(beside=3), Scaling()
    for power, weight in ((2.0, 0.3), (0.0, 1.0)):
        method = Diffusion("map-diff", anchors=ANCHORS, beside=ANCHORS.drfs, anchor_weight=weight, anchor_power=power)
        time = method.random_times(given.seeds)
        images = torch.cat([given.target, given.beside], dim=1)
        wanted = 0.0
        for k, t in enumerate(time.tolist()):
            passed = sum(t >= tau for tau in ANCHORS.times)
            wanted += (1 - t / 1000) ** power * (given.target[k, 0] - images[k, passed]).square().mean().item() / 3
        error = method.training_error(Knows(method, given.target).at(time), scaling, given).item()
        assert error == pytest.approx(weight * wanted, rel=0.02, abs=1e-4)


def test_bound_and_clamp_hold_what_noise_would_make_of_the_anchors():
    """With eps a network that is off by 1 is off by s / a in the image, 1e4 at the end: unbounded its square leads."""
    given = samples(beside=3)
    plain = Diffusion("map-diff", anchors=ANCHORS, beside=ANCHORS.drfs, anchor_weight=1.0, anchor_power=0.0)
    time = plain.random_times(given.seeds)

    def error(method):
        network = Knows(method, given.target).at(time)
        network.off = 1.0
        return method.training_error(network, Scaling(), given).item()

    bounded, clamped = error(replace(plain, bound=1.0)), error(replace(plain, clamp=True))
    gain = torch.from_numpy(LINEAR.ratio(time.numpy())).square().mean().item()
    assert error(plain) > 0.8 * gain
    # An estimate off by r has a squared error of about r^2 plus the anchor's own, bounded to 1 and a little.
    assert 1 < bounded < 1 + 1 + 2 * given.beside.square().max().item()
    least, most = limits(given.low)
    assert clamped < 1 + (most - least).square().max().item() + given.beside.square().max().item() * 2


@pytest.mark.parametrize("full", [True, False])
def test_ladder_passes_through_the_doses(full):
    """At the share of a dose's noise the diffusing image is the image there; at the end it is the input, at 0 the target."""
    method = Diffusion("flow", FLOW, "velocity", way="ladder", beside=(2.0, 4.0, 10.0, 50.0), full=full)
    given, scaling = samples(4, beside=4), Scaling()
    clean = 1.0 if full else 0.0
    for k, drf in enumerate((2.0, 4.0, 10.0, 20.0)):
        share = math.sqrt((drf - clean) / (20.0 - clean))
        time = torch.full((4,), 1000 * share, dtype=torch.float64)
        a, s = 1 - share, share
        end = method._end(given.low, given.target, given, time, scaling)
        wanted = given.low if drf == 20 else given.beside[:, k : k + 1]
        assert torch.allclose(a * given.target + s * end, wanted, atol=1e-4)
    near = torch.full((4,), 1e-3, dtype=torch.float64)
    end = method._end(given.low, given.target, given, near, scaling)
    assert torch.allclose((1 - 1e-6) * given.target + 1e-6 * end, given.target, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prediction": "velocity"}, "--schedule flow"),
        ({"schedule": FLOW}, "--prediction eps"),
        ({"way": "ladder"}, "--way ladder"),
        ({"name": "map-diff", "way": "ladder", "schedule": FLOW, "prediction": "v"}, "--way ladder"),
    ],
)
def test_what_does_not_fit(fields, says):
    with pytest.raises(UsageError, match=says):
        Diffusion(**{"name": "ddpm", **fields})


def test_anchors_must_rise():
    for drfs, times in (((2.0, 4.0), (5.0, 5.0)), ((4.0, 2.0), (1.0, 2.0)), ((), ()), ((2.0,), (1.0, 2.0))):
        with pytest.raises(UsageError, match="--anchors"):
            Anchors(drfs, times, "x")


def test_measured_errors():
    method, given = METHODS[3], samples()
    found = method.measured_errors(lambda shown, told: torch.zeros_like(shown[:, :1]), Scaling(), [given])
    assert [t for t, _ in found] == sorted(t for t, _ in found)
    root = given.target.square().mean().sqrt().item()
    assert [e for _, e in found] == pytest.approx([root] * len(found))
