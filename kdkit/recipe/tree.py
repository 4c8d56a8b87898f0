"""Recipes as trees of items: a protocol merged underneath, losses in one form, overrides on top."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdkit.recipe.errors import Mark, Problem, RecipeError
from kdkit.recipe.stages import unfold
from kdkit.recipe.syntax import DEPTH, Item, parse_value
from kdkit.registry import nearest


def merge(over: Item, under: Item) -> Item:
    """`over` on top of `under`, mapping by mapping.

    Whatever has another `name`, and a schedule with another word, replaces what lies underneath: momentum is no option
    of AdamW.
    """
    if not isinstance(over.value, dict) or not isinstance(under.value, dict):
        return over
    mine, theirs = over.value, under.value
    if "name" in mine and "name" in theirs and mine["name"].value != theirs["name"].value:
        return over
    if _schedule_word(mine) != _schedule_word(theirs):
        return over
    both = {key: merge(item, theirs[key]) if key in theirs else item for key, item in mine.items()}
    return Item({**theirs, **both}, over.mark)


def _schedule_word(mapping: dict[str, Item]) -> str | None:
    """The one word of a mapping that is a schedule."""
    from kdkit.graph.schedule import WORDS

    return next(iter(mapping)) if len(mapping) == 1 and mapping.keys() <= WORDS.keys() else None


def normalise(root: Item) -> Item:
    """Every entry of `losses` as one flat mapping: `- kd: {weight: 0.9}` becomes `{loss: kd, weight: 0.9}`.

    Those of `stages` join them.

    Raises:
        RecipeError: entries that are not one loss with its options; stages that are none.
    """
    if isinstance(root.value, dict) and "losses" in root.value:
        root = Item({**root.value, "losses": _edges(root.value["losses"])}, root.mark)
    return unfold(root, _edges, edge_name)


def override(root: Item, texts: Sequence[str]) -> Item:
    """Apply `key=value` words to a tree whose losses are normalised; each part of a value is marked as the override.

    Raises:
        RecipeError: not `key=value`, a path through what is no mapping, a loss that is not there or not unique.
    """
    problems: list[Problem] = []
    for text in texts:
        try:
            root = _apply(root, text)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    return root


def split(text: str) -> tuple[list[str], Item]:
    """`losses.kd.weight=0.5` as its path and its value."""
    mark = Mark.of_override(text)
    key, equals, value = text.partition("=")
    path = [step.strip() for step in key.split(".")]
    if not equals or not all(path) or len(path) > DEPTH:
        raise RecipeError([Problem.at(mark, "", "must be key=value, such as trainer.max_epochs=30")])
    found = parse_value(value, mark)
    if isinstance(found.value, str) and re.match(rf"\s*{re.escape(found.value)}\s+#", value):
        return path, Item(value.strip(), mark)  # of a path, what YAML takes for a comment
    return path, found


def edge_name(edge: Item) -> str:
    """What an edge is called: its `name`, else its loss, for a loss of one's own the class."""
    given = edge.value.get("name") or edge.value["loss"]
    return str(given.value).rpartition(":")[2]


def _apply(root: Item, text: str) -> Item:
    path, value = split(text)
    if path == ["losses"]:
        value = _edges(value)
    return _put(root, path, value, [])


def _put(node: Item, path: list[str], value: Item, trail: list[str]) -> Item:
    if not path:
        return value
    (step, *rest), mark = path, value.mark
    if trail == ["losses"] and isinstance(node.value, list):
        edges = list(node.value)
        i = _find(edges, step, mark)
        if rest:
            edges[i] = _put(edges[i], rest, value, [*trail, step])
        else:
            kept = {word: edges[i].value[word] for word in ("name", "when") if word in edges[i].value}
            given = _edge(Item({str(edges[i].value["loss"].value): value}, mark)).value
            edges[i] = Item({**kept, **given}, mark)
        return Item(edges, node.mark)
    if trail == ["stages"] and isinstance(node.value, list) and rest:
        names = [
            str(s.value.get("name", Item(None, mark)).value) if isinstance(s.value, dict) else "" for s in node.value
        ]
        if step not in names:
            known = f"; it has: {', '.join(names)}"
            raise RecipeError([Problem.at(mark, f"stages.{step}", f"no stage has this name{known}")])
        at = names.index(step)
        put = _put(node.value[at], rest, value, [*trail, step])
        return Item([*node.value[:at], put, *node.value[at + 1 :]], node.mark)
    if trail == ["models"] and isinstance(node.value, dict) and rest and step not in node.value:
        names = list(node.value)
        known = f" (it has: {', '.join(names)}; another one is given as a whole: models.{step}={{arch: …}})"
        told = f"the recipe has no model {step!r}{nearest(step, names)}{known}"
        raise RecipeError([Problem.at(mark, f"models.{step}", told)])
    if node.value is None:
        node = Item({}, mark)
    if not isinstance(node.value, dict):
        kind = "a list" if isinstance(node.value, list) else repr(node.value)
        raise RecipeError([Problem.at(mark, ".".join(trail), f"is {kind} and has no {step!r}; give it as a whole")])
    child = node.value.get(step, Item(None, mark))
    others = node.value
    if _schedule_word(others) and _schedule_word({step: value}) and step not in others:
        node, others = Item({}, mark), {}  # another word makes another schedule
    return Item({**others, step: _put(child, rest, value, [*trail, step])}, node.mark)


def _find(edges: list[Item], name: str, mark: Mark) -> int:
    found = [i for i, edge in enumerate(edges) if edge_name(edge) == name]
    if len(found) == 1:
        return found[0]
    where = f"losses.{name}"
    if found:
        raise RecipeError([Problem.at(mark, where, f"{len(found)} losses are called {name!r}; give each a `name`")])
    names = [edge_name(edge) for edge in edges]
    known = f" (it has: {', '.join(names)}; another one is added in the file, under `losses`)"
    raise RecipeError([Problem.at(mark, where, f"the recipe has no loss {name!r}{nearest(name, names)}{known}")])


def _edges(losses: Item) -> Item:
    if not isinstance(losses.value, list):
        return losses
    problems: list[Problem] = []
    edges = []
    for entry in losses.value:
        try:
            edges.append(_edge(entry))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    return Item(edges, losses.mark)


def _edge(entry: Item) -> Item:
    def refuse(message: str, where: str = "losses", mark: Mark = entry.mark) -> RecipeError:
        return RecipeError([Problem.at(mark, where, message)])

    if isinstance(entry.value, str):
        return Item({"loss": entry}, entry.mark)
    if not isinstance(entry.value, dict) or not entry.value:
        raise refuse(f"an entry must be a loss such as `kd` or `kd: {{weight: 0.9}}`, got {entry.plain!r}")
    (loss, options), *others = entry.value.items()
    if others:
        raise refuse(f"an entry must be one loss, got {', '.join(entry.value)}; indent the options below {loss!r}")
    if options.value is not None and not isinstance(options.value, dict):
        raise refuse(f"must be options such as {{weight: 0.9}}, got {options.plain!r}", f"losses.{loss}", options.mark)
    words = options.value or {}
    if "loss" in words:
        raise refuse("unknown key 'loss'; the loss is the word before the colon", f"losses.{loss}", words["loss"].mark)
    return Item({"loss": Item(loss, options.mark), **words}, options.mark)
