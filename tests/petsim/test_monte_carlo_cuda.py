"""The CUDA photon Monte Carlo: compiled without a GPU, run as plain C++ beside numba's, and on a GPU where there is one."""

import re
from dataclasses import replace
from difflib import SequenceMatcher

import numpy as np
import pytest

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from data_recipes.phantoms.analytic import cylinder
from petsim.geometry.scanner import load_scanner
from petsim.gpu import cuda_problem
from petsim.model import find_photons
from petsim.physics import crystals, cuda, photons
from petsim.physics.monte_carlo import photon_pairs
from petsim.plan import plan_subject
from petsim.settings import SimulationSettings
from tests.petsim.cuda_host import ARCHITECTURES, Host, compiled, resources
from tests.warm_up import SMALL

ARRAYS = 48 * 16 + 48 * 32
"""Bytes of the deposits and readout blocks of a photon, which a thread indexes."""

INTEGERS = ("crystal", "ring", "scatters", "triggers")
FLOATS = ("energy_kev", "position_mm", "path_mm")
CENTER = (3.0, -4.0, 10.0)


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    return Host(compiled(cuda.SOURCE, tmp_path_factory.mktemp("monte_carlo")))


@pytest.fixture(scope="session")
def shaken(tmp_path_factory):
    """Like `host`, with a math library whose last bits differ."""
    return Host(compiled(cuda.SOURCE, tmp_path_factory.mktemp("shaken"), "shaken_math.h"))


@pytest.fixture
def on(monkeypatch):
    """`on(gpu)`: the backend "cuda" takes that for a GPU."""

    def take(gpu):
        monkeypatch.setattr(cuda, "cuda", lambda: gpu)
        monkeypatch.setattr("petsim.projectors.choose.cuda_problem", lambda: None)

    return take


def maps():
    """A body with holes beside the middle, air around it, some of it beyond the ends of short scanners."""
    grid = Grid.centered((30, 25, 60), (12.0, 12.5, 7.0))
    rng = np.random.default_rng(0)
    activity, mu = (rng.random(grid.shape).astype(np.float32) for _ in range(2))
    mu *= np.float32(0.15)
    mu[:4] = mu[:, :3] = mu[12:15] = 0
    return activity, mu, grid


def simulated(scanner, decays, backend, subject=None, **settings):
    batches = list(photon_pairs(scanner, *(subject or maps()), CENTER, decays, 5, backend=backend, **settings))
    return {name: np.concatenate([getattr(b, name) for b in batches]) for name in (*INTEGERS, *FLOATS)}


def assert_equal(one, two):
    for name, values in one.items():
        assert values.dtype == two[name].dtype, name
        np.testing.assert_array_equal(values, two[name], name)


def moved(one, two):
    """Decays that differ by more than rounding: in an integer, or in an energy, a path or a position."""
    rows = [[row.tobytes() for row in np.concatenate([result[name] for name in INTEGERS], axis=1)] for result in (one, two)]
    blocks = SequenceMatcher(None, *rows, autojunk=False).get_matching_blocks()
    first, second = (np.concatenate([np.arange(b[k], b[k] + b.size) for b in blocks]) for k in (0, 1))
    close = np.ones(len(first), bool)
    for name in FLOATS:
        near = np.isclose(one[name][first], two[name][second], rtol=2.5e-7, atol=1e-5)
        close &= near.reshape(len(near), -1).all(axis=1)
    return max(len(rows[0]), len(rows[1])) - np.count_nonzero(close)


# ---- Compiled for GPUs ----


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for_gpus(architecture):
    """Five blocks of 128 threads fit the registers of a multiprocessor; little besides the arrays lies in memory."""
    found = resources(cuda.SOURCE, architecture, *cuda.OPTIONS)
    assert set(found) == {"photon_pairs"}
    stack, stores, loads, registers = found["photon_pairs"]
    assert registers <= 65536 // (5 * cuda.THREADS)
    assert stack <= ARRAYS + 256 and max(stores, loads) <= 128


def test_constants_and_layout_are_those_of_the_kernel(host):
    source = cuda.SOURCE.read_text()
    source.encode("ascii")
    assert f"MOST_DEPOSITS = {crystals.MOST_DEPOSITS} " in source
    for name, module in (("ELECTRON_KEV", photons), ("CUTOFF_KEV", photons), ("TRIGGER_KEV", crystals),
                         ("POLYETHYLENE_PER_CM", photons)):  # fmt: skip
        assert float(re.search(rf"\b{name} = ([\d.]+)[,;]", source)[1]) == getattr(module, name)
    assert f"__launch_bounds__({cuda.THREADS})" in source
    assert host.library.photon_pairs_parameter_bytes() == cuda.DECAYS.itemsize


# ---- Beside numba ----


@pytest.mark.parametrize("name", ["biograph_vision_600", "signa_pet_mr", "pennpet_3seg", "omni_legend_32"])
@pytest.mark.parametrize("detector", ["crystals", "cylinder"])
def test_is_numbas_bit_for_bit_with_the_same_math_library(host, on, name, detector):
    on(host)
    scanner = load_scanner(name)
    wanted = simulated(scanner, 40_000, "numba", detector=detector)
    assert len(wanted["crystal"]) > 5000
    assert_equal(wanted, simulated(scanner, 40_000, "cuda", detector=detector))


