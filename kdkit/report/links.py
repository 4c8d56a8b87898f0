"""Who teaches whom in a run, told by its recipe alone: neither weights nor data need be there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from kdkit.graph import Node
from kdkit.graph.links import links
from kdkit.recipe.named import edge_model
from kdkit.registry import KdkitError
from kdkit.report.tables import number

Noted = Mapping[str, list[tuple[tuple[str, ...], str]]]
LABELS = "labels"  # where knowledge comes from that no model has


@dataclass(frozen=True)
class Box:
    """A model.

    Attributes:
        name: of the node.
        kind: trained, frozen or ema.
        lines: what stands below its name.
        of: whom an EMA copy follows.
    """

    name: str
    kind: str
    lines: tuple[str, ...]
    of: str | None = None


@dataclass(frozen=True)
class Arrow:
    """All that one loss carries from some models to one.

    Attributes:
        name: of the edge.
        weight: as the recipe says it.
        ended: the weight that the run noted last, where that is another; empty where it is not.
        sources: models; `labels` where there is none.
        target: whom it teaches.
        taps: where it reads: `logits`, `stage1 → layer2`, or how many pairs.
        when: its time; empty for the whole run.
    """

    name: str
    weight: str
    sources: tuple[str, ...]
    target: str
    taps: str
    when: str = ""
    ended: str = ""


def boxes(words: Mapping[str, Any]) -> list[Box]:
    """The models of a resolved recipe."""
    return [_box(name, spec) for name, spec in words["models"].items()]


def ends(provenance: Mapping[str, Any]) -> Noted:
    """Who teaches whom, by loss, as a run noted it."""
    links = provenance.get("links") or {}
    return {name: [(tuple(map(str, sources)), str(target)) for sources, target in its] for name, its in links.items()}


def arrows(
    words: Mapping[str, Any], noted: Noted | None = None, weights: Mapping[str, float] | None = None
) -> list[Arrow]:
    """The losses of a resolved recipe; of somebody's own code, which a page never runs, by what the run noted.

    Args:
        words: the recipe.
        noted: as `ends` gives them; runs of older versions have none, and then the recipe's words must do.
        weights: by loss, what the run noted last of those that moved.
    """
    kinds = {box.name: box for box in boxes(words)}
    nodes = {
        box.name: Node(None, "ema", of=box.of) if box.of else Node(nn.Identity(), box.kind)  # type: ignore[arg-type]
        for box in kinds.values()
    }
    found = []
    for entry in words["losses"]:
        ((loss, said),) = entry.items()
        found += _arrows(loss, dict(said or {}), nodes, noted or {}, weights or {})
    return found


def _box(name: str, spec: Mapping[str, Any]) -> Box:
    if spec.get("ema"):
        return Box(name, "ema", (f"slow copy of {spec['ema']}",), str(spec["ema"]))
    frozen = spec.get("frozen", name.startswith("teacher"))
    arch = str(spec.get("arch", "")).rpartition("/")[2]
    return Box(name, "frozen" if frozen else "trained", (arch, "frozen" if frozen else "trained"))


def _arrows(
    loss: str, said: dict[str, Any], nodes: Mapping[str, Node], noted: Noted, weights: Mapping[str, float]
) -> list[Arrow]:
    title = str(said.get("name") or loss.rpartition(":")[2])
    given, when = said.get("weight", 1), _when(said.get("when"))
    ended = number(weights[title]) if title in weights and number(weights[title]) != number(given) else ""
    try:
        if ":" in loss:
            raise KdkitError(f"{loss} would run")
        edge = edge_model(loss).model_validate({"loss": loss, **said}).edge()
        pairs = [(tuple(map(str, link.sources)), str(link.target)) for link in links(edge, nodes)]
    except (KdkitError, ValueError, TypeError):
        pairs = noted.get(title) or _told(said, nodes)
    groups: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for sources, target in pairs:
        heads = tuple(source.partition(".")[0] for source in sources) or (LABELS,)
        node, _, tap = target.partition(".")
        theirs = sources[0].partition(".")[2] if sources else tap
        groups.setdefault((heads, node), []).append(tap if theirs == tap else f"{theirs} → {tap}")
    return [
        Arrow(
            title,
            _weight(given),
            sources,
            target,
            taps[0] if len(taps) == 1 else f"{len(taps)} pairs of taps",
            when,
            ended,
        )
        for (sources, target), taps in groups.items()
    ]


def _told(said: Mapping[str, Any], nodes: Mapping[str, Node]) -> list[tuple[tuple[str, ...], str]]:
    """Ends as far as the words go."""

    def named(word: str) -> list[str]:
        given = said.get(word)
        return [str(given)] if isinstance(given, str) else [str(name) for name in given or []]

    peers = named("among")
    if peers:
        return [((source,), target) for target in peers for source in peers if source != target]
    targets = named("to") or [name for name, node in nodes.items() if node.kind == "trained"]
    sources = named("from") or [name for name, node in nodes.items() if node.kind == "frozen"][:1]
    if said.get("ensemble") or not sources:
        return [(tuple(sources), target) for target in targets]
    most = max(len(sources), len(targets))
    pairs = zip(*(side * most if len(side) == 1 else side for side in (sources, targets)), strict=False)
    return [((source,), target) for source, target in pairs]


def _weight(value: Any) -> str:
    if isinstance(value, Mapping):
        word, inner = next(iter(value.items()))
        if isinstance(inner, list) and all(isinstance(end, (int, float)) for end in inner):
            inner = "→".join(f"{end:g}" for end in inner)
        return f"{word} {inner}" if not isinstance(inner, Mapping) else word
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _when(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    return " ".join(f"{word} {at}" for word, at in value.items())
