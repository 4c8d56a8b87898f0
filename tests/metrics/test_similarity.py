"""CKA, fidelity, correlation of logits and transfer by formulas of their own."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from kdkit.metrics import (
    Agreement,
    JSDivergence,
    KLDivergence,
    LinearCKA,
    LogitCorrelation,
    correlation_difference,
    hsic,
    transfer,
    transfer_ratio,
)


def filled(metric, *pair, size=64):
    for parts in zip(*(x.split(size) for x in pair), strict=True):
        metric.update(*parts)
    return metric.compute()


def naive_hsic(x, y):
    """Song et al.'s U-statistic over ordered quadruples of different samples."""
    k, l = ((z.double() @ z.double().T).numpy() for z in (x, y))  # noqa: E741
    n, total = len(k), 0.0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def biased(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_hsic_is_the_u_statistic():
    x, y = torch.randn(7, 5), torch.randn(7, 3)
    assert float(hsic(x, y)) == pytest.approx(naive_hsic(x, y), rel=1e-4, abs=1e-6)


def test_hsic_is_unchanged_by_centring():
    x, y = torch.randn(32, 20) + 3, torch.randn(32, 10) - 5
    assert float(hsic(x, y)) == pytest.approx(float(hsic(x - x.mean(0), y - y.mean(0))), rel=1e-4)


def test_one_for_rotations_and_scales():
    x = torch.randn(256, 24)
    q, _ = torch.linalg.qr(torch.randn(24, 24))
    assert float(filled(LinearCKA(), x, 3.7 * x @ q)) == pytest.approx(1, abs=1e-5)


def test_about_nothing_for_independent_ones_where_the_biased_one_says_much():
    drawn = [(torch.randn(64, 256), torch.randn(64, 128)) for _ in range(8)]
    found = [float(filled(LinearCKA(), *pair)) for pair in drawn]
    assert abs(sum(found) / 8) < 0.03
    assert sum(biased(*pair) for pair in drawn) / 8 == pytest.approx(0.72, abs=0.03)


def test_small_batches_say_what_the_whole_says():
    x = torch.randn(2048, 16)
    y = x[:, :8] + 0.7 * torch.randn(2048, 8)
    whole = float(filled(LinearCKA(), x, y, size=2048))
    assert float(filled(LinearCKA(), x, y, size=64)) == pytest.approx(whole, abs=0.01)
    direct = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
    assert whole == pytest.approx(float(direct), rel=1e-5)


def test_every_pair_of_layers_at_once_is_each_alone():
    a, b = [torch.randn(96, 4, 3, 3), torch.randn(96, 10)], [torch.randn(96, 5, 6) for _ in range(3)]
    metric = LinearCKA(2, 3)
    for i in range(0, 96, 32):
        metric.update([x[i : i + 32] for x in a], [x[i : i + 32] for x in b])
    found = metric.compute()
    assert found.shape == (2, 3)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            assert float(found[i, j]) == pytest.approx(float(filled(LinearCKA(), x, y, size=32)), abs=1e-6)


def test_a_dead_layer_has_no_similarity_and_tiny_batches_are_left_out():
    assert math.isnan(float(filled(LinearCKA(), torch.ones(64, 8), torch.randn(64, 4))))
    x, y = torch.randn(67, 8), torch.randn(67, 4)
    assert float(filled(LinearCKA(), x, y)) == float(filled(LinearCKA(), x[:64], y[:64]))  # the last three
    assert float(filled(LinearCKA(), x[:4], 2 * x[:4])) == pytest.approx(1, abs=1e-5)  # and four are enough
    with pytest.raises(ValueError, match="same samples"):
        LinearCKA().update(x, y[:50])


def test_fidelity_by_scipy():
    student, teacher = torch.randn(200, 6), 2 * torch.randn(200, 6)
    p, q = teacher.softmax(1).double().numpy(), student.softmax(1).double().numpy()
    assert float(filled(KLDivergence(), student, teacher)) == pytest.approx(entropy(p, q, axis=1).mean(), rel=1e-4)
    assert float(filled(JSDivergence(), student, teacher)) == pytest.approx(
        (jensenshannon(p, q, axis=1) ** 2).mean(), rel=1e-4
    )
    softer = filled(KLDivergence(temperature=4), student, teacher)
    again = filled(KLDivergence(), student / 4, teacher / 4)
    assert float(softer) == pytest.approx(float(again))
    order = student.argsort(1, descending=True)
    said = teacher.argmax(1)
    for k in (1, 5):
        share = (order[:, :k] == said[:, None]).any(1).float().mean()
        assert float(filled(Agreement(k), student, teacher)) == pytest.approx(float(share))


def test_fidelity_at_its_ends():
    same = 30 * torch.randn(50, 6)
    assert float(filled(KLDivergence(), same, same + 4)) == pytest.approx(0, abs=1e-6)
    assert float(filled(Agreement(), same, same + 4)) == 1
    apart = (1e3 * torch.eye(2)[[0, 0]], 1e3 * torch.eye(2)[[1, 1]])
    assert float(filled(JSDivergence(), *apart)) == pytest.approx(math.log(2), rel=1e-5)
    one, two = torch.randn(9, 4), torch.randn(9, 4)
    assert float(filled(JSDivergence(), one, two)) == pytest.approx(float(filled(JSDivergence(), two, one)))


def test_no_divergence_of_a_sample_is_negative():
    same = 30 * torch.randn(500, 6)
    assert KLDivergence().values(same, same + 4).min() == JSDivergence().values(same, same + 4).min() == 0


@pytest.mark.parametrize("temperature", [0, -1, math.nan])
def test_no_divergence_at_no_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        KLDivergence(temperature)


def test_correlation_by_numpy_far_from_zero():
    logits = (torch.randn(500, 8) @ torch.randn(8, 8)) + 100
    found = filled(LogitCorrelation(8), logits)
    assert np.allclose(found, np.corrcoef(logits.double().numpy().T), atol=1e-4)
    twins = torch.randn(500, 64).repeat(1, 2)
    assert filled(LogitCorrelation(128), twins, size=500).max() == 1


def test_half_precision_logits_are_looked_at_in_full():
    s, t = (30 + 5 * torch.randn(256, 8)).bfloat16(), torch.randn(256, 8).bfloat16()
    for made, pair in ((KLDivergence, (s, t)), (LinearCKA, (s, s + 5 * t)), (lambda: LogitCorrelation(8), (s,))):
        torch.testing.assert_close(filled(made(), *pair), filled(made(), *(z.float() for z in pair)))


def test_correlation_difference_in_numbers_and_a_class_that_never_moves():
    t, s = torch.randn(300, 4), torch.randn(300, 4)
    a, b = (np.corrcoef(x.double().numpy().T) for x in (t, s))
    told = correlation_difference(filled(LogitCorrelation(4), t), filled(LogitCorrelation(4), s))
    assert told["mean"] == pytest.approx(np.abs(a - b)[~np.eye(4, dtype=bool)].mean(), abs=1e-5)
    assert told["frobenius"] == pytest.approx(np.linalg.norm(a - b), abs=1e-5)
    s[:, 2] = 1.5
    assert filled(LogitCorrelation(4), s).isnan().sum() == 7  # its row and its column
    told = correlation_difference(filled(LogitCorrelation(4), t), filled(LogitCorrelation(4), s))
    assert told["left_out"] == 1
    assert told["frobenius"] == pytest.approx(np.linalg.norm(np.delete(np.delete(a - b, 2, 0), 2, 1)), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 100.1, 1 / 3])
