"""What the tests of numbers that are not finite share: spoilt data, small runs, and steps that are left out by hand."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import kdkit
from kdkit.train import finite
from kdkit.train.arriving import Arriving
from tests.nets import Blobs, net
from tests.train.running import fit

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


@pytest.fixture(params=["at once", "late"])
def known(request, monkeypatch):
    """When a number is known: on a CPU before the update; as on an accelerator, behind everything."""
    if request.param == "late":
        monkeypatch.setattr(finite, "asynchronous", lambda device: True)
    return request.param


@pytest.fixture
def lagging(monkeypatch):
    """As on an accelerator: four more steps have run when a number is known."""

    class Event:
        def synchronize(self):
            pass

    def send(self, seen):
        seen.event = Event()
        self._coming.append(seen)

    monkeypatch.setattr(finite, "asynchronous", lambda device: True)
    monkeypatch.setattr(Arriving, "send", send)
