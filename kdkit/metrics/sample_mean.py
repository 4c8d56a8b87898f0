"""What metrics of single samples share: a sum, a count, and their quotient."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class SampleMean(Metric):
    """Mean over all samples of what `values` gives for each; sums stay on the device and add up over ranks."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @abstractmethod
    def values(self, first: Tensor, second: Tensor) -> Tensor:
        """One number for each sample, (B,)."""

    def update(self, first: Tensor, second: Tensor) -> None:
        """Count one batch."""
        values = self.values(first, second)
        self.total += values.sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        """The mean; NaN where nothing was counted."""
        return self.total / self.count


def exact(x: Tensor) -> Tensor:
    """In fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def widest(x: Tensor) -> Tensor:
    """In fp64, for long sums, where the device knows it."""
    return exact(x) if x.device.type == "mps" else x.double()


def moves(square: Tensor, mean: Tensor, n: Tensor | int) -> Tensor:
    """Whether the squared differences of n numbers from their mean, summed, are more than rounding."""
    return square > (square + n * mean.square()) * (8 * torch.finfo(square.dtype).eps) ** 2
