"""Synergistic information distillation: a cascade of modules, each learning from the labels and from the one before."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.losses import checks
from kdkit.losses.precision import full_precision
from kdkit.registry import register_loss


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"student": torch.randn(8, 3, 5), "labels": torch.randint(5, (8,))}


@register_loss(
    "sid",
    paper="Ye, Tang, arXiv 2510.03273",
    tap="beliefs",
    weight=1.0,
    weight_source="the authors' code",
    zero_at_match=False,
    example=_example,
    space={"alpha": (0.0, 1.0)},
)
class SIDLoss(nn.Module):
    """The labels, held back by the belief of the module before (synergistic information distillation).

    Formula: Σ_i α·KL(p_y ‖ p_i) + (1−α)·KL(p_{i−1} ‖ p_i), mean over B, for modules i = 1 … L with p_i = softmax of
    module i and p_0 uniform; direction `reverse` swaps the two sides of both KL.

    Args:
        alpha: α in [0, 1], the share of the labels.
        direction: `forward`, the authors' code, best at p_i = α·p_y + (1−α)·p_{i−1}; or `reverse`, the paper's text,
            best at p_i ∝ p_y^α · p_{i−1}^{1−α}, which only exists with label smoothing.
        label_smoothing: ε in [0, 1]; p_y = (1−ε)·onehot(y) + ε/C.
        reduce: `sum` over the modules, or their `mean`, which keeps SGD's step size when L changes.

    `forward(student, labels)` takes the logits (B, L, C) of all L modules and class numbers (B,). Every module's
    predecessor is detached; how the modules are kept apart is the cascade's part (`arch: sid`).

    Returns:
        A scalar in nats. With one-hot labels the least sum is 0.8604 at C = 10, L = 5, α = ½, and 1.0585 at C = 100,
        L = 8, for every target is a mixture.

    Differs:
        With a one-hot p_y the paper's KL(p_i ‖ p_y) is infinite; the authors' code computes the other direction.

    Reference:
        Ye, Tang. Learning without Global Backpropagation via Synergistic Information Distillation. arXiv 2510.03273.
    """

    by_row = True  # a module's gradient needs no module after it

    def __init__(
        self, alpha: float = 0.5, direction: str = "forward", label_smoothing: float = 0.0, reduce: str = "sum"
    ) -> None:
        super().__init__()
        checks.share("sid", alpha=alpha, label_smoothing=label_smoothing)
        checks.choice("sid", ("forward", "reverse"), direction=direction)
        checks.choice("sid", ("sum", "mean"), reduce=reduce)
        if direction == "reverse" and label_smoothing == 0:
            raise ValueError(
                "sid: label_smoothing must be above 0 with direction 'reverse', got 0; "
                "KL(p ‖ one-hot) is infinite, so smooth the labels or go 'forward'"
            )
        self.alpha = alpha
        self.direction = direction
        self.label_smoothing = label_smoothing
        self.reduce = reduce

    @full_precision
    def forward(self, student: Tensor, labels: Tensor) -> Tensor:
        """Score the modules' logits (B, L, C) against labels (B,) and each other."""
        checks.dims("sid", "(B, L, C)", student=student)
        checks.class_labels("sid", labels, len(student))
        log_p = student.log_softmax(-1)
        uniform = torch.full_like(log_p[:, :1], -math.log(log_p.shape[-1]))
        log_before = torch.cat([uniform, log_p[:, :-1].detach()], 1)
        onehot = torch.zeros_like(uniform).scatter(-1, labels[:, None, None], 1.0)  # (B, 1, C)
        target = (1 - self.label_smoothing) * onehot + self.label_smoothing / log_p.shape[-1]
        if self.direction == "forward":
            to_labels = (torch.xlogy(target, target) - target * log_p).sum(-1)  # (B, L)
            to_before = (log_before.exp() * (log_before - log_p)).sum(-1)
        else:
            to_labels = (log_p.exp() * (log_p - target.log())).sum(-1)
            to_before = (log_p.exp() * (log_p - log_before)).sum(-1)
        loss = self.alpha * to_labels + (1 - self.alpha) * to_before
        return loss.mean() if self.reduce == "mean" else loss.sum(1).mean()
