import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit.graph import Edge, Node, ema, frozen
from kdkit.graph.batch import Adapter, Batch, Facts
from kdkit.graph.collect import clip_gradient
from kdkit.graph.ensemble import merged
from kdkit.graph.graph import Graph
from kdkit.losses import KDLoss
from kdkit.registry import KdkitError
from kdkit.taps import Taps
from tests.nets import Blobs, net

FACTS = Facts(num_classes=5, num_samples=64, sample_labels=torch.arange(64) % 5)


def batch(n=6):
    data = Blobs()
    return Batch(data.x[:n], data.y[:n], torch.arange(n))


def bound(nodes, edges, epochs=10, facts=FACTS, seed=0):
    graph = Graph(nodes, edges, seed)
    graph.bind(batch(), facts, epochs)
    return graph


def pair(**options):
    return {"teacher": frozen(net(12, seed=1)), "student": Node(net(8, seed=2), **options)}


def run(graph, t=0.0, data=None):
    graph.set_time(t)
    data = data or batch()
    return graph.terms(graph.now.updates, graph.outputs(data), data)


def test_terms_are_the_losses_by_hand():
    nodes = pair()
    graph = bound(nodes, [Edge("ce", weight=0.1), Edge("kd", weight=0.9, temperature=4.0)])
    got, data = run(graph), batch()
    teacher, student = nodes["teacher"].module, nodes["student"].module
    zs, zt = student(data.x), teacher(data.x).detach()
    kd = 16 * F.kl_div(F.log_softmax(zs / 4, 1), F.softmax(zt / 4, 1), reduction="batchmean")
    torch.testing.assert_close(got["ce"], F.cross_entropy(zs, data.labels))
    torch.testing.assert_close(got["kd"], kd)
    torch.testing.assert_close(graph.weighted(got), 0.1 * got["ce"] + 0.9 * got["kd"])


def test_a_frozen_node_is_frozen_for_ever_and_nowhere():
    graph = bound(pair(), ["ce", "kd"])
    teacher = graph.model("teacher")
    graph.train()
    assert not teacher.training
    assert graph.model("student").training
    assert not any("teacher" in key for key in graph.state_dict())
    assert all(id(p) not in {id(q) for q in graph.parameters()} for p in teacher.parameters())
    before = copy.deepcopy(teacher.state_dict())
    graph.weighted(run(graph)).backward()
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    graph.double()
    assert next(teacher.parameters()).dtype == torch.float64


def test_binding_leaves_no_trace():
    nodes = pair()
    student = nodes["student"].module
    before, rng = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    graph = bound(nodes, ["ce", Edge("crd", num_negatives=8, embed_dim=4)])
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    again = bound(pair(), ["ce", Edge("crd", num_negatives=8, embed_dim=4)])
    assert all(torch.equal(v, again.state_dict()[k]) or v.isnan().all() for k, v in graph.state_dict().items())
    pickle.dumps(student)


def test_a_model_meets_the_example_once_for_all_its_taps():
    teacher, student = net(), net()
    met = {teacher: [], student: []}
    for model, modes in met.items():
        model.register_forward_pre_hook(lambda m, _, modes=modes: modes.append(m.training))
    edges = [Edge("ce"), Edge("at", taps="stages"), Edge("at", name="late", taps="stage1", when={"from": 5})]
    graph = bound({"teacher": frozen(teacher), "student": student}, edges)
    assert len(graph.phases) == 2
    assert met == {teacher: [False] * 3, student: [False, True, True]}  # then every phase is rehearsed


def test_the_model_that_comes_out_is_the_one_that_went_in():
    nodes = pair()
    graph = bound(nodes, [Edge("hint", source="teacher.stage2", target="student.stage2", head="conv_bn_relu")])
    assert graph.model("student") is nodes["student"].module
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in graph.model("student").modules())
    assert list(graph.model("student").state_dict()) == list(net(8).state_dict())


