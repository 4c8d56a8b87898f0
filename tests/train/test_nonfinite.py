"""Numbers that are not finite: told with their samples, saved, left out as if the step had not been, or gone back from.

The oracle of `skip` and of `rollback` is the same run with steps that a callback leaves out by hand.
"""

import copy
import logging

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

import kdkit
from kdkit.train import finite
from kdkit.train.arriving import LAG, Arriving, Seen
from kdkit.train.finite import FiniteWatch
from kdkit.train.meters import NonFiniteLossError
from tests.nets import Blobs, net
from tests.train.running import fit, trainer
from tests.train.test_captured import recorded  # noqa: F401  a fixture

CRD = kdkit.Edge("crd", num_negatives=8, embed_dim=8)


def spoilt(*samples, n=64, batch_size=16, value=float("nan")):
    """Batches in order; one pixel of some samples is not finite."""
    data = Blobs(n=n)
    for sample in samples:
        data.x[sample, 0, 0, 0] = value
    return DataLoader(data, batch_size=batch_size)


class Without(pl.Callback):
    """Leaves steps out by hand: their batches are not looked at."""

    def __init__(self, *steps):
        self.steps = set(steps)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        step = trainer.current_epoch * trainer.num_training_batches + batch_idx
        module.training_step = (lambda *_: None) if step in self.steps else type(module).training_step.__get__(module)


def state(made):
    held = {name: value.clone() for name, value in made.state_dict().items() if not name.endswith("progress")}
    for name, optimizer in made.optimizers().optimizer.of.items():
        for i, its in enumerate(optimizer.state.values()):
            held |= {f"{name} {i} {k}": v.clone() for k, v in its.items() if isinstance(v, torch.Tensor)}
    return held


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value.nan_to_num(7.0), other[name].nan_to_num(7.0)), name


def kd(policy="stop", edges=("ce", "kd", CRD), **options):
    nodes = {"teacher": kdkit.frozen(net(12, seed=1)), "student": net(8, seed=2), "slow": kdkit.ema("student", 0.5)}
    return kdkit.Distiller(nodes, list(edges), lr=0.05, on_nonfinite=policy, **options)


def peers(policy="stop", update="sequential"):
    nodes = {"a": net(8, seed=1), "b": net(8, seed=2)}
    edges = ["ce", kdkit.Edge("dml", among=["a", "b"])]
    return kdkit.Distiller(nodes, edges, lr=0.05, on_nonfinite=policy, update=update)


def run(made, data, epochs=2, **options):
    done = fit(made, data, epochs=epochs, **options)
    return state(made), done


# -- stop --------------------------------------------------------------------------------------------------------------


def test_a_nan_image_stops_with_its_sample_and_a_batch_that_shows_it_again(tmp_path):
    made = kd()
    made.watch.folder = tmp_path
    with pytest.raises(NonFiniteLossError) as raised:
        fit(made, spoilt(21))
    told = str(raised.value)
    assert told.startswith("the loss ce, loss kd, loss crd is not finite at step 1 (epoch 1), which saw samples 16, 17")
    assert "27, … (16 in all); the images of 21 are not finite; the batch lies in" in told
    assert "Mend these images" in told
    saved = torch.load(tmp_path / "step-000001.pt", weights_only=True)
    assert (saved["step"], saved["epoch"], saved["index"].tolist()) == (1, 0, list(range(16, 32)))
    assert saved["values"]["loss ce"] != saved["values"]["loss ce"]
    student = net(8, seed=5)
    student.load_state_dict(saved["models"]["student"])
    logits = student.eval()(saved["x"])
    assert torch.equal(saved["models"]["student"]["conv1.weight"], made.student.conv1.weight)
    student.bn1.reset_running_stats()
    student.bn2.reset_running_stats()
    logits = student.eval()(saved["x"])
    assert (~logits.isfinite()).any(1).nonzero().flatten().tolist() == [5]


