"""Batches whose images a recorded step makes by itself: nothing but the numbers of the samples goes into it."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins import Precision

from kdkit.data.device_loader import DeviceLoader, LateBatch
from kdkit.graph.batch import Batch
from kdkit.train.caching import located
from kdkit.train.evaluation import Evaluation

MOVES = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def hand_out(trainer: Any, distiller: Any, late: bool) -> None:
    """Let a training set that lives on the device hand out its batches unmade, where nobody changes them on the way.

    Lightning does so where a run is wholly in half or double precision.
    """
    loader, module = trainer.train_dataloader, getattr(trainer, "datamodule", None)
    pairs = [(distiller, Evaluation), *([] if module is None else [(module, pl.LightningDataModule)])]
    plain = all(getattr(type(it), move) is getattr(base, move) for it, base in pairs for move in MOVES)
    plain &= type(trainer.precision_plugin).convert_input is Precision.convert_input
    if isinstance(loader, DeviceLoader):
        loader.late = late and plain and loader.images.device == distiller.device


def unread(batch: Any) -> bool:
    """Whether a batch is unmade still, so that no callback can have changed it."""
    return isinstance(batch, LateBatch) and batch.unread


def seen(distiller: Any, batch: Any) -> Batch:
    """What a step works on: images in the models' memory format, and their places in every cache."""
    if isinstance(batch, Batch):
        return batch
    epoch: Any = distiller.current_epoch
    if isinstance(batch, LateBatch):
        epoch, batch = batch.epoch, distiller.on_after_batch_transfer(tuple(batch), 0)
    return located(distiller.memories, epoch, Batch.of(batch))
