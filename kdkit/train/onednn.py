"""What oneDNN's convolutions on a CPU do wrong, in every release of torch that kdkit runs on, and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from kdkit.registry import KdkitError

BLOCK = 16  # channels a block of its 1×1 convolutions: 16 with AVX-512, 8 with AVX2


def overruns(models: Iterable[nn.Module]) -> bool:
    """Whether training these on a CPU in channels_last would write past oneDNN's workspace.

    So does the weight gradient of a strided 1×1 convolution of fewer channels than a block: a crash, or wrong numbers
    (uxlfoundation/oneDNN#6035).
    """
    return any(
        tuple(layer.kernel_size) == (1, 1)
        and tuple(layer.stride) != (1, 1)
        and layer.in_channels // layer.groups < BLOCK
        for model in models
        for _, layer in _convolutions(model)
    )


@contextmanager
def no_wide_strides(models: Mapping[str, nn.Module], precision: str, device: torch.device) -> Iterator[None]:
    """Refuses models whose convolutions, as they run meanwhile, oneDNN cannot train in bf16.

    Where a stride is wider than the map (2 on 1×1), taps that see nothing but padding get whatever memory held as
    their gradient.

    Raises:
        KdkitError: there is one, and these would be trained on a CPU in bf16.
    """
    found: list[str] = []
    hooks = [
        layer.register_forward_pre_hook(partial(_note, found, f"{name}.{place}"), with_kwargs=True)
        for name, model in models.items()
        for place, layer in _convolutions(model)
        if max(layer.kernel_size) > 1 and max(layer.stride) > 1
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if found and precision.startswith("bf16") and device.type == "cpu":
        raise KdkitError(
            f"{found[0]}, whose gradient torch gets wrong in bf16 on a CPU; "
            "say trainer.precision=32-true, or give larger images"
        )


def emulated(precision: str, device: torch.device) -> Iterator[str]:
    """What to be told where convolutions in bf16 are imitated, as on a CPU with AVX2 alone."""
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if device.type == "cpu" and precision.startswith("bf16") and known is not None and not known():
        told = f"trainer.precision={precision} is imitated, and slower than 32-true"
        yield f"this CPU has no instructions for bf16: {told}"


def _note(found: list[str], place: str, layer: nn.Conv2d, inputs: tuple[Any, ...], words: dict[str, Any]) -> None:
    (x,) = (*inputs, *words.values())
    sides = tuple(x.shape[-2:])
    if any(side < stride for side, stride in zip(sides, layer.stride, strict=True)):
        found.append(f"{place} has stride {max(layer.stride)} on a map of {sides[0]}×{sides[1]}")


def _convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d))
