"""UniPET: its networks, the region mask, and the parts of its loss."""

import math

import numpy as np
import pytest
import torch

from denoise.adversarial.losses import adversarial_error, alignment_error, critic_error, gradient_penalty, style_of
from denoise.adversarial.mask import local_variance, region_mask
from denoise.adversarial.mask_report import WARNING, mask_shares, warnings_of
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


# Region mask


def test_local_variance_counts_the_voxels_that_there_are():
    """Of an image that is x along its first axis: 2/3 inside, 1/4 at both ends, where two planes are left; zeros beyond a
    border would add variance to a constant."""
    x = torch.arange(5.0)[:, None, None].expand(5, 4, 4)[None, None]
    inside = local_variance(x)[0, 0]
    torch.testing.assert_close(inside[1:-1], torch.full((3, 4, 4), 2 / 3))
    torch.testing.assert_close(inside[[0, -1]], torch.full((2, 4, 4), 1 / 4))
    assert not local_variance(torch.full((1, 1, 4, 4, 4), 7.0)).any()


def test_absolute_mask_by_hand():
    """One voxel of 1 among zeros: variance 1/27 - 1/27^2 = 0.03567 in the cube around it."""
    image = torch.zeros(1, 1, 7, 7, 7)
    image[0, 0, 3, 3, 3] = 1
    cube = torch.zeros_like(image)
    cube[0, 0, 2:5, 2:5, 2:5] = 1
    assert torch.equal(region_mask(image, "absolute", 0.0356), cube)
    assert not region_mask(image, "absolute", 0.0357).any()
    assert region_mask(image, "off", 1.0).all()


def test_relative_mask_holds_structure_and_not_noise():
    rng = torch.Generator().manual_seed(0)
    clean = torch.zeros(1, 1, 28, 28, 28)
    clean[..., 4:20, 4:20, 4:12] = 2
    clean[..., 4:20, 4:20, 12:20] = 8
    noise = 0.2 * clean.sqrt() * torch.randn(clean.shape, generator=rng)
    mask = region_mask(clean + noise, "relative", 3.0, clean)[0, 0].bool()
    assert mask[6:18, 6:18, 11:13].all()
    assert mask[6:18, 6:18, 6:9].float().mean() < 0.02 and mask[6:18, 6:18, 15:18].float().mean() < 0.02
    # Nothing but zeros near.
    assert not mask[-1, -1, -1]


def test_relative_mask_is_that_of_images_in_other_units():
    rng = torch.Generator().manual_seed(0)
    clean = torch.rand((1, 1, 12, 12, 12), generator=rng)
    full = clean + 0.3 * torch.randn(clean.shape, generator=rng)
    assert torch.equal(region_mask(4 * full, "relative", 1.5, 4 * clean), region_mask(full, "relative", 1.5, clean))


def test_shares_of_the_mask():
    rng = np.random.default_rng(0)
    clean = np.zeros((32, 32, 32), np.float32)
    clean[4:28, 4:28, 4:28] = 1
    labels = np.zeros(clean.shape, np.uint8)
    labels[8:24, 8:24, 8:24] = 1
    labels[14:18, 14:18, 14:18] = 100
    full = clean + np.float32(0.2) * clean * rng.standard_normal(clean.shape).astype(np.float32)
    shares = {(s["mask"], s["threshold"]): s for s in mask_shares(full, clean, labels, {1: "liver", 100: "lesion_1"})}
    assert shares["absolute", 1e-3]["liver"] == 1 and shares["absolute", 1e-3]["lesions"] == 1
    assert shares["absolute", 1e-3]["air"] < 0.5
    # A mean of 27 chi-squared values exceeds three times its expectation in next to no voxel.
    assert shares["relative", 3.0]["liver"] < 0.01
    assert {s["mask"] for s in mask_shares(full, None, labels, {})} == {"absolute"}


def test_a_mask_that_holds_the_body_is_called_inactive():
    lines = [{"mask": "absolute", "threshold": 1e-3, "body": 0.95}, {"mask": "relative", "threshold": 1e-3, "body": 0.5}]
    assert warnings_of(lines, "absolute", 1e-3) == [f"{WARNING} (95.0% of it at absolute 0.001)"]
    assert WARNING == "mask equals body: region-aware learning is inactive"
    assert not warnings_of(lines, "relative", 1e-3)


# Losses


def test_style_is_mean_and_unbiased_deviation_of_every_block():
    features = [torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 1, 4, 1, 1), torch.full((1, 1, 2, 1, 1), 5.0)]
    torch.testing.assert_close(style_of(features), torch.tensor([[3.0, math.sqrt(14 / 3), 5.0, 0.0]]))


def test_alignment_is_not_zero_and_moves_the_network_alone():
    torch.manual_seed(0)
    network, low, full = UniPET(TINY), torch.rand(2, 1, 8, 8, 8), torch.rand(2, 1, 8, 8, 8) + 0.5
    style, target = (style_of(network.with_features(x)[1]) for x in (low, full))
    error = alignment_error(style, target)
    assert error > 0
    assert alignment_error(style, style) == 0
    error.backward()
    assert all(p.grad is not None and p.grad.any() for p in network.stem.parameters())
    assert all(p.grad is not None and p.grad.any() for block in network.blocks for p in block.style.parameters())
    # The same error with the target's gradient too would differ.
    own = network.stem.weight.grad.clone()
    network.zero_grad()
    alignment_error(style_of(network.with_features(low)[1]), target.clone()).backward()
    torch.testing.assert_close(network.stem.weight.grad, own)


def test_gradient_penalty_by_hand():
    """D(x) = sum of w x has the gradient w everywhere: norms 2 sqrt(8) for w = 2; of D = sum x^2 / 2 it is |x|."""
    real, made = torch.ones(2, 1, 2, 2, 2), torch.zeros(2, 1, 2, 2, 2)
    share = torch.tensor([0.25, 1.0])
    linear = gradient_penalty(lambda x: 2 * x.sum(dim=(1, 2, 3, 4)), real, made, share)
    assert linear.item() == pytest.approx((2 * math.sqrt(8) - 1) ** 2)
    bowl = gradient_penalty(lambda x: x.square().sum(dim=(1, 2, 3, 4)) / 2, real, made, share)
    assert bowl.item() == pytest.approx(((0.25 * math.sqrt(8) - 1) ** 2 + (math.sqrt(8) - 1) ** 2) / 2)
    whole = critic_error(lambda x: 2 * x.sum(dim=(1, 2, 3, 4)), real, made, share, 10.0)
    assert whole.item() == pytest.approx(0 - 16 + 10 * (2 * math.sqrt(8) - 1) ** 2)


def test_the_penalty_reaches_the_critics_weights():
    torch.manual_seed(0)
    critic, share = Critic(32, 1, 2), torch.tensor([0.5])
    gradient_penalty(critic, torch.rand(1, 1, 32, 32, 32), torch.rand(1, 1, 32, 32, 32), share).backward()
    assert all(layer.weight.grad.any() for layer in critic.layers)


def test_no_adversarial_gradient_outside_the_mask():
    torch.manual_seed(0)
    critic, made = Critic(32, 1, 2), torch.rand(1, 1, 32, 32, 32, requires_grad=True)
    mask = (torch.rand(made.shape) < 0.3).float()
    adversarial_error(critic, made, mask).backward()
    assert not made.grad[mask == 0].any()
    assert made.grad[mask == 1].count_nonzero() > 0.9 * mask.sum()
