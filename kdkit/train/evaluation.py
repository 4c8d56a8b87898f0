"""How the nodes of a graph do on data that they do not learn from."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from kdkit.graph.batch import Batch
from kdkit.graph.graph import Graph
from kdkit.registry import KdkitError
from kdkit.taps.trace import NoLogitsError, logits_of
from kdkit.train.example import SEVERAL
from kdkit.train.layout import channels_last
from kdkit.train.monitor import Monitor
from kdkit.train.place import Everywhere
from kdkit.train.scores import Scores


class Evaluation(pl.LightningModule):
    """The validation and test loops of a graph: top-1, top-5 and NLL of every node."""

    graph: Graph
    scores: Scores | None
    monitor: Monitor | None = None
    place: Everywhere
    channels_last: bool

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the first trained node."""
        return self._logits(self.graph.trained[0], x)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Logits of the first trained node for a batch's x."""
        return self(Batch.of(batch).x)  # type: ignore[no-any-return]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Images in the models' memory format."""
        if isinstance(batch, (tuple, list)) and isinstance(batch[0], Tensor):
            return (self._laid_out(batch[0]), *batch[1:])
        return batch

    def _laid_out(self, x: Tensor) -> Tensor:
        return channels_last(x) if self.channels_last else x

    def on_validation_epoch_start(self) -> None:
        """Every rank evaluates the same models."""
        self.place.share(self.graph)
        self.monitor = Monitor(self.graph)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Top-1, top-5 and NLL of every node; frozen ones are looked at once."""
        self._score(batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As validation."""
        self._score(batch, dataloader_idx)

    def _score(self, batch: Any, loader: int) -> None:
        if loader:
            raise KdkitError(SEVERAL)
        data = Batch.of(batch)
        if self.scores is None or data.labels is None or bool((data.labels == -1).all()):
            return
        for name in list(self.scores.wanted):
            try:
                logits = self._watched(name, data.x, data.labels)
            except NoLogitsError as error:  # of a net that is read inside alone
                self.scores.leave_out(name, str(error).removeprefix("model: ").partition(";")[0])
            else:
                self.scores.update(name, logits, data.labels)

    def _watched(self, name: str, x: Any, labels: Tensor) -> Tensor:
        if self.monitor is None or self.trainer.state.fn != TrainerFn.FITTING:
            return self._logits(name, x)
        return self.monitor.run(name, lambda: self._logits(name, x), labels)

    def _logits(self, name: str, x: Any) -> Tensor:
        if name in self.graph.adapters:
            x = self.graph.adapters[name](x)
        logits: Tensor = logits_of(self.graph.model(name)(x))
        return logits

    def on_validation_epoch_end(self) -> None:
        """Log under `val/<node>/<metric>`, and what losses tell of themselves."""
        self._log_scores("val")
        if self.monitor is not None:
            self.log_dict(self.monitor.means(), sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        """Log under `test/<node>/<metric>`."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        if self.scores is not None:
            self.log_dict(
                {f"{stage}/{name}": v for name, v in self.scores.compute(keep=self.trainer.sanity_checking).items()}
            )
