"""Compiled and recorded steps teach what plain ones teach.

There may be no GPU here: a stand-in for its recorder keeps the tensor operations of one step, and does these again, on
the same tensors: Python runs once, as it does for a CUDA graph.
"""

import os

import pytest
import pytorch_lightning as pl
import torch

import kdkit
from kdkit import data
from kdkit.graph.factors import set_factor
from kdkit.losses import PKTLoss
from kdkit.registry import KdkitError
from kdkit.train import captured as recording
from kdkit.train.captured import Compiled
from kdkit.train.meters import TermSums
from kdkit.train.on_cuda import OnCuda
from kdkit.train.optim import NodeOptimizers
from tests.nets import net
from tests.tape import Tape
from tests.train.running import compiled_by, fit, loader, pair, trainer

CRD = kdkit.Edge("crd", num_negatives=8, embed_dim=8)
FADING = kdkit.Edge("kd", weight={"linear": [1.0, 0.0]}, temperature={"linear": [4.0, 2.0]})
LATE = kdkit.Edge("at", when={"from": 1})


@pytest.fixture
def recorded(monkeypatch):
    """Every recording that was made, and how often it was started."""
    made = []

    def record(work):
        entry, first = [0], [True]
        with Tape() as tape:
            found = work()
        made.append(entry)

        def start():
            entry[0] += 1
            if not first[0]:  # the tape's own run was the first
                tape.again()
            first[0] = False

        return start, found

    use(monkeypatch, record)
    return made


def use(monkeypatch, record):
    monkeypatch.setattr(OnCuda, "run", lambda self, work: work())
    monkeypatch.setattr(OnCuda, "record", lambda self, work: record(work))
    monkeypatch.setattr("kdkit.train.distiller.recordable", lambda distiller: distiller.compiles is not False)
    monkeypatch.setattr(recording, "recordable", lambda distiller: distiller.compiles is not False)


def trained(edges, compile, epochs=3, nodes=None, lr=None, **options):
    made = kdkit.Distiller(nodes or pair(), edges, lr=lr or {"cosine": [0.1, 0.0]}, compile=compile)
    run = fit(made, loader(n=72), epochs=epochs, **options)
    return made, run


def state(made):
    return {name: value.clone() for name, value in made.state_dict().items()}


def assert_same(one, other, **tolerance):
    one, other = state(one), state(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("edges", "started"),
    [
        (["ce", FADING], 9),
        (["ce", CRD], 9),
        (["ce", LATE, "rkd"], 1 + 5),
        (["ce", kdkit.Edge("hint", head="conv_bn_relu")], 9),
    ],
    ids=["schedules", "crd", "phases", "head"],
)
def test_a_recorded_step_is_the_step(recorded, edges, started):
    """Banks, Z, statistics and weights; 72 samples in batches of 16 end with one of 8, which is recorded by itself."""
    plain, first = trained(edges, compile=False)
    quick, second = trained(edges, compile="auto")
    assert first.global_step == second.global_step == 15
    assert sum(entry[0] for entry in recorded) == started
    assert_same(plain, quick, rtol=1e-5, atol=1e-6)
    assert first.callback_metrics.keys() == second.callback_metrics.keys()
    for name, value in first.callback_metrics.items():
        torch.testing.assert_close(value, second.callback_metrics[name], rtol=1e-4, atol=1e-5)


