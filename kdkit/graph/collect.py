"""What is done to a tensor on its way into a loss: gathering over ranks, clipping the gradient that it sends back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor

from kdkit import ranks


def gather_rows(x: Tensor) -> Tensor:
    """All ranks' rows; the gradient of a loss that every rank computes alike comes back right after averaging."""
    if not ranks.speak():
        return _as_many(x)
    return torch.cat(dist_nn.all_gather(x))


def gather_rows_detached(x: Tensor | None) -> Tensor | None:
    """All ranks' rows of a constant."""
    if x is None or not ranks.speak():
        return x if x is None else _as_many(x)
    rows = [torch.empty_like(x) for _ in range(ranks.count())]
    dist.all_gather(rows, x.contiguous())
    return torch.cat(rows)


def _as_many(x: Tensor) -> Tensor:
    """As many rows as will be gathered: in a rehearsal this rank's own stand in for the others'."""
    return x if ranks.count() == 1 else torch.cat([x] * ranks.count())


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
        norm = torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
        return gradient * (limit / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0).to(gradient.dtype), None
