"""Looking without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdkit import generators

LIBRARIES = ("kdkit", "torch", "timm", "torchvision", "transformers")


def kept_apart(module: nn.Module) -> dict[tuple[nn.Module, str], Any]:
    """Numbers and tensors that modules of one's own keep beside their parameters and lasting buffers.

    No checkpoint holds them: what a step leaves in one for the next begins anew in a run that is resumed.
    """
    found: dict[tuple[nn.Module, str], Any] = {}
    for part in module.modules():
        if type(part).__module__.partition(".")[0] in LIBRARIES:
            continue
        passing = {name: part._buffers.get(name) for name in part._non_persistent_buffers_set}
        for name, value in {**vars(part), **passing}.items():
            if name != "training" and isinstance(value, (int, float, Tensor)):
                found[part, name] = value
    return found


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Whatever runs inside leaves buffers, modes, numbers and generators as they were; autograd records nothing.

    A buffer that is set anew inside is the old one again, and one that appears is gone.
    """
    modes = {part: part.training for part in module.modules()}
    held = {part: dict(part._buffers) for part in modes}
    buffers = [buffer for part in held.values() for buffer in part.values() if buffer is not None]
    apart = kept_apart(module)
    buffers += [value for value in apart.values() if isinstance(value, Tensor)]
    before = [(buffer, buffer.detach().clone()) for buffer in buffers]
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    try:
        with generators.kept(devices), torch.no_grad():
            yield
    finally:
        for (part, name), value in apart.items():
            if name in vars(part):
                setattr(part, name, value)
        for part, mine in held.items():
            part.training = modes[part]
            part._buffers.clear()
            part._buffers.update(mine)
        for buffer, value in before:
            strided = buffer.layout is torch.strided
            if not (strided and torch.equal(buffer, value)):  # BatchNorm writes past the version counter
                buffer.detach().copy_(value)
