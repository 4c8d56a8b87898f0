"""Factors of calls: 1 is nothing, 0 is off even beside NaN, and every way to run a step sees them."""

import copy

import pytest
import torch

from kdkit.graph.edge import Edge
from kdkit.graph.factors import factors, set_factor
from kdkit.graph.node import Node, frozen
from kdkit.registry import KdkitError
from tests.graph.test_graph import batch, bound, run
from tests.nets import net

ABC = ("a", "b", "c")


def cohort(*edges):
    return bound({name: Node(net(8, seed=i)) for i, name in enumerate(ABC)}, ["ce", *edges])


def gradients(graph, node):
    graph.zero_grad()
    terms = run(graph)
    graph.weighted(terms).backward()
    return [p.grad.clone() for p in graph.model(node).parameters()]


def test_a_factor_scales_its_own_call_and_no_other():
    graph = cohort(Edge("dml", among=ABC), Edge("dml", source="b", target="a", name="one", weight=0))
    before, one = run(graph)["dml"], run(graph)["one"]
    set_factor(graph, "dml", 3.0, sources="b", target="a")
    torch.testing.assert_close(run(graph)["dml"], before + 2 * one / 2)
    assert factors(graph, "dml")[("b",), "a"] == 3
    assert sorted(factors(graph, "dml").values()) == [1, 1, 1, 1, 1, 3]


def test_a_factor_of_one_changes_no_bit():
    graph = cohort(Edge("dml", among=ABC))
    want = gradients(graph, "a")
    edge = graph.edges["dml"]
    shares = [edge.value(i, graph.outputs(batch()), batch(), graph.progress, graph.loss_scale) * 0.5 for i in range(6)]
    assert torch.equal(run(graph)["dml"], sum(shares[1:], shares[0]))
    set_factor(graph, "dml", 1.0, sources="b", target="a")
    assert all(torch.equal(x, y) for x, y in zip(gradients(graph, "a"), want, strict=True))


def test_peers_at_zero_are_off_even_when_they_are_not_finite():
    graph = cohort(Edge("dml", among=ABC), Edge("at", among=ABC, taps="stage1"))
    for parameter in graph.model("c").parameters():
        parameter.data.fill_(float("nan"))
    assert not all(g.isfinite().all() for g in gradients(graph, "a"))
    for edge in ("dml", "at"):
        for one, other in (("c", "a"), ("c", "b"), ("a", "c"), ("b", "c")):
            set_factor(graph, edge, 0, sources=one, target=other)
    set_factor(graph, "ce", 0, target="c")
    assert all(value.isfinite() for value in run(graph).values())
    muted, two = gradients(graph, "a"), bound({k: graph.nodes[k] for k in "ab"}, ["ce", Edge("dml", among=["a", "b"])])
    two.edges["dml"].factors.fill_(0.5)
    want = gradients(bound({"a": graph.nodes["a"], "b": graph.nodes["b"]}, [
        "ce", Edge("dml", among=["a", "b"], weight=0.5), Edge("at", among=["a", "b"], taps="stage1", weight=500),
    ]), "a")  # fmt: skip
    assert all(torch.equal(x, y) for x, y in zip(muted, want, strict=True))
    assert all(value.isfinite().all() for value in run(two).values())


def test_an_ensemble_is_found_in_any_order():
    nodes = {"t": frozen(net(9, seed=3)), "u": frozen(net(10, seed=4)), "s": Node(net(8))}
    graph = bound(nodes, [Edge("kd", source=["t", "u"], target="s", ensemble="arithmetic")])
    before = run(graph)["kd"]
    set_factor(graph, "kd", 0.25, sources=["u", "t"], target="s")
    assert torch.equal(run(graph)["kd"], before * 0.25)


def test_all_calls_between_two_nodes_are_set():
    graph = bound({"t": frozen(net(9, seed=3)), "s": Node(net(8))}, [Edge("at", source="t", target="s")])
    assert len(graph.edges["at"].calls) == 2
    set_factor(graph, "at", 0, sources="t", target="s")
    assert run(graph)["at"] == 0


@pytest.mark.parametrize(
    ("edge", "value", "words", "said"),
    [
        ("dmi", 1, {"target": "a"}, "no edge is called 'dmi'; known: ce, dml"),
        ("dml", 1, {"sources": "a", "target": "d"}, "nothing goes from a to d; it has a → b; a → c"),
        ("dml", 1, {"target": "a"}, "nothing goes from labels to a"),
        ("ce", -1, {"target": "a"}, "a factor must be 0 or a positive number, got -1"),
        ("ce", True, {"target": "a"}, "a factor must be 0 or a positive number, got True"),
        ("ce", float("nan"), {"target": "a"}, "a factor must be 0 or a positive number, got nan"),
    ],
)
def test_what_is_wrong_is_said(edge, value, words, said):
    with pytest.raises(KdkitError, match=said):
        set_factor(cohort(Edge("dml", among=ABC)), edge, value, **words)


def test_they_are_kept_in_full_precision_and_in_the_state():
    graph = cohort(Edge("dml", among=ABC))
    set_factor(graph, "dml", 0.3, sources="a", target="b")
    for half in (torch.float16, torch.bfloat16):
        assert copy.deepcopy(graph).to(half).edges["dml"].factors.dtype == torch.float32
    other = cohort(Edge("dml", among=ABC))
    other.load_state_dict(graph.state_dict())
    assert factors(other, "dml") == factors(graph, "dml") != factors(cohort(Edge("dml", among=ABC)), "dml")
