"""Looking without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from kdkit import generators


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Whatever runs inside leaves buffers, modes and random numbers as they were; nothing is recorded for autograd."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    modes = {part: part.training for part in module.modules()}
    try:
        with generators.kept(), torch.no_grad():
            yield
    finally:
        for name, buffer in module.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
        for part, mode in modes.items():
            part.training = mode
