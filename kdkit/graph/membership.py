"""What is said of a cohort: who comes when, who goes when, and over how long others listen more or less to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kdkit.registry import KdkitError, nearest

Path = tuple[str, ...]
Change = Mapping[str, Mapping[str, float] | None]
WORDS = {"join": ("epoch", "warmup"), "leave": ("epoch",)}


class Move(NamedTuple):
    """One coming or going, its time in epochs."""

    epoch: float
    what: str
    peer: str
    warmup: float = 0.0


@dataclass(frozen=True)
class Plan:
    """`join: {c: {epoch: 10, warmup: 2}}`, `leave: {a: {epoch: 40}}`, `ramp: 5`; times below 1 are shares of the run.

    Attributes:
        join: who is not there at first, and from when it is; `None`: until it is told to by hand. Its learning rate
            rises over `warmup`.
        leave: from when who goes. It learns on over the ramp, and is gone at its end.
        ramp: how long others take to listen wholly to who comes, and not at all to who goes.
    """

    join: Change = field(default_factory=dict)
    leave: Change = field(default_factory=dict)
    ramp: float = 0.0

    def problems(self, trained: Sequence[str], epochs: float) -> Iterator[tuple[Path, str]]:
        """Everything that is wrong with it: the words that lead there, and what would be right."""
        wrong = list(self._words(trained, epochs))
        yield from wrong
        if wrong:
            return
        times = {(m.what, m.peer): m.epoch for m in self.moves(epochs)}
        for (what, peer), epoch in times.items():
            if what == "leave" and epoch <= (comes := times.get(("join", peer), -1.0)):
                told = f"leaves at epoch {epoch:g}, but joins at {comes:g}"
                yield ("leave", peer, "epoch"), f"{peer} {told}; let it leave later, or drop one of the two"
                return
        here = set(self.first(trained))
        if not here:
            yield ("join",), f"{', '.join(trained)} all come later; one must be there from the beginning"
        ramp = in_epochs(self.ramp, epochs)
        order = [(m.epoch + ramp * (m.what == "leave"), m.what == "leave", m.peer) for m in self.moves(epochs)]
        for epoch, leaves, peer in sorted(order):
            (here.discard if leaves else here.add)(peer)
            if not here and epoch < epochs:
                yield ("leave", peer), f"nobody is left at epoch {epoch:g}; the last one stays and trains alone"

    def first(self, trained: Sequence[str]) -> tuple[str, ...]:
        """Who is there at the beginning."""
        return tuple(name for name in trained if name not in self.join)

    def moves(self, epochs: float) -> list[Move]:
        """Every coming and going in order."""
        found = []
        for what, words in (("join", self.join), ("leave", self.leave)):
            for peer, said in words.items():
                if said is not None:
                    warmup = in_epochs(said.get("warmup", 0.0), epochs)
                    found.append(Move(in_epochs(said["epoch"], epochs), what, peer, warmup))
        return sorted(found)

    def _words(self, trained: Sequence[str], epochs: float) -> Iterator[tuple[Path, str]]:
        if not _time(self.ramp):
            yield ("ramp",), f"must be a time of 0 or more, got {self.ramp!r}"
        both: dict[str, Any] = {"join": self.join, "leave": self.leave}
        for what, words in both.items():
            if not isinstance(words, Mapping):
                yield (what,), f"must say who and when, such as {{c: {{epoch: 10}}}}, got {words!r}"
                continue
            for peer, said in words.items():
                if peer not in trained:
                    known = nearest(str(peer), list(trained)) or f"; trained: {', '.join(trained)}"
                    yield (what, str(peer)), f"no trained model is called {peer!r}{known}"
                elif said is not None or what == "leave":
                    yield from ((path, told) for path, told in _said(what, peer, said, epochs))


def _said(what: str, peer: str, said: Any, epochs: float) -> Iterator[tuple[Path, str]]:
    if not isinstance(said, Mapping) or "epoch" not in said:
        yield (what, peer), f"must say when, such as {{epoch: 10}}, got {said!r}"
        said = said if isinstance(said, Mapping) else {}
    for word, value in said.items():
        here = (what, peer, str(word))
        if word not in WORDS[what]:
            yield here, f"unknown word {word!r}{nearest(str(word), list(WORDS[what]))}"
        elif not _time(value):
            yield here, f"must be a time of 0 or more, got {value!r}"
        elif word == "epoch" and not 0 < in_epochs(value, epochs) < epochs:
            never = "is the beginning" if not value else f"never comes in a run of {epochs:g} epochs"
            yield here, f"epoch {value:g} {never}; give a later one" if not value else f"epoch {value:g} {never}"


def _time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def in_epochs(time: float, epochs: float) -> float:
    """A time in epochs; below 1 it is a share of the run."""
    return time * epochs if time < 1 else float(time)


def check_plan(plan: Plan, trained: Sequence[str], epochs: float) -> None:
    """Raise `KdkitError` with everything that is wrong with a plan."""
    told = [f"cohort.{'.'.join(path)}: {text}" for path, text in plan.problems(trained, epochs)]
    if told:
        raise KdkitError("\n".join(told))
