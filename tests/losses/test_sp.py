"""`sp` against loops, its invariances, and the weight that goes with each reduction."""

import numpy as np
import pytest
import torch

from kdkit.losses import SPLoss
from kdkit.registry import LOSSES


def features(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def by_loops(student, teacher):
    """‖G_t − G_s‖²_F, entry by entry."""
    s, t = (x.flatten(1).numpy() for x in (student, teacher))
    total = 0.0
    for i in range(len(s)):
        rows = [np.array([np.dot(x[i], x[j]) for j in range(len(x))]) for x in (s, t)]
        a, b = (row / np.sqrt((row**2).sum()) for row in rows)
        total += ((a - b) ** 2).sum()
    return total


@pytest.mark.parametrize("other", [(6, 5), (6, 2, 4, 4)])
def test_it_is_the_papers_formula(other):
    s, t = features(6, 3, 2, 2), features(*other)
    assert SPLoss()(s, t).item() == pytest.approx(by_loops(s, t) / 6, rel=1e-12)
    assert SPLoss(reduction="paper")(s, t).item() == pytest.approx(by_loops(s, t) / 36, rel=1e-12)


def test_the_weights_of_both_reductions_agree_at_64():
    s, t = features(64, 3), features(64, 5)
    torch.testing.assert_close(LOSSES["sp"].weight * SPLoss()(s, t), 3000 * SPLoss(reduction="paper")(s, t))


def test_rows_have_length_1_and_not_a_sum_of_1():
    """torchdistill's, which is tens of times smaller."""
    s, t = features(64, 64, 4, 4).relu(), features(64, 64, 4, 4).sin().relu()
    wrong = sum(sign * torch.nn.functional.normalize(x.flatten(1) @ x.flatten(1).T, 1) for sign, x in ((1, s), (-1, t)))
    assert SPLoss()(s, t) > 30 * wrong.square().sum() / 64 > 0


def test_scale_and_rotation_of_all_features_do_not_count():
    s, t = features(6, 4), features(6, 9)
    rotation = torch.linalg.qr(features(4, 4))[0]
    torch.testing.assert_close(SPLoss()(3e4 * s @ rotation, t), SPLoss()(s, t))
    assert not torch.isclose(SPLoss()(s * torch.arange(1, 7)[:, None], t), SPLoss()(s, t))  # of single samples it does


@pytest.mark.parametrize("size", [1e7, 1e15])
def test_large_features_in_fp32(size):
    """Their products' squares overflow: all were as far from each other as zeros are."""
    s, t = torch.randn(6, 40), torch.randn(6, 40)
    small, large = s.clone().requires_grad_(), (size * s).requires_grad_()
    expected, value = SPLoss()(small, t), SPLoss()(large, t)
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(size * value, large)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, small)[0], rtol=1e-3, atol=1e-6)


def test_its_bounds():
    t = features(8, 5)
    assert SPLoss()(torch.ones(8, 1).double(), torch.ones(8, 1).double()) == 0
    alternate = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)[:, None]
    assert 0 < SPLoss()(alternate, t) < 4


def test_refusals():
    with pytest.raises(ValueError, match=r"sp: reduction must be 'batchmean' or 'paper', got 'mean'; choose"):
        SPLoss(reduction="mean")
    with pytest.raises(ValueError, match=r"sp: student must hold teacher's 5 samples, got 4"):
        SPLoss()(features(4, 3), features(5, 3))
    with pytest.raises(ValueError, match=r"sp: teacher must be \(B, …\), got shape \(4,\); give a row of numbers"):
        SPLoss()(features(4, 3), features(4))
