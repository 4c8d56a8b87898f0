"""Deep mutual learning: what must hold whatever the models are (Zhang et al. 2018, equations 2 to 5)."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import kdkit
from kdkit.graph import Edge, Node
from kdkit.graph.batch import Batch
from kdkit.graph.factors import set_factor
from kdkit.graph.graph import Graph
from kdkit.graph.schedule import Schedule
from kdkit.recipe import loads
from kdkit.registry import KdkitError
from kdkit.runs.check import check
from kdkit.runs.evaluate import evaluate
from kdkit.runs.fit import fit as run_recipe
from tests.graph.test_graph import FACTS, batch, bound, run
from tests.nets import net
from tests.train.running import fit

ABC = ("a", "b", "c")


def peers(names="ab", **options):
    return {name: Node(net(6 + i, seed=i).double(), **options) for i, name in enumerate(names)}


def data():
    single = batch()
    return Batch(single.x.double(), single.labels, single.index)


def batches(n):
    return DataLoader([(data().x[i], data().labels[i]) for i in range(6)] * n, batch_size=6)


def cohort(nodes, edges):
    graph = Graph(nodes, edges)
    graph.bind(data(), FACTS, 10)
    return graph


def gradients(graph, *edges):
    graph.zero_grad()
    terms = run(graph, data=data())
    graph.weighted({name: terms[name] for name in edges or terms}).backward()
    return {
        name: [p.grad.clone() for p in graph.model(name).parameters() if p.grad is not None] for name in graph.trained
    }


def log_p(graph, name):
    return F.log_softmax(graph.model(name)(data().x), 1)


def test_the_teacher_of_dml_e_is_the_mean_posterior_of_the_others():
    graph = cohort(peers("abc"), [Edge("dml", among=ABC, ensemble="arithmetic")])
    p = {name: log_p(graph, name).exp() for name in ABC}
    want = 0
    for name in ABC:
        q = sum(p[other] for other in ABC if other != name) / 2
        want = want + (q * (q.log() - p[name].log())).sum(1).mean()
    torch.testing.assert_close(run(graph, data=data())["dml"], want)


def test_dml_e_and_dml_are_one_for_two_peers():
    one = cohort(nodes := peers(), ["ce", Edge("dml", among=["a", "b"])])
    other = cohort(nodes, ["ce", Edge("dml", among=["a", "b"], ensemble="arithmetic")])
    assert run(one, data=data())["dml"] == run(other, data=data())["dml"]


def test_a_peer_alone_trains_on_cross_entropy():
    graph, alone = cohort(peers(), ["ce", Edge("dml", among=["a", "b"])]), cohort({"a": peers()["a"]}, ["ce"])
    set_factor(graph, "dml", 0, sources="b", target="a")
    assert all(torch.equal(x, y) for x, y in zip(gradients(graph)["a"], gradients(alone)["a"], strict=True))


def test_no_gradient_reaches_the_peer_that_teaches():
    graph = cohort(peers(), [Edge("dml", source="a", target="b"), "ce"])
    graph.zero_grad()
    run(graph, data=data())["dml"].backward()
    assert all(p.grad is None for p in graph.model("a").parameters())
    assert any(p.grad is not None for p in graph.model("b").parameters())


def test_its_gradient_is_the_difference_of_the_posteriors():
    graph = cohort(peers(), [Edge("dml", among=["a", "b"])])
    outputs = graph.outputs(data())
    mine, theirs = (next(v for end, v in outputs.items() if end.node == name) for name in "ab")
    value = graph.terms(("a",), outputs, data())["dml"]
    (grad,) = torch.autograd.grad(value, mine)
    torch.testing.assert_close(grad, (mine.softmax(1) - theirs.softmax(1)) / len(mine))
    p, q = mine.log_softmax(1), theirs.log_softmax(1)
    torch.testing.assert_close(value, F.kl_div(p, q, reduction="none", log_target=True).mean() * mine.shape[1])


def test_swapping_the_peers_swaps_what_they_learn():
    def trained(order):
        nodes = {name: net(8, seed=ord(name)).double() for name in order}
        made = kdkit.Distiller(nodes, ["ce", Edge("dml", among=list(order))], lr=0.05).double()
        fit(made, batches(3), epochs=1)
        return made

    one, other = trained("ab"), trained("ba")
    for name in "ab":
        for x, y in zip(one.graph.model(name).parameters(), other.graph.model(name).parameters(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def twins(**options):
    one = net(8, seed=1)
    return {"a": Node(one), "b": Node(copy.deepcopy(one), **options)}


def test_twins_are_refused():
    with pytest.raises(KdkitError, match=r"models 'a' and 'b' have the same weights .* would never differ"):
        bound(twins(), ["ce", Edge("dml", among=["a", "b"])])
    with pytest.raises(KdkitError, match="edge 'dml' would teach nothing"):
        bound({**twins(), "c": Node(net(6))}, ["ce", Edge("dml", among=ABC, ensemble="arithmetic")])


@pytest.mark.parametrize(
    ("options", "edges"),
    [
        ({"lr": 0.1}, ["ce"]),
        ({"optimizer": {"name": "adam"}}, ["ce"]),
        ({"when": {"from": 1}}, ["ce"]),
        ({"image_size": 16}, ["ce"]),
        ({"mean": (0.0,) * 3, "std": (2.0,) * 3}, ["ce"]),
        ({}, [Edge("ce", target="a"), Edge("ce", target="b", name="smooth", label_smoothing=0.1)]),
    ],
    ids=["rate", "optimizer", "time", "size", "input", "losses"],
)
def test_twins_that_will_differ_are_not(options, edges):
    facts = replace(FACTS, mean=(0.5,) * 3, std=(0.25,) * 3)
    bound(twins(**options), [*edges, Edge("dml", among=["a", "b"])], facts=facts)


def test_twins_that_see_two_views_of_an_image_will_differ_too():
    x, y = batch().x, batch().labels
    for inputs, alike in (((0, 1), False), ((1, 1), True)):
        nodes = {name: replace(node, input=i) for (name, node), i in zip(twins().items(), inputs, strict=True)}
        graph = Graph(nodes, ["ce", Edge("dml", among=["a", "b"])])
        with pytest.raises(KdkitError, match="never differ") if alike else nullcontext():
            graph.bind(Batch([x, x.flip(-1)], y), FACTS, 4)


def test_features_are_aligned_by_their_angle_behind_a_head_and_the_peer_is_a_constant():
    graph = cohort(peers(), ["ce", Edge("cosine", among=["a", "b"], head="linear", weight=0.1)])
    heads = graph.edges["cosine"].heads
    features = {}
    for name in "ab":
        model = graph.model(name)
        x = model.act2(model.bn2(model.conv2(model.act1(model.bn1(model.conv1(data().x))))))
        features[name] = model.pool(x).flatten(1)
    want = 0
    for head, (teacher, student) in zip(heads, ["ab", "ba"], strict=True):
        s, t = head(features[student], features[teacher])
        want = want + (F.normalize(s) - F.normalize(t.detach())).square().sum(1).mean() / 2
    torch.testing.assert_close(run(graph, data=data())["cosine"], want)
    want.backward()
    by_hand = [p.grad for p in graph.model("a").parameters()]
    got = gradients(graph, "cosine")["a"]
    assert by_hand[0] is not None
    for x, y in zip(got[:4], by_hand[:4], strict=True):
        torch.testing.assert_close(x, 0.1 * y)


def test_the_weight_may_fade_by_a_hundredth_an_epoch():
    curve = Schedule.parse({"exp": {"start": 0.1, "rate": 0.01, "by": "epoch"}}).bind(240)
    assert curve(100.7) == pytest.approx(0.1 * math.exp(-1))
    assert curve(239.9) == pytest.approx(0.1 * math.exp(-2.39))


def test_one_after_the_other_is_another_step():
    def trained(update):
        made = kdkit.Distiller(peers(), ["ce", Edge("dml", among=["a", "b"])], lr=0.1, update=update).double()
        fit(made, batches(1), epochs=1)
        return made

    one, other = trained("simultaneous"), trained("sequential")
    assert torch.equal(one.a.fc.weight, other.a.fc.weight)
    assert not torch.equal(one.b.fc.weight, other.b.fc.weight)


def test_several_depths_and_several_inputs_are_words():
    """Hierarchical mutual learning, and peers of which each sees another view of the same samples."""

    class Views(torch.utils.data.Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, i):
            x = batch(16).x[i]
            return {"left": x, "right": x.flip(-1)}, batch(16).labels[i]

    nodes = {"a": Node(net(8, seed=1), input="left"), "b": Node(net(8, seed=2), input="right")}
    edges = ["ce", Edge("dml", among=["a", "b"]), Edge("at", among=["a", "b"], taps=["stage1", "stage2"], weight=10)]
    made = kdkit.Distiller(nodes, edges, lr=0.05)
    fit(made, DataLoader(Views(), batch_size=8), epochs=1)
    assert len(made.graph.edges["at"].calls) == 4


VIEWS = """\
data: {name: digits, image_size: 8, subset: 64, batch_size: 32, two_views: true, val_split: 0.2}
models: {a: {arch: resnet8, input: view1}, b: {arch: resnet8, input: view2}}
losses: [ce, dml: {among: [a, b]}]
optimizer: {name: sgd}
lr: 0.05
cohort: {health: {probe: 32}}
trainer: {max_epochs: 1, accelerator: cpu}
"""


def test_a_recipe_of_two_views_trains_is_scored_and_evaluated(tmp_path):
    result = run_recipe(loads(VIEWS), out=tmp_path / "run")
    assert {"a", "b"} <= result.last.keys()
    assert all({"a", "b"} == evaluate(tmp_path / "run", split=split).keys() for split in ("test", "train"))
    assert len(check(loads(VIEWS)).edges) == 4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("models.b.input=view3", "`input: view3`: a batch holds view1, view2"),
        ("models.b.input=null", "holds several inputs; say which one each model reads"),
        ("data.two_views=false", "`input: view1` names one of several, and a batch holds one; leave it out"),
    ],
)
def test_views_that_do_not_fit_are_told_before_training(override, said):
    with pytest.raises(KdkitError, match=said):
        check(loads(VIEWS, overrides=[override]))


def test_two_views_are_not_cached(tmp_path):
    words = ["models.teacher={arch: resnet8, weights: random, input: view1, cache: true}", "cohort=null"]
    with pytest.raises(KdkitError, match=r"cache of 'teacher': data\.two_views has two images for each row"):
        run_recipe(loads(VIEWS.replace("ce,", "ce, kd: {to: a},"), overrides=words), out=tmp_path / "run")
