"""`crd_inbatch` and `nt_xent` against loops over pairs, and their known values."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from kdkit.losses import InBatchCRDLoss, NTXentLoss
from kdkit.losses.embed import Embed


def features(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def directions(head, x):
    linear = head.linear
    z = x.numpy() @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def info_nce(anchors, others, temperature, labels=None):
    total = 0.0
    for i, a in enumerate(anchors):
        scores = [a @ b / temperature for b in others]
        kept = [j for j in range(len(others)) if j == i or labels is None or labels[j] != labels[i]]
        total -= scores[i] - math.log(sum(math.exp(scores[j]) for j in kept))
    return total / len(anchors)


@pytest.mark.parametrize("masked", [False, True])
def test_inbatch_is_info_nce_in_both_directions(masked):
    loss = InBatchCRDLoss(4, 6, embed_dim=5, temperature=0.2, mask_same_class=masked).double()
    s, t, labels = features(8, 4), features(8, 6), torch.tensor([0, 1, 0, 2, 2, 1, 0, 3])
    a, b = directions(loss.embed_student, s), directions(loss.embed_teacher, t)
    y = labels.tolist() if masked else None
    expected = (info_nce(a, b, 0.2, y) + info_nce(b, a, 0.2, y)) / 2
    assert loss(s, t, labels).item() == pytest.approx(expected, rel=1e-10)


def test_inbatch_with_one_class_has_no_negatives():
    loss = InBatchCRDLoss(4, 6, mask_same_class=True)
    assert loss(torch.randn(8, 4), torch.randn(8, 6), torch.zeros(8, dtype=torch.int64)).abs() < 1e-6


def nt_xent(views, temperature):
    batch, total = len(views) // 2, 0.0
    for i, a in enumerate(views):
        others = [math.exp(a @ b / temperature) for k, b in enumerate(views) if k != i]
        total -= a @ views[(i + batch) % (2 * batch)] / temperature - math.log(sum(others))
    return total / len(views)


def test_nt_xent_over_2b_views():
    loss = NTXentLoss(4, 6, embed_dim=5, temperature=0.2).double()
    s, t = features(8, 4), features(8, 6)
    views = np.concatenate([directions(loss.embed_student, s), directions(loss.embed_teacher, t)])
    assert loss(s, t).item() == pytest.approx(nt_xent(views, 0.2), rel=1e-10)


def test_nt_xent_without_heads_compares_the_features():
    s, t = features(8, 6).requires_grad_(), features(8, 6).requires_grad_()
    views = torch.nn.functional.normalize(torch.cat([s, t])).detach().numpy()
    loss = NTXentLoss(temperature=0.5)
    value = loss(s, t)
    assert value.item() == pytest.approx(nt_xent(views, 0.5), rel=1e-10)
    assert not list(loss.parameters())
    assert loss(s.unflatten(1, (3, 2)), t.unflatten(1, (3, 2))) == value
    value.backward()
    assert t.grad is None


def test_nothing_learnt_and_all_learnt():
    zero = torch.zeros(8, 4)
    assert InBatchCRDLoss(4, 4)(zero, zero).item() == pytest.approx(math.log(8), rel=1e-5)
    assert NTXentLoss()(zero + 1, zero + 1).item() == pytest.approx(math.log(15), rel=1e-5)
    apart = torch.eye(8)
    assert NTXentLoss(temperature=0.05)(apart, 3 * apart) < 1e-6
    assert NTXentLoss(temperature=0.05)(apart, apart.roll(1, 0)) > 5


@pytest.mark.parametrize("cls", [InBatchCRDLoss, NTXentLoss])
def test_both_heads_learn(cls):
    loss = cls(4, 6, embed_dim=5, head="mlp")
    student, teacher = torch.randn(8, 4), torch.randn(8, 6)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    before = loss(student, teacher).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss(student, teacher).backward()
        optimizer.step()
    assert loss(student, teacher).item() < before - 0.5
    assert len(list(loss.parameters())) == 8


def test_head():
    x = torch.randn(8, 4)
    linear, mlp = Embed(4, 5), Embed(4, 5, "mlp")
    torch.testing.assert_close(linear(x), nn.functional.normalize(linear.linear(x)))
    torch.testing.assert_close(mlp(x), nn.functional.normalize(mlp.linear(mlp.hidden(x).relu())))
    torch.testing.assert_close(linear.bfloat16()(x).norm(dim=1), torch.ones(8))  # fp32 arithmetic over bf16 weights
    with pytest.raises(ValueError, match=r"embed: features must have 4 numbers a sample, got 36; read a pooled tap"):
        linear(torch.randn(8, 4, 3, 3))
    with pytest.raises(ValueError, match=r"embed: head must be 'linear' or 'mlp', got 'conv'; choose one of them"):
        Embed(4, 5, "conv")
    with pytest.raises(ValueError, match=r"embed: embed_dim must be a whole number of at least 1, got 0; give a size"):
        Embed(4, 0)


def test_refusals():
    with pytest.raises(
        ValueError, match=r"crd_inbatch: labels must be given with mask_same_class, got None; pass them"
    ):
        InBatchCRDLoss(4, 6, mask_same_class=True)(torch.randn(8, 4), torch.randn(8, 6))
    with pytest.raises(ValueError, match=r"nt_xent: student_dim and teacher_dim must come together, got 4 and None"):
        NTXentLoss(student_dim=4)
    with pytest.raises(ValueError, match=r"nt_xent: student must be shaped like .*; give student_dim and teacher_dim"):
        NTXentLoss()(torch.randn(8, 4), torch.randn(8, 6))
    with pytest.raises(ValueError, match=r"crd_inbatch: temperature must be a number above 0, got 0"):
        InBatchCRDLoss(4, 6, temperature=0)


@pytest.mark.parametrize("unknown", [-1, -100])
def test_samples_without_a_label_are_of_no_class(unknown):
    """They counted as one class, so that unlabelled data had no negatives and the loss was 0."""
    loss = InBatchCRDLoss(4, 6, embed_dim=5, temperature=0.2, mask_same_class=True).double()
    s, t, labels = features(8, 4), features(8, 6), torch.tensor([0, unknown, 0, unknown, unknown, 1, 2, 3])
    alone = torch.tensor([0, 4, 0, 5, 6, 1, 2, 3])
    torch.testing.assert_close(loss(s, t, labels), loss(s, t, alone))
    assert loss(s, t, torch.full((8,), unknown)) > 0.5
