"""What heads are made of. All but the convolutions see channels last: (B, D), (B, N, D) or (B, H, W, C)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.registry import KdkitError, nearest

Shape = tuple[int, ...]
_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "gelu": nn.GELU, "silu": nn.SiLU}
_NORMS = ("batch", "layer")
_LARGEST_KERNEL = 7  # beyond it, a convolution that eats the difference in size has too many weights to be meant


def whole(head: str, **values: Any) -> None:
    """Raise `KdkitError` unless each option is a whole number of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise KdkitError(f"{head}: {name} must be a whole number of at least 1, got {value!r}")


def number(head: str, **values: Any) -> None:
    """Raise `KdkitError` unless each option is a finite number of at least 0."""
    for name, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
            raise KdkitError(f"{head}: {name} must be a number of at least 0, got {value!r}")


def choice(head: str, known: Sequence[str], **values: Any) -> None:
    """Raise `KdkitError` unless each option is one of the known words."""
    for name, value in values.items():
        if value not in known:
            near = nearest(str(value), list(known))
            raise KdkitError(f"{head}: {name} must be one of {', '.join(known)}, got {value!r}{near}")


def activated(head: str, width: int, norm: str | None, activation: str) -> list[nn.Module]:
    """The normalisation, if any, and the activation behind a layer of that width."""
    choice(head, tuple(_ACTIVATIONS), activation=activation)
    after: list[nn.Module] = [_ACTIVATIONS[activation]()]
    if norm is None:
        return after
    choice(head, _NORMS, norm=norm)
    return [BatchNorm(width) if norm == "batch" else nn.LayerNorm(width), *after]


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm over all dimensions but the last; a single row in training is an error and no silent zero."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        rows = x.reshape(-1, x.shape[-1])
        if self.training and len(rows) < 2:
            raise ValueError("head: batch must be larger than 1 in training with norm: batch, got 1; use norm: layer")
        return super().forward(rows).reshape(x.shape)


class Charging(nn.Module):
    """A net whose last forward left a `penalty`: a 0-dim tensor to be added to the loss, or None."""

    penalty: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "penalty": None}  # it holds a graph, which neither pickles nor copies


class Variational(Charging):
    """An information bottleneck: z ~ N(μ, σ²) in training and μ otherwise, then a linear map.

    Penalty: β·KL(N(μ, σ²) ‖ N(0, 1)), summed over the width, mean over everything else.
    """

    def __init__(self, inputs: int, width: int, outputs: int, beta: float) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(inputs, 2 * width), nn.Linear(width, outputs)
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) → (…, outputs)."""
        code: Tensor = self.encode(x)
        mean, log_variance = code.to(torch.promote_types(code.dtype, torch.float32)).chunk(2, -1)
        log_variance = log_variance.clamp(-20, 20)
        self.penalty = self.beta * 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        out: Tensor = self.decode(z.to(code.dtype))
        return out


class Sparse(Charging):
    """A linear map with few outputs: all but the k largest in size are zero, or their mean size is charged."""

    def __init__(self, inputs: int, outputs: int, l1: float, top_k: int | None) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.l1, self.top_k = l1, top_k

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) → (…, outputs)."""
        y: Tensor = self.linear(x)
        if self.l1:
            self.penalty = self.l1 * y.to(torch.promote_types(y.dtype, torch.float32)).abs().mean()
        if self.top_k is None:
            return y
        kept = y.abs().topk(self.top_k, -1).indices
        return y * torch.zeros_like(y).scatter(-1, kept, 1.0)


class Mean(nn.Module):
    """The mean of nets that differ in their initial weights, and of their penalties."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    @property
    def penalty(self) -> Tensor | None:
        """Mean of the nets' penalties, or None."""
        penalties = [getattr(net, "penalty", None) for net in self.nets]
        found = [penalty for penalty in penalties if penalty is not None]
        return torch.stack(found).mean() if found else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) that the nets take → what they give."""
        return torch.stack([net(x) for net in self.nets]).mean(0)


class ConvBnRelu(nn.Module):
    """Convolution → BatchNorm → ReLU, from one size of map to another.

    From twice the size: 3×3 with stride 2; from half of it: transposed 4×4 with stride 2; otherwise the kernel, without
    padding, that leaves the teacher's size: 1×1 for equal sizes.
    """

    def __init__(self, student: Shape, teacher: Shape, relu: bool) -> None:
        super().__init__()
        (inputs, *s), (outputs, *t) = student, teacher
        self.conv: nn.Module = nn.Identity()
        if s == [2 * n for n in t]:
            self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        elif t == [2 * n for n in s]:
            self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
        else:
            self.conv = nn.Conv2d(inputs, outputs, (1 + s[0] - t[0], 1 + s[1] - t[1]))
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = relu

    @staticmethod
    def reaches(student: Shape, teacher: Shape) -> bool:
        """Whether such a convolution leads from one shape to the other without any pooling."""
        if len(student) != 3 or len(teacher) != 3:
            return False
        pairs = list(zip(student[1:], teacher[1:], strict=True))
        twice = all(s == 2 * t for s, t in pairs) or all(2 * s == t for s, t in pairs)
        return twice or all(0 <= s - t < _LARGEST_KERNEL for s, t in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """The student's (B, C, H, W) → the teacher's."""
        x = self.conv(x)
        if self.training and x.numel() == x.shape[1]:
            raise ValueError("conv_bn_relu: batch must be larger than 1 in training on 1×1 maps, got 1; use conv1x1")
        x = self.bn(x)
        return F.relu(x) if self.relu else x
