"""Knowledge distillation: learning from the teacher's softened class probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.losses import checks
from kdkit.losses.geometry import centred_unit
from kdkit.losses.precision import full_precision
from kdkit.registry import register_loss


def softened_kl(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """T²·KL(softmax(z_t/T) ‖ softmax(z_s/T)) of logits (B, C), mean over B, the teacher's a constant."""
    log_p = (student / temperature).log_softmax(1)
    log_q = (teacher.detach() / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")


def standardised(logits: Tensor) -> Tensor:
    """Each row of logits (B, C) at mean 0 and standard deviation 1; a row that does not vary becomes 0."""
    spread: float = (logits.shape[1] - 1) ** 0.5
    return spread * centred_unit(logits, 1)


def ends(loss: str, student: Tensor, teacher: Tensor, standardise: bool) -> tuple[Tensor, Tensor]:
    """Logits (B, C) of both ends as they are compared, the teacher's a constant; of two, ±0.7 would be left."""
    if not standardise:
        checks.logits(loss, student, teacher)
        return student, teacher.detach()
    checks.logits(loss, student, teacher, least=3, fewer="leave `standardise` out")
    return standardised(student), standardised(teacher.detach())


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    return {"temperature": 4.0}, {"student": torch.randn(8, 5), "teacher": torch.randn(8, 5)}


@register_loss(
    "kd",
    paper="Hinton, Vinyals, Dean, NIPS workshop 2014, arXiv 1503.02531",
    tap="logits",
    weight=1.0,
    weight_source="RepDistiller's crd + kd runs (T = 4); kd alone: 0.9 beside 0.1 of ce",
    zero_at_match=True,
    example=_example,
    space={"temperature": (1.0, 10.0)},
)
class KDLoss(nn.Module):
    """Softened class probabilities of the teacher as targets (Hinton's distillation).

    Formula: T²/B · Σ_b KL(softmax(z_t/T) ‖ softmax(z_s/T)). With T² the gradient, T·(p_s − p_t)/B, keeps its size when
    T changes.

    Args:
        temperature: T above 0; 4 on CIFAR-100, 1 in the usual ImageNet recipes.
        standardise: logits to mean 0 and standard deviation 1 (over the classes, by C − 1) first, so that the student
            need not meet the teacher's range (Sun et al. 2024, with T = 2 and a weight of 9 beside 0.1 of ce). Of
            several teachers the mean is taken first, of their logits as they are. It takes three classes: of two
            logits it leaves nothing but which one is larger.

    `forward(student, teacher)` takes logits (B, C) on both sides; the teacher's are detached.

    Returns:
        A scalar in nats, times T².

    Differs:
        torchdistill's KDLoss leaves T² out when it is given no labels, and DeiT divides by B·C instead of B.
        `F.kl_div` with its default reduction does so too.

    Reference:
        Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. NIPS workshop 2014, arXiv 1503.02531.
        Sun, Ren, Li, Wang, Cao. Logit Standardization in Knowledge Distillation. CVPR 2024, arXiv 2403.01427.
    """

    def __init__(self, temperature: float = 4.0, standardise: bool = False) -> None:
        super().__init__()
        checks.positive("kd", temperature=temperature)
        self.temperature, self.standardise, self.of_probabilities = temperature, standardise, not standardise

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare student logits (B, C) with the teacher's."""
        return softened_kl(*ends("kd", student, teacher, self.standardise), self.temperature)
