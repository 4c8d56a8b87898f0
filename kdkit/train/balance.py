"""Weights that move by themselves while a run learns; none of it is on unless a recipe asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdkit import ranks
from kdkit.graph.balance import KINDS, balanced, check_company
from kdkit.graph.closing import is_cut
from kdkit.graph.edge import Edge
from kdkit.graph.graph import Graph
from kdkit.graph.node import Node
from kdkit.graph.stage import Stage
from kdkit.registry import KdkitError
from kdkit.train.gradients import gradient, norm
from kdkit.train.sync import average

EVERY = 10
"""Steps from one look at the gradients to the next: each costs a backward pass for every term."""

ALPHA = 1.5
RATE = {"gradnorm": 0.025, "uncertainty": 0.01}
FARTHEST = 9.2  # of log(weight / the recipe's weight): a factor of 10,000


def watch_balance(graph: Graph, kind: str | None) -> None:
    """Let the weights of a graph's edges move; shares, which `equal_share` is, and `None` need no watching.

    Raises:
        KdkitError: a model's stages are isolated, so that their gradients are never seen together.
    """
    if kind in RATE:
        if cut := [name for name in graph.trained if is_cut(graph, name)]:
            raise KdkitError(f"balance: the stages of {cut[0]!r} close their own gradients; leave balance out")
        graph.watchers.append(Balance(str(kind), [edge.name for edge in graph.unbound]))


def balanced_graph(
    nodes: Mapping[str, Node | nn.Module],
    edges: Sequence[Edge | str | nn.Module],
    seed: int,
    stages: Sequence[Stage],
    kind: str | None,
    update: str,
) -> Graph:
    """The graph, whose edges' weights move by themselves where `kind` says how."""
    graph = Graph(nodes, balanced(kind, edges), seed, stages)
    check_company(kind, turns=len(graph.trained) if update == "sequential" else 1)
    watch_balance(graph, kind)
    return graph


