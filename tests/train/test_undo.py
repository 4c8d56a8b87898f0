"""A step that is left out leaves no trace in buffers, however they are changed."""

import pytest
import torch
from torch import nn

import kdkit
from tests.train.nonfinite import Without, assert_same, kd, known, run, spoilt  # noqa: F401  a fixture


class Centre(nn.Module):
    """Its running mean is a new tensor in every step."""

    def __init__(self):
        super().__init__()
        self.register_buffer("c", torch.zeros(5))

    def forward(self, student):
        self.c = 0.9 * self.c + 0.1 * student.detach().mean(0)
        return (student - self.c).square().mean()


class Growing(nn.Module):
    """What it holds grows in every step, and more appears in the second one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", None)

    def forward(self, student, progress):
        mine = student.detach().mean(0, keepdim=True)
        self.seen = mine if self.seen is None else torch.cat([self.seen, mine])
        if progress > 0 and not hasattr(self, "first"):
            self.register_buffer("first", mine[0])
        return (student - self.seen.mean(0) - getattr(self, "first", 0.0)).square().mean()


@pytest.mark.parametrize(("loss", "sample"), [(Centre, 3), (Centre, 21), (Growing, 21)])
def test_a_buffer_that_is_assigned_is_as_before_the_step(known, loss, sample):  # noqa: F811
    edges = lambda: ["ce", kdkit.Edge(loss(), name="own")]  # noqa: E731
    skipped, done = run(kd("skip", edges()), spoilt(sample))
    by_hand, _ = run(kd("stop", edges()), spoilt(sample), callbacks=[Without(sample // 16, 4 + sample // 16)])
    assert_same(skipped, by_hand)
    assert float(done.callback_metrics["nonfinite/skipped"]) == 1
