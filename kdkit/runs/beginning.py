"""Where a run really begins, and how long it has trained in all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl


class Beginning(pl.Callback):
    """Calls `begin` once, before the first step: by then the graph is bound, and what would be refused is refused.

    Its time goes into every checkpoint, so that a resumed run goes on counting.

    Args:
        begin: makes way for the run; the first rank alone calls it.
        resumed: whether the run goes on from a checkpoint, which then says how long it took to get there.
    """

    def __init__(self, begin: Callable[[], None], resumed: bool) -> None:
        self.begin, self.begun = begin, False
        self.before = math.nan if resumed else 0.0
        self.since = time.perf_counter()

    @property
    def minutes(self) -> float:
        """Up to now, over every part of the run; NaN where the checkpoint does not say."""
        return self.before + (time.perf_counter() - self.since) / 60

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """The data have given a batch, too."""
        if not self.begun:
            self.begun = True
            if trainer.is_global_zero:
                self.begin()

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"minutes": self.minutes}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Count on."""
        self.before = state_dict["minutes"]