class Balance(nn.Module):
    """Multiplies every edge's weight by e^(−s), and moves s by Adam, apart from the models' optimisers.

    `uncertainty`: s is the log-variance of Kendall, Gal, Cipolla (CVPR 2018, arXiv 1705.07115); Σ e^(−s) w L + s is
    made least, whose end is a weighted loss of 1 for every edge. `gradnorm`: Chen, Badrinarayanan, Lee, Rabinovich
    (ICML 2018, arXiv 1711.02257): Σ |G_i − mean(G) · r_i^α| is made least, G_i = ‖e^(−s_i) w_i ∂L_i/∂θ‖, r_i how much
    of its first value the loss still has beside the others, α = 1.5; the r^α (so that all can be
    met, unlike theirs) and the factors keep a mean of 1. θ are all trained
    weights of the models that the edge teaches (theirs: of the last shared layer), looked at every 10 steps.

    Args:
        kind: `uncertainty` or `gradnorm`.
        names: the edges.
    """

    logs: Tensor
    first: Tensor
    mean: Tensor
    square: Tensor
    moves: Tensor

    def __init__(self, kind: str, names: Sequence[str]) -> None:
        super().__init__()
        if kind not in RATE:
            raise KdkitError(f"balance must be one of {', '.join(KINDS)}, got {kind!r}")
        self.kind, self.names, self.steps = kind, list(names), 0
        self._sent: dict[tuple[tuple[str, ...], torch.device], tuple[Tensor, Tensor]] = {}
        for word in ("logs", "first", "mean", "square", "moves"):
            self.register_buffer(word, torch.zeros(len(self.names)))

    def begin(self) -> None:
        """Begin a step."""
        self.steps += 1

    def look(self, graph: Graph, terms: Mapping[str, Tensor]) -> None:
        """Move the weights of the edges that take part; the device is not waited for."""
        known = [name for name in self.names if name in terms]
        if not known:
            return
        at, base = self._places(graph, tuple(known))
        values = torch.stack([terms[name].detach().to(self.logs.dtype) for name in known])
        if ranks.speak():
            average([values])
        factors = (-self.logs[at]).exp()
        if self.kind == "uncertainty":
            self._move(at, 1 - factors * base * values)
        elif (self.steps - 1) % EVERY == 0:
            self.first[at] = torch.where(self.first[at] > 0, self.first[at], values)
            lengths = torch.stack([self._length(graph, name, terms[name]) for name in known])
            pull = factors * base * lengths
            left = torch.where(self.first[at] > 0, values / self.first[at], 1.0).clamp(min=1e-6)
            slow = (left / left.mean()) ** ALPHA
            wanted = pull.mean() * slow / slow.mean()
            self._move(at, -(pull - wanted).sign() * pull)  # ∂|G − wanted| / ∂s, G = e^(−s) …
            self.logs[at] += (-self.logs[at]).exp().mean().log()
        for name, factor, weight in zip(known, (-self.logs[at]).exp(), base, strict=True):
            graph.edges[name].weight.copy_(factor * weight)  # type: ignore[operator]

    def _places(self, graph: Graph, known: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Where edges stand and what their recipe's weights are; sent to the device once, for to send is to wait."""
        key = known, self.logs.device
        if key not in self._sent:
            at, base = [self.names.index(name) for name in known], [_base(graph, name) for name in known]
            self._sent[key] = torch.tensor(at, device=key[1]), torch.tensor(base, device=key[1])
        return self._sent[key]

    def _length(self, graph: Graph, name: str, term: Tensor) -> Tensor:
        edge: Any = graph.edges[name]
        theirs = [p for n in sorted(edge.targets) for p in graph.models[n].parameters() if p.requires_grad]
        one = graph.loss_scale
        return (norm(gradient(term, one, theirs), one) / one).to(self.logs.dtype)

    def _move(self, at: Tensor, slope: Tensor) -> None:
        """A step of Adam; a slope that is not finite (fp16 overflows at first) moves nothing."""
        fine = slope.isfinite()
        slope = torch.where(fine, slope, 0.0)
        self.moves[at] += fine.to(self.moves.dtype)
        self.mean[at] = torch.where(fine, 0.9 * self.mean[at] + 0.1 * slope, self.mean[at])
        self.square[at] = torch.where(fine, 0.999 * self.square[at] + 0.001 * slope**2, self.square[at])
        t = self.moves[at].clamp(min=1)
        step = self.mean[at] / (1 - 0.9**t) / ((self.square[at] / (1 - 0.999**t)).sqrt() + 1e-8)
        self.logs[at] = torch.where(fine, self.logs[at] - RATE[self.kind] * step, self.logs[at]).clamp(
            -FARTHEST, FARTHEST
        )

    def weights(self, graph: Graph) -> dict[str, Tensor]:
        """As they are logged at an epoch's end.

        Raises:
            KdkitError: a loss is not above zero, which the weights would follow for ever.
        """
        for name, log in zip(self.names, self.logs.tolist(), strict=True):
            if log < 1e-3 - FARTHEST:
                raise KdkitError(
                    f"balance: {self.kind} has made the weight of {name!r} 10,000 times what it was, for the loss or "
                    "its gradient is about zero, or below; give it a weight by hand, and leave balance out"
                )
        _, base = self._places(graph, tuple(self.names))
        # not the edges' own: of one whose time is over that is the recipe's again after a resume
        return {f"weight/{name}": weight for name, weight in zip(self.names, (-self.logs).exp() * base, strict=True)}

    def get_extra_state(self) -> Tensor:
        """The steps, which the host counts."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Any) -> None:
        """Go on from a checkpoint."""
        self.steps = int(state)


def _base(graph: Graph, name: str) -> float:
    """The weight that the recipe gives."""
    edge: Any = graph.edges[name]
    return float(edge.edge.weight.args["value"])
