"""Weights that a recipe stands for: trained when they are not there yet, once, and kept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdkit.console import tell
from kdkit.data.home import home
from kdkit.recipe import Recipe, content_key, source, tuning
from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder, first_rank
from kdkit.runs.lock import only_here


def teachers() -> Path:
    """Where all runs find the teachers that were trained for one of them."""
    return home() / "teachers"


def own_run(path: Path) -> RunFolder | None:
    """The run's folder that `path` is, where what is found of it is kept; a teacher that runs share keeps nothing."""
    run = RunFolder(path)
    return run if run.recipe.is_file() and teachers().resolve() not in path.resolve().parents else None


def teacher_folder(recipe: Recipe) -> RunFolder:
    """The folder that a recipe's result has for ever: its name holds a hash of all that the result depends on."""
    return RunFolder(teachers() / f"{recipe.name}-{content_key(recipe)[:12]}", teacher=True)


def trained_weights(recipe: Recipe, fit: Callable[[Recipe, RunFolder], Any]) -> Path:
    """The weights file of a recipe that trains one model; fitted here and now where nobody has done so before.

    A second process that wants the same weights waits for the first.

    Args:
        recipe: the teacher's own.
        fit: trains a recipe into a folder, or goes on with what was begun there.

    Raises:
        KdkitError: the recipe trains several models, or `KDKIT_HOME` cannot be written.
    """
    if len(recipe.trained) != 1:
        raise KdkitError(
            f"weights: recipe {recipe.name!r} trains {len(recipe.trained)} models, and must train one; "
            "give a weights file"
        )
    folder = teacher_folder(recipe)
    if not folder.complete:
        if first_rank():
            folder.check(resume=True, overwrite=False)
        with only_here(folder, waiting=lambda who: _tell(f"waiting for another run that trains {recipe.name} ({who})")):
            if not folder.complete:
                fit(recipe, folder)
    _tell(f"using {recipe.name} from {folder.path}")
    return folder.weights(recipe.trained[0])


def saw_held_out(recipe: Recipe, name: str) -> bool:
    """Whether a model was trained, by a recipe of its own, on the images that a run's `val_split` holds out."""
    spec = recipe.models[name]
    if not recipe.data.arguments.get("val_split") or not (spec.tune is not None or spec.source == "recipe"):
        return False
    its, ours = (tuning(recipe, name) if spec.tune is not None else source(recipe, name)).data, recipe.data
    same = all(its.arguments.get(word) == ours.arguments.get(word) for word in ("val_split", "split_seed"))
    return its.name == ours.name and its.arguments.get("root") == ours.arguments.get("root") and not same


def _tell(text: str) -> None:
    if first_rank():
        tell(text, sys.stdout)
