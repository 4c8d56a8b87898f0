"""Where a training step's time goes: a table for people, a Chrome trace for looking closer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

BETWEEN = "data and Trainer, between steps"


@dataclass(frozen=True)
class Part:
    """Some of a step's time.

    Attributes:
        name: what takes it.
        host: milliseconds of a step on the CPU.
        device: milliseconds of a step on the accelerator; 0 where there is none.
    """

    name: str
    host: float
    device: float


class StepProfiler(pl.Callback):
    """Measures some steps of a fit, which goes on afterwards.

    Args:
        trace: where the Chrome trace is written (chrome://tracing, https://ui.perfetto.dev).
        report: gets the parts, the milliseconds of a step, and how long the accelerator was idle in it.
        warm: steps before, at most half of those that are left of the run.
        steps: steps that are measured.
    """

    def __init__(
        self, trace: Path, report: Callable[[list[Part], float, float], None], warm: int = 8, steps: int = 20
    ) -> None:
        self.trace, self.report, self.steps = trace, report, steps
        self.warm: float = warm
        self._seen = 0
        self._first: int | None = None
        self._open: ExitStack | None = None
        self._between: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A short run is measured, too."""
        epochs = (trainer.max_epochs or 0) - trainer.current_epoch
        if epochs > 0:  # −1 is without end
            self.warm = min(self.warm, trainer.num_training_batches * epochs / 2)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Begin to measure after the warm-up."""
        if self._between is not None:
            self._between.__exit__(None, None, None)
            self._between = None
        if self._first is None and self._seen >= self.warm:
            self._start(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Measure what lies between this step and the next, and end in time."""
        self._seen += 1
        if self._open is not None and (self._seen >= (self._first or 0) + self.steps or trainer.is_last_batch):
            self._stop()  # what follows an epoch's last step is no part of a step
        elif self._open is not None:
            self._between = record_function(BETWEEN)
            self._between.__enter__()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave nothing behind."""
        if self._open is not None:
            self._open.close()

    def _start(self, distiller: Any) -> None:
        self._open = stack = ExitStack()
        for name in distiller.graph.nodes:
            _label(stack, distiller.graph.model(name), f"{name}: forward")
        for edge in distiller.graph.bound:
            _label(stack, edge, f"loss {edge.name}")
        for method, name in (("_backward", "backward"), ("_update", "optimizer"), ("_captured_step", "recorded step")):
            _wrap(stack, distiller, method, name)
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
        _wait()
        self._profile = stack.enter_context(profile(activities=activities, acc_events=True))
        self._began, self._first = time.perf_counter(), self._seen

    def _stop(self) -> None:
        assert self._open is not None
        assert self._first is not None
        _wait()
        steps = self._seen - self._first
        wall = 1e3 * (time.perf_counter() - self._began) / steps
        self._open.close()
        self._open = None
        self._profile.export_chrome_trace(str(self.trace))
        averages = self._profile.key_averages()
        idle = max(0.0, wall - _busy(averages, steps)) if torch.cuda.is_available() else 0.0
        self.report(_parts(averages, steps), wall, idle)


def _parts(averages: Iterable[Any], steps: int) -> list[Part]:
    """What `_label` and `_wrap` have named; a GPU's events tell each of them a second time."""
    names = {BETWEEN, "backward", "optimizer", "recorded step"}
    return [
        Part(e.key, e.cpu_time_total / 1e3 / steps, e.device_time_total / 1e3 / steps)
        for e in averages
        if e.device_type == DeviceType.CPU
        and (e.key in names or e.key.endswith(": forward") or e.key.startswith("loss "))
    ]


def _busy(averages: Iterable[Any], steps: int) -> float:
    """Milliseconds of a step in kernels and copies: these count for the operations that launched them, too."""
    own = (e for e in averages if e.device_type != DeviceType.CPU and not e.is_user_annotation)
    return float(sum(e.self_device_time_total for e in own)) / 1e3 / steps


def _label(stack: ExitStack, module: torch.nn.Module, name: str) -> None:
    """Calls of a module carry a name, also those that a tap cuts short."""
    running: list[Any] = []

    def enter(*_: Any) -> None:
        running.append(record_function(name))
        running[-1].__enter__()

    def leave(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    stack.callback(module.register_forward_pre_hook(enter).remove)
    stack.callback(module.register_forward_hook(leave, always_call=True).remove)


def _wrap(stack: ExitStack, owner: Any, method: str, name: str) -> None:
    """Calls of a method carry a name."""
    real = getattr(owner, method)

    @wraps(real)
    def named(*args: Any, **words: Any) -> Any:
        with record_function(name):
            return real(*args, **words)

    owner.__dict__[method] = named
    stack.callback(partial(owner.__dict__.pop, method))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
