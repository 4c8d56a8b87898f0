"""What cannot be trained is one error, and leaves no trace."""

import copy
import re

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import kdkit
from kdkit.graph.optimizers import check_optimizer
from kdkit.registry import KdkitError
from kdkit.train.meters import NonFiniteLossError
from kdkit.train.optim import build_optimizer
from tests.nets import Net, net
from tests.train.running import fit, pair

SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}


class Poison(nn.Module):
    """Becomes something else at its third call in training."""

    def __init__(self, poison=float("nan")):
        super().__init__()
        self.calls, self.poison = 0, poison

    def forward(self, student):
        self.calls += 1
        return student.mean() * (self.poison if self.calls > 3 else 1.0)


def test_nan_stops_at_once_names_the_term_and_spoils_nothing():
    nodes = {"student": net(8)}
    distiller = kdkit.Distiller(nodes, ["ce", kdkit.Edge(Poison(), name="poison")], lr=0.01)
    with pytest.raises(NonFiniteLossError, match="loss poison is not finite at step 2"):
        fit(distiller)
    assert all(torch.isfinite(p).all() for p in nodes["student"].parameters())


def test_weights_that_are_no_numbers_though_every_loss_was_stop_the_run():
    class Spoil(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, i):
            if i == 3:  # the epoch's last
                module.student.fc.weight.data.fill_(float("nan"))

    with pytest.raises(NonFiniteLossError, match="weights of 'student' are not finite after epoch 1"):
        fit(kdkit.Distiller({"student": net(8)}, ["ce"], lr=0.01), callbacks=[Spoil()])


def test_a_loss_that_is_no_number_later_is_told_by_name():
    distiller = kdkit.Distiller({"student": net(8)}, ["ce", kdkit.Edge(Poison(torch.ones(3)), name="odd")], lr=0.01)
    with pytest.raises(
        KdkitError, match=r"edge 'odd': a loss must return one number as a 0-dim tensor, got shape \(3,\)"
    ):
        fit(distiller)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: kdkit.Distiller({"trainer": net()}, ["ce"]), "uses this name"),
        (lambda: kdkit.Distiller({"scores": net()}, ["ce"]), "uses this name"),
        (lambda: kdkit.Distiller({"student": net()}, [kdkit.Edge("ce", name="keys")]), "Python's own names"),
        (lambda: kdkit.Distiller(pair(), ["kd"], optimizer={"name": "lbfgs"}), "unknown optimizer 'lbfgs'"),
        (lambda: kdkit.Distiller({"teacher": kdkit.frozen(net())}, ["ce"]), "no model is trained"),
        (lambda: kdkit.Distiller(pair(), ["kd"], update="both"), "simultaneous"),
        (lambda: kdkit.Distiller(pair(), ["kd"], optimizer={"name": "sdg"}), "did you mean 'sgd'"),
        (lambda: kdkit.Distiller(pair(), ["kd"], optimizer={"name": "sgd", "moment": 1}), "did you mean 'momentum'"),
        (lambda: kdkit.Distiller(pair(), ["kd"], optimizer={"name": "sgd", "lr": 1}), "stands beside"),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(KdkitError, match=words):
        make()


def test_an_optimizers_own_complaint_is_passed_on():
    with pytest.raises(KdkitError, match="Invalid momentum"):
        build_optimizer({"name": "sgd", "momentum": -1}, net().parameters(), 0.1)
    assert check_optimizer({"momentum": 0.5}) == {"name": "sgd", "momentum": 0.5}


def test_a_loss_that_is_no_number_is_refused_before_training():
    class Rows(nn.Module):
        def forward(self, student):
            return student.mean(1)

    with pytest.raises(KdkitError, match=r"must return one number as a 0-dim tensor, got shape \(4,\)"):
        fit(kdkit.Distiller({"student": net()}, [kdkit.Edge(Rows(), name="rows")]))


def test_a_failed_rehearsal_leaves_no_trace_either():
    class Fails(nn.Module):
        def forward(self, student):
            raise RuntimeError("no")

    student = net(8)
    before = copy.deepcopy(student.state_dict())
    own = rf"\n  {re.escape(__file__)}:\d+: raise RuntimeError\(\"no\"\)$"  # the line to mend
    with pytest.raises(KdkitError, match=rf"do not fit the models: no \(taps: student.stage1 8×8×8\){own}"):
        fit(kdkit.Distiller({"student": student}, [kdkit.Edge(Fails(), name="fails", taps="stage1")]))
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_models_of_two_students_share_no_head():
    nodes = {"teacher": kdkit.frozen(net(12, seed=1)), "a": net(8, seed=2), "b": net(8, seed=3)}
    edge = kdkit.Edge("mse", taps="embedding", head={"linear": {"share": "p"}})
    with pytest.raises(KdkitError, match="share parameters; give each a head and a loss of its own"):
        fit(kdkit.Distiller(nodes, [edge]))


