"""`pkt` against loops, its invariances, and the weight that goes with each reduction."""

import math

import numpy as np
import pytest
import torch

from kdkit.losses import PKTLoss
from kdkit.registry import LOSSES


def neighbours(f):
    kernel = [[(a @ b / np.linalg.norm(a) / np.linalg.norm(b) + 1) / 2 for b in f] for a in f]
    return [[k / sum(row) for k in row] for row in kernel]


def features(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_divergence_of_neighbour_probabilities():
    s, t = features(6, 4), features(6, 9)
    p_s, p_t = neighbours(s.numpy()), neighbours(t.numpy())
    total = sum(p_t[i][j] * math.log((p_t[i][j] + 1e-7) / (p_s[i][j] + 1e-7)) for i in range(6) for j in range(6))
    assert PKTLoss()(s, t).item() == pytest.approx(total / 6, rel=1e-10)
    assert PKTLoss(reduction="paper")(s, t).item() == pytest.approx(total / 36, rel=1e-10)


def test_the_registered_weight_is_the_published_one_at_a_batch_of_64():
    s, t = features(64, 8), features(64, 8)
    torch.testing.assert_close(LOSSES["pkt"].weight * PKTLoss()(s, t), 30000 * PKTLoss(reduction="paper")(s, t))


def test_the_value_hardly_depends_on_the_batch():
    """The authors' mean over B² falls fourfold from B = 64 to 256, and their weight with it."""
    s, t = features(256, 8), features(256, 8)
    small, large = PKTLoss()(s[:64], t[:64]), PKTLoss()(s, t)
    assert 0.8 < large / small < 1.25


def test_lengths_and_rotations_do_not_count():
    s, t = features(6, 4), features(6, 9)
    rotation = torch.linalg.qr(features(4, 4))[0]
    lengths = torch.rand(6, 1, dtype=torch.float64) + 0.1
    torch.testing.assert_close(PKTLoss()(lengths * s @ rotation, t), PKTLoss()(s, t))


def test_collapse_costs_more_than_a_match():
    t = features(16, 8).relu()
    matched, collapsed = PKTLoss()(t, t), PKTLoss()(torch.ones_like(t), t)
    assert matched.abs() < 1e-12
    assert collapsed > 0.01


def test_refusals():
    with pytest.raises(ValueError, match=r"pkt: reduction must be 'batchmean' or 'paper', got 'mean'; choose"):
        PKTLoss(reduction="mean")
    with pytest.raises(ValueError, match=r"pkt: student must hold teacher's 5 samples, got 4"):
        PKTLoss()(features(4, 3), features(5, 3))
