"""Variational information distillation: the teacher's maps told from the student's, with a learnt doubt a channel."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.losses import checks
from kdkit.losses.geometry import equal_size
from kdkit.losses.precision import full_precision, in_its_own_type
from kdkit.registry import register_loss

VARIANCE, LEAST = 5.0, 1e-5  # at first, and added to it


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    batch = {"student": torch.randn(4, 3, 4, 4), "teacher": torch.randn(4, 5, 4, 4)}
    return {"student_dim": 3, "teacher_dim": 5}, batch


@register_loss(
    "vid",
    paper="Ahn, Hu, Damianou, Lawrence, Dai, CVPR 2019, arXiv 1904.05835",
    tap="stages",
    weight=1.0,
    weight_source="RepDistiller, over the last three stages",
    zero_at_match=False,
    example=_example,
)
class VIDLoss(nn.Module):
    """A Gaussian of the teacher's maps around the student's (variational information distillation).

    Formula: mean over B, C, H·W of ½·[(μ(F_s) − F_t)²/σ_c² + log σ_c²], where μ is a net of 1 × 1 convolutions and
    σ_c² = softplus(α_c) + 1e-5 the variance of a channel, 5 at first; both learn with the student. But for a constant
    it is a bound on the mutual information of the two maps.

    Args:
        student_dim: channels of the student's maps.
        teacher_dim: channels C of the teacher's.
        hidden: channels inside μ, which has three layers with ReLU between them; left out: `teacher_dim`.
        norm: `none`, or `batch`: BatchNorm before each ReLU.

    `forward(student, teacher)` takes maps (B, student_dim, H, W) and (B, teacher_dim, H, W). Of unequal sizes the
    larger map is brought to the smaller by adaptive average pooling. The teacher's is detached.

    Returns:
        A scalar in nats a number, without the constant ½·log 2π; below 0 where the variances are small.

    Differs:
        The paper's μ has BatchNorm; the authors' code has none, nor have RepDistiller and torchdistill. In mdistiller
        the variances are no parameters and stay at 5.

    Reference:
        Ahn, Hu, Damianou, Lawrence, Dai. Variational Information Distillation for Knowledge Transfer. CVPR 2019,
        arXiv 1904.05835.
    """

    def __init__(self, student_dim: int, teacher_dim: int, hidden: int | None = None, norm: str = "none") -> None:
        super().__init__()
        hidden = teacher_dim if hidden is None else hidden
        checks.count("vid", student_dim=student_dim, teacher_dim=teacher_dim, hidden=hidden)
        checks.choice("vid", ("none", "batch"), norm=norm)
        self.student_dim = student_dim
        widths = (student_dim, hidden, hidden, teacher_dim)
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) if norm == "batch" else nn.Identity() for _ in range(2))
        self.alpha = nn.Parameter(torch.full((teacher_dim,), math.log(math.expm1(VARIANCE - LEAST))))

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Predict maps (B, C, H, W); see the class."""
        checks.dims("vid", "(B, C, H, W)", student=student, teacher=teacher)
        checks.same_batch("vid", student, teacher)
        checks.channels("vid", student=(student, self.student_dim), teacher=(teacher, len(self.alpha)))
        s, t = map(_places, equal_size(student, teacher.detach()))
        if self.training and isinstance(self.norms[0], nn.BatchNorm1d):
            checks.several("vid", s, 2, "BatchNorm cannot take fewer places")
        error = (self._predict(s) - t).square().mean(0)
        variance = F.softplus(self.alpha.to(error.dtype)) + LEAST
        return (error / variance + variance.log()).mean() / 2

    def _predict(self, places: Tensor) -> Tensor:
        """μ: (P, student_dim) → (P, teacher_dim)."""
        *inner, last = (weight.to(places.dtype) for weight in self.layers.parameters())
        for weight, norm in zip(inner, self.norms, strict=True):
            places = in_its_own_type(norm, F.linear(places, weight)).relu()
        return F.linear(places, last)


def _places(maps: Tensor) -> Tensor:
    """(B, C, H, W) → (B·H·W, C): one product for all places, of which channels_last maps need no copy."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
