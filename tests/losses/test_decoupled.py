"""`dkd`, `dist` and standardised logits against numpy and scipy, the identities of their papers, and common slips."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy, pearsonr, zscore

from kdkit.losses import DISTLoss, DKDLoss, DMLLoss, HardLoss, KDLoss
from kdkit.losses.geometry import correlation


def logits(*shape, scale=3.0):
    return (scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(s, t, y, alpha, beta, temperature):
    """One sample after the other, as the paper writes it."""
    p, q = softmax(s / temperature), softmax(t / temperature)
    total = 0.0
    for a, b, own in zip(p, q, y, strict=True):
        target = entropy([b[own], 1 - b[own]], [a[own], 1 - a[own]])
        others = entropy(np.delete(b, own), np.delete(a, own))  # scipy scales both to a sum of 1
        total += alpha * target + beta * others
    return temperature**2 * total / len(y)


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (0.0, 2.0, 1.0), (3.0, 0.0, 2.0)])
def test_dkd(alpha, beta, temperature):
    s, t, y = logits(6, 5), logits(6, 5), torch.randint(5, (6,))
    expected = by_hand(s.detach().numpy(), t.detach().numpy(), y.numpy(), alpha, beta, temperature)
    assert DKDLoss(alpha, beta, temperature)(s, t, y).item() == pytest.approx(expected, rel=1e-10)


def test_dkd_leaves_out_a_sample_whose_label_is_minus_100_as_ce_does():
    s, t, y = logits(6, 5), logits(6, 5), torch.tensor([3, -100, 0, 4, -100, 1])
    known = y != -100
    value = DKDLoss()(s, t, y)
    assert value.item() == pytest.approx(DKDLoss()(s[known], t[known], y[known]).item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(value, s)
    assert gradient[~known].eq(0).all()
    assert gradient[known].ne(0).any(1).all()
    assert DKDLoss()(s, t, torch.full_like(y, -100)).isnan(), "as torch's cross-entropy"


def test_dkd_is_kd_when_the_others_count_for_what_the_teacher_leaves_them():
    """KD = TCKD + (1 − p_t[y])·NCKD, sample by sample: equation 7 of the paper."""
    for _ in range(5):
        s, t, y = logits(1, 7), logits(1, 7), torch.randint(7, (1,))
        left = 1 - (t / 4.0).softmax(1)[0, y].item()
        torch.testing.assert_close(DKDLoss(1.0, left, 4.0)(s, t, y), KDLoss(4.0)(s, t))


def test_two_classes_leave_no_others():
    s, t, y = logits(6, 2), logits(6, 2), torch.randint(2, (6,))
    assert DKDLoss(0.0, 8.0)(s, t, y).abs() < 1e-12
    torch.testing.assert_close(DKDLoss(1.0, 8.0)(s, t, y), KDLoss(4.0)(s, t))


def test_dkd_leaves_the_own_class_out_however_large_it_is():
    """Minus 1000 on its logit, as in the authors' code, does not where it is at 2000: the others' share is then 0."""
    s, t, y = logits(4, 5), logits(4, 5), torch.zeros(4, dtype=torch.int64)
    plain = DKDLoss(0.0, 1.0, 1.0)(s, t, y)
    high = torch.zeros(4, 5, dtype=torch.float64)
    high[:, 0] = 2000
    torch.testing.assert_close(DKDLoss(0.0, 1.0, 1.0)(s + high, t + high, y), plain)


def test_a_teachers_common_offset_costs_no_accuracy_in_fp32():
    s, t, y = logits(8, 10).float(), (logits(8, 10) + 1000).float(), torch.arange(8)
    expected = DKDLoss()(s.double(), t.double(), y)
    torch.testing.assert_close(DKDLoss()(s, t, y).double(), expected, rtol=1e-4, atol=0)


def test_dkd_others_send_the_own_class_no_gradient():
    s, t, y = logits(4, 5), logits(4, 5), torch.arange(4)
    DKDLoss(0.0, 8.0)(s, t, y).backward()
    assert s.grad[torch.arange(4), y].abs().max() == 0
    assert s.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize(("inter", "intra", "temperature"), [(1.0, 1.0, 4.0), (1.0, 0.0, 1.0), (0.0, 2.0, 2.0)])
def test_dist(inter, intra, temperature):
    s, t = logits(6, 5), logits(6, 5)
    p, q = softmax(s.detach().numpy() / temperature), softmax(t.detach().numpy() / temperature)
    rows = 1 - np.mean([pearsonr(a, b)[0] for a, b in zip(p, q, strict=True)])
    columns = 1 - np.mean([pearsonr(a, b)[0] for a, b in zip(p.T, q.T, strict=True)])
    expected = temperature**2 * (inter * rows + intra * columns)
    assert DISTLoss(inter, intra, temperature)(s, t).item() == pytest.approx(expected, rel=1e-10)


def test_dist_asks_for_the_order_and_not_for_the_size():
    """Probabilities on a straight line through the teacher's are a perfect match (equation 5 of the paper)."""
    q = torch.rand(6, 5, dtype=torch.float64).softmax(1)
    p = 0.5 * q + 0.1  # still sums to 1: 0.5 + 5 · 0.1
    assert DISTLoss(temperature=1.0)(p.log(), q.log()).abs() < 1e-12
    assert KDLoss(1.0)(p.log(), q.log()) > 1e-3


def test_dist_of_opposites():
    q = torch.rand(6, 5, dtype=torch.float64).softmax(1)
    assert DISTLoss(1.0, 0.0, 1.0)((0.4 - q).log(), q.log()).item() == pytest.approx(2.0)


