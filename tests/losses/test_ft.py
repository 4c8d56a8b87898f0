"""`ft` against loops over numpy, and who of its three nets learns from what."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit.losses import FTLoss


def maps(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def made(student=3, teacher=4, **options):
    torch.manual_seed(0)
    return FTLoss(student, teacher, **options).double()


def correlated(x, weight, bias):
    """A 3 × 3 convolution of one map (C, H, W) with zeros around it."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.empty((len(weight), *x.shape[1:]))
    for o, y, z in np.ndindex(out.shape):
        out[o, y, z] = (weight[o] * padded[:, y : y + 3, z : z + 3]).sum() + bias[o]
    return out


def leaky(x):
    return np.where(x > 0, x, 0.1 * x)


def through(layers, x):
    for conv in layers.convs:
        weight = conv.weight.detach().numpy()
        if conv.transposed:
            weight = weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
        x = leaky(correlated(x, weight, conv.bias.detach().numpy()))
    return x


def of_length_1(x):
    return x / np.sqrt((x**2).sum())


@pytest.mark.parametrize("compare", ["factors", "attention"])
def test_it_is_the_formula(compare):
    loss, s, t = made(compare=compare), maps(2, 3, 3, 3), maps(2, 4, 3, 3)
    distance, restored = [], []
    for ours, theirs in zip(s.numpy(), t.numpy(), strict=True):
        factor, translated = through(loss.paraphraser.encoder, theirs), through(loss.translator, ours)
        assert factor.shape == translated.shape == (2, 3, 3)
        restored.append(abs(through(loss.paraphraser.decoder, factor) - theirs).mean())
        if compare == "attention":
            factor, translated = (factor**2).mean(0), (translated**2).mean(0)
        distance.append(500 * abs(of_length_1(translated) - of_length_1(factor)).mean())
    assert loss(s, t).item() == pytest.approx(np.mean(distance) + np.mean(restored), rel=1e-12)
    loss.paraphraser.requires_grad_(False)
    assert loss(s, t).item() == pytest.approx(np.mean(distance), rel=1e-12)


def test_the_paraphraser_learns_from_giving_the_maps_back_alone():
    loss, s, t = made(), maps(2, 3, 3, 3).requires_grad_(), maps(2, 4, 3, 3).requires_grad_()
    loss(s, t).backward()
    mine = [p.grad.clone() for p in loss.paraphraser.parameters()]
    alone = torch.autograd.grad(F.l1_loss(loss.paraphraser(t.detach()), t.detach()), [*loss.paraphraser.parameters()])
    torch.testing.assert_close(mine, list(alone), rtol=0, atol=0)
    assert t.grad is None
    assert all(p.grad.abs().sum() > 0 for p in loss.translator.parameters())
    assert s.grad.abs().sum() > 0


def test_frozen_it_has_no_gradient_and_the_student_the_same():
    loss, s, t = made(), maps(2, 3, 3, 3).requires_grad_(), maps(2, 4, 3, 3)
    (before,) = torch.autograd.grad(loss(s, t), s)
    loss.paraphraser.requires_grad_(False)
    value = loss(s, t)
    value.backward()
    torch.testing.assert_close(s.grad, before, rtol=0, atol=0)
    assert all(p.grad is None for p in loss.paraphraser.parameters())
    assert 0 < value.item() < 2 * 500 / (2 * 3 * 3) ** 0.5
    torch.testing.assert_close(made(beta=7).requires_grad_(False)(s, t), value * 7 / 500)


def test_a_paraphraser_of_which_a_part_may_move_learns():
    loss, s, t = made(), maps(2, 3, 3, 3), maps(2, 4, 3, 3)
    before = loss(s, t)
    loss.paraphraser.encoder.requires_grad_(False)
    assert loss(s, t) == before


def test_widths_and_kinds_are_the_authors():
    loss, conv, back = FTLoss(3, 8), nn.Conv2d, nn.ConvTranspose2d
    for net, kind, widths in (
        (loss.translator, conv, (3, 3, 4, 4)),
        (loss.paraphraser.encoder, conv, (8, 8, 4, 4)),
        (loss.paraphraser.decoder, back, (4, 4, 8, 8)),
    ):
        assert [(type(c), c.in_channels, c.out_channels) for c in net.convs] == [
            (kind, *pair) for pair in pairwise(widths)
        ]


