"""The CUDA projectors: compiled without a GPU, run as plain C++ beside numba's, and, where there is a GPU, run on it."""

import re

import numpy as np
import pytest

from data_recipes.errors import DataError
from data_recipes.grid import Grid
from petsim.geometry.scanner import load_scanner
from petsim.geometry.sinogram import SinogramLayout
from petsim.gpu import cuda_problem
from petsim.projectors import cuda
from petsim.projectors.cuda import CudaListmodeProjector, CudaProjector
from petsim.projectors.listmode import ListmodeProjector, Tof
from petsim.projectors.sinogram import SinogramProjector
from tests import helpers
from tests.petsim import test_listmode, test_projector
from tests.petsim.cuda_host import ARCHITECTURES, Host, compiled, resources
from tests.petsim.test_projector import CASES

KERNELS = {"sinogram_forward", "sinogram_back", "sinogram_tof_forward", "sinogram_tof_back", "listmode_forward",
           "listmode_back", "listmode_em"}  # fmt: skip
MOST_REGISTERS = 128
"""With more, a multiprocessor would hold fewer than two blocks of 256 threads."""

SHAPE, SPACING = (17, 14, 7), (7.0, 8.0, 5.3)  # Shorter than the ring of test_listmode.
SMALL = {"span": 3, "max_ring_difference": 4, "merge_tof": 4}


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    return Host(compiled(cuda.SOURCE, tmp_path_factory.mktemp("joseph")))


@pytest.fixture(params=["host", pytest.param("device", marks=pytest.mark.gpu)])
def gpu(request, monkeypatch):
    """What the projectors run on."""
    if request.param == "device":
        problem = cuda_problem()
        if problem:
            pytest.skip(problem)
        return cuda.cuda()
    host = request.getfixturevalue("host")
    monkeypatch.setattr(cuda, "cuda", lambda: host)
    return host


@pytest.fixture
def device():
    """A real GPU."""
    problem = cuda_problem()
    if problem:
        pytest.skip(problem)
    return cuda.cuda()


def build(*case, **kwargs):
    """A projector on the CPU and the same one on the GPU."""
    cpu = test_projector.build(*case, **kwargs)
    return cpu, CudaProjector(cpu.layout, cpu.grid, (0.0, 0.0, 0.0), **kwargs)


def build_listmode(events, tof=test_listmode.TOF, **kwargs):
    args = (test_listmode.ring_xy(), test_listmode.RING_Z, Grid.centered(SHAPE, SPACING, (3.0, -4.0, 2.5)), events)
    return tuple(kind(*args, center_mm=(0.0, 0.0, 0.0), tof=tof, **kwargs)
                 for kind in (ListmodeProjector, CudaListmodeProjector))  # fmt: skip


def random(*shape, seed=1):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


# ---- Compiled for GPUs ----


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for_gpus_without_spills(architecture):
    found = resources(cuda.SOURCE, architecture)
    assert set(found) == KERNELS
    for kernel, (stack, stores, loads, registers) in found.items():
        assert (stack, stores, loads) == (0, 0, 0), f"{kernel} spills"
        assert registers <= MOST_REGISTERS, kernel


def test_constants_and_layouts_are_those_of_the_kernels(host):
    source = cuda.SOURCE.read_text()
    source.encode("ascii")
    names = {"MAX_TILE": "MAX_TILE", "TOF_TILE": "STEPS", "LANES": "LANES", "DOSES": "DOSES", "PAD": "PAD",
             "CLIMB_BITS": "CLIMB_BITS"}  # fmt: skip
    for ours, theirs in names.items():
        assert re.search(rf"\b{theirs} = {getattr(cuda, ours)}\b", source), theirs
    assert f"__launch_bounds__({cuda.THREADS}, 2)" in source
    for kernel in KERNELS:
        dtype = cuda.LISTMODE if kernel.startswith("listmode") else cuda.SINOGRAM
        assert getattr(host.library, f"{kernel}_parameter_bytes")() == dtype.itemsize


# ---- Sinograms ----


