"""Factors: what a callback sets between two steps to make one model teach another more, less or not at all.

Every call of an edge (one set of sources → one target) has a factor of 1 that stands beside its share. A callback says

    set_factor(distiller.graph, "dml", 0.5, sources="a", target="b")   # b listens half as much to a
    set_factor(distiller.graph, "ce", 0, target="b")                   # the labels have no sources

at any moment between two training steps, on every rank with the same number. Compiled and recorded steps see it from
the next step on, and checkpoints keep it. At 1 nothing changes, to the last bit. At 0 the call adds nothing, even where
what it computes is not finite; among peers not even a teacher that is not finite reaches the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdkit.registry import KdkitError

if TYPE_CHECKING:
    from kdkit.graph.bound import BoundEdge
    from kdkit.graph.calls import Call
    from kdkit.graph.graph import Graph

Pair = tuple[tuple[str, ...], str]
"""Who teaches (nobody for a loss from labels) and who learns."""


def pair(call: Call) -> Pair:
    """The nodes of a call."""
    return tuple(dict.fromkeys(end.node for link in call.links for end in link.sources)), call.target


def factors(graph: Graph, edge: str) -> dict[Pair, float]:
    """The factors of an edge by (sources, target)."""
    bound = _edge(graph, edge)
    return {pair(call): value for call, value in zip(bound.calls, bound.factors.tolist(), strict=True)}


def set_factor(graph: Graph, edge: str, value: float, *, target: str, sources: str | Sequence[str] = ()) -> None:
    """Set the factor of every call of an edge between these nodes.

    Args:
        graph: bound to data.
        edge: its name.
        value: 0 or more.
        target: who learns.
        sources: who teaches, one or several (an ensemble); none for a loss from labels.

    Raises:
        KdkitError: no such edge, no such call, or not a number from 0 on.
    """
    bound = _edge(graph, edge)
    if isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise KdkitError(f"edge {edge!r}: a factor must be 0 or a positive number, got {value!r}")
    wanted = {sources} if isinstance(sources, str) else set(sources)
    found = [i for i, call in enumerate(bound.calls) if call.target == target and set(pair(call)[0]) == wanted]
    if not found:
        known = "; ".join(f"{', '.join(ours) or 'labels'} → {whom}" for ours, whom in map(pair, bound.calls))
        raise KdkitError(
            f"edge {edge!r}: nothing goes from {', '.join(sorted(wanted)) or 'labels'} to {target}; it has {known}"
        )
    for i in found:
        bound.factors[i] = value


def factored(value: Tensor, factor: Tensor) -> Tensor:
    """A call's value times its factor; 0 where the factor is, whatever the value."""
    return torch.where(factor == 0, 0.0, value * factor)


def heard(teacher: Tensor, factor: Tensor) -> Tensor:
    """What a peer says, or zeros where its factor is 0: what is not finite would pass a multiplication."""
    return torch.where(factor == 0, 0.0, teacher)


def _edge(graph: Graph, name: str) -> BoundEdge:
    if name not in graph.edges:
        known = ", ".join(graph.edges) or "none, for the graph is not bound to data yet"
        raise KdkitError(f"no edge is called {name!r}; known: {known}")
    return graph.edges[name]  # type: ignore[return-value]
