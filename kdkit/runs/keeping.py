"""Checkpoints: written whole, the one before kept beside the last, with the rows so far; and when a run is stopped."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint

from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder, unwritable
from kdkit.runs.interrupt import SIGNALS, Asked
from kdkit.runs.rows import MetricRows
from kdkit.storage import whole


class TwoKept(TorchCheckpointIO):
    """Every checkpoint takes the place of the one before, which is kept until the next.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises `KdkitError` where it cannot be written."""
        last = Path(path).resolve() == self.folder.checkpoint.resolve()  # Lightning resolves one, and not the other
        try:
            with whole(Path(path), before=self.folder.previous if last else None) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch tells a write that was refused in its own words
            raise unwritable(self.folder, Path(path), error) from error


class Keeper(ModelCheckpoint):
    """Saves after every epoch, once its row is written, and in the middle of one where a signal asks to stop.

    Args:
        folder: of the run.
        rows: its metrics, which go into every checkpoint.
    """

    def __init__(self, folder: RunFolder, rows: MetricRows) -> None:
        where = folder.checkpoint.parent
        super().__init__(where, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
        self.folder, self.rows = folder, rows
        self.asked = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Signals are answered here; Lightning, which puts back what was before, would save nothing."""
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._ask)

    def _ask(self, number: int, _: Any) -> None:
        """The first one is waited for, to the end of the step; a second one ends the process at once."""
        self.asked = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        """Between two updates of one process a run may stop; several go on to the end of the epoch, together."""
        super().on_train_batch_end(trainer, pl_module, *rest)
        done, accumulate = int(rest[2]) + 1, int(getattr(pl_module, "borrow").accumulate)  # noqa: B009
        if self.asked and trainer.world_size == 1 and done % accumulate == 0 and done < trainer.num_training_batches:
            trainer.save_checkpoint(self.folder.checkpoint)
            raise Asked(self.asked)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The row, the checkpoint, and the end where that is asked for."""
        if trainer.is_global_zero and not self.folder.provenance.exists():
            raise KdkitError(f"{self.folder.path} is gone, or was emptied, while the run trained; training has stopped")
        logged = {name: float(value) for name, value in trainer._logger_connector.metrics["log"].items()}
        step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1
        self.rows.log_metrics({**logged, "epoch": trainer.current_epoch}, step)  # as Lightning will, too late for us
        self.rows.save()
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.strategy.reduce_boolean_decision(bool(self.asked), all=False):
            raise Asked(self.asked or SIGNALS[0].name)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The rows go with it."""
        checkpoint["rows"] = {epoch: dict(row) for epoch, row in self.rows.rows.items()}