@pytest.mark.parametrize(("scanner", "options", "ratio"), CASES)
@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize(("shift", "support"), [((0.0, 0.0, 0.0), None), ((0.2, -0.2, 3.0), 45.0)])
def test_agrees_with_numba(gpu, monkeypatch, scanner, options, ratio, steps, shift, support):
    """Within 1e-5 of the LOR's value where that is not tiny beside its line's largest; with one tile and with several."""
    if steps:
        monkeypatch.setattr(cuda, "MAX_TILE", steps)
        monkeypatch.setattr(cuda, "TOF_TILE", steps)
    cpu, ours = build(scanner, options, ratio, shift=shift, support_mm=support)
    image = random(*cpu.grid.shape)
    wanted, data = cpu.forward(image), ours.forward(image)
    lor = wanted.sum(axis=2, keepdims=True)
    assert np.all(np.abs(data - wanted) <= 1e-5 * np.maximum(lor, 0.1 * lor.max(axis=3, keepdims=True)))
    for share in (1.0, 0.01):
        data = random(*wanted.shape, seed=2) * (random(*wanted.shape, seed=3) < share)
        wanted_back = cpu.adjoint(data)
        np.testing.assert_allclose(ours.adjoint(data), wanted_back, atol=5e-6 * wanted_back.max())


@pytest.mark.parametrize(("scanner", "options", "ratio"), CASES)
def test_lors_beside_the_object_are_zero(gpu, monkeypatch, scanner, options, ratio):
    monkeypatch.setattr(gpu, "threads", 64, raising=False)  # On the host too, some threads then see such LORs only.
    cpu, ours = build(scanner, options, ratio, tof=False)
    image = np.zeros(cpu.grid.shape, np.float32)
    image[6:9, 5:9, 2:4] = random(3, 4, 2)
    wanted = cpu.forward(image)
    beside = wanted <= 2.5e-6 * wanted.max(axis=3, keepdims=True)
    assert np.count_nonzero(beside) > 100
    assert not ours.forward(image)[beside].any()


@pytest.mark.parametrize(("tof", "voxel_mm"), [(True, 4.0), (False, 2.0)])
def test_agrees_with_numba_on_a_real_scanner(gpu, tof, voxel_mm):
    """Biograph Vision, span 9, unmerged: 1e-5 of the LOR's value, or of a tenth of its line's largest."""
    scanner = load_scanner("biograph_vision_600")
    layout = SinogramLayout(scanner, radials=300, span=9, max_ring_difference=76, merge_tof=16, tof_bins=13)
    size, planes = round(400 / voxel_mm), round(80 * 4 / voxel_mm) - 1
    grid = Grid.centered((size, size, planes), (voxel_mm, voxel_mm, scanner.ring_spacing_mm * voxel_mm / 4))
    image = random(*grid.shape)
    views = np.array([57])
    wanted = SinogramProjector(layout, grid, tof=tof).forward(image, views)
    data = CudaProjector(layout, grid, tof=tof).forward(image, views)
    lor = wanted.sum(axis=2, keepdims=True)
    assert np.all(np.abs(data - wanted) <= 1e-5 * np.maximum(lor, 0.1 * lor.max(axis=3, keepdims=True)))


@pytest.mark.parametrize(("scanner", "options", "ratio"), CASES)
@pytest.mark.parametrize("support", [None, 45.0])
def test_is_linear_with_an_exact_adjoint(gpu, scanner, options, ratio, support):
    _, ours = build(scanner, options, ratio, support_mm=support)
    helpers.check_linear_operator(ours.forward, ours.adjoint, ours.grid.shape, ours.data_shape(ours.layout.views))


@pytest.mark.parametrize("tof", [True, False])
def test_dense_matrix_is_the_transpose(gpu, tof):
    options = {"span": 3, "max_ring_difference": 1, "merge_transaxial": 3, "merge_axial": 2, "radials": 6, "merge_tof": 8}
    cpu = test_projector.build("tiny", options, 3, shape=(5, 6), spacing=(20.0, 18.0), tof=tof)
    ours = CudaProjector(cpu.layout, cpu.grid, (0.0, 0.0, 0.0), tof=tof)
    helpers.check_dense_transpose(ours.forward, ours.adjoint, ours.grid.shape, ours.data_shape(ours.layout.views))


def test_any_number_of_threads_gives_the_same(host, monkeypatch):
    monkeypatch.setattr(cuda, "cuda", lambda: host)
    _, ours = build("tiny", SMALL, 2)
    image = random(*ours.grid.shape)
    data = ours.forward(image)
    for threads in (1, 2, 7, 40):
        monkeypatch.setattr(host, "threads", threads)
        np.testing.assert_array_equal(ours.forward(image), data)


