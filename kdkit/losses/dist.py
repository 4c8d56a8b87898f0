"""Relations of predictions: what the teacher prefers to what, within a sample and within a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdkit.losses import checks
from kdkit.losses.geometry import correlation
from kdkit.losses.precision import full_precision
from kdkit.registry import register_loss


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"student": torch.randn(8, 5), "teacher": torch.randn(8, 5)}


@register_loss(
    "dist",
    paper="Huang, You, Wang, Qian, Xu, NeurIPS 2022, arXiv 2205.10536",
    tap="logits",
    weight=2.0,
    weight_source="the authors' code for CIFAR-100 (β = γ = 2, τ = 4), beside 1 of ce",
    zero_at_match=True,
    example=_example,
    space={"temperature": (1.0, 10.0)},
)
class DISTLoss(nn.Module):
    """The same order of preference as the teacher's, whatever the size of the probabilities (DIST).

    Formula: T²·[β·(1 − mean_b ρ(p_s[b], p_t[b])) + γ·(1 − mean_c ρ(p_s[:, c], p_t[:, c]))], with p = softmax(z/T) and
    ρ Pearson's correlation: of a sample's probabilities over the classes, and of a class's over the batch.

    Args:
        inter: β of the relation between the classes of a sample.
        intra: γ of the relation between the samples of a class.
        temperature: T above 0: 4 on CIFAR-100, 1 on ImageNet.

    `forward(student, teacher)` takes logits (B, C), B at least 2, on both sides; the teacher's are detached. A row or a
    column that does not vary correlates with nothing: ρ = 0. So does one that varies by less than 1e-12. Of two classes
    ρ of a sample is 1 or −1, and only the relation within a class teaches.

    Returns:
        A scalar in [0, 2·(β + γ)·T²].

    Differs:
        The authors' code adds 1e-8 to the product of the lengths, which for a class that nobody names shrinks ρ.

    Reference:
        Huang, You, Wang, Qian, Xu. Knowledge Distillation from A Stronger Teacher. NeurIPS 2022, arXiv 2205.10536.
    """

    min_batch = 2
    of_probabilities = True

    def __init__(self, inter: float = 1.0, intra: float = 1.0, temperature: float = 4.0) -> None:
        super().__init__()
        checks.not_negative("dist", inter=inter, intra=intra)
        checks.positive("dist", temperature=temperature)
        self.inter, self.intra, self.temperature = inter, intra, temperature

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Correlate the probabilities of two sets of logits (B, C)."""
        checks.logits("dist", student, teacher)
        checks.several("dist", student, 2)
        p, q = (student / self.temperature).softmax(1), (teacher.detach() / self.temperature).softmax(1)
        inter, intra = (1 - correlation(p, q, dim).mean() for dim in (1, 0))
        return self.temperature**2 * (self.inter * inter + self.intra * intra)
