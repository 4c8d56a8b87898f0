"""Which classes a model's logits move together, and how that differs between two models."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from kdkit.metrics.sample_mean import moves


class LogitCorrelation(Metric):
    """Pearson correlation of the logits of every two classes over all samples, (C, C): `update(logits (B, C))`.

    What CRD's authors draw the difference of, teacher − student (Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699);
    `correlation_difference` puts it in two numbers. A class whose logit never moves has no correlation: NaN.
    """

    full_state_update = False
    moments: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # One state of count, mean and centred products, (C + 2, C), for they merge together alone: of ranks, and of
        # batches in `forward`. Sums of squares about a mean that is far off would lose digits.
        self.add_state("moments", torch.zeros(num_classes + 2, num_classes), dist_reduce_fx=_merged)

    def update(self, logits: Tensor) -> None:
        """Take in one batch."""
        z = logits.detach().to(torch.promote_types(logits.dtype, self.moments.dtype))
        if not len(z):
            return
        mean = z.mean(0)
        batch = torch.vstack([torch.full_like(mean, len(z)), mean, (z - mean).T @ (z - mean)])
        self.moments = _merge(self.moments, batch).to(self.moments)

    def compute(self) -> Tensor:
        """(C, C) in [−1, 1]."""
        (n, mean), products = self.moments[:2], self.moments[2:]
        square = products.diagonal()
        deviation = torch.where(moves(square, mean, n), square, torch.nan).sqrt()
        return (products / deviation.outer(deviation)).clamp(-1, 1)


def _merge(a: Tensor, b: Tensor) -> Tensor:
    """Moments of two sets as one (Chan, Golub, LeVeque 1979)."""
    n = a[0] + b[0]
    gap, share = b[1] - a[1], b[0] / n.clamp(min=1)
    return torch.vstack([n, a[1] + share * gap, a[2:] + b[2:] + (a[0] * share)[:, None] * gap.outer(gap)])


def _merged(sets: Tensor) -> Tensor:
    """Of any number of them, stacked."""
    return reduce(_merge, sets.unbind())


def correlation_difference(teacher: Tensor, student: Tensor) -> dict[str, float]:
    """Mean |Δ| over pairs of different classes, Frobenius norm of Δ, and classes left out for they never move.

    Both are NaN where fewer than two classes are left.

    Args:
        teacher: (C, C), of `LogitCorrelation`.
        student: likewise.
    """
    gap = teacher - student
    missing = teacher.diagonal().isnan() | student.diagonal().isnan()
    gap = gap[~missing][:, ~missing]
    pairs = len(gap) * (len(gap) - 1)
    mean = float(gap.fill_diagonal_(0).abs().sum() / pairs) if pairs else float("nan")
    norm = float(torch.linalg.matrix_norm(gap)) if pairs else float("nan")
    return {"mean": mean, "frobenius": norm, "left_out": int(missing.sum())}
