"""Wrappers around a model that would hide its inside, or share its batch out behind the graph's back."""

from __future__ import annotations

import torch
from torch import nn

from kdkit.registry import KdkitError


def check_bare(module: nn.Module) -> None:
    """Raise `KdkitError` unless the model itself was given, and not what runs it."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise KdkitError(
            f"node: {type(module).__name__} shares batches out by itself; give the model inside (`.module`), "
            'and the Trainer devices=… and strategy="ddp"'
        )
    if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
        raise KdkitError(
            "node: a model that torch.compile has compiled cannot be read inside; give the model itself, "
            "and say `compile: true` (in Python Distiller(…, compile=True))"
        )
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise KdkitError(
            "node: TorchScript cannot be read inside or trained; give the model that it was made from, with its weights"
        )
