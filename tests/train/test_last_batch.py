"""An epoch whose last batch holds one sample."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

import kdkit
from kdkit.registry import KdkitError
from tests.nets import Blobs, loader, net


def normed():
    """BatchNorm behind the pooling, which has one value a sample."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 5))


def fit(student, batches, edges=("ce", "kd", "rkd"), **words):
    distiller = kdkit.Distiller({"teacher": kdkit.frozen(net()), "student": student}, list(edges))
    words = {"max_epochs": 1, "logger": False, "accelerator": "cpu", **words}
    trainer = pl.Trainer(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **words)
    trainer.fit(distiller, batches)
    return trainer.global_step


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Blobs(n=16))


def in_order(**words):
    data = Blobs(n=17)
    return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), batch_size=8, **words))


HEAD = ("ce", kdkit.Edge("cosine", head={"mlp": {"norm": "batch"}}))


@pytest.mark.parametrize(
    ("student", "batches", "edges"),
    [
        (normed, lambda: loader(8, n=17), ("ce", "kd", "rkd")),
        (normed, lambda: in_order(drop_last=False), ("ce", "kd")),
        (net, lambda: loader(8, n=17), HEAD),
    ],
)
def test_a_last_batch_on_which_nothing_can_be_trained_is_told_before_training(student, batches, edges):
    model = student()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KdkitError, match=r"last batch holds one sample, .*`drop_last: true` under `data`"):
        fit(model, batches(), edges)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("student", "batches", "words", "steps"),
    [
        (normed, lambda: loader(8, n=18), {}, 3),
        (normed, lambda: DataLoader(Blobs(n=17), batch_size=8, drop_last=True), {}, 2),
        (normed, lambda: in_order(drop_last=True), {}, 2),
        (normed, lambda: loader(8, n=17), {"limit_train_batches": 2}, 2),
        (normed, lambda: loader(8, n=17), {"limit_train_batches": 0.7}, 2),
        (normed, lambda: loader(8, n=17), {"max_steps": 2}, 2),
        (normed, lambda: DataLoader(Stream(), batch_size=8), {"limit_train_batches": 2}, 2),
        (net, lambda: loader(8, n=17), {}, 3),
    ],
)
def test_what_never_meets_such_a_batch_is_trained(student, batches, words, steps):
    assert fit(student(), batches(), **words) == steps
