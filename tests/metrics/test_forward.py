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


def test_kar_called_on_batches_counts_from_an_epoch():
    kar = metrics.KAR()
    right = 9.0 * torch.eye(4)
    kar(right, torch.arange(4), 1)
    kar(right.roll(1, 1), torch.arange(4), 1)
    assert float(kar.compute()) == 0
    kar.reset()
    kar(right, torch.arange(4), 2)
    assert float(kar.compute()) == pytest.approx(50)
