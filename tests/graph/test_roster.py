"""A cohort without a run: what a plan may say, and who teaches whom while some are not there."""

import math

import pytest
import torch

from kdkit.graph import Edge, Node, frozen
from kdkit.graph.cohort import Roster
from kdkit.graph.membership import Move, Plan
from tests.graph.test_graph import bound, run
from tests.nets import net

ABC = ("a", "b", "c")


def peers(*edges, names=ABC, **nodes):
    return bound({**{name: Node(net(8, seed=i)) for i, name in enumerate(names)}, **nodes}, ["ce", *edges])


def roster(graph, watch=False, **plan):
    graph.cohort = Roster(graph, Plan(**plan), watch=watch)
    return graph.cohort


@pytest.mark.parametrize(
    ("plan", "epochs", "said"),
    [
        ({"leave": {"a": {"epoch": 6}}}, 6, "epoch 6 never comes in a run of 6 epochs"),
        ({"join": {"a": {"epoch": 2}}, "leave": {"a": {"epoch": 2}}}, 6, "a leaves at epoch 2, but joins at 2;"),
        ({"leave": {n: {"epoch": 2} for n in ABC}, "ramp": 3}, 6, "nobody is left at epoch 5;"),
        ({"leave": {n: {"epoch": 2} for n in ABC}, "ramp": 4}, 6, ""),
        ({"leave": {n: {"epoch": 2} for n in "ab"}, "join": {"c": {"epoch": 4}}, "ramp": 3}, 6, ""),
        ({"leave": {n: {"epoch": 2} for n in "ab"}, "join": {"c": {"epoch": 4}}}, 6, "nobody is left at epoch 2;"),
    ],
)
def test_a_plan_is_judged_over_the_whole_run(plan, epochs, said):
    told = [text for _, text in Plan(**plan).problems(ABC, epochs)]
    assert len(told) == bool(said)
    assert all(said in text for text in told)


def test_times_below_one_are_shares_of_the_run():
    plan = Plan({"a": {"epoch": 0.5, "warmup": 0.25}}, {"b": {"epoch": 0.75}})
    assert plan.moves(8) == [Move(4, "join", "a", 2), Move(6, "leave", "b")]


def test_an_ensemble_goes_on_with_the_frozen_one_while_a_peer_is_away():
    teacher = frozen(net(12, seed=9))
    edges = [
        Edge("kd", source=["t", "a"], target="b", ensemble="arithmetic"),
        Edge("kd", source="t", target="b", name="t_b"),
    ]
    graph = peers(*edges, names="ab", t=teacher)
    roster(graph, join={"a": {"epoch": 5}})
    said = run(graph)
    torch.testing.assert_close(said["kd"], said["t_b"])


def test_what_is_lost_is_a_models_doing_and_not_that_of_its_input():
    graph = peers(Edge("dml", among=ABC))
    roster(graph, watch=True)
    audience, nan = graph.edges["dml"].audience, torch.tensor(math.nan)
    assert audience.kept(nan, torch.tensor(False)).isnan()
    assert audience.lost == 0
    assert audience.kept(nan, torch.tensor(True)) == 0
    assert audience.lost == 1
