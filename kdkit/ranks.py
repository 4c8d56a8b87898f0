"""How many processes train together, and whether they may speak with each other now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

_silent = False


def count() -> int:
    """How many there are; 1 where training is not distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def speak() -> bool:
    """Whether there are several, and not inside `silence`."""
    return count() > 1 and not _silent


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is exchanged inside: a rehearsal's tensors lie on the CPU, for which NCCL has no collectives."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before
