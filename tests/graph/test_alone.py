"""Who sees few samples of a batch, before training."""

import pytest

from kdkit.graph import Edge
from kdkit.graph.alone import apart, check_alone, ends_alone
from kdkit.graph.graph import Graph
from kdkit.registry import KdkitError
from tests.graph.test_graph import batch, bound, pair


@pytest.mark.parametrize(
    ("samples", "drop_last", "limit", "alone"),
    [
        (17, False, None, True),
        (17, False, 3, True),
        (17, False, 1.0, True),
        (17, False, 2, False),
        (17, False, 1, False),
        (17, False, 0.9, False),
        (17, True, None, False),
        (18, False, None, False),
        (1, False, None, False),
    ],
)
def test_an_epoch_that_ends_with_one_sample(samples, drop_last, limit, alone):
    assert ends_alone(samples, 8, drop_last, limit) is alone


def test_processes_that_share_a_batch_compare_what_they_see_unless_it_is_gathered():
    graph = Graph(pair(), ["ce", "rkd", Edge("rkd", gather=True, name="all")])
    assert [told.partition(" ")[0] for told in apart(graph, 2)] == ["rkd"]
    assert apart(graph, 1) == []


def test_a_head_that_comes_later_meets_the_one_sample_too():
    late = Edge("cosine", head={"mlp": {"norm": "batch"}}, when={"from": 5})
    graph = bound(pair(), ["ce", late]).eval()
    with pytest.raises(KdkitError, match="last batch holds one sample"):
        check_alone(graph, batch())
    check_alone(bound(pair(), ["ce", Edge("cosine", head="linear", when={"from": 5})]), batch())
