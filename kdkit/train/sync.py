"""What ranks share: one flat all-reduce of a turn's gradients, and the first one's statistics before evaluation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from kdkit import ranks


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over ranks; nothing is done in a single process.

    DDP's own reducer expects one backward pass through every parameter, which turns and inactive nodes do not give.
    """
    if ranks.speak():
        average(parameter.grad for parameter in parameters if parameter.grad is not None)


def average(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its mean over ranks, which must be several."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for several in by_dtype.values():
        flat = _flatten_dense_tensors(several)
        dist.all_reduce(flat)
        flat /= ranks.count()
        torch._foreach_copy_(several, list(_unflatten_dense_tensors(flat, several)))


def share_buffers(module: nn.Module) -> None:
    """Give every rank the first one's buffers: what is evaluated is what is saved."""
    if ranks.speak():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def unshared_buffers(module: nn.Module) -> list[str]:
    """Full names of buffers that every rank keeps for itself (banks: DDP would broadcast them at each forward)."""
    return [
        f"{prefix}.{name}"
        for prefix, child in module.named_modules()
        for name in set(getattr(child, "ddp_ignore", ())) & dict(child.named_buffers()).keys()
    ]
