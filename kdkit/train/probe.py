"""A fixed set of images on which the models of a cohort are looked at, and what is seen there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import Metric, SumMetric

from kdkit.data.order import Loader
from kdkit.graph.batch import Batch, inputs
from kdkit.graph.sound import sound
from kdkit.metrics import KAR, MCI, NLL, Disagreement, PairwiseJS
from kdkit.registry import KdkitError
from kdkit.train.converted import converted


def probe_batches(trainer: Any, size: int, seed: int) -> list[Any]:
    """The first `size` samples, on the CPU: of held-out images where the data module has some, else of training ones.

    They are the same in every epoch, on every rank and after every resume; test data are never among them, nor are
    images that are not finite.

    Raises:
        KdkitError: the data have no labels, or no image that is finite.
    """
    module: Any = getattr(trainer, "datamodule", None)
    held_out = bool(getattr(module, "selects", False))
    loader = module.val_dataloader() if held_out else trainer.fit_loop._data_source.dataloader()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed & 0x7FFFFFFF)  # a data set that augments draws from torch's generator
        found = list(_read(loader, size))
    labels = [Batch.of(batch).labels for batch in found]
    if not found or any(one is None or bool((one < 0).any()) for one in labels):
        raise KdkitError("cohort.health: the data must have labels, for a model is judged by its loss on them")
    if not (found := [fine for batch in found if (fine := _finite(batch)) is not None]):
        raise KdkitError(f"cohort.health: none of the first {size} images is finite, so no model can be judged by them")
    return found


def _finite(batch: Any) -> Any:
    """What of a batch is finite; `None` where nothing is."""
    good = torch.ones(len(Batch.of(batch).labels), dtype=torch.bool)  # type: ignore[arg-type]
    for x in inputs(Batch.of(batch).x):
        good &= x.reshape(len(x), -1).isfinite().all(1).cpu()
    return batch if bool(good.all()) else _cpu(batch, good) if bool(good.any()) else None


def _read(loader: Any, size: int) -> Any:
    if isinstance(loader, DataLoader) and loader.batch_size and not isinstance(loader.dataset, IterableDataset):
        total = min(size, len(loader.dataset))  # type: ignore[arg-type]
        for start in range(0, total, loader.batch_size):
            yield loader.collate_fn([loader.dataset[i] for i in range(start, min(start + loader.batch_size, total))])
        return
    with _from_the_beginning(loader):
        for batch in loader:
            labels = Batch.of(batch).labels
            yield _cpu(batch, slice(size))
            if labels is None or (size := size - len(labels)) <= 0:
                return


@contextmanager
def _from_the_beginning(loader: Any) -> Iterator[None]:
    """Whole batches of the first epoch, whatever the rank; afterwards the loader stands where it stood."""
    order = vars(loader.batch_sampler) if isinstance(loader, Loader) else {}
    before = dict(order)
    order.update({"whole": True, "epoch": 0, "position": 0, "_resumed": False} if order else {})
    try:
        yield
    finally:
        order.update(before)


def _cpu(value: Any, rows: slice | Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows].cpu()
    if isinstance(value, Mapping):
        return {key: _cpu(part, rows) for key, part in value.items()}
    return type(value)(_cpu(part, rows) for part in value) if isinstance(value, (list, tuple)) else value


class Probe:
    """Metrics of every peer, and of every pair of them, on fixed batches.

    Args:
        batches: from `probe_batches`.
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = list(batches)
        self.started: dict[str, tuple[int, float]] = {}

    @torch.no_grad()
    def classes(self, distiller: Any) -> int:
        """How many there are."""
        first = distiller.graph.trained[0]
        return max(int(distiller._logits(first, batch.x).shape[-1]) for batch in self._on_device(distiller))

    @torch.no_grad()
    def look(self, distiller: Any, names: Sequence[str], epoch: int) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The loss of each peer after so many epochs (NaN: not finite somewhere, or absurd), and what is logged."""
        device, several = distiller.device, len(names) > 1
        distiller.place.share(distiller.graph)
        nll = {name: NLL().to(device) for name in names}
        kar = {name: KAR().to(device) for name in names}
        sick = {name: SumMetric(nan_strategy="disable").to(device) for name in names}
        kinds: dict[str, type[Any]] = {"mci": MCI, "js": PairwiseJS, "disagreement": Disagreement} if several else {}
        pairs: dict[str, Metric] = {word: kind(len(names)).to(device) for word, kind in kinds.items()}
        for name in names:
            kar[name].start = self.started.get(name)
            sick[name].update(not_finite(distiller.graph, name))
        for batch in self._on_device(distiller):
            said = [distiller._logits(name, batch.x) for name in names]
            for name, logits in zip(names, said, strict=True):
                nll[name].update(logits, batch.labels)
                sick[name].update((~sound(logits)).float())
                kar[name].update(logits, batch.labels, epoch)
            for metric in pairs.values():
                metric.update(said)
        found: dict[str, Tensor] = {f"health/kar/{name}": kar[name].compute() for name in names}
        self.started |= {name: its.start for name, its in kar.items() if its.start is not None}
        losses = {name: float(torch.where(sick[name].compute() > 0, torch.nan, nll[name].compute())) for name in names}
        for word, metric in pairs.items():
            matrix = metric.compute()
            for i, one in enumerate(names):
                for j, other in enumerate(names):
                    if i < j or (i != j and word == "mci"):
                        found[f"health/{word}/{one}/{other}"] = matrix[i, j]
        return losses, found

    def _on_device(self, distiller: Any) -> Any:
        graph, trainer = distiller.graph, distiller.trainer
        mode = graph.training
        graph.eval()
        try:
            with trainer.precision_plugin.forward_context(), torch.random.fork_rng(devices=[]):
                for batch in self.batches:
                    moved = trainer.strategy.batch_to_device(converted(distiller, batch), distiller.device)
                    yield Batch.of(distiller.on_after_batch_transfer(moved, 0))
        finally:
            graph.train(mode)


def not_finite(graph: Any, name: str) -> Tensor:
    """1 where a weight or a running statistic of a node is NaN or infinite."""
    values = [value for value in graph.model(name).state_dict().values() if value.is_floating_point()]
    fine = torch.stack([value.isfinite().all() for value in values]).all()
    return (~fine).float()
