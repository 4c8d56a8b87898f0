"""Recipes that make another recipe's weights: a teacher's own recipe, or fitting a model to the data first."""

from __future__ import annotations

import json
from pathlib import Path

from kdkit.recipe.errors import Problem, RecipeError
from kdkit.recipe.find import find
from kdkit.recipe.load import load, of_tree
from kdkit.recipe.schema import Recipe
from kdkit.recipe.syntax import parse
from kdkit.recipe.write import document, dump

# What passes down to a recipe that is trained for another one; its seed and epochs are its own.
HANDED_DOWN = ("accelerator", "devices", "strategy", "num_nodes")
ADAMW = {"name": "adamw", "weight_decay": 0.05}


def source(recipe: Recipe, model: str, above: tuple[Path, ...] = ()) -> Recipe:
    """The recipe that a model's `weights` name, on this recipe's machine and its data folder.

    Args:
        recipe: which asks.
        model: one of its models, whose weights are a recipe.
        above: files of the recipes that wait already; one that waits for itself is refused.

    Raises:
        RecipeError: no such recipe, a wrong one, or one that waits for itself.
    """
    name = str(recipe.models[model].weights)
    path = find(name)
    if path.resolve() in above:
        chain = " → ".join(p.stem for p in (*above[above.index(path.resolve()) :], path))
        raise RecipeError([Problem(name, None, "", f"waits for itself: {chain}")])
    overrides = [
        f"trainer.{w}={json.dumps(getattr(recipe.trainer, w))}"
        for w in HANDED_DOWN
        if w in recipe.trainer.model_fields_set
    ]
    found = load(path, overrides, allow_custom=recipe.origin.custom, above=above)
    root = recipe.data.arguments.get("root")
    if root is not None and found.data.name == recipe.data.name:
        found = load(
            path, [*overrides, f"data.root={json.dumps(root)}"], allow_custom=recipe.origin.custom, above=above
        )
    if len(found.trained) != 1:
        trained = ", ".join(found.trained)
        raise RecipeError([Problem(name, None, "", f"must train one model to give weights, got {trained}")])
    return found


def tuning(recipe: Recipe, model: str) -> Recipe:
    """The recipe that fits a model to the data before it teaches, as its `tune` says; AdamW where it says none."""
    spec = recipe.models[model]
    if spec.tune is None:
        raise RecipeError([recipe.origin.problem(("models", model), "has no `tune`")])
    whole = document(recipe)
    words = {k: v for k, v in whole["models"][model].items() if k not in ("tune", "cache")}
    kept = {k: v for k, v in whole["trainer"].items() if k in (*HANDED_DOWN, "precision")}
    text = dump(
        {
            "models": {model: {**words, "frozen": False}},
            "losses": ["ce"],
            "data": whole["data"],
            "optimizer": whole["models"][model]["tune"].get("optimizer", ADAMW),
            "lr": spec.tune.lr,
            "trainer": {**kept, "max_epochs": spec.tune.epochs},
        }
    )
    name = f"tune_{str(spec.arch).rpartition('/')[2].rpartition(':')[2]}_{recipe.data.name}"
    folder, custom = recipe.origin.folder, recipe.origin.custom
    return of_tree(parse(text, name), name=name, folder=folder, allow_custom=custom)
