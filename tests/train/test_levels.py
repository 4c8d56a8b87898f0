"""Losses that read several layers of both models at once."""

import pytest
from torch import nn

from kdkit import Distiller, Edge
from kdkit.losses import ReviewKDLoss
from tests.train.running import fit, pair


@pytest.mark.parametrize("ends", [{}, {"source": ["stages:preact", "embedding"], "target": ["stages", "embedding"]}])
def test_a_graph_gives_it_every_stage_and_the_embedding(ends):
    distiller = Distiller(pair(), ["ce", Edge("reviewkd", **ends)])
    student = distiller.student
    before = set(student.state_dict())
    fit(distiller)
    (loss,) = (module for module in distiller.modules() if isinstance(module, ReviewKDLoss))
    assert loss.widths == ([8, 8, 8], [12, 12, 12])
    assert all(abf.bn2.weight.ne(1).any() for abf in loss.fusions)  # they learn
    assert set(student.state_dict()) == before
    taps = {end.tap for edge in distiller.graph.edges.values() for end in edge.ends() if end.node == "teacher"}
    assert taps == ({"stage1:preact", "stage2:preact", "embedding"} if ends else {"stage1", "stage2", "embedding"})


class Own(nn.Module):
    """Of a user, who names two taps."""

    tap = ("embedding", "logits")

    def __init__(self, student_dims, teacher_dims, student_dim):
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(s, t) for s, t in zip(student_dims, teacher_dims, strict=True))
        assert student_dim == student_dims[0]

    def forward(self, students, teachers):
        pairs = zip(self.project, students, teachers, strict=True)
        return sum((linear(s) - t.detach()).square().mean() for linear, s, t in pairs)


@pytest.mark.parametrize(("head", "widths"), [(None, [(8, 12), (5, 5)]), ("linear", [(12, 12), (5, 5)])])
def test_an_own_loss_is_told_the_widths_of_all_levels_behind_their_heads(head, widths):
    distiller = Distiller(pair(), ["ce", Edge(Own, head=head)])
    fit(distiller, epochs=1)
    (loss,) = (module for module in distiller.modules() if isinstance(module, Own))
    assert [(linear.in_features, linear.out_features) for linear in loss.project] == widths
