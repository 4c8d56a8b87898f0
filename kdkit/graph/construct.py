"""Building an edge's loss from its options, and what they cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kdkit.fault import what, where
from kdkit.graph.calls import Call
from kdkit.graph.control import Control
from kdkit.graph.edge import Edge
from kdkit.graph.schedule import Schedule
from kdkit.registry import KdkitError


def construct(edge: Edge, options: Mapping[str, Any]) -> nn.Module:
    """The loss that an edge names."""
    try:
        return edge.cls(**options)
    except (ValueError, TypeError) as error:
        raise KdkitError(f"edge {edge.name!r}: {error}") from error
    except Exception as error:  # anybody's code fails in any way
        raise KdkitError(f"edge {edge.name!r}: the loss could not be built: {what(error)}\n  {where(error)}") from error


def least_and_most(word: str, edge: Edge, schedule: Schedule, epochs: float) -> tuple[float, float]:
    """The extremes of a number that is never negative."""
    least, most = schedule.extremes(epochs)
    if least < 0:
        raise KdkitError(f"edge {edge.name!r}: {word} must never be negative, got {schedule}")
    return least, most


def check_control(edge: Edge, controls: Mapping[str, Control], several: Sequence[Call]) -> None:
    """A controlled temperature is that of one teacher's logits."""
    for word in controls:
        if any([end.tap for end in link.sources] != ["logits"] for call in several for link in call.links):
            raise KdkitError(f"edge {edge.name!r}: a controlled {word} is that of the logits of one teacher at a time")
