"""Losses that read several layers of both models at once."""

import copy
import itertools

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import kdkit
from kdkit import Distiller, Edge
from kdkit.losses import ReviewKDLoss
from kdkit.registry import KdkitError
from tests.nets import net
from tests.train.running import fit, pair


@pytest.mark.parametrize("ends", [{}, {"source": ["stages:preact", "embedding"]}])
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


def test_calls_of_unequally_many_levels_have_heads_of_their_own():
    """Of two teachers one tells one level, the other two."""
    taps = ["embedding", "embedding", "logits"]
    source = [f"{node}.{tap}" for node, tap in zip(("other", "one", "one"), taps, strict=True)]
    heads = []
    for lr in (0.0, 0.1):
        models = {
            "one": kdkit.frozen(net(12, seed=1)),
            "other": kdkit.frozen(net(16, seed=2)),
            "student": net(8, seed=3),
        }
        edge = Edge(Own, head="linear", source=source, target=taps)
        distiller = Distiller(models, ["ce", edge], optimizer={"name": "sgd"}, lr=lr)
        fit(distiller, epochs=1)
        heads.append(distiller.graph.edges["Own"].heads)
    assert [head.net.out_features for head in heads[0]] == [16, 12, 5]
    still, moved = (list(some.parameters()) for some in heads)
    assert not any(torch.equal(p, q) for p, q in zip(still, moved, strict=True))
    assert set(map(id, moved)) <= set(map(id, distiller.graph.edges["Own"].parameters_of("student")))


@pytest.mark.parametrize("tap", [None, (), [], 3, "", ["stage1", None]])
def test_a_tap_that_is_no_name_is_refused(tap):
    own = type("Own", (Own,), {"tap": tap})
    with pytest.raises(KdkitError, match=r"edge 'Own': Own.tap must be a name or several, got"):
        fit(Distiller(pair(), ["ce", Edge(own)]))


def test_taps_of_the_teacher_alone_stand_for_all_that_the_loss_reads():
    """Also of several, as one."""
    nodes = {"t1": kdkit.frozen(net(12, seed=1)), "t2": kdkit.frozen(net(12, seed=2)), "student": net(8, seed=3)}
    source = [f"{node}.{tap}" for node in ("t1", "t2") for tap in ("stages:preact", "embedding")]
    distiller = Distiller(nodes, ["ce", Edge("reviewkd", source=source, ensemble="arithmetic")])
    fit(distiller, epochs=1)
    (call,) = distiller.graph.edges["reviewkd"].calls
    told = [([str(end) for end in link.sources], link.target.tap) for link in call.links]
    assert told == [
        (["t1.stage1:preact", "t2.stage1:preact"], "stage1"),
        (["t1.stage2:preact", "t2.stage2:preact"], "stage2"),
        (["t1.embedding", "t2.embedding"], "embedding"),
    ]


@pytest.mark.parametrize(
    ("name", "words", "taps"),
    [
        ("ab", {"head": {"conv_bn_relu": {"relu": False}}}, {"stage1:preact", "stage2:preact"}),
        ("fsp", {"head": "conv1x1", "taps": "stages"}, {"stage1", "stage2"}),
    ],
)
def test_layers_learn_before_the_labels_and_the_classifier_waits_for_them(name, words, taps):
    distiller = Distiller(pair(), [Edge(name, when={"to": 1}, **words), Edge("ce", when={"from": 1})], lr=0.01)
    seen = [copy.deepcopy(distiller.student.state_dict())]
    look = pl.Callback()
    look.on_train_epoch_end = lambda *_: seen.append(copy.deepcopy(distiller.student.state_dict()))
    fit(distiller, callbacks=[look])
    first, then = ({n for n in one if not one[n].equal(other[n])} for one, other in itertools.pairwise(seen))
    assert {"conv1.weight", "conv2.weight"} <= first
    assert not first & {"fc.weight", "fc.bias"}
    assert "fc.weight" in then
    ends = {end for edge in distiller.graph.edges.values() for end in edge.ends()}
    assert {end.tap for end in ends if end.node == "teacher"} == taps
