"""Small words of a suite's models, as items that know their lines."""

from __future__ import annotations

from typing import Any

from kdkit.recipe.errors import Mark
from kdkit.recipe.syntax import Item


def as_model(item: Item) -> Item:
    """`resnet20` as `{arch: resnet20}`."""
    return item if isinstance(item.value, dict) else Item({"arch": item}, item.mark)


def told(model: Item) -> str:
    """A model in a line: its architecture, and its options if it has any."""
    words = model.plain
    options = "".join(f" {word}={value}" for word, value in words.get("options", {}).items())
    return f"{words.get('arch')}{options}"


def as_item(value: Any, mark: Mark) -> Item:
    """Plain words as an item, all at one mark."""
    if isinstance(value, dict):
        return Item({key: as_item(part, mark) for key, part in value.items()}, mark)
    if isinstance(value, (list, tuple)):
        return Item([as_item(part, mark) for part in value], mark)
    return Item(value, mark)


def slug(model: Item) -> str:
    """Its architecture as a part of a file's name."""
    return str(model.plain.get("arch", "model")).replace("/", "_").replace(":", "_")
