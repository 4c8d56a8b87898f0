"""Isolated stages in processes of their own: stage k on rank k, each ahead of those after it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdkit.models.cuts import owners, pooled
from kdkit.models.sid_isolated import IsolatedCascade, last_belief
from kdkit.registry import KdkitError


class _Reached(Exception):  # noqa: N818  no error: the stage's end, behind which other ranks go on
    pass


class StageOnRank(nn.Module):
    """The stage of an isolated cascade that this rank trains; every rank is given the same batches.

    A stage hands its output and the beliefs so far on before it learns from the batch, so that no rank waits for one
    after it: while stage 2 is busy with a batch, stage 1 has moved already and is busy with the next. The weights are
    those of one process, for there, too, a stage reads what the one before gave out before it moved.

    ```python
    stage = StageOnRank(net)  # kdkit.models.build("sid", …, isolate=["layer1"]), alike on all ranks
    optimizer = torch.optim.SGD(stage.learners(), 0.1)
    SIDLoss()(stage(x), labels).backward()
    optimizer.step()
    stage.collect()  # in the end: every rank has all weights
    ```

    What lies before the stage and in no layer that is a cut (a stem) is run and thrown away.

    Args:
        net: with as many stages as there are ranks.

    Raises:
        KdkitError: there is no process group, or not a rank for every stage.
    """

    def __init__(self, net: IsolatedCascade) -> None:
        super().__init__()
        stages = len(net.cuts) + 1
        if not dist.is_initialized() or dist.get_world_size() != stages:
            found = dist.get_world_size() if dist.is_initialized() else 0
            raise KdkitError(f"sid: {stages} isolated stages need a process group of {stages} ranks, got {found}")
        self.net, self.rank, self.last = net, dist.get_rank(), stages - 1
        self.owner = {
            **{f"backbone.{name}": stage for name, stage in owners(net.backbone, net.cuts).items()},
            **{name: int(name.split(".")[2]) for name, _ in net.named_parameters() if name.startswith("beliefs.")},
        }
        self._sent: list[tuple[dist.Work, Tensor]] = []

    def learners(self) -> list[nn.Parameter]:
        """The weights of this rank's stage."""
        return [p for name, p in self.net.named_parameters() if self.owner.get(name) == self.rank]

    def train(self, mode: bool = True) -> StageOnRank:
        """Set the mode; what other ranks train stays in eval mode."""
        super().train(mode)
        for name, module in self.net.named_modules():
            mine = {self.owner.get(f"{name}.{word}") for word, _ in module.named_parameters(recurse=False)}
            if mine and self.rank not in mine:
                module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images → logits (B, L, N) of all modules so far: constants, then those of this stage, which have a graph."""
        backbone, cuts = self.net.backbone, self.net.cuts
        rows: list[Tensor] = []
        if self.rank:
            given = _receive(self.rank - 1, x)
            rows.append(_receive(self.rank - 1, x))

        def enter(*_: Any) -> Tensor:
            return given

        def leave(module: nn.Module, args: Any, output: Tensor) -> None:
            rows.append(self.net.speak(self.rank, pooled(backbone, output), last_belief(rows)))
            self._send(output.detach())
            self._send(torch.cat(rows, 1).detach())
            raise _Reached

        handles = []
        patched = [backbone.get_submodule(path) for path in cuts[: self.rank]]
        try:
            for module in patched:
                module.forward = _pass
            if self.rank:
                handles.append(patched[-1].register_forward_hook(enter, prepend=True))
            if self.rank < self.last:
                handles.append(backbone.get_submodule(cuts[self.rank]).register_forward_hook(leave, prepend=True))
            rows.append(self.net.speak(self.rank, backbone(x), last_belief(rows)))
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
            for module in patched:
                del module.forward
        return torch.cat(rows, 1)

    def _send(self, value: Tensor) -> None:
        """Without waiting for the rank that reads it; a batch that was sent before is."""
        if len(self._sent) >= 8:
            for work, _ in self._sent[:4]:
                work.wait()
            del self._sent[:4]
        value = value.contiguous()
        shape = torch.tensor([value.ndim, *value.shape, *[0] * (4 - value.ndim)])
        for part in (shape, value):
            self._sent.append((dist.isend(part, self.rank + 1), part))  # type: ignore[arg-type]

    @torch.no_grad()
    def collect(self) -> None:
        """Give every rank the weights and statistics of all stages."""
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()
        parents = {name.rpartition(".")[0]: stage for name, stage in self.owner.items()}
        for name, value in self.net.state_dict().items():
            dist.broadcast(value, self.owner.get(name, parents.get(name.rpartition(".")[0], 0)))


def _pass(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def _receive(rank: int, like: Tensor) -> Tensor:
    shape = torch.zeros(5, dtype=torch.int64)
    dist.recv(shape, rank)
    value = torch.empty(shape[1 : 1 + int(shape[0])].tolist(), dtype=like.dtype, device=like.device)
    dist.recv(value, rank)
    return value
