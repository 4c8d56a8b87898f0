"""Bringing the two ends of an edge to one form and one size, without anything that is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.registry import KdkitError, nearest

Shape = tuple[int, ...]
POLICIES = ("pool", "gap", "resize")


def channels(shape: Shape) -> int:
    """Channels of a vector (D,), of tokens (N, D) or of a map (C, H, W)."""
    return shape[0] if len(shape) == 3 else shape[-1]


class Align(nn.Module):
    """Both sides in one form; unequal maps by a named policy.

    `pool` averages the larger map to the smaller, whichever side that is; `gap` averages both sides to vectors;
    `resize` interpolates the student's map to the teacher's size. Where one side is a vector, the other is averaged.

    Args:
        student: shape of the student's tensor without batch.
        teacher: shape of the teacher's.
        policy: `pool`, `gap` or `resize`.
        tokens: `map` lays tokens out as a map (their square grid; class and register tokens, in front, are left out),
            `tokens` does so to compare sizes and then lists all positions again; None keeps them as they are.
        grid: rows and columns of the tokens where they are no square.

    Attributes:
        student: shape of the student's side behind the alignment.
        teacher: shape of the teacher's side behind it.

    Raises:
        KdkitError: the two forms cannot be compared; the text says which head or policy can.
    """

    def __init__(
        self, student: Shape, teacher: Shape, policy: Any, tokens: str | None = None, grid: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        for side, shape in (("student", student), ("teacher", teacher)):
            if not 1 <= len(shape) <= 3:
                raise KdkitError(f"head: the {side}'s tap must give (D,), (N, D) or (C, H, W), got {shape}")
        if policy not in POLICIES:
            near = nearest(str(policy), list(POLICIES))
            raise KdkitError(f"head: maps must be one of {', '.join(POLICIES)}, got {policy!r}{near}")
        self.policy, self.listed = policy, tokens == "tokens"
        self.grids: list[tuple[int, int] | None] = [None, None]
        if tokens is None and grid is not None:
            raise KdkitError("head: grid must go with tokens_to_map or map_to_tokens; leave it out")
        if tokens is not None:
            if 2 not in (len(student), len(teacher)):
                raise KdkitError(f"head: one side must be tokens (N, D), got {student} and {teacher}; use another head")
            self.grids = [_grid(student, grid), _grid(teacher, grid)]
            student, teacher = _as_map(student, self.grids[0]), _as_map(teacher, self.grids[1])
        self.averaged = policy == "gap" or 1 in (len(student), len(teacher))
        self.size: tuple[int, int] | None = None
        if self.averaged:
            student, teacher = (channels(student),), (channels(teacher),)
        elif len(student) != len(teacher):
            raise KdkitError(
                f"head: tokens and a map must be laid out alike, got {student} and {teacher}; "
                "use the head tokens_to_map or map_to_tokens, or `maps: gap`"
            )
        elif len(student) == 2 and student[0] != teacher[0]:
            raise KdkitError(
                f"head: both sides must have as many tokens, got {student[0]} and {teacher[0]}; "
                "use the head tokens_to_map, or `maps: gap`"
            )
        elif student[1:] != teacher[1:] and len(student) == 3:
            smaller = (min(student[1], teacher[1]), min(student[2], teacher[2]))
            self.size = smaller if policy == "pool" else (teacher[1], teacher[2])
            student, teacher = (student[0], *self.size), (teacher[0], *self.size)
        if self.listed and not self.averaged:
            student, teacher = ((s[1] * s[2], s[0]) for s in (student, teacher))
        self.student, self.teacher = student, teacher

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """(B, …) of both sides → (B, …) of `self.student` and `self.teacher`."""
        return self._side(student, self.grids[0]), self._side(teacher, self.grids[1])

    def _side(self, x: Tensor, grid: tuple[int, int] | None) -> Tensor:
        if grid:
            x = x[:, x.shape[1] - math.prod(grid) :].transpose(1, 2).reshape(len(x), -1, *grid)
        if self.averaged:
            return x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x
        if self.size and tuple(x.shape[2:]) != self.size:
            if self.policy == "resize":
                x = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
            else:
                x = F.adaptive_avg_pool2d(x, self.size)
        return x.flatten(2).transpose(1, 2) if self.listed else x


def _as_map(shape: Shape, grid: tuple[int, int] | None) -> Shape:
    return (shape[-1], *grid) if grid else shape


def _grid(shape: Shape, given: Sequence[int] | None) -> tuple[int, int] | None:
    """Rows and columns of tokens; None for a side that has none."""
    if len(shape) != 2:
        return None
    if given is None:
        side = math.isqrt(shape[0])
        return side, side
    numbers = [n for n in given if isinstance(n, int) and n > 0] if isinstance(given, (list, tuple)) else []
    if len(numbers) != 2 or math.prod(numbers) > shape[0]:
        raise KdkitError(f"head: grid must be [rows, columns] of at most {shape[0]} tokens, got {given!r}")
    return numbers[0], numbers[1]
