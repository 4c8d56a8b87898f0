"""Overrides of a suite: each goes to the runs that have what it is about, and rows say which they had."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from kdkit.bench.suite import OTHERS, Read
from kdkit.recipe import Recipe
from kdkit.recipe.errors import Problem, RecipeError
from kdkit.recipe.tree import split
from kdkit.registry import nearest
from kdkit.runs.resume import FREE

UNTOLD = {*FREE, "trainer.max_epochs"}  # of the machine; and the length, which tables tell by themselves


def concerns(text: str, models: Sequence[str], losses: Sequence[str], others: Collection[str]) -> bool:
    """Whether a run with these models, losses and other words of a method has what an override is about."""
    path, _ = split(text)
    if path[0] in OTHERS and len(path) > 1:
        return path[0] in others
    named = {"models": models, "losses": losses}.get(path[0])
    return named is None or (len(path) > 1 and path[1] in named)


def _concerns(text: str, recipe: Recipe) -> bool:
    others = [word for word in OTHERS if getattr(recipe, word)]
    return concerns(text, list(recipe.models), [edge.title for edge in recipe.losses], others)


def changes(given: Iterable[str], recipe: Recipe) -> tuple[str, ...]:
    """Those that changed what a run learns, and not only where it ran."""
    return tuple(text for text in given if _concerns(text, recipe) and not _untold(split(text)[0]))


def _untold(path: Sequence[str]) -> bool:
    return ".".join(path) in UNTOLD or (path[0] == "models" and path[2:3] == ["cache"])


def check_overrides(read_suite: Read, recipes: Iterable[Recipe]) -> None:
    """An override of a model or a loss that no run has changes nothing, which nobody means.

    Raises:
        RecipeError: there is such a one, or one of what the suite says itself.
    """
    recipes = list(recipes)
    given = [*read_suite.suite.overrides, *(text for pair in read_suite.suite.pairs for text in pair.overrides)]
    for text in given:
        path, item = split(text)
        if path[0] in ("seed", "protocol"):
            message = f"the suite says its {path[0]} itself; change it there"
            raise RecipeError([Problem.at(item.mark, path[0], message)])
        if not any(_concerns(text, r) for r in recipes):
            names = {
                "models": [m for r in recipes for m in r.models],
                "losses": [e.title for r in recipes for e in r.losses],
            }
            known = list(dict.fromkeys(names.get(path[0], ())))
            hint = nearest(path[1], known) if len(path) > 1 else ""
            there = f"; there are: {', '.join(known)}" if known else ""
            raise RecipeError([Problem.at(item.mark, ".".join(path[:2]), f"no run of the suite has it{hint or there}")])