class Steep(nn.Module):
    """A finite value whose gradient is not: √ at zero."""

    def forward(self, student, progress):
        value = student.mean() * 0
        return value.sqrt() if progress >= 0.5 else value


def test_a_gradient_that_is_not_finite_is_told_before_it_moves_anything():
    made = kd(edges=["ce", kdkit.Edge(Steep(), name="steep")])
    with pytest.raises(NonFiniteLossError, match=r"the gradient of student is not finite at step 4 \(epoch 2\)"):
        fit(made, spoilt())
    assert all(p.isfinite().all() for p in made.student.parameters())


def test_without_ids_the_place_in_the_batch_is_told():
    made = kdkit.Distiller({"student": net(8)}, ["ce"])
    data = Blobs(indexed=False)
    data.x[18] = float("inf")
    with pytest.raises(NonFiniteLossError, match="whose ids the data do not tell; its images 2 are not finite"):
        fit(made, DataLoader(data, batch_size=16))


def test_a_disk_that_is_full_hides_nothing(tmp_path):
    made = kd()
    (tmp_path / "file").write_text("")
    made.watch.folder = tmp_path / "file" / "nonfinite"
    with pytest.raises(NonFiniteLossError, match=r"is not finite at step 1 .*; the batch could not be saved to"):
        fit(made, spoilt(21))


# -- skip --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["at once", "late"])
def known(request, monkeypatch):
    """When a number is known: on a CPU before the update; as on an accelerator, behind everything."""
    if request.param == "late":
        monkeypatch.setattr(finite, "asynchronous", lambda device: True)
    return request.param