def test_views_and_chunks_can_be_projected_one_by_one(gpu, monkeypatch):
    _, ours = build("tiny", SMALL, 2)
    image, views = random(*ours.grid.shape), np.array([3, 7])
    whole = ours.forward(image)
    np.testing.assert_array_equal(ours.forward(image, views), whole[views])
    back = ours.adjoint(whole)
    monkeypatch.setattr(cuda, "CHUNK_BYTES", 5 * 4 * ours.bins * ours.layout.planes)
    np.testing.assert_array_equal(ours.forward(image), whole)
    np.testing.assert_allclose(ours.adjoint(whole), back, atol=1e-6 * back.max())


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.uint16])
@pytest.mark.parametrize("tof", [True, False])
def test_em_back_projection_is_numbas(gpu, monkeypatch, dtype, tof):
    """Two images, some views, a part of the accumulators, counts of any type."""
    cpu, ours = build("tiny", SMALL, 2, support_mm=60.0, tof=tof)
    monkeypatch.setattr(cuda, "CHUNK_BYTES", 5 * 4 * ours.bins * ours.layout.planes)
    rng, views = np.random.default_rng(0), np.array([2, 3, 11])
    images = rng.random((2, *cpu.grid.shape)).astype(np.float32)
    # Counts as images let one expect: where next to nothing is expected, a ratio magnifies rounding.
    counts = np.stack([rng.poisson(cpu.forward(image, views) / 20) for image in images[::-1]]).astype(dtype)
    assert np.count_nonzero(counts) > 0.1 * counts.size
    background = None if dtype is np.uint8 else rng.random(counts.shape).astype(np.float32)
    wanted, sums = cpu.new_sums(2), ours.new_sums(3)
    cpu.add_em_back(wanted, views, counts, cpu.prepare(images), background)
    ours.add_em_back(sums[1:], views, counts, ours.prepare(images), background)
    ours.add_em_back(sums[1:], views, np.zeros_like(counts), ours.prepare(images), background)
    wanted, backs = cpu.image_of(wanted), ours.image_of(sums)
    assert isinstance(backs, np.ndarray) and backs.dtype == np.float32
    np.testing.assert_array_equal(backs[0], 0)
    np.testing.assert_allclose(backs[1:], wanted, atol=1e-5 * wanted.max())
    image = ours.forward_prepared(ours.prepare(images)[1], views)
    assert isinstance(image, np.ndarray)
    np.testing.assert_array_equal(image, ours.forward(images[1], views))


def test_pickles(gpu):
    _, ours = build("tiny", SMALL, 2)
    helpers.check_pickles(ours, random(*ours.grid.shape))


def test_wrong_shapes_are_refused(gpu):
    _, ours = build("tiny", SMALL, 2)
    with pytest.raises(ValueError, match="image has shape"):
        ours.forward(random(3, 4, 5))
    with pytest.raises(ValueError, match="data have shape"):
        ours.adjoint(random(3, 4, 5, 6))
    with pytest.raises(ValueError, match="data have shape"):
        ours.add_back(ours.new_sums(1), np.arange(2), random(1, 3, 12, ours.bins, ours.layout.planes))


def test_a_grid_too_long_for_the_shared_memory_is_refused(gpu):
    cpu = test_projector.build("tiny", SMALL, 2)
    grid = Grid.centered((4, 4, 4000), (8.0, 8.0, 0.01))
    with pytest.raises(DataError, match="shared memory"):
        CudaProjector(cpu.layout, grid, tof=False)


# ---- List-mode ----


@pytest.mark.parametrize("tof", [None, test_listmode.TOF, Tof(test_listmode.BINS, 4.0, 25.0)])
@pytest.mark.parametrize(("doses", "support"), [(1, None), (3, 60.0), (6, None)])
def test_listmode_agrees_with_numba(gpu, tof, doses, support):
    cpu, ours = build_listmode(test_listmode.draw_events(2000, doses=doses), tof, support_mm=support)
    images = random(doses, *SHAPE)
    wanted, values = cpu.forward(images), ours.forward(images)
    assert np.all(np.abs(values - wanted) <= 1e-5 * np.maximum(wanted, 0.1 * wanted.max()))
    assert not values[wanted == 0].any()
    values, weight, background = random(doses, 2000, seed=2), random(2000, seed=3), random(doses, 2000, seed=4)
    background += 0.1  # Without, an event at the very end of the TOF kernel's reach would magnify rounding.
    for wanted, back in ((cpu.adjoint(values), ours.adjoint(values)),
                         (cpu.em_back(images, weight, background), ours.em_back(images, weight, background))):  # fmt: skip
        assert back.dtype == np.float32 and back.shape == images.shape
        np.testing.assert_allclose(back, wanted, atol=5e-6 * wanted.max())
    simplest = ours.em_back(images, np.ones(2000), np.zeros(2000))
    np.testing.assert_allclose(ours.em_back(images), simplest, atol=2e-6 * simplest.max())
    np.testing.assert_array_equal(ours.forward(images[0]), ours.forward(images)[0])


