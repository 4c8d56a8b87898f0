"""Gradients that conflict on weights that are really shared: PCGrad (Yu et al., NeurIPS 2020, arXiv 2001.06782).

Every place of a model at which it is taught (its logits, a head inside it) is a task: the sum of weight · term over all
that is taught there. On a weight that only one task reaches nothing changes. On those that several reach, each task's
gradient loses, one after the other in random order, what points against another's; the sum of what is left moves them.
Models that share no weights with each other never conflict, whatever they teach each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdkit import draws, ranks
from kdkit.graph.closing import is_cut
from kdkit.graph.graph import Graph
from kdkit.graph.links import End
from kdkit.registry import KdkitError
from kdkit.train.sync import average

if TYPE_CHECKING:
    from kdkit.train.distiller import Distiller

Tasks = dict[End, Tensor]


def check_pcgrad(wanted: bool, compile: object, graph: Graph) -> bool:
    """Whether it is asked for; raises `KdkitError` where it cannot be done."""
    if wanted not in (True, False):
        raise KdkitError(f"pcgrad must be True or False, got {wanted!r}")
    if wanted and compile is not False:
        raise KdkitError(
            "pcgrad: looks at the gradient of every task by itself, which is not compiled; leave compile out"
        )
    if wanted and (cut := [name for name in graph.trained if is_cut(graph, name)]):
        raise KdkitError(f"pcgrad: the stages of {cut[0]!r} close their own gradients; leave it out")
    return wanted


@contextmanager
def tasks_of(distiller: Distiller) -> Iterator[Tasks]:
    """What is taught where, once the losses inside are computed; nothing unless it is asked for."""
    found: Tasks = {}
    edges = distiller.graph.now.edges if distiller.pcgrad else ()
    for edge in edges:
        edge.parts = []
    try:
        yield found
        for edge in edges:
            for end, value in edge.parts or ():
                found[end] = found[end] + edge.weight * value if end in found else edge.weight * value
    finally:
        for edge in edges:
            edge.parts = None


def backward_projected(distiller: Distiller, tasks: Tasks, step: int, _: Tensor) -> None:
    """Add to the gradients of everything that the tasks of a turn, of which the loss is the sum, reach.

    Where ranks train the same models, what conflicts is each task's mean gradient over ranks.
    """
    graph, key, alike = distiller.graph, draws.key(distiller.seed, step), not distiller.place.apart
    for node in dict.fromkeys(end.node for end in tasks):
        learning = [p for several in graph.parameters_of(node) for p in several if p.requires_grad]
        _project([value for end, value in tasks.items() if end.node == node], learning, graph, key, alike)


def _project(tasks: Sequence[Tensor], parameters: list[nn.Parameter], graph: Graph, key: int, alike: bool) -> None:
    several = []
    for task in (task for task in tasks if task.requires_grad):
        with torch.autocast(task.device.type, enabled=False):
            grads = torch.autograd.grad(task * graph.loss_scale, parameters, retain_graph=True, allow_unused=True)
        if alike and ranks.speak():
            average(g for g in grads if g is not None)
        several.append(grads)
    reached = [sum(grads[i] is not None for grads in several) for i in range(len(parameters))]
    shared = [i for i, count in enumerate(reached) if count > 1]
    flat = [torch.cat([_or_zeros(grads[i], parameters[i]).flatten() for i in shared]) for grads in several if shared]
    total = iter(projected(flat, key).split([parameters[i].numel() for i in shared]) if shared else ())
    for i, parameter in enumerate(parameters):
        if reached[i]:
            of_one = (grads[i] for grads in several if grads[i] is not None)
            new = next(total).view_as(parameter) if reached[i] > 1 else next(of_one)
            assert new is not None
            parameter.grad = new.clone() if parameter.grad is None else parameter.grad + new


def projected(gradients: Sequence[Tensor], key: int) -> Tensor:
    """Σ_i g_i, where each g_i has lost its part against every g_j that it conflicts with; j in random order."""
    total = torch.zeros_like(gradients[0])
    for i, gradient in enumerate(gradients):
        mine = gradient.clone()
        for j in draws.permutation(draws.key(key, "pcgrad", i), len(gradients), "cpu").tolist():
            if j != i:
                other = gradients[j]
                against = torch.dot(mine, other).clamp(max=0) / other.square().sum().clamp_min(1e-30)
                mine -= against * other
        total += mine
    return total


def _or_zeros(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient
