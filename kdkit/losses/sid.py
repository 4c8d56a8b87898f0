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

    On the validation data `monitor` tells of every module its accuracy, entropy, belief in the label and the share of
    samples with L_i(p_i) ≤ L_i(p_{i−1}), and the slack of the bound that follows where that is all of them.

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
        log_p, log_before, target = self._beliefs(student, labels)
        loss = self.alpha * self._to_labels(log_p, target) + (1 - self.alpha) * self._to_before(log_p, log_before)
        return loss.mean() if self.reduce == "mean" else loss.sum(1).mean()

    @full_precision
    @torch.no_grad()
    def monitor(self, student: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Of each sample, by module (B, L): `accuracy`, `entropy` and `belief` p_i[y]; `improved` and (B,) `slack`.

        `improved` is whether L_i(p_i) ≤ L_i(p_{i−1}), what Proposition 2 supposes. `slack` is by how much its bound
        D(p_L, y) ≤ D(p_0, y) − (1−α)/α · Σ D(p_i, p_{i−1}) holds: at least 0 where every module has improved.
        """
        log_p, log_before, target = self._beliefs(student, labels)
        reached, moved = self._to_labels(log_p, target), self._to_before(log_p, log_before)
        before = self._to_labels(log_before, target)
        alpha = float(self.alpha)
        found = {
            "accuracy": (log_p.argmax(-1) == labels[:, None]).float(),
            "entropy": -(log_p.exp() * log_p).sum(-1),
            "belief": log_p.gather(-1, labels[:, None, None].expand(-1, log_p.shape[1], 1)).squeeze(-1).exp(),
            "improved": (alpha * reached + (1 - alpha) * moved <= alpha * before).float(),
        }
        if alpha > 0:
            found["slack"] = before[:, 0] - (1 - alpha) / alpha * moved.sum(1) - reached[:, -1]
        return found

    def _beliefs(self, student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log p_i and log p_{i−1} (B, L, C), and p_y (B, 1, C)."""
        checks.dims("sid", "(B, L, C)", student=student)
        checks.class_labels("sid", labels, len(student))
        log_p = student.log_softmax(-1)
        uniform = torch.full_like(log_p[:, :1], -math.log(log_p.shape[-1]))
        log_before = torch.cat([uniform, log_p[:, :-1].detach()], 1)
        onehot = torch.zeros_like(uniform).scatter(-1, labels[:, None, None], 1.0)
        target = (1 - self.label_smoothing) * onehot + self.label_smoothing / log_p.shape[-1]
        return log_p, log_before, target

    def _to_labels(self, log_p: Tensor, target: Tensor) -> Tensor:
        """D(p, y) in the loss's direction, (B, L)."""
        if self.direction == "forward":
            return (torch.xlogy(target, target) - target * log_p).sum(-1)
        return (log_p.exp() * (log_p - target.log())).sum(-1)

    def _to_before(self, log_p: Tensor, log_before: Tensor) -> Tensor:
        """D(p_i, p_{i−1}), likewise."""
        if self.direction == "forward":
            return (log_before.exp() * (log_before - log_p)).sum(-1)
        return (log_p.exp() * (log_p - log_before)).sum(-1)