def test_heads_are_sized_trained_and_shared_by_name():
    two = [
        Edge("mse", taps="stage1", head={"conv1x1": {"share": "p"}}, name="one"),
        Edge("mse", taps="stage2", head={"conv1x1": {"share": "p"}}, name="two"),
    ]
    graph = bound(pair(), two)
    own, beside = graph.parameters_of("student")
    assert len(own) == len(list(net(8).parameters()))
    assert len(beside) == len(list(graph.edges["one"].parameters()))
    assert {id(p) for p in graph.edges["one"].parameters()} == {id(p) for p in graph.edges["two"].parameters()}


@pytest.mark.parametrize(
    ("loss", "source", "target"),
    [("hint", ["a.stage2", "b.stage2"], "student.stage2"), ("ab", ["a.stage1", "a.stage2"], ["stage1", "stage2"])],
)
def test_no_two_heads_of_a_loss_begin_alike(loss, source, target):
    nodes = {"a": frozen(net(12, seed=1)), "b": frozen(net(12, seed=2)), "student": net(8, seed=9)}
    graph = bound(nodes, [Edge(loss, source=source, target=target, head="conv1x1")])
    one, other = (next(head.parameters()) for head in graph.edges[loss].heads)
    assert one.shape == other.shape
    assert not torch.equal(one, other)


def test_schedules_move_weights_and_parameters_on_one_tensor():
    kd = Edge("kd", weight={"linear": [1.0, 0.0]}, temperature={"linear": [4.0, 2.0]})
    graph = bound(pair(), ["ce", kd])
    edge = graph.edges["kd"]
    weight, loss = edge.weight, edge.losses[0]
    for t, want in ((0.0, (1.0, 4.0)), (5.0, (0.5, 3.0)), (9.0, (0.1, 2.2))):
        value = run(graph, t)["kd"]
        assert (float(edge.weight), float(loss.temperature)) == pytest.approx(want)
        zs, zt = graph.model("student")(batch().x), graph.model("teacher")(batch().x)
        torch.testing.assert_close(value, KDLoss(temperature=want[1])(zs, zt))
    assert edge.weight is weight


def test_both_ends_of_a_schedule_are_judged_before_training():
    with pytest.raises(KdkitError, match="temperature must be"):
        bound(pair(), [Edge("kd", temperature={"linear": [4.0, -1.0]})])
    with pytest.raises(KdkitError, match="label_smoothing must lie"):
        bound(pair(), [Edge("ce", label_smoothing={"linear": [0.0, 2.0]})])


def test_a_weight_that_begins_at_nothing_is_a_weight():
    graph = bound(pair(), [Edge("ce", weight={"linear": [0.0, 1.0]}), Edge("kd", weight={"share": 0.5})])
    assert not graph.edges["ce"].silent
    assert bound(pair(), ["ce", Edge("kd", weight=0)]).edges["kd"].silent


def test_what_a_loss_builds_itself_from_is_no_schedule():
    with pytest.raises(KdkitError, match="rate cannot be a schedule, for the loss is built by it"):
        bound(pair(), [Edge("ft", taps="stage2", rate={"linear": [0.5, 0.25]})])


def test_what_an_edge_says_goes_before_what_the_data_tell():
    graph = bound(pair(), [Edge("crd", num_negatives=8, embed_dim=4, num_samples=100)], facts=Facts(5, 64))
    assert len(graph.edges["crd"].losses[0].teacher_bank) == 100


def test_an_ensemble_is_the_mean_of_probabilities_or_of_logits():
    nodes = {"t1": frozen(net(12, seed=1)), "t2": frozen(net(12, seed=5)), "student": net(8, seed=2)}
    x = batch().x
    for kind in ("arithmetic", "geometric"):
        graph = bound(nodes, [Edge("kd", source=["t1", "t2"], ensemble=kind, temperature=3.0)])
        zs = graph.model("student")(x)
        logits = [graph.model(n)(x) / 3 for n in ("t1", "t2")]
        p = torch.stack([z.softmax(1) for z in logits]).mean(0)
        if kind == "geometric":
            p = torch.stack(logits).mean(0).softmax(1)
        want = 9 * F.kl_div(F.log_softmax(zs / 3, 1), p, reduction="batchmean")
        torch.testing.assert_close(run(graph)["kd"], want)


