"""Stages: who learns when, told by what moves."""

import copy

import pytest
import pytorch_lightning as pl
import torch

import kdkit
from kdkit.graph.stage import Stage
from kdkit.registry import KdkitError
from tests.nets import net
from tests.train.running import fit, loader, pair, trainer


class Moves(pl.Callback):
    """Which parts of the student differ after each epoch, running statistics included."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, trainer, made):
        self.before = copy.deepcopy(made.student.state_dict())

    def on_train_epoch_end(self, trainer, made):
        now = made.student.state_dict()
        self.seen.append({n.rpartition(".")[0] for n, v in now.items() if not torch.equal(v, self.before[n])})


def trained(stages, edges=("ce", "kd"), epochs=3, **options):
    made = kdkit.Distiller(pair(), list(edges), lr=0.05, stages=stages, **options)
    watch = Moves()
    fit(made, loader(), epochs=epochs, callbacks=[watch])
    return made, watch.seen


ALL = {"conv1", "bn1", "conv2", "bn2", "fc"}


def test_parts_learn_and_the_rest_stands_still():
    """Weight decay, momentum and running statistics included."""
    stages = [
        Stage("first", {"to": 1}),
        Stage("top", {"from": 1, "to": 2}, train=["student.conv2", "student.bn2", "student.fc"]),
        Stage("last", {"from": 2}, train="student.fc"),
    ]
    made, moved = trained(stages)
    assert moved == [ALL, {"conv2", "bn2", "fc"}, {"fc"}]
    assert all(parameter.requires_grad for parameter in made.student.parameters())


def test_a_stage_of_another_model_rests_this_one():
    nodes = {"a": net(8, seed=1), "b": net(8, seed=2)}
    stages = [Stage("a first", {"to": 1}, train=["a"]), Stage("both", {"from": 1})]
    made = kdkit.Distiller(nodes, ["ce"], lr=0.05, stages=stages)
    before = copy.deepcopy(made.b.state_dict())
    seen = []

    def look(*_):
        seen.append(all(torch.equal(v, before[n]) for n, v in made.b.state_dict().items()))

    made.on_train_epoch_end = look
    fit(made, loader(), epochs=2)
    assert seen == [True, False]


def test_what_the_user_froze_stays_frozen():
    nodes = pair()
    nodes["student"].conv1.requires_grad_(False)
    made = kdkit.Distiller(nodes, ["ce"], lr=0.05, stages=[Stage("top", {"to": 1}, train="student.fc")])
    before = made.student.conv1.weight.clone()
    fit(made, loader(), epochs=2)
    assert not made.student.conv1.weight.requires_grad
    assert torch.equal(made.student.conv1.weight, before)
    assert made.student.conv2.weight.requires_grad


def test_fitnets_two_steps():
    """A hint first: nothing behind the hinted layer moves; then the rest learns from labels and teacher."""
    edges = [
        kdkit.Edge("hint", taps="stage1", head="conv1x1", when={"to": 1}),
        kdkit.Edge("ce", when={"from": 1}),
        kdkit.Edge("kd", when={"from": 1}),
    ]
    _, moved = trained([], edges, epochs=2)
    assert moved == [{"conv1", "bn1"}, ALL]


def test_everything_is_awake_after_a_crash():
    made = kdkit.Distiller(pair(), ["ce"], lr=0.05, stages=[Stage("top", train="student.fc")])
    made.on_train_epoch_end = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(made, loader(), epochs=1)
    assert all(parameter.requires_grad for parameter in made.student.parameters())


def test_resume_in_a_stage(tmp_path):
    stages = [Stage("first", {"to": 1}), Stage("top", {"from": 1}, train="student.fc")]

    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer, _):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole = kdkit.Distiller(pair(), ["ce", "kd"], lr=0.05, stages=stages)
    fit(whole, loader(), epochs=4, callbacks=[Keep()])
    resumed = kdkit.Distiller(pair(), ["ce", "kd"], lr=0.05, stages=stages)
    trainer(4).fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    for name, value in whole.student.state_dict().items():
        assert torch.equal(resumed.student.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ("studnet", "did you mean 'student'"),
        ("teacher", "no trained model is called 'teacher'"),
        ("student.fcc", "did you mean 'fc'"),
        ("student.act1", "no part 'act1' with weights"),
    ],
)
def test_wrong_parts(train, problem):
    with pytest.raises(KdkitError, match=problem):
        trained([Stage("s", train=train)])


def test_a_stage_that_never_comes():
    with pytest.raises(KdkitError, match="never comes"):
        trained([Stage("s", {"from": 9})])