def test_it_learns_to_give_the_maps_back():
    torch.manual_seed(0)
    loss, t = FTLoss(3, 4), torch.rand(32, 2, 4, 4).repeat_interleave(2, 1)  # four channels that are two
    optimizer = torch.optim.Adam(loss.paraphraser.parameters(), 0.01)

    for _ in range(200):
        optimizer.zero_grad()
        loss(torch.zeros(32, 3, 4, 4), t).backward()
        optimizer.step()
    missed = F.l1_loss(loss.paraphraser(t), t).item()
    assert missed < 0.2  # a constant misses a uniform number by 0.25


def test_a_factor_and_its_negative_are_far_apart_but_one_to_attention():
    """RepDistiller's cannot tell them apart."""
    factor = maps(2, 2, 3, 3)
    for compare, least, most in (("factors", 1, 9), ("attention", 0, 1e-12)):
        ours, theirs = map(made(compare=compare)._direction, (factor, -factor))
        assert least <= (ours - theirs).abs().sum(1).mean().item() <= most


@pytest.mark.parametrize(("rate", "k"), [(0.5, 3), (0.4, 3), (0.1, 1), (0.01, 1), (2, 14)])
def test_the_rate_is_that_of_channels(rate, k):
    loss = FTLoss(3, 7, rate=rate) if rate != 0.5 else FTLoss(3, 6)
    assert loss.paraphraser.encoder(torch.zeros(1, 7 if rate != 0.5 else 6, 2, 2)).shape[1] == k
    assert loss.translator(torch.zeros(1, 3, 2, 2)).shape[1] == k


def test_the_larger_factor_is_pooled_on_either_side():
    loss, s, t = made(), maps(2, 3, 4, 4), maps(2, 4, 2, 2)
    loss.paraphraser.requires_grad_(False)
    for ours, theirs in ((s, t), (maps(2, 3, 2, 2), maps(2, 4, 4, 4))):
        one, other = (F.adaptive_avg_pool2d(f, 2) for f in (loss.translator(ours), loss.paraphraser.encoder(theirs)))
        expected = 500 * (F.normalize(one.flatten(1)) - F.normalize(other.flatten(1))).abs().mean()
        torch.testing.assert_close(loss(ours, theirs), expected)


@pytest.mark.parametrize(("norm", "where"), [("none", []), ("translator", ["translator"]), ("batch", None)])
def test_batch_norm_stands_before_the_leaky_relus_where_it_is_asked_for(norm, where):
    loss, s = made(norm=norm), maps(8, 3, 3, 3)
    nets = {"translator": loss.translator, "encoder": loss.paraphraser.encoder, "decoder": loss.paraphraser.decoder}
    where = list(nets) if where is None else where
    assert [name for name, net in nets.items() if isinstance(net.norms[0], nn.BatchNorm2d)] == where
    if where:
        chain = [part for pair in zip(loss.translator.convs, loss.translator.norms, strict=True) for part in pair]
        plain = nn.Sequential(*(p for i in range(0, 6, 2) for p in (*chain[i : i + 2], nn.LeakyReLU(0.1))))
        torch.testing.assert_close(loss.translator(s), plain(s))
        assert all(norm.affine for norm in loss.translator.norms)


def test_samples_that_say_nothing_keep_finite_gradients():
    loss, t = made(), torch.zeros(2, 4, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.zero_()
    s = maps(2, 3, 3, 3).requires_grad_()
    loss(s, t).backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_refusals():
    with pytest.raises(ValueError, match=r"ft: compare must be 'factors' or 'attention', got 'maps'; choose"):
        FTLoss(3, 4, compare="maps")
    with pytest.raises(ValueError, match=r"ft: rate must be a number above 0, got 0"):
        FTLoss(3, 4, rate=0)
    with pytest.raises(
        ValueError, match=r"ft: teacher must have 4 channels, got 5; build the loss with this teacher_d"
    ):
        FTLoss(3, 4)(torch.zeros(2, 3, 2, 2), torch.zeros(2, 5, 2, 2))
    with pytest.raises(ValueError, match=r"ft: student must be \(B, C, H, W\), got shape \(2, 3\)"):
        FTLoss(3, 4)(torch.zeros(2, 3), torch.zeros(2, 4, 2, 2))