@pytest.mark.parametrize("loss", ["mse", "kd", "dist"])
@pytest.mark.parametrize("ensemble", ["arithmetic", "geometric"])
def test_teachers_that_agree_are_one_teacher_also_for_losses_of_the_logits_themselves(loss, ensemble):
    nodes = {"t1": frozen(net(12, seed=1)), "t2": frozen(net(12, seed=1)), "student": net(8, seed=2)}
    graph = bound(nodes, [Edge(loss, source=["t1", "t2"], ensemble=ensemble), Edge(loss, source="t1", name="one")])
    said = run(graph)
    torch.testing.assert_close(said[loss], said["one"])


@pytest.mark.parametrize("probabilities", [False, True])
def test_an_ensemble_of_half_precision_is_rounded_once(probabilities):
    said, weights = [5 * torch.randn(64, 8).bfloat16() for _ in range(3)], torch.tensor([0.1, 0.3, 0.6])
    half = merged(said, weights, probabilities=probabilities, T=4.0)
    full = merged([z.float() for z in said], weights, probabilities=probabilities, T=4.0)
    assert torch.equal(half, full.to(half.dtype))


def test_an_inactive_edge_runs_nothing_and_gives_no_gradient():
    hint = Edge("hint", taps="stage1", head="conv1x1", when={"from": 5})
    graph = bound(pair(), ["ce", hint])
    assert set(run(graph, 0.0)) == {"ce"}
    assert set(graph.now.readers) == {"student"}
    graph.weighted(run(graph, 4.9)).backward()
    assert all(p.grad is None for p in graph.edges["hint"].parameters())
    assert set(run(graph, 5.0)) == {"ce", "hint"}


def test_an_inactive_node_stays_in_eval_mode_and_still_teaches():
    nodes = {"a": Node(net(8, seed=1), when={"to": 4}), "b": Node(net(8, seed=2))}
    graph = bound(nodes, ["ce", Edge("kd", source="a", target="b")])
    graph.train()
    run(graph, 0.0)
    assert graph.now.updates == ("a", "b")
    values = run(graph, 4.0)
    assert graph.now.updates == ("b",)
    assert not graph.model("a").training
    graph.weighted(values).backward()
    assert all(p.grad is None for p in graph.model("a").parameters())


