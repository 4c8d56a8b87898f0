"""What is wrong with a recipe: every problem with its file, its line and what would be right."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kdkit.registry import KdkitError

SHOWN = 20  # problems
LENGTH = 1000  # of a problem, in characters


@dataclass(frozen=True)
class Mark:
    """Where a word of a recipe comes from: a line of a file, or an override, which has no line."""

    file: str
    line: int | None = None

    @classmethod
    def of_override(cls, text: str) -> Mark:
        """The mark of every part of an override's value."""
        return cls(f"override {text!r}")

    @property
    def is_override(self) -> bool:
        """Whether the word comes from an override."""
        return self.line is None and self.file.startswith("override ")

    def __str__(self) -> str:
        file = short(self.file, 100) if self.is_override else self.file
        return file if self.line is None else f"{file}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One thing to mend.

    Attributes:
        file: as the user would type it, or `override 'key=value'`.
        line: counted from 1; `None` where there is none.
        where: the words that lead there, such as `losses.kd.temperature`; may be empty.
        message: what was found and what would be right.
    """

    file: str
    line: int | None
    where: str
    message: str

    @classmethod
    def at(cls, mark: Mark, where: str, message: str) -> Problem:
        """A problem at a mark."""
        return cls(mark.file, mark.line, where, message)

    def __str__(self) -> str:
        parts = (str(Mark(self.file, self.line)), short(self.where, 200), short(self.message, LENGTH))
        return ": ".join(part for part in parts if part)


class RecipeError(KdkitError):
    """All problems of a recipe's stage together, in the order of their lines; several are numbered, very many cut."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(dict.fromkeys(problems), key=lambda p: (p.file, p.line or 0)))
        lines, count = [str(problem) for problem in self.problems[:SHOWN]], len(self.problems)
        if count > 1:
            more = [f"  … and {count - SHOWN} more"] if count > SHOWN else []
            lines = [f"{count} problems", *(f"  {i}. {line}" for i, line in enumerate(lines, 1)), *more]
        super().__init__("\n".join(lines))


@contextmanager
def told_as(override: str, typed: str) -> Iterator[None]:
    """Problems of an override that an option stands for name the option, as it was typed."""
    try:
        yield
    except RecipeError as error:
        mark = Mark.of_override(override).file
        raise RecipeError(
            replace(problem, file=problem.file.replace(mark, typed), where=problem.where.replace(mark, typed))
            for problem in error.problems
        ) from error


def short(text: str, length: int) -> str:
    """The text, its middle left out where it is longer."""
    return text if len(text) <= length else f"{text[: length // 2]} … {text[-length // 2 :]}"


def shown(path: Path) -> str:
    """A path as one would type it: relative to the working directory where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return os.fspath(path)
