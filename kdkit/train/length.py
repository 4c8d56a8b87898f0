"""How long a Trainer will train, in epochs."""

from __future__ import annotations

import math
from typing import Any

from kdkit.registry import KdkitError


def run_epochs(distiller: Any) -> float:
    """Length of a distiller's run, before or in training; with `max_steps` it may be a fraction."""
    trainer, found = distiller.trainer, []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        found.append(float(trainer.max_epochs))
    if trainer.max_steps > 0:
        trainer.fit_loop.setup_data()  # counts the batches
        turns = len(distiller.graph.trained) if distiller.update == "sequential" else 1  # optimiser steps of one batch
        found.append(trainer.max_steps / (turns * math.ceil(steps_per_epoch(trainer) / distiller.borrow.accumulate)))
    if not found:
        raise KdkitError("schedules need the length of the run; give the Trainer max_epochs or max_steps")
    return min(found)


def steps_per_epoch(trainer: Any) -> int:
    """Batches in an epoch: time is counted in shares of it, so it needs a length."""
    if not math.isfinite(trainer.num_training_batches):
        raise KdkitError("the training loader has no length; give the Trainer limit_train_batches")
    return int(trainer.num_training_batches)
