"""A trained model's first weights: all that a file has of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from kdkit.models.build import build
from kdkit.models.weights import load_weights, read_metadata, read_weights, without_prefix
from kdkit.registry import KdkitError


def start_from(module: nn.Module, path: Path, arch: str, num_classes: int | None, **options: Any) -> None:
    """Load a file's weights; a classifier of another width stays as it was drawn.

    Into a net around another one (`backbone`) go the inner one's weights, too: what is around it stays as it was drawn.

    Args:
        module: as `build` makes it of the other words.
        path: of the file.
        arch: as in `build`.
        num_classes: likewise.
        options: likewise.

    Raises:
        KdkitError: the file does not fit.
    """
    try:
        _load(module, path, arch, **options)
    except KdkitError:
        backbone = options.pop("backbone", None)
        if backbone is None or read_metadata(path).get("arch") == arch:
            raise
        _load_backbone(module, path, arch, num_classes, backbone, options)


def _load(module: nn.Module, path: Path, arch: str, **options: Any) -> None:
    own, stored = module.state_dict(), without_prefix(read_weights(path), module)
    theirs = {key: stored[key] for key in own if key in stored}
    widths = {len(v) for key, v in theirs.items() if v.ndim and v.shape != own[key].shape}
    if len(widths) != 1:
        load_weights(module, path, arch=arch)
        return
    donor = build(arch, num_classes=widths.pop(), **options)
    load_weights(donor, path, arch=arch)
    kept = {key: value for key, value in donor.state_dict().items() if value.shape == own[key].shape}
    module.load_state_dict(kept, strict=False)


def _load_backbone(
    module: nn.Module, path: Path, arch: str, num_classes: int | None, backbone: Any, options: dict[str, Any]
) -> None:
    """The same net again, around a backbone with the file's weights: its tensors are known wherever they are now."""
    beside = {word: options[word] for word in ("base", "allow_custom") if word in options}
    inner = {**(backbone if isinstance(backbone, dict) else {"arch": backbone}), **beside}
    donor = build(num_classes=num_classes, **inner)
    start_from(donor, path, num_classes=num_classes, **inner)
    theirs = {id(tensor): tensor for tensor in (*donor.parameters(), *donor.buffers())}  # held: no other gets their ids
    whole = build(arch, num_classes=num_classes, backbone=donor, **options)
    kept = {name: t for name, t in (*whole.named_parameters(), *whole.named_buffers()) if id(t) in theirs}
    module.load_state_dict(kept, strict=False)
