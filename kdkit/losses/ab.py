"""Activation boundaries: each neuron of the student on the side of zero where the teacher's is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.losses import checks
from kdkit.losses.precision import full_precision
from kdkit.registry import register_loss

CONNECTOR = checks.HEAD.format("{conv_bn_relu: {relu: false}}")


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    students, teachers = ([torch.randn(4, 2, 3, 3), torch.randn(4, 3, 2, 2)] for _ in range(2))
    return {}, {"students": students, "teachers": teachers}


@register_loss(
    "ab",
    paper="Heo, Lee, Yun, Choi, AAAI 2019, arXiv 1811.03233",
    tap="stages:preact",
    weight=0.003,
    weight_source="the authors' code and RepDistiller, 3/1000 in a stage of its own before the labels",
    zero_at_match=False,
    example=_example,
    space={"margin": (0.25, 4.0)},
)
class ABLoss(nn.Module):
    """Neurons on the teacher's side of zero, by a margin (distillation of activation boundaries).

    Formula: sum over layers l = 1 … L of decay^(L − l) · 1/B · Σ_i h_i², with h_i = max(0, μ − s_i) where the teacher's
    neuron is active, t_i > 0, and max(0, μ + s_i) where it is not.

    Args:
        margin: μ, how far behind zero is far enough.
        decay: weight of a layer in terms of the next deeper one; 1 makes them equal, as in the paper's formula.

    `forward(students, teachers)` takes lists, shallow to deep, of what the layers' activations read, (B, C, H, W) or
    anything else of one shape on either side. The teacher's are detached.

    Returns:
        A scalar, a sum over neurons: the weight is small because they are many. NaN where either side is not finite.

    Raises:
        ValueError: lists of unequal length, unequal shapes.

    Differs:
        The factors ½ and 3/1000 are of the authors' code. It and RepDistiller let this loss alone teach at first, with
        a 1 × 1 convolution and BatchNorm where the shapes differ: in a recipe a stage, and `head: {conv_bn_relu:
        {relu: false}}`. Afterwards the authors' code has KD, RepDistiller the labels alone.

    Reference:
        Heo, Lee, Yun, Choi. Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons.
        AAAI 2019, arXiv 1811.03233.
    """

    def __init__(self, margin: float = 1.0, decay: float = 0.5) -> None:
        super().__init__()
        checks.positive("ab", margin=margin, decay=decay)
        self.margin: float | Tensor = margin
        self.decay: float | Tensor = decay

    @full_precision
    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """Compare lists of tensors (B, …) before their activations; see the class."""
        checks.layers("ab", students=students, teachers=teachers)
        if not len(students) == len(teachers) > 0:
            raise ValueError(
                f"ab: students must be as many layers as teachers, {len(teachers)}, got {len(students)}; name one "
                "layer of the student for each of the teacher"
            )
        for student, teacher in zip(students, teachers, strict=True):
            checks.numbers("ab", students=student, teachers=teacher)
            checks.same_shape("ab", student, teacher, CONNECTOR if student.ndim == teacher.ndim == 4 else "")
        total = students[0].new_zeros(())
        for student, teacher in zip(students, [t.detach() for t in teachers], strict=True):
            side = (teacher > 0).to(student.dtype).mul_(2).sub_(1)  # not torch.where, which is slow on a CPU
            missing = (self.margin - side * student).relu()
            seen = 0 * (student.detach().sum() + teacher.sum())  # what is not finite lies on a side, too
            total = total * self.decay + missing.square().sum() / len(student) + seen
        return total
