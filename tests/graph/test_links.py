import pytest
from torch import nn

from kdkit.graph import Edge, Node, Schedule, ema, frozen
from kdkit.graph.calls import calls, source_shape
from kdkit.graph.links import End, Link, links
from kdkit.losses import ATLoss
from kdkit.registry import KdkitError

T, T2, S, A, B = "teacher", "assistant", "student", "a", "b"
ONE = {T: frozen(nn.Identity()), S: Node(nn.Identity())}
TWO = {**ONE, T2: frozen(nn.Identity())}
PEERS = {n: Node(nn.Identity()) for n in "abc"}


def said(edge, nodes, **expand):
    return [(tuple(map(str, k.sources)), str(k.target), k.share) for k in links(edge, nodes, **expand)]


def test_defaults_teacher_to_every_trained_node_at_the_natural_tap():
    assert said(Edge("kd"), ONE) == [(("teacher.logits",), "student.logits", 1.0)]
    assert said(Edge("kd"), {T: frozen(nn.Identity()), **PEERS}) == [
        (("teacher.logits",), f"{n}.logits", 1.0) for n in "abc"
    ]
    assert said(Edge("ce"), PEERS) == [((), f"{n}.logits", 1.0) for n in "abc"]


def test_the_only_frozen_node_teaches_whatever_its_name():
    nodes = {"wise": frozen(nn.Identity()), S: Node(nn.Identity())}
    assert said(Edge("kd"), nodes)[0][0] == ("wise.logits",)
    slow = {S: Node(nn.Identity()), "slow": ema(S)}
    assert said(Edge("kd"), slow) == [(("slow.logits",), "student.logits", 1.0)]
    assert said(Edge("kd"), {**slow, **nodes})[0][0] == ("wise.logits",)


def test_ends_name_node_and_tap_or_either():
    edge = Edge("hint", source="assistant.layer2.1", target="student.stage2")
    assert said(edge, TWO) == [(("assistant.layer2.1",), "student.stage2", 1.0)]
    assert said(Edge("cosine", source="embedding", target="embedding"), ONE) == [
        (("teacher.embedding",), "student.embedding", 1.0)
    ]


def test_plural_taps_are_zipped():
    edge = Edge("at", taps="stages")
    two = lambda node, tap: ["stage1", "stage2"] if tap == "stages" else [tap]  # noqa: E731
    assert said(edge, ONE, expand=two) == [
        (("teacher.stage1",), "student.stage1", 1.0),
        (("teacher.stage2",), "student.stage2", 1.0),
    ]
    uneven = lambda node, tap: ["s1", "s2", "s3", "s4"] if node == T else ["s1", "s2", "s3"]  # noqa: E731
    with pytest.raises(KdkitError, match=r"4 sources \(teacher.s1.*do not fit 3 targets"):
        links(edge, ONE, uneven)


def test_several_teachers_each_make_a_link_or_one_ensemble():
    both = ["teacher", "assistant"]
    assert [k[0] for k in said(Edge("kd", source=both), TWO)] == [("teacher.logits",), ("assistant.logits",)]
    assert said(Edge("kd", source=both, ensemble="arithmetic"), TWO) == [
        (("teacher.logits", "assistant.logits"), "student.logits", 1.0)
    ]
    with pytest.raises(KdkitError, match="several teachers"):
        links(Edge("kd", ensemble="geometric"), TWO)


def test_peers_share_what_they_teach():
    got = links(Edge("dml", among=["a", "b", "c"]), PEERS)
    assert len(got) == 6
    assert got[0] == Link((End("a", "logits"),), End("b", "logits"), 0.5)


def test_self_edge_between_depths():
    edge = Edge("mse", source="student.stage3", target="student.stage1")
    assert said(edge, ONE) == [(("student.stage3",), "student.stage1", 1.0)]
    with pytest.raises(KdkitError, match="cannot teach itself; name another tap or model in `from`"):
        links(Edge("mse", source="student.stage1", target="student.stage1"), ONE)


def test_a_teacher_that_was_not_frozen_is_told_so():
    nodes = {**ONE, T2: Node(nn.Identity())}
    words = r"'assistant' is trained too; .*`frozen: true` \(in Python kdkit.frozen\); .*`to: student`"
    with pytest.raises(KdkitError, match=words):
        links(Edge("kd", source=T2), nodes)
    assert said(Edge("kd", source=T2, target=S), nodes) == [(("assistant.logits",), "student.logits", 1.0)]
    with pytest.raises(KdkitError, match=r"`to: student\.TAP`"):
        links(Edge("mse", source=S), {S: Node(nn.Identity())})


@pytest.mark.parametrize(
    "ends",
    [
        {"source": "teacher.stage2"},
        {"source": "stage2"},
        {"target": "student.stage2"},
        {"source": "teacher.stage2", "target": "student.stage2"},
        {"source": ["teacher", "assistant.stage2"]},
    ],
)
def test_taps_beside_an_end_with_a_tap_is_refused(ends):
    with pytest.raises(KdkitError, match=r"edge 'mse': `taps` says .*stage2' names a tap of its own; leave out one"):
        links(Edge("mse", taps="stage1", **ends), TWO)


def test_taps_beside_models_alone():
    got = said(Edge("mse", taps="stage1", source=T2, target=S), TWO)
    assert got == [(("assistant.stage1",), "student.stage1", 1.0)]


