"""What a run shows while it trains: one line an epoch, and on a terminal a bar beneath."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import pytorch_lightning as pl
import torch
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from torch import Tensor

from kdkit.console import console, duration
from kdkit.runs.result import NOT_FINITE

INTERVAL = 0.25  # seconds between two looks at the device while a bar is shown


def progress_callback(file: TextIO | None = None) -> pl.Callback:
    """The callback that shows a run's progress: a line for every epoch and, on a terminal, a bar that moves within it.

    A line such as `epoch 3/240  ce 2.31  crd 14.2  student 41.2 %  1,210 img/s  3 m left` has the epoch's mean of every
    loss term, unweighted; top-1 of the last validation; training images per second over all ranks, after the run's
    first step; and the time to the end of the run, validation included. Sums stay on the device and are read when
    something is shown, at most four times a second.

    Give the Trainer `enable_progress_bar=False` beside it.

    Args:
        file: where to; standard output when left out.
    """
    return _Progress(sys.stdout if file is None else file)


class _Progress(pl.Callback):
    def __init__(self, file: TextIO) -> None:
        self.out = console(file)
        self.bar: Progress | None = None
        self.told: set[str] = set()  # nodes that do not change: their accuracy stands in the first line only
        self.warned: set[str] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where the run begins, which is not at 0 where it is resumed."""
        self.steps = float(trainer.num_training_batches)
        epochs = float(trainer.max_epochs or -1)
        self.total = min(
            epochs if epochs > 0 else math.inf, trainer.max_steps / self.steps if trainer.max_steps > 0 else math.inf
        )
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        # After a finished epoch its batches are still counted.
        self.done = self.first = trainer.current_epoch + (batches / self.steps if batches < self.steps else 0.0)
        self.began, self.warm = time.monotonic(), False
        self._new_epoch(trainer.current_epoch)
        if trainer.is_global_zero and self.out.is_terminal:
            text = TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
            )
            self.bar = Progress(text, BarColumn(20), console=self.out, auto_refresh=False, transient=True)
            self.task = self.bar.add_task("", total=None if math.isinf(self.total) else self.total)
            self.bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count anew."""
        self._new_epoch(trainer.current_epoch)

    def _new_epoch(self, epoch: int) -> None:
        self.epoch, self.images, self.validating, self.looked = epoch, 0, 0.0, -math.inf
        self.since = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images; move the bar when it is due."""
        if self.warm or self.steps == 1:
            self.images += _size(batch) * trainer.world_size
        else:  # the run's first step compiles
            self.since, self.warm = time.monotonic(), True
        self.done = self.epoch + (batch_idx + 1) / self.steps
        if self.bar is not None and time.monotonic() - self.looked >= INTERVAL:
            self._move(self._line(trainer, pl_module))
            self.looked = time.monotonic()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training's clock stands still."""
        self.paused = time.monotonic()
        if self.bar is not None:
            self._move(f"epoch {self.epoch + 1}  validation …")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """And goes on."""
        if not trainer.sanity_checking:
            self.validating += time.monotonic() - self.paused

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The epoch's line."""
        if trainer.is_global_zero:
            line = self._line(trainer, pl_module)
            out = self.bar.console if self.bar is not None else self.out
            out.print(line, markup=False, soft_wrap=True)
            self.told.update(_frozen_nodes(pl_module))
            for name in _not_finite(trainer.callback_metrics) - self.warned:
                text = f"warning: {name} is not finite after epoch {self.epoch + 1}, {NOT_FINITE}"
                out.print(text, markup=False, soft_wrap=True)
                self.warned.add(name)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the lines and take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Likewise, so that what is printed next stands alone."""
        self.on_train_end(trainer, pl_module)

    def _move(self, line: str) -> None:
        if self.bar is not None:
            self.bar.update(self.task, description=line, completed=self.done)
            self.bar.refresh()

    def _line(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        of = "" if math.isinf(self.total) else f"/{math.ceil(self.total)}"
        parts = [f"epoch {self.epoch + 1}{of}"]
        parts += [f"{name} {value:.4g}" for name, value in _terms(pl_module).items()]
        for name, value in _accuracies(trainer.callback_metrics).items():
            if name not in self.told:
                parts.append(f"{name} {100 * value:.1f} %")
        now = time.monotonic()
        if self.images:
            parts.append(f"{self.images / max(now - self.since - self.validating, 1e-9):,.0f} img/s")
        if self.done > self.first and not math.isinf(self.total):
            left = (now - self.began) * (self.total - self.done) / (self.done - self.first)
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)


def _terms(distiller: Any) -> dict[str, float]:
    """Means of the epoch so far: one read for all of them."""
    means: Mapping[str, Tensor] = distiller.sums.means()
    return dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True)) if means else {}


def _accuracies(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    keys = (key.split("/") for key in metrics)
    return {key[1]: float(metrics["/".join(key)]) for key in keys if (key[0], key[-1]) == ("val", "top1")}


def _not_finite(metrics: Mapping[str, Tensor]) -> set[str]:
    """`student nll` for `val/student/nll`, where it is NaN or infinite."""
    keys = [key for key in metrics if key.startswith("val/") and not math.isfinite(metrics[key])]
    return {key.removeprefix("val/").replace("/", " ") for key in keys}


def _frozen_nodes(distiller: Any) -> list[str]:
    return list(distiller.graph.frozen)


def _size(batch: Any) -> int:
    """Samples in a batch: rows of the first tensor in it."""
    while isinstance(batch, (Mapping, tuple, list)):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return len(batch)