def test_ema_follows_and_never_learns():
    graph = bound({"student": net(8, seed=2), "slow": ema("student", decay=0.9)}, ["ce", Edge("kd", source="slow")])
    slow, student = graph.model("slow"), graph.model("student")
    start = [p.clone() for p in slow.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
        student.bn1.running_mean.fill_(3.0)
    graph.move_ema(0.0)
    for p, old in zip(slow.parameters(), start, strict=True):
        torch.testing.assert_close(p, old + 0.1)
    assert float(slow.bn1.running_mean[0]) == 3.0
    graph.train()
    assert not slow.training
    assert any(k.startswith("models.slow") for k in graph.state_dict())
    assert graph.trained == ("student",)


def test_input_is_normalised_and_resized_for_each_node():
    seen = {}

    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net(8)

        def forward(self, x):
            seen["x"] = x
            return self.inner(x)

    facts = Facts(5, 64, None, mean=(0.5,) * 3, std=(0.25,) * 3)
    teacher = frozen(Probe(), mean=(0.4,) * 3, std=(0.2,) * 3, image_size=16)
    graph = bound({"teacher": teacher, "student": net(8)}, ["kd"], facts=facts)
    run(graph)
    raw = batch().x * 0.25 + 0.5
    want = F.interpolate((raw - 0.4) / 0.2, size=(16, 16), mode="bilinear", antialias=False)
    torch.testing.assert_close(seen["x"], want, rtol=1e-5, atol=1e-5)


def test_half_gradients_are_clipped_to_the_limit():
    """Their norm is beyond fp16's numbers: one over it was 0, and so was the gradient."""
    x = torch.randn(10_000).half().requires_grad_()
    clip_gradient(x, torch.tensor(65536.0)).backward(torch.full((10_000,), 1000.0).half())
    assert float(x.grad.float().norm()) == pytest.approx(65536, rel=1e-2)


def test_an_edges_gradient_is_clipped_at_its_tap():
    free, tied = (
        bound(pair(), [Edge("mse", weight=1000.0, taps="embedding", head="linear", clip=c)]) for c in (None, 0.01)
    )
    norms = []
    for graph in (free, tied):
        data = batch()
        outputs = graph.outputs(data)
        tap = next(v for e, v in outputs.items() if e.node == "student" and e.tap == "embedding")
        tap.retain_grad()
        graph.weighted(graph.terms(graph.now.updates, outputs, data)).backward()
        norms.append(float(tap.grad.norm()))
    assert norms[0] > 0.02
    assert norms[1] == pytest.approx(0.01, rel=1e-4)


def test_the_limit_is_one_of_unscaled_gradients():
    graph = bound(pair(), [Edge("mse", weight=1000.0, taps="embedding", head="linear", clip=0.01)])
    graph.loss_scale.fill_(1024.0)
    data = batch()
    outputs = graph.outputs(data)
    tap = next(v for e, v in outputs.items() if e.node == "student" and e.tap == "embedding")
    tap.retain_grad()
    (1024 * graph.weighted(graph.terms(graph.now.updates, outputs, data))).backward()
    assert float(tap.grad.norm()) / 1024 == pytest.approx(0.01, rel=1e-4)


def test_what_a_head_charges_is_part_of_the_loss():
    free, dear = (bound(pair(), [Edge("mse", taps="embedding", head={"sparse": {"l1": l1}})]) for l1 in (0.0, 3.0))
    [head] = dear.edges["mse"].heads
    said = head(*(tapped(dear.model(name), batch().x) for name in ("student", "teacher")))[0]
    torch.testing.assert_close(run(dear)["mse"], run(free)["mse"] + 3 * said.abs().mean())


def test_heads_of_models_in_double_precision_are_so_too():
    nodes = {"teacher": frozen(net(12, seed=1).double()), "student": net(8, seed=2).double()}
    graph, data = Graph(nodes, ["ce", Edge("mse", taps="embedding", head="linear")]), batch()
    data = Batch(data.x.double(), data.labels, data.index)
    graph.bind(data, FACTS, 10)
    assert {p.dtype for p in graph.edges["mse"].parameters()} == {torch.float64}
    assert run(graph, data=data)["mse"].dtype == torch.float64


def test_several_teachers_features_are_their_mean():
    nodes = {"t1": frozen(net(12, seed=1)), "t2": frozen(net(12, seed=5)), "student": net(12, seed=2)}
    graph = bound(nodes, [Edge("mse", source=["t1", "t2"], taps="embedding", ensemble="arithmetic")])
    student, *teachers = (tapped(graph.model(name), batch().x) for name in ("student", "t1", "t2"))
    torch.testing.assert_close(run(graph)["mse"], F.mse_loss(student, torch.stack(teachers).mean(0)))


def test_edges_of_one_loss_begin_with_heads_and_banks_of_their_own():
    several = {"num_negatives": 8, "embed_dim": 4}
    graph = bound(pair(), [Edge("crd", **several), Edge("crd", name="more", **several)])
    assert not torch.equal(graph.edges["crd"].losses[0].teacher_bank, graph.edges["more"].losses[0].teacher_bank)
    graph = bound(pair(), [Edge("hint", taps="stage1", head="conv1x1", name=name) for name in ("one", "other")])
    one, other = (next(graph.edges[name].heads.parameters()) for name in ("one", "other"))
    assert not torch.equal(one, other)


def test_peers_teach_each_other_by_the_mean():
    nodes = {n: net(8, seed=i) for i, n in enumerate("abc")}
    graph = bound(nodes, [Edge("dml", among=["a", "b", "c"])])
    graph.train()
    x = batch().x
    logits = {n: m(x) for n, m in nodes.items()}
    want = sum(
        F.kl_div(logits[k].log_softmax(1), logits[j].softmax(1), reduction="batchmean") / 2
        for k in "abc"
        for j in "abc"
        if j != k
    )
    torch.testing.assert_close(run(graph)["dml"], want)


@pytest.mark.parametrize(
    ("nodes", "edges", "words"),
    [
        (lambda: {"teacher": frozen(net(12, classes=7)), "student": net()}, ["kd"], "7 classes, student 5.*tune"),
        (
            lambda: {"teacher": frozen(net(12)), "student": net(classes=7)},
            ["kd"],
            "5 classes, student 7; the data have 5: build student with as many",
        ),
        (
            lambda: {"teacher": frozen(net()), "student": net()},
            [Edge("mse", taps="stage9")],
            "model .teacher.*unknown.*stage9",
        ),
        (lambda: pair(), [Edge("mse", taps="stage1")], "do not fit"),
        (lambda: pair(), ["ce", "ce"], "two losses are called 'ce'"),
        (lambda: {"my net": net()}, ["ce"], "plain word"),
        (lambda: {"student": net(), "slow": ema("pupil")}, ["ce"], "ema must name a trained model"),
        (lambda: pair(), [], "at least one loss"),
    ],
)
def test_what_would_fail_in_training_fails_before(nodes, edges, words):
    with pytest.raises(KdkitError, match=words):
        bound(nodes(), edges)


def test_a_loss_that_needs_an_index_says_so():
    graph = Graph(pair(), [Edge("crd", num_negatives=8, embed_dim=4)])
    data = batch()
    with pytest.raises(KdkitError, match=r"needs each sample's index; let the training batches be \(x, y, index\)"):
        graph.bind(Batch(data.x, data.labels), FACTS, 10)


class Indexed(nn.Module):
    """Does without each sample's index, and without its label."""

    def forward(self, student, teacher, index=None, labels=None):
        assert index is labels is None
        return F.mse_loss(student, teacher)


def test_a_loss_that_can_do_without_an_index_is_given_none():
    graph = Graph(pair(), [Edge(Indexed)])
    graph.bind(Batch(batch().x), FACTS, 10)
    run(graph, data=Batch(batch().x))


class Reusing(nn.Module):
    """Sends a gradient through its teacher's classifier."""

    tap = "embedding"

    def forward(self, student, teacher, teacher_classifier):
        return F.mse_loss(teacher_classifier(student), teacher_classifier(teacher))


def test_a_classifier_that_is_lent_belongs_to_what_does_not_learn():
    bound({"a": frozen(net(8, seed=1)), "b": net(8, seed=2)}, [Edge(Reusing, source="a")])
    with pytest.raises(KdkitError, match="reads its teacher's classifier, which must not learn; freeze it"):
        bound({"a": net(8, seed=1), "b": net(8, seed=2)}, ["ce", Edge(Reusing, source="a", target="b")])


def test_each_teacher_of_a_crd_edge_gets_its_own_banks():
    nodes = {"t1": frozen(net(12, seed=1)), "t2": frozen(net(10, seed=5)), "student": net(8, seed=2)}
    options = {"num_negatives": 8, "embed_dim": 4, "num_samples": 64}
    both = bound(nodes, [Edge("crd", source=["t1", "t2"], **options)])
    one, two = both.edges["crd"].losses
    assert one.embed_teacher is not two.embed_teacher
    assert not torch.equal(one.teacher_bank, two.teacher_bank)
    both.train()
    value = run(both)["crd"]
    rest = bound(nodes, [Edge("crd", source=["t1", "t2"], **options)]).train()
    x, index = batch().x, batch().index
    student = tapped(nodes["student"].train(), x)
    parts = [
        loss(student, tapped(nodes[name].module, x), None, index=index)
        for loss, name in zip(rest.edges["crd"].losses, ("t1", "t2"), strict=True)
    ]
    torch.testing.assert_close(value, sum(parts))


def test_a_second_binding_keeps_the_banks_unless_the_data_are_others():
    graph = bound(pair(), [Edge("crd", num_negatives=8, embed_dim=4)])
    bank = graph.edges["crd"].losses[0].teacher_bank.zero_()
    graph.bind(batch(), FACTS, 10)
    assert torch.equal(graph.edges["crd"].losses[0].teacher_bank, bank)
    graph.bind(batch(), Facts(num_classes=5, num_samples=70), 10)
    assert len(graph.edges["crd"].losses[0].teacher_bank) == 70


class Remembering(nn.Module):
    """A ready loss with a memory."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, student, labels):
        self.seen += 1
        return F.cross_entropy(student, labels)


def test_each_target_of_a_ready_loss_has_a_memory_of_its_own():
    graph = bound({"a": net(8, seed=1), "b": net(8, seed=2)}, [Edge(Remembering(), target=["a", "b"])])
    run(graph)
    assert [int(loss.seen) for loss in graph.edges["Remembering"].losses] == [1, 1]


def tapped(model, x):
    return Taps(model, ["embedding"], x)(x)["embedding"]


def test_an_input_by_name_where_a_batch_has_them_by_number_is_told():
    x = batch().x
    with pytest.raises(KdkitError, match="`input: view1`: a batch holds 2 inputs by number; say input: 0 or 1"):
        Graph({"a": Node(net(), input="view1")}, [Edge("ce")], 0).bind(Batch([x, x], batch().labels), FACTS, 1)


class OnlyInTraining(nn.Module):
    """Adds noise to its maps in place, in training alone, where no dry run in evaluation mode sees it."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        maps = self.conv(x)
        if self.training:
            maps[:, :2] += 1
        return self.fc(maps.mean((2, 3)))


def test_what_training_alone_changes_in_place_is_tapped_as_it_was():
    student = OnlyInTraining()
    graph = bound({"teacher": frozen(OnlyInTraining()), "student": student}, [Edge("mse", taps="conv"), "ce"])
    graph.train()
    found = {str(end): value for end, value in graph.outputs(batch()).items()}
    torch.testing.assert_close(found["student.conv"], student.conv(batch().x))


def test_what_does_not_train_has_no_time_to():
    for made in (frozen, lambda module, **words: ema("student", **words)):
        with pytest.raises(KdkitError, match="does not train, so it has no time to; leave `when` out"):
            made(net(4), when={"from": 3})


def test_tall_images_are_made_smaller_without_aliasing():
    """Stripes of one pixel, of mean ½: every second row alone would be black."""
    for height in (128, 96):
        stripes = torch.zeros(1, 3, height, 32)
        stripes[:, :, 1::2] = 1
        adapter = Adapter(Node(net(4), image_size=32), Facts(num_classes=5))
        assert (adapter(stripes) - 0.5).abs().max() < 0.1


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.4, 0.25)])
def test_a_model_whose_mean_or_deviation_alone_is_another_is_fed_what_it_expects(mean, std):
    adapter = Adapter(Node(net(4), mean=(mean,) * 3, std=(std,) * 3), Facts(5, mean=(0.5,) * 3, std=(0.25,) * 3))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(adapter(x), (x * 0.25 + 0.5 - mean) / std)


