"""What `kdkit check` tells of a cohort: who joins and leaves when, and how the sick are treated."""

from __future__ import annotations

from collections.abc import Iterator

from kdkit.graph.health import Rule
from kdkit.graph.membership import Plan, in_epochs


def cohort_rows(plan: Plan | None, rule: Rule | None, epochs: int, *, held_out: bool) -> Iterator[str]:
    """A line for each coming and going, with times in epochs, and three for the health rule."""
    if plan is not None:
        ramp = in_epochs(plan.ramp, epochs)
        for move in plan.moves(epochs):
            over = f", its learning rate rises until {move.epoch + move.warmup:g}" if move.warmup else ""
            then = "is listened to wholly from" if move.what == "join" else "is gone at"
            slowly = f", {then} {move.epoch + ramp:g}" if ramp else ""
            yield f"{move.peer} {move.what}s at epoch {move.epoch:g}{over}{slowly}"
    if rule is not None:
        images = "held-out" if held_out else "training"
        yield f"health: judged by {rule.probe} {images} images, each model after {rule.warmup} epochs of its own"
        yield f"health: sick where bad {rule.patience} epochs in a row, or not finite; then, one step after the other,"
        yield f"health: learning rate times {rule.cut:g}, the last good snapshot, first weights with a new optimiser"
