"""Two things done to a tensor on its way into a loss: gathering it over ranks, and clipping the gradient it sends back."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor

Maybe = TypeVar("Maybe", Tensor, None)


def gather_rows(x: Tensor) -> Tensor:
    """All ranks' rows; the gradient of a loss that every rank computes alike comes back right after averaging."""
    return torch.cat(dist_nn.all_gather(x)) if _many() else x  # type: ignore[no-untyped-call]


def gather_rows_detached(x: Maybe) -> Maybe:
    """All ranks' rows of a constant."""
    if x is None or not _many():
        return x
    rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, x.contiguous())
    return torch.cat(rows)


def clip_gradient(x: Tensor, limit: Tensor) -> Tensor:
    """X itself; the gradient through it is scaled to a norm of at most `limit`."""
    return _Clip.apply(x, limit)  # type: ignore[no-any-return,no-untyped-call]


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: Tensor) -> Tensor:
        ctx.save_for_backward(limit)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (limit,) = ctx.saved_tensors
        norm = torch.linalg.vector_norm(gradient)
        return gradient * (limit / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0).to(gradient.dtype), None


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
