"""How much the teachers of an edge count while the models of a cohort come and go, and which calls are not made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdkit.graph.links import End
from kdkit.graph.sound import sound

if TYPE_CHECKING:
    from kdkit.graph.bound import BoundEdge

Outputs = Mapping[End, Tensor]


class Audience:
    """What stands beside the factors of an edge's calls in a cohort.

    A peer counts by its presence p in [0, 1]. Among peers, l teaches k with the weight p_l / max(1, Σ_{j≠k} p_j): a
    mean over the others that are wholly there, and less in sum only while the one other is coming or going. Those of
    an ensemble are weighed by p, and count min(1, Σ p) together. On any other edge a teacher counts by its presence.

    Args:
        edge: whose calls.
        presence: of each peer, on the device; the cohort moves it in place.
        peers: their order in it.
        of: the peer that a node is, or that it follows (a slow copy).
        watch: what is not sound is neither taught nor learnt from, in the very step in which it appears.

    Attributes:
        idle: calls that are not made.
        lost: how many values were not finite though all that was said and all inputs are; on the device.
        told: whether somebody was told of them.
    """

    def __init__(
        self, edge: BoundEdge, presence: Tensor, peers: tuple[str, ...], of: Mapping[str, str], *, watch: bool
    ) -> None:
        self.idle: frozenset[int] = frozenset()
        self.told = False
        self.lost = torch.zeros((), device=presence.device)
        self.presence, self.watch, self.ensemble = presence, watch, edge.edge.ensemble is not None
        nodes = [[end.node for link in call.links for end in link.sources] for call in edge.calls]
        self.teachers = [frozenset(of[node] for node in several if node in of) for several in nodes]
        self.learners = [call.target for call in edge.calls]
        self.ends = [(end, peers.index(of[end.node])) for end in sorted(edge.ends(), key=str) if end.node in of]
        self.place = place = {node: peers.index(peer) for node, peer in of.items()}
        nobody, most = len(peers), max(1, *(len(several) for several in self.teachers), 1)
        rows = [[place[name] for name in sorted(several)] for several in self.teachers]

        def indices(values: object) -> Tensor:
            return torch.tensor(values, device=presence.device)

        self._teachers = indices([row + [nobody] * (most - len(row)) for row in rows])
        self._learners = indices([place.get(name, nobody) for name in self.learners])
        self._outside = [sum(node not in of for node in set(several)) for several in nodes]
        self._others = indices(self._outside)
        among = [place[name] for name in edge.edge.among or ()]
        self._among = indices(among) if among and not self.ensemble else None

    def gather(self, here: frozenset[str], peers: frozenset[str]) -> None:
        """Leave out every call that an absent peer would teach or learn in."""

        def made(teachers: frozenset[str], learner: str, others: float) -> bool:
            heard = teachers <= here or (self.ensemble and bool(teachers & here or others))
            return heard and (learner in here or learner not in peers)

        calls = zip(self.teachers, self.learners, self._outside, strict=True)
        self.idle = frozenset(i for i, call in enumerate(calls) if not made(*call))

    def __call__(self, factors: Tensor, outputs: Outputs) -> Tensor:
        """The factors of all calls; the device is not waited for."""
        one = torch.ones_like(self.presence[:1])
        fine = torch.cat([self._fine(outputs), one]) if self.watch else None
        presence = torch.cat([self.presence, one])
        presence = presence if fine is None else presence * fine
        if self.ensemble:
            theirs = torch.where(self._teachers < len(self.presence), presence[self._teachers], 0.0)
            found = (theirs.sum(1) + self._others).clamp_max(1.0)
        else:
            found = presence[self._teachers].amin(1)
        if self._among is not None:
            others = presence[self._among].sum() - presence[self._learners]
            found = found * (len(self._among) - 1) / others.clamp_min(1.0)
        found = found if fine is None else found * fine[self._learners]
        return factors * found.to(factors.dtype)

    def weights(self, ends: Sequence[End], tensors: Sequence[Tensor]) -> Tensor:
        """Of the members of an ensemble."""
        found = []
        for end, tensor in zip(ends, tensors, strict=True):
            mine = self.presence[self.place[end.node]] if end.node in self.place else torch.ones_like(self.presence[0])
            found.append(mine * sound(tensor) if self.watch else mine)
        return torch.stack(found)

    def kept(self, value: Tensor, inputs: Tensor | None) -> Tensor:
        """A call's value; where models are watched, one that is not finite is left out of the sum and stops nobody.

        Its gradient is not, and makes its learner sick. Where the inputs are not finite themselves, nobody is sick, and
        the value is NaN, for whoever watches the numbers of a step.
        """
        if not self.watch:
            return value
        wrong = ~value.isfinite()
        self.lost.add_(wrong if inputs is None else wrong & inputs)
        value = torch.where(wrong, 0.0, value)
        return value if inputs is None else torch.where(inputs, value, torch.nan)

    def _fine(self, outputs: Outputs) -> Tensor:
        """1 for each peer whose outputs are sound, 0 for the others."""
        sick = torch.zeros_like(self.presence)
        for end, i in self.ends:
            if end in outputs:
                sick[i] += (~sound(outputs[end])).to(sick.dtype)
        return (sick == 0).to(sick.dtype)
