"""Flow of solution procedure: how the teacher's maps go with those of the layer before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.losses import checks
from kdkit.losses.geometry import equal_size
from kdkit.losses.precision import full_precision
from kdkit.registry import register_loss


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    students = [torch.randn(4, 2, 4, 4), torch.randn(4, 3, 4, 4), torch.randn(4, 4, 2, 2)]
    teachers = [torch.randn(4, 2, 6, 6), torch.randn(4, 3, 3, 3), torch.randn(4, 4, 3, 3)]
    return {}, {"students": students, "teachers": teachers}


@register_loss(
    "fsp",
    paper="Yim, Joo, Bae, Kim, CVPR 2017, pp. 4133-4141",
    tap=("stem", "stages"),
    weight=1.0,
    weight_source="RepDistiller, in a stage of its own before the labels; the 50 of its script multiplies nothing",
    zero_at_match=True,
    example=_example,
)
class FSPLoss(nn.Module):
    """Equal products of the channels of neighbouring layers (flow of solution procedure).

    Formula: sum over neighbouring layers l, l + 1 of the mean over B and C_l·C_{l+1} of (G_s − G_t)², where G =
    F_l·F_{l+1}ᵀ / (H·W) of the maps (C, H·W), the larger of the two brought to the smaller by adaptive average pooling;
    mode `paper`: the sum over C_l·C_{l+1} and the mean over B.

    Args:
        mode: `code`, as in RepDistiller, or `paper`, which is C_l·C_{l+1} times as large.

    `forward(students, teachers)` takes lists, shallow to deep, of at least two maps (B, C, H, W); a layer has as many
    channels on either side, and may have another size. The teacher's are detached.

    Returns:
        A scalar.

    Raises:
        ValueError: lists of unequal length or of less than two layers, unequal channels.

    Differs:
        The paper pools by maxima. It and RepDistiller let this loss alone teach at first and the labels alone
        afterwards: in a recipe two stages.

    Reference:
        Yim, Joo, Bae, Kim. A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
        Learning. CVPR 2017, pp. 4133-4141.
    """

    def __init__(self, mode: str = "code") -> None:
        super().__init__()
        checks.choice("fsp", ("code", "paper"), mode=mode)
        self.mode = mode

    @full_precision
    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """Compare lists of maps (B, C, H, W); see the class."""
        checks.layers("fsp", students=students, teachers=teachers)
        if not len(students) == len(teachers) >= 2:
            raise ValueError(
                f"fsp: students and teachers must be at least 2 layers and equally many, got {len(students)} and "
                f"{len(teachers)}; name both ends of each stretch (taps: [stem, stages])"
            )
        for student, teacher in zip(students, teachers, strict=True):
            checks.dims("fsp", "(B, C, H, W)", students=student, teachers=teacher)
            for layer in (student, teacher):
                checks.same_batch("fsp", layer, teachers[0])
            if student.shape[1] != teacher.shape[1]:
                raise ValueError(
                    f"fsp: students must have the teachers' {teacher.shape[1]} channels, got {student.shape[1]}; give "
                    "the edge a head (head: conv1x1)"
                )
        total = students[0].new_zeros(())
        for ours, theirs in zip(pairwise(students), pairwise([t.detach() for t in teachers]), strict=True):
            apart = (_flow(*ours) - _flow(*theirs)).square()
            total = total + (apart.sum((1, 2)).mean() if self.mode == "paper" else apart.mean())
        return total


def _flow(first: Tensor, last: Tensor) -> Tensor:
    """The FSP matrices of two layers: (B, C_l, C_{l+1})."""
    first, last = (maps.flatten(2) for maps in equal_size(first, last))
    return first @ last.mT / first.shape[2]