class Renews(nn.Module):
    """Sets its buffer anew and makes another with every batch."""

    def __init__(self):
        super().__init__()
        self.net = net(8)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen = self.seen + len(x)
        self.register_buffer("last", x[:1].mean().detach().view(1))
        return self.net(x)


def test_what_sets_buffers_anew_begins_with_its_own():
    student, seen = Renews(), []

    class Watch(pl.Callback):
        def on_train_start(self, trainer, module):
            seen.append({name: value.clone() for name, value in student.named_buffers(recurse=False)})

    fit(kdkit.Distiller({"student": student}, ["ce"], lr=0.1), epochs=1, callbacks=[Watch()])
    assert {name: float(value) for name, value in seen[0].items()} == {"seen": 0.0}
    assert float(student.seen) == 64


class Writes(nn.Module):
    """A loss that changes what it is given."""

    def __init__(self, word):
        super().__init__()
        self.word = word

    def forward(self, student, teacher, labels):
        {"teacher": teacher.detach(), "student": student, "labels": labels}[self.word].mul_(1)
        return (student - teacher).square().mean()


@pytest.mark.parametrize(
    ("word", "told"), [("teacher", "teacher.logits"), ("student", "student.logits"), ("labels", "labels")]
)
def test_a_loss_that_writes_into_what_others_read_is_refused(word, told):
    edge = kdkit.Edge(Writes(word), name="own", source="teacher", target="student")
    with pytest.raises(KdkitError, match=f"edge 'own': the loss changes {told} in place, but others may read that"):
        fit(kdkit.Distiller(pair(), ["ce", edge]))


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.translator = nn.LazyLinear(4)

    def forward(self, student):
        return self.translator(student).mean()


@pytest.mark.parametrize("loss", [Lazy, Lazy()])
def test_a_layer_of_a_loss_has_its_size_before_the_first_batch(loss):
    with pytest.raises(KdkitError, match=r"edge 'own': translator.weight, translator.bias would get a size"):
        fit(kdkit.Distiller(pair(), [kdkit.Edge(loss, name="own")]))


class Remembers(nn.Module):
    """Keeps numbers from step to step where no checkpoint looks, and others that are of one step alone."""

    def __init__(self):
        super().__init__()
        self.steps, self.centre, self.scale, self.last = 0, torch.zeros(5), float("nan"), None
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("held", torch.zeros(()))

    def forward(self, student):
        self.steps += 1
        self.centre.lerp_(student.detach().mean(0), 0.1)
        self.seen, self.last = self.seen + 1, student.detach()
        self.held += 1
        return student.mean()


def test_what_no_checkpoint_holds_is_told(caplog):
    loss = Remembers()
    fit(kdkit.Distiller({"student": net(8)}, ["ce", kdkit.Edge(loss, name="own")]), epochs=1, limit_train_batches=3)
    told = [record.getMessage() for record in caplog.records if "no checkpoint holds" in record.getMessage()]
    assert [words.partition(", which")[0] for words in told] == [
        f"warning: the loss own: a step changes its {name}" for name in ("steps", "centre")
    ]
    assert float(loss.held) == 3


class Halves(Net):
    def forward(self, x):
        return super().forward(x.mul_(0.5))


def test_a_model_that_writes_into_what_the_others_see_is_refused():
    nodes = {"teacher": kdkit.frozen(Halves(8)), "student": net(8)}
    with pytest.raises(KdkitError, match="model 'teacher': changes its input in place, which the other models read"):
        fit(kdkit.Distiller(nodes, ["ce", "kd"]))
    fit(kdkit.Distiller({"student": Halves(8)}, ["ce"]), epochs=1)


def test_a_student_that_was_frozen_once_is_told_so():
    student = net(8).requires_grad_(False)
    with pytest.raises(KdkitError, match="no weight of 'student' asks for a gradient; requires_grad_"):
        fit(kdkit.Distiller({"student": student}, ["ce"]))
