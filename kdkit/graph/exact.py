"""Scheduled numbers keep their digits where a model is turned to half precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

HALF = (torch.float16, torch.bfloat16)


def apply_exactly(numbers: Iterable[tuple[nn.Module, str]], apply: Callable[[], object]) -> None:
    """Run `apply` (a `.to()`, `.half()`, …), in which the buffers named change their device but do not become half."""
    before = [(module, word, getattr(module, word)) for module, word in numbers]
    apply()
    for module, word, number in before:
        now = getattr(module, word)
        if now.dtype in HALF:
            setattr(module, word, number.to(now.device))
