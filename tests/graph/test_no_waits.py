"""No step waits for the device: on the meta device there is no number to look at, and a look raises."""

import pytest
import torch

import kdkit
from kdkit.graph.batch import Batch, Facts
from kdkit.graph.graph import Graph
from tests.nets import net

BATCH = Batch(torch.randn(16, 3, 8, 8), torch.arange(16) % 5, torch.arange(16))
FACTS = Facts(num_classes=5, num_samples=64, sample_labels=torch.arange(64) % 5)


@pytest.mark.parametrize(
    "edges",
    [
        ["ce", kdkit.Edge("kd", weight={"linear": [1.0, 0.0]}), "at", "nst"],
        ["ce", kdkit.Edge("hint", head="conv_bn_relu", clip=1.0), "rkd", "pkt"],
        ["ce", kdkit.Edge("crd", num_negatives=8, embed_dim=8), "crd_inbatch"],
        ["ce", kdkit.Edge("kd", source=["teacher", "second"], ensemble="arithmetic")],
    ],
    ids=["schedules", "heads", "banks", "ensemble"],
)
def test_forward_losses_and_backward(edges):
    nodes = {
        "teacher": kdkit.frozen(net(12, seed=1)),
        "second": kdkit.frozen(net(8, seed=3)),
        "student": net(8, seed=2),
    }
    graph = Graph(nodes, edges, 0)
    graph.bind(Batch(BATCH.x[:8], BATCH.labels[:8], BATCH.index[:8]), FACTS, 4)
    graph.to("meta").train()
    batch = Batch(*(value.to("meta") for value in (BATCH.x, BATCH.labels, BATCH.index)))
    for time in (0.0, 2.5):
        graph.set_time(time)
        terms = graph.terms(graph.now.updates, graph.outputs(batch), batch)
        graph.weighted(terms).backward()
    graph.move_ema(3.0)
    assert all(parameter.grad is not None for parameter in graph.model("student").parameters())