def test_a_class_that_does_not_vary_correlates_with_nothing():
    s, t = torch.zeros(6, 5, dtype=torch.float64, requires_grad=True), logits(6, 5)
    value = DISTLoss(temperature=1.0)(s, t)
    value.backward()
    assert value.item() == pytest.approx(2.0)
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("gap", [32, 40, 46, 50, 60, 100])
def test_a_class_that_nobody_names(gap):
    """Probabilities of 1e-13 once made gradients NaN, of 1e-20 the loss infinite: it correlates with nothing."""
    s, t = 2 * torch.randn(16, 10), 2 * torch.randn(16, 10)
    s[:, 3] -= gap
    t[:, 3] -= gap
    s.requires_grad_()
    whole = s.detach().double().requires_grad_()
    p, q = (x[:, np.arange(10) != 3] for x in (whole.softmax(1), t.double().softmax(1)))
    found, expected = DISTLoss(0.0, 1.0, 1.0)(s, t), (1 + sum(1 - correlation(p, q, 0)[0])) / 10
    torch.testing.assert_close(found.double(), expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(s.grad.double(), whole.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_standardised_logits(temperature):
    """scipy's z-scores, by C − 1, for kd and dkd alike."""
    s, t, y = logits(6, 5), logits(6, 5), torch.randint(5, (6,))
    z = [zscore(x.detach().numpy(), axis=1, ddof=1) for x in (s, t)]
    expected = np.mean([entropy(b, a) for a, b in zip(*(softmax(x / temperature) for x in z), strict=True)])
    found = KDLoss(temperature, standardise=True)(s, t).item()
    assert found == pytest.approx(temperature**2 * expected, rel=1e-10)
    found = DKDLoss(1.0, 2.0, temperature, standardise=True)(s, t, y).item()
    assert found == pytest.approx(by_hand(*z, y.numpy(), 1.0, 2.0, temperature), rel=1e-10)


@pytest.mark.parametrize("loss", [KDLoss(standardise=True), DKDLoss(standardise=True)])
def test_a_standardised_teacher_is_a_constant(loss):
    s, t, y = logits(6, 5), logits(6, 5), torch.arange(6) % 5
    loss(s, t, *([y] if isinstance(loss, DKDLoss) else [])).backward()
    assert s.grad.abs().max() > 0
    assert t.grad is None


def test_a_students_range_is_its_own_business():
    """Any positive multiple of the teacher's logits, moved by any constant, is a perfect match."""
    t = logits(6, 5)
    assert KDLoss(2.0, standardise=True)(0.1 * t.detach() + 3.0, t).abs() < 1e-12
    assert KDLoss(2.0, standardise=True)(-t.detach(), t) > 0.1


@pytest.mark.parametrize("level", [1.0, 0.1, 1 / 3, 1e3 / 7])
def test_logits_that_do_not_vary_stay_so(level):
    """A mean is rounded: what is left of 100 equal numbers is noise, and no direction."""
    s, t = torch.full((4, 100), level, requires_grad=True), torch.randn(4, 100)
    value = KDLoss(standardise=True)(s, t)
    value.backward()
    torch.testing.assert_close(value, KDLoss(standardise=True)(torch.zeros(4, 100), t), rtol=0.05, atol=1e-3)
    assert s.grad.isfinite().all()
    assert s.grad.abs().max() < 10


def test_which_losses_read_a_teachers_probabilities_alone():
    assert all(cls().of_probabilities for cls in (DISTLoss, DKDLoss, DMLLoss, HardLoss, KDLoss))
    assert not any(cls(standardise=True).of_probabilities for cls in (DKDLoss, KDLoss))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DKDLoss(alpha=-1), "dkd: alpha must be a number of at least 0"),
        (lambda: DKDLoss(beta=np.inf), "dkd: beta must be a number of at least 0, got inf"),
        (lambda: DKDLoss(temperature=0), "dkd: temperature must be a number above 0"),
        (lambda: DISTLoss(intra=-1), "dist: intra must be a number of at least 0"),
        (lambda: DISTLoss()(torch.randn(1, 5), torch.randn(1, 5)), "dist: batch must hold at least 2 samples"),
        (lambda: DKDLoss()(torch.randn(2, 5), torch.randn(2, 5), torch.zeros(2)), "dkd: labels must be int64"),
        (lambda: DKDLoss()(*torch.ones(2, 2, 1), torch.zeros(2).long()), "dkd: student must tell at least 2 classes"),
        (lambda: DKDLoss()(torch.randn(2, 5), torch.randn(2, 4), torch.arange(2)), "dkd: student must be shaped like"),
        (lambda: DISTLoss()(*torch.ones(2, 2, 1)), "dist: student must tell at least 2 classes, got 1; choose `mse`"),
        (lambda: KDLoss()(*torch.ones(2, 2, 1)), "kd: student must tell at least 2 classes, got 1; choose `mse`"),
        (lambda: HardLoss()(*torch.ones(2, 2, 1)), "hard: student must tell at least 2 classes, got 1; choose `mse`"),
        (lambda: DMLLoss()(*torch.ones(2, 2, 1)), "dml: student must tell at least 2 classes, got 1; choose `mse`"),
        (
            lambda: KDLoss(standardise=True)(*torch.randn(2, 2, 2)),
            "kd: student must tell at least 3 classes, got 2; leave `standardise` out",
        ),
        (
            lambda: DKDLoss(standardise=True)(*torch.randn(2, 2, 2), torch.arange(2)),
            "dkd: student must tell at least 3 classes, got 2; leave `standardise` out",
        ),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
