"""Weights that are shares of the gradient: against the gradients themselves, over modes, batches, ranks and resumes."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kdkit
from kdkit.graph import share
from kdkit.losses import MSELoss
from kdkit.registry import KdkitError
from kdkit.train import captured as recording
from tests.graph.test_graph import bound
from tests.nets import loader, net
from tests.train.running import fit, pair, trainer
from tests.train.test_captured import recorded  # noqa: F401

STILL = {"lr": 0.0, "optimizer": {"name": "sgd"}}
AT = {"share": 0.4}


@pytest.fixture
def few(monkeypatch):
    """Six steps to measure instead of a hundred."""
    monkeypatch.setattr(share, "STEPS", 6)


def told(distiller, data):
    """Of a student in training mode: the mean over batches of ‖weight · ∂term/∂θ‖ of each edge, by plain autograd."""
    graph, sums = distiller.graph, {}
    graph.train()
    batches = [kdkit.train.distiller.Batch.of(b) for b in data]
    for batch in batches:
        with torch.enable_grad():
            terms = graph.terms(graph.now.updates, graph.outputs(batch), batch)
        for name, term in terms.items():
            theirs = list(distiller.student.parameters())
            found = torch.autograd.grad(graph.edges[name].weight * term, theirs, retain_graph=True, allow_unused=True)
            norm = torch.cat([g.flatten() for g in found if g is not None]).norm()
            sums[name] = sums.get(name, 0.0) + float(norm) / len(batches)
    return sums


def shares(distiller, data):
    sums = told(distiller, data)
    return {name: value / sum(sums.values()) for name, value in sums.items()}


def linear(seed, inputs=6, classes=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


def test_the_closed_form(few):
    """Logits W·x: the gradient of a loss is Xᵀ·∂loss/∂logits, written out for cross-entropy and for squares."""
    teacher, student = linear(0), linear(1)
    x, y = torch.randn(30, 6), torch.arange(30) % 4
    data = [(x[i : i + 10], y[i : i + 10]) for i in (0, 10, 20)]
    ce, mse = [], []
    for a, b in data:
        z, t = student(a).detach(), teacher(a).detach()
        for norms, g in ((ce, (z.softmax(1) - F.one_hot(b, 4)) / 10), (mse, 2 * (z - t) / z.numel())):
            norms.append(float((g.T @ a).square().sum() + g.sum(0).square().sum()) ** 0.5)
    wanted = 0.25 * (0.5 * sum(ce)) / 0.75 / sum(mse)
    made = kdkit.Distiller(
        {"teacher": kdkit.frozen(teacher), "student": student},
        [kdkit.Edge("ce", weight=0.5), kdkit.Edge("mse", weight={"share": 0.25})],
        **STILL,
    )
    run = fit(made, torch.utils.data.DataLoader(list(zip(x, y, strict=True)), batch_size=10), epochs=3)
    assert float(made.graph.edges["mse"].weight) == pytest.approx(wanted, rel=1e-5)
    assert float(run.callback_metrics["weight/mse"]) == pytest.approx(wanted, rel=1e-5)


def test_a_weight_that_moves_by_a_schedule_is_logged_as_the_last_step_had_it():
    edges = ["ce", kdkit.Edge("kd", weight={"linear": [1, 0]}), kdkit.Edge("at", weight=2)]
    made = kdkit.Distiller(pair(), edges, **STILL)
    run = fit(made, epochs=2)
    steps = run.num_training_batches * 2
    assert float(run.callback_metrics["weight/kd"]) == pytest.approx(1 / steps)
    assert not {"weight/ce", "weight/at"} & run.callback_metrics.keys()


def test_two_shares_and_the_rest(few):
    edges = ["ce", kdkit.Edge("kd", weight={"share": 0.5}), kdkit.Edge("at", weight={"share": 0.2})]
    made = kdkit.Distiller(pair(), edges, **STILL)
    fit(made, epochs=2)
    found = shares(made, loader())
    assert (found["ce"], found["kd"], found["at"]) == pytest.approx((0.3, 0.5, 0.2), rel=0.02)


def test_a_hundred_steps_then_frozen(caplog):
    made = kdkit.Distiller(pair(), ["ce", kdkit.Edge("at", weight=AT)], lr=0.001)
    seen = []

    class Watch(kdkit.train.distiller.pl.Callback):
        def on_train_batch_end(self, *_):
            seen.append(float(made.graph.edges["at"].weight))

    with caplog.at_level(logging.INFO, "kdkit"):
        fit(made, epochs=30, callbacks=[Watch()])
    assert len(seen) == 120
    assert len(set(seen[:100])) > 90
    assert set(seen[99:]) == {seen[99]}
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("kdkit")]
    assert lines == [f"at: share 0.4 is a weight of {seen[99]:.6g} from now on"]


def pulled(mode, batch_size=64):
    """The share that AT has in batches of that size, and its weight, after a hundred steps."""
    at = kdkit.Edge("at", mode=mode, weight=AT)
    nodes = {"teacher": kdkit.frozen(net(12, seed=1)), "student": net(8, seed=2)}
    made, data = kdkit.Distiller(nodes, ["ce", at], **STILL), loader(batch_size=batch_size, n=512)
    fit(made, data, epochs=-(-101 // len(data)))
    assert not made.graph.edges["at"].calibration.open
    return shares(made, data)["at"], float(made.graph.edges["at"].weight)


def test_code_and_paper_and_batches_of_64_and_256_pull_alike():
    """The two modes' weights are far apart; the share of the gradient is the one that was asked for, in each."""
    (code, heavy), (paper, light), (large, _) = pulled("code"), pulled("paper"), pulled("code", 256)
    assert (code, paper, large) == pytest.approx((0.4, 0.4, 0.4), rel=0.02)
    assert heavy > 5 * light


