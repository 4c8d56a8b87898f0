"""From an edge's links to the calls of its loss, and the shapes that its heads and losses are sized by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdkit.graph.edge import Edge
from kdkit.graph.links import End, Link
from kdkit.registry import KdkitError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One call of the loss: one link, or all layer pairs between two models for a loss that reads lists."""

    links: tuple[Link, ...]

    @property
    def target(self) -> str:
        """The node that learns from it."""
        return self.links[0].target.node

    @property
    def share(self) -> float:
        """Its factor inside the edge."""
        return self.links[0].share


def calls(found: list[Link], lists: bool) -> list[Call]:
    """One call for each link, or for each pair of models where the loss reads lists."""
    if not lists:
        return [Call((link,)) for link in found]
    groups: dict[tuple[Any, ...], list[Link]] = {}
    for link in found:
        groups.setdefault((tuple(e.node for e in link.sources), link.target.node), []).append(link)
    return [Call(tuple(group)) for group in groups.values()]


def source_shape(name: str, link: Link, shapes: Mapping[End, Shape]) -> Shape | None:
    """Shape of what teaches in the edge of that name; an ensemble has one for all.

    Raises:
        KdkitError: an ensemble of different shapes.
    """
    if not link.sources:
        return None
    first, *others = (shapes[end] for end in link.sources)
    for end, shape in zip(link.sources[1:], others, strict=True):
        if shape != first:
            raise KdkitError(
                f"edge {name!r}: an ensemble needs equal shapes, got {first} at {link.sources[0]} and {shape} at "
                f"{end}; leave `ensemble` out, and each teaches by itself"
            )
    return first


def width(shape: Shape) -> int:
    """Channels of a map (C, H, W), width of tokens (N, D) or of a vector (D,)."""
    return shape[0] if len(shape) == 3 else shape[-1]


def check_classes(edge: Edge, link: Link, student: Shape, teacher: Shape | None, classes: int | None = None) -> None:
    """Logits that are compared are of the same classes; who has others than the data is who is to be mended."""
    taps = {link.target.tap, *(end.tap for end in link.sources)}
    if teacher is not None and taps == {"logits"} and student != teacher:
        advice = "fit the teacher to the data first with `tune: {epochs: …, lr: …}`, or tap it below its logits"
        if teacher[-1] == classes:
            advice = f"the data have {classes}: build {link.target.node} with as many"
        raise KdkitError(
            f"edge {edge.name!r}: {link.sources[0].node} has {teacher[-1]} classes, {link.target.node} {student[-1]}; "
            + advice
        )
