"""A trial that comes to no number: the worst of all, and no failure, for its place in the space told that much."""

from __future__ import annotations

from kdkit.bench.expand import Cell
from kdkit.bench.rows import Row, identity
from kdkit.runs.folder import RunFolder


def worst_row(cell: Cell, suite: str, folder: RunFolder, why: str) -> Row:
    """The row of a trial whose loss became non-finite."""
    nothing = {cell.node: {"top1": 0.0}}
    figures = {"last": nothing, "best": nothing, "epochs": 0, "minutes": None, "peak_gb": None}
    return {**identity(cell, suite, folder), **figures, "why": why}
