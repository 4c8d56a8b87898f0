"""Phases: stretches of a run in which the same nodes and edges take part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdkit import taps as tapping
from kdkit.graph.bound import BoundEdge
from kdkit.graph.stage import Stage, inside
from kdkit.registry import KdkitError

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
        parts: module paths that learn, of each of `updates`; `("",)` is the whole, `()` what learns lies beside it.
        beside: module paths that learn, of each edge of which a stage says it; of all others the whole.
    """

    start: float
    edges: tuple[BoundEdge, ...]
    updates: tuple[str, ...]
    readers: Mapping[str, tapping.Taps]
    parts: Mapping[str, tuple[str, ...]]
    beside: Mapping[str, tuple[str, ...]]

    def taught(self, edge: BoundEdge, nodes: Sequence[str]) -> tuple[str, ...]:
        """Those of `nodes` that an edge teaches now: a model that rests is told only what a stage lets learn beside."""
        return tuple(name for name in nodes if self.parts.get(name) or self.beside.get(edge.name))

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
    stages = [(*stage.when.bind(graph.epochs), stage) for stage in graph.stages]
    moments |= {moment for start, end, _ in stages for moment in (start, end)}
    moments |= {moment for edge in graph.bound for moment in (edge.start, edge.end)}
    found = []
    for start, end, stage in stages:
        _check(stage, [edge.name for edge in graph.bound if edge.start < end and start < edge.end], graph)
    for t in sorted(m for m in moments if m < graph.epochs):
        now = [stage for start, end, stage in stages if start <= t < end]
        parts = {name: _parts(name, now) for name, (start, end) in spans.items() if start <= t < end}
        found.append(_phase(graph, t, parts, _beside(graph, now), views))
    return found


def _check(stage: Stage, there: Sequence[str], graph: Graph) -> None:
    for name in (end.partition(".")[0] for end in stage.train or ()):
        if name not in (*graph.trained, *there):
            raise KdkitError(
                f"stage {stage.name!r}: train: the loss {name!r} has no part in this stage; what one stage leaves to "
                "the next is one loss that lasts over both: in a recipe under `losses`, above the stages"
            )


def phase_at(found: Sequence[Phase], t: float) -> Phase:
    """The phase that the run is in at time `t`; a step that rounding sets beside a phase's start begins it."""
    return next(phase for phase in reversed(found) if phase.start <= t + 1e-9)


def idle(graph: Graph) -> list[str]:
    """Stretches of a run in which nothing learns, and losses that are never asked, as a person is told of them."""
    ends = [*(phase.start for phase in graph.phases[1:]), graph.epochs]
    spans = [(phase.start, end) for phase, end in zip(graph.phases, ends, strict=True) if not phase.updates]
    asked = {edge.name for phase in graph.phases for edge in phase.edges}
    return [
        *(f"from epoch {start:g} to {end:g} nothing learns: no loss reaches what may" for start, end in spans),
        *(
            f"the loss {e.name!r} teaches nobody: all it reaches rests in its time"
            for e in graph.bound
            if e.name not in asked
        ),
    ]


def missed(graph: Graph, updates: float) -> list[str]:
    """Losses and learners whose whole time lies within one update, so that it never comes.

    Args:
        graph: bound.
        updates: of an epoch.
    """
    found, seen = [], set[Any]()
    for phase, end in zip(graph.phases, [*(later.start for later in graph.phases[1:]), graph.epochs], strict=True):
        epoch = math.floor(phase.start)
        number = math.ceil((phase.start - epoch) * updates - 1e-9)  # the first update that begins from then on
        if epoch + min(number / updates, 1.0) < end - 1e-9:
            seen |= _who(phase)
        else:
            found.append((phase, end))
    return [
        f"what is to happen from epoch {phase.start:.6g} to {end:.6g} never does: no update begins there, of "
        f"{math.ceil(updates)} in an epoch"
        for phase, end in found
        if _who(phase) - seen
    ]


def _who(phase: Phase) -> set[Any]:
    return {edge.name for edge in phase.edges} | set(phase.parts.items())


def _parts(node: str, stages: Sequence[Stage]) -> tuple[str, ...]:
    """What of a node learns in every one of the stages that it is in at once."""
    learns: tuple[str, ...] = ("",)
    for stage in stages:
        mine = stage.parts(node)
        learns = tuple({*(p for p in mine if inside(p, learns)), *(p for p in learns if inside(p, mine))})
    return tuple(sorted(learns))


def _beside(graph: Graph, stages: Sequence[Stage]) -> dict[str, tuple[str, ...]]:
    """What learns of each edge that one of the stages names."""
    found = {}
    for edge in graph.bound:
        several = [stage for stage in stages if stage.names(edge.name)]
        if several and edge.name not in graph.trained:  # of a model and a loss of one name the model is meant
            told = edge.parts_told()
            found[edge.name] = tuple(real for path in _parts(edge.name, several) for real in told[path])
    return found


def _phase(
    graph: Graph,
    t: float,
    parts: Mapping[str, tuple[str, ...]],
    beside: Mapping[str, tuple[str, ...]],
    views: Mapping[str, Any],
) -> Phase:
    now = [edge for edge in graph.bound if edge.active(t)]
    woken = {name for edge in now if beside.get(edge.name) for name in edge.targets}
    active = {name: paths for name, paths in parts.items() if paths or name in woken}
    learn = {name for name, paths in active.items() if paths}
    edges = [e for e in now if e.targets & (active.keys() if beside.get(e.name) else learn)]
    targets = {call.target for edge in edges for call in edge.calls}
    read = {end for edge in edges for end in edge.ends()}
    readers = {
        name: graph.taps(name, (end.tap for end in read if end.node == name), views[name])
        for name in graph.nodes
        if any(end.node == name for end in read)
    }
    return Phase(t, tuple(edges), tuple(name for name in active if name in targets), readers, active, beside)