@pytest.mark.parametrize("told", [{}, {"mean": (0.5,) * 3}, {"std": (0.25,) * 3}])
def test_a_model_of_another_normalisation_wants_to_know_all_of_the_datas(told):
    with pytest.raises(KdkitError, match="the data do not tell theirs"):
        Adapter(Node(net(4), mean=(0.4,) * 3, std=(0.2,) * 3), Facts(5, **told))


def test_the_first_samples_of_a_batch_in_each_of_its_parts():
    x, rows = batch(4).x, torch.arange(4)
    first = Batch({"one": x, "two": [x, x]}, rows, rows, {"teacher": rows}).first(1)
    sizes = [len(part) for part in (first.x["one"], *first.x["two"], first.labels, first.index, first.rows["teacher"])]
    assert sizes == [1] * 6


@pytest.mark.parametrize(
    "edge", [Edge("hint", taps="stage1", head="conv1x1"), Edge("crd", num_negatives=8, embed_dim=4)]
)
def test_heads_and_banks_follow_from_the_seed(edge):
    one, same, other = (bound(pair(), [edge], seed=seed).edges.state_dict() for seed in (0, 0, 1))
    drawn = [key for key, value in one.items() if value.ndim > 1 and not value.isnan().any()]
    assert drawn
    assert all(torch.equal(one[key], same[key]) and not torch.equal(one[key], other[key]) for key in drawn)