class Deafen(pl.Callback):
    """From the sixth step on, b listens half as much, and a not at all to the labels."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 5:
            set_factor(module.graph, "dml", 0.5, sources="a", target="b")
            set_factor(module.graph, "ce", 0, target="a")


@pytest.mark.parametrize("compile", ["auto", True])
def test_a_factor_that_a_callback_sets_is_seen(recorded, monkeypatch, compile):
    compiled_by(monkeypatch, "eager")

    def run(compile, *callbacks):
        nodes = {"a": net(8, seed=1), "b": net(8, seed=2)}
        edges = ["ce", kdkit.Edge("dml", among=["a", "b"])]
        return trained(edges, compile, epochs=2, nodes=nodes, callbacks=list(callbacks))[0]

    plain = run(False, Deafen())
    assert_same(plain, run(compile, Deafen()), rtol=1e-4, atol=1e-5)
    assert plain.graph.edges["dml"].factors.tolist() == [0.5, 1]
    assert not torch.allclose(plain.b.fc.weight, run(False).b.fc.weight, rtol=1e-3)


def test_whole_and_last_batches_are_two_recordings(recorded):
    trained(["ce", "kd"], compile="auto", epochs=6)
    warm = recording.WARM
    assert [entry[0] for entry in recorded] == [6 * 4 - warm, 6 - warm]


def test_clipping_and_adamw_are_recorded_too(recorded):
    def nodes():
        return {"teacher": kdkit.frozen(net(12, seed=1)), "student": net(8, seed=2)}

    def run(compile):
        made = kdkit.Distiller(nodes(), ["ce", "kd"], optimizer={"name": "adamw"}, lr=1e-2, compile=compile)
        fit(made, loader(n=64), epochs=3, gradient_clip_val=0.05)
        return made

    plain, quick = run(False), run("auto")  # not whole: a bias before BatchNorm has no gradient but rounding
    torch.testing.assert_close(plain.student.fc.weight, quick.student.fc.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.student.conv2.weight, quick.student.conv2.weight, rtol=1e-4, atol=1e-5)
    assert recorded[0][0] == 12 - recording.WARM


def test_cached_teachers_are_recorded(recorded, tmp_path):
    def run(compile, cache):
        teacher, student = net(8, seed=1, classes=10), net(8, seed=2, classes=10)
        made = kdkit.Distiller(
            {"teacher": kdkit.frozen(teacher, cache=cache), "student": student}, ["ce", "kd"], lr=0.05, compile=compile
        )
        fit(made, data.build("digits", image_size=8, subset=200, batch_size=50, padding=1), epochs=3)
        return made

    assert_same(run(False, False), run("auto", {"dtype": "float32", "folder": str(tmp_path)}), rtol=1e-5, atol=1e-6)
    assert recorded[0][0] == 12 - recording.WARM


@pytest.mark.parametrize(
    ("words", "options", "reason"),
    [
        ({}, {"accumulate_grad_batches": 2}, "gradients are accumulated"),
        ({"update": "sequential"}, {}, "one after the other"),
        ({"optimizer": {"name": "rmsprop"}}, {}, "optimizer of student cannot be recorded"),
        ({"optimizer": {"name": "sgd", "foreach": True}}, {}, "optimizer of student cannot be recorded"),
    ],
)
def test_what_cannot_be_recorded_says_why_and_trains(recorded, monkeypatch, words, options, reason):
    told = []
    monkeypatch.setattr(recording, "note", told.append)
    made = kdkit.Distiller(pair(), ["ce", "kd"], lr=0.01, compile="auto", **words)
    before = made.student.fc.weight.clone()
    fit(made, loader(n=32), epochs=1, **options)
    assert reason in told[0]
    assert not recorded
    assert not torch.equal(before, made.student.fc.weight)


def test_dropout_is_not_recorded(recorded, monkeypatch):
    told = []
    monkeypatch.setattr(recording, "note", told.append)
    trained(["ce", "kd"], "auto", 1, {"teacher": kdkit.frozen(net(12, seed=1)), "student": net(8, dropout=0.5)})
    assert "dropout" in told[0]


def test_a_failed_recording_goes_on_without(monkeypatch, recorded):
    """Nothing of it counts: on a GPU it has computed nothing, and its gradients are memory that was never written."""

    def fails(work):
        holder = made[0]
        kept = {name: value.clone() for name, value in holder.state_dict().items()}
        move, zero = NodeOptimizers.move, NodeOptimizers.zero_grad
        NodeOptimizers.move = NodeOptimizers.zero_grad = lambda *_: None
        work()
        NodeOptimizers.move, NodeOptimizers.zero_grad = move, zero
        for parameter in holder.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(1e3)
        holder.load_state_dict(kept)
        holder.sums.clear()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    told = []
    monkeypatch.setattr(recording, "note", told.append)
    use(monkeypatch, fails)
    made = [kdkit.Distiller(pair(), ["ce", "kd"], lr={"cosine": [0.1, 0.0]}, compile="auto")]
    fit(made[0], loader(n=72), epochs=3)
    assert_same(made[0], trained(["ce", "kd"], False)[0], rtol=1e-5, atol=1e-6)
    assert told == ["training without a CUDA graph: operation not permitted when stream is capturing"]


class StopAfter(pl.Callback):
    """Saves after the second epoch."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, _):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("first", "second"), [(False, "auto"), ("auto", False), ("auto", "auto")])
