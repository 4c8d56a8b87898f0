"""From pydantic's errors to problems: the line, what was found, what would be right, and the nearest word."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from kdkit.recipe.cohort import CohortSpec, JoinSpec, LeaveSpec, health_model
from kdkit.recipe.errors import Problem
from kdkit.recipe.named import data_model, edge_model, optimizer_model
from kdkit.recipe.options import arch_words
from kdkit.recipe.schema import CacheSpec, ModelSpec, Origin, Recipe, TrainerSpec, TuneSpec
from kdkit.recipe.words import Words
from kdkit.registry import KdkitError, nearest

Loc = tuple[int | str, ...]

RIGHT = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "none_required": "nothing",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
    "literal_error": "{expected}",
}
# Where a recipe ends and Python begins.
BEYOND = "; loggers, callbacks and Lightning's other words: in Python, a Trainer of your own around kdkit.Distiller"
SUITES = ("pairs", "methods", "seeds", "overrides")
EXAMPLES = {
    "models": ", such as {student: {arch: resnet20}}",
    "losses": ", such as [ce]",
    "data": ", such as {name: cifar100}; or a `protocol` brings it",
    "trainer": ", such as {max_epochs: 30}; or a `protocol` brings it",
    "max_epochs": ", such as 30",
}


def problems(error: ValidationError, origin: Origin, under: Loc = ()) -> list[Problem]:
    """Every error as a problem; what the members of a union say of one value is said in one sentence.

    Args:
        error: of the recipe, or of a part of it.
        origin: of the recipe.
        under: the words that lead to that part.
    """
    found: dict[Loc, list[dict[str, Any]]] = {}
    for one in error.errors(include_url=False):
        found.setdefault(_in_tree((*under, *one["loc"]), one["type"], origin, len(under)), []).append(dict(one))
    deepest = {loc: v for loc, v in found.items() if not any(len(o) > len(loc) and o[: len(loc)] == loc for o in found)}
    kept = {loc: v for loc, v in found.items() if loc in deepest or any(e["type"] not in RIGHT for e in v)}
    unknown = {loc for loc, errors in kept.items() if errors[0]["type"] == "extra_forbidden"}
    return [
        origin.problem(loc, _message(loc, errors, origin))
        for loc, errors in kept.items()
        if not (errors[0]["type"] == "missing" and _misspelt(loc, unknown))
    ]


def _misspelt(loc: Loc, unknown: Iterable[Loc]) -> bool:
    """Whether an unknown key beside it nearly is the missing word."""
    return any(near[:-1] == loc[:-1] and nearest(str(near[-1]), [str(loc[-1])]) for near in unknown)


def _in_tree(loc: Loc, kind: str, origin: Origin, sure: int) -> Loc:
    """Without the steps, after the `sure` ones, that pydantic adds for members of unions; they lead nowhere."""
    item, steps = origin.tree, []
    for i, step in enumerate(loc):
        child = item.child(step)
        if child or i < sure or (kind == "missing" and i == len(loc) - 1):
            item = child or item
            steps.append(step)
    return tuple(steps)


def _message(loc: Loc, errors: list[dict[str, Any]], origin: Origin) -> str:
    first = errors[0]
    if first["type"] == "missing":
        return f"must be given{EXAMPLES.get(str(loc[-1]), '')}"
    if first["type"] == "extra_forbidden":
        return unknown_key(str(loc[-1]), loc[:-1], origin)
    if told := [str(e["ctx"].get("error") or e["msg"]) for e in errors if e["type"] in ("value_error", "name")]:
        return told[0]
    if any(e["type"] not in RIGHT for e in errors):
        return f"{first['msg']}, got {_shown(first['input'])}"
    right = dict.fromkeys(RIGHT[e["type"]].format(**e.get("ctx", {})) for e in errors)
    choices = [word for e in errors for word in str(e.get("ctx", {}).get("expected", "")).split("'")[1::2]]
    return f"must be {' or '.join(right)}, got {_shown(first['input'])}{nearest(str(first['input']), choices, 1)}"


def unknown_key(key: str, parent: Loc, origin: Origin) -> str:
    """The sentence about a key that is no word here."""
    if key == "lr" and parent and parent[-1] == "optimizer":
        return "unknown key 'lr'; the learning rate stands beside the optimizer, as `lr`"
    if parent and parent[-1] in ("optimizer", "data") and (whole := _renamed((*parent, key), origin)):
        return whole
    if not parent and (home := _home(key, origin)):
        return f"unknown key {key!r}; it is a word of `{home}`: {home}: {{{key}: …}}"
    if not parent and key in SUITES:
        return f"unknown key {key!r}; it is a word of a suite, which `kdkit bench` runs"
    known = list(_known(parent, origin))
    beyond = BEYOND if parent == ("trainer",) else ""
    return f"unknown key {key!r}{nearest(key, known) or '; known: ' + ', '.join(known) + beyond}"


def _home(key: str, origin: Origin) -> str:
    """The section of a recipe that a word stands in; empty where there is none."""
    data = origin.tree.child("data")
    sections = ("trainer", "cohort", *(("data",) if data is not None and data.child("name") is not None else ()))
    return next((part for part in sections if key in _known((part,), origin)), "")


def _renamed(loc: Loc, origin: Origin) -> str:
    """The sentence about a word that an override's new `name` knows nothing of."""
    *parent, key = loc
    here = origin.tree.deepest(parent)
    name = here.child("name")
    if name is None or not name.mark.is_override or here.at([key]).is_override:
        return ""
    whole = f"{'.'.join(map(str, parent))}={{name: {name.value}}}"
    return f'{name.value} has no {key!r} ({name.mark}); give the whole in one override: "{whole}"'


def _known(parent: Loc, origin: Origin) -> Iterable[str]:
    model: type[Words] = Recipe
    here = origin.tree
    for step in parent:
        here = here.child(step) or here
    try:
        match parent:
            case ("trainer",):
                model = TrainerSpec
            case ("models", _):
                model = ModelSpec
            case ("models", _, "options"):
                model = arch_words(origin.tree.value["models"].value[parent[1]].value["arch"].value)
            case ("models", _, "tune"):
                model = TuneSpec
            case ("models", _, "cache"):
                model = CacheSpec
            case ("cohort",):
                model = CohortSpec
            case ("cohort", "health"):
                model = health_model()
            case ("cohort", "join", _):
                model = JoinSpec
            case ("cohort", "leave", _):
                model = LeaveSpec
            case ("stages", _):
                yield from ("name", "epochs", "train", "losses")
                return
            case ("losses", _):
                model = edge_model(here.value["loss"].value, origin.folder)
            case ("data",):
                model = data_model(here.value["name"].value)
            case (*_, "optimizer"):
                model = optimizer_model(here.value["name"].value)
    except KdkitError:  # the name itself is wrong, which is told elsewhere
        return
    for name, field in model.model_fields.items():
        if name != "loss":
            yield field.alias or name


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
