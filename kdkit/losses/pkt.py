"""Probabilistic knowledge transfer: the same neighbours in feature space."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdkit.losses import checks
from kdkit.losses.geometry import unit
from kdkit.losses.precision import full_precision
from kdkit.registry import register_loss


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"student": torch.randn(8, 4), "teacher": torch.randn(8, 6)}


@register_loss(
    "pkt",
    paper="Passalis, Tefas, ECCV 2018, arXiv 1803.10837",
    tap="embedding",
    weight=468.75,
    weight_source="the authors' 30000 on the mean over B² at B = 64, as a mean over B",
    zero_at_match=True,
    example=_example,
)
class PKTLoss(nn.Module):
    """Equal probabilities of being neighbours within the batch (probabilistic knowledge transfer).

    Formula: 1/B · Σ_ij p^t_ij · log((p^t_ij + ε)/(p^s_ij + ε)), where p_ij = k_ij / Σ_j k_ij, the diagonal included,
    k_ij = (cos(f_i, f_j) + 1)/2 and ε = 1e-7.

    Args:
        reduction: `batchmean` divides by B; `paper` by B², as the authors' code does, where the weight that goes with
            it (30000 at B = 64) grows with B.

    `forward(student, teacher)` takes features (B, D), or anything (B, …) to be flattened, of any two widths. The
    teacher's are detached.

    Returns:
        A scalar in nats, 0 when all angles agree; ε can leave it a hair below.

    Differs:
        The authors' code overwrites NaN in place and divides a zero vector by 1e-7; here it stays zero.

    Reference:
        Passalis, Tefas. Learning Deep Representations with Probabilistic Knowledge Transfer. ECCV 2018,
        arXiv 1803.10837.
    """

    min_batch = 2

    def __init__(self, reduction: str = "batchmean") -> None:
        super().__init__()
        checks.choice("pkt", ("batchmean", "paper"), reduction=reduction)
        self.reduction = reduction

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare features (B, D) of any two widths."""
        checks.same_batch("pkt", student, teacher)
        checks.several("pkt", student, self.min_batch)
        p_s, p_t = _neighbours(student), _neighbours(teacher.detach())
        divergence = p_t * torch.log((p_t + 1e-7) / (p_s + 1e-7))
        return divergence.mean() if self.reduction == "paper" else divergence.sum(1).mean()


def _neighbours(features: Tensor) -> Tensor:
    """(B, …) → (B, B), rows that sum to 1."""
    directions = unit(features.flatten(1))
    kernel = (directions @ directions.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)
