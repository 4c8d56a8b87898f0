"""Losses of a watched cohort that are not finite though all they were given is."""

from __future__ import annotations

import logging
from typing import Any

import torch

log = logging.getLogger(__name__)


def lost(distiller: Any) -> dict[str, float]:
    """NaN for each of them since the last call, for it has no mean; told by name when it first happens."""
    edges = [edge for edge in distiller.graph.bound if edge.audience is not None and edge.audience.watch]
    if not edges:
        return {}
    found = {}
    for edge, times in zip(edges, torch.stack([edge.audience.lost for edge in edges]).tolist(), strict=True):
        if times and edge.name in distiller.sums.counts:
            found[f"loss/{edge.name}"] = float("nan")
            edge.audience.lost.zero_()
            if not edge.audience.told:
                edge.audience.told = True
                log.warning(
                    "warning: the loss %s was not finite in epoch %d, though all that the models said is; it "
                    "makes its models sick, and loss/%s is NaN. Mend the loss, or leave it out",
                    edge.name, distiller.current_epoch + 1, edge.name,
                )  # fmt: skip
    return found