def test_a_checkpoint_serves_both(recorded, tmp_path, first, second):
    whole, _ = trained(["ce", CRD], first, epochs=4, callbacks=[StopAfter(tmp_path / "half.ckpt")])
    resumed = kdkit.Distiller(pair(), ["ce", CRD], lr={"cosine": [0.1, 0.0]}, compile=second)
    trainer(4).fit(resumed, loader(n=72), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    assert_same(whole, resumed, rtol=1e-5, atol=1e-6)


NIGHTLY = pytest.mark.skipif("KDKIT_NIGHTLY" not in os.environ, reason="minutes of Inductor: set KDKIT_NIGHTLY=1")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NIGHTLY)])
@pytest.mark.parametrize("edges", [["ce", FADING], ["ce", CRD], ["ce", LATE]], ids=["schedules", "crd", "phases"])
@pytest.mark.filterwarnings("ignore")  # Inductor's
def test_a_compiled_step_is_the_step(monkeypatch, edges, backend):
    made = compiled_by(monkeypatch, backend, fullgraph=True)
    assert_same(trained(edges, True)[0], trained(edges, False)[0], rtol=1e-5, atol=1e-6)
    assert len(made) == (2 if LATE in edges else 1)  # one for each phase


class Diagonal:
    """Its gradient saves a matrix and, as another tensor, its diagonal."""

    def value(self, x):
        products = x @ x.mT
        lengths = products.diagonal(dim1=1, dim2=2)
        return (products * lengths[:, :, None] * lengths[:, None]).square().mean()


