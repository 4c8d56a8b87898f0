"""What comes with one's own Lightning code and cannot do what it says beside a graph, refused before the run."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import callbacks

from kdkit.registry import KdkitError
from kdkit.train.optim import NodeOptimizers

REFUSED: tuple[tuple[type, str], ...] = (
    (callbacks.LearningRateFinder, "the Distiller steps its optimisers itself; give Distiller(lr=…) a number"),
    (
        callbacks.StochasticWeightAveraging,
        "it sets no learning rate here, and its last epoch trains on; keep a slow copy as a node: kdkit.ema('student')",
    ),
    (
        callbacks.BaseFinetuning,
        "what it unfreezes is not trained; say which parts learn when: Distiller(stages=[kdkit.Stage(…)])",
    ),
)


def check_callbacks(trainer: Any) -> None:
    """Raise `KdkitError` for a callback that would change nothing, or something else than it says."""
    for callback in trainer.callbacks:
        for kind, instead in REFUSED:
            if isinstance(callback, kind):
                raise KdkitError(f"{type(callback).__name__}: {instead}")


def check_averaging(trainer: Any, before: int, now: int) -> None:
    """Raise `KdkitError` where weights are averaged that were not there when Lightning copied the model.

    Args:
        trainer: the Trainer.
        before: parameters when the callbacks were set up.
        now: parameters after the graph is bound, with heads, losses that learn and slow copies.
    """
    averaging = next((c for c in trainer.callbacks if isinstance(c, callbacks.WeightAveraging)), None)
    if averaging is not None and now != before:
        raise KdkitError(
            f"{type(averaging).__name__}: it copied the models before they had their heads, losses that learn and slow "
            "copies; average the student alone, as a node: kdkit.ema('student', decay=0.999)"
        )


def check_optimizers(trainer: Any) -> None:
    """Raise `KdkitError` where a subclass brings an optimiser that moves no node."""
    for optimizer in trainer.optimizers:
        if not isinstance(optimizer, NodeOptimizers):
            raise KdkitError(
                f"configure_optimizers must return what the Distiller makes, got {type(optimizer).__name__}; leave it "
                "out and say Distiller(optimizer=…, lr=…), or kdkit.Node(net, optimizer=…, lr=…) for one model"
            )
