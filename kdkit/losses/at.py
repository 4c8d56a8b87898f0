"""Attention transfer: looking where the teacher looks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdkit.losses import checks
from kdkit.losses.geometry import brought_to_one, equal_size, unit_of_powers
from kdkit.losses.precision import full_precision
from kdkit.losses.squares import energy
from kdkit.registry import register_loss


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"student": torch.randn(4, 3, 6, 6), "teacher": torch.randn(4, 5, 6, 6)}


@register_loss(
    "at",
    paper="Zagoruyko, Komodakis, ICLR 2017, arXiv 1612.03928",
    tap="stages",
    weight=1000.0,
    weight_source="the authors' code and RepDistiller, mode `code`, the last three stages",
    zero_at_match=True,
    example=_example,
    space={"p": (1.0, 4.0)},
)
class ATLoss(nn.Module):
    """Equal spatial attention, the map of mean activation strength (attention transfer).

    Formula: Q = vec(mean_c |A_c|^p) / ‖·‖₂ for each sample; mode `code`: mean over B and H·W of (Q_s − Q_t)²; mode
    `paper`: mean over B of ‖Q_s − Q_t‖₂.

    Args:
        p: power of the activations, at least 1.
        mode: `code`, which the weight of 1000 belongs to, or `paper`, which is larger, and by more the larger the maps
            are: for samples all of one distance d by H·W/d.

    `forward(student, teacher)` takes maps (B, C, H, W); channels may differ. Of unequal sizes the larger map is brought
    to the smaller by adaptive average pooling; 1 × 1 is refused. The teacher's is detached. There is no forward-mode
    derivative.

    Returns:
        A scalar without unit: the attention of each side has length 1, so scaling a map changes nothing.

    Differs:
        The paper's formula has the norm, the authors' code its square averaged over positions.

    Reference:
        Zagoruyko, Komodakis. Paying More Attention to Attention. ICLR 2017, arXiv 1612.03928.
    """

    def __init__(self, p: float = 2.0, mode: str = "code") -> None:
        super().__init__()
        checks.positive("at", p=p)
        if p < 1:
            raise ValueError(f"at: p must be at least 1, got {p!r}; below 1 a zero activation has an infinite slope")
        checks.choice("at", ("code", "paper"), mode=mode)
        self.p: float | Tensor = p
        self.mode = mode

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare maps (B, C, H, W), each of its own width and size."""
        checks.dims("at", "(B, C, H, W)", student=student, teacher=teacher)
        checks.same_batch("at", student, teacher)
        s, t = equal_size(student, teacher.detach())
        if s.shape[2:] == (1, 1):
            raise ValueError(
                f"at: student and teacher must have more than one position in common, got maps {tuple(student.shape)} "
                f"and {tuple(teacher.shape)}; attention to a single place is always 1, so tap before the pooling"
            )
        difference = self._attention(s) - self._attention(t)
        return difference.square().mean() if self.mode == "code" else difference.norm(dim=1).mean()

    def _attention(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) → (B, h·w), each row of length 1."""
        plain = not isinstance(self.p, Tensor) and self.p == 2  # a scheduled p is not looked at
        strength = energy(maps) if plain else brought_to_one(maps).abs().pow(self.p).mean(1)
        return unit_of_powers(strength.flatten(1))
