"""`at` against loops over positions, and what known ports miss: the student's gradient, channels, unequal sizes."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdkit.losses import ATLoss


def attention(maps, p):
    rows = []
    for sample in maps:
        channels, height, width = sample.shape
        row = np.array(
            [
                sum(abs(sample[c, i, j]) ** p for c in range(channels)) / channels
                for i in range(height)
                for j in range(width)
            ]
        )
        rows.append(row / np.sqrt((row**2).sum()))
    return rows


def maps(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("p", [1, 2, 3.0])
def test_both_modes(p):
    s, t = maps(3, 4, 5, 6), maps(3, 2, 5, 6)
    pairs = list(zip(attention(s.numpy(), p), attention(t.numpy(), p), strict=True))
    code = np.mean([(a - b) ** 2 for a, b in pairs])
    paper = np.mean([np.linalg.norm(a - b) for a, b in pairs])
    assert ATLoss(p=p)(s, t).item() == pytest.approx(code, rel=1e-12)
    assert ATLoss(p=p, mode="paper")(s, t).item() == pytest.approx(paper, rel=1e-12)


def test_the_mode_makes_the_weight():
    """For one sample the paper's value is √(H·W·code): about 137 times larger on random 8 × 8 maps."""
    s, t = maps(1, 64, 8, 8), maps(1, 64, 8, 8)
    code, paper = ATLoss()(s, t), ATLoss(mode="paper")(s, t)
    torch.testing.assert_close(paper, (64 * code).sqrt())
    assert paper > 50 * code


def test_the_student_learns_and_the_teacher_does_not():
    s, t = maps(3, 4, 5, 5).requires_grad_(), maps(3, 4, 5, 5).requires_grad_()
    ATLoss()(s, t).backward()
    assert s.grad.abs().min() > 0
    assert t.grad is None


def test_scale_sign_and_repeated_channels_do_not_count():
    s, t = maps(3, 4, 5, 5), maps(3, 2, 5, 5)
    expected = ATLoss()(s, t)
    torch.testing.assert_close(ATLoss()(7 * s, -t / 3), expected)
    torch.testing.assert_close(ATLoss()(torch.cat([s, s], 1), t), expected)
    torch.testing.assert_close(ATLoss(p=1.0)(s, -s), expected.new_zeros(()))


@pytest.mark.parametrize(("p", "size"), [(2, 1e8), (3.0, 3e5), (4.0, 1e4)])
def test_activations_as_large_as_the_mean_over_channels_allows(p, size):
    """A sum over them overflows sooner where it is squared: the attention was 0 everywhere, and told nobody."""
    s, t = torch.randn(2, 512, 4, 4), torch.randn(2, 512, 4, 4)
    torch.testing.assert_close(ATLoss(p=p)(size * s, t), ATLoss(p=p)(s, t), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("p", "size"), [(2, 1e15), (3.0, 1e10), (4.0, 1e3), (4.0, 1e8), (4.0, 3e-4), (3.0, 1e-5)])
def test_the_scale_of_a_map_is_taken_out_of_the_gradient_too(p, size):
    """A strength is a power: its square overflows, and the cube of one over its length vanishes, long before itself."""
    s, t = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
    small, large = s.clone().requires_grad_(), (size * s).requires_grad_()
    expected, value = ATLoss(p=p)(small, t), ATLoss(p=p)(large, t)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(size * value, large)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, small)[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("p", [2, 3.0])
@pytest.mark.parametrize("size", [1e-8, 1e-11])
def test_maps_that_are_nearly_zero_are_no_attention_and_pull_at_nothing(p, size):
    s, t = (size * torch.randn(2, 8, 4, 4)).requires_grad_(), torch.randn(2, 8, 4, 4)
    value = ATLoss(p=p)(s, t)
    torch.testing.assert_close(value, ATLoss(p=p)(0 * s, t), rtol=1e-5, atol=0)
    assert torch.autograd.grad(value, s)[0].abs().max() < 1


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_pooled_before_its_attention(larger):
    large, small = maps(3, 4, 8, 6), maps(3, 4, 4, 3)
    pooled = large.reshape(3, 4, 4, 2, 3, 2).mean((3, 5))
    ends = (large, small) if larger == "student" else (small, large)
    expected = (pooled, small) if larger == "student" else (small, pooled)
    torch.testing.assert_close(ATLoss()(*ends), ATLoss()(*expected))


def test_each_side_is_pooled_where_it_is_the_larger():
    assert ATLoss()(maps(2, 3, 7, 4), maps(2, 3, 5, 6)).isfinite()
    tall, wide = maps(2, 3, 4, 2), maps(2, 3, 2, 4)
    pooled = tall.reshape(2, 3, 2, 2, 2).mean(3), wide.reshape(2, 3, 2, 2, 2).mean(4)
    torch.testing.assert_close(ATLoss()(tall, wide), ATLoss()(*pooled))


@pytest.mark.parametrize(("student", "teacher"), [((1, 1), (1, 1)), ((4, 4), (1, 1)), ((4, 1), (1, 4))])
def test_a_single_position_is_refused(student, teacher):
    with pytest.raises(ValueError, match=r"at: .* more than one position in common.*tap before the pooling"):
        ATLoss()(maps(2, 3, *student), maps(2, 3, *teacher))


def test_refusals():
    with pytest.raises(ValueError, match=r"at: mode must be 'code' or 'paper', got 'mean'; choose one of them"):
        ATLoss(mode="mean")
    with pytest.raises(ValueError, match=r"at: p must be at least 1, got 0.5; below 1"):
        ATLoss(p=0.5)
    with pytest.raises(ValueError, match=r"at: teacher must be \(B, C, H, W\), got shape \(3, 4\); choose another tap"):
        ATLoss()(torch.randn(3, 4, 5, 5), torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"at: student must hold teacher's 3 samples, got 2; give both the same batch"):
        ATLoss()(torch.randn(2, 4, 5, 5), torch.randn(3, 4, 5, 5))


def test_a_scheduled_power_is_the_power():
    s, t = maps(2, 3, 4, 4), maps(2, 3, 4, 4)
    loss = ATLoss()
    expected = loss(s, t)
    loss.p = torch.tensor(2.0, dtype=torch.float64)
    torch.testing.assert_close(loss(s, t), expected)


def plain(s, t):
    s, t = (F.normalize(x.square().mean(1).flatten(1)) for x in (s, t))
    return (s - t).square().mean()


def test_the_gradient_is_that_of_the_plain_formula():
    """Its first and its second derivative; and so it is where `torch.func` takes it, sample by sample."""
    s, t = maps(3, 4, 5, 5).requires_grad_(), maps(3, 2, 5, 5)
    gradients = [torch.autograd.grad(value, s, create_graph=True)[0] for value in (ATLoss()(s, t), plain(s, t))]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(*(torch.autograd.grad(g.square().sum(), s)[0] for g in gradients))
    each = torch.func.vmap(torch.func.grad(lambda x, y: ATLoss()(x[None], y[None])))(s.detach(), t)
    torch.testing.assert_close(each / 3, gradients[0].detach())
