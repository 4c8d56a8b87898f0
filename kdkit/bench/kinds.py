"""What kind of value each word of a row has, so that damaged rows are told where a table fails of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdkit.registry import KdkitError

Number = int | float
Figures = dict[str, dict[str, Number | None]]


class Kinds(BaseModel):
    """The words that tables read; others may stand beside them."""

    model_config = ConfigDict(extra="allow", strict=True)

    suite: str = ""
    pair: str = ""
    method: str = ""
    teacher: str = ""
    student: str = ""
    data: str = ""
    node: str = ""
    content: str = ""
    fingerprint: str = ""
    variant: str = ""
    protocol: str = ""
    recipe: str = ""
    commit: str | None = ""
    seed: int = 0
    epochs: int = 0
    protocol_epochs: int = 0
    parameters: int = 0
    fixes: int = 0
    minutes: Number | None = None
    peak_gb: Number | None = None
    last: Figures = Field(default_factory=dict)
    best: Figures = Field(default_factory=dict)
    curve: list[Annotated[list[Number], Field(min_length=2, max_length=2)]] = Field(default_factory=list)
    versions: dict[str, Any] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    changes: list[str] = Field(default_factory=list)


def wrong(row: Mapping[str, Any]) -> str:
    """`seed: Input should be a valid integer`; empty where everything is of its kind."""
    try:
        Kinds.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return ""


@contextmanager
def whole_rows(files: Sequence[Path], rows: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """What rows are made into something inside; where that fails of a damaged one it is told.

    Raises:
        KdkitError: instead of the failure.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, yaml.YAMLError) as error:
        from kdkit.fault import what  # torch, which a table need not wait for

        odd = next((f"row {i} has {found}" for i, row in enumerate(rows, 1) if (found := wrong(row))), what(error))
        raise KdkitError(f"{', '.join(map(str, files))}: damaged, for no table can be made of it: {odd}") from error


def no_number(word: str) -> NoReturn:
    """Refuse what JSON has no word for: NaN and infinities."""
    raise ValueError(f"{word} is no number")
