"""The words of a suite: pairs × methods × seeds under one protocol, checked as a recipe is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from kdkit.recipe.errors import Mark, Problem, RecipeError
from kdkit.recipe.explain import problems
from kdkit.recipe.find import is_file
from kdkit.recipe.own_code import ELSEWHERE, strays, strays_of_override
from kdkit.recipe.schema import Origin, Recipe
from kdkit.recipe.syntax import Item, read
from kdkit.recipe.tree import split
from kdkit.recipe.words import Options, Positive, Word, Words
from kdkit.registry import nearest

ALONE, TEACHER = "student", "teacher"  # the baseline, and the runs that make teachers
OTHERS = ("stages", "cohort", "balance")  # words of a recipe, beside losses and models, that are a method's own
NAME = re.compile(r"[\w.+-]+")
TITLE = re.compile(r"\w[\w.+ -]*")


class Pair(Words):
    """A teacher and its student.

    Attributes:
        teacher: an architecture, trained under the suite's protocol; or a model as in a recipe, with its `weights`.
        student: an architecture, or a model as in a recipe.
        name: left out: both architectures.
        overrides: changes to the student's runs of this pair alone.
    """

    teacher: Word | Options
    student: Word | Options
    name: Word | None = None
    overrides: list[Word] = Field(default_factory=list)

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.name or f"{_arch(self.teacher)}-{_arch(self.student)}"


class Suite(Words):
    """A grid of runs.

    Attributes:
        protocol: what all runs share: data, optimiser, learning rate, epochs.
        pairs: of teachers and students.
        methods: packaged recipes by name (`crd`), recipes beside the suite (`mine.yaml`), or edges written out
            (`mine: [ce, …]`); `student` is the student alone, which the others are compared with.
        seeds: how many, or which.
        overrides: `key=value` changes to every run, teachers' included; what is said of `models` and `losses` goes to
            the runs that have them.
    """

    protocol: Word
    pairs: Annotated[list[Pair], Field(min_length=1)]
    methods: Annotated[list[Word | Options], Field(min_length=1)]
    seeds: Positive | Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(min_length=1)]
    overrides: list[Word] = Field(default_factory=list)


@dataclass(frozen=True)
class Method:
    """A method of a suite.

    Attributes:
        name: as tables call it.
        mark: where it stands.
        losses: written out.
        file: a recipe beside the suite; without losses and without a file it is a packaged one.
    """

    name: str
    mark: Mark
    losses: Item | None = None
    file: Path | None = None

    @property
    def own(self) -> bool:
        """Whether it is the suite's own."""
        return self.losses is not None or self.file is not None


@dataclass(frozen=True)
class Read:
    """A suite that was read.

    Attributes:
        name: of its file.
        folder: where losses of one's own are looked up.
        suite: its words.
        methods: in their order.
        tree: the words with their lines.
    """

    name: str
    folder: Path
    suite: Suite
    methods: tuple[Method, ...]
    tree: Item

    @property
    def seeds(self) -> list[int]:
        """Every seed."""
        return list(range(self.suite.seeds)) if isinstance(self.suite.seeds, int) else self.suite.seeds


def load_suite(path: Path, overrides: Sequence[str] = ()) -> Read:
    """Read a suite's file.

    Args:
        path: of the file.
        overrides: more of the suite's own.

    Raises:
        RecipeError: everything wrong with its words, each with its line.
    """
    tree = read(path)
    origin = Origin(path.stem, path.parent, tree=tree)
    if found := [*_unknown(tree, Suite, ()), *_unknown_in_pairs(tree)]:
        raise RecipeError(found)
    try:
        suite = Suite.model_validate(tree.plain)
    except ValidationError as error:
        raise RecipeError(problems(error, origin)) from None
    methods = _methods(tree.value["methods"], path.parent)
    _named(suite.pairs, tree.value["pairs"])
    _distinct([(pair.title, item.mark) for pair, item in zip(suite.pairs, tree.value["pairs"].value, strict=True)])
    _distinct([(method.name, method.mark) for method in methods])
    if isinstance(suite.seeds, list):
        _distinct([(str(seed.value), seed.mark) for seed in tree.value["seeds"].value])
    if found := list(_code_beside(suite, tree, path.parent)):
        raise RecipeError(found)
    whole = suite.model_copy(update={"overrides": [*suite.overrides, *overrides]})
    return Read(path.stem, path.parent, whole, methods, tree)