@pytest.mark.parametrize("detector", ["crystals", "cylinder"])
def test_a_math_librarys_last_bits_move_next_to_no_decay(shaken, on, detector):
    on(shaken)
    scanner = load_scanner("biograph_vision_600")
    one, two = (simulated(scanner, 100_000, backend, detector=detector) for backend in ("numba", "cuda"))
    assert moved(one, two) < 1e-4 * len(one["crystal"])


def test_moved_decays_are_counted(host, on):
    """One of three decays gone, and of another one photon's energy a little different."""
    one = {name: values[:3] for name, values in simulated(load_scanner("biograph_vision_600"), 100, "numba").items()}
    two = {name: values[1:].copy() for name, values in one.items()}
    assert (moved(one, one), moved(one, two), moved(two, one)) == (0, 1, 1)
    two["energy_kev"][1, np.argmax(two["energy_kev"][1])] *= np.float32(1 + 1e-6)
    assert moved(one, two) == 2


def test_neither_threads_nor_batches_nor_their_order_matter(host, on, monkeypatch):
    on(host)
    scanner = load_scanner("biograph_vision_600")
    wanted = simulated(scanner, 5000, "cuda")
    for threads, batch in ((1, 5000), (7, 1234), (40, 999)):
        monkeypatch.setattr(host, "threads", threads)
        assert_equal(wanted, simulated(scanner, 5000, "cuda", batch=batch))


def test_without_object_or_cover(host, on):
    on(host)
    scanner = load_scanner("biograph_vision_600")
    activity, mu, grid = maps()
    for cover, subject in ((0.0, (activity, mu, grid)), (0.5, (activity, 0 * mu, grid))):
        results = [simulated(scanner, 5000, backend, subject, cover_g_cm2=cover) for backend in ("numba", "cuda")]
        assert_equal(*results)


def test_maps_with_few_active_voxels(host, on):
    """The first, the last and neighbors of empty voxels."""
    on(host)
    scanner = load_scanner("biograph_vision_600")
    activity = np.zeros((3, 4, 5), np.float32)
    activity[0, 0, 0] = activity[1, 2, 3] = activity[2, 3, 4] = 1
    subject = (activity, np.zeros_like(activity), Grid.centered(activity.shape, (20.0, 20.0, 20.0)))
    assert_equal(*(simulated(scanner, 3000, backend, subject, detector="cylinder") for backend in ("numba", "cuda")))


@pytest.fixture(params=["host", pytest.param("device", marks=pytest.mark.gpu)])
def any_gpu(request, on):
    """A GPU, or what stands in for it."""
    if request.param == "host":
        on(request.getfixturevalue("host"))
    elif problem := cuda_problem():
        pytest.skip(problem)


def test_decays_beside_the_bore_are_not_detected(any_gpu):
    scanner = load_scanner("biograph_vision_600")
    one = np.ones((1, 1, 1), np.float32)
    subject = (one, 0 * one, Grid.centered((1, 1, 1), (1.0, 1.0, 1.0)))
    pairs = list(photon_pairs(scanner, *subject, (900.0, 0.0, 0.0), 1000, backend="cuda"))
    assert [(p.decays, p.energy_kev.shape, p.position_mm.shape) for p in pairs] == [(1000, (0, 2), (0, 2, 3))]


def test_a_simulation_follows_photons_with_its_backend(host, on):
    """Singles and the scatter of `--scatter monte-carlo`; the constants of a scanner are the CPU's."""
    settings = SimulationSettings(scanner=SMALL, preset="fast", photons=2000, seed=5, scatter="monte-carlo", backend="numba")
    plan = plan_subject(cylinder(length_mm=60.0), settings)
    wanted = find_photons(plan, settings)
    launched = []
    counting = Host(host.library._name)
    counting.launch = lambda name, *args: (launched.append(name), host.launch(name, *args))
    on(counting)
    found = find_photons(plan, replace(settings, backend="cuda"))
    assert launched == ["photon_pairs"] * 2
    for name in ("activity_cps", "triggers_cps", "multiple_ratio"):
        np.testing.assert_array_equal(getattr(found.singles, name), getattr(wanted.singles, name))
    np.testing.assert_array_equal(found.scatter.values, wanted.scatter.values)


def test_without_a_gpu_the_mend_is_named(monkeypatch):
    monkeypatch.setattr("petsim.projectors.choose.cuda_problem", lambda: "no CUDA device was found")
    scanner = load_scanner("biograph_vision_600")
    with pytest.raises(DataError, match=r"^[^\n]*no CUDA device was found; [^\n]*$"):
        photon_pairs(scanner, *maps(), CENTER, 10, backend="cuda")
    assert_equal(simulated(scanner, 500, "auto"), simulated(scanner, 500, "numba"))


# ---- On a GPU ----


@pytest.mark.gpu
@pytest.mark.parametrize("detector", ["crystals", "cylinder"])
@pytest.mark.parametrize("name", ["biograph_vision_600", "pennpet_3seg"])
def test_a_gpu_follows_the_same_photons(name, detector):
    """Positions of crystals are bit for bit those of numba; every run gives the same."""
    if problem := cuda_problem():
        pytest.skip(problem)
    scanner = load_scanner(name)
    one, two, again = (simulated(scanner, 200_000, backend, detector=detector) for backend in ("numba", "cuda", "cuda"))
    different = moved(one, two)
    print(f"{name}, {detector}: {different} of {len(one['crystal'])} decays differ")
    assert different < 1e-4 * len(one["crystal"])
    assert_equal(two, again)
    if detector == "crystals" and not different:
        np.testing.assert_array_equal(one["position_mm"], two["position_mm"])
