"""metrics.csv: one row an epoch, whole after every epoch, cut back to the checkpoint on resume."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder, unwritable, write_text


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

    def restore(self, epochs: int, rows: Mapping[int, dict[str, float]] | None = None) -> None:
        """Take the first `epochs` rows up again and forget the others: the run goes on from there.

        Args:
            epochs: behind the checkpoint.
            rows: what the checkpoint has of them; left out, as in older ones, the file's.

        Raises:
            KdkitError: the file is damaged.
        """
        if rows is not None:
            self.rows = {epoch: dict(row) for epoch, row in rows.items() if epoch <= epochs}
        elif self.path.exists():
            try:
                self.rows = self._read(epochs)
            except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
                raise KdkitError(f"{self.path} is damaged ({error}); --overwrite begins the run anew") from None

    def _read(self, epochs: int) -> dict[int, dict[str, float]]:
        with self.path.open(encoding="utf-8", newline="") as file:
            read = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
        return {int(row["epoch"]): row for row in read if row["epoch"] <= epochs}

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
        if not self.path.parent.is_dir():
            raise KdkitError(f"{self.path.parent} is gone; training has stopped")
        columns = sorted({key for row in self.rows.values() for key in row} - {"epoch", "step"})
        text = io.StringIO()
        writer = csv.DictWriter(text, ["epoch", "step", *columns], lineterminator="\n")
        writer.writeheader()
        for _, row in sorted(self.rows.items()):
            writer.writerow({key: _short(value) for key, value in row.items()})
        try:
            write_text(self.path, text.getvalue())
        except OSError as error:
            raise unwritable(RunFolder(self.path.parent), self.path, error) from error

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()


def _short(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.9g}"
