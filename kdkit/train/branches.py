"""Models that learn without each other in one step: many students of one teacher, each on a CUDA stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from kdkit.graph.graph import Graph

Branch = tuple[str, ...]

_streams: dict[int, list[Any]] = {}


def branches(graph: Graph) -> list[Branch]:
    """The nodes that learn now, in groups that neither read each other nor share a weight.

    What one group does changes nothing for another, so that they may run in any order, or at once.
    """
    of = {name: {name} for name in graph.now.updates}

    def join(names: set[str]) -> None:
        together = set().union(*(of[name] for name in names))
        for name in together:
            of[name] = together

    for edge in graph.now.edges:
        for call in edge.calls:
            ends = {call.target, *(end.node for link in call.links for end in link.sources)}
            join(_learning(graph, ends) & of.keys())
    owners: dict[int, str] = {}
    for name in of:
        for parameter in (p for several in graph.parameters_of(name) for p in several):
            join({name, owners.setdefault(id(parameter), name)})
    found = {min(group): tuple(name for name in graph.now.updates if name in group) for group in of.values()}
    return sorted(found.values(), key=lambda branch: graph.now.updates.index(branch[0]))


def _learning(graph: Graph, names: set[str]) -> set[str]:
    """Nodes, and for a slow copy of a node also that node."""
    return names | {str(graph.nodes[name].of) for name in names if graph.nodes[name].kind == "ema"}


def side_by_side(groups: Sequence[Branch], work: Callable[[Branch], None]) -> None:
    """Work for each group, on streams that begin where the present one is and end before it goes on."""
    if len(groups) < 2 or not torch.cuda.is_available():
        for group in groups:
            work(group)
        return
    here = torch.cuda.current_stream()
    streams = _streams_of(torch.cuda.current_device(), len(groups))
    for group, stream in zip(groups, streams, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            work(group)
    for stream in streams:
        here.wait_stream(stream)


def _streams_of(device: int, count: int) -> list[Any]:
    """As many streams of a device, always the same ones: a recording is made on those of the steps before it."""
    mine = _streams.setdefault(device, [])
    mine += [torch.cuda.Stream(device) for _ in range(count - len(mine))]
    return mine[:count]
