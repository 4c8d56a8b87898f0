"""Building an edge's loss from its options, and what they cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from kdkit.fault import what, where
from kdkit.graph.batch import Facts
from kdkit.graph.calls import Call, Shape, width
from kdkit.graph.control import Control
from kdkit.graph.edge import Edge
from kdkit.graph.schedule import Schedule
from kdkit.registry import KdkitError


def filled(students: Sequence[Shape], teachers: Sequence[Shape | None], facts: Facts, seed: int) -> dict[str, Any]:
    """What no recipe has to repeat, by its word; shapes are those behind the heads."""
    dims = [shape and width(shape) for shape in teachers]
    return {
        "student_shape": students[0],
        "student_dim": width(students[0]),
        "student_dims": [width(shape) for shape in students],
        "teacher_shape": teachers[0],
        "teacher_dim": dims[0],
        "teacher_dims": None if None in dims else dims,
        "num_samples": facts.num_samples,
        "num_classes": facts.num_classes,
        "sample_labels": facts.sample_labels,
        "seed": seed,
    }


def construct(edge: Edge, options: Mapping[str, Any]) -> nn.Module:
    """The loss that an edge names."""
    try:
        loss: nn.Module = edge.cls(**options)
    except (ValueError, TypeError) as error:
        raise KdkitError(f"edge {edge.name!r}: {error}") from error
    except Exception as error:  # anybody's code fails in any way
        raise KdkitError(f"edge {edge.name!r}: the loss could not be built: {what(error)}\n  {where(error)}") from error
    check_sized(edge, loss)
    return loss


def check_sized(edge: Edge, loss: nn.Module) -> None:
    """Its layers have their sizes before a first batch."""
    if lazy := [name for name, p in (*loss.named_parameters(), *loss.named_buffers()) if is_lazy(p)]:
        raise KdkitError(
            f"edge {edge.name!r}: {', '.join(lazy)} would get a size from a first batch (Lazy…); let the constructor "
            "ask for student_dim, teacher_dim or their _shape, which are known"
        )


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
