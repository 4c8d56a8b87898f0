"""`cohort:` in a recipe: who joins and leaves when, and the rule that keeps the others well."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from kdkit.recipe.words import Number, Words, options_model
from kdkit.registry import KdkitError

if TYPE_CHECKING:
    from kdkit.graph.health import Rule
    from kdkit.graph.membership import Path, Plan
    from kdkit.recipe.schema import TrainerSpec


class JoinSpec(Words):
    """When a model joins; its learning rate rises over `warmup`."""

    epoch: Number
    warmup: Number = 0.0


class LeaveSpec(Words):
    """When a model leaves."""

    epoch: Number


class HealthWords(Words):
    """The health rule; its words are those of `kdkit.graph.health.Rule`."""

    @model_validator(mode="after")
    def _fits(self) -> HealthWords:
        try:
            self.rule()
        except KdkitError as error:
            raise ValueError(str(error)) from None
        return self

    def rule(self) -> Rule:
        """What it says."""
        from kdkit.graph.health import Rule

        return Rule(**self.arguments)


@cache
def health_model() -> type[HealthWords]:
    """The words of the rule."""
    from kdkit.graph.health import Rule

    return options_model(HealthWords, "Health", Rule)


def _health(value: Any) -> Any:
    value = {True: {}, False: None}[value] if isinstance(value, bool) else value
    return health_model().model_validate(value) if isinstance(value, dict) else value


Health = Annotated[
    SerializeAsAny[HealthWords] | None, BeforeValidator(_health, json_schema_input_type=bool | HealthWords | None)
]


class CohortSpec(Words):
    """Models that come and go.

    Attributes:
        join: who is not there at first, and from when it is: `{c: {epoch: 10, warmup: 2}}`.
        leave: from when who goes: `{a: {epoch: 40}}`.
        ramp: how long others take to listen wholly to who comes, and not at all to who goes.
        health: find sick models and treat them: `true`, or words of its own.
    """

    join: dict[str, JoinSpec] = Field(default_factory=dict)
    leave: dict[str, LeaveSpec] = Field(default_factory=dict)
    ramp: Number = 0.0
    health: Health = None

    @property
    def plan(self) -> Plan:
        """As the graph's words."""
        from kdkit.graph.membership import Plan

        def said(words: dict[str, Any]) -> dict[str, dict[str, float]]:
            return {name: spec.model_dump(exclude_unset=True) for name, spec in words.items()}

        return Plan(said(self.join), said(self.leave), self.ramp)

    @property
    def rule(self) -> Rule | None:
        """The health rule, where there is one."""
        return None if self.health is None else self.health.rule()

    def problems(self, trained: list[str], trainer: TrainerSpec) -> Iterator[tuple[Path, str]]:
        """What does not fit the models or the run."""
        if self.health is not None and trainer.precision == "16-mixed":
            yield ("health",), "all models of a run in fp16 share one loss scale; say trainer.precision: bf16-mixed"
        if trainer.place is not None:
            yield (), "models that come and go, or are watched, are trained on every rank; leave trainer.place out"
        if len(trained) < 2:
            yield (), f"a cohort has at least two trained models, got {', '.join(trained) or 'none'}"
            return
        yield from self.plan.problems(trained, trainer.max_epochs)
