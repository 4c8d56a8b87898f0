"""How long a Trainer will train, in epochs."""

from __future__ import annotations

import math
from typing import Any

from kdkit.registry import KdkitError


def run_epochs(trainer: Any, turns: int, accumulate: int) -> float:
    """Length of the run; with `max_steps` it may be a fraction.

    Args:
        trainer: before or in training.
        turns: optimiser steps that one batch makes.
        accumulate: batches that make one optimiser step.
    """
    found = []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        found.append(float(trainer.max_epochs))
    if trainer.max_steps > 0:
        trainer.fit_loop.setup_data()  # counts the batches
        found.append(trainer.max_steps / (turns * math.ceil(steps_per_epoch(trainer) / accumulate)))
    if not found:
        raise KdkitError("schedules need the length of the run; give the Trainer max_epochs or max_steps")
    return min(found)


def steps_per_epoch(trainer: Any) -> int:
    """Batches in an epoch: time is counted in shares of it, so it needs a length."""
    if not math.isfinite(trainer.num_training_batches):
        raise KdkitError("the training loader has no length; give the Trainer limit_train_batches")
    return int(trainer.num_training_batches)
