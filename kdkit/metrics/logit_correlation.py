"""Which classes a model's logits move together, and how that differs between two models."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class LogitCorrelation(Metric):
    """Pearson correlation of the logits of every two classes over all samples, (C, C): `update(logits (B, C))`.

    What CRD's authors draw the difference of, teacher − student (Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699);
    `correlation_difference` puts it in two numbers. A class whose logit never moves has no correlation: NaN.
    """

    full_state_update = False
    count: Tensor
    mean: Tensor
    products: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Every rank has its own, merged in `compute`: sums of squares about a mean that is far off would lose digits.
        self.add_state("count", torch.zeros(()), dist_reduce_fx=None)
        self.add_state("mean", torch.zeros(num_classes), dist_reduce_fx=None)
        self.add_state("products", torch.zeros(num_classes, num_classes), dist_reduce_fx=None)

    def update(self, logits: Tensor) -> None:
        """Take in one batch."""
        z = logits.detach().to(torch.promote_types(logits.dtype, self.mean.dtype))
        mean = z.mean(0)
        batch = (torch.tensor(float(len(z)), device=z.device), mean, (z - mean).T @ (z - mean))
        merged = _merge((self.count, self.mean, self.products), batch)
        self.count, self.mean, self.products = (part.to(self.mean) for part in merged)

    def compute(self) -> Tensor:
        """(C, C) in [−1, 1]."""
        whole: Moments = (self.count, self.mean, self.products)
        if self.count.ndim:
            whole = reduce(_merge, zip(*whole, strict=True))
        deviation = whole[2].diagonal().sqrt()
        found = whole[2] / torch.where(deviation > 0, deviation, torch.nan).outer(deviation)
        return found.clamp(-1, 1)


Moments = tuple[Tensor, Tensor, Tensor]


def _merge(a: Moments, b: Moments) -> Moments:
    """Counts, means and centred products of two sets as one (Chan, Golub, LeVeque 1979)."""
    n = a[0] + b[0]
    gap, share = b[1] - a[1], b[0] / n.clamp(min=1)
    return n, a[1] + share * gap, a[2] + b[2] + a[0] * share * gap.outer(gap)


def correlation_difference(teacher: Tensor, student: Tensor) -> dict[str, float]:
    """Mean |Δ| over pairs of different classes, Frobenius norm of Δ, and classes left out for they never move.

    Args:
        teacher: (C, C), of `LogitCorrelation`.
        student: likewise.
    """
    gap = teacher - student
    missing = teacher.diagonal().isnan() | student.diagonal().isnan()
    gap = gap[~missing][:, ~missing]
    pairs = len(gap) * (len(gap) - 1)
    mean = float(gap.fill_diagonal_(0).abs().sum() / pairs) if pairs else float("nan")
    return {"mean": mean, "frobenius": float(torch.linalg.matrix_norm(gap)), "left_out": int(missing.sum())}
