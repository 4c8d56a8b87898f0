"""What the upright lines of a run's curves tell: stages that begin, models that come, go and are treated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kdkit.graph.span import Span
from kdkit.runs.events import Told


class Moment(NamedTuple):
    """A moment, in epochs that are over by then, and what happened at it."""

    epoch: float
    what: str


def moments(
    events: Sequence[Told], stages: Iterable[tuple[str, Span | Mapping[str, Any]]], epochs: float
) -> list[Moment]:
    """All of a run in their order; what happened at once is told in one line.

    Args:
        events: of a cohort.
        stages: names and times; what begins with the run is told of no more than the run itself.
        epochs: length of the run.
    """
    begun = [(Span.parse(when).bind(epochs)[0], name) for name, when in stages]
    told = [(at, name) for at, name in begun if at > 0] + [(e.epoch, f"{e.model} {e.what}") for e in events]
    return [
        Moment(epoch, ", ".join(what for at, what in told if at == epoch)) for epoch in sorted({at for at, _ in told})
    ]