@pytest.mark.filterwarnings("ignore")  # Inductor's
def test_what_was_saved_for_the_gradient_is_not_written_into():
    x = torch.randn(4, 5, 16, requires_grad=True)
    (expected,) = torch.autograd.grad(Diagonal().value(x), x)
    with torch._inductor.config.patch(force_disable_caches=True):
        (found,) = torch.autograd.grad(Compiled(Diagonal().value, lambda: 0.0)(x), x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_every_distiller_of_a_process_is_compiled(monkeypatch):
    """Dynamo counts by code object, and gives up after eight, here after two."""
    ran = []

    def counting(graph, _):
        ran.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled_by(monkeypatch, counting)
    with torch._dynamo.config.patch(recompile_limit=2):
        for i in range(3):
            before = len(ran)
            trained(["ce", "kd"], True, epochs=1)
            assert len(ran) > before, i


@pytest.mark.parametrize("compile", ["auto", True])
def test_a_batch_that_no_loss_can_compare(recorded, monkeypatch, compile):
    compiled_by(monkeypatch, "eager")
    made = kdkit.Distiller(pair(), ["rkd"], lr=0.05, compile=compile)
    plain = kdkit.Distiller(pair(), ["rkd"], lr=0.05)
    for distiller in (made, plain):
        fit(distiller, loader(n=66), epochs=5)  # the last batch holds two samples
    assert_same(plain, made, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_plain_checkpoint_does_not_undo_what_a_recording_needs(recorded, tmp_path, name):
    def made(compile):
        return kdkit.Distiller(pair(), ["ce", "kd"], optimizer={"name": name}, lr=0.01, compile=compile)

    fit(made(False), loader(), epochs=4, callbacks=[StopAfter(tmp_path / "half.ckpt")])
    resumed = made("auto")
    trainer(4).fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    (group,) = resumed.optimizers().optimizer.of["student"].param_groups
    assert group["fused"] is True
    assert group.get("capturable", True) is True
    assert isinstance(group["lr"], torch.Tensor)
    assert recorded


def test_a_callback_that_looks_at_gradients_sees_them(recorded, monkeypatch):
    class Gradients(pl.Callback):
        seen = 0

        def on_before_optimizer_step(self, trainer, made, optimizer):
            self.seen += made.student.fc.weight.grad is not None

    told, watch = [], Gradients()
    monkeypatch.setattr(recording, "note", told.append)
    trained(["ce", "kd"], "auto", epochs=1, callbacks=[watch])
    assert watch.seen == 5
    assert "Gradients looks at gradients" in told[0]


def test_a_lambda_callback_that_looks_at_gradients_sees_them(recorded):
    seen = []
    watch = pl.callbacks.LambdaCallback(
        on_before_optimizer_step=lambda _, made, __: seen.append(made.student.fc.weight.grad)
    )
    trained(["ce", "kd"], "auto", epochs=1, callbacks=[watch])
    assert len(seen) == 5
    assert not recorded


def test_a_distiller_of_your_own_that_looks_at_gradients_sees_them(recorded, monkeypatch):
    class Watchful(kdkit.Distiller):
        seen = 0

        def on_after_backward(self):
            self.seen += self.student.fc.weight.grad is not None

    told = []
    monkeypatch.setattr(recording, "note", told.append)
    made = Watchful(pair(), ["ce", "kd"], lr=0.05, compile="auto")
    fit(made, loader(), epochs=1)
    assert made.seen == len(loader())
    assert "Watchful looks at gradients" in told[0]
    assert not recorded


def test_sums_of_a_checkpoint_move_with_the_terms():
    sums = TermSums()
    sums.load_state_dict({"sums": {"ce": torch.tensor(2.0)}, "counts": {"ce": 1}}, torch.device("cpu"))
    sums.add({"ce": torch.zeros((), device="meta")})
    assert sums.sums["ce"].device.type == "meta"


def test_steps_that_count_nothing_are_remembered_in_a_checkpoint():
    sums, again = TermSums(), TermSums()
    for value, good in ((2.0, True), (9.0, False)):
        sums.good = torch.tensor(good)
        sums.add({"ce": torch.tensor(value)})
    again.load_state_dict(sums.state_dict(), torch.device("cpu"))
    assert float(again.means()["ce"]) == 2.0


def test_gradients_of_full_precision_losses_are_not_autocast():
    x = torch.randn(32, 64, requires_grad=True)
    t = torch.randn(32, 64)
    exact = torch.autograd.grad(PKTLoss()(x, t), x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        recording.backward(PKTLoss()(x, t))
    torch.testing.assert_close(x.grad, exact, rtol=1e-5, atol=1e-8)


def test_nor_are_they_where_the_losses_are_compiled(monkeypatch):
    class Lesson:
        def lesson(self, x, t):
            return PKTLoss()(x, t)

    compiled_by(monkeypatch, "aot_eager")
    x, t = torch.randn(32, 64, requires_grad=True), torch.randn(32, 64)
    exact = torch.autograd.grad(PKTLoss()(x, t), x)[0]
    compiled = recording.Compiled(Lesson().lesson, lambda: 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        recording.backward(compiled(x, t))
    torch.testing.assert_close(x.grad, exact, rtol=1e-5, atol=1e-8)


def test_auto_is_off_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    made, _ = trained(["ce", "kd"], "auto", epochs=1)
    assert made.compiled is made.captured is None


def test_wrong_words():
    with pytest.raises(KdkitError, match="compile must be True, False or 'auto'"):
        kdkit.Distiller(pair(), ["ce"], compile="yes")
    with pytest.raises(KdkitError, match="one after the other are not compiled"):
        kdkit.Distiller(pair(), ["ce"], compile=True, update="sequential")