@pytest.mark.parametrize("tof", [None, test_listmode.TOF])
@pytest.mark.parametrize("doses", [1, 5])
def test_listmode_is_linear_with_an_exact_adjoint(gpu, tof, doses):
    _, ours = build_listmode(test_listmode.draw_events(600, doses=doses), tof, support_mm=70.0)
    helpers.check_linear_operator(ours.forward, ours.adjoint, (doses, *SHAPE), (doses, 600))


def test_listmode_dense_matrix_is_the_transpose(gpu):
    _, ours = build_listmode(test_listmode.draw_events(40))
    helpers.check_dense_transpose(ours.forward, ours.adjoint, SHAPE, (40,))


def test_no_events_give_nothing(gpu):
    _, ours = build_listmode(test_listmode.draw_events(0))
    assert ours.forward(random(*SHAPE)).shape == (0,)
    np.testing.assert_array_equal(ours.em_back(random(*SHAPE)), np.zeros(SHAPE))


def test_listmode_wrong_shapes_are_refused(gpu):
    _, ours = build_listmode(test_listmode.draw_events(20))
    with pytest.raises(ValueError, match="images have shape"):
        ours.forward(random(3, 4, 5))
    with pytest.raises(ValueError, match="values have shape"):
        ours.adjoint(random(3))
    with pytest.raises(ValueError, match="weight has shape"):
        ours.em_back(random(*SHAPE), weight=random(3))


# ---- Arrays of other libraries ----


def test_without_cupy_the_mend_is_named(monkeypatch):
    monkeypatch.setattr("petsim.gpu.cuda_problem", lambda: "CuPy is not installed (pip install 'petsim[gpu]')")
    with pytest.raises(DataError, match=r"^[^\n]*pip install 'petsim\[gpu\]'[^\n]*$"):
        cuda.cuda.__wrapped__()


def test_torch_tensors_on_the_cpu_come_back_as_such(gpu):
    torch = pytest.importorskip("torch")
    _, ours = build("tiny", SMALL, 2)
    image = random(*ours.grid.shape)
    data = ours.forward(torch.from_numpy(image))
    assert isinstance(data, torch.Tensor)
    np.testing.assert_array_equal(data.numpy(), ours.forward(image))
    back = ours.adjoint(data)
    assert isinstance(back, torch.Tensor)
    np.testing.assert_allclose(back.numpy(), ours.adjoint(data.numpy()), rtol=1e-5, atol=1e-5)
    _, events = build_listmode(test_listmode.draw_events(50))
    assert isinstance(events.adjoint(events.forward(torch.ones(SHAPE))), torch.Tensor)


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["cupy", "torch"])
def test_arrays_on_the_device_stay_there(device, library):
    if library == "torch":
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("torch has no CUDA device")
        kind, put = torch.Tensor, lambda array: torch.from_numpy(array).cuda()
    else:
        kind, put = device.xp.ndarray, device.xp.asarray
    _, ours = build("tiny", SMALL, 2)
    image = random(*ours.grid.shape)
    data = ours.forward(put(image))
    assert isinstance(data, kind)
    # The projector reads the very memory of the caller's array.
    assert cuda._taken(data).data.ptr == device.xp.from_dlpack(data).data.ptr
    np.testing.assert_array_equal(device.to_host(device.xp.from_dlpack(data)), ours.forward(image))
    back = ours.adjoint(data)
    assert isinstance(back, kind)
    np.testing.assert_allclose(device.to_host(device.xp.from_dlpack(back)), ours.adjoint(ours.forward(image)), rtol=1e-5,
                               atol=1e-5)  # fmt: skip
