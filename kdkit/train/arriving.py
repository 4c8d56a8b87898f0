"""A step's numbers on their way from an accelerator to the host, which does not wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

LAG = 4
"""Steps after which numbers are looked at: by then they have arrived. It is always as many, so that ranks agree."""


@dataclass
class Seen:
    """The numbers of one step, by name, and the batch that it saw."""

    step: int
    epoch: int
    data: Any
    names: list[str]
    values: Tensor
    event: Any = None


class Arriving:
    """Numbers of the last steps; their batches are held until then."""

    def __init__(self) -> None:
        self._coming: deque[Seen] = deque()

    def send(self, seen: Seen) -> None:
        """Begin to copy a step's numbers to the host."""
        if asynchronous(seen.values.device):
            here = torch.empty(seen.values.shape, dtype=seen.values.dtype, pin_memory=True)
            seen.values = here.copy_(seen.values, non_blocking=True)
            seen.event = torch.cuda.Event()
            seen.event.record()
        self._coming.append(seen)

    def due(self) -> Iterator[Seen]:
        """Those that were sent so long ago that they have arrived."""
        while self._coming and (self._coming[0].event is None or len(self._coming) > LAG):
            yield self._next()

    def all(self) -> Iterator[Seen]:
        """All, which is waited for."""
        while self._coming:
            yield self._next()

    def forget(self) -> None:
        """Nothing is coming any more."""
        self._coming.clear()

    def _next(self) -> Seen:
        seen = self._coming.popleft()
        if seen.event is not None:
            seen.event.synchronize()
        return seen


def asynchronous(device: torch.device) -> bool:
    """Whether a look at a number would be to wait."""
    return device.type == "cuda"


def stacked(terms: Mapping[str, Tensor]) -> Tensor:
    """Numbers in one tensor, in fp32 at least."""
    values = [value.detach() for value in terms.values()]
    wide = any(value.dtype == torch.float64 for value in values)
    kind = torch.float64 if wide else torch.float32
    return torch.stack([value.to(kind) for value in values]) if values else torch.zeros(0)


def shared(good: Tensor) -> Tensor:
    """Whether it is good on every rank."""
    dist.all_reduce(all_of_them := good.float(), dist.ReduceOp.MIN)
    return all_of_them.bool()


def along(values: Tensor, good: Tensor) -> Tensor:
    """One number more, which is not finite where something is not good."""
    return torch.cat([values, (1 / good.to(values.dtype)).view(1)])
