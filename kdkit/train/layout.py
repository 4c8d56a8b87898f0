"""The memory format of images and weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

ONEDNN_BLOCK = 16  # channels a block of its 1×1 convolutions: 16 with AVX-512, 8 with AVX2


def overruns(models: Iterable[nn.Module]) -> bool:
    """Whether training these on a CPU in channels_last would write past oneDNN's workspace.

    So does the weight gradient of a strided 1×1 convolution of fewer channels than a block: a crash, or wrong numbers
    (uxlfoundation/oneDNN#6035, in every release of torch that kdkit runs on).
    """
    return any(
        isinstance(layer, nn.Conv2d)
        and tuple(layer.kernel_size) == (1, 1)
        and tuple(layer.stride) != (1, 1)
        and layer.in_channels // layer.groups < ONEDNN_BLOCK
        for model in models
        for layer in model.modules()
    )


def channels_last(x: Tensor) -> Tensor:
    """A batch of images, or a convolution's weights, in channels_last; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
