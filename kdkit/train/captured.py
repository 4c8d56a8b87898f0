"""A whole training step as one CUDA graph: recorded once, then started by one call however many kernels it has."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from kdkit.data.device_loader import LateBatch
from kdkit.graph.batch import Batch
from kdkit.models.heads.pca import PCA
from kdkit.train.branches import Branch, branches, side_by_side
from kdkit.train.eager import eager
from kdkit.train.late import hand_out, seen
from kdkit.train.on_cuda import OnCuda
from kdkit.train.optim import can_be_recorded
from kdkit.train.share import calibrating

log = logging.getLogger(__name__)
note = rank_zero_only(log.warning)

WARM = 3
"""Ordinary steps before a recording: optimisers make their state, cuDNN chooses its kernels, CRD fixes Z."""

MOST = 8
"""Recordings that are kept: phases times shapes of a batch (an epoch's last one is smaller)."""

Values = Mapping[str, Tensor]
Given = Batch | LateBatch
Work = Callable[[Any], Values]


@dataclass
class _Recording:
    """A step of one phase on batches of one shape."""

    ran: int = 0
    inputs: Given | None = None
    start: Callable[[], None] | None = None
    found: Values | None = None


class CapturedStep:
    """Runs `work` on batches: as it is at first, then as a recording of it.

    What `work` reads besides the batch must be tensors that are changed in place: schedules, learning rates, banks. Of
    a `LateBatch` it makes the images too.

    Args:
        work: one whole step, from the batch to the updated weights; returns what is looked at afterwards.
        forget: drops what a recording that failed has left behind.
        warm: ordinary steps before a recording.
    """

    def __init__(self, work: Work, forget: Callable[[], None], warm: int = WARM) -> None:
        self.work, self.forget, self.warm, self.on = work, forget, warm, OnCuda()
        self.recordings: dict[Any, _Recording] = {}
        self.refused = ""

    def __call__(self, phase: float, batch: Given) -> Values:
        """One step in the phase that began at that time."""
        tensors = _tensors(batch)
        looks = tuple((name, value.shape, value.dtype) for name, value in tensors.items())
        key = phase, getattr(batch, "loader", None), looks
        if self.refused or (key not in self.recordings and len(self.recordings) >= MOST):
            return self.work(batch)
        mine = self.recordings.setdefault(key, _Recording())
        if mine.ran < self.warm:
            mine.ran += 1
            return self.on.run(lambda: self.work(batch))
        if mine.inputs is None:
            mine.inputs = _like(batch, {name: value.clone() for name, value in tensors.items()})
            held = mine.inputs
            try:
                mine.start, mine.found = self.on.record(lambda: self.work(held))
            except RuntimeError as error:
                self.refused = str(error).partition("\n")[0] or "it failed"
            if self.refused:  # the error, and with it what it held of the step, is gone
                return self._without(batch)
        for name, value in _tensors(mine.inputs).items():
            value.copy_(tensors[name], non_blocking=True)
        assert mine.start is not None
        assert mine.found is not None
        mine.start()
        return mine.found

    def _without(self, batch: Given) -> Values:
        """The step as it is, from now on; what was recorded before is not run again."""
        self.forget()  # gradients that were recorded, but never computed
        self.recordings.clear()
        torch.cuda.empty_cache()
        note(f"training without a CUDA graph: {self.refused}")
        return self.work(batch)


def _tensors(batch: Given) -> dict[str, Tensor]:
    parts: dict[str, Any]
    if isinstance(batch, LateBatch):
        parts = {"samples": batch.samples, "epoch": batch.epoch}
    else:
        rows = {f"rows {name}": value for name, value in batch.rows.items()}
        parts = {"x": batch.x, "labels": batch.labels, "index": batch.index, **rows}
    return {name: value for name, value in parts.items() if isinstance(value, Tensor)}


def _like(batch: Given, tensors: Mapping[str, Tensor]) -> Given:
    if isinstance(batch, LateBatch):
        return LateBatch(batch.loader, tensors["samples"], tensors.get("epoch", batch.epoch))
    rows = {name: tensors[f"rows {name}"] for name in batch.rows}
    return replace(batch, x=tensors["x"], labels=tensors.get("labels"), index=tensors.get("index"), rows=rows)


def recordable(distiller: Any) -> bool:
    """Whether a distiller's steps are to be recorded, if nothing stands against it."""
    return distiller.compiles is not False and distiller.device.type == "cuda"


def speed_up(distiller: Any) -> tuple[Compiled | None, CapturedStep | None]:
    """The compiled lesson and the recorded step of a distiller, as its `compile` asks; `None` for what is left out."""
    compiled, captured = _speed_up(distiller)
    hand_out(distiller.trainer, distiller, captured is not None)
    return compiled, captured


def _speed_up(distiller: Any) -> tuple[Compiled | None, CapturedStep | None]:
    graph = distiller.graph
    if calibrating(graph):  # every term is looked at by itself; both begin when that is over
        return None, None
    compiled = Compiled(graph.lesson, lambda: graph.now.start) if distiller.compiles is True else None
    if not recordable(distiller):
        return compiled, None
    if reason := _against(distiller):
        note(f"training without a CUDA graph: {reason}")
        return compiled, None

    def forget() -> None:
        for optimizer in distiller.optimizers().optimizer.of.values():
            optimizer.zero_grad()

    fitting = [part.batches for part in graph.modules() if isinstance(part, PCA)]  # it looks at its first batches
    return compiled, CapturedStep(partial(whole_step, distiller), forget, WARM + max(fitting, default=0))


class Compiled:
    """A method, compiled anew for each phase.

    Dynamo counts recompilations by code object, over all objects of a process, and gives up after eight: each phase of
    each graph therefore has a code object of its own. Inductor must not write into what was saved for the gradient: it
    takes no notice of a view that was saved beside it, a diagonal say, and reads that afterwards (torch 2.11 to 2.15).
    Gradients are computed in the types of what was computed, as by `backward`, where torch would autocast them again.
    """

    def __init__(self, method: Any, phase: Callable[[], float]) -> None:
        self.method, self.phase = method, phase
        self.made: dict[float, Any] = {}

    def __call__(self, *args: Any) -> Any:
        """Call the method in the phase that the run is in."""
        if (phase := self.phase()) not in self.made:
            plain = self.method.__func__
            own = FunctionType(plain.__code__.replace(), plain.__globals__, plain.__name__, closure=plain.__closure__)
            self.made[phase] = torch.compile(MethodType(own, self.method.__self__), dynamic=False)
        with torch._functorch.config.patch(donated_buffer=False, backward_pass_autocast="off"):
            return self.made[phase](*args)


def backward(loss: Tensor) -> None:
    """Without autocast: what was computed in full precision has its gradient in full precision.

    A loss to which nothing that learns leads has none: that of an isolated stage which rests.
    """
    if loss.requires_grad:
        with torch.autocast(loss.device.type, enabled=False):
            loss.backward()


def whole_step(distiller: Any, batch: Given) -> dict[str, Tensor]:
    """From a batch to updated weights, without a look at any number; returns the unweighted terms."""
    with distiller.watch.recorded(distiller):
        terms = distiller.watch.judged(_whole_step(distiller, batch))
        distiller.sums.add_values(terms)
    return dict(terms)


def _whole_step(distiller: Any, batch: Given) -> dict[str, Tensor]:
    graph, optimizers, data = distiller.graph, distiller.optimizers().optimizer, seen(distiller, batch)
    graph.loss_scale.fill_(1.0)
    learning, compiled = graph.now.updates, distiller.compiled is not None
    groups = [learning] if compiled else branches(graph)
    outputs = graph.outputs(data, cached=True) if compiled else {}
    for name in () if compiled else (name for name in graph.now.readers if name not in learning):
        graph.read(name, data, outputs, grad=False)
    said: dict[Branch, Values] = {}

    def teach(group: Branch) -> None:
        known = dict(outputs)
        for name in () if compiled else group:
            graph.read(name, data, known, grad=True)
        loss, said[group] = distiller.lesson(group, known, data, 0)
        if loss is not None:
            backward(loss)
            optimizers.active = group
            distiller.watch.norms.add(optimizers)
            distiller.clip(optimizers)
            optimizers.move()
            optimizers.zero_grad()

    side_by_side(groups, teach)
    optimizers.active = learning
    terms: dict[str, Tensor] = {}
    for name, value in ((name, value.detach()) for values in said.values() for name, value in values.items()):
        terms[name] = terms[name] + value if name in terms else value
    return terms


def _against(distiller: Any) -> str:
    """Why a distiller's steps cannot be recorded; empty where they can."""
    trainer, graph = distiller.trainer, distiller.graph
    fixed = [name for name, o in distiller.optimizers().optimizer.of.items() if not can_be_recorded(o)]
    watchers = [distiller, *(c for c in trainer.callbacks if c is not distiller.borrow)]
    watching = [type(watcher).__name__ for watcher in watchers if _looks_inside(watcher)]
    reasons = {
        "there are several ranks": trainer.world_size > 1,
        "fp16 looks at every gradient (bf16-mixed does not)": getattr(trainer.precision_plugin, "scaler", None),
        "gradients are accumulated": distiller.borrow.accumulate > 1,
        "peers are updated one after the other": distiller.update == "sequential",
        "a model draws random numbers (dropout)": graph.stochastic,
        f"{graph.set_anew} is set anew in every step; change it in place (copy_, lerp_)": graph.set_anew,
        (alone := eager(graph)): alone,
        "a cache by epochs is read by the host": any(m.by == "epochs" for m in distiller.memories.values()),
        "a batch holds several inputs": any(node.input is not None for node in graph.nodes.values()),
        f"the optimizer of {', '.join(fixed)} cannot be recorded (sgd, adam and adamw as they are can)": fixed,
        f"{', '.join(watching)} looks at gradients, which a recorded step does not show": watching,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _looks_inside(watcher: object) -> bool:
    """Whether a callback, or a distiller of one's own, has a hook that Lightning and kdkit leave empty."""
    hooks = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
    plain = ("pytorch_lightning.callbacks.callback", "pytorch_lightning.core.hooks", "kdkit.train.distiller")
    return any(getattr(watcher, hook).__module__ not in plain for hook in hooks)
