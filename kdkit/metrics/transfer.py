"""How much of a teacher's advantage a student took over."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DRAWS = 2000


@dataclass(frozen=True)
class Transfer:
    """Accuracy-transfer ratio (A_student − A_alone) / (A_teacher − A_alone), with a 95 % interval.

    Above 1 the student beats its teacher, below 0 it does worse than without one.

    Attributes:
        ratio: NaN where it says nothing.
        low: of the interval.
        high: of the interval.
        reason: why there is no ratio; empty where there is one.
    """

    ratio: float
    low: float
    high: float
    reason: str = ""


def transfer_ratio(student: Tensor, teacher: Tensor, alone: Tensor, seed: int = 0) -> Transfer:
    """The ratio, its interval by a paired bootstrap over what the accuracies are of.

    Args:
        student: accuracies by seed, or whether each image is right, (n,); the distilled student.
        teacher: likewise, (n,); or (1,), one teacher of all seeds.
        alone: likewise, (n,): the same student, on the same seeds or images, without a teacher.
        seed: of the bootstrap.

    Raises:
        ValueError: other shapes.
    """
    if student.ndim != 1 or not len(student) or student.shape != alone.shape or len(teacher) not in (1, len(student)):
        shapes = [tuple(x.shape) for x in (student, teacher, alone)]
        raise ValueError(f"transfer_ratio: needs student and alone of one length and a teacher of it or of 1: {shapes}")
    s, t, a = (x.detach().cpu().double() for x in (student, teacher.expand(len(student)), alone))
    gap = t - a
    error = float(gap.std() / math.sqrt(len(gap))) if len(gap) > 1 else 0.0
    if abs(lead := float(gap.mean())) <= 2 * error or lead == 0:
        why = f"the teacher's lead of {lead:.4g} is not above twice its error of {error:.2g}"
        return Transfer(math.nan, math.nan, math.nan, why)
    ratio = float((s - a).mean()) / lead
    if len(gap) == 1:
        return Transfer(ratio, math.nan, math.nan)
    drawn = torch.Generator().manual_seed(seed)
    found = torch.empty(DRAWS, dtype=torch.float64)
    for i in range(DRAWS):
        at = torch.randint(len(gap), (len(gap),), generator=drawn)
        found[i] = (s[at] - a[at]).mean() / gap[at].mean()
    low, high = found[found.isfinite()].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Transfer(ratio, low, high)
