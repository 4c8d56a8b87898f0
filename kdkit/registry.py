"""Names and what stands behind them: the one module of kdkit that losses and models import.

A loss's *signature is its contract*. `forward` asks by name for what it needs at every step, the constructor for what
no recipe should have to repeat; both lists are closed, so that a typo is found when the class is registered and not in
training.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")
M = TypeVar("M", bound="nn.Module")

FORWARD_WORDS = frozenset(
    [
        "student",
        "teacher",
        "students",
        "teachers",
        "labels",
        "index",
        "student_logits",
        "teacher_logits",
        "teacher_classifier",
        "progress",
    ]
)
FILLED_WORDS = frozenset(
    [
        "student_dim",
        "teacher_dim",
        "student_dims",
        "teacher_dims",
        "student_shape",
        "teacher_shape",
        "num_samples",
        "num_classes",
        "sample_labels",
        "seed",
    ]
)
EDGE_WORDS = frozenset(["weight", "from", "to", "among", "taps", "head", "when", "gather", "clip", "name", "ensemble"])


class KdkitError(Exception):
    """What the user can mend. Its text says what was found and what would be right; the command line shows it bare."""


class UnknownNameError(KdkitError, KeyError):
    """A name that nothing is registered under; the text offers the nearest ones."""

    __str__ = KdkitError.__str__  # KeyError's own would quote the text


def nearest(word: object, known: Iterator[str] | list[str], count: int = 3) -> str:
    """`", did you mean 'x' or 'y'?"`, or an empty string where nothing is near; capitals count as small letters."""
    if not isinstance(word, str):  # as may be written where a name is asked for
        return ""
    spelt: dict[str, list[str]] = {}
    for name in dict.fromkeys(known):
        spelt.setdefault(name.casefold(), []).append(name)
    found = difflib.get_close_matches(word.casefold(), spelt, n=count, cutoff=0.5)
    close = [name for near in found for name in difflib.get_close_matches(word, spelt[near], n=count, cutoff=0)]
    return f"; did you mean {' or '.join(repr(c) for c in close[:count])}?" if close else ""


class Registry(Generic[T], Mapping[str, T]):
    """A read-only mapping from name to entry, filled by imports; an unknown name is answered with the nearest ones."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        """Put an entry under a new name."""
        if name in self._entries:
            raise KdkitError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            hint = nearest(name, list(self._entries)) or f"; known: {', '.join(sorted(self._entries))}"
            raise UnknownNameError(f"unknown {self.kind} {name!r}{hint}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@dataclass(frozen=True)
class LossInfo:
    """What the toolkit knows about a loss beyond its code.

    Attributes:
        name: the word in a recipe.
        cls: the `nn.Module`.
        paper: authors, venue, arXiv id.
        tap: where it naturally reads both models: `logits`, `embedding`, `stages`, `stage-1`, …, or several of them.
        weight: the weight that goes with its reduction.
        weight_source: where that weight comes from.
        zero_at_match: whether the loss is zero when student and teacher give the same tensors.
        example: tiny valid inputs, `example() -> (constructor keywords, forward keywords)`, for the contract tests.
        head: the head its published weight goes with, if any.
        space: the constructor's numbers that `kdkit tune` moves, each with its least and greatest value: in proportion
            where the least is above 0. A class that is not registered says so by an attribute `space`.
    """

    name: str
    cls: type[nn.Module]
    paper: str
    tap: str | tuple[str, ...]
    weight: float
    weight_source: str
    zero_at_match: bool
    example: Callable[[], tuple[dict[str, Any], dict[str, Any]]]
    head: str | None = None
    space: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def taps(self) -> tuple[str, ...]:
        """`tap`, as several."""
        return (self.tap,) if isinstance(self.tap, str) else self.tap

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.cls) or "").split("\n")[0]

    @property
    def reads(self) -> tuple[str, ...]:
        """The words that `forward` asks for."""
        return reads(self.cls)


LOSSES: Registry[LossInfo] = Registry("loss")


def constructor(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's parameters by name, without `self`."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    return {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def reads(cls: type) -> tuple[str, ...]:
    """The words that `cls.forward` asks for, in order."""
    return tuple(list(inspect.signature(cls.forward).parameters)[1:])  # type: ignore[attr-defined]


def check_contract(cls: type[nn.Module]) -> None:
    """Raise `KdkitError` where a loss's two signatures use a word outside the contract."""
    for word, parameter in list(inspect.signature(cls.forward).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or word not in FORWARD_WORDS:
            raise KdkitError(
                f"{cls.__name__}.forward asks for {word!r}{nearest(word, list(FORWARD_WORDS))}"
                f"\n  a loss may ask for: {', '.join(sorted(FORWARD_WORDS))}"
            )
    if taken := (EDGE_WORDS - {"head"}) & constructor(cls).keys():  # a loss that has heads of its own chooses them
        raise KdkitError(f"{cls.__name__}: {sorted(taken)} belong to the edge and may not be constructor arguments")


def register_loss(
    name: str,
    *,
    paper: str,
    tap: str | tuple[str, ...],
    weight: float,
    weight_source: str,
    zero_at_match: bool,
    example: Callable[[], tuple[dict[str, Any], dict[str, Any]]],
    head: str | None = None,
    space: Mapping[str, tuple[float, float]] | None = None,
) -> Callable[[type[M]], type[M]]:
    """Class decorator that puts a loss under a name; see `LossInfo` for the words."""

    def add(cls: type[M]) -> type[M]:
        check_contract(cls)
        if cls.extra_repr.__module__ == "torch.nn.modules.module":  # nobody's own
            cls.extra_repr = _options_shown  # type: ignore[assignment]
        LOSSES.add(
            name, LossInfo(name, cls, paper, tap, weight, weight_source, zero_at_match, example, head, space or {})
        )
        return cls

    return add


def _options_shown(loss: nn.Module) -> str:
    """The numbers and words that a loss was made with and keeps under their names, as `print` shows modules."""
    kept = {**vars(loss), **dict(loss.named_buffers(recurse=False))}
    found = {word: _number(kept[word]) for word in constructor(type(loss)) if word in kept}
    return ", ".join(f"{word}={value!r}" for word, value in found.items() if isinstance(value, (bool, int, float, str)))


def _number(value: Any) -> Any:
    """What a 0-dim tensor holds, to the digits that fp32 keeps: a number that a schedule moves lies in one."""
    if getattr(value, "shape", None) != () or getattr(value, "is_meta", True):
        return value
    held = value.item()
    return float(f"{held:.6g}") if isinstance(held, float) else held
