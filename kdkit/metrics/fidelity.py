"""How alike two models predict: `update(student_logits (B, C), teacher_logits (B, C))`.

Fidelity is not accuracy (Stanton, Izmailov, Kirichenko, Alemi, Wilson, NeurIPS 2021, arXiv 2106.05945).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdkit.metrics.sample_mean import SampleMean, exact


class Agreement(SampleMean):
    """Share of samples whose teacher's class is among the student's `top_k` most probable ones.

    `top_k=1`: both say the same.
    """

    def __init__(self, top_k: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        self.top_k = top_k

    def values(self, student: Tensor, teacher: Tensor) -> Tensor:
        """1 where the teacher's class is among them."""
        _check(self, student, teacher)
        if student.shape[-1] < self.top_k:
            raise ValueError(f"top_k = {self.top_k} needs as many classes, got {student.shape[-1]}")
        theirs = teacher.argmax(-1, keepdim=True)
        value = student.gather(-1, theirs)
        earlier = torch.arange(student.shape[-1], device=student.device) < theirs
        before = (student > value) | student.isnan() | ((student == value) & earlier)  # as argmax has it
        return ((before.sum(-1) < self.top_k) & ~value[:, 0].isnan()).float()


class KLDivergence(SampleMean):
    """Mean KL(p_teacher ‖ p_student) in nats; both softmax at `temperature`."""

    def __init__(self, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature

    def values(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Σ_c p_t (log p_t − log p_s)."""
        _check(self, student, teacher)
        s, t = _log_p(student, self.temperature), _log_p(teacher, self.temperature)
        return _kl(t, s)


class JSDivergence(KLDivergence):
    """Mean Jensen–Shannon divergence in nats, in [0, log 2]: symmetric, whoever is called the teacher."""

    def values(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean KL of both to their mixture."""
        _check(self, student, teacher)
        s, t = _log_p(student, self.temperature), _log_p(teacher, self.temperature)
        mixture = torch.logaddexp(s, t) - torch.log(torch.tensor(2.0, dtype=s.dtype, device=s.device))
        return (_kl(s, mixture) + _kl(t, mixture)) / 2


def _check(metric: SampleMean, student: Tensor, teacher: Tensor) -> None:
    """One row would else be compared with all of the other's."""
    if student.shape != teacher.shape:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"{type(metric).__name__}: needs logits of one shape (B, C), got {shapes}")


def _log_p(logits: Tensor, temperature: float) -> Tensor:
    return (exact(logits) / temperature).log_softmax(-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Of log-probabilities; a class that p rules out adds nothing."""
    return torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(-1).clamp(min=0)
