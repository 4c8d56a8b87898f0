"""Decoupled knowledge distillation: how sure the teacher is, and what it says of the other classes, each by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdkit.losses import checks
from kdkit.losses.ce import LEFT_OUT
from kdkit.losses.kd import ends
from kdkit.losses.precision import full_precision
from kdkit.registry import register_loss


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    words = {"student": torch.randn(8, 5), "teacher": torch.randn(8, 5), "labels": torch.arange(8) % 5}
    return {"beta": 2.0}, words


@register_loss(
    "dkd",
    paper="Zhao, Cui, Song, Qiu, Liang, CVPR 2022, arXiv 2203.08679",
    tap="logits",
    weight=1.0,
    weight_source="the authors' code, rising from 0 over the first 20 of 240 epochs, beside 1 of ce",
    zero_at_match=True,
    example=_example,
    space={"temperature": (1.0, 10.0), "beta": (0.5, 16.0)},
)
class DKDLoss(nn.Module):
    """Distillation taken apart: the true class against all others, the others among themselves (DKD).

    Formula: T²/B · Σ_b [α·TCKD + β·NCKD]. With p = softmax(z/T) and y the label, TCKD is
    KL((p_t[y], 1 − p_t[y]) ‖ (p_s[y], 1 − p_s[y])), and NCKD is the KL of teacher from student over the other classes,
    each side scaled to a sum of 1 there. With α = 1 and β = 1 − p_t[y] it would be `kd`, which so hears least of the
    others where the teacher is sure.

    Args:
        alpha: α of the true class.
        beta: β of the others; the authors' is 2 from ResNet-56 to ResNet-20, 6 or 8 for most other pairs.
        temperature: T above 0.
        standardise: logits to mean 0 and standard deviation 1 first, as in `kd`.

    `forward(student, teacher, labels)` takes logits (B, C) on both sides, the teacher's detached, and class numbers
    (B,), int64. A sample whose label is −100 is left out, of the mean, too, as in `ce`.

    Returns:
        A scalar in nats, times T².

    Differs:
        The authors' code subtracts 1000 from the true class's logit to leave it out, which leaves it in where logits
        are larger; here it is left out.

    Reference:
        Zhao, Cui, Song, Qiu, Liang. Decoupled Knowledge Distillation. CVPR 2022, arXiv 2203.08679.
    """

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, standardise: bool = False
    ) -> None:
        super().__init__()
        checks.not_negative("dkd", alpha=alpha, beta=beta)
        checks.positive("dkd", temperature=temperature)
        self.alpha, self.beta, self.temperature, self.standardise = alpha, beta, temperature, standardise
        self.of_probabilities = not standardise

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Compare student logits (B, C) with the teacher's, knowing the labels (B,)."""
        student, teacher = ends("dkd", student, teacher, self.standardise)
        checks.class_labels("dkd", labels, student.shape[0])
        known = labels != LEFT_OUT
        own, s, t = (labels * known)[:, None], student / self.temperature, teacher / self.temperature
        log_p, among_s = _apart(s, own)
        log_q, among_t = _apart(t, own)
        target = (log_q.exp() * (log_q - log_p)).sum(1)
        others = (among_t.exp().scatter(1, own, 0.0) * (among_t - among_s)).sum(1)
        each = torch.where(known, self.alpha * target + self.beta * others, 0.0)
        return self.temperature**2 * each.sum() / known.sum()


def _apart(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (own class, all others), (B, 2), and of each class among the others, (B, C)."""
    others = logits.scatter(1, own, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([logits.gather(1, own), others], 1).log_softmax(1), logits - others
