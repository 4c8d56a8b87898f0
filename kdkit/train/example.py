"""A small real batch and the facts of the data before training starts, from whatever the Trainer was given."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from kdkit.graph.alone import apart, check_alone, ends_alone
from kdkit.graph.batch import Batch, Facts
from kdkit.graph.edge import Edge
from kdkit.graph.graph import Graph
from kdkit.graph.phase import idle, missed
from kdkit.graph.slow import slow
from kdkit.registry import KdkitError
from kdkit.train.adapt import check_held_out
from kdkit.train.onednn import emulated

log = logging.getLogger(__name__)

SIZE = 4
SEVERAL = (
    "there are several evaluation loaders, whose numbers would be mixed into one; "
    "give one of them, and score the others by trainer.test(distiller, loader), one after the other"
)


def facts_of(trainer: pl.Trainer) -> Facts:
    """What the data module tells; where there is none, the number of samples is the length of the loader's data set."""
    module = getattr(trainer, "datamodule", None)
    if module is not None or trainer.state.fn != TrainerFn.FITTING:
        return Facts.of(module)
    loader = trainer.fit_loop._data_source.instance
    data = getattr(loader, "dataset", None)
    return Facts(num_samples=len(data) if isinstance(loader, DataLoader) and isinstance(data, Sized) else None)


def check_validation(trainer: pl.Trainer, edges: Sequence[Edge]) -> None:
    """Raise `KdkitError` before training where validation has several loaders, or not the samples that edges follow."""
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    loaders = source.dataloader() if source.is_defined() else None
    if isinstance(loaders, (list, tuple, dict)) and len(loaders) > 1:
        raise KdkitError(SEVERAL)
    check_held_out(trainer, edges)


def example_batch(trainer: pl.Trainer, least: int = 1) -> Any:
    """Four samples of the training data, or as many as it takes, on the CPU; fewer where their batches are smaller.

    No worker is started where the data set can be indexed.

    Raises:
        KdkitError: the Trainer has no training data, or they are empty.
    """
    source = trainer.fit_loop._data_source
    if not source.is_defined():
        raise KdkitError("there are no training data; pass a data module or a loader to fit()")
    loader = source.dataloader()
    with torch.random.fork_rng(devices=[]):  # a data set that augments draws from the same generator as everybody
        return _read(loader, max(SIZE, least))


def check_last(trainer: pl.Trainer, graph: Graph, example: Batch) -> None:
    """Raise `KdkitError` before training where an epoch would end with one sample that it cannot be trained on."""
    loader = trainer.fit_loop._data_source.dataloader()
    order = getattr(loader, "batch_sampler", None)
    several, drops = getattr(order, "batch_size", None), getattr(order, "drop_last", None)
    sampler = getattr(order, "sampler", None)
    if not isinstance(several, int) or not isinstance(drops, bool) or not isinstance(sampler, Sized):
        return  # batches of another making
    world = 1 if getattr(order, "whole", False) else trainer.world_size
    share = math.ceil(getattr(order, "num_samples", len(sampler)) / world)
    several = several if isinstance(loader, DataLoader) else several // world
    if graph.epochs >= 1 and ends_alone(share, several, drops, trainer.limit_train_batches):
        check_alone(graph, example)


def tell_idle(graph: Graph) -> None:
    """Warn of stretches of the run in which nothing learns."""
    _warn(idle(graph))


def tell_odd(trainer: pl.Trainer, graph: Graph, updates: float) -> None:
    """Warn of spans that hold no update, copies that hardly move, losses of a share of the batch, a slow precision.

    Args:
        trainer: that runs.
        graph: bound.
        updates: of the optimiser, in an epoch.
    """
    loader = trainer.fit_loop._data_source.dataloader()
    whole = getattr(getattr(loader, "batch_sampler", None), "whole", False)
    found = [*missed(graph, updates), *slow(graph, updates * graph.epochs)]
    found += apart(graph, 1 if whole else trainer.world_size)
    _warn([*found, *emulated(str(trainer.precision), trainer.strategy.root_device)])


def tell_short(trainer: pl.Trainer) -> None:
    """Warn of an epoch that ended before its time, and drop the gradients that wait for an update in it."""
    loop = trainer.fit_loop.epoch_loop
    read, told = loop.batch_progress.current.ready, trainer.num_training_batches
    if read < told and not trainer.should_stop and not loop._is_training_done:
        _warn(
            [
                f"the data ended after {read} of the {told} batches that its length or limit_train_batches promises: "
                "schedules stop before their end, and the Trainer, which validates after the last batch, does not; "
                f"give limit_train_batches={read}"
            ]
        )
        distiller: Any = trainer.lightning_module
        if distiller.borrow.accumulate > 1:
            distiller.zero_grad()


def _warn(found: Iterable[str]) -> None:
    for told in found:
        log.warning("warning: %s", told)


def _read(loader: Any, size: int) -> Any:
    by_index = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    if by_index and loader.batch_size is not None:
        size = min(size, loader.batch_size, len(loader.dataset))
        if size == 0:
            raise KdkitError("the training data are empty")
        return loader.collate_fn([loader.dataset[i] for i in range(size)])
    if not isinstance(loader, Iterable):
        raise KdkitError(f"the training loader must be iterable, got {type(loader).__name__}")
    batch = next(iter(loader), None)
    if batch is None:
        raise KdkitError("the training data are empty")
    return _first(batch, size)


def _first(value: Any, size: int) -> Any:
    if isinstance(value, Tensor):
        return value[:size].cpu()
    if isinstance(value, dict):
        return {key: _first(item, size) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_first(item, size) for item in value)
    return value
