"""Called as Lightning does, or merged by hand, a metric says of all samples what `update` alone says."""

import copy

import pytest
import torch

from kdkit import metrics

LOGITS = torch.randn(96, 6, generator=torch.Generator().manual_seed(0)) + 3
OTHERS = torch.randn(96, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(96) % 6
EVERY = {
    "nll": (metrics.NLL(), lambda at: (LOGITS[at], LABELS[at])),
    "brier": (metrics.Brier(), lambda at: (LOGITS[at], LABELS[at])),
    "adaptive": (metrics.AdaptiveCalibrationError(), lambda at: (LOGITS[at], LABELS[at])),
    "agreement": (metrics.Agreement(2), lambda at: (LOGITS[at], OTHERS[at])),
    "kl": (metrics.KLDivergence(), lambda at: (LOGITS[at], OTHERS[at])),
    "js": (metrics.JSDivergence(), lambda at: (LOGITS[at], OTHERS[at])),
    "cka": (metrics.LinearCKA(), lambda at: (LOGITS[at], OTHERS[at])),
    "correlation": (metrics.LogitCorrelation(6), lambda at: (LOGITS[at],)),
    "mci": (metrics.MCI(2), lambda at: ([LOGITS[at], OTHERS[at]],)),
    "pairwise_js": (metrics.PairwiseJS(2), lambda at: ([LOGITS[at], OTHERS[at]],)),
    "disagreement": (metrics.Disagreement(2), lambda at: ([LOGITS[at], OTHERS[at]],)),
    "kar": (metrics.KAR({3: 0.1}), lambda at: (LOGITS[at], LABELS[at], 3)),
}
PARTS = [slice(0, 40), slice(40, 40), slice(40, 80), slice(80, 96)]  # one of them empty


@pytest.mark.parametrize("name", EVERY)
def test_forward_and_merged_are_update(name):
    fresh, given = EVERY[name]
    plain, called, half, rest = (copy.deepcopy(fresh) for _ in range(4))
    for at in PARTS:
        plain.update(*given(at))
        called(*given(at))
    for at in PARTS[:2]:
        half.update(*given(at))
    rest.update(*given(PARTS[2]))
    half.merge_state(rest)
    half.update(*given(PARTS[3]))
    torch.testing.assert_close(called.compute(), plain.compute(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(half.compute(), plain.compute(), rtol=1e-4, atol=1e-5)


def test_two_that_saw_nothing_are_one_that_saw_nothing():
    one, other = metrics.LogitCorrelation(6), metrics.LogitCorrelation(6)
    one.update(LOGITS[:0])
    other.update(LOGITS[:0])
    one.merge_state(other)
    one.update(LOGITS)
    other.update(LOGITS)
    assert torch.equal(one.compute(), other.compute())


def test_kar_called_on_batches_counts_from_an_epoch():
    kar = metrics.KAR()
    right = 9.0 * torch.eye(4)
    kar(right, torch.arange(4), 1)
    kar(right.roll(1, 1), torch.arange(4), 1)
    assert float(kar.compute()) == 0
    kar.reset()
    kar(right, torch.arange(4), 2)
    assert float(kar.compute()) == pytest.approx(50)


@pytest.mark.parametrize("metric", [metrics.Agreement(), metrics.KLDivergence(), metrics.JSDivergence()])
@pytest.mark.parametrize("other", [(1, 6), (4, 8), (6,)])
def test_logits_of_two_shapes_are_refused(metric, other):
    with pytest.raises(
        ValueError, match=r"(Divergence|Agreement): needs logits of one shape \(B, C\), got \(4, 6\) and"
    ):
        metric.update(torch.zeros(4, 6), torch.zeros(other))


@pytest.mark.parametrize("metric", [metrics.NLL(), metrics.Brier()])
def test_a_label_that_is_no_class_is_no_sample_without_a_loss(metric):
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        metric.update(torch.zeros(4, 6), torch.tensor([0, 1, 2, -100]))


def test_classes_that_never_move_leave_no_distance_of_nought():
    told = metrics.correlation_difference(torch.full((3, 3), torch.nan), torch.eye(3))
    assert told["left_out"] == 3
    assert torch.tensor([told["mean"], told["frobenius"]]).isnan().all()
