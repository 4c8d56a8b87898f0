"""A small real batch before training starts, from whatever the Trainer was given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from kdkit.registry import KdkitError

SIZE = 4


def example_batch(trainer: pl.Trainer) -> Any:
    """At most four samples of the training data, on the CPU; no worker is started where the data set can be indexed.

    Raises:
        KdkitError: the Trainer has no training data, or they are empty.
    """
    source = trainer.fit_loop._data_source
    if not source.is_defined():
        raise KdkitError("there are no training data; pass a data module or a loader to fit()")
    loader = source.dataloader()
    with torch.random.fork_rng(devices=[]):  # a data set that augments draws from the same generator as everybody
        return _read(loader)


def _read(loader: Any) -> Any:
    by_index = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    if by_index and loader.batch_size is not None:
        size = min(SIZE, loader.batch_size, len(loader.dataset))
        if size == 0:
            raise KdkitError("the training data are empty")
        return loader.collate_fn([loader.dataset[i] for i in range(size)])
    if not isinstance(loader, Iterable):
        raise KdkitError(f"the training loader must be iterable, got {type(loader).__name__}")
    batch = next(iter(loader), None)
    if batch is None:
        raise KdkitError("the training data are empty")
    return _first(batch)


def _first(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value[:SIZE].cpu()
    if isinstance(value, dict):
        return {key: _first(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_first(item) for item in value)
    return value
