"""The images on which a student and its teacher differ most, and who is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KINDS = ("only the teacher is right", "only the student is right", "both are wrong, each in its own way")
MOST = 8


@dataclass
class Case:
    """One image, pixels (C, H, W) in [0, 1], what is true, and what each says with which probability."""

    gap: float
    image: Tensor
    label: str
    teacher: tuple[str, float]
    student: tuple[str, float]


class Cases:
    """Of every kind of disagreement the images of the greatest Jensen–Shannon divergence.

    Args:
        classes: names, in the order of the logits.
        mean: per channel, that images were normalised with.
        std: likewise.
        most: how many of a kind are kept.
    """

    def __init__(self, classes: Sequence[str], mean: Sequence[float], std: Sequence[float], most: int = MOST) -> None:
        self.classes, self.most = list(classes), most
        self.mean, self.std = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
        self.found: dict[str, list[Case]] = {kind: [] for kind in KINDS}

    def add(self, x: Any, labels: Tensor, teacher: Tensor, student: Tensor) -> None:
        """Look at one batch."""
        p, q = teacher.softmax(-1), student.softmax(-1)
        mixture = (p + q) / 2
        gaps = (torch.special.entr(mixture) - (torch.special.entr(p) + torch.special.entr(q)) / 2).sum(-1)
        (sure_t, t), (sure_s, s) = p.max(-1), q.max(-1)
        right_t, right_s = t == labels, s == labels
        masks = (right_t & ~right_s, right_s & ~right_t, ~right_t & ~right_s & (t != s))
        for kind, mask in zip(KINDS, masks, strict=True):
            chosen = torch.where(mask, gaps, -1.0).topk(min(self.most, len(gaps))).indices
            new = [
                Case(
                    float(gaps[i]),
                    (x[i].float().cpu() * self.std + self.mean).clamp(0, 1),
                    self.classes[int(labels[i])],
                    (self.classes[int(t[i])], float(sure_t[i])),
                    (self.classes[int(s[i])], float(sure_s[i])),
                )
                for i in chosen[mask[chosen]].tolist()
            ]
            self.found[kind] = sorted([*self.found[kind], *new], key=lambda case: -case.gap)[: self.most]