@pytest.mark.parametrize(
    ("edge", "nodes", "words"),
    [
        (Edge("dml", among=["a"]), PEERS, "at least two different models"),
        (Edge("dml", among=["a", "a"]), PEERS, "at least two different models"),
        (Edge("dml", among=["a", "d"]), PEERS, "no model is called 'd'"),
        (Edge("dml", among=["teacher", "student"]), ONE, "peers are trained"),
        (Edge("kd"), PEERS, "who teaches"),
        (Edge("kd", target="teacher", source="student"), ONE, "is frozen and cannot learn"),
        (Edge("ce", source="teacher"), ONE, "reads no teacher"),
        (Edge("ce"), {T: ONE[T]}, "no model is trained"),
    ],
)
def test_what_does_not_fit_is_said(edge, nodes, words):
    with pytest.raises(KdkitError, match=words):
        links(edge, nodes)


def test_edges_refuse_unknown_words():
    with pytest.raises(KdkitError, match="did you mean 'temperature'"):
        Edge("kd", temprature=4)
    with pytest.raises(KdkitError, match="KDLoss has no option 'wieght'; did you mean 'weight'"):
        Edge("kd", wieght=4)
    with pytest.raises(KdkitError, match="did you mean 'crd'"):
        Edge("crdd")
    with pytest.raises(KdkitError, match="already says who teaches whom"):
        Edge("dml", among=["a", "b"], target="a")
    with pytest.raises(KdkitError, match="beside a ready module"):
        Edge(nn.MSELoss.__new__(type("Own", (nn.Module,), {"forward": lambda self, student, teacher: 0})), size=3)


def test_a_registered_class_is_its_loss():
    one, other = Edge(ATLoss), Edge("at")
    assert (one.name, one.weight, one.natural_taps) == (other.name, other.weight, other.natural_taps)
    assert Edge("at", weight=0).weight == Schedule.parse(0)


def test_an_ensemble_of_unlike_teachers_is_told_with_its_edge_and_what_to_do():
    one, other = End(T, "logits"), End(T2, "logits")
    link = Link((one, other), End(S, "logits"))
    assert source_shape("kd", link, {one: (5,), other: (5,)}) == (5,)
    with pytest.raises(KdkitError, match=r"edge 'kd': .* \(5,\) at teacher.logits and \(7,\) .*leave `ensemble` out"):
        source_shape("kd", link, {one: (5,), other: (7,)})


def test_a_loss_that_reads_lists_is_called_once_for_each_two_models():
    found = [Link((End(T, tap),), End(node, tap)) for tap in ("stage1", "stage2") for node in (A, B)]
    assert [(call.target, len(call.links)) for call in calls(found, lists=True)] == [(A, 2), (B, 2)]
    assert [(call.target, len(call.links)) for call in calls(found, lists=False)] == [(A, 1), (B, 1), (A, 1), (B, 1)]


def members(node, tap):
    return [f"stage{i}{tap.removeprefix('stages')}" for i in (1, 2)] if tap.startswith("stages") else [tap]


LEVELS = ("stage1", "stage2", "embedding")


def test_taps_of_one_side_alone_are_one_group_where_the_loss_reads_several():
    told = [
        ((f"teacher.{tap}",), f"student.{tap.partition(':')[0]}", 1.0) for tap in ("stage1:preact", "stage2:preact")
    ]
    told += [(("teacher.embedding",), "student.embedding", 1.0)]
    several = ["stages:preact", "embedding"]
    named = ["stage1:preact", "stage2:preact", "embedding"]
    for source in (several, named):
        for target in (None, "student"):
            edge = Edge("reviewkd", source=source, target=target)
            assert said(edge, ONE, expand=members) == told
            links(edge, ONE)  # a recipe asks before there are models
    edge = Edge("reviewkd", target=["stage1", "stage2", "embedding"])
    assert said(edge, ONE, expand=members) == [((f"teacher.{tap}",), f"student.{tap}", 1.0) for tap in LEVELS]


@pytest.mark.parametrize("order", [(T, T, T2, T2), (T, T2, T, T2)])
def test_several_teachers_of_several_levels_in_any_order(order):
    taps = ["stages", "embedding"] if order[1] == T else ["stages", "stages", "embedding", "embedding"]
    taps = taps * 2 if len(taps) == 2 else taps
    source = [f"{node}.{tap}" for node, tap in zip(order, taps, strict=True)]
    edge = Edge("reviewkd", source=source, ensemble="arithmetic")
    assert said(edge, TWO, expand=members) == [
        ((f"teacher.{tap}", f"assistant.{tap}"), f"student.{tap}", 1.0) for tap in LEVELS
    ]


def test_taps_of_a_loss_that_reads_one_are_links_of_their_own():
    heads = ["teacher.head", "teacher.head_dist"]
    edge = Edge("kd", source=heads, ensemble="geometric")
    assert said(edge, ONE) == [(tuple(heads), "student.logits", 1.0)]
    edge = Edge("hint", source=["teacher.stage1", "teacher.stage2"])
    assert said(edge, {T: ONE[T], A: PEERS[A], B: PEERS[B]}) == [
        (("teacher.stage1",), "a.stage2", 1.0),
        (("teacher.stage2",), "b.stage2", 1.0),
    ]
