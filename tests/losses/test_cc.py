"""`cc` against loops, its invariances, its kernels, and RepDistiller's formula."""

import math

import numpy as np
import pytest
import torch

from kdkit.losses import CCLoss


def features(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def by_loops(student, teacher, kernel):
    """‖K_s − K_t‖²_F / B², entry by entry."""
    s, t = (x.flatten(1).numpy() for x in (student, teacher))
    s, t = ([row / np.linalg.norm(row) for row in x] for x in (s, t))
    return np.mean([(kernel(s[i], s[j]) - kernel(t[i], t[j])) ** 2 for i in range(len(s)) for j in range(len(s))])


def gaussian(gamma):
    return lambda a, b: math.exp(-gamma * ((a - b) ** 2).sum())


def taylor(gamma, order):
    terms = [(2 * gamma) ** p / math.factorial(p) for p in range(order + 1)]
    return lambda a, b: math.exp(-2 * gamma) * sum(term * np.dot(a, b) ** p for p, term in enumerate(terms))


@pytest.mark.parametrize("other", [(6, 5), (6, 2, 4, 4)])
@pytest.mark.parametrize(("gamma", "order"), [(0.4, 1), (0.4, 2), (0.7, 3), (1.5, 5)])
def test_it_is_the_papers_formula(other, gamma, order):
    s, t = features(6, 3, 2, 2), features(*other)
    expected = by_loops(s, t, taylor(gamma, order))
    assert CCLoss(gamma, order)(s, t).item() == pytest.approx(expected, rel=1e-12)


def test_the_published_settings_are_the_default():
    s, t = features(6, 3), features(6, 5)
    assert CCLoss()(s, t) == CCLoss(gamma=0.4, order=2, mode="paper")(s, t)


@pytest.mark.parametrize("gamma", [0.4, 3.0, 200.0])
def test_without_an_order_it_is_the_gaussian_itself_which_orders_come_near(gamma):
    s, t = features(6, 3), features(6, 5)
    exact = by_loops(s, t, gaussian(gamma))
    assert CCLoss(gamma, order=None)(s, t).item() == pytest.approx(exact, rel=1e-9)
    assert CCLoss(gamma, order=None)(s.float(), t.float()).isfinite()
    if gamma < 1:
        apart = [abs(CCLoss(gamma, order)(s, t).item() - exact) for order in range(1, 9)]
        assert apart[-1] < 1e-7 < 1e-4 < apart[3]
        assert apart[1:] == sorted(apart[1:], reverse=True)


def test_order_1_is_the_bilinear_kernel():
    s, t = features(6, 3), features(6, 5)
    a, b = (torch.nn.functional.normalize(x) for x in (s, t))
    scale = 0.8 * math.exp(-0.8)
    torch.testing.assert_close(CCLoss(order=1)(s, t), scale**2 * (a @ a.T - b @ b.T).square().mean())


@pytest.mark.parametrize("order", [1, 2, None])
def test_scale_and_rotation_do_not_count(order):
    s, t, loss = features(6, 4), features(6, 9), CCLoss(order=order)
    rotation = torch.linalg.qr(features(4, 4))[0]
    lengths = torch.arange(1, 7)[:, None]  # of single samples neither
    torch.testing.assert_close(loss(3e4 * lengths * s @ rotation, t), loss(s, t))
    assert loss(t @ torch.linalg.qr(features(9, 9))[0], t).item() == pytest.approx(0, abs=1e-25)


def test_repdistillers_is_neighbour_by_neighbour():
    s, t = features(5, 3), features(5, 3).sin()
    expected = np.mean(
        [sum(abs(s[i, d] - t[i, d]) * abs(s[i + 1, d] - t[i + 1, d]) for d in range(3)) for i in range(4)]
    )
    loss = CCLoss(mode="code")
    assert loss(s, t).item() == pytest.approx(expected.item(), rel=1e-12)
    assert loss(s[[0, 2, 1, 3, 4]], t[[0, 2, 1, 3, 4]]) != loss(s, t)
    assert torch.autograd.gradcheck(lambda x: loss(x, t), s.requires_grad_())
    assert loss(t, t) == 0
    loss(s, t.requires_grad_()).backward()
    assert t.grad is None


@pytest.mark.parametrize("order", [1, 3, None])
def test_the_gradient_is_that_of_differences(order):
    t = features(4, 3)
    assert torch.autograd.gradcheck(lambda x: CCLoss(order=order)(x, t), features(4, 5).requires_grad_())


def test_refusals():
    with pytest.raises(ValueError, match=r"cc: gamma must be a number above 0, got 0; choose"):
        CCLoss(gamma=0)
    with pytest.raises(ValueError, match=r"cc: order must be a whole number of at least 1, got 0; give"):
        CCLoss(order=0)
    with pytest.raises(ValueError, match=r"cc: order must be a whole number of at least 1, got True; give"):
        CCLoss(order=True)
    with pytest.raises(ValueError, match=r"cc: mode must be 'paper' or 'code', got 'bilinear'; choose"):
        CCLoss(mode="bilinear")
    with pytest.raises(ValueError, match=r"cc: student must hold teacher's 5 samples, got 4"):
        CCLoss()(features(4, 3), features(5, 3))
    with pytest.raises(ValueError, match=r"cc: student must be shaped like teacher, \(4, 5\), .* \(head: linear\)"):
        CCLoss(mode="code")(features(4, 3), features(4, 5))
