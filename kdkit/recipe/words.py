"""The kinds of value that a recipe knows, and models of options made from a constructor's signature."""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    create_model,
)

from kdkit.registry import KdkitError

PREFIX = "option_"


class Moving(dict[str, Any]):
    """The words of a schedule, told apart from any other mapping."""


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"must be a number, got {value!r}")
    return float(value)


def _schedule(value: Any) -> Any:
    from kdkit.graph.schedule import Schedule

    if not isinstance(value, dict):
        try:
            return _number(value)
        except ValueError as error:
            raise ValueError(f"{error}; a schedule such as {{cosine: [1.0, 0.0]}} is right too") from None
    try:
        Schedule.parse(value)
    except KdkitError as error:
        raise ValueError(str(error)) from None
    return Moving(value)


def _temperature(value: Any) -> Any:
    from kdkit.graph.control import Control

    if not (isinstance(value, dict) and "control" in value):
        return _schedule(value)
    try:
        Control.parse(value)
    except KdkitError as error:
        raise ValueError(str(error)) from None
    return Moving(value)


def _weight(value: Any) -> Any:
    from kdkit.graph.share import Share

    try:
        said = Share.parse(value)
    except KdkitError as error:
        raise ValueError(str(error)) from None
    return value if isinstance(said, Share) else _schedule(value)


def _span(value: Any) -> Any:
    from kdkit.graph.span import Span

    try:
        Span.parse(value)
    except KdkitError as error:
        raise ValueError(str(error).removeprefix("when: ")) from None
    return value


Number = Annotated[float, PlainValidator(_number), WithJsonSchema({"type": "number"})]
NumberOrSchedule = Annotated[
    Any,
    PlainValidator(_schedule),
    WithJsonSchema({"type": ["number", "object"], "description": "a number or a schedule: {cosine: [1.0, 0.0]}"}),
]
Weight = Annotated[
    Any,
    PlainValidator(_weight),
    WithJsonSchema({"type": ["number", "object"], "description": "a number, a schedule, or {share: 0.5}"}),
]
Temperature = Annotated[
    Any,
    PlainValidator(_temperature),
    WithJsonSchema({"type": ["number", "object"], "description": "a number, a schedule, or {control: nll}"}),
]
Time = Annotated[
    Any,
    PlainValidator(_span),
    WithJsonSchema({"type": "object", "description": "{from: …, to: …}: epochs, or shares of the run below 1"}),
]
Word = StrictStr
Flag = StrictBool
Whole = StrictInt
Positive = Annotated[int, Field(strict=True, ge=1)]
Ends = StrictStr | Annotated[list[StrictStr], Field(min_length=1)] | None
Options = dict[str, Any]


class Words(BaseModel):
    """A mapping of a recipe: no unknown keys, no changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), validate_by_alias=True)

    @property
    def arguments(self) -> dict[str, Any]:
        """What was given beyond the closed words: the arguments of whatever the mapping names."""
        fields = type(self).model_fields
        return {
            str(field.alias): getattr(self, name)
            for name, field in fields.items()
            if name.startswith(PREFIX) and name in self.model_fields_set
        }


W = TypeVar("W", bound=Words)


def options_model(
    base: type[W],
    name: str,
    target: Callable[..., Any],
    *,
    skip: Collection[str] = (),
    scheduled: bool = False,
    **words: Any,
) -> type[W]:
    """`base` with one more word for each parameter of `target`, typed by its annotation and its default.

    Args:
        base: the closed words.
        name: of the new class.
        target: a class or a function.
        skip: parameters that are no words of a recipe.
        scheduled: whether every float may be a schedule.
        words: fields of `base` with other defaults.
    """
    parameters = inspect.signature(target.__init__ if inspect.isclass(target) else target).parameters.values()
    fields: dict[str, Any] = dict(words)
    hints = _hints(target)
    for p in parameters:
        if p.name == "self" or p.name in skip or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        default = ... if p.default is p.empty else p.default
        moves = Temperature if p.name == "temperature" else NumberOrSchedule
        kind = _kind(hints.get(p.name, Any), moves if scheduled else Number, default)
        fields[PREFIX + p.name] = (kind, Field(default, alias=p.name))
    return create_model(name, __base__=base, **fields)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    if inspect.isclass(target) and not dataclasses.is_dataclass(target):
        target = target.__init__
    try:
        return typing.get_type_hints(target)
    except Exception:  # an annotation that cannot be resolved says nothing; the constructor itself will judge
        return {}


def _kind(hint: Any, number: Any, default: Any = ...) -> Any:
    """The recipe's kind of value for a constructor's annotation; what a recipe cannot say becomes `Any`."""
    if hint is Any and type(default) in (bool, int, float, str):
        hint = type(default)
    simple = {float: number, int: Whole, bool: Flag, str: Word, Path: Word, type(None): type(None)}
    if hint in simple:
        return simple[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return hint
    if origin in (Union, types.UnionType):
        kinds = [_kind(arg, number) for arg in args]
        kept = [
            kind
            for arg, kind in zip(args, kinds, strict=True)
            if kind is not Any and not (arg is int and float in args)
        ]
        return Union[tuple(kept)] if kept else Any  # noqa: UP007  made at run time
    if origin is tuple and args and args[-1] is not ...:
        return tuple[tuple(_kind(arg, number) for arg in args)]  # type: ignore[misc]
    if origin in (list, tuple, Sequence) and args:
        return list[_kind(args[0], number)]  # type: ignore[misc]
    return Options if hint is dict or origin in (dict, typing.get_origin(typing.Mapping[str, Any])) else Any
