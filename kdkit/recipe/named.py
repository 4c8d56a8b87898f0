"""What a recipe calls by name: losses, optimisers, data; closed words and arguments are checked together."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from kdkit.recipe.words import Ends, Flag, Moving, NumberOrSchedule, Options, Time, Weight, Word, Words, options_model
from kdkit.registry import FILLED_WORDS, LOSSES, KdkitError, LossInfo, check_contract, constructor

if TYPE_CHECKING:
    from torch import nn

    from kdkit.graph import Edge as GraphEdge


def _by(word: str, base: type[Words], model_of: Callable[[str, Path], type[Words]]) -> BeforeValidator:
    """Validate a mapping by the model of what its `word` names; without one by `base`, which says what is missing."""

    def validate(value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, Words):
            return value
        if not isinstance(value, dict):
            raise ValueError(f"must be a mapping such as {{{word}: …}}, got {value!r}")
        if not isinstance(name := value.get(word), str):
            return base.model_validate({word: name} if word in value else {})
        try:
            model = model_of(name, (info.context or {}).get("folder", Path()))
        except KdkitError as error:
            wrong = PydanticCustomError("name", "{why}", {"why": str(error)})
            raise ValidationError.from_exception_data(word, [{"type": wrong, "loc": (word,), "input": name}]) from None
        return model.model_validate(value)

    return BeforeValidator(validate)


class OptimizerSpec(Words):
    """An optimiser of `torch.optim`, its name in lower case; its other words are the class's arguments."""

    name: Word


@cache
def optimizer_model(name: str) -> type[OptimizerSpec]:
    """The words of one optimiser."""
    from kdkit.graph.optimizers import OPTIMIZERS

    cls = OPTIMIZERS[name]
    return options_model(OptimizerSpec, cls.__name__, cls, skip=("params", "lr"))


class DataSpec(Words):
    """A data module by its registered name; its other words are the class's arguments.

    Attributes:
        name: as registered.
        fake: noise of the same shapes and classes instead of the data, to try a recipe.
    """

    name: Word
    fake: Flag = False


@cache
def data_model(name: str) -> type[DataSpec]:
    """The words of one data module."""
    from kdkit.data import DATA

    return options_model(DataSpec, DATA[name].__name__, DATA[name], skip=("seed",))


