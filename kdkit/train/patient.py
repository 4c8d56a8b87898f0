"""One model of a cohort with all that belongs to it: taken down, and put back without touching the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def state_of(distiller: Any, name: str) -> dict[str, Any]:
    """Weights and running statistics, those of its heads and slow copies, and its optimiser's state."""
    graph = distiller.graph
    return {
        "model": graph.model(name).state_dict(),
        "beside": list(graph.parameters_of(name)[1]),
        "copies": {copy: graph.model(copy).state_dict() for copy in _copies(graph, name)},
        "optimizer": distiller.optimizers().optimizer.state_dict()[name],
    }


@torch.no_grad()
def restore(distiller: Any, name: str, state: Mapping[str, Any], *, anew: bool = False) -> None:
    """Put a state back; `anew`: with an optimiser of its own that knows nothing."""
    graph, optimizers = distiller.graph, distiller.optimizers().optimizer
    graph.model(name).load_state_dict(state["model"])
    for copy in _copies(graph, name):
        graph.model(copy).load_state_dict(state["copies"][copy])
    for parameter, value in zip(graph.parameters_of(name)[1], state["beside"], strict=True):
        parameter.copy_(value)
    optimizers.of[name].zero_grad()
    if anew:
        optimizers.of[name] = distiller.configure_optimizers().of[name]
    else:
        optimizers.load_state_dict({**optimizers.state_dict(), name: state["optimizer"]})


def _copies(graph: Any, name: str) -> list[str]:
    return [copy for copy, node in graph.nodes.items() if node.kind == "ema" and node.of == name]
