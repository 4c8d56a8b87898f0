"""What `balance` may be said of, and the one kind that is shares."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from kdkit.graph.edge import Edge
from kdkit.graph.schedule import Schedule
from kdkit.graph.share import Share
from kdkit.registry import KdkitError

KINDS = ("equal_share", "gradnorm", "uncertainty")


def check_balance(kind: str, edges: Sequence[Edge]) -> None:
    """Raise `KdkitError` where weights cannot be moved by `kind`."""
    if kind not in KINDS:
        raise KdkitError(f"balance must be one of {', '.join(KINDS)}, got {kind!r}")
    if len(edges) < 2:
        raise KdkitError(f"balance: {kind} weighs losses against each other, and there is one")
    for edge in edges:
        if not (isinstance(edge.weight, Schedule) and edge.weight.constant):
            raise KdkitError(
                f"balance: {kind} moves the weight of {edge.name!r}, which must begin as a number, got {edge.weight}"
            )
        if not edge.weight.args["value"] > 0:
            raise KdkitError(f"balance: the weight of {edge.name!r} must be above 0, got {edge.weight}")


def balanced(kind: str | None, edges: Sequence[Edge]) -> list[Edge]:
    """The edges as `equal_share` has them: all but the first that teaches a model get 1 / K as their share.

    K is how many there are. A share is measured in the first 100 steps and then stays (`kdkit.graph.share.Share`); the
    first edge keeps its weight, which sets the scale of all.
    """
    edges = list(edges)
    if kind is not None:
        check_balance(kind, edges)
    if kind != "equal_share":
        return edges
    found = []
    for i, edge in enumerate(edges):
        edge = copy.copy(edge)
        if i:
            edge.weight = Share(1 / len(edges))
        found.append(edge)
    return found
