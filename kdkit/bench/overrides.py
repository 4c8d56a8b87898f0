"""Overrides of a suite: each goes to the runs that have what it is about, and rows say which they had."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kdkit.bench.suite import Read
from kdkit.recipe import Recipe
from kdkit.recipe.errors import Problem, RecipeError
from kdkit.recipe.tree import split
from kdkit.registry import nearest
from kdkit.runs.resume import FREE

UNTOLD = {*FREE, "trainer.max_epochs"}  # of the machine; and the length, which tables tell by themselves


def concerns(text: str, models: Sequence[str], losses: Sequence[str]) -> bool:
    """Whether a run with these models and losses has what an override is about."""
    path, _ = split(text)
    named = {"models": models, "losses": losses}.get(path[0])
    return named is None or (len(path) > 1 and path[1] in named)


def changes(given: Iterable[str], recipe: Recipe) -> tuple[str, ...]:
    """Those that changed what a run learns, and not only where it ran."""
    models, losses = list(recipe.models), [edge.title for edge in recipe.losses]
    return tuple(text for text in given if concerns(text, models, losses) and not _untold(split(text)[0]))


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
        if not any(concerns(text, list(r.models), [edge.title for edge in r.losses]) for r in recipes):
            names = {
                "models": [m for r in recipes for m in r.models],
                "losses": [e.title for r in recipes for e in r.losses],
            }
            known = list(dict.fromkeys(names[path[0]]))
            hint = nearest(path[1], known) if len(path) > 1 else ""
            message = f"no run of the suite has it{hint or '; there are: ' + ', '.join(known)}"
            raise RecipeError([Problem.at(item.mark, ".".join(path[:2]), message)])
