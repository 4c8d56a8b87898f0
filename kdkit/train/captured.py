"""A whole training step as one CUDA graph: recorded once, then started by one call however many kernels it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from kdkit.graph.batch import Batch

WARM = 3
"""Ordinary steps before a recording: optimisers make their state, cuDNN chooses its kernels, CRD fixes Z."""

MOST = 8
"""Recordings that are kept: phases times shapes of a batch (an epoch's last one is smaller)."""

Values = Mapping[str, Tensor]
Work = Callable[[Batch], Values]
Record = Callable[[Callable[[], Values]], tuple[Callable[[], None], Values]]
"""Records what a function does without doing it: (what does it, where its results then stand)."""


def record_on_cuda(work: Callable[[], Values]) -> tuple[Callable[[], None], Values]:
    """A CUDA graph of everything that `work` launches."""
    graph = torch.cuda.CUDAGraph()
    torch.clear_autocast_cache()  # casts of weights made before would be read for ever
    with torch.cuda.graph(graph, pool=_pool()):
        found = work()
    torch.clear_autocast_cache()
    return graph.replay, found


_pools: dict[int, Any] = {}


def _pool() -> Any:
    """One pool of memory for each device: recordings run one after the other, so that they may share it."""
    return _pools.setdefault(torch.cuda.current_device(), torch.cuda.graph_pool_handle())


@dataclass
class _Recording:
    """A step of one phase on batches of one shape."""

    ran: int = 0
    inputs: Batch | None = None
    start: Callable[[], None] | None = None
    found: Values | None = None


class CapturedStep:
    """Runs `work` on batches: as it is at first, then as a recording of it.

    What `work` reads besides the batch must be tensors that are changed in place: schedules, learning rates, banks.

    Args:
        work: one whole step, from the batch to the updated weights; returns what is looked at afterwards.
        record: makes a recording.
    """

    def __init__(self, work: Work, record: Record = record_on_cuda) -> None:
        self.work, self.record = work, record
        self.recordings: dict[Any, _Recording] = {}
        self.refused = ""

    def __call__(self, phase: float, batch: Batch) -> Values:
        """One step in the phase that began at that time."""
        tensors = _tensors(batch)
        key = phase, tuple((name, value.shape, value.dtype) for name, value in tensors.items())
        if self.refused or (key not in self.recordings and len(self.recordings) >= MOST):
            return self.work(batch)
        mine = self.recordings.setdefault(key, _Recording())
        if mine.ran < WARM:
            mine.ran += 1
            return self.work(batch)
        if mine.inputs is None:
            mine.inputs = _like(batch, {name: value.clone() for name, value in tensors.items()})
            held = mine.inputs
            try:
                mine.start, mine.found = self.record(lambda: self.work(held))
            except RuntimeError as error:  # something in it waits for the device, or cannot be recorded
                self.refused = str(error).partition("\n")[0]
                rank_zero_info(f"training without a CUDA graph: {self.refused}")
                return self.work(batch)
        for name, value in _tensors(mine.inputs).items():
            value.copy_(tensors[name], non_blocking=True)
        assert mine.start is not None
        assert mine.found is not None
        mine.start()
        return mine.found


def _tensors(batch: Batch) -> dict[str, Tensor]:
    rows = {f"rows {name}": value for name, value in batch.rows.items()}
    parts = {"x": batch.x, "labels": batch.labels, "index": batch.index, **rows}
    return {name: value for name, value in parts.items() if isinstance(value, Tensor)}


def _like(batch: Batch, tensors: Mapping[str, Tensor]) -> Batch:
    rows = {name: tensors[f"rows {name}"] for name in batch.rows}
    return replace(batch, x=tensors["x"], labels=tensors.get("labels"), index=tensors.get("index"), rows=rows)


def recordable(distiller: Any) -> bool:
    """Whether a distiller's steps are to be recorded, if nothing stands against it."""
    return distiller.compiles is not False and distiller.device.type == "cuda"


def speed_up(distiller: Any) -> tuple[Any, CapturedStep | None]:
    """The compiled lesson and the recorded step of a distiller, as its `compile` asks; `None` for what is left out."""
    compiled = torch.compile(distiller.graph.lesson, dynamic=False) if distiller.compiles is True else None
    if not recordable(distiller):
        return compiled, None
    if reason := _against(distiller):
        rank_zero_info(f"training without a CUDA graph: {reason}")
        return compiled, None
    return compiled, CapturedStep(partial(whole_step, distiller))


def whole_step(distiller: Any, data: Batch) -> dict[str, Tensor]:
    """From a batch to updated weights, without a look at any number; returns the unweighted terms."""
    graph, optimizers = distiller.graph, distiller.optimizers().optimizer
    graph.loss_scale.fill_(1.0)
    outputs = graph.outputs(data, cached=distiller.compiled is not None)
    loss, terms = distiller.lesson(graph.now.updates, outputs, data, 0)
    if loss is not None:
        loss.backward()
        distiller.clip(optimizers)
        optimizers.move()
        optimizers.zero_grad()
    distiller.sums.add_values(terms)
    return {name: value.detach() for name, value in terms.items()}


def _against(distiller: Any) -> str:
    """Why a distiller's steps cannot be recorded; empty where they can."""
    trainer, graph = distiller.trainer, distiller.graph
    fixed = [name for name, o in distiller.optimizers().optimizer.of.items() if not _follows_lr(o)]
    reasons = {
        "there are several ranks": trainer.world_size > 1,
        "fp16 looks at every gradient (bf16-mixed does not)": getattr(trainer.precision_plugin, "scaler", None),
        "gradients are accumulated": distiller.borrow.accumulate > 1,
        "peers are updated one after the other": distiller.update == "sequential",
        "a model draws random numbers (dropout)": graph.stochastic,
        "a batch holds several inputs": any(node.input is not None for node in graph.nodes.values()),
        f"the optimizer of {', '.join(fixed)} cannot be recorded (sgd, adam and adamw can)": fixed,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _follows_lr(optimizer: torch.optim.Optimizer) -> bool:
    return all(isinstance(group["lr"], Tensor) for group in optimizer.param_groups)
