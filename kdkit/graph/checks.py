"""What a graph refuses before training, and how it says so."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from kdkit.graph.batch import Batch, Facts
from kdkit.graph.bound import BoundEdge
from kdkit.graph.edge import Edge, listed
from kdkit.graph.node import Node
from kdkit.graph.schedule import Curve, Schedule
from kdkit.registry import KdkitError, constructor, nearest

_FORMS = {
    "labels": "let the training batches be (x, y)",
    "index": "let the training batches be (x, y, index): a data set whose item i is (*item, i)",
}


def check_kinds(nodes: Any, edges: Any, seed: Any) -> None:
    """Models are a mapping, losses a list, the seed a whole number."""
    if not isinstance(nodes, Mapping):
        raise KdkitError(f'the models must be a mapping such as {{"student": net}}, got a {type(nodes).__name__}')
    if isinstance(edges, str) or not isinstance(edges, Sequence):
        raise KdkitError(f'the losses must be a list such as ["ce", "kd"], got a {type(edges).__name__}')
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise KdkitError(f"seed must be a whole number, got {seed!r}")


def check_names(nodes: Mapping[str, Node], edges: Sequence[Edge]) -> None:
    """Names are plain words, and an edge's is its own."""
    if not edges:
        raise KdkitError("a graph needs at least one loss")
    for name in nodes:
        if not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise KdkitError(f"model {name!r}: a model's name must be a plain word and none of Python's own")
    seen: set[str] = set()
    for edge in edges:
        if hasattr(nn.ModuleDict, edge.name):
            raise KdkitError(f"edge {edge.name!r}: this is one of Python's own names; give it another `name`")
        if edge.name in seen:
            raise KdkitError(f"two losses are called {edge.name!r}; give one of them a `name`")
        seen.add(edge.name)


def check_data(edge: Edge, example: Batch, facts: Facts) -> None:
    """The batches, and what is known of the data, hold what the loss cannot do without."""
    lacks = []
    absent = {"index": example.index is None, "labels": example.labels is None or bool((example.labels < 0).all())}
    for word, parameter in inspect.signature(edge.cls.forward).parameters.items():
        if absent.get(word) and parameter.default is not None:
            lacks.append(f"needs each sample's {word}; {_FORMS[word]}")
    if isinstance(edge.loss, type):
        for word, parameter in constructor(edge.cls).items():
            told = word in edge.options or getattr(facts, word, ...) is not None
            if not told and parameter.default is inspect.Parameter.empty:
                lacks.append(f"needs `{word}`, which the data do not tell; give it as an option")
    if lacks:
        raise KdkitError(f"edge {edge.name!r}: the loss {'; and it '.join(lacks)}")


def check_frozen(nodes: Mapping[str, Node]) -> None:
    """What is frozen shares no trained weight with what learns."""
    learns = {
        id(parameter): name
        for name, node in nodes.items()
        if node.kind == "trained" and node.module is not None
        for parameter in node.module.parameters()
        if parameter.requires_grad
    }
    for name, node in nodes.items():
        if node.kind == "frozen" and node.module is not None:
            for parameter in node.module.parameters():
                if other := learns.get(id(parameter)):
                    raise KdkitError(
                        f"models {name!r} and {other!r} share weights, so that freezing one would freeze both; "
                        "give each its own (copy.deepcopy)"
                    )


def check_ends(edges: Sequence[Edge], nodes: Mapping[str, Node], taps: Sequence[str], error: KdkitError) -> None:
    """A tap that does not exist, but nearly has a model's name, was meant as one."""
    for edge in edges:
        for end in (*listed(edge.source), *listed(edge.target)):
            word = end.partition(".")[0]
            close = difflib.get_close_matches(word, list(nodes), cutoff=0.75)
            if end in taps and close and f"{end.partition(':')[0]!r}" in str(error):
                raise KdkitError(f"edge {edge.name!r}: no model is called {word!r}{nearest(word, close)}") from error


def check_classifier(edge: BoundEdge, nodes: Mapping[str, Node]) -> None:
    """A classifier that a loss sends gradients through belongs to a model that does not learn."""
    sources = {end.node for call in edge.calls for link in call.links for end in link.sources}
    if "teacher_classifier" in edge.reads and any(nodes[name].kind == "trained" for name in sources):
        raise KdkitError(f"edge {edge.name!r}: reads its teacher's classifier, which must not learn; freeze it")


def check_owners(parameters: Mapping[str, tuple[Iterable[nn.Parameter], ...]]) -> None:
    """A parameter learns with one node."""
    owner: dict[int, str] = {}
    for name, several in parameters.items():
        for parameter in (p for some in several for p in some):
            if (other := owner.setdefault(id(parameter), name)) != name:
                raise KdkitError(
                    f"models {other!r} and {name!r} share parameters; give each a head and a loss of its own"
                )


def check_terms(terms: Mapping[str, Any]) -> None:
    """A loss is one number."""
    for name, value in terms.items():
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise KdkitError(f"edge {name!r}: a loss must return one number as a 0-dim tensor, got {kind}")


def decay(name: str, node: Node, epochs: float) -> Curve:
    """An EMA node's decay over time."""
    schedule = Schedule.parse(node.decay)
    least, most = schedule.extremes(epochs)
    if not 0 <= least <= most <= 1:
        raise KdkitError(f"model {name!r}: decay must lie in [0, 1], got {schedule}")
    return schedule.bind(epochs)
