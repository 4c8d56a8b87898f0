"""Heads (projections): what brings the student's tensor to the teacher's shape, for the sake of a loss alone.

A head is chosen by name (`HEADS`), sized by the two shapes, trained with the student and never part of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from kdkit.models.heads.align import Align, Shape, channels
from kdkit.models.heads.kinds import HEADS, HeadInfo, parse
from kdkit.models.heads.layers import ConvBnRelu
from kdkit.models.heads.pca import PCA
from kdkit.registry import KdkitError, nearest

__all__ = ["HEADS", "PCA", "Head", "HeadInfo", "build_head"]

_COMMON = ("maps", "grid", "l2", "weight_norm", "teacher")


class Head(nn.Module):
    """A projection between the two ends of an edge.

    `forward(student, teacher)` gives both sides as the loss wants them: the student's projected, the teacher's detached
    and at most averaged, laid out anew, reduced to its principal components and normalised.

    Attributes:
        shape: shape of both sides behind the head, without batch.
        penalty: what the last forward charges beside the loss (a 0-dim tensor, its factor included), or None.
    """

    def __init__(self, align: Align, net: nn.Module, pca: PCA | None, pointwise: bool, l2: bool, shape: Shape) -> None:
        super().__init__()
        self.align, self.net, self.pca = align, net, pca
        self.pointwise, self.l2 = pointwise, l2
        self.shape = shape

    @property
    def penalty(self) -> Tensor | None:
        """What the last forward charges beside the loss, or None."""
        found: Tensor | None = getattr(self.net, "penalty", None)
        return found

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """(B, …) of both taps → (B, …) of one shape for both."""
        student, teacher = self.align(student, teacher.detach())
        student = _last(self.net, student) if self.pointwise else self.net(student)
        if self.pca is not None:
            teacher = _last(self.pca, teacher)
            student = _last(self.pca.kept, student)
        if self.l2:
            student, teacher = _unit(student), _unit(teacher)
        return student, teacher


def build_head(spec: str | Mapping[str, Any], student_shape: Shape, teacher_shape: Shape) -> Head:
    """A head by the words of a recipe.

    Args:
        spec: a name of `HEADS`, or `{name: {options}}`. Besides its own options every head takes
            `maps`: what unequal maps do, `pool` (default), `gap` or `resize`;
            `grid`: rows and columns of tokens that are no square;
            `l2`: both sides divided by their length over the channels;
            `weight_norm`: w = g·v/‖v‖ in its linear layers and convolutions (Salimans and Kingma, 1602.07868);
            `teacher`: `pca` or `{pca: {keep, dim, batches}}`, which reduces the teacher's side.
        student_shape: (D,), (N, D) or (C, H, W), without batch.
        teacher_shape: likewise.

    Raises:
        UnknownNameError: no such head; the nearest names are offered.
        KdkitError: an unknown option, a value outside its range, or shapes that this head cannot bring together.
    """
    info, options = parse(spec, _COMMON)
    common = {word: options.pop(word, None) for word in _COMMON}
    pointwise = info.form not in ("map", "own size")
    policy = "pool" if common["maps"] is None else common["maps"]
    for word in ("l2", "weight_norm"):
        if not isinstance(common[word], (bool, type(None))):
            raise KdkitError(f"head {info.name!r}: {word} must be true or false, got {common[word]!r}")
    laid = {"tokens to map": "map", "map to tokens": "tokens"}.get(info.form)
    align = Align(student_shape, teacher_shape, policy, laid, common["grid"])
    if info.form == "own size" and policy != "gap" and ConvBnRelu.reaches(student_shape, teacher_shape):
        align = Align(student_shape, student_shape, policy)
        align.teacher = teacher_shape
    if not pointwise and len(align.student) != 3:
        raise KdkitError(
            f"head {info.name!r}: both sides must be maps (C, H, W), got {student_shape} and {teacher_shape}"
            f"{' with maps: gap' if policy == 'gap' else ''}; use linear or mlp"
        )
    pca = _pca(common["teacher"], channels(align.teacher)) if common["teacher"] is not None else None
    teacher = _with_channels(align.teacher, pca.dim) if pca else align.teacher
    net = info.build(align.student, teacher, **options)
    if common["weight_norm"]:
        _weight_norm(info.name, net)
    return Head(align, net, pca, pointwise, common["l2"] is True, teacher)


def _pca(spec: Any, inputs: int) -> PCA:
    spec = {spec: None} if isinstance(spec, str) else spec
    if not isinstance(spec, Mapping) or list(spec) != ["pca"]:
        raise KdkitError(f"head: teacher must be pca or {{pca: {{options}}}}, got {spec!r}")
    options = dict(spec["pca"] or {})
    known = ["keep", "dim", "batches"]
    for word in options:
        if word not in known:
            near = nearest(str(word), known) or f"; known: {', '.join(known)}"
            raise KdkitError(f"pca: unknown option {word!r}{near}")
    return PCA(inputs, **options)


def _with_channels(shape: Shape, width: int) -> Shape:
    return (width, *shape[1:]) if len(shape) == 3 else (*shape[:-1], width)


def _weight_norm(name: str, net: nn.Module) -> None:
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    if not layers:
        raise KdkitError(f"head {name!r}: weight_norm needs a linear layer or a convolution, found none; leave it out")
    for layer in layers:
        parametrizations.weight_norm(layer, dim=1 if isinstance(layer, nn.ConvTranspose2d) else 0)


def _last(function: Any, x: Tensor) -> Tensor:
    """Apply a function of channels-last tensors to (B, D), (B, N, D) or (B, C, H, W)."""
    if x.ndim != 4:
        return function(x)  # type: ignore[no-any-return]
    return function(x.movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]


def _unit(x: Tensor) -> Tensor:
    """Length 1 over the channels, in at least fp32; what is as good as zero stays so, with its gradient as it is."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    square = x.square().sum(1 if x.ndim == 4 else -1, keepdim=True)
    return x * torch.where(square > 1e-16, square, 1.0).rsqrt()
