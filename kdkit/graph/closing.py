"""Models that are cut into stages: each stage's gradient is computed while the model still runs.

Such a model has an attribute `close`. Between the two it is given a function that takes what its tap `beliefs` will
read, of which one stage's part has a graph, and computes that stage's gradients by the very losses that read the tap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdkit.graph.batch import Batch
from kdkit.graph.bound import BoundEdge
from kdkit.graph.factors import factored
from kdkit.graph.links import End
from kdkit.registry import KdkitError

if TYPE_CHECKING:
    from kdkit.graph.graph import Graph
    from kdkit.graph.phase import Phase

TAP = "beliefs"
AFTER = (TAP, "logits", "embedding")  # what lies behind the last cut


def is_cut(graph: Graph, name: str) -> bool:
    """Whether a node closes gradients of its own."""
    return hasattr(graph.model(name), "close")


def _learning(graph: Graph, phase: Phase) -> list[str]:
    """The nodes that close gradients of their own in a phase; one that rests has none."""
    return [name for name in phase.updates if phase.parts[name] and is_cut(graph, name)]


@contextmanager
def closing(graph: Graph, data: Batch, backward: Callable[[Tensor], None]) -> Iterator[None]:
    """While nodes are read, stages of those that learn close their gradients by `backward`, given Σ weight · term."""
    models: dict[str, Any] = {name: graph.models[name] for name in _learning(graph, graph.now)}
    for name, model in models.items():
        model.close = partial(_close, graph, name, data, backward)
    try:
        yield
    finally:
        for model in models.values():
            model.close = None


def _close(graph: Graph, name: str, data: Batch, backward: Callable[[Tensor], None], beliefs: Tensor) -> None:
    outputs = {End(name, TAP): beliefs}
    terms = [
        edge.weight * factored(_value(graph, edge, i, outputs, data) * edge.calls[i].share, edge.factors[i])
        for edge, i in _teaching(graph.now, name)
    ]
    backward(torch.stack(terms).sum())


def _value(graph: Graph, edge: BoundEdge, i: int, outputs: dict[End, Tensor], data: Batch) -> Tensor:
    return edge.value(i, outputs, data, graph.progress, graph.loss_scale)


def _teaching(phase: Phase, name: str) -> list[tuple[BoundEdge, int]]:
    """Every call of a loss that reads the node's beliefs."""
    end = End(name, TAP)
    return [
        (edge, i)
        for edge in phase.edges
        for i, call in enumerate(edge.calls)
        if [x.target for x in call.links] == [end]
    ]


def check_cuts(graph: Graph, phase: Phase) -> None:
    """Raise `KdkitError` where a stage would learn nothing, or something else than one backward pass would teach it."""
    for name in _learning(graph, phase):
        for edge in phase.edges:
            for call in edge.calls:
                for link in call.links:
                    if link.target.node == name:
                        _check(edge, link.target, bool(link.sources))
        if not _teaching(phase, name):
            raise KdkitError(
                f"model {name!r}: its isolated stages learn from their beliefs alone, and no loss reads these at epoch "
                f"{phase.start:g}; add `sid`, or leave `isolate` out"
            )


def _check(edge: BoundEdge, end: End, taught: bool) -> None:
    if end.tap not in AFTER:
        raise KdkitError(
            f"edge {edge.name!r}: {end} lies in a stage of {end.node!r} that is isolated, whose gradient is closed by "
            f"then; read one of {', '.join(AFTER)}, or leave `isolate` out"
        )
    if edge.calibration is not None:
        raise KdkitError(f"edge {edge.name!r}: a share cannot be measured where stages are isolated; give it a number")
    if end.tap != TAP:
        return
    if not getattr(edge.edge.cls, "by_row", False):
        raise KdkitError(
            f"edge {edge.name!r}: isolated stages take only a loss whose gradient at each module needs no module after "
            "it, which it says by an attribute `by_row = True`; take `sid`, or leave `isolate` out"
        )
    words = {"clip": edge.edge.clip is not None, "head": bool(len(edge.heads)), "from": taught}
    for word, given in words.items():
        if given:
            raise KdkitError(f"edge {edge.name!r}: isolated stages learn one by one, and take no {word}; leave it out")
