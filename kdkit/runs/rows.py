"""metrics.csv: one row an epoch, whole after every epoch, cut back to the checkpoint on resume."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from kdkit.runs.folder import write_text


class MetricRows(Logger):
    """Lightning logger that merges what is logged in one epoch into one row and rewrites the file atomically.

    Epochs and steps count those that are over: epoch 1 is after the first pass over the data.

    Args:
        path: the CSV file.

    Attributes:
        rows: metrics by epoch.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, float]] = {}

    @property
    def name(self) -> str:
        """Lightning's word for what is logged."""
        return "metrics"

    @property
    def version(self) -> int:
        """There is one file."""
        return 0

    def restore(self, epochs: int) -> None:
        """Take the first `epochs` rows of the file up again and forget the others: the run goes on from there."""
        if self.path.exists():
            with self.path.open(encoding="utf-8", newline="") as file:
                read = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
            self.rows = {int(row["epoch"]): row for row in read if row["epoch"] <= epochs}

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Merge into the epoch's row."""
        if "epoch" in metrics:
            row = self.rows.setdefault(epoch := int(metrics["epoch"]) + 1, {})
            values = {key: float(_short(float(value))) for key, value in metrics.items()}  # as the file has them
            row.update({**values, "epoch": float(epoch), "step": float((step or 0) + 1)})

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The recipe is in the run folder already."""

    @rank_zero_only
    def save(self) -> None:
        """Write every row."""
        if not self.rows:
            return
        columns = sorted({key for row in self.rows.values() for key in row} - {"epoch", "step"})
        text = io.StringIO()
        writer = csv.DictWriter(text, ["epoch", "step", *columns], lineterminator="\n")
        writer.writeheader()
        for _, row in sorted(self.rows.items()):
            writer.writerow({key: _short(value) for key, value in row.items()})
        write_text(self.path, text.getvalue())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()


def _short(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.9g}"
