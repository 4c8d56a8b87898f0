"""Banks: the last known embedding of every training sample, the same on all ranks."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from kdkit import draws, ranks
from kdkit.losses.geometry import unit


def new_bank(key: int, rows: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Random rows (n, d) of expected length 1, uniform in ±√(3/d): a hash of `key`, no use of torch's generator."""
    words = draws.bits(draws.bits(key, torch.arange(rows))[:, None], torch.arange(dim))
    return words.to(torch.get_default_dtype()).mul_(math.sqrt(3 / dim) / 2**31).to(dtype)


@torch.no_grad()
def refresh(bank: Tensor, index: Tensor, rows: Tensor, momentum: float | Tensor) -> None:
    """Move the rows at `index` towards new ones and back to length 1, in place: b ← unit(m·b + (1 − m)·new).

    Args:
        bank: (n, d).
        index: (B,) int64. Where a sample is met twice its last row counts, on every device alike.
        rows: (B, d). One that is not finite moves nothing: what is stored is met again.
        momentum: m, the share of the old row.
    """
    ordered, position = index.sort(stable=True)
    last = position[torch.searchsorted(ordered, index.contiguous(), right=True) - 1]
    before = bank[index]
    moved = unit(momentum * before.to(rows.dtype) + (1 - momentum) * rows[last])
    bank.index_copy_(0, index, torch.where(moved.isfinite().all(1, keepdim=True), moved.to(bank.dtype), before))


def of_all_ranks(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The rows of all ranks in their order, whose batches must be of one size; the tensors themselves when alone."""
    if not ranks.speak():
        return tensors
    return tuple(_all_rows(t.contiguous()) for t in tensors)


def _all_rows(rows: Tensor) -> Tensor:
    found = rows.new_empty(ranks.count() * rows.shape[0], *rows.shape[1:])
    dist.all_gather_into_tensor(found, rows)
    return found
