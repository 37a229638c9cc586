"""`petsim.Projector`, its backends' choice, and torch's view of it."""

import numpy as np
import pytest

import petsim
from data_recipes.errors import DataError, UsageError
from data_recipes.grid import Grid
from petsim.geometry.sinogram import SinogramLayout
from petsim.projectors import choose
from petsim.projectors.sinogram import SinogramProjector
from tests.petsim.test_projector import tiny_scanner


def tiny(**options):
    layout = SinogramLayout(tiny_scanner(), radials=12, span=3, max_ring_difference=4, merge_tof=8, tof_bins=5)
    return petsim.Projector(layout, Grid.centered((7, 6, 13), (18.0, 20.0, 4.0)), device="cpu", **options)


def test_is_the_projector_of_the_layout():
    projector = tiny()
    image = np.random.default_rng(0).random(projector.image_shape)
    plain = SinogramProjector(projector.layout, projector.grid)
    data = projector(image)
    np.testing.assert_array_equal(data, plain.forward(image.astype(np.float32)))
    np.testing.assert_array_equal(projector.T(data), plain.adjoint(data))
    np.testing.assert_array_equal(projector.T.T(image), data)
    assert data.shape == projector.data_shape and data.dtype == np.float32


def test_leading_axes_are_kept():
    projector = tiny()
    images = np.random.default_rng(0).random((2, 3, *projector.image_shape)).astype(np.float32)
    data = projector(images)
    assert data.shape == (2, 3, *projector.data_shape)
    np.testing.assert_array_equal(data[1, 2], projector(images[1, 2]))
    assert projector.adjoint(data).shape == images.shape


def test_a_subset_has_some_of_the_views():
    projector = tiny()
    image = np.random.default_rng(0).random(projector.image_shape).astype(np.float32)
    whole, backs = projector(image), np.zeros(projector.image_shape)
    for number in range(4):
        part = projector.subset(number, 4)
        data = part(image)
        assert data.shape == part.data_shape
        np.testing.assert_array_equal(data, whole[part.views])
        backs += part.T(data)
    np.testing.assert_allclose(backs, projector.T(whole), rtol=1e-5)
    with pytest.raises(UsageError, match="subset 4 of 4"):
        projector.subset(4, 4)


def test_a_scanners_name_takes_the_presets_layout():
    projector = petsim.Projector("biograph_mmr", preset="fast", fov_mm=240.0, device="cpu")
    assert projector.layout.merge_axial == 4
    assert projector.grid.extent_mm[0] >= 240.0
    assert abs(projector.grid.extent_mm[2] - projector.layout.scanner.axial_length_mm) < projector.grid.spacing_mm[2]
    assert "biograph_mmr" in repr(projector) and "numba" in repr(projector)


def test_wrong_shapes_and_names_are_one_line():
    projector = tiny()
    with pytest.raises(DataError, match=r"image has shape \(3, 3, 3\)"):
        projector(np.zeros((3, 3, 3)))
    with pytest.raises(DataError, match="data has shape"):
        projector.T(np.zeros(projector.image_shape))
    with pytest.raises(UsageError, match="preset"):
        petsim.Projector("biograph_mmr", preset="quick")
    with pytest.raises(UsageError, match="did you mean"):
        petsim.Projector("biograf_mmr")


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


def test_torch_tensors_come_back_as_such(torch):
    projector = tiny()
    image = torch.rand(2, *projector.image_shape)
    data = projector(image)
    assert isinstance(data, torch.Tensor) and data.dtype == torch.float32 and not data.requires_grad
    np.testing.assert_array_equal(data.numpy(), projector(image.numpy()))


def test_gradcheck_passes_in_both_directions(torch):
    """The maps are linear, so a step of 1 is exact and keeps clear of float32 rounding."""
    projector = tiny()
    rng = np.random.default_rng(0)
    image = torch.tensor(rng.random(projector.image_shape)[:], dtype=torch.float64, requires_grad=True)
    data = torch.tensor(rng.random(projector.data_shape), dtype=torch.float64)
    pick = torch.tensor(rng.random(projector.data_shape) < 0.02)
    check = {"eps": 1.0, "atol": 1e-3, "rtol": 1e-4, "nondet_tol": 0.0, "fast_mode": True}
    assert torch.autograd.gradcheck(lambda x: projector(x)[pick], (image,), **check)
    assert torch.autograd.gradcheck(projector.T, (data.requires_grad_(),), **check)


def test_gradients_are_those_of_the_least_squares_loss(torch):
    """d/dx of half |Px - y|^2 is P'(Px - y); its own gradient along d is P'P d."""
    projector = tiny()
    rng = np.random.default_rng(1)
    image = torch.tensor(rng.random(projector.image_shape), dtype=torch.float32, requires_grad=True)
    data = torch.tensor(rng.random(projector.data_shape), dtype=torch.float32)
    loss = 0.5 * ((projector(image) - data) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, image, create_graph=True)
    wanted = projector.T(projector(image.detach()) - data)
    torch.testing.assert_close(gradient.detach(), wanted, rtol=1e-4, atol=1e-3)
    direction = torch.tensor(rng.random(projector.image_shape), dtype=torch.float32)
    (second,) = torch.autograd.grad((gradient * direction).sum(), image)
    torch.testing.assert_close(second, projector.T(projector(direction)), rtol=1e-4, atol=1e-3)


def test_the_backend_is_chosen_with_a_reason(monkeypatch):
    monkeypatch.setattr(choose, "cuda_problem", lambda: "no CUDA device was found")
    assert choose.choose_backend() == ("numba", "no CUDA device was found")
    assert choose.choose_backend(device="cpu") == ("numba", "asked for")
    with pytest.raises(DataError, match="--device cuda: no CUDA device"):
        choose.choose_backend(device="cuda")
    monkeypatch.setattr(choose, "cuda_problem", lambda: None)
    assert choose.choose_backend()[0] == "cuda"
    assert choose.choose_backend("numba") == ("numba", "asked for")


@pytest.mark.parametrize(("backend", "device"), [("numba", "cuda"), ("cuda", "cpu"), ("stir", "auto"), ("auto", "tpu")])
def test_contradictions_are_refused(backend, device):
    with pytest.raises(UsageError):
        choose.choose_backend(backend, device)
