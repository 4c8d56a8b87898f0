"""Slow copies that do not follow."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from kdkit.graph.graph import Graph

HALF = (torch.bfloat16, torch.float16)
KEPT = 0.1
"""Share of its first weights that a slow copy may keep to the end before a person is told."""


def slow(graph: Graph, steps: float) -> Iterator[str]:
    """Slow copies that stay near where they began: their decay is made for longer runs, or their weights are half ones.

    Args:
        graph: bound.
        steps: of the optimiser, in the whole run.
    """
    times = [graph.epochs * (i + 0.5) / 100 for i in range(100)]
    kept = {
        name: math.exp(steps * sum(math.log(max(curve(t), 1e-30)) for t in times) / len(times))
        for name, curve in graph.decays.items()
    }
    for name, share in kept.items():
        if any(p.dtype in HALF for p in graph.model(name).parameters()):
            yield f"{name} moves by less than its half-precision weights can tell; train in bf16-mixed"
        if share > KEPT and steps:
            yield (
                f"{name} keeps {share:.0%} of its first weights to the end, {steps:.0f} steps, as its decay is "
                f"{graph.decays[name](0.0):g}; {math.exp(-10 / steps):.3g} has the memory of a tenth of them"
            )
