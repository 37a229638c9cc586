"""UniPET: its networks, the region mask, and the parts of its loss."""

import pytest
import torch

from denoise.networks.critic import Critic
from denoise.networks.unipet import Mix, ModulatedConv, UniPET, UniPETShape, mixed, stages_of

TINY = UniPETShape((16,), 4, tile=32)


def count(network):
    return sum(p.numel() for p in network.parameters())


# Networks


def test_parameters_are_those_of_the_published_code():
    """By layer, from the sizes in the description of the code: 2.75 M and 11.05 M."""
    with torch.device("meta"):
        whole, base, critic = UniPET(UniPETShape()), UniPET(UniPETShape(aligned=False)), Critic()
        separate = UniPET(UniPETShape(slopes="separate"))
    blocks = 8 * (2 * 64 * 64 * 27 + 64) + 1
    stem, head = 64 * 27 + 64, 64 * 27 + 1

    def stage(inside, outside=256):
        a = inside // 4
        attention = a * (a // 4) + a // 4 + (a // 4) * a + a
        return inside * a + attention + 27 * a * a + a * outside + outside * 256 + 256

    encoder, affine = stage(64) + 3 * stage(256) + 1, 16 * (256 * 64 + 64)
    assert count(base) == stem + blocks + head == 1_773_506
    assert count(whole) == stem + blocks + head + encoder + affine == 2_748_487
    assert count(separate) == count(whole) + 7 + 15
    layers = [(1, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    assert count(critic) == sum(a * b * 64 + b for a, b in layers) + 9 == 11_047_882


def test_shapes():
    torch.manual_seed(0)
    network = UniPET(TINY)
    out, features = network.with_features(torch.rand(2, 1, 16, 20, 8))
    assert out.shape == (2, 1, 16, 20, 8)
    assert [f.shape for f in features] == [(2, 16, 16, 20, 8)] * 4
    assert Critic(32, 2, 4)(torch.rand(3, 2, 32, 32, 32)).shape == (3,)
    assert Critic(64, 1, 2)(torch.rand(1, 1, 64, 64, 64)).shape == (1,)
    assert stages_of(8) == [0, 0, 1, 1, 2, 2, 3, 3] and stages_of(6) == [0, 0, 1, 1, 2, 3]


def test_the_network_adds_to_its_input():
    network = UniPET(TINY)
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)
    x = torch.rand(1, 1, 8, 8, 8)
    assert torch.equal(network(x), x)


def test_a_style_of_zero_is_a_demodulated_plain_convolution():
    torch.manual_seed(0)
    layer, x = ModulatedConv(4), torch.randn(2, 4, 6, 6, 6)
    size = (layer.weight.square().sum(dim=(1, 2, 3, 4), keepdim=True) + 1e-8).sqrt()
    wanted = torch.nn.functional.conv3d(x, layer.weight / size, padding=1)
    torch.testing.assert_close(layer(x, torch.zeros(2, 4)), wanted)


def test_modulation_is_that_of_each_samples_own_weights():
    """Against a loop over samples, and the grouped convolution of the published code; gradients too."""
    torch.manual_seed(0)
    layer, x, style = ModulatedConv(4), torch.randn(3, 4, 6, 6, 6), torch.randn(3, 4)
    own = layer.weight[None] * (1 + style)[:, None, :, None, None, None]
    own = own / (own.square().sum(dim=(2, 3, 4, 5), keepdim=True) + 1e-8).sqrt()
    loop = torch.cat([torch.nn.functional.conv3d(x[k : k + 1], own[k], padding=1) for k in range(3)])
    grouped = torch.nn.functional.conv3d(x.reshape(1, 12, 6, 6, 6), own.reshape(12, 4, 3, 3, 3), padding=1, groups=3)
    out = layer(x, style)
    torch.testing.assert_close(out, loop)
    torch.testing.assert_close(out, grouped.reshape(3, 4, 6, 6, 6))
    weights = torch.randn_like(out)
    slopes = [torch.autograd.grad((y * weights).sum(), layer.weight, retain_graph=True)[0] for y in (out, loop)]
    torch.testing.assert_close(*slopes)


def test_a_style_scales_no_output():
    """Demodulation takes off what all inputs have in common."""
    torch.manual_seed(0)
    layer, x = ModulatedConv(4), torch.randn(1, 4, 6, 6, 6)
    torch.testing.assert_close(layer(x, torch.full((1, 4), 6.0)), layer(x, torch.zeros(1, 4)))


def test_samples_do_not_hang_on_others_of_their_batch():
    torch.manual_seed(0)
    network, x = UniPET(TINY).eval(), torch.rand(3, 1, 8, 8, 8)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))


def test_base_parameters_are_those_of_the_network_without_encoder():
    whole, base = UniPET(TINY), UniPET(UniPETShape((16,), 4, aligned=False))
    assert sum(p.numel() for p in whole.base_parameters()) == count(base)


def test_mixed_features_have_mixed_statistics():
    x = torch.randn(2, 3, 6, 6, 6) * torch.tensor([1.0, 4.0])[:, None, None, None, None]
    share, partner = torch.tensor([0.25, 1.0]), torch.tensor([1, 0])
    out = mixed(x, Mix(share, partner))
    for statistic in (lambda v: v.mean(dim=(2, 3, 4)), lambda v: v.std(dim=(2, 3, 4))):
        own, new = statistic(x), statistic(out)
        torch.testing.assert_close(new[0], 0.25 * own[0] + 0.75 * own[1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(new[1], own[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("images", [1, 2])
def test_critics_score_each_image_by_itself(images):
    torch.manual_seed(0)
    critic, x = Critic(32, images, 2), torch.randn(3, images, 32, 32, 32)
    torch.testing.assert_close(critic(x)[2:], critic(x[2:]))
