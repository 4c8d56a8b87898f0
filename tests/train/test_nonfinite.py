"""Numbers that are not finite: told with their samples, saved, and left out as if the step had not been.

The oracle of `skip` is the same run with steps that a callback leaves out by hand.
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
from kdkit.train.finite import FiniteWatch
from kdkit.train.meters import NonFiniteLossError, TermSums
from tests.nets import Blobs, net
from tests.train.nonfinite import Without, assert_same, kd, known, peers, run, spoilt  # noqa: F401  a fixture
from tests.train.running import fit
from tests.train.test_captured import recorded  # noqa: F401  a fixture

# -- stop --------------------------------------------------------------------------------------------------------------


def test_a_nan_image_stops_with_its_sample_and_a_batch_that_shows_it_again(tmp_path):
    made = kd()
    made.watch.folder = tmp_path
    with pytest.raises(NonFiniteLossError) as raised:
        fit(made, spoilt(21))
    told = str(raised.value)
    assert told.startswith("the loss ce, loss kd, loss crd are not finite at step 1 (epoch 1), which saw samples 16,")
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


class Endless(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, gradient):
        ctx.shape, ctx.gradient = logits.shape, gradient
        return logits.mean() * 0

    @staticmethod
    def backward(ctx, _):
        return torch.full(ctx.shape, ctx.gradient), None


@pytest.mark.parametrize("gradient", [float("inf"), float("nan")])
def test_clipping_by_value_makes_infinite_gradients_finite(gradient, known):  # noqa: F811
    class Loss(nn.Module):
        def forward(self, student):
            return Endless.apply(student, gradient)

    student = nn.Sequential(nn.Flatten(), nn.Softplus(), nn.Linear(192, 5))
    made = kdkit.Distiller({"student": student}, ["ce", kdkit.Edge(Loss(), name="endless")], lr=0.01)
    clip = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}
    if gradient == float("inf"):
        fit(made, spoilt(), epochs=1, **clip)
        assert all(p.isfinite().all() for p in student.parameters())
        made = kdkit.Distiller({"student": student}, ["ce", kdkit.Edge(Loss(), name="endless")], lr=0.01)
        clip = {"gradient_clip_val": 0.1}
    with pytest.raises(
        NonFiniteLossError, match=r"gradient of student is .* A lower learning rate or a warm-up usually"
    ):
        fit(made, spoilt(), epochs=1, **clip)


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
    with pytest.raises(NonFiniteLossError, match=r"are not finite at step 1 .*; the batch could not be saved to"):
        fit(made, spoilt(21))


# -- skip --------------------------------------------------------------------------------------------------------------


class Late(nn.Module):
    def forward(self, student, index):
        return student.mean() * torch.where((index == 20).any(), torch.nan, 1.0)


def in_turns(policy):
    """What is wrong shows in the second turn alone."""
    nodes = {"a": net(8, seed=1), "b": net(8, seed=2)}
    edges = ["ce", kdkit.Edge("dml", among=["a", "b"]), kdkit.Edge(Late, name="late", target="b")]
    return kdkit.Distiller(nodes, edges, optimizer={"name": "adamw"}, lr=0.01, on_nonfinite=policy, update="sequential")


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_what_is_saved_is_from_before_the_step(policy, tmp_path):
    """With `skip`; otherwise who had its turn has moved, which is told, and the running statistics saw the batch."""

    class Before(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 1:
                self.held = {name: copy.deepcopy(getattr(module, name).state_dict()) for name in "ab"}

    made, before = in_turns(policy), Before()
    made.watch.folder = tmp_path
    if policy == "skip":
        fit(made, spoilt(), epochs=1, callbacks=[before])
    else:
        with pytest.raises(NonFiniteLossError, match="pt, with models whose turn came before as they are after it;"):
            fit(made, spoilt(), epochs=1, callbacks=[before])
    saved = torch.load(tmp_path / "step-000001.pt", weights_only=True)["models"]
    assert all(torch.equal(saved["b"][key], value) for key, value in before.held["b"].items() if "conv" in key)
    moved = [
        key for name in "ab" for key, value in before.held[name].items() if not torch.equal(saved[name][key], value)
    ]
    assert bool(moved) == (policy == "stop")


@pytest.mark.parametrize("sample", [3, 53], ids=["first step", "last step"])
def test_a_skipped_step_leaves_no_trace(known, sample, caplog):  # noqa: F811
    """Weights, momentum, slow copy, CRD's banks and Z, BatchNorm, means of the terms."""
    with caplog.at_level(logging.WARNING, "kdkit"):
        skipped, one = run(kd("skip"), spoilt(sample))
    by_hand, other = run(kd(), spoilt(sample), callbacks=[Without(sample // 16, 4 + sample // 16)])
    assert_same(skipped, by_hand)
    assert one.callback_metrics.pop("nonfinite/skipped") == 1
    assert one.callback_metrics == other.callback_metrics
    assert f"the images of {sample} are not finite; the step is left out" in caplog.text


def test_adam_in_turns_undoes_who_has_moved_already(known):  # noqa: F811
    """What is wrong shows in the second turn alone."""

    skipped, _ = run(in_turns("skip"), spoilt())
    assert_same(skipped, run(in_turns("stop"), spoilt(), callbacks=[Without(1, 5)])[0])


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


def test_an_epoch_of_one_step_is_not_left_out():
    with pytest.raises(NonFiniteLossError, match="for 1 of the 1 steps of this epoch, 1 of them in a row"):
        fit(kd("skip", edges=["ce"]), spoilt(3, n=16))


def test_a_term_that_no_step_counted_has_no_mean():
    sums = TermSums()
    for good in (False, True, False):
        sums.good = torch.tensor(good)
        sums.add({"ce": torch.tensor(2.0), **({} if good else {"kd": torch.tensor(float("nan"))})})
    assert {name: float(value) for name, value in sums.means().items()} == {"ce": 2.0}


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
