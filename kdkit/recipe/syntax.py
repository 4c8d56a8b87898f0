"""YAML into items that know their lines. Only what a recipe needs: mappings, lists and scalars as YAML 1.2 reads them.

Tags, anchors and aliases are refused (a tag can construct Python objects, a few aliases can stand for billions of
values), and so are duplicate keys, of which plain PyYAML silently keeps the last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from kdkit.recipe.errors import Mark, Problem, RecipeError, shown

DEPTH = 20
COUNT = 2000  # words and values
SIZE = 1 << 16  # bytes; PyYAML reads some 50 kB a second
TOO_LARGE = f"must be a recipe of at most {SIZE >> 10} kB, got a larger one"

_WORDS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_BASE = re.compile(r"0o[0-7]{1,18}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # in no file's name, and nothing that can be printed
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Item:
    """A value and where it stands: a scalar, a list of items, or a mapping of items."""

    value: Any
    mark: Mark

    @property
    def plain(self) -> Any:
        """The value without marks."""
        if isinstance(self.value, dict):
            return {key: item.plain for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain for item in self.value]
        return self.value

    def child(self, step: int | str) -> Item | None:
        """The item under a key or at a place of a list, if there is one."""
        if isinstance(self.value, dict):
            return self.value.get(step)
        listed = isinstance(self.value, list) and isinstance(step, int) and step < len(self.value)
        return self.value[step] if listed else None

    def deepest(self, loc: Sequence[int | str]) -> Item:
        """The deepest item that `loc` leads to; what leads nowhere is skipped."""
        item = self
        for step in loc:
            item = item.child(step) or item
        return item

    def at(self, loc: Sequence[int | str]) -> Mark:
        """The mark of that item."""
        return self.deepest(loc).mark

    def marked(self, by: Item) -> Item:
        """The same values with the marks of another item: of the same place there, else of what is above it."""
        value = self.value
        if isinstance(value, dict):
            value = {key: part.marked(by.child(key) or by) for key, part in value.items()}
        elif isinstance(value, list):
            value = [part.marked(by.child(i) or by) for i, part in enumerate(value)]
        return Item(value, by.mark)

    def overrides(self) -> set[str]:
        """The overrides that it and its parts come from."""
        value = self.value
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        own = {self.mark.file} if self.mark.is_override else set()
        return own.union(*(part.overrides() for part in parts))


def scalar(text: str) -> Any:
    """A plain scalar by YAML 1.2's core rules: `5e-4` is a number, `012` is twelve; `yes`, `on` and `1:30` are text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _BASE.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "", 1)) if _SPECIAL.fullmatch(text) else text


def read(path: Path) -> Item:
    """The mapping in a recipe's file.

    Raises:
        RecipeError: no such file, a folder, too large, not UTF-8, not YAML, empty, or not a mapping.
    """
    file = shown(path)
    try:
        if path.is_dir():
            raise _error(file, None, "is a folder; give the recipe's .yaml file inside it")
        if path.exists() and not path.is_file():  # a device may never end, a pipe never begin
            raise _error(file, None, "is no ordinary file; give a .yaml file")
        raw = path.read_bytes() if path.stat().st_size <= SIZE else None
    except FileNotFoundError:
        raise _error(file, None, "no such file") from None
    except (OSError, ValueError) as error:
        raise _error(file, None, f"cannot be read: {error}") from None
    if raw is None:
        raise _error(file, None, TOO_LARGE)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise _error(file, line, f"must be UTF-8 text, got byte 0x{raw[error.start]:02x}; save it as UTF-8") from None
    return parse(text, file)


def parse(text: str, file: str) -> Item:
    """The mapping in a recipe's text; `file` is what errors call it."""
    found = _parse(text, file, None)
    if found is None:
        raise _error(file, None, "is empty; `kdkit init` writes a recipe to start from")
    if not isinstance(found.value, dict):
        kind = "a list" if isinstance(found.value, list) else f"the single value {found.value!r}"
        raise _error(file, found.mark.line, f"must be a mapping such as `models: …`, got {kind}")
    return found


def parse_value(text: str, mark: Mark) -> Item:
    """The value of an override: a scalar, or a list or mapping in flow style; every part of it at `mark`."""
    return _parse(text, mark.file, mark) or Item(None, mark)


@lru_cache(maxsize=128)  # a suite reads the same few files for every run; nobody changes an item
def _parse(text: str, file: str, mark: Mark | None) -> Item | None:
    if len(text) > SIZE:
        raise _error(file, None, TOO_LARGE)
    try:
        node = _Loader(text).get_single_node()
    except yaml.reader.ReaderError as error:
        raise _error(file, text[: error.position].count("\n") + 1, f"not text: {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        line = place.line + 1 if place and not mark else None
        why = error.problem or "it breaks off"
        why = f"{error.context} {why}" if why.startswith("but ") else why
        why = "a tab, which YAML does not take here; use spaces" if "'\\t'" in why else why
        raise _error(file, line, why if isinstance(error, _Refused) else f"not YAML: {why}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise _error(file, None, f"not YAML: {error}") from None
    if node is None:
        return None
    problems: list[Problem] = []
    found = _item(node, mark or Mark(file, node.start_mark.line + 1), file, mark, problems)
    if problems:
        raise RecipeError(problems)
    return found


class _Refused(yaml.MarkedYAMLError):
    """YAML that a recipe does not need."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012  PyYAML's own reading of scalars is YAML 1.1; `scalar` reads them

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        refused = None
        if isinstance(event, yaml.AliasEvent):
            refused = f"aliases (*{event.anchor}) are refused; write the value out"
        elif event.anchor:
            refused = f"anchors (&{event.anchor}) are refused; write the value out"
        elif event.tag:
            refused = f"tags ({event.tag}) are refused; write the plain value"
        elif self.depth >= DEPTH:
            refused = f"nested more than {DEPTH} deep; a recipe is shallow"
        elif self.count >= COUNT:
            refused = f"more than {COUNT} words and values; a recipe is short"
        if refused:
            raise _Refused(problem=refused, problem_mark=event.start_mark)
        self.depth, self.count = self.depth + 1, self.count + 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _item(node: yaml.Node, here: Mark, file: str, mark: Mark | None, problems: list[Problem]) -> Item:
    """`here` is where the value's key stands; `mark`, if given, is put on every part."""

    def at(node: yaml.Node) -> Mark:
        return mark or Mark(file, node.start_mark.line + 1)

    if isinstance(node, yaml.ScalarNode):
        if odd := _NO_TEXT.search(node.value):
            problems.append(Problem.at(at(node), "", f"{odd[0]!r} is no character of a recipe; leave it out"))
        return Item(scalar(node.value) if node.style is None else node.value, here)
    if isinstance(node, yaml.SequenceNode):
        return Item([_item(part, at(part), file, mark, problems) for part in node.value], here)
    mapping: dict[str, Item] = {}
    for key, part in node.value:
        if not isinstance(key, yaml.ScalarNode):
            problems.append(Problem.at(at(key), "", "a key must be a word, got a list or a mapping"))
        elif key.value in mapping:
            first = mapping[key.value].mark
            problems.append(Problem.at(at(key), "", f"{key.value!r} stands twice, first at {first}; keep one"))
        elif odd := _NO_TEXT.search(key.value):
            problems.append(Problem.at(at(key), "", f"{odd[0]!r} is no character of a recipe; leave it out"))
        else:
            mapping[key.value] = _item(part, at(key), file, mark, problems)
    return Item(mapping, here)


def _error(file: str, line: int | None, message: str) -> RecipeError:
    return RecipeError([Problem(file, line, "", message)])
