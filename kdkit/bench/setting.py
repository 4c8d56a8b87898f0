"""Whether a row was trained as a published number was: in the words of its recipe, whatever its protocol is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from inspect import Parameter
from itertools import takewhile
from typing import Any

import yaml

from kdkit.bench.published import Published
from kdkit.bench.rows import Row
from kdkit.bench.suite import ALONE, TEACHER
from kdkit.data import DATA
from kdkit.recipe.find import packaged_text
from kdkit.recipe.syntax import parse
from kdkit.recipe.tree import normalise, override
from kdkit.recipe.write import MACHINE, READING
from kdkit.registry import constructor

Words = Mapping[str, Any]
# No part of how a model is trained, or told by a note of its own.
BESIDE = {
    "data": READING,
    "trainer": (*MACHINE, "max_epochs", "precision", "check_val_every_n_epoch", "limit_val_batches"),
}
GIVEN, FETCHED = "pretrained", "imagenet"  # whose published teachers are those that everybody fetches


def deviations(row: Row, theirs: Published) -> list[str]:
    """What its training has that the published one has not: `data.batch_size=512 (published: 64)`.

    Args:
        row: one of a suite.
        theirs: the published number; what its source changes of the protocol is the student's.
    """
    recipe, alike = yaml.safe_load(row["recipe"]), _words(theirs.protocol, ())
    found = list(_differing(recipe, alike if row["method"] == TEACHER else _words(theirs.protocol, theirs.overrides)))
    found += [f"models.{ALONE}.{word}" for word in recipe["models"].get(ALONE, {}) if word not in ("arch", "options")]
    if teacher := recipe["models"].get(TEACHER):
        found += _of_teacher(row, str(teacher.get("weights")), alike, theirs.epochs)
    return found


def _of_teacher(row: Row, weights: str, theirs: Words, length: int) -> Iterator[str]:
    """In what the teacher's training, which is written below the row's recipe, is not the published one's."""
    _, found, text = row["recipe"].partition(f"\n# {weights}:\n")
    if found:
        lines = takewhile(lambda line: line.startswith("#  "), text.splitlines())
        trained = yaml.safe_load("\n".join(line.removeprefix("#") for line in lines))
        yield from (f"the teacher's {told}" for told in _differing(trained, theirs))
        if (epochs := trained["trainer"]["max_epochs"]) not in (row["epochs"], length):
            yield f"the teacher's {epochs} epochs"
    elif weights != GIVEN or row["data"] != FETCHED:
        yield f"models.{TEACHER}.weights={weights}"


def _differing(ours: Words, theirs: Words) -> Iterator[str]:
    for section in ("data", "optimizer", "lr", "trainer"):
        mine, published = (dict(_flat(words.get(section), section)) for words in (ours, theirs))
        usual = constructor(DATA[theirs["data"]["name"]]) if section == "data" else {}
        for word in dict.fromkeys((*mine, *published)):
            name = word.partition(".")[2]
            if name in BESIDE.get(section, ()):
                continue
            default = usual[name].default if name in usual else None
            values = [
                None if (v := of.get(word, default)) in (False, 0, Parameter.empty) else v for of in (mine, published)
            ]
            if values[0] != values[1]:
                yield f"{word}={_said(values[0])} (published: {_said(values[1])})"


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for word, part in value.items():
            yield from _flat(part, f"{path}.{word}")
    elif value is not None:
        yield path, value


def _said(value: Any) -> str:
    return "none" if value is None else str(value)


@cache
def _words(protocol: str, overrides: tuple[str, ...]) -> Words:
    root = parse(packaged_text(protocol), protocol)
    words: Words = override(normalise(root), overrides).plain
    return words
