"""A recipe's cohort in a run: its callbacks, and cohort.csv, a line for everybody who joined, left or was treated."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from kdkit.recipe import Experiment
from kdkit.runs.folder import RunFolder, write_text
from kdkit.train.cohort import Cohort
from kdkit.train.health import Health


class CohortRows(pl.Callback):
    """Writes what happened in a cohort after every epoch, whole.

    Args:
        cohort: whose events; they are in its checkpoints, so that a resumed run writes no line twice.
        path: the CSV file.
    """

    def __init__(self, cohort: Cohort, path: Path) -> None:
        self.cohort, self.path = cohort, path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write every line."""
        if trainer.is_global_zero and self.cohort.events:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(("epoch", "model", "what", "why"))
            writer.writerows((f"{epoch:.9g}", peer, what, why) for epoch, peer, what, why in self.cohort.events)
            write_text(self.path, text.getvalue())


def cohort_callbacks(experiment: Experiment, folder: RunFolder) -> list[pl.Callback]:
    """What a recipe's `cohort` asks for."""
    plan, rule = experiment.cohort, experiment.health
    if plan is None:
        return []
    cohort = Cohort(plan.join, plan.leave, plan.ramp)
    health = [] if rule is None else [Health(cohort, folder=folder.snapshots, **asdict(rule))]
    return [cohort, *health, CohortRows(cohort, folder.cohort)]
