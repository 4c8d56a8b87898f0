"""Shares become weights: gradients are measured in the first steps, once for each edge; afterwards nothing is."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from kdkit.graph.bound import BoundEdge
from kdkit.graph.graph import Graph
from kdkit.graph.share import Calibration
from kdkit.registry import KdkitError
from kdkit.train.gradients import gradient, norm

log = logging.getLogger(__name__)


def begin_step(graph: Graph) -> bool:
    """Begin a step of the phase; returns whether measuring has begun or ended with it.

    Raises:
        KdkitError: an edge was measured, and no weight gives it its share.
    """
    for watcher in graph.watchers:
        watcher.begin()  # type: ignore[operator]
    changed = [(edge, its) for edge, its in _shared(graph) if its.begin()]
    for edge, its in changed:
        if not its.measuring:
            log.info("%s: %s is a weight of %.6g from now on", edge.name, edge.edge.weight, _check(edge))
    return bool(changed)


def calibrating(graph: Graph) -> bool:
    """Whether terms are looked at one by one, so that no step may be recorded or compiled."""
    return bool(graph.watchers) or any(its.open for _, its in _shared(graph))


def measure(graph: Graph, terms: Mapping[str, Tensor]) -> None:
    """Look at every term's gradient by itself, and set the weights of those edges that are being measured; then watch.

    w = share · mean(whole) / mean(‖∂term/∂θ‖) where whole · (1 − Σ shares) is what edges of known weight tell. The
    device is not waited for. Under DDP a gradient is the mean over ranks, as in the step.
    """
    found = [(edge, its) for edge, its in _shared(graph) if its.measuring]
    for targets in sorted({edge.targets for edge, _ in found}, key=sorted):
        theirs = [p for name in sorted(targets) for p in graph.models[name].parameters() if p.requires_grad]
        asking = {edge.name: its for edge, its in found if edge.targets == targets}
        rest, free = torch.zeros_like(graph.progress), torch.ones_like(graph.progress)
        norms = {}
        for edge in graph.now.edges:
            if edge.targets & targets:
                weight = graph.loss_scale if edge.name in asking else graph.loss_scale * edge.weight
                norms[edge.name] = own = norm(gradient(terms.get(edge.name), weight, theirs), weight) / graph.loss_scale
                if edge.name in asking:
                    free = free - asking[edge.name].share * (own > 0)
                else:
                    rest = rest + own
        for edge, its in found:
            if edge.name in asking:
                edge.weight.copy_(its.add(norms[edge.name], rest / free))
    for watcher in graph.watchers:
        watcher.look(graph, terms)  # type: ignore[operator]


def weights(graph: Graph) -> dict[str, Tensor]:
    """The weights that are no plain numbers, as they are logged at an epoch's end: as its last step had them.

    Raises:
        KdkitError: an edge was measured, and no weight gives it its share.
    """
    found = [(edge, edge.calibration) for edge in graph.bound if edge.calibration is not None]
    for edge, its in found:
        if its.steps:
            _check(edge)
    watched = [watcher.weights(graph) for watcher in graph.watchers]  # type: ignore[operator]
    moved = [*(edge for edge, _ in found), *(edge for edge in graph.now.edges if edge.scheduled)]
    return {f"weight/{edge.name}": edge.weight for edge in moved} | {k: v for its in watched for k, v in its.items()}


def _shared(graph: Graph) -> list[tuple[BoundEdge, Calibration]]:
    return [(edge, edge.calibration) for edge in graph.now.edges if edge.calibration is not None]


def _check(edge: BoundEdge) -> float:
    """Its weight, which is not zero."""
    if (weight := float(edge.weight)) == 0:
        raise KdkitError(
            f"edge {edge.name!r}: in the first steps this loss, or all beside it, sent no gradient to "
            f"{', '.join(sorted(edge.targets))}, so that no weight gives it {edge.edge.weight}; give it a number"
        )
    return weight
