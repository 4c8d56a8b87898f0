"""What is scored, and what is told where a model cannot be."""

import torch

from kdkit.train.scores import Scores


def test_logits_of_other_classes_are_left_out_and_told_once(caplog):
    scores = Scores(["student", "wide"], [], num_classes=3)
    for _ in range(2):
        for name, classes in (("student", 3), ("wide", 5)):
            if name in scores.wanted:
                scores.update(name, torch.eye(4, classes), torch.tensor([0, 1, 2, 2]))
        assert set(scores.compute()) == {"student/top1", "student/nll"}
    assert caplog.messages == ["warning: wide: its logits have 5 classes and the data 3, so it is not scored"]
