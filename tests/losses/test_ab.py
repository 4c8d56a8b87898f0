"""`ab` against a loop over neurons, where it is zero, and what pulls how strongly."""

import pytest
import torch

from kdkit.losses import ABLoss
from kdkit.models.heads import build_head

SHAPES = ((2, 4, 4), (3, 2, 2), (5,))


def layers(seed, batch=3):
    made = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(batch, *shape, dtype=torch.float64, generator=made) for shape in SHAPES]


def by_loops(students, teachers, margin=1.0, factors=(1 / 4, 1 / 2, 1)):
    total = 0.0
    for student, teacher, factor in zip(students, teachers, factors, strict=True):
        for s, t in zip(student.flatten().numpy(), teacher.flatten().numpy(), strict=True):
            total += factor * max(0.0, margin - s if t > 0 else margin + s) ** 2
    return total / len(students[0])


def test_it_is_the_formula():
    s, t = layers(0), layers(1)
    assert ABLoss()(s, t).item() == pytest.approx(by_loops(s, t), rel=1e-12)
    assert ABLoss(margin=0.3)(s, t).item() == pytest.approx(by_loops(s, t, margin=0.3), rel=1e-12)
    assert ABLoss(decay=1)(s, t).item() == pytest.approx(by_loops(s, t, factors=(1, 1, 1)), rel=1e-12)


def test_a_neuron_that_is_a_margin_behind_the_boundary_is_left_alone():
    t = layers(1)
    s = [torch.where(x > 0, 1.0, -1.0) * (1 + x.abs()) for x in t]
    s = [x.requires_grad_() for x in s]
    value = ABLoss()(s, t)
    assert value == 0
    assert all((g == 0).all() for g in torch.autograd.grad(value, s))
    assert ABLoss(margin=3.0)(s, t) > 0


def test_how_large_the_teachers_activation_is_does_not_count_and_zero_is_inactive():
    s, t = layers(0), layers(1)
    assert ABLoss()(s, t) == ABLoss()(s, [x * 100 for x in t]) == ABLoss()(s, [x.sign() for x in t])
    assert ABLoss()(s, [0 * x for x in t]) == ABLoss()(s, [-x.abs() for x in t])


def test_the_pull_is_twice_what_is_missing_on_either_side():
    s = torch.tensor([[-2.0, 0.5, 3.0, -2.0, 0.5, 3.0]], requires_grad=True)
    t = torch.tensor([[1.0, 1.0, 1.0, -1.0, -1.0, -1.0]])
    (gradient,) = torch.autograd.grad(ABLoss()([s], [t]), s)
    assert gradient.tolist() == [[-6.0, -1.0, 0.0, 0.0, 3.0, 8.0]]


def test_a_batch_twice_as_large_has_the_same_value():
    s, t = layers(0), layers(1)
    torch.testing.assert_close(
        ABLoss()([x.repeat_interleave(2, 0) for x in s], [x.repeat_interleave(2, 0) for x in t]), ABLoss()(s, t)
    )


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (2, 2)])
def test_the_head_that_it_advises_connects_what_differs(size):
    s, t = torch.randn(3, 2, *size, requires_grad=True), torch.randn(3, 5, 4, 4)
    with pytest.raises(ValueError, match=r"ab: student must be shaped like teacher, .*conv_bn_relu: \{relu: false\}"):
        ABLoss()([s], [t])
    told, teacher = build_head({"conv_bn_relu": {"relu": False}}, (2, *size), (5, 4, 4))(s, t)
    assert (told < 0).any()
    assert torch.equal(teacher, t)
    ABLoss()([told], [teacher]).backward()
    assert s.grad.abs().max() > 0


def test_refusals():
    s, t = layers(0), layers(1)
    for ours, theirs in ((s[:2], t), ([], [])):
        with pytest.raises(ValueError, match=rf"ab: students must be as many layers as teachers, {len(theirs)}, got"):
            ABLoss()(ours, theirs)
    with pytest.raises(ValueError, match=r"ab: student must be shaped like teacher, \(3, 7\), .*\(head: linear\)"):
        ABLoss()([s[2]], [torch.randn(3, 7)])
    with pytest.raises(ValueError, match=r"ab: margin must be a number above 0, got 0; choose"):
        ABLoss(margin=0)
    with pytest.raises(ValueError, match=r"ab: decay must be a number above 0, got -1; choose"):
        ABLoss(decay=-1)
