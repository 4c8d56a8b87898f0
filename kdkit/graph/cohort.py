"""A cohort at run time: who takes part, how present each is, and the phase of the graph that this leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from kdkit.graph.audience import Audience
from kdkit.graph.calls import Call
from kdkit.graph.links import End
from kdkit.graph.membership import Move, Plan, check_plan, in_epochs
from kdkit.graph.phase import Phase
from kdkit.registry import KdkitError, nearest

if TYPE_CHECKING:
    from kdkit.graph.bound import BoundEdge
    from kdkit.graph.graph import Graph

SLACK = 1e-9


class Event(NamedTuple):
    """Something that happened in a cohort, for the log; `epoch` counts what is over, and may be a fraction."""

    epoch: float
    peer: str
    what: str
    why: str


@dataclass
class Peer:
    """What is known of one.

    Attributes:
        here: whether it takes part.
        heard: since when others listen to it, more and more over the ramp.
        fades: since when they listen less and less.
        joined: when its learning rate began to rise.
        warmup: over how many epochs.
        rate: a factor on its learning rate.
        lasting: what this goes back to when it is well.
        anew: whether it was made anew.
    """

    here: bool
    heard: float = -math.inf
    fades: float = math.inf
    joined: float = -math.inf
    warmup: float = 0.0
    rate: float = 1.0
    lasting: float = 1.0
    anew: bool = False


class Roster:
    """Who is in the cohort now; `advance` moves it on, at step boundaries alone.

    Args:
        graph: bound to data.
        plan: what comes by itself.
        watch: keep what is not finite in one peer out of the others.

    Attributes:
        peers: by name, every trained model of the graph.
        events: all that happened.

    Raises:
        KdkitError: the plan does not fit the models or the length of the run.
    """

    def __init__(self, graph: Graph, plan: Plan, *, watch: bool = False) -> None:
        check_plan(plan, graph.trained, graph.epochs)
        self.epochs, self.ramp, self.watch = graph.epochs, in_epochs(plan.ramp, graph.epochs), watch
        first = plan.first(graph.trained)
        self.peers = {name: Peer(name in first) for name in graph.trained}
        self.events: list[Event] = []
        self._moves, self._done, self._since = plan.moves(graph.epochs), 0, 0.0
        self._of = {name: name for name in graph.trained}
        self._of |= {name: str(node.of) for name, node in graph.nodes.items() if node.kind == "ema"}
        self._presence = torch.ones(len(self.peers), device=graph.progress.device)
        self._now: list[float] = []
        self._narrowed: tuple[tuple[float, float], Phase] | None = None
        for edge in graph.bound:
            edge.audience = Audience(edge, self._presence, tuple(self.peers), self._of, watch=watch)
        self._audiences = [edge.audience for edge in graph.bound if edge.audience is not None]
        self._settle(0.0, changed=True)

    @property
    def here(self) -> tuple[str, ...]:
        """Who takes part."""
        return tuple(name for name, peer in self.peers.items() if peer.here)

    def presence(self, name: str, t: float) -> float:
        """How much others listen to a peer: 0 … 1."""
        peer = self.peers[name]
        if not peer.here or t < peer.heard - SLACK:
            return 0.0
        if not self.ramp:
            return float(t < peer.fades - SLACK)
        rises, falls = min((t - peer.heard) / self.ramp, 1.0), min(max((t - peer.fades) / self.ramp, 0.0), 1.0)
        return rises * (1.0 - falls)

    def rate(self, name: str, t: float) -> float:
        """The factor on a peer's learning rate."""
        peer = self.peers[name]
        return peer.rate * (min(max(t - peer.joined, 0.0) / peer.warmup, 1.0) if peer.warmup else 1.0)

    def advance(self, t: float, by_hand: Sequence[Move] = ()) -> list[Event]:
        """Let come and go whose time it is by `t`; returns what happened."""
        happened = []
        while self._done < len(self._moves) and self._moves[self._done].epoch <= t + SLACK:
            happened.append(self._move(self._moves[self._done], t, "planned"))
            self._done += 1
        happened += [self._move(move, t, "by hand") for move in by_hand]
        happened += self._go(t)
        self.events += happened
        self._settle(t, changed=any(event.what in ("joins", "gone") for event in happened))
        return happened

    def mute(self, name: str, t: float, epochs: float) -> None:
        """Others do not listen to a peer for a while, and then over the ramp as to one that comes."""
        self.peers[name].heard = t + epochs

    def phase(self, base: Phase) -> Phase:
        """What of a phase is left with those who are here."""
        if self._narrowed is None or self._narrowed[0] != (base.start, self._since):
            here = frozenset(self.here)
            made = {edge: _made(edge, base, here) for edge in base.edges}
            edges = tuple(edge for edge, calls in made.items() if calls)
            taught = {call.target for calls in made.values() for call in calls}
            read = {end.node for calls in made.values() for call in calls for end in _ends(call)}
            there = {name for name in read if self._of.get(name, self.here[0]) in here}
            phase = Phase(
                max(base.start, self._since),
                edges,
                tuple(name for name in base.updates if name in taught),
                {name: reader for name, reader in base.readers.items() if name in there},
                {name: parts for name, parts in base.parts.items() if name in here},
                base.beside,
            )
            self._narrowed = (base.start, self._since), phase
        return self._narrowed[1]

    def _move(self, move: Move, t: float, why: str) -> Event:
        peer = self.peers[move.peer]
        if move.what == "join" and not peer.here:
            self.peers[move.peer] = replace(peer, here=True, heard=t, fades=math.inf, joined=t, warmup=move.warmup)
            return Event(t, move.peer, "joins", why)
        if move.what == "join" and peer.fades < math.inf:
            peer.heard, peer.fades = t - self.presence(move.peer, t) * self.ramp, math.inf
            return Event(t, move.peer, "stays", why)
        if move.what == "leave" and peer.here and peer.fades == math.inf:
            peer.fades = t
            return Event(t, move.peer, "leaves", why)
        return Event(t, move.peer, "stays" if peer.here else "stays away", f"{why}, but nothing to do")

    def _go(self, t: float) -> list[Event]:
        """Those whose ramp is over go; the last one stays."""
        found = []
        for name, peer in self.peers.items():
            if peer.here and peer.fades + self.ramp <= t + SLACK:
                peer.here = len(self.here) == 1
                peer.fades = math.inf if peer.here else peer.fades
                last = Event(t, name, "stays", "the last one trains alone")
                found.append(last if peer.here else Event(t, name, "gone", "trains no more"))
        return found

    def _settle(self, t: float, *, changed: bool) -> None:
        now = [self.presence(name, t) for name in self.peers]
        if now != self._now:
            self._now = now
            for place, value in zip(self._presence, now, strict=True):
                place.fill_(value)  # in a ramp every step; to copy from the host would be to wait
        if changed:
            self._since = t
            here, peers = frozenset(self.here), frozenset(self.peers)
            for audience in self._audiences:
                audience.gather(here, peers)

    def check(self, what: str, name: str, waiting: Sequence[Move]) -> None:
        """Raise `KdkitError` where a peer cannot be told by hand to join or leave."""
        if name not in self.peers:
            known = nearest(name, list(self.peers)) or f"; trained: {', '.join(self.peers)}"
            raise KdkitError(f"cohort.{what}: no trained model is called {name!r}{known}")
        stay = {peer for peer, its in self.peers.items() if its.here and its.fades == math.inf}
        for move in waiting:
            (stay.add if move.what == "join" else stay.discard)(move.peer)
        if what == "join" and name in stay:
            raise KdkitError(f"cohort.join: {name!r} takes part already; now there are {', '.join(sorted(stay))}")
        if what == "leave" and name not in stay:
            raise KdkitError(f"cohort.leave: {name!r} takes no part, or leaves already; {', '.join(sorted(stay))} do")
        if what == "leave" and len(stay) == 1:
            raise KdkitError(f"cohort.leave: {name!r} is the last one; let another one join before")

    def state_dict(self) -> dict[str, Any]:
        """All that happened and what comes of it."""
        peers = {name: asdict(peer) for name, peer in self.peers.items()}
        return {
            "peers": peers,
            "events": [tuple(event) for event in self.events],
            "done": self._done,
            "since": self._since,
        }

    def load_state_dict(self, state: Mapping[str, Any], t: float) -> None:
        """Go on from a checkpoint at time `t`."""
        self.peers = {name: Peer(**state["peers"][name]) for name in self.peers}
        self.events, self._done = [Event(*event) for event in state["events"]], state["done"]
        self._settle(t, changed=True)
        self._since = state["since"]


def _made(edge: BoundEdge, base: Phase, here: frozenset[str]) -> list[Call]:
    """The calls of an edge that are made among those who are here."""
    idle = edge.audience.idle if edge.audience is not None else frozenset[int]()
    taught = here.intersection(base.taught(edge, list(base.parts)))
    return [call for i, call in enumerate(edge.calls) if i not in idle and call.target in taught]


def _ends(call: Call) -> Iterator[End]:
    for link in call.links:
        yield from (*link.sources, link.target)