def test_what_never_moves_is_none_whatever_its_mean_rounds_to(constant, dtype):
    """Seen: half the mean |Δ|, and a CKA of −16."""
    batches = [torch.randn(96, 4, dtype=dtype) for _ in range(3)]
    still = torch.full((96, 512), constant, dtype=dtype)
    correlation, cka, both = LogitCorrelation(4).to(dtype), LinearCKA().set_dtype(dtype), LinearCKA().set_dtype(dtype)
    for z in batches:
        cka.update(z, still)
        both.update(1.3 * still, still)
        z[:, 2] = constant
        correlation.update(z)
    assert correlation.compute().isnan().sum() == 7
    assert cka.compute().isnan()
    assert both.compute().isnan()


def test_what_hardly_moves_has_its_correlation():
    x = torch.randn(96, 4)
    torch.testing.assert_close(
        filled(LogitCorrelation(4), 1 + 1e-3 * x), filled(LogitCorrelation(4), x), rtol=0, atol=1e-3
    )
    assert float(filled(LinearCKA(), 1 + 1e-3 * x, x)) == pytest.approx(1, abs=1e-3)


def test_transfer_of_published_accuracies():
    ratio = transfer_ratio(*(torch.tensor([a], dtype=torch.float64) for a in (71.16, 72.34, 69.06))).ratio
    assert ratio == pytest.approx((71.16 - 69.06) / (72.34 - 69.06))


