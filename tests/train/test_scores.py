"""What is scored, and what is told where a model cannot be."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdkit
from kdkit.train.scores import Scores
from tests.train.running import fit


def test_logits_of_other_classes_are_left_out_and_told_once(caplog):
    scores = Scores(["student", "wide"], [], num_classes=3)
    for _ in range(2):
        for name, classes in (("student", 3), ("wide", 5)):
            if name in scores.wanted:
                scores.update(name, torch.eye(4, classes), torch.tensor([0, 1, 2, 2]))
        assert set(scores.compute()) == {"student/top1", "student/nll"}
    assert caplog.messages == ["warning: wide: its logits have 5 classes and the data 3, so it is not scored"]


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        (torch.randn(4, 3, 8, 8), torch.zeros(4, 8, 8, dtype=torch.int64)),  # a class at every pixel
        (torch.randn(4, 3), torch.rand(4, 3)),  # several labels, or soft ones
        (torch.randn(4, 1), torch.randn(4)),  # numbers to be met
    ],
)
def test_what_has_no_classes_is_left_out_and_told(outputs, labels, caplog):
    scores = Scores(["student"], [])
    scores.update("student", outputs, labels)
    assert scores.wanted == []
    assert scores.compute() == {}
    assert "student: scores are of logits (B, C) by class numbers (B,), got" in caplog.text


def test_a_student_of_numbers_is_trained_beside_validation_data():
    data = DataLoader(TensorDataset(torch.randn(8, 6), torch.randn(8)), 4)
    nets = {"teacher": kdkit.frozen(nn.Linear(6, 1)), "student": nn.Linear(6, 1)}
    run = fit(kdkit.Distiller(nets, ["mse"], lr=0.01), data, data, epochs=1)
    assert "loss/mse" in run.callback_metrics
    assert not any(name.startswith("val/") for name in run.callback_metrics)
