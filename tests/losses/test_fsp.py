"""`fsp` against loops over pairs of channels, its invariances, and both of its means."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdkit.losses import FSPLoss

WIDTHS = (2, 3, 4)


def layers(*sizes, seed=0, batch=3):
    made = torch.Generator().manual_seed(seed)
    shapes = [(batch, width, *size) for width, size in zip(WIDTHS, sizes, strict=False)]
    return [torch.randn(*shape, dtype=torch.float64, generator=made) for shape in shapes]


def by_loops(students, teachers):
    """Sum and mean over entries of (G_s − G_t)², both a mean over samples, for maps of one size a side."""
    total, mean = 0.0, 0.0
    for k in range(len(students) - 1):
        entries = []
        for b in range(len(students[0])):
            for i, j in np.ndindex(WIDTHS[k], WIDTHS[k + 1]):
                flows = [(side[k][b, i].numpy() * side[k + 1][b, j].numpy()).mean() for side in (students, teachers)]
                entries.append((flows[0] - flows[1]) ** 2)
        mean += np.mean(entries)
        total += np.sum(entries) / len(students[0])
    return total, mean


def test_it_is_the_formula():
    s, t = layers(*[(4, 3)] * 3), layers(*[(2, 5)] * 3, seed=1)  # each side of its own size
    total, mean = by_loops(s, t)
    assert FSPLoss()(s, t).item() == pytest.approx(mean, rel=1e-12)
    assert FSPLoss(mode="paper")(s, t).item() == pytest.approx(total, rel=1e-12)


def test_two_layers_are_enough_and_the_paper_counts_every_entry():
    s, t = layers((4, 4), (4, 4)), layers((4, 4), (4, 4), seed=1)
    torch.testing.assert_close(FSPLoss(mode="paper")(s, t), 2 * 3 * FSPLoss()(s, t))


@pytest.mark.parametrize("size", [(4, 4), (3, 2)])
def test_the_larger_map_is_pooled_to_its_neighbours_size(size):
    s, t = layers((6, 8), size, (6, 8)), layers(*[size] * 3, seed=1)
    pooled = [F.adaptive_avg_pool2d(x, size) for x in s]
    torch.testing.assert_close(FSPLoss()(s, t), FSPLoss()(pooled, t))
    assert FSPLoss()(s, pooled).item() == pytest.approx(0, abs=1e-25)


def test_where_things_are_does_not_count_and_which_channels_they_are_does():
    """A flow is a mean over positions."""
    s, t = layers(*[(4, 4)] * 3), layers(*[(4, 4)] * 3, seed=1)
    torch.testing.assert_close(FSPLoss()([x.flip(2).roll(1, 3) for x in s], t), FSPLoss()(s, t))
    assert not torch.isclose(FSPLoss()([s[0].flip(1), *s[1:]], t), FSPLoss()(s, t))


def test_both_layers_of_a_pair_learn_and_the_teacher_does_not():
    s, t = ([x.requires_grad_() for x in layers(*[(4, 4)] * 3, seed=seed)] for seed in (0, 1))
    FSPLoss()(s, t).backward()
    assert all(x.grad.abs().max() > 0 for x in s)
    assert all(x.grad is None for x in t)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, t: (s[:1], t[:1]), "students and teachers must be at least 2 layers and equally many, got 1 and 1"),
        (lambda s, t: (s[:2], t), "at least 2 layers and equally many, got 2 and 3"),
        (lambda s, t: (s, [x[:2] for x in t]), "student must hold teacher's 2 samples, got 3"),
        (lambda s, t: ([*s[:2], s[2][:2]], [*t[:2], t[2][:2]]), "student must hold teacher's 3 samples, got 2"),
        (lambda s, t: ([*s[:2], s[2].mean((2, 3))], t), r"students must be \(B, C, H, W\), got shape \(3, 4\)"),
        (lambda s, t: ([s[1], *s[1:]], t), r"students must have the teachers' 2 channels, got 3; .*\(head: conv1x1\)"),
    ],
)
def test_what_does_not_fit_is_told(change, words):
    with pytest.raises(ValueError, match=f"fsp: .*{words}"):
        FSPLoss()(*change(layers(*[(4, 4)] * 3), layers(*[(4, 4)] * 3, seed=1)))


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match=r"fsp: mode must be 'code' or 'paper', got 'sum'; choose"):
        FSPLoss(mode="sum")
