"""Python that a recipe names: which of it may run, and where it lies."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from kdkit.consent import REFUSED
from kdkit.recipe.errors import Mark, Problem
from kdkit.recipe.schema import Origin, Recipe
from kdkit.recipe.syntax import Item

ELSEWHERE = "must lie beside the {kind}, got {file}; a file elsewhere is named on the command line, KEY=FILE"
RUN = ("recipe.yaml", "provenance.json")  # what a run writes of itself; the second one's `code` tells its files


def elsewhere(file: str, folder: Path, known: Collection[str] | None) -> bool:
    """Whether a file that a recipe names lies neither beside it nor among those that are known; `None`: all are."""
    path = os.path.normpath(os.path.expanduser(file))
    if not os.path.isabs(path):
        return path.startswith(os.pardir)
    inside = any(Path(path).is_relative_to(base) for base in (folder.absolute(), folder.resolve()))
    return not inside and known is not None and path not in known


def named_elsewhere(value: Any, folder: Path) -> Iterator[str]:
    """Of a file's own overrides: code that lies anywhere but beside it."""
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from named_elsewhere(part, folder)
    file = value.rpartition(":")[0] if isinstance(value, str) else ""
    if file.endswith(".py") and (elsewhere(file, folder, ()) or not (folder / file).is_file()):
        yield value


def known_of(path: Path) -> list[str]:
    """The files of code that a run began with, where the recipe is the one that it wrote; else none."""
    if path.name != RUN[0]:
        return []
    try:
        told = json.loads(path.with_name(RUN[1]).read_text(encoding="utf-8"))["code"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return [str(file) for file in told] if isinstance(told, list) else []


def code_of(recipe: Recipe) -> list[str]:
    """The files of code that a recipe names."""
    files = (str(item.value).rpartition(":")[0] for _, item in _named(recipe.origin))
    return sorted({file for file in files if file.endswith(".py")})


def refused(origin: Origin) -> list[Problem]:
    """Words that would run Python that came with the recipe, where none may run."""
    named = [(loc, str(item.value)) for loc, item in _named(origin)]
    return [origin.problem(loc, REFUSED.format(said)) for loc, said in named if ":" in said]


def _named(origin: Origin) -> Iterator[tuple[tuple[str | int, ...], Item]]:
    """Where each architecture and each loss is named, and as what."""
    for section, word in (("models", "arch"), ("losses", "loss")):
        entries = origin.tree.value.get(section, Item(None, Mark("")))
        pairs = entries.value.items() if isinstance(entries.value, dict) else enumerate(entries.value or ())
        for key, entry in pairs:
            inner = (entry.child("options") or entry).child("backbone")
            spots = {(word,): entry.child(word), ("options", "backbone"): (inner and inner.child("arch")) or inner}
            yield from (((section, key, *loc), item) for loc, item in spots.items() if item is not None)