@pytest.mark.parametrize("sample", [3, 53], ids=["first step", "last step"])
def test_a_skipped_step_leaves_no_trace(known, sample, caplog):
    """Weights, momentum, slow copy, CRD's banks and Z, BatchNorm, means of the terms."""
    with caplog.at_level(logging.WARNING, "kdkit"):
        skipped, one = run(kd("skip"), spoilt(sample))
    by_hand, other = run(kd(), spoilt(sample), callbacks=[Without(sample // 16, 4 + sample // 16)])
    assert_same(skipped, by_hand)
    assert one.callback_metrics.pop("nonfinite/skipped") == 1
    assert one.callback_metrics == other.callback_metrics
    assert f"the images of {sample} are not finite; the step is left out" in caplog.text


def test_adam_in_turns_undoes_who_has_moved_already(known):
    """What is wrong shows in the second turn alone."""

    class Late(nn.Module):
        def forward(self, student, index):
            return student.mean() * torch.where((index == 20).any(), torch.nan, 1.0)

    def made(policy):
        nodes = {"a": net(8, seed=1), "b": net(8, seed=2)}
        edges = ["ce", kdkit.Edge("dml", among=["a", "b"]), kdkit.Edge(Late, name="late", target="b")]
        return kdkit.Distiller(
            nodes, edges, optimizer={"name": "adamw"}, lr=0.01, on_nonfinite=policy, update="sequential"
        )

    skipped, _ = run(made("skip"), spoilt())
    assert_same(skipped, run(made("stop"), spoilt(), callbacks=[Without(1, 5)])[0])


def test_accumulated_gradients_are_dropped_with_the_batch_that_spoils_them():
    skipped, _ = run(kd("skip", edges=["ce", "kd"]), spoilt(20, batch_size=8), accumulate_grad_batches=2)
    weights = {k: v for k, v in skipped.items() if "running" not in k and "tracked" not in k}
    by_hand, _ = run(
        kd(edges=["ce", "kd"]), spoilt(20, batch_size=8), accumulate_grad_batches=2, callbacks=[Without(2, 3, 10, 11)]
    )
    assert_same(weights, {k: by_hand[k] for k in weights})


def test_a_recorded_step_is_skipped_by_the_recording_itself(recorded):  # noqa: F811
    data = spoilt(3, 37, n=96, batch_size=4)  # steps 0 and 9 of 24, before the recording and in it
    skipped, one = run(kd("skip", compile="auto"), data)
    assert sum(entry[0] for entry in recorded) == 45
    assert one.callback_metrics["nonfinite/skipped"] == 2
    by_hand, _ = run(kd(), data, callbacks=[Without(0, 9, 24, 33)])
    assert skipped.keys() == by_hand.keys()
    for name, value in by_hand.items():
        torch.testing.assert_close(skipped[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_a_loss_that_stays_infinite_ends_a_run_that_skips(caplog):
    made = kd("skip")
    with pytest.raises(NonFiniteLossError, match=r"for 2 of the 4 steps of this epoch, 1 of them in a row"):
        fit(made, spoilt(3, 35))
    made = kd("skip", edges=["ce"])
    with pytest.raises(NonFiniteLossError, match=r"for 20 of the 400 steps of this epoch, 20 of them in a row"):
        fit(made, spoilt(*range(30, 64), n=400, batch_size=1, value=float("inf")))


# -- rollback ----------------------------------------------------------------------------------------------------------


def test_going_back_is_the_run_without_the_steps_since_the_snapshot(known, caplog):
    """The snapshot is of the beginning of the epoch; the data go on behind the batch."""
    data = spoilt(37)
    with caplog.at_level(logging.WARNING, "kdkit"):
        back, one = run(kd("rollback"), data)
    by_hand, _ = run(kd(), data, callbacks=[Without(0, 1, 2, 4, 5, 6)])
    assert_same(back, by_hand)
    assert one.callback_metrics["nonfinite/rollbacks"] == 1
    assert "samples 32, 33" in caplog.text
    assert "the step is left out, and all is again as before step 4" in caplog.text


def test_going_back_twice_in_an_epoch_ends_the_run():
    with pytest.raises(NonFiniteLossError, match=r"at step 2 .* this happened a second time in this epoch"):
        fit(kd("rollback"), spoilt(20, 37))


def test_a_step_that_is_known_to_be_bad_only_later_goes_back_before_it(monkeypatch):
    """As on an accelerator: four more steps have run by then, whose numbers count for nothing any more."""

    class Event:
        def synchronize(self):
            pass

    def send(self, seen):
        seen.event = Event()
        self._coming.append(seen)

    monkeypatch.setattr(finite, "asynchronous", lambda device: True)
    monkeypatch.setattr(Arriving, "send", send)
    data = spoilt(20, n=160)
    back, _ = run(kd("rollback"), data, epochs=1)
    by_hand, _ = run(kd(), data, epochs=1, callbacks=[Without(*range(2 + LAG))])
    assert_same(back, by_hand)
    with pytest.raises(NonFiniteLossError, match=r"at step 1 \(epoch 1\), which saw samples 16, 17"):
        run(kd(), data, epochs=1)
    made = kd()
    with pytest.raises(NonFiniteLossError, match="at step 9"):  # seen at the end of the epoch at the latest
        fit(made, spoilt(150, n=160), epochs=1)


def test_numbers_are_looked_at_so_many_steps_later():
    coming, event = Arriving(), type("Event", (), {"synchronize": lambda self: None})()
    for step in range(LAG + 3):
        coming._coming.append(Seen(step, 0, None, [], torch.zeros(0), event))
    assert [seen.step for seen in coming.due()] == [0, 1, 2]
    assert [seen.step for seen in coming.all()] == list(range(3, LAG + 3))


# -- resume ------------------------------------------------------------------------------------------------------------


class Spoil(pl.Callback):
    """Spoils some samples wherever they are seen, and saves in the middle of the second epoch, behind them."""

    def __init__(self, path, *samples):
        self.path, self.samples = path, torch.tensor(samples)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        batch[0][torch.isin(batch[2], self.samples)] = torch.nan

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.path and trainer.current_epoch == 1 and batch_idx == 15:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_resumed_run_remembers(tmp_path, policy):
    def data():
        return kdkit.data.build("digits", image_size=8, subset=200, batch_size=10, padding=1)

    def made():
        student = kdkit.models.build("resnet8", num_classes=10)
        return kdkit.Distiller({"student": student}, ["ce"], lr=0.05, on_nonfinite=policy)

    (loader := data().train_dataloader()).set_epoch(1)
    sample = int(list(loader)[3][2][4])
    path, student = tmp_path / "mid.ckpt", made()
    one = fit(student, data(), epochs=2, callbacks=[Spoil(path, sample)])
    assert student.watch.last == (23 if policy == "skip" else -1)
    again, other = made(), trainer(epochs=2, callbacks=[Spoil(None, sample)])
    other.fit(again, datamodule=data(), ckpt_path=path, weights_only=True)
    assert_same(state(student), state(again))
    assert one.callback_metrics == other.callback_metrics
    assert one.callback_metrics["nonfinite/skipped" if policy == "skip" else "nonfinite/rollbacks"] == 1


# -- fp16 --------------------------------------------------------------------------------------------------------------


def test_what_fp16_overflows_is_the_scalers_and_its_scale_is_logged():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=10**6)
    made = kd("skip", edges=["ce"])
    done = fit(made, spoilt(), epochs=4, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    assert done.callback_metrics["nonfinite/skipped"] == 0
    assert done.callback_metrics["scale/loss"] == scaler.get_scale() < 2.0**24
    assert 0 < done.callback_metrics["gradient/student/max"] < 1e3


def test_words_are_checked():
    with pytest.raises(kdkit.KdkitError, match="on_nonfinite must be one of stop, skip, rollback, got 'ignore'"):
        FiniteWatch("ignore")


# -- gradients ---------------------------------------------------------------------------------------------------------


class Norms(pl.Callback):
    """The norm of every step's gradient, in float64."""

    def __init__(self):
        self.found = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        grads = [p.grad.double().flatten() for p in module.student.parameters() if p.grad is not None]
        self.found.append(float(torch.cat(grads).norm()))


def test_gradient_norms_by_epoch_are_those_before_clipping():
    norms, made = Norms(), kd(edges=["ce", "kd"])
    done = fit(made, spoilt(), epochs=3, callbacks=[norms], gradient_clip_val=0.01)
    last = norms.found[-4:]
    assert float(done.callback_metrics["gradient/student/mean"]) == pytest.approx(sum(last) / 4, rel=1e-5)
    assert float(done.callback_metrics["gradient/student/max"]) == pytest.approx(max(last), rel=1e-5)
    usual = sum(sorted(max(norms.found[i : i + 4]) for i in (0, 4))) / 2
    assert float(done.callback_metrics["gradient/student/spike"]) == pytest.approx(max(last) / usual, rel=1e-5)


class Jump(nn.Module):
    def forward(self, student, progress):
        return student.square().mean() * (1 + 500 * (progress >= 0.75))


def test_a_spike_is_told(caplog):
    made = kd(edges=["ce", kdkit.Edge(Jump(), name="jump")])
    with caplog.at_level(logging.WARNING, "kdkit"):
        done = fit(made, spoilt(), epochs=4, gradient_clip_val=0.1)
    assert caplog.text.count("warning: epoch 4: a gradient of student had the norm ") == 1
    assert done.callback_metrics["gradient/student/spike"] > 10


def test_peers_have_norms_of_their_own():
    _, done = run(peers(), spoilt())
    found = {name: float(value) for name, value in done.callback_metrics.items() if name.startswith("gradient/")}
    assert set(found) == {f"gradient/{peer}/{what}" for peer in "ab" for what in ("mean", "max", "spike")}
    assert copy.copy(found)["gradient/a/max"] != found["gradient/b/max"]
