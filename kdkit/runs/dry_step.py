"""One step of each phase on noise, as training makes it: weights that are measured or moved included."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kdkit.fault import what
from kdkit.graph.batch import Batch
from kdkit.graph.graph import Graph
from kdkit.graph.rehearse import FAILURES
from kdkit.registry import KdkitError
from kdkit.train.share import begin_step, measure


def measured(graph: Graph) -> bool:
    """Whether a step finds out weights, and may fail at it."""
    return bool(graph.watchers) or any(edge.calibration is not None for edge in graph.bound)


def dry_steps(graph: Graph, batch: Batch) -> Iterator[str]:
    """What a step would stumble over: losses whose value is no number.

    Raises:
        KdkitError: weights cannot be measured or moved.
    """
    told: dict[str, str] = {}
    for phase in graph.phases:
        graph.set_time(phase.start)
        with torch.enable_grad():
            begin_step(graph)
            if terms := graph.terms(graph.now.updates, graph.outputs(batch), batch):  # a phase may teach nothing
                try:
                    measure(graph, terms)
                except FAILURES as error:
                    why = f"the gradient of a loss by itself, which sets the weights, cannot be taken: {what(error)}"
                    raise KdkitError(why) from error
        told |= {name: str(float(term)) for name, term in terms.items() if not term.isfinite().all()}
    for name, value in told.items():
        yield f"{name}: is {value} in a dry run on noise; trainer.on_nonfinite says what training does about that"