@pytest.mark.parametrize("stop", [0, 1], ids=["while measuring", "when frozen"])
def test_resume_is_exact(tmp_path, few, stop):
    class Save(kdkit.train.distiller.pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == stop:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    def make():
        return kdkit.Distiller(pair(), ["ce", kdkit.Edge("kd", weight=AT)], lr={"cosine": [0.1, 0.0]})

    whole, rest = make(), make()
    fit(whole, epochs=3, callbacks=[Save()])
    trainer(epochs=3).fit(rest, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    assert rest.graph.edges["kd"].calibration.steps == 6
    for (key, a), b in zip(whole.state_dict().items(), rest.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def test_nothing_is_measured_afterwards(few, monkeypatch):
    made, calls, real = kdkit.Distiller(pair(), ["ce", kdkit.Edge("kd", weight=AT)], lr=0.01), [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or real(*a, **k))
    fit(made, epochs=4)
    assert len(calls) == 2 * 6


def test_steps_are_recorded_once_the_weight_stands(few, recorded):  # noqa: F811
    def run(compile):
        made = kdkit.Distiller(pair(), ["ce", kdkit.Edge("kd", weight=AT)], lr=0.01, compile=compile)
        fit(made, loader(n=64), epochs=4)
        return made

    quick, plain = run("auto"), run(False)
    assert [entry[0] for entry in recorded] == [16 - 6 - recording.WARM]
    torch.testing.assert_close(quick.student.fc.weight, plain.student.fc.weight, rtol=1e-5, atol=1e-6)


def test_a_later_edge_is_measured_in_its_own_first_steps(few, recorded):  # noqa: F811
    late = kdkit.Edge("at", weight={"share": 0.3}, when={"from": 4})
    edges = ["ce", kdkit.Edge("kd", weight=AT), late]
    made = kdkit.Distiller(pair(), edges, compile="auto", **STILL)
    fit(made, epochs=8)
    found = shares(made, loader())
    assert found["at"] == pytest.approx(0.3, rel=0.02)
    assert found["kd"] / (found["kd"] + found["ce"]) == pytest.approx(0.4, rel=0.02)  # as before `at` came


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_peers(few, update):
    nodes = {"a": net(8, seed=1), "b": net(10, seed=2)}
    made = kdkit.Distiller(nodes, ["ce", kdkit.Edge("dml", among=["a", "b"], weight=AT)], update=update, lr=0.01)
    fit(made, epochs=3)
    assert made.graph.edges["dml"].calibration.steps == 6
    assert float(made.graph.edges["dml"].weight) > 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(few, precision):
    made = kdkit.Distiller(pair(), ["ce", kdkit.Edge("kd", weight=AT)], **STILL)
    fit(made, epochs=2, precision=precision)
    exact = kdkit.Distiller(pair(), ["ce", kdkit.Edge("kd", weight=AT)], **STILL)
    fit(exact, epochs=2)
    assert float(made.graph.edges["kd"].weight) == pytest.approx(float(exact.graph.edges["kd"].weight), rel=0.03)


def test_accumulation_and_a_plain_clip_change_no_share(few):
    made = kdkit.Distiller(pair(), ["ce", kdkit.Edge("kd", weight=AT)], **STILL)
    fit(made, epochs=2, accumulate_grad_batches=2)
    assert shares(made, loader())["kd"] == pytest.approx(0.4, rel=0.02)
    clipped = [kdkit.Edge("ce", clip=1e-3), kdkit.Edge("kd", weight=AT)]
    made = kdkit.Distiller(pair(), clipped, **STILL)
    fit(made, epochs=2)
    assert shares(made, loader())["kd"] == pytest.approx(0.4, rel=0.02)


class Overflow(nn.Module):
    """Squares whose gradient is not finite when it is measured first."""

    odd = 1

    def forward(self, student, teacher):
        value = (student - teacher).square().mean()
        value.register_hook(self.spoil)
        return value

    def spoil(self, gradient):
        self.odd -= 1
        return gradient * float("inf") if self.odd == 0 else gradient


def test_a_measurement_that_is_not_finite_is_passed_over(few):
    spoilt, plain = (
        kdkit.Distiller(pair(), ["ce", kdkit.Edge(loss, name="odd", weight=AT)], **STILL)
        for loss in (Overflow(), MSELoss())
    )
    fit(spoilt, epochs=2)
    fit(plain, epochs=2)
    assert float(spoilt.graph.edges["odd"].weight) == pytest.approx(float(plain.graph.edges["odd"].weight), rel=0.1)


@pytest.mark.parametrize(("own", "whole"), [(0, 4), (2, 0), (torch.inf, 4), (2, torch.nan), (2, torch.inf)])
def test_a_step_that_tells_nothing_moves_no_weight(own, whole):
    measured = share.Calibration(share.Share(0.5))
    assert measured.add(torch.tensor(2.0), torch.tensor(8.0)) == 2
    assert measured.add(torch.tensor(float(own)), torch.tensor(float(whole))) == 2
    assert measured.add(torch.tensor(2.0), torch.tensor(4.0)) == 1.5


def test_no_gradient_no_share(few):
    nodes = {"teacher": kdkit.frozen(linear(1, 192, 5)), "student": linear(1, 192, 5)}
    made = kdkit.Distiller(nodes, ["ce", kdkit.Edge("mse", weight=AT)], **STILL)
    with pytest.raises(KdkitError, match=r"'mse': in the first steps .* no gradient to student.*give it a number"):
        fit(made, epochs=3)


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        ([kdkit.Edge("kd", weight=AT)], "'kd': share 0.4 needs a loss beside it"),
        ([kdkit.Edge("ce", weight=0), kdkit.Edge("kd", weight=AT)], "needs a loss beside it"),
        ([kdkit.Edge("kd", weight=AT), kdkit.Edge("at", weight=AT)], "needs a loss beside it"),
        (["ce", kdkit.Edge("kd", weight=AT), kdkit.Edge("at", weight={"share": 0.6})], r"got 0.4 \(kd\) \+ 0.6 \(at\)"),
        (
            ["ce", *(kdkit.Edge("kd", name=f"kd{x}", weight={"share": x / 10}) for x in (7, 2, 1))],
            "leave something to the other",
        ),
        ([kdkit.Edge("ce", when={"from": 1}), kdkit.Edge("kd", weight=AT)], "at the same time"),
    ],
)
def test_shares_that_cannot_be(edges, words):
    with pytest.raises(KdkitError, match=words):
        fit(kdkit.Distiller(pair(), edges, lr=0.01), epochs=2)


def test_a_weight_that_was_measured_may_stay_alone():
    nodes = kdkit.Distiller(pair(), ["ce"], lr=0.1).graph.nodes
    bound(nodes, [kdkit.Edge("ce", when={"to": 5}), kdkit.Edge("kd", weight=AT)])


def test_a_weight_may_move_until_its_last_measured_step_is_over(few):
    measured = share.Calibration(share.Share(0.5))
    seen = [(measured.begin(), measured.open) for _ in range(8)]
    assert seen == [(True, True), *[(False, True)] * 5, (True, False), (False, False)]


def test_shares_of_two_wholes():
    nodes = {"teacher": kdkit.frozen(net(8, seed=0)), "a": net(8, seed=1), "b": net(8, seed=2)}
    edges = ["ce", kdkit.Edge("kd", weight=AT), kdkit.Edge("at", target="a", weight=AT)]
    with pytest.raises(KdkitError, match="one whole; these teach a, b and a"):
        fit(kdkit.Distiller(nodes, edges, lr=0.01), epochs=1)
    made = kdkit.Distiller(nodes, ["ce", *(kdkit.Edge("kd", target=n, name=n + "kd", weight=AT) for n in "ab")], lr=0.1)
    fit(made, epochs=1)
    assert {f"weight/{n}kd" for n in "ab"} <= made.trainer.callback_metrics.keys()


@pytest.mark.parametrize("wrong", [0, 1, 1.5, -0.1, "half", True, None, float("nan")])
def test_what_is_no_share(wrong):
    with pytest.raises(KdkitError, match="a share must lie between 0 and 1, got"):
        kdkit.Edge("kd", weight={"share": wrong})


def test_share_and_clip():
    with pytest.raises(KdkitError, match="share and clip both"):
        kdkit.Edge("kd", weight=AT, clip=1.0)
    with pytest.raises(KdkitError, match="unknown schedule 'share'"):
        kdkit.Edge("kd", clip={"share": 0.4})
