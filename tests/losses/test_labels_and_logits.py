"""`ce`, `hard`, `kd` and `dml` against numpy, closed-form gradients, and how known code gets them wrong."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kdkit.losses import CrossEntropyLoss, DMLLoss, HardLoss, KDLoss, NTXentLoss


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def logits(*shape, scale=3.0):
    return (scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_ce_is_the_mean_cross_entropy_to_smoothed_labels(smoothing):
    z, y = logits(6, 5), torch.randint(5, (6,))
    expected = 0.0
    for row, label in zip(z.detach().numpy(), y.tolist(), strict=True):
        target = np.full(5, smoothing / 5)
        target[label] += 1 - smoothing
        expected -= float(target @ np.log(softmax(row))) / 6
    assert CrossEntropyLoss(label_smoothing=smoothing)(z, y).item() == pytest.approx(expected, rel=1e-12)


def test_ce_takes_raw_logits_so_that_a_perfect_prediction_costs_nothing():
    """The softmax of a softmax, a common slip, cannot fall below ln(e + C − 1) − 1 = 3.62 at C = 100."""
    y = torch.arange(8)
    assert CrossEntropyLoss()(100 * F.one_hot(y, 100).float(), y) < 1e-6


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_ce_leaves_out_what_has_no_label_also_where_smoothing_is_scheduled(smoothing):
    z, y = logits(6, 5), torch.tensor([3, -100, 0, 1, -100, 4])
    expected, loss = CrossEntropyLoss(smoothing)(z[y >= 0], y[y >= 0]), CrossEntropyLoss(smoothing)
    torch.testing.assert_close(loss(z, y), expected)
    loss.label_smoothing = torch.tensor(smoothing, dtype=torch.float64)
    torch.testing.assert_close(loss(z, y), expected)


def test_smoothing_that_is_scheduled_takes_one_softmax():
    class Calls(TorchDispatchMode):
        made = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.made += (func,)
            return func(*args, **(kwargs or {}))

    loss = CrossEntropyLoss()
    loss.label_smoothing = torch.tensor(0.1)
    with Calls() as seen:
        loss(logits(6, 5), torch.arange(6) % 5)
    assert seen.made.count(torch.ops.aten._log_softmax.default) == 1


def test_smoothing_that_is_scheduled_spreads_nothing_over_a_masked_class_at_zero():
    z, y = logits(8, 5).detach(), torch.randint(4, (8,))
    z = torch.where(torch.arange(5) == 4, -math.inf, z).requires_grad_()
    loss = CrossEntropyLoss()
    plain = loss(z, y)
    loss.label_smoothing = torch.tensor(0.0)
    assert loss(z, y).item() == pytest.approx(plain.item(), rel=1e-12)
    first, second = (torch.autograd.grad(value, z)[0] for value in (plain, loss(z, y)))
    torch.testing.assert_close(second, first)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_takes_the_teachers_answer_for_the_label(smoothing):
    s, t = logits(6, 5), logits(6, 5)
    expected = 0.0
    for row, told in zip(s.detach().numpy(), t.detach().numpy(), strict=True):
        target = np.full(5, smoothing / 5)
        target[max(range(5), key=lambda c, told=told: told[c])] += 1 - smoothing
        expected -= float(target @ np.log(softmax(row))) / 6
    loss = HardLoss(label_smoothing=smoothing)
    assert loss(s, t).item() == pytest.approx(expected, rel=1e-12)
    assert loss(s, t / 1000).item() == pytest.approx(expected, rel=1e-12)  # how sure the teacher is counts for nothing
    assert loss(s, torch.zeros(6, 5)).item() == pytest.approx(
        CrossEntropyLoss(label_smoothing=smoothing)(s, torch.zeros(6, dtype=torch.int64)).item()
    )


def test_hard_is_nan_where_the_teacher_is():
    """`argmax` takes NaN for the greatest, and a student would learn its place."""
    t = torch.randn(6, 5)
    t[2, 3] = math.nan
    assert HardLoss()(logits(6, 5), t).isnan()
    t[2] = -math.inf
    t[2, 0] = 1.0  # classes that a teacher never says
    assert HardLoss()(logits(6, 5), t).isfinite()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_t_squared_kl_of_teacher_from_student_over_the_batch(temperature):
    s, t = logits(6, 5), logits(6, 5)
    pairs = zip(s.detach().numpy() / temperature, t.detach().numpy() / temperature, strict=True)
    expected = temperature**2 * sum(kl(softmax(b), softmax(a)) for a, b in pairs) / 6
    assert KDLoss(temperature)(s, t).item() == pytest.approx(expected, rel=1e-12)


def test_kd_knows_logits_only_up_to_a_constant():
    t = logits(6, 5)
    s = (t.detach() + torch.randn(6, 1, dtype=torch.float64)).requires_grad_()
    loss = KDLoss()(s, t)
    loss.backward()
    assert loss.abs() < 1e-13
    assert s.grad.abs().max() < 1e-13


def test_kd_gradient_is_t_times_the_difference_of_probabilities_over_b():
    s, t, T = logits(6, 5), logits(6, 5), 3.0
    KDLoss(T)(s, t).backward()
    torch.testing.assert_close(s.grad, T * ((s / T).softmax(1) - (t / T).softmax(1)).detach() / 6)


def test_kd_at_high_temperature_matches_logits():
    s, t = logits(6, 5), logits(6, 5)
    KDLoss(1e5)(s, t).backward()
    expected = (s - s.mean(1, keepdim=True) - t + t.mean(1, keepdim=True)).detach() / (5 * 6)
    torch.testing.assert_close(s.grad, expected, rtol=1e-3, atol=1e-6)


def test_kd_does_not_change_when_the_batch_is_doubled():
    s, t = logits(6, 5), logits(6, 5)
    torch.testing.assert_close(KDLoss()(torch.cat([s, s]), torch.cat([t, t])), KDLoss()(s, t))


def test_dml_is_the_unscaled_kl_from_a_detached_peer():
    s, peer = logits(6, 5), logits(6, 5)
    loss = DMLLoss()(s, peer)
    expected = (
        sum(kl(softmax(b), softmax(a)) for a, b in zip(s.detach().numpy(), peer.detach().numpy(), strict=True)) / 6
    )
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert peer.grad is None
    default_reduction = F.kl_div(s.log_softmax(1), peer.log_softmax(1), log_target=True, reduction="none").mean()
    assert loss.item() == pytest.approx(5 * default_reduction.item())


def test_dml_temperature_keeps_the_gradient_s_size():
    s, peer, T = logits(6, 5), logits(6, 5), 3.0
    DMLLoss(temperature=T)(s, peer).backward()
    torch.testing.assert_close(s.grad, T * ((s / T).softmax(1) - (peer / T).softmax(1)).detach() / 6)


@pytest.mark.parametrize("cls", [KDLoss, DMLLoss])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf, "4", True, None])
def test_temperature_must_be_positive(cls, temperature):
    with pytest.raises(ValueError, match=r"^(kd|dml): temperature must be a number above 0, got .*; choose a positive"):
        cls(temperature=temperature)


@pytest.mark.parametrize("value", [np.float32(4), np.int64(4), torch.tensor([4.0]), torch.tensor([4.0, 2.0])])
def test_a_number_is_a_plain_one_or_a_scheduled_scalar(value):
    """A tensor of shape (1,) made the loss one, too; of several it ended in torch's traceback."""
    with pytest.raises(ValueError, match=r"^kd: temperature must be a number above 0, got .*; give a plain number, as"):
        KDLoss(temperature=value)
    with pytest.raises(ValueError, match=r"^embed: embed_dim must be a whole number .*; give a plain number, as"):
        NTXentLoss(4, 4, embed_dim=np.int64(4))
    assert KDLoss(temperature=torch.tensor(4.0))(logits(4, 5), logits(4, 5)).shape == ()


