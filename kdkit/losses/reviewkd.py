"""Knowledge review: the student's deep layers fused into its shallow ones, and each told by a layer of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.losses import checks
from kdkit.losses.geometry import pooled
from kdkit.losses.precision import convolved, full_precision, in_its_own_type
from kdkit.registry import register_loss

WIDEST = 512  # channels inside a fusion, at most
GRIDS = (4, 2, 1)  # to which maps are pooled, each with half the weight of the one before


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    students = [torch.randn(4, 3, 3, 3), torch.randn(4, 4, 2, 2), torch.randn(4, 5)]
    teachers = [torch.randn(4, 5, 4, 4), torch.randn(4, 4, 2, 2), torch.randn(4, 3)]
    return {"student_dims": (3, 4, 5), "teacher_dims": (5, 4, 3)}, {"students": students, "teachers": teachers}


@register_loss(
    "reviewkd",
    paper="Chen, Liu, Zhao, Jia, CVPR 2021, arXiv 2104.09044",
    tap=("stages", "embedding"),
    weight=1.0,
    weight_source="of the authors' ResNet-34 → ResNet-18; theirs on CIFAR-100 go from 0.6 (ResNet-56 → ResNet-20) to 8",
    zero_at_match=False,
    example=_example,
)
class ReviewKDLoss(nn.Module):
    """The teacher's layers told from the student's own and all deeper ones (knowledge review).

    Formula: from the deepest level L to the shallowest, R_L = c_L(S_L) and R_l = a_l ⊙ c_l(S_l) + b_l ⊙ up(R_{l+1}),
    where c is a 1 × 1 convolution with BatchNorm, R_{l+1} has been brought to the size of T_{l+1}, up and that take the
    nearest neighbour, and the maps a_l, b_l (B, 1, H, W)
    are the sigmoid of a 1 × 1 convolution of both side by side (ABF); O_l = BatchNorm of a 3 × 3 convolution of R_l in
    the size of T_l. The loss is Σ_l HCL(O_l, T_l), the mean square of O_l − T_l at full size and pooled to 4 × 4,
    2 × 2 and 1 × 1, as far as these are smaller, in the proportions 1, ½, ¼, ⅛ over their sum.

    Args:
        student_dims: channels of the student's levels, shallow to deep.
        teacher_dims: channels of the teacher's, as many.
        hidden: channels inside; left out: those of the student's deepest level, 512 at most.

    `forward(students, teachers)` takes lists, shallow to deep, of maps (B, C, H, W) and vectors (B, D), which are maps
    of 1 × 1. The teacher's are detached.

    Returns:
        A scalar, the sum over levels of mean squares.

    Raises:
        ValueError: other lists than it was built for, or fewer than 2 samples, which BatchNorm cannot take.

    Differs:
        The authors and mdistiller read the teacher before its ReLUs and warm the weight up over 20 epochs: in a recipe
        `from: [stages:preact, embedding]`, where every stage ends in an activation, and `weight: {warmup: …}`. Theirs
        take square maps of sizes given by hand.

    Reference:
        Chen, Liu, Zhao, Jia. Distilling Knowledge via Knowledge Review. CVPR 2021, arXiv 2104.09044.
    """

    min_batch = 2

    def __init__(self, student_dims: Sequence[int], teacher_dims: Sequence[int], hidden: int | None = None) -> None:
        super().__init__()
        ours, theirs = list(student_dims), list(teacher_dims)
        if not ours or len(ours) != len(theirs):
            raise ValueError(
                f"reviewkd: student_dims must be as many as teacher_dims, {len(theirs)}, got {len(ours)}; "
                "name one level of the student for each of the teacher"
            )
        for s, t in zip(ours, theirs, strict=True):
            checks.count("reviewkd", student_dims=s, teacher_dims=t)
        hidden = min(WIDEST, ours[-1]) if hidden is None else hidden
        checks.count("reviewkd", hidden=hidden)
        last = len(ours) - 1
        pairs = enumerate(zip(ours, theirs, strict=True))
        self.widths = ours, theirs
        self.fusions = nn.ModuleList(ABF(s, hidden, t, fuses=level < last) for level, (s, t) in pairs)

    @full_precision
    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """Compare (B, C, H, W) and (B, D) level by level; see the class."""
        checks.layers("reviewkd", students=students, teachers=teachers)
        if not len(students) == len(teachers) == len(self.fusions):
            raise ValueError(
                f"reviewkd: students and teachers must be {len(self.fusions)} levels each, got {len(students)} and "
                f"{len(teachers)}; build the loss with the channels of these"
            )
        ours = _maps("students", students, self.widths[0])
        theirs = [t.detach() for t in _maps("teachers", teachers, self.widths[1])]
        checks.several("reviewkd", ours[0], self.min_batch, "BatchNorm cannot take fewer")
        total, deeper = ours[0].new_zeros(()), None
        for abf, student, teacher in zip(reversed(self.fusions), reversed(ours), reversed(theirs), strict=True):
            for level in (student, teacher):
                checks.same_batch("reviewkd", ours[0], level)
            told, deeper = abf(student, deeper, teacher.shape[2:])
            total = total + hcl(told, teacher)
        return total


class ABF(nn.Module):
    """Attention based fusion: a level of the student and what the deeper ones left, in the shape of a teacher's.

    Args:
        inputs: channels of the student's level.
        hidden: channels inside.
        outputs: channels of the teacher's level.
        fuses: whether there are deeper levels.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, *, fuses: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.attention = nn.Conv2d(2 * hidden, 2, 1) if fuses else None
        self.conv2, self.bn2 = nn.Conv2d(hidden, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(B, inputs, H, W) → (B, outputs, *size), and (B, hidden, *size) for the next shallower level."""
        x = in_its_own_type(self.bn1, convolved(self.conv1, x))
        if self.attention is not None and self.attention.bias is not None and deeper is not None:
            of_own, of_deeper = self.attention.weight.to(x.dtype).chunk(2, 1)
            both = F.conv2d(x, of_own, self.attention.bias.to(x.dtype))
            both = both + _resized(F.conv2d(deeper, of_deeper), x.shape[2:])  # upsampled when it is small
            own, others = both.sigmoid().chunk(2, 1)
            x = torch.addcmul(x * own, _resized(deeper, x.shape[2:]), others)
        x = _resized(x, size)
        return in_its_own_type(self.bn2, convolved(self.conv2, x)), x


def hcl(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss of maps (B, C, H, W): mean squares at full size and pooled."""
    error, weight, weights = student - teacher, 1.0, 1.0
    total = error.square().mean()
    for grid in GRIDS:
        if grid < min(teacher.shape[2:]):
            weight /= 2
            weights += weight
            total = total + weight * pooled(error, (grid, grid)).square().mean()
    return total / weights


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return x if tuple(x.shape[2:]) == tuple(size) else F.interpolate(x, size=tuple(size), mode="nearest")


def _maps(name: str, tensors: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
    """The levels, vectors as maps of 1 × 1."""
    for level, (tensor, width) in enumerate(zip(tensors, widths, strict=False), 1):
        checks.numbers("reviewkd", **{name: tensor})
        if tensor.ndim not in (2, 4):
            raise ValueError(
                f"reviewkd: {name} must be maps (B, C, H, W) or vectors (B, D), got shape {tuple(tensor.shape)}; "
                "tokens need `taps: stages, head: tokens_to_map`"
            )
        if tensor.shape[1] != width:
            raise ValueError(
                f"reviewkd: {name} must have {width} channels at level {level}, got {tensor.shape[1]}; build the loss "
                "with these"
            )
    return [tensor if tensor.ndim == 4 else tensor[:, :, None, None] for tensor in tensors]
