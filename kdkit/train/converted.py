"""Batches that kdkit moves itself, in the run's floating type."""

from __future__ import annotations

from typing import Any


def converted(distiller: Any, batch: Any) -> Any:
    """A batch as Lightning makes those that it moves: of doubles where the run is wholly in double precision."""
    return distiller.trainer.precision_plugin.convert_input(batch)