def test_transfer_has_an_interval_or_a_reason():
    alone, teacher = torch.rand(4000) < 0.6, torch.rand(4000) < 0.75
    student = torch.where(torch.rand(4000) < 0.5, alone, teacher)
    found = transfer_ratio(student, teacher, alone)
    assert found.low < found.ratio < found.high
    assert found.ratio == pytest.approx(0.5, abs=0.15)
    assert found == transfer_ratio(student, teacher, alone)
    itself = transfer_ratio(teacher, teacher, alone)
    assert (itself.low, itself.ratio, itself.high) == pytest.approx((1, 1, 1))  # in every draw
    level = transfer_ratio(student, alone, alone)
    assert math.isnan(level.ratio)
    assert "lead of 0 is not" in level.reason
    few = transfer_ratio(torch.tensor([0.71, 0.72]), torch.tensor([0.715]), torch.tensor([0.69, 0.73]))
    assert math.isnan(few.ratio)
    assert "not above twice its error" in few.reason


@pytest.fixture
def few(monkeypatch):
    """Four hundred draws instead of two thousand."""
    monkeypatch.setattr(transfer, "DRAWS", 400)


def test_a_lead_of_less_than_two_standard_errors_says_nothing(few):
    gap = torch.tensor([0.0, 1.0, 2.0, 3.0])  # twice the error of the mean is 1.29
    for shift, told in ((-0.3, False), (-0.1, True), (-2.7, False), (-2.9, True)):
        found = transfer_ratio((gap + shift) / 4, gap + shift, torch.zeros(4))
        assert math.isnan(found.ratio) is bool(found.reason) is not told


def test_transfer_s_interval_is_that_of_the_mean(few):
    half = torch.arange(400) % 2
    found = transfer_ratio(half, torch.ones(400), torch.zeros(400))
    reach = 1.96 * 0.5 / math.sqrt(400)
    assert (0.5 - found.low, found.high - 0.5) == pytest.approx((reach, reach), rel=0.1)
    assert transfer_ratio(half, torch.ones(400), torch.zeros(400), seed=1) != found


def test_a_draw_without_a_lead_counts_for_nothing(few):
    gap = torch.tensor([0.0, 4.0, 4.0, 4.0])  # 0.4 % of the draws are of the first alone
    found = transfer_ratio(gap / 2, gap, torch.zeros(4))
    assert (found.low, found.ratio, found.high) == (0.5, 0.5, 0.5)


def test_the_size_of_activations_changes_no_similarity():
    """The product of two sums overflowed before its root was taken: 0 for a layer beside itself."""
    x = torch.randn(64, 64)
    for size in (1e-6, 1.0, 1e4, 1e6):
        assert float(filled(LinearCKA(), size * x, x, size=32)) == pytest.approx(1, abs=1e-5)
        assert float(filled(LinearCKA(), size * x, size * x, size=32)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("top_k", [1, 2, 5, 10])
def test_equal_logits_are_named_in_one_order(top_k):
    """`topk` and `argmax` break ties each in their own way: a model of rounded logits disagreed with itself."""
    z, other = torch.randint(0, 4, (2000, 10)).float(), torch.randint(0, 4, (2000, 10)).float()
    assert float(filled(Agreement(top_k), z, z)) == 1
    order = z.argsort(stable=True, dim=1, descending=True)[:, :top_k]
    share = (order == other.argmax(1)[:, None]).any(1).float().mean()
    assert float(filled(Agreement(top_k), z, other)) == pytest.approx(float(share))
    assert float(filled(Agreement(top_k), torch.full((4, 10), torch.nan), other[:4], size=4)) == 0
    unsaid = other[:4].scatter(1, other[:4].argmax(1, keepdim=True), torch.nan)
    assert float(filled(Agreement(top_k), unsaid, other[:4], size=4)) == 0
