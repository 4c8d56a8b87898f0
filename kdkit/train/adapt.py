"""Temperatures and weights that follow held-out training samples: they are moved at the end of every epoch.

What is looked at is what `data.val_split` holds out of the training set: at most the first 10,000 samples of it, as
they are (no augmentation), each model in eval mode. Where nothing is held out it is refused, so that test data choose
nothing. Every rank looks at the same samples with the same models, and comes to the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.graph.batch import Batch
from kdkit.graph.bound import BoundEdge
from kdkit.graph.control import Climb, Control, towards
from kdkit.graph.edge import Edge
from kdkit.graph.factors import pair, set_factor
from kdkit.losses.kd import standardised
from kdkit.registry import KdkitError
from kdkit.train.converted import converted

if TYPE_CHECKING:
    from kdkit.train.distiller import Distiller

MOST = 10_000
"""Held-out samples that are looked at."""


@dataclass(frozen=True)
class _Seen:
    """What the models say of the held-out samples."""

    logits: Mapping[str, Tensor]
    labels: Tensor

    def nll(self, name: str) -> float:
        return float(F.cross_entropy(self.logits[name].double(), self.labels))


def check_held_out(trainer: Any, edges: Iterable[Edge]) -> None:
    """Raise `KdkitError` where something follows held-out samples and there are none."""
    asking = [
        edge.name for edge in edges if edge.coordinate or any(isinstance(v, Control) for v in edge.options.values())
    ]
    if asking and not getattr(getattr(trainer, "datamodule", None), "selects", False):
        raise KdkitError(
            f"edge {asking[0]!r}: follows held-out training samples, and none are held out; say `val_split: 0.1` under "
            "`data` (a data module of your own: an attribute `selects = True` says that val_dataloader gives such)"
        )


def adapt(distiller: Distiller) -> dict[str, float]:
    """Move what follows held-out samples, at an epoch's end; returns what is logged."""
    edges = [edge for edge in distiller.graph.now.edges if edge.coordination is not None or edge.controls]
    if not edges:
        return {}
    nodes = {name for edge in edges for call in _made(edge).values() for name in (*pair(call)[0], call.target)}
    seen = _look(distiller, sorted(nodes))
    found: dict[str, float] = {}
    for edge in edges:
        found |= _coordinate(distiller, edge, seen)
        for word, control in edge.controls.items():
            found |= _control(edge, word, control, seen)
    return found


def _made(edge: BoundEdge) -> dict[int, Any]:
    """The calls of an edge that are made now."""
    return {i: call for i, call in enumerate(edge.calls) if edge.audience is None or i not in edge.audience.idle}


@torch.no_grad()
def _look(distiller: Distiller, nodes: Iterable[str]) -> _Seen:
    graph, device = distiller.graph, distiller.device
    distiller.place.share(graph)
    said: dict[str, list[Tensor]] = {name: [] for name in nodes}
    labels: list[Tensor] = []
    graph.eval()
    try:
        for raw in distiller.trainer.datamodule.val_dataloader():  # type: ignore[attr-defined]
            moved = distiller.transfer_batch_to_device(converted(distiller, raw), device, 0)
            data = Batch.of(distiller.on_after_batch_transfer(moved, 0))
            assert data.labels is not None
            labels.append(data.labels)
            with distiller.trainer.precision_plugin.forward_context():
                for name, several in said.items():
                    several.append(distiller._logits(name, data.x))
            if sum(map(len, labels)) >= MOST:
                break
    finally:
        graph.train()
    return _Seen({name: torch.cat(several)[:MOST] for name, several in said.items()}, torch.cat(labels)[:MOST])


def _coordinate(distiller: Distiller, edge: BoundEdge, seen: _Seen) -> dict[str, float]:
    if (standing := edge.coordination) is None:
        return {}
    pairs = _pairs(edge)
    standing.add({name: seen.nll(name) for one in pairs for name in one})
    weights = standing.weights(pairs)
    _share_out(distiller, edge, pairs, weights)
    return {f"weight/{edge.name}/{one}_to_{other}": weight for (one, other), weight in weights.items()}


def without_who_left(distiller: Distiller) -> None:
    """In the middle of an epoch: those who stay share the weights of who is gone, by what is known of them."""
    for edge in distiller.graph.bound:
        if (standing := edge.coordination) is not None:
            known = {name for name, nll in zip(standing.peers, standing.nll.tolist(), strict=True) if nll == nll}
            pairs = [one for one in _pairs(edge) if known.issuperset(one)]
            _share_out(distiller, edge, pairs, standing.weights(pairs))


def _pairs(edge: BoundEdge) -> list[tuple[str, str]]:
    """Who teaches whom now."""
    return sorted({(pair(call)[0][0], call.target) for call in _made(edge).values()})


def _share_out(
    distiller: Distiller, edge: BoundEdge, pairs: list[tuple[str, str]], weights: Mapping[tuple[str, str], float]
) -> None:
    for (teacher, learner), weight in weights.items():
        teachers = sum(other == learner for _, other in pairs)  # whose mean the edge takes
        set_factor(distiller.graph, edge.name, weight * teachers, sources=teacher, target=learner)


def _control(edge: BoundEdge, word: str, control: Control, seen: _Seen) -> dict[str, float]:
    found = {}
    for i, call in _made(edge).items():
        number = getattr(edge.losses[i], word)
        now = float(number)
        if control.control == "entropy":
            teacher = seen.logits[call.links[0].sources[0].node]
            teacher = standardised(teacher) if getattr(edge.losses[i], "standardise", False) else teacher
            new = towards(now, teacher, control) if bool(teacher.isfinite().all()) else now
        else:
            assert isinstance(edge.climb, Climb)
            new = edge.climb.move(i, now, seen.nll(call.target), control)
        number.fill_(new)
        found[f"{word}/{edge.name}/{'_'.join(pair(call)[0])}_to_{call.target}"] = new
    return found
