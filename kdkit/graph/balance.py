"""What `balance` may be said of, and the one kind that is shares."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

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


def check_company(kind: str | None, *, turns: int = 1, cohort: bool = False) -> None:
    """Raise `KdkitError` where weights cannot be moved so beside what a run does.

    Args:
        kind: how; `equal_share` measures each turn, and among those who take part.
        turns: of a step.
        cohort: whether models come and go, or are watched.
    """
    if kind in ("gradnorm", "uncertainty") and turns > 1:
        raise KdkitError(f"balance: {kind} weighs all terms of a step together; leave `update: sequential` out")
    if kind == "gradnorm" and cohort:
        raise KdkitError(
            "balance: gradnorm compares each loss with its first value, which changes with who takes part; leave "
            "balance or cohort out"
        )


def balanced(kind: str | None, edges: Sequence[Edge | str | nn.Module]) -> Sequence[Edge | str | nn.Module]:
    """The edges as `equal_share` has them: all but the first that teaches a model get 1 / K as their share.

    K is how many there are. A share is measured in the first 100 steps and then stays (`kdkit.graph.share.Share`); the
    first edge keeps its weight, which sets the scale of all.
    """
    if kind is None or isinstance(edges, str) or not isinstance(edges, Sequence):  # the graph says what is wrong
        return edges
    known = [edge if isinstance(edge, Edge) else Edge(edge) for edge in edges]
    check_balance(kind, known)
    if kind != "equal_share":
        return known
    found = []
    for i, edge in enumerate(known):
        edge = copy.copy(edge)
        if i:
            edge.weight = Share(1 / len(known), "balance: equal_share")
        found.append(edge)
    return found
