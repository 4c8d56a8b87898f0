"""Similarity-preserving distillation: samples that the teacher finds alike are alike to the student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdkit.losses import checks
from kdkit.losses.geometry import unit_of_powers
from kdkit.losses.precision import full_precision
from kdkit.losses.squares import gram
from kdkit.registry import register_loss


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"student": torch.randn(8, 3, 4, 4), "teacher": torch.randn(8, 5, 2, 2)}


@register_loss(
    "sp",
    paper="Tung, Mori, ICCV 2019, arXiv 1907.09682",
    tap="stage-1",
    weight=46.875,
    weight_source="RepDistiller's 3000 on the mean over B² at B = 64, as a mean over B",
    zero_at_match=True,
    example=_example,
)
class SPLoss(nn.Module):
    """Equal similarities between a batch's samples, products of their features (similarity-preserving).

    Formula: 1/B · ‖G_t − G_s‖²_F, where G is the product F·Fᵀ of the features F (B, D), each of its rows scaled to
    length 1.

    Args:
        reduction: `batchmean` divides by B; `paper` by B², where the weight that goes with it (3000 at B = 64) grows
            with B.

    `forward(student, teacher)` takes maps (B, C, H, W), or anything (B, …) to be flattened, of any two shapes; B at
    least 2. The teacher's are detached. There is no forward-mode derivative.

    Returns:
        A scalar without unit in [0, 4]: scaling all features of a side, or turning them, changes nothing.

    Differs:
        torchdistill scales the rows to a sum of absolute values of 1, which makes the loss tens of times smaller.

    Reference:
        Tung, Mori. Similarity-Preserving Knowledge Distillation. ICCV 2019, arXiv 1907.09682.
    """

    min_batch = 2

    def __init__(self, reduction: str = "batchmean") -> None:
        super().__init__()
        checks.choice("sp", ("batchmean", "paper"), reduction=reduction)
        self.reduction = reduction

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare features (B, …), each of its own shape."""
        checks.same_batch("sp", student, teacher)
        checks.several("sp", student, self.min_batch)
        apart = (_similarities(student) - _similarities(teacher.detach())).square()
        return apart.mean() if self.reduction == "paper" else apart.sum(1).mean()


def _similarities(features: Tensor) -> Tensor:
    """(B, …) → (B, B), rows of length 1."""
    return unit_of_powers(gram(features.flatten(1)))