def _code_beside(suite: Suite, tree: Item, folder: Path) -> Iterator[Problem]:
    yield from strays(tree, folder, (), "suite")
    for text in [*suite.overrides, *(text for pair in suite.pairs for text in pair.overrides)]:
        for file in strays_of_override(split(text)[1], folder):
            yield Problem.at(tree.mark, f"overrides: {text}", ELSEWHERE.format("suite", file))


def _methods(listed: Item, folder: Path) -> tuple[Method, ...]:
    made: list[Method] = []
    wrong: list[Problem] = []
    for item in listed.value:
        try:
            made.append(_method(item, folder))
        except RecipeError as error:
            wrong += error.problems
    if wrong:
        raise RecipeError(wrong)
    return tuple(made)


def _method(item: Item, folder: Path) -> Method:
    one = item.value if isinstance(item.value, dict) else {item.value: None}
    said, losses = next(iter(one.items()), ("", None))
    file = folder / said if losses is None and is_file(said) else None
    name = said if file is None else file.stem
    where, mark, message = "methods", item.mark, ""
    if len(one) != 1:
        message = f"an entry must be one method, such as `crd` or `mine: [ce, …]`, got {', '.join(one) or 'nothing'}"
    elif name == TEACHER:
        message = "teachers are trained by themselves; leave it out"
    elif name == ALONE and (losses is not None or file is not None):
        message = f"`{ALONE}` is the student without a teacher; give these losses another name"
    elif file is not None and file.parent != folder:
        message = f"a method's recipe must lie beside the suite, got {said}"
    elif file is not None and not file.is_file():
        message = f"no recipe {said} lies beside the suite"
    elif not NAME.fullmatch(name):
        message = f"a method's name must be a plain word, got {name!r}"
        message += f"; rename the file, such as {_plain(name)}{file.suffix}" if file is not None else ""
    elif losses is not None and not (isinstance(losses.value, list) and losses.value):
        where, mark = f"methods.{name}", losses.mark
        message = f"must be a list of losses, such as [ce, kd], got {losses.plain!r}"
    if message:
        raise RecipeError([Problem.at(mark, where, message)])
    return Method(name, item.mark, losses, file)


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)


def _unknown(item: Item, model: type[Words], under: tuple[str, ...]) -> Iterator[Problem]:
    known = list(model.model_fields)
    for key, child in item.value.items() if isinstance(item.value, dict) else ():
        if key not in known:
            hint = nearest(key, known) or "; known: " + ", ".join(known)
            if not under and key in Recipe.model_fields:
                where = "its protocol, which may be a file beside it, has such words, and `overrides` change them"
                hint = f"; it is a word of a recipe, which `kdkit fit` runs; in a suite {where}"
            message = f"unknown key {key!r}{hint}"
            yield Problem.at(child.mark, ".".join((*under, key)), message)


def _unknown_in_pairs(tree: Item) -> Iterator[Problem]:
    pairs = tree.child("pairs")
    for i, pair in enumerate(pairs.value if pairs is not None and isinstance(pairs.value, list) else ()):
        yield from _unknown(pair, Pair, ("pairs", str(i)))


def _named(pairs: Sequence[Pair], listed: Item) -> None:
    """Names of pairs are parts of folders' names."""
    message = "a pair's name must be words such as `resnet56-resnet20`, got {!r}"
    if wrong := [
        Problem.at(item.mark, f"pairs.{i}.name", message.format(pair.name))
        for i, (pair, item) in enumerate(zip(pairs, listed.value, strict=True))
        if pair.name is not None and not TITLE.fullmatch(pair.name)
    ]:
        raise RecipeError(wrong)


def _distinct(named: list[tuple[str, Mark]]) -> None:
    names = [name for name, _ in named]
    if twice := [
        Problem.at(m, "", f"{n!r} stands twice; keep one") for i, (n, m) in enumerate(named) if n in names[:i]
    ]:
        raise RecipeError(twice)


def _arch(model: Any) -> str:
    word = model if isinstance(model, str) else str(model.get("arch", ""))
    return word.rpartition("/")[2].rpartition(":")[2]
