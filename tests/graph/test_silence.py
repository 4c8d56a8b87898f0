"""A rehearsal exchanges nothing between ranks: its tensors lie on the CPU, for which NCCL has no collectives."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import nn

from kdkit import ranks
from kdkit.graph import Edge, Node, frozen
from kdkit.graph.batch import Batch, Facts
from kdkit.graph.graph import Graph
from kdkit.registry import KdkitError
from tests.nets import Blobs, net


@pytest.fixture
def _two_ranks(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("No backend type associated with device type cpu")

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
    for name in ("all_gather", "all_gather_into_tensor", "all_reduce", "broadcast"):
        monkeypatch.setattr(dist, name, refuse)
    monkeypatch.setattr(dist_nn, "all_gather", refuse)


def bind(edge, samples=4):
    graph = Graph({"teacher": frozen(net(12, seed=1)), "student": Node(net(8, seed=2))}, ["ce", edge])
    graph.bind(Batch(Blobs().x[:samples], Blobs().y[:samples], torch.arange(samples)), Facts(5, 64), 2)
    return graph


@pytest.mark.parametrize(
    "edge",
    [
        Edge("crd", num_negatives=8, embed_dim=4),
        Edge("rkd", gather=True),
        Edge("mse", taps="embedding", head={"linear": {"teacher": "pca"}}),
    ],
)
@pytest.mark.usefixtures("_two_ranks")
def test_a_rehearsal_is_silent(edge):
    graph = bind(edge)
    assert ranks.speak()  # training is not
    graph.train()
    data = Batch(Blobs().x[:4], Blobs().y[:4], torch.arange(4))
    with pytest.raises(RuntimeError, match="No backend type"):
        graph.terms(graph.now.updates, graph.outputs(data), data)


class Rows(nn.Module):
    """Refuses parts of a batch that are of unequal length."""

    def forward(self, student, teacher, labels, index):
        assert [len(part) for part in (student, teacher, labels, index)] == [8] * 4
        return (student - teacher).square().mean()


@pytest.mark.usefixtures("_two_ranks")
def test_labels_and_indices_are_gathered_with_their_rows():
    bind(Edge(Rows, gather=True))


@pytest.mark.usefixtures("_two_ranks")
def test_gathered_rows_count_for_a_loss_over_relations():
    bind(Edge("rkd", gather=True), samples=2)
    with pytest.raises(KdkitError, match="needs at least 3 of them, got 2"):
        bind(Edge("rkd"), samples=2)
