"""Slow copies beside the length of a run."""

from __future__ import annotations

import math

from kdkit.graph.graph import Graph

KEPT = 0.1
"""Share of its first weights that a slow copy may keep to the end before a person is told."""


def slow(graph: Graph, steps: float) -> list[str]:
    """Slow copies that stay near where they began, for their decay is made for longer runs.

    Args:
        graph: bound.
        steps: of the optimiser, in the whole run.
    """
    times = [graph.epochs * (i + 0.5) / 100 for i in range(100)]
    kept = {
        name: math.exp(steps * sum(math.log(max(curve(t), 1e-30)) for t in times) / len(times))
        for name, curve in graph.decays.items()
    }
    return [
        f"{name} keeps {share:.0%} of its first weights to the end, {steps:.0f} steps, as its decay is "
        f"{graph.decays[name](0.0):g}; {math.exp(-10 / steps):.3g} has the memory of a tenth of them"
        for name, share in kept.items()
        if share > KEPT and steps
    ]
