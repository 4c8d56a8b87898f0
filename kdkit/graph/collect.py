"""What is done to a tensor on its way into a loss: gathering over ranks, clipping the gradient that it sends back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor


def gather_rows(x: Tensor) -> Tensor:
    """All ranks' rows; the gradient of a loss that every rank computes alike comes back right after averaging."""
    return torch.cat(dist_nn.all_gather(x)) if _many() else x


def gather_rows_detached(x: Tensor | None) -> Tensor | None:
    """All ranks' rows of a constant."""
    if x is None or not _many():
        return x
    rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, x.contiguous())
    return torch.cat(rows)


def clip_gradient(x: Tensor, limit: Tensor) -> Tensor:
    """X itself; the gradient through it is scaled to a norm of at most `limit`."""
    return _Clip.apply(x, limit)  # type: ignore[no-any-return]


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: Tensor) -> Tensor:
        ctx.save_for_backward(limit)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (limit,) = ctx.saved_tensors
        norm = torch.linalg.vector_norm(gradient)
        return gradient * (limit / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0).to(gradient.dtype), None


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _many() -> bool:
    return ranks() > 1
