"""Which rank trains which model: all ranks all of them (plain data parallelism), or each its own peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdkit import ranks
from kdkit.graph.batch import Batch
from kdkit.graph.bound import BoundEdge
from kdkit.graph.graph import Graph
from kdkit.graph.links import End
from kdkit.graph.share import Share
from kdkit.registry import KdkitError, nearest
from kdkit.train.balance import Balance
from kdkit.train.sync import average_gradients, share_buffers, unshared_buffers

Outputs = dict[End, Tensor]


class Everywhere:
    """Every rank trains every model on its share of each batch."""

    apart = False

    def begin(self, distiller: Any) -> None:
        """Before training: tell DDP whose buffers are nobody else's."""
        distiller._ddp_params_and_buffers_to_ignore = unshared_buffers(distiller)

    def turn(self, nodes: tuple[str, ...]) -> tuple[str, ...]:
        """Those of a turn that are trained here."""
        return nodes

    def outputs(self, graph: Graph, data: Batch, *, cached: bool) -> Outputs:
        """What is read of every model."""
        return graph.outputs(data, cached=cached)

    def alone(self) -> AbstractContextManager[None]:
        """Around the losses, where ranks may speak."""
        return nullcontext()

    def told(self, graph: Graph, terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Terms whose mean over ranks is logged."""
        return terms

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make gradients those of the whole batch."""
        average_gradients(parameters)

    def settle(self, graph: Graph) -> None:
        """At an epoch's end: who is trained in one place is known everywhere."""

    def share(self, graph: Graph) -> None:
        """Give every rank the models that are evaluated."""
        share_buffers(graph.models)

    def save(self, distiller: Any, checkpoint: dict[str, Any]) -> None:
        """Complete a checkpoint, which is written by the first rank."""


class Apart(Everywhere):
    """Each rank trains its own peers on the whole batch; what others read of a peer comes detached from its rank.

    Args:
        where: the rank of every trained model.
    """

    apart = True

    def __init__(self, where: Mapping[str, int], graph: Graph, update: str, compile: Any) -> None:
        for name in where:
            if name not in graph.trained:
                hint = nearest(name, list(graph.trained)) or f"; trained: {', '.join(graph.trained)}"
                raise KdkitError(f"place: no trained model is called {name!r}{hint}")
        if missing := [name for name in graph.trained if name not in where]:
            raise KdkitError(f"place: must give every trained model a rank; {', '.join(missing)} has none")
        for name, rank in where.items():
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
                raise KdkitError(f"place: the rank of {name!r} must be 0 or more, got {rank!r}")
        if update == "sequential" or compile is True:
            raise KdkitError(
                "place: models on several ranks learn at once, and uncompiled; leave update and compile out"
            )
        for edge in graph.unbound:
            if edge.gather or isinstance(edge.weight, Share):
                word = "gather" if edge.gather else "a share"
                raise KdkitError(
                    f"place: edge {edge.name!r} has {word}, which speaks of data that ranks share; leave it out"
                )
        self.owners = dict(where)
        self.owners |= {name: where[str(node.of)] for name, node in graph.nodes.items() if node.kind == "ema"}
        self._checked = -1

    @property
    def rank(self) -> int:
        """This one."""
        return dist.get_rank() if ranks.count() > 1 else 0

    def begin(self, distiller: Any) -> None:
        """As many ranks as were named, each of which reads whole batches."""
        world = distiller.trainer.world_size
        if (most := max(self.owners.values())) >= world:
            raise KdkitError(
                f"place: rank {most} needs {most + 1} processes, got {world}; say devices and strategy: ddp"
            )
        if str(distiller.trainer.precision).startswith("16"):
            raise KdkitError("place: in fp16 every rank would have a loss scale of its own; say precision: bf16-mixed")
        if any(isinstance(watcher, Balance) for watcher in distiller.graph.watchers):
            raise KdkitError("place: balance weighs losses whose terms lie on several ranks; leave one of them out")
        module = getattr(distiller.trainer, "datamodule", None)
        if module is not None and hasattr(module, "whole_batches"):
            module.whole_batches = True
        distiller._ddp_params_and_buffers_to_ignore = [name for name, _ in distiller.named_buffers()]

    def _mine(self, name: str) -> bool:
        return self.owners.get(name, self.rank) == self.rank

    def turn(self, nodes: tuple[str, ...]) -> tuple[str, ...]:
        """Those of a turn that are trained here."""
        return tuple(name for name in nodes if self._mine(name))

    def outputs(self, graph: Graph, data: Batch, *, cached: bool) -> Outputs:
        """What is read of the models here, and what comes from elsewhere."""
        if graph.cohort is not None:
            raise KdkitError(
                "place: models that come and go, or are watched, are trained on every rank; leave one of both out"
            )
        self._check(graph, data)
        found: Outputs = {}
        for name in graph.now.readers:
            if self._mine(name):
                graph.read(name, data, found, grad=name in graph.now.updates)
        if ranks.count() > 1:
            for end in sorted({end for edge in graph.now.edges for end in self._travels(edge)}, key=str):
                self._send(graph, end, data, found)
        return found

    def _travels(self, edge: BoundEdge) -> list[End]:
        """What of a model is read by the calls of models elsewhere."""
        found = []
        for call in edge.calls:
            for end in (end for link in call.links for end in link.sources):
                if self.owners.get(end.node) not in (None, self.owners[call.target]):
                    found += [end, End(end.node, "logits")] if "teacher_logits" in edge.reads else [end]
        return found

    def _send(self, graph: Graph, end: End, data: Batch, found: Outputs) -> None:
        owner, parameter = self.owners[end.node], next(graph.models[end.node].parameters())
        exact = torch.promote_types(parameter.dtype, torch.float32)
        if owner == self.rank:
            value = found[end].detach().to(exact).contiguous()
        else:
            shape = graph.now.readers[end.node].shapes[end.tap]
            value = torch.empty((_rows(data.x), *shape), dtype=exact, device=parameter.device)
        dist.broadcast(value, owner)
        if owner != self.rank:
            found[end] = value

    def _check(self, graph: Graph, data: Batch) -> None:
        """Once an epoch: do all ranks see the same samples."""
        epoch = int(float(graph.progress) * graph.epochs + 1e-6)
        if epoch == self._checked or ranks.count() == 1:
            return
        self._checked = epoch
        seen = [part for part in (data.x, data.labels, data.index) if isinstance(part, Tensor)]
        mine = torch.stack([part.double().sum() for part in seen])
        first = mine.clone()
        dist.broadcast(first, 0)
        same = torch.tensor(float(torch.equal(mine, first)), device=mine.device)
        dist.all_reduce(same, dist.ReduceOp.MIN)
        if not same:
            raise KdkitError(
                "place: the ranks see different batches; what is trained apart learns from the same samples: give "
                "the Trainer use_distributed_sampler=False, and a loader whose order does not depend on the rank"
            )

    def alone(self) -> AbstractContextManager[None]:
        """Losses see the whole batch already."""
        return ranks.silence()

    def told(self, graph: Graph, terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Terms whose mean over ranks is their sum over ranks."""
        zero = torch.zeros_like(graph.progress)
        return {edge.name: terms.get(edge.name, zero) * ranks.count() for edge in graph.now.edges}

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """A gradient here is of the whole batch already."""

    def share(self, graph: Graph) -> None:
        """Give every rank each model, with what learns beside it, from where it is trained."""
        if ranks.count() == 1:
            return
        for name, owner in sorted(self.owners.items()):
            parts: list[nn.Module] = [graph.models[name]]
            for edge in graph.bound:
                several = len(edge.heads) // max(len(edge.calls), 1)
                for i, call in enumerate(edge.calls):
                    if call.target == name:
                        parts += [edge.losses[i], *edge.heads[i * several : (i + 1) * several]]
            tensors = {id(t): t for part in parts for t in (*part.parameters(), *part.buffers())}
            for tensor in tensors.values():
                dist.broadcast(tensor.data, owner)

    settle = share

    def save(self, distiller: Any, checkpoint: dict[str, Any]) -> None:
        """Weights and optimisers from where they are."""
        if ranks.count() == 1:
            return
        self.share(distiller.graph)
        checkpoint["state_dict"] = distiller.trainer.strategy.lightning_module_state_dict()
        for states in checkpoint.get("optimizer_states", []):
            for name in sorted(states):
                held = [_on_cpu(states[name])]
                dist.broadcast_object_list(held, self.owners[name])
                states[name] = held[0]


def _rows(x: Any) -> int:
    """Samples in a batch's x, which may hold several inputs."""
    if isinstance(x, Mapping):
        x = next(iter(x.values()))
    return len(x[0]) if isinstance(x, (list, tuple)) else len(x)


def _on_cpu(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    return [_on_cpu(value) for value in state] if isinstance(state, list) else state
