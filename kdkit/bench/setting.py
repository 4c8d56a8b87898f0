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
from kdkit.graph import Schedule
from kdkit.recipe.find import packaged_text
from kdkit.recipe.schema import TrainerSpec
from kdkit.recipe.syntax import parse
from kdkit.recipe.tree import normalise, override
from kdkit.recipe.write import MACHINE, READING
from kdkit.registry import constructor

Words = Mapping[str, Any]
PLAIN = [{"ce": {"weight": 1.0}}]  # the losses of a published teacher
# No part of how a model is trained, or told by a note of its own.
BESIDE = {
    "data": (*READING, "split_seed"),  # which says nothing without a part that is held out or left out
    "optimizer": ("foreach", "fused"),
    "trainer": (*MACHINE, "max_epochs", "precision", "check_val_every_n_epoch", "limit_val_batches"),
}
USUAL = {"trainer": {name: field.default for name, field in TrainerSpec.model_fields.items()}}
GIVEN, FETCHED = "pretrained", "imagenet"  # whose published teachers are those that everybody fetches
TIMES = 400  # of a run, at which learning rates are compared


def deviations(row: Row, theirs: Published) -> list[str]:
    """What its training has that the published one has not: `data.batch_size=512 (published: 64)`.

    Args:
        row: one of a suite.
        theirs: the published number; what its source changes of the protocol is the student's.
    """
    recipe, alike = yaml.safe_load(row["recipe"]), _words(theirs.protocol, ())
    models = recipe.get("models") or {}
    found = list(_differing(recipe, alike if row["method"] == TEACHER else _words(theirs.protocol, theirs.overrides)))
    found += [f"balance={_said(recipe.get('balance'))}"] * bool(recipe.get("balance"))
    for name, spec in models.items():
        known = ("arch", "options", "weights", "cache") if name == TEACHER else ("arch", "options")
        found += [f"models.{name}.{word}" for word in spec if word not in known]
        found += [f"models.{name}"] * (name not in (ALONE, TEACHER) and row["method"] != TEACHER)
    if teacher := models.get(TEACHER):
        found += ["models.teacher.cache.top_k"] * bool((teacher.get("cache") or {}).get("top_k"))
        found += _of_teacher(row, str(teacher.get("weights")), alike, theirs.epochs)
    return found


def _of_teacher(row: Row, weights: str, theirs: Words, length: int) -> Iterator[str]:
    """In what the teacher's training, which is written below the row's recipe, is not the published one's."""
    _, found, text = row["recipe"].partition(f"\n# {weights}:\n")
    if found:
        lines = takewhile(lambda line: line.startswith("#  "), text.splitlines())
        trained = yaml.safe_load("\n".join(line.removeprefix("#") for line in lines))
        yield from (f"the teacher's {told}" for told in _differing(trained, theirs))
        for name, spec in (trained.get("models") or {}).items():
            yield from (f"the teacher's models.{name}.{word}" for word in spec if word not in ("arch", "options"))
        if trained.get("losses", PLAIN) != PLAIN:
            yield f"the teacher's losses={_said(trained['losses'])}"
        if (epochs := trained["trainer"]["max_epochs"]) not in (row["epochs"], length):
            yield f"the teacher's {epochs} epochs"
    elif weights != GIVEN or row["data"] != FETCHED:
        yield f"models.{TEACHER}.weights={weights}"


def _differing(ours: Words, theirs: Words) -> Iterator[str]:
    """Section by section; learning rates by their curves."""
    for section in ("data", "optimizer", "trainer"):
        mine, published = (dict(_flat(words.get(section), section)) for words in (ours, theirs))
        data = constructor(DATA[theirs["data"]["name"]]) if section == "data" else {}
        usual = USUAL.get(section) or {name: parameter.default for name, parameter in data.items()}
        for word in dict.fromkeys((*mine, *published)):
            name = word.partition(".")[2]
            if name in BESIDE[section]:
                continue
            values = [of.get(word, usual.get(name)) for of in (mine, published)]
            if _plain(values[0], name) != _plain(values[1], name):
                yield f"{word}={_said(_plain(values[0], name))} (published: {_said(_plain(values[1], name))})"
    if _curve(ours) != _curve(theirs):
        yield f"lr={_said(ours.get('lr'))} (published: {_said(theirs['lr'])})"


def _plain(value: Any, name: str) -> Any:
    """A word that switches nothing on as `None`."""
    if value in (False, 0, Parameter.empty) or (
        name == "limit_train_batches" and value == 1 and isinstance(value, float)
    ):
        return None
    return value


def _curve(words: Words) -> list[float] | None:
    """The learning rate over the run."""
    if words.get("lr") is None:
        return None
    epochs = float(words["trainer"]["max_epochs"])
    curve = Schedule.parse(words["lr"]).bind(epochs)
    return [round(curve((i + 0.5) / TIMES * epochs), 9) for i in range(TIMES)]


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for word, part in value.items():
            yield from _flat(part, f"{path}.{word}")
    elif value is not None:
        yield path, value


def _said(value: Any) -> str:
    return "none" if value is None else str(value).replace("'", "")


@cache
def _words(protocol: str, overrides: tuple[str, ...]) -> Words:
    root = parse(packaged_text(protocol), protocol)
    words: Words = override(normalise(root), overrides).plain
    return words
