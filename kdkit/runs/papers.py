"""Reading what a run's folder says, which disks and editors may have damaged."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdkit.fault import what
from kdkit.recipe.syntax import Item, read
from kdkit.registry import KdkitError

MEND = "put a whole copy in its place, or have it written anew"


@contextmanager
def reading(file: Path | str) -> Iterator[None]:
    """What a file of a run says is only read inside; where it says what no run says, that is one error."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, csv.Error) as error:
        raise KdkitError(f"{file} is damaged ({what(error)}); {MEND}") from None


def read_recipe(path: Path, *needed: str) -> Item:
    """A run's recipe, with the shape that a recipe has.

    Args:
        path: of recipe.yaml.
        needed: words that must be there, of models, losses, data and trainer.

    Raises:
        KdkitError: it is damaged.
    """
    root = read(path)
    for word, (right, wanted) in SHAPES.items():
        looked_at = word in needed or (word in root.value and word != "losses")  # which may be `[ce]`, by hand
        if looked_at and not right(root.plain.get(word)):
            raise KdkitError(f"{path} is damaged: {word} must be {wanted}; {MEND}")
    return root


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _mappings(value: Any) -> bool:
    return _mapping(value) and bool(value) and all(map(_mapping, value.values()))


def _edges(value: Any) -> bool:
    return isinstance(value, list) and all(_mapping(edge) and len(edge) == 1 for edge in value)


SHAPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "models": (_mappings, "models by name"),
    "losses": (_edges, "a list of losses"),
    "data": (_mapping, "a mapping"),
    "trainer": (_mapping, "a mapping"),
}
