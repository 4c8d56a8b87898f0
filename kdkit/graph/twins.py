"""Peers that began alike and are taught alike would stay alike for ever: they are refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch

from kdkit.registry import KdkitError

if TYPE_CHECKING:
    from kdkit.graph.graph import Graph


def check_twins(graph: Graph) -> None:
    """Raise `KdkitError` where two models that teach each other can never differ."""
    for edge in graph.bound:
        pairs = {(end.node, call.target) for call in edge.calls for link in call.links for end in link.sources}
        for one, other in combinations(graph.trained, 2):
            if {(one, other), (other, one)} <= pairs and _alike(graph, one, other):
                raise KdkitError(
                    f"models {one!r} and {other!r} have the same weights and are trained in the same way, so that they "
                    f"would never differ and edge {edge.name!r} would teach nothing; give one other first weights"
                )


def _alike(graph: Graph, one: str, other: str) -> bool:
    words = ("optimizer", "lr", "mean", "std", "image_size", "input", "when")
    a, b = graph.nodes[one], graph.nodes[other]
    if any(getattr(a, word) != getattr(b, word) for word in words) or type(a.module) is not type(b.module):
        return False
    if sorted(_lessons(graph, one, other)) != sorted(_lessons(graph, other, one)):
        return False
    ours, theirs = (dict(graph.models[name].named_parameters()) for name in (one, other))
    return ours.keys() == theirs.keys() and all(
        value.shape == theirs[name].shape and torch.equal(value, theirs[name]) for name, value in ours.items()
    )


def _lessons(graph: Graph, me: str, peer: str) -> Iterator[Any]:
    """What a model is taught, and by whom, with itself and its peer under names that both have."""
    names = {me: "", peer: " "}
    for edge in graph.bound:
        for call in (call for call in edge.calls if call.target == me):
            for link in call.links:
                sources = sorted((names.get(end.node, end.node), end.tap) for end in link.sources)
                yield edge.name, sources, link.target.tap, link.share
