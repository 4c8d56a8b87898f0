"""Weights that a recipe stands for: trained when they are not there yet, once, and kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from pytorch_lightning.utilities import rank_zero_only

from kdkit.recipe import Recipe, content_key
from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder


def home() -> Path:
    """Where trained teachers are kept: `KDKIT_HOME`, else `~/.cache/kdkit`."""
    return Path(os.environ.get("KDKIT_HOME") or Path.home() / ".cache" / "kdkit")


def teacher_folder(recipe: Recipe) -> RunFolder:
    """The folder that a recipe's result has for ever: its name holds a hash of all that the result depends on."""
    return RunFolder(home() / "teachers" / f"{recipe.name}-{content_key(recipe)[:12]}")


def first_rank() -> bool:
    """Whether this process is the one that writes: Lightning, torchrun and SLURM say so in the environment."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def trained_weights(recipe: Recipe, fit: Callable[..., Any]) -> Path:
    """The weights file of a recipe that trains one model; fitted here and now where nobody has done so before.

    A second process that wants the same weights waits for the first; a lock dies with its process.

    Args:
        recipe: the teacher's own.
        fit: `kdkit.runs.fit.fit`.

    Raises:
        KdkitError: the recipe trains several models.
    """
    trained = [name for name in recipe.models if recipe.kind(name) == "trained"]
    if len(trained) != 1:
        raise KdkitError(
            f"weights: recipe {recipe.name!r} trains {len(trained)} models, and must train one; give a weights file"
        )
    folder = teacher_folder(recipe)
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    # The other ranks of one run train together with the first, which holds the lock for all of them.
    with FileLock(f"{folder.path}.lock") if first_rank() else nullcontext():
        if not folder.complete:
            fit(recipe, out=folder.path, resume=True)
    return folder.weights(trained[0])
