"""Whether published weights are on this machine already. Nothing is fetched to tell."""

from __future__ import annotations

from pathlib import Path

import torch


def fetched(arch: str) -> bool:
    """Whether `weights: pretrained` of an architecture needs no network; of a user's own model nothing is known: True.

    Args:
        arch: `timm/NAME` or `torchvision/NAME`, perhaps with a tag after a dot.
    """
    source, _, name = arch.partition("/")
    if source == "timm":
        return _timm(name)
    return _torchvision(name) if source == "torchvision" else True


def _timm(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    told = get_pretrained_cfg(name)
    if told is None or not told.has_weights:
        return True
    files = [told.hf_hub_filename] if told.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    repo, _, revision = str(told.hf_hub_id or "").partition("@")
    if repo:
        return any(isinstance(try_to_load_from_cache(repo, file, revision=revision or None), str) for file in files)
    return _downloaded(str(told.url or told.file))


def _torchvision(name: str) -> bool:
    from torchvision import models

    stem, _, tag = name.partition(".")
    return _downloaded(models.get_model_weights(stem)[tag or "DEFAULT"].url)


def _downloaded(url: str) -> bool:
    """Whether torch.hub has a file of that name."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]).is_file()
