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


def test_scores_are_of_what_came_since_the_last():
    scores, logits = Scores(["student"], []), torch.eye(3)
    for labels, top1 in ((torch.tensor([0, 1, 2]), 1.0), (torch.tensor([1, 2, 0]), 0.0)):
        scores.update("student", logits, labels)
        found = scores.compute()
        assert float(found["student/top1"]) == top1
        torch.testing.assert_close(found["student/nll"], nn.functional.cross_entropy(logits, labels))


def test_scores_of_half_precision_are_computed_in_full():
    scores, logits, labels = Scores(["student"], []), torch.randn(64, 10).bfloat16(), torch.arange(64) % 10
    scores.update("student", logits, labels)
    wanted = nn.functional.cross_entropy(logits.float(), labels)
    torch.testing.assert_close(scores.compute()["student/nll"], wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("classes", "told"), [(5, False), (6, True)])
def test_the_best_five_are_told_of_more_than_five_classes(classes, told):
    scores = Scores(["student"], [])
    scores.update("student", torch.eye(4, classes), torch.arange(4))
    assert ("student/top5" in scores.compute()) == told


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


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_class_numbers_of_any_type_are_scored(kind):
    scores, labels = Scores(["student"], []), torch.tensor([0, 1, 2, 0])
    scores.update("student", torch.eye(4, 3), labels.to(kind))
    found = scores.compute()
    assert found["student/top1"] == 1  # the last row is of zeros, and class 0 the first of them
    scores.update("student", torch.eye(4, 3), labels)
    assert found == scores.compute()


class Encoder(nn.Module):
    """Says what it sees, as encoders do that have no classes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 4)

    def forward(self, x):
        tokens = self.body(x)[:, None]
        return {"last_hidden_state": tokens, "pooler_output": tokens.mean(1)}


def test_a_teacher_without_logits_is_read_inside_and_not_scored(caplog):
    data = DataLoader(TensorDataset(torch.randn(8, 6), torch.arange(8) % 3), 4)
    nets = {"teacher": kdkit.frozen(Encoder()), "student": nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))}
    edges = ["ce", kdkit.Edge("mse", source="teacher.body", target="student.0")]
    run = fit(kdkit.Distiller(nets, edges, lr=0.01), data, data, epochs=2)
    assert {name for name in run.callback_metrics if name.startswith("val/")} == {"val/student/top1", "val/student/nll"}
    why = "its output holds last_hidden_state, pooler_output and no `logits`, so it is not scored"
    assert caplog.messages.count(f"warning: teacher: {why}") == 1


def test_a_loss_on_logits_that_are_not_said_is_refused():
    data = DataLoader(TensorDataset(torch.randn(8, 6), torch.arange(8) % 3), 4)
    nets = {"teacher": kdkit.frozen(Encoder()), "student": nn.Linear(6, 3)}
    with pytest.raises(kdkit.KdkitError, match=r"model 'teacher' .*holds last_hidden_state, pooler_output and no"):
        fit(kdkit.Distiller(nets, ["ce", "kd"], lr=0.01), data)
