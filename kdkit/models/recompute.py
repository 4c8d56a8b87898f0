"""Activation checkpointing of anybody's net: its blocks are computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from kdkit.models.still import still
from kdkit.registry import KdkitError

ROWS = (nn.Sequential, nn.ModuleList)


def blocks(net: nn.Module) -> list[nn.Module]:
    """The innermost parts that stand in a row (`nn.Sequential`, `nn.ModuleList`) and are more than one layer.

    Raises:
        KdkitError: there are none.
    """
    standing = [
        part
        for row in net.modules()
        if isinstance(row, ROWS)
        for part in row.children()
        if any(True for _ in part.children()) and any(True for _ in part.parameters())
    ]
    whole = [part for part in standing if not isinstance(part, ROWS)] or standing
    found = [part for part in whole if not any(inner in whole for inner in part.modules() if inner is not part)]
    if not found:
        raise KdkitError(
            f"sid: recompute needs a backbone with blocks (an nn.Sequential of modules), and {type(net).__name__} "
            "has none; leave it out"
        )
    return found


@contextmanager
def recomputed(modules: list[nn.Module]) -> Iterator[None]:
    """What these compute inside keeps nothing but its input; BatchNorm counts the batch once.

    A module's own `forward` is replaced for as long as the block runs; hooks on the module itself see the first pass.
    """
    for module in modules:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False, context_fn=partial(_contexts, module))
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), still(module)