def test_wrong_shapes_say_what_to_do():
    with pytest.raises(ValueError, match=r"kd: student must be shaped like teacher, \(4, 7\), got \(4, 5\); .*`tune:`"):
        KDLoss()(torch.randn(4, 5), torch.randn(4, 7))
    with pytest.raises(ValueError, match=r"dml: student must be shaped like .*; peers must share one set of classes"):
        DMLLoss()(torch.randn(4, 5), torch.randn(4, 7))
    with pytest.raises(
        ValueError,
        match=r"kd: teacher must be .*got shape \(4, 5, 2, 2\); choose another tap, or make every position a sample",
    ):
        KDLoss()(torch.randn(4, 5), torch.randn(4, 5, 2, 2))
    with pytest.raises(ValueError, match=r"kd: .*got shape \(4, 7, 5\); .*, or make every token a sample: .*\[mask\]"):
        KDLoss()(torch.randn(4, 7, 5), torch.randn(4, 7, 5))
    with pytest.raises(ValueError, match=r"ce: labels must be int64 class numbers of shape \(4,\), got torch.float32"):
        CrossEntropyLoss()(torch.randn(4, 5), torch.randn(4))
    for labels in (torch.zeros(4, dtype=torch.int32), torch.zeros(4, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"ce: labels must be int64 class numbers of shape \(4,\), got torch.int"):
            CrossEntropyLoss()(torch.randn(4, 5), labels)
    with pytest.raises(ValueError, match=r"ce: label_smoothing must lie in \[0, 1\], got 10; give it as a share"):
        CrossEntropyLoss(label_smoothing=10)
