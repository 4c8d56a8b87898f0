"""Losses are computed in at least fp32, whatever half-precision tensors or autocast regions surround them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Found = TypeVar("Found")


def full_precision(forward: Callable[..., Found]) -> Callable[..., Found]:
    """Decorate a loss's `forward`: fp16 and bf16 tensors arrive as fp32, also inside lists, and autocast is off.

    float64 stays float64, integers stay what they are. Gradients flow back in the caller's own dtype. The wrapper keeps
    the signature, which is the loss's contract, and compiles with `fullgraph=True`.
    """

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Found:
        args = tuple([_promote(a) for a in args])
        kwargs = {k: _promote(v) for k, v in kwargs.items()}
        device = _device_type(args, kwargs)
        # Asked first: entering a context takes longer than a small loss. A dry run's meta device knows no autocast.
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return forward(self, *args, **kwargs)
        return forward(self, *args, **kwargs)

    # One code object a loss: torch.compile counts recompilations by code object, and gives up after eight.
    wrapped.__code__ = wrapped.__code__.replace(co_name=forward.__qualname__)
    return functools.wraps(forward)(wrapped)


def in_one_type(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider type of the two, for products take no others."""
    wider = torch.promote_types(one.dtype, other.dtype)
    return one.to(wider), other.to(wider)


def in_its_own_type(norm: nn.Module, x: Tensor) -> Tensor:
    """BatchNorm in the type of its weights, which it wants, whatever that of `x`; anything without weights as it is."""
    weight = getattr(norm, "weight", None)
    return norm(x) if weight is None else norm(x.to(weight.dtype)).to(x.dtype)  # type: ignore[no-any-return]


def convolved(conv: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A convolution in the type of `x`, whatever that of its weights."""
    product = F.conv_transpose2d if conv.transposed else F.conv2d
    bias = None if conv.bias is None else conv.bias.to(x.dtype)
    return product(x, conv.weight.to(x.dtype), bias, conv.stride, conv.padding)  # type: ignore[arg-type]


def _promote(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype is torch.float16 or value.dtype is torch.bfloat16 else value
    if isinstance(value, (list, tuple)):
        return [_promote(v) for v in value]
    return value


def _device_type(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    for value in (*args, *kwargs.values()):
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, Tensor):
            return first.device.type
    return "cpu"
