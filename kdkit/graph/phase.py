"""Phases: stretches of a run in which the same nodes and edges take part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdkit import taps as tapping
from kdkit.graph.bound import BoundEdge

if TYPE_CHECKING:
    from kdkit.graph.graph import Graph


@dataclass(frozen=True)
class Phase:
    """A stretch of the run in which the same nodes and edges are active.

    Attributes:
        start: its first moment, in epochs.
        edges: the active edges.
        updates: the nodes that learn, in order.
        readers: what each needed node is read with.
    """

    start: float
    edges: tuple[BoundEdge, ...]
    updates: tuple[str, ...]
    readers: Mapping[str, tapping.Taps]

    def taps(self, node: str) -> tuple[str, ...]:
        """What is read of a node."""
        return self.readers[node].names if node in self.readers else ()


def phases(graph: Graph, views: Mapping[str, Any]) -> list[Phase]:
    """All phases of a bound graph, in order.

    Args:
        graph: its edges are bound.
        views: an example input of each node.
    """
    spans = {name: graph.nodes[name].when.bind(graph.epochs) for name in graph.trained}
    moments = {0.0, *(moment for span in spans.values() for moment in span)}
    moments |= {moment for edge in graph.bound for moment in (edge.start, edge.end)}
    return [_phase(graph, t, spans, views) for t in sorted(m for m in moments if m < graph.epochs)]


def _phase(graph: Graph, t: float, spans: Mapping[str, tuple[float, float]], views: Mapping[str, Any]) -> Phase:
    active = [name for name, (start, end) in spans.items() if start <= t < end]
    edges = [edge for edge in graph.bound if edge.active(t) and any(call.target in active for call in edge.calls)]
    targets = {call.target for edge in edges for call in edge.calls}
    read = {end for edge in edges for end in edge.ends()}
    readers = {
        name: graph.taps(name, (end.tap for end in read if end.node == name), views[name])
        for name in graph.nodes
        if any(end.node == name for end in read)
    }
    return Phase(t, tuple(edges), tuple(name for name in active if name in targets), readers)
