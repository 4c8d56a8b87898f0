"""Hard-label distillation: the teacher's answer as if it were the label."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdkit.losses import checks
from kdkit.losses.ce import smoothed
from kdkit.losses.precision import full_precision
from kdkit.registry import register_loss


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    return {"label_smoothing": 0.1}, {"student": torch.randn(8, 5), "teacher": torch.randn(8, 5)}


@register_loss(
    "hard",
    paper="Touvron, Cord, Douze, Massa, Sablayrolles, Jégou, ICML 2021, arXiv 2012.12877",
    tap="logits",
    weight=1.0,
    weight_source="beside 1 of ce; the paper halves both",
    zero_at_match=False,
    example=_example,
    space={"label_smoothing": (0.0, 0.2)},
)
class HardLoss(nn.Module):
    """Cross-entropy with the class that the teacher finds likeliest (hard-label distillation, DeiT).

    Formula: mean over B of −(1−ε)·log p[ŷ] − (ε/C)·Σ_c log p[c], with p = softmax(z_s) and ŷ = argmax_c z_t[c], the
    first of equals.

    Args:
        label_smoothing: ε in [0, 1], the share of the target spread evenly over all classes.

    `forward(student, teacher)` takes logits (B, C) on both sides; the teacher's are detached. It has no temperature.
    Of several teachers as an ensemble their mean answers.

    Returns:
        A scalar in nats; NaN where the teacher is.

    Differs:
        The paper takes ½ of this and ½ of the cross-entropy with the labels, whose minimum is the same. In DeiT the
        student has a token of its own for it: `hard: {to: student.head_dist}` beside `ce: {to: student.head}`.

    Reference:
        Touvron, Cord, Douze, Massa, Sablayrolles, Jégou. Training data-efficient image transformers & distillation
        through attention. ICML 2021, arXiv 2012.12877.
    """

    of_probabilities = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        checks.share("hard", label_smoothing=label_smoothing)
        self.label_smoothing: float | Tensor = label_smoothing

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Score student logits (B, C) against the teacher's answers."""
        checks.logits("hard", student, teacher)
        sure, answer = teacher.detach().max(1)
        return smoothed(student, answer, self.label_smoothing) + 0 * sure.mean()  # of NaN nothing is likeliest
