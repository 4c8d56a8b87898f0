"""Correlation congruence: the teacher's similarities between samples, in a kernel of higher order."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.losses import checks
from kdkit.losses.geometry import unit
from kdkit.losses.precision import full_precision
from kdkit.losses.squares import gram
from kdkit.registry import register_loss


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"student": torch.randn(8, 4), "teacher": torch.randn(8, 6)}


@register_loss(
    "cc",
    paper="Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang, ICCV 2019, arXiv 1904.01802",
    tap="embedding",
    weight=100.0,
    weight_source="Knowledge-Distillation-Zoo, mode `paper`; RepDistiller has 0.02 with mode `code`",
    zero_at_match=True,
    example=_example,
    space={"gamma": (0.1, 2.0)},
)
class CCLoss(nn.Module):
    """Equal similarities between a batch's samples in a Gaussian kernel (correlation congruence).

    Formula: 1/B² · ‖K_s − K_t‖²_F, where K_ij = exp(−2γ) · Σ_{p ≤ P} (2γ)^p/p! · ⟨f_i, f_j⟩^p for features (B, D) with
    each row scaled to length 1: the Taylor expansion of exp(−γ·‖f_i − f_j‖²). Mode `code`: mean over the B − 1
    neighbours in the batch of Σ_d |δ_i,d|·|δ_i+1,d|, where δ = F_s − F_t.

    Args:
        gamma: γ of the kernel.
        order: P of the expansion, at least 1; 1 is the bilinear kernel, times 2γ·exp(−2γ); `None` is the Gaussian
            itself.
        mode: `paper`, or `code`, which is RepDistiller's and reads neither `gamma` nor `order`.

    `forward(student, teacher)` takes features (B, D), or anything (B, …) to be flattened, of any two widths, in mode
    `code` of one width; B at least 2. The teacher's are detached. There is no forward-mode derivative.

    Returns:
        A scalar; in mode `paper` without unit: scaling the features of a side, or turning them, changes nothing.

    Differs:
        The authors gave RepDistiller code of another formula, mode `code`, which depends on the order of the batch; it
        reads linear maps of both sides to 128 numbers, both of which learn. torchdistill does not scale the rows and
        takes the norm itself, not its square.

    Reference:
        Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang. Correlation Congruence for Knowledge Distillation. ICCV 2019,
        arXiv 1904.01802.
    """

    min_batch = 2

    def __init__(self, gamma: float = 0.4, order: int | None = 2, mode: str = "paper") -> None:
        super().__init__()
        checks.positive("cc", gamma=gamma)
        if order is not None:
            checks.count("cc", order=order)
        checks.choice("cc", ("paper", "code"), mode=mode)
        self.gamma: float | Tensor = gamma
        self.order = order
        self.powers = range(order or 0, 0, -1)
        self.mode = mode

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare features (B, D); see the class."""
        checks.same_batch("cc", student, teacher)
        checks.several("cc", student, self.min_batch)
        if self.mode == "code":
            checks.same_shape("cc", student, teacher)
            apart = (student - teacher.detach()).flatten(1).abs()
            return (apart[:-1] * apart[1:]).sum() / (len(apart) - 1)
        return (self._kernel(student) - self._kernel(teacher.detach())).square().mean()

    def _kernel(self, features: Tensor) -> Tensor:
        """(B, …) → (B, B), but for the constant of p = 0, in which both sides agree."""
        products = gram(unit(features.flatten(1)))
        if self.order is None:
            return (2 * self.gamma * (products - 1)).exp()
        factors = [math.e ** (-2 * self.gamma) * (2 * self.gamma) ** p / math.factorial(p) for p in self.powers]
        kernel = products * factors[0]
        for factor in factors[1:]:
            kernel = (kernel + factor) * products
        return kernel
