"""From an edge's words to its links: which tap of which node teaches which tap of which node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

from kdkit.graph.edge import Edge, Ends, listed
from kdkit.graph.node import Node
from kdkit.registry import KdkitError, nearest, reads

FREEZE = "`frozen: true` (in Python kdkit.frozen)"
TEACHER_WORDS = frozenset({"teacher", "teachers", "teacher_logits", "teacher_classifier"})


@dataclass(frozen=True)
class End:
    """A tap of a node."""

    node: str
    tap: str

    def __str__(self) -> str:
        return f"{self.node}.{self.tap}"


@dataclass(frozen=True)
class Link:
    """One application of a loss.

    Attributes:
        sources: where knowledge comes from: none for a supervised loss, several for an ensemble.
        target: whom it reaches.
        share: its factor inside the edge: 1/(K−1) among K peers.
    """

    sources: tuple[End, ...]
    target: End
    share: float = 1.0


Expand = Callable[[str, str], list[str]]


def links(edge: Edge, nodes: Mapping[str, Node], expand: Expand = lambda node, tap: [tap]) -> list[Link]:
    """Every link of an edge; `expand(node, tap)` turns a plural tap such as `stages` into its members.

    Raises:
        KdkitError: unknown nodes, no teacher or several, lists that do not fit, peers that are not at least two.
    """
    if edge.among is not None:
        return _among(edge, nodes, expand)
    needs_source = bool(TEACHER_WORDS & set(reads(edge.cls)))
    if edge.source is not None and not needs_source:
        raise KdkitError(f"edge {edge.name!r}: this loss reads no teacher; leave out `from`")
    targets = _ends(edge, edge.target, lambda: _trained(edge, nodes), nodes, expand)
    if not needs_source:
        found = [Link((), end) for group in targets for end in group]
    else:
        sources = _ends(edge, edge.source, lambda: [_teacher(edge, nodes)], nodes, expand)
        if len(edge.natural_taps) > 1:  # a side without taps has those of a node in one group: so has the other
            sources = _by_node(sources) if _bare(edge.target, nodes) else sources
            targets = _by_node(targets) if _bare(edge.source, nodes) else targets
        if edge.ensemble:
            sources = _ensemble(edge, sources)
            found = [Link(tuple(s), t) for group in targets for s, t in _zip(edge, sources, group)]
        else:
            pairs = _zip(edge, sources, targets)
            found = [Link((s,), t) for ss, ts in pairs for s, t in _zip(edge, ss, ts)]
    for link in found:
        _check(edge, link, nodes)
    return found


def who_teaches_whom(edges: Sequence[Edge], nodes: Mapping[str, Node]) -> dict[str, list[list[Any]]]:
    """By edge its sources and its target, `[[["teacher.logits"], "student.logits"]]`; plural taps by their word."""
    return {e.name: [[[*map(str, link.sources)], str(link.target)] for link in links(e, nodes)] for e in edges}


def _among(edge: Edge, nodes: Mapping[str, Node], expand: Expand) -> list[Link]:
    peers = list(edge.among or ())
    for peer in peers:
        if peer not in nodes:
            raise KdkitError(f"edge {edge.name!r}: no model is called {peer!r}{nearest(peer, list(nodes))}")
        if nodes[peer].kind != "trained":
            raise KdkitError(f"edge {edge.name!r}: {peer!r} is {nodes[peer].kind}; peers are trained models")
    if len(set(peers)) < 2 or len(set(peers)) != len(peers):
        raise KdkitError(f"edge {edge.name!r}: among must name at least two different models, got {peers}")
    taps = listed(edge.taps) or edge.natural_taps
    ends = {peer: [End(peer, t) for tap in taps for t in expand(peer, tap)] for peer in peers}
    if edge.ensemble:
        return [
            Link(tuple(source), end)
            for target in peers
            for source, end in _zip(edge, _ensemble(edge, [ends[p] for p in peers if p != target]), ends[target])
        ]
    share = 1.0 / (len(peers) - 1)
    pairs = [(s, t) for one, other in permutations(peers, 2) for s, t in _zip(edge, ends[one], ends[other])]
    return [Link((s,), t, share) for s, t in pairs]


def _ends(
    edge: Edge, given: Ends, default: Callable[[], list[str]], nodes: Mapping[str, Node], expand: Expand
) -> list[list[End]]:
    """One group of ends for each word given (a plural tap makes a group of several)."""
    groups = []
    for word in listed(given) or [""]:
        head, _, tail = word.partition(".")
        where, tap = ([head], tail) if head in nodes else (default(), word)
        if tap and edge.taps is not None:
            raise KdkitError(
                f"edge {edge.name!r}: `taps` says where both ends are read, and {word!r} names a tap of its own; "
                "leave out one of the two"
            )
        for node in where:
            taps = [tap] if tap else listed(edge.taps) or edge.natural_taps
            groups.append([End(node, t) for name in taps for t in expand(node, name)])
    return groups


def _bare(given: Ends, nodes: Mapping[str, Node]) -> bool:
    """Whether an end names models at most, and no taps."""
    return all(word in nodes for word in listed(given))


def _by_node(groups: list[list[End]]) -> list[list[End]]:
    """The groups of each node as one."""
    found: dict[str, list[End]] = {}
    for group in groups:
        found.setdefault(group[0].node, []).extend(group)
    return list(found.values())


def _zip(edge: Edge, left: list[Any], right: list[Any]) -> list[tuple[Any, Any]]:
    """Equal lists are zipped, a single one broadcasts."""
    if len(left) == len(right) or len(left) == 1 or len(right) == 1:
        n = max(len(left), len(right))
        return list(zip(left * n if len(left) == 1 else left, right * n if len(right) == 1 else right, strict=True))
    if any(isinstance(end, End) and end.tap.partition(":")[0] == "stages" for end in (*left, *right)):
        return list(product(left, right))  # how many they are is not known without the models
    shown = [", ".join(map(str, _flat(side))) for side in (left, right)]
    raise KdkitError(
        f"edge {edge.name!r}: {len(left)} sources ({shown[0]}) do not fit {len(right)} targets ({shown[1]}); "
        "name equally many with `from` and `to` (in Python `source` and `target`)"
    )


def _flat(ends: Sequence[End | Sequence[End]]) -> list[End]:
    return [e for end in ends for e in ([end] if isinstance(end, End) else end)]


def _ensemble(edge: Edge, sources: list[list[End]]) -> list[list[End]]:
    """Turn [[t1.a, t1.b], [t2.a, t2.b]] into [[t1.a, t2.a], [t1.b, t2.b]]: one group of teachers for each tap."""
    if (len(sources) < 2 and edge.among is None) or len({len(group) for group in sources}) != 1:
        raise KdkitError(f"edge {edge.name!r}: an ensemble needs several teachers with equally many taps in `from`")
    return [list(group) for group in zip(*sources, strict=True)]


def _trained(edge: Edge, nodes: Mapping[str, Node]) -> list[str]:
    trained = [name for name, node in nodes.items() if node.kind == "trained"]
    if not trained:
        raise KdkitError(f"edge {edge.name!r}: no model is trained; one must be")
    return trained


def _teacher(edge: Edge, nodes: Mapping[str, Node]) -> str:
    if "teacher" in nodes:
        return "teacher"
    for kind in ("frozen", "ema"):
        of_kind = [name for name, node in nodes.items() if node.kind == kind]
        if len(of_kind) == 1:
            return of_kind[0]
    raise KdkitError(
        f"edge {edge.name!r}: who teaches? none of the models ({', '.join(nodes)}) is called 'teacher' or is the only "
        f"frozen one; say `from`, or freeze the teacher: {FREEZE}"
    )


def _check(edge: Edge, link: Link, nodes: Mapping[str, Node]) -> None:
    if nodes[link.target.node].kind != "trained":
        raise KdkitError(f"edge {edge.name!r}: {link.target.node!r} is {nodes[link.target.node].kind} and cannot learn")
    if link.target in link.sources and edge.target is None:
        node = link.target.node
        others = [name for name, other in nodes.items() if other.kind == "trained" and name != node]
        raise KdkitError(
            f"edge {edge.name!r}: {link.target} cannot teach itself, for {node!r} is trained too; if it is a teacher, "
            f"freeze it: {FREEZE}; if it learns, say whom it teaches: `to: {others[0] if others else node + '.TAP'}` "
            "(in Python target=…)"
        )
    if link.target in link.sources:
        raise KdkitError(f"edge {edge.name!r}: {link.target} cannot teach itself; name another tap or model in `from`")
