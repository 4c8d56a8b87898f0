"""The memory format of images and weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def channels_last(x: Tensor) -> Tensor:
    """A batch of images, or a convolution's weights, in channels_last; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def lay_out(models: Iterable[nn.Module]) -> None:
    """Their weights in channels_last."""
    for parameter in (p for model in models for p in model.parameters()):
        parameter.data = channels_last(parameter.data)
