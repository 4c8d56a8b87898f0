"""Deep mutual learning: models trained side by side teach each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdkit.losses import checks
from kdkit.losses.kd import softened_kl
from kdkit.losses.precision import full_precision
from kdkit.registry import register_loss


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"student": torch.randn(8, 5), "teacher": torch.randn(8, 5)}


@register_loss(
    "dml",
    paper="Zhang, Xiang, Hospedales, Lu, CVPR 2018, arXiv 1706.00384",
    tap="logits",
    weight=1.0,
    weight_source="the paper, constant over training, mean over the K−1 peers",
    zero_at_match=True,
    example=_example,
    space={"temperature": (1.0, 10.0)},
)
class DMLLoss(nn.Module):
    """Class probabilities of a peer that learns at the same time (deep mutual learning).

    Formula: T²/B · Σ_b KL(softmax(z_peer/T) ‖ softmax(z/T)); a cohort of K models averages it over the K−1 peers of
    each (`dml: {among: [a, b, c]}`).

    Args:
        temperature: T above 0; the paper's is 1.

    `forward(student, teacher)` takes logits (B, C) of a model and of one peer. The peer's are detached: each model
    learns from what the others say and never bends them towards itself.

    Returns:
        A scalar in nats, times T².

    Differs:
        The authors' TensorFlow code sums over the peers; the paper's equation and this one average. Common copies leave
        the peer attached, or use `F.kl_div`'s default reduction, which is C times too small.

    Reference:
        Zhang, Xiang, Hospedales, Lu. Deep Mutual Learning. CVPR 2018, arXiv 1706.00384.
    """

    of_probabilities = True

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        checks.positive("dml", temperature=temperature)
        self.temperature = temperature

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare logits (B, C) with a peer's."""
        checks.logits("dml", student, teacher, others="peers must share one set of classes")
        return softened_kl(student, teacher, self.temperature)
