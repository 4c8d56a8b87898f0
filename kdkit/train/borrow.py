"""Clipping and accumulation, borrowed from a Trainer for one run."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from kdkit.graph.graph import Graph
from kdkit.train.companions import check_averaging, check_callbacks, check_optimizers
from kdkit.train.late import hand_out

WORDS = ("gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")


class Borrow(pl.Callback):
    """The Trainer refuses both under manual optimisation: it is told of neither, and has them back after the run."""

    clip_value: float | None = None
    clip_algorithm: str | None = None
    accumulate: int = 1
    parameters: int = 0

    def __init__(self) -> None:
        self._taken: dict[str, Any] | None = None

    def take(self, trainer: Any) -> None:
        """Take both over from the Trainer."""
        if trainer.state.fn == TrainerFn.FITTING:
            check_callbacks(trainer)
        if self._taken is None:
            self._taken = {word: getattr(trainer, word) for word in WORDS}
            self.clip_value, self.clip_algorithm, self.accumulate = self._taken.values()
            trainer.gradient_clip_val, trainer.accumulate_grad_batches = None, 1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Count what there is before the graph is bound."""
        self.parameters = len(list(pl_module.parameters()))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at what was made until now: copies of the models, and the optimisers."""
        check_optimizers(trainer)
        check_averaging(trainer, self.parameters, len(list(pl_module.parameters())))

    @property
    def by_value(self) -> bool:
        """Whether gradients are clipped one by one, which makes infinite ones finite."""
        return bool(self.clip_value) and self.clip_algorithm == "value"

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give them back, wake what rested in a stage, and leave the loader as it was; recordings hold memory."""
        distiller: Any = pl_module
        if isinstance(graph := getattr(distiller, "graph", None), Graph):
            graph.rest.end()
            distiller.captured = None
        hand_out(trainer, pl_module, late=False)
        if self._taken is not None:
            for word, value in self._taken.items():
                setattr(trainer, word, value)
            self._taken = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give them back."""
        self.teardown(trainer, pl_module, "")
