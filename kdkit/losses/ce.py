"""Learning from the labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.losses import checks
from kdkit.losses.precision import full_precision
from kdkit.registry import register_loss

LEFT_OUT = -100
"""The label of a sample without one, as torch has it."""


def smoothed(logits: Tensor, labels: Tensor, smoothing: float | Tensor) -> Tensor:
    """Cross-entropy of logits (B, C) with labels (B,), of which a share is spread over all classes."""
    if not isinstance(smoothing, Tensor):  # a scheduled one is a tensor, which torch's own does not take
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    log_p, known = logits.log_softmax(1), labels != LEFT_OUT
    plain, even = F.nll_loss(log_p, labels), -torch.where(known, log_p.mean(1), 0.0).sum() / known.sum()
    spread = torch.where(smoothing > 0, smoothing * even, 0)  # a class that is masked out costs ∞
    return (1 - smoothing) * plain + spread


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    return {"label_smoothing": 0.1}, {"student": torch.randn(8, 5), "labels": torch.randint(5, (8,))}


@register_loss(
    "ce",
    paper="Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016, arXiv 1512.00567 (label smoothing)",
    tap="logits",
    weight=1.0,
    weight_source="the unit that every other weight is measured in",
    zero_at_match=False,
    example=_example,
    space={"label_smoothing": (0.0, 0.2)},
)
class CrossEntropyLoss(nn.Module):
    """Cross-entropy with the labels; it needs no teacher.

    Formula: mean over B of −(1−ε)·log p[y] − (ε/C)·Σ_c log p[c], with p = softmax(z_s).

    Args:
        label_smoothing: ε in [0, 1], the share of the target spread evenly over all classes. Teachers trained with it
            teach worse (Müller, Kornblith, Hinton, NeurIPS 2019, arXiv 1906.02629).

    `forward(student, labels)` takes logits (B, C) and class numbers (B,), int64. A sample whose label is −100 is left
    out, of the mean, too, as torch has it.

    Returns:
        A scalar in nats.

    Reference:
        Szegedy, Vanhoucke, Ioffe, Shlens, Wojna. Rethinking the Inception Architecture. CVPR 2016, arXiv 1512.00567.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        checks.share("ce", label_smoothing=label_smoothing)
        self.label_smoothing: float | Tensor = label_smoothing

    @full_precision
    def forward(self, student: Tensor, labels: Tensor) -> Tensor:
        """Score logits (B, C) against labels (B,)."""
        checks.dims("ce", "(B, C)", student=student)
        checks.class_labels("ce", labels, len(student))
        return smoothed(student, labels, self.label_smoothing)
