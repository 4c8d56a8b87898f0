"""Looking without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from kdkit import generators


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Whatever runs inside leaves buffers, modes and random numbers as they were; nothing is recorded for autograd.

    A buffer that is set anew inside is the old one again, and one that appears is gone.
    """
    modes = {part: part.training for part in module.modules()}
    held = {part: dict(part._buffers) for part in modes}
    buffers = [buffer for part in held.values() for buffer in part.values() if buffer is not None]
    before = [(buffer, buffer.clone()) for buffer in buffers]
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    try:
        with generators.kept(devices), torch.no_grad():
            yield
    finally:
        for part, mine in held.items():
            part.training = modes[part]
            part._buffers.clear()
            part._buffers.update(mine)
        for buffer, value in before:
            strided = buffer.layout is torch.strided
            if not (strided and torch.equal(buffer, value)):  # BatchNorm writes past the version counter
                buffer.copy_(value)
