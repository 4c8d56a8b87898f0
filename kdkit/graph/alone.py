"""Who sees few samples of a batch: an epoch's last one alone, and the share that each of several processes has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kdkit import ranks
from kdkit.graph.batch import Batch
from kdkit.registry import KdkitError
from kdkit.untouched import untouched

if TYPE_CHECKING:
    from kdkit.graph.graph import Graph


def ends_alone(samples: int, batch_size: int, drop_last: bool, limit: float | None) -> bool:
    """Whether an epoch ends with a batch of one sample where the others hold several.

    `limit` are the batches of an epoch: so many, or as a float so large a share of them; None takes all.
    """
    whole = limit is None or (limit == 1.0 if isinstance(limit, float) else limit * batch_size >= samples)
    return whole and samples > batch_size > 1 and samples % batch_size == 1 and not drop_last


def apart(graph: Graph, processes: int) -> list[str]:
    """What is to be told of losses that compare a batch's samples where processes share these out."""
    names = [edge.name for edge in graph.unbound if edge.min_batch > 1 and not edge.gather]
    if processes < 2 or not names:
        return []
    told = f"samples of one process alone, of {processes} that share a batch; `gather: true` shows all"
    return [f"{name} sees the {told}" for name in names]


def check_alone(graph: Graph, example: Batch) -> None:
    """One sample through a bound graph, in every phase, as training would do it; it leaves no trace.

    Raises:
        KdkitError: a model or a head cannot be trained on one sample.
    """
    one = example.first(1)
    with untouched(graph), ranks.silence(), torch.enable_grad():
        graph.train()
        for phase in graph.phases:
            graph.set_time(phase.start)
            try:
                graph.terms(phase.updates, graph.outputs(one), one)
            except (RuntimeError, ValueError) as error:
                raise KdkitError(
                    "an epoch's last batch holds one sample, on which these models cannot be trained "
                    f"({error}); leave it out with `drop_last: true` under `data`, or change the batch size"
                ) from error
    graph.set_time(0.0)
