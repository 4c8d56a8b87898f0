"""Data that cannot be trained on or scored: one clear error, before training where it can be seen there."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import kdkit
from kdkit.graph.batch import Facts
from kdkit.graph.labels import check_labels, classes
from kdkit.graph.links import End
from kdkit.registry import KdkitError
from tests.nets import Blobs, Net, loader, net
from tests.train.running import fit, pair, trainer

SEVERAL = "several evaluation loaders, whose numbers would be mixed"


def student():
    return kdkit.Distiller({"student": net(8)}, ["ce"], lr=0.01)


class Module(pl.LightningDataModule):
    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return [loader(), loader()]

    test_dataloader = val_dataloader


def test_several_validation_loaders_are_refused_before_training():
    distiller = student()
    for data in ({"datamodule": Module()}, {"train_dataloaders": loader(), "val_dataloaders": [loader(), loader()]}):
        before = distiller.student.fc.weight.clone()
        with pytest.raises(KdkitError, match=SEVERAL):
            trainer().fit(distiller, **data)
        assert torch.equal(distiller.student.fc.weight, before)
    with pytest.raises(KdkitError, match=SEVERAL):
        trainer().test(distiller, datamodule=Module(), verbose=False)
    with pytest.raises(KdkitError, match=SEVERAL):
        trainer().validate(distiller, [loader(), loader()], verbose=False)
    assert "val/student/top1" in fit(distiller, loader(), [loader()], epochs=1).callback_metrics


class Stream(IterableDataset):
    def __iter__(self):
        blobs = Blobs(n=16, indexed=False)
        return (blobs[i] for i in range(16))


def test_a_stream_needs_a_length():
    stream = DataLoader(Stream(), batch_size=4)
    for length in ({"epochs": -1, "max_steps": 6}, {"epochs": 2}):
        with pytest.raises(KdkitError, match="no length; give the Trainer limit_train_batches"):
            trainer(**length).fit(student(), stream)
    run = trainer(-1, max_steps=6, limit_train_batches=3)
    run.fit(student(), stream)
    assert run.global_step == 6


@pytest.mark.parametrize(("promised", "told"), [(6, 2), (4, 0)])
def test_a_stream_that_is_shorter_than_was_promised_is_told_each_epoch(promised, told, caplog):
    trainer(2, limit_train_batches=promised).fit(student(), DataLoader(Stream(), batch_size=4))
    found = f"the data ended after 4 of the {promised} batches"
    assert [found in record.message for record in caplog.records].count(True) == told
    caplog.clear()
    trainer(2, max_steps=3, limit_train_batches=4).fit(student(), DataLoader(Stream(), batch_size=4))
    assert not [record for record in caplog.records if "the data ended" in record.message]


def test_gradients_that_wait_when_a_stream_ends_are_of_no_later_epoch():
    """Four batches by three: the fourth waits for two that never come."""
    distiller, left = student(), []

    class Look(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            left.append([p.grad for p in module.student.parameters() if p.grad is not None and p.grad.any()])

    words = {"limit_train_batches": 6, "accumulate_grad_batches": 3, "callbacks": [Look()]}
    trainer(2, **words).fit(distiller, DataLoader(Stream(), batch_size=4))
    assert left == [[], []]


def blobs(**wrong):
    """A loader whose samples at the given places have the given labels."""
    data = Blobs(n=32)
    for place, label in wrong.items():
        data.y[int(place[1:])] = label
    return DataLoader(data, batch_size=8)


@pytest.mark.parametrize("place", ["i1", "i20"])
@pytest.mark.parametrize("label", [5, 77, -3])
def test_a_label_that_is_no_class_is_named(place, label):
    told = rf"^label {label} stands for no class: there are 5, numbered from 0 to 4; "
    with pytest.raises(KdkitError, match=told):
        fit(student(), blobs(**{place: label}), epochs=1)
    with pytest.raises(KdkitError, match=told):
        trainer().validate(student(), blobs(**{place: label}), verbose=False)


def test_a_label_of_minus_one_says_none_only_where_all_do():
    check_labels(torch.full((4,), -1), 5)
    check_labels(torch.tensor([0.5, 7.0]), 5)  # no class numbers
    check_labels(torch.tensor([], dtype=torch.int64), 5)
    with pytest.raises(KdkitError, match=r"^label -1 stands for no class"):
        check_labels(torch.tensor([-1, 3]), 5)


def test_there_are_as_many_classes_as_the_narrowest_logits_or_as_the_data_say():
    outputs = {End("a", "logits"): torch.zeros(2, 3, 7), End("b", "logits"): torch.zeros(2, 9)}
    outputs[End("b", "embedding")] = torch.zeros(2, 4)
    assert classes(outputs, Facts(num_classes=5)) == 7
    assert classes({}, Facts(num_classes=5)) == 5


def test_the_labels_that_a_data_module_tells_are_looked_at_before_training():
    class Told(pl.LightningDataModule):
        num_classes, num_samples, sample_labels = 5, 32, torch.tensor([0, 1, 9])

        def train_dataloader(self):
            return loader()

    with pytest.raises(KdkitError, match="label 9 stands for no class"):
        trainer().fit(student(), datamodule=Told())


def test_no_labels_are_no_wrong_labels():
    data = Blobs(n=16)
    data.y[:] = -1
    run = fit(kdkit.Distiller(pair(), ["kd"], lr=0.01), DataLoader(data, batch_size=8), DataLoader(data), epochs=1)
    assert not [name for name in run.callback_metrics if name.startswith("val/")]


class OnlyInTraining(Net):
    def forward(self, x):
        if self.training:
            raise ArithmeticError("not in training")
        return super().forward(x)


def test_a_model_that_fails_in_training_alone_is_named_with_its_line():
    torch.manual_seed(0)
    graph = {"student": nn.Sequential(OnlyInTraining())}
    with pytest.raises(
        KdkitError, match=r"model 'student' cannot be trained .*: ArithmeticError: not in training\n"
    ) as e:
        fit(kdkit.Distiller(graph, ["ce"]))
    assert "test_refused_data.py:" in str(e.value)
    assert str(e.value).endswith('raise ArithmeticError("not in training")')


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"input_ids": torch.zeros(4, 3), "labels": torch.zeros(4)}, "got dict; let the loader's collate_fn make one"),
        (({"a": torch.zeros(4, 3), "b": torch.zeros(4, 3)}, torch.zeros(4)), "that reads several, stack them into one"),
    ],
)
def test_batches_of_another_form_are_told_with_what_to_do(batch, words):
    with pytest.raises(KdkitError, match=words):
        fit(student(), DataLoader([batch], batch_size=None))
