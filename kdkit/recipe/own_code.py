"""Python that a recipe names: which of it may run, and where it lies."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from kdkit.consent import REFUSED
from kdkit.recipe.errors import Mark, Problem
from kdkit.recipe.schema import Origin, Recipe
from kdkit.recipe.syntax import Item

ELSEWHERE = "must lie beside the {}, got {}; a file elsewhere is named on the command line of `kdkit fit`, KEY=FILE"
PAPERS = "provenance.json"  # of a run, and of a teacher's recipe that a suite wrote; its `code` tells its files


def elsewhere(file: str, folder: Path, known: Collection[str] | None = ()) -> bool:
    """Whether a file that a recipe names lies neither beside it nor among those that are known; `None`: all are."""
    path = os.path.normpath(os.path.expanduser(file))
    if not os.path.isabs(path):
        return path.split(os.sep)[0] == os.pardir
    ways = ((path, folder.absolute()), (path, folder.resolve()), (os.path.realpath(path), folder.resolve()))
    inside = any(Path(way).is_relative_to(base) for way, base in ways)
    return not inside and known is not None and path not in known


def strays(root: Item, folder: Path, known: Collection[str] | None, kind: str = "recipe") -> Iterator[Problem]:
    """Wherever in a recipe or a suite code is named that lies elsewhere; on the command line the user may."""
    for path, item, said in _words(root, ()):
        file = said.rpartition(":")[0]
        if file.endswith(".py") and not item.mark.is_override and elsewhere(file, folder, known):
            yield Problem.at(item.mark, path, ELSEWHERE.format(kind, file))


def strays_of_override(said: Item, folder: Path) -> Iterator[str]:
    """Code in what a suite's file overrides, which counts as said on the command line: it lies beside the suite."""
    files = (word.rpartition(":")[0] for *_, word in _words(said, ()))
    yield from (file for file in files if file.endswith(".py") and not _beside(file, folder))


def _beside(file: str, folder: Path) -> bool:
    return not elsewhere(file, folder) and (folder / file).is_file()


def _words(item: Item, loc: tuple[str, ...]) -> Iterator[tuple[str, Item, str]]:
    """Every text in a tree, those that are keys too, with where it stands."""
    if isinstance(item.value, dict):
        for key, part in item.value.items():
            yield ".".join((*loc, str(key))), part, str(key)
            yield from _words(part, (*loc, str(key)))
    elif isinstance(item.value, list):
        for i, part in enumerate(item.value):
            yield from _words(part, (*loc, str(i)))
    elif isinstance(item.value, str):
        yield ".".join(loc), item, item.value


def known_of(path: Path) -> list[str]:
    """The files of code that a run began with, by the papers beside its recipe; else none."""
    try:
        told = json.loads(path.with_name(PAPERS).read_text(encoding="utf-8"))["code"]
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
    for section in ("models", "losses"):
        entries = origin.tree.value.get(section, Item(None, Mark("")))
        pairs = entries.value.items() if isinstance(entries.value, dict) else enumerate(entries.value or ())
        for key, entry in pairs:
            yield from _nets(entry, (section, key))
            if section == "losses" and (loss := entry.child("loss")) is not None:
                yield (section, key, "loss"), loss


def _nets(item: Item, loc: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Item]]:
    """The architecture of a model, and those of the nets inside it."""
    if (arch := item.child("arch")) is not None:
        yield (*loc, "arch"), arch
    for word in ("options", "backbone"):
        if (inner := item.child(word)) is not None:
            if isinstance(inner.value, dict):
                yield from _nets(inner, (*loc, word))
            elif word == "backbone":
                yield (*loc, word), inner