class EdgeSpec(Words):
    """One loss; beside these words it takes the arguments of its constructor, every float a number or a schedule.

    Attributes:
        cls: the class behind it.
        loss: a registered name, or one's own: `my_loss.py:MyLoss`, `package.module:MyLoss`.
        name: how the log and overrides call it; left out: the loss.
        weight: a number, a schedule, or `{share: 0.5}` of all that its model is told; left out: the loss's own.
        source: `from` in a recipe: who teaches, `teacher`, `teacher.stage2`, `stage2`, or a list of these.
        to: whom it reaches; left out: every trained model.
        among: peers that teach each other.
        taps: where both ends are read; left out: the loss's natural tap.
        head: projection on the student's side, a name or `{name: {options}}`.
        when: the time in which it is active.
        gather: both ends over all ranks.
        clip: largest norm of its gradient at the student's tap.
        ensemble: several sources as one.
        coordinate: peers teach in proportion to how well they do on held-out samples; `true`, or its words.
    """

    cls: ClassVar[type[nn.Module]]
    loss: Word
    name: Word | None = None
    weight: Weight = 1.0
    source: Ends = Field(default=None, alias="from")
    to: Ends = None
    among: list[Word] | None = None
    taps: Ends = None
    head: Word | Options | None = None
    when: Time | None = None
    gather: Flag = False
    clip: NumberOrSchedule | None = None
    ensemble: Literal["arithmetic", "geometric"] | None = None
    coordinate: Flag | Options | None = None

    @field_validator("name")
    @classmethod
    def _without_dots(cls, name: str | None) -> str | None:
        if name is not None and "." in name:
            raise ValueError(f"must be a name without '.', got {name!r}")
        return name

    @field_validator("head")
    @classmethod
    def _known_head(cls, head: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        from kdkit.models.heads.kinds import parse

        if head in (None, "none"):
            return head
        try:
            parse(head if isinstance(head, str) else dict.fromkeys(head))
        except KdkitError as error:
            raise ValueError(str(error)) from None
        return head

    @field_validator("coordinate")
    @classmethod
    def _known_coordinate(cls, value: bool | dict[str, Any] | None) -> bool | dict[str, Any] | None:
        from kdkit.graph.coordinate import Coordination

        try:
            Coordination.parse(value)
        except KdkitError as error:
            raise ValueError(str(error).removeprefix("coordinate: ")) from None
        return value

    @property
    def ends(self) -> list[tuple[str, str]]:
        """Every end and tap that it names, after the word that says it."""
        given = {"among": self.among, "to": self.to, "from": self.source, "taps": self.taps}
        return [
            (word, end) for word, ends in given.items() for end in ([ends] if isinstance(ends, str) else ends or [])
        ]

    @property
    def title(self) -> str:
        """How it is called."""
        return self.name or self.loss.rpartition(":")[2]

    def edge(self) -> GraphEdge:
        """The edge of the graph that it says."""
        from kdkit.graph import Edge
        from kdkit.graph.control import moving

        arguments = {w: moving(v) if isinstance(v, Moving) else v for w, v in self.arguments.items()}
        return Edge(
            self.cls if ":" in self.loss else self.loss,
            source=self.source,
            target=self.to,
            among=self.among,
            taps=self.taps,
            weight=self.weight,
            head=self.head,
            when=self.when,
            gather=self.gather,
            clip=self.clip,
            ensemble=self.ensemble,
            coordinate=self.coordinate,
            name=self.title,
            **arguments,
        )


class OwnHeadSpec(EdgeSpec):
    """A loss that brings its own heads: `head` chooses among those, and its constructor judges the word."""

    @field_validator("head")
    @classmethod
    def _known_head(cls, head: Any) -> Any:
        return head


def find_loss(word: str, folder: Path | None = None) -> tuple[type[nn.Module], LossInfo | None]:
    """The class behind a loss's word, and what the registry knows of it.

    Args:
        word: a registered name, `file.py:Class` or `package.module:Class`.
        folder: where the two latter are looked up before the working directory: the recipe's.

    Raises:
        KdkitError: no such loss, file or class, or a class that breaks the contract.
    """
    import kdkit.losses  # noqa: F401  fills the registry

    if ":" not in word:
        return LOSSES[word].cls, LOSSES[word]
    from torch import nn

    from kdkit.models.custom import load_factory

    cls = load_factory(word, folder)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise KdkitError(f"{word}: a loss must be a class made from nn.Module, got {getattr(cls, '__name__', cls)}")
    check_contract(cls)
    return cls, next((info for info in LOSSES.values() if info.cls is cls), None)


def edge_model(word: str, folder: Path | None = None) -> type[EdgeSpec]:
    """The words of one loss: the edge's, and its constructor's without those that the graph fills in."""
    found: Any
    found, info = find_loss(word, folder)
    return _edge_model(found, info.weight if info else 1.0)


@cache
def _edge_model(cls: type, weight: float) -> type[EdgeSpec]:
    words = {"weight": (Weight, weight)}
    base = OwnHeadSpec if "head" in constructor(cls) else EdgeSpec
    made = options_model(base, cls.__name__, cls, skip={*FILLED_WORDS, "head"}, scheduled=True, **words)
    made.cls = cls
    return made


Optimizer = Annotated[SerializeAsAny[OptimizerSpec], _by("name", OptimizerSpec, lambda name, _: optimizer_model(name))]
Data = Annotated[SerializeAsAny[DataSpec], _by("name", DataSpec, lambda name, _: data_model(name))]
Edge = Annotated[SerializeAsAny[EdgeSpec], _by("loss", EdgeSpec, edge_model)]
