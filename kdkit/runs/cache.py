"""Filling and checking the caches of a recipe's frozen models, apart from any training."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
from rich.progress import track

from kdkit.console import tell
from kdkit.recipe import Recipe, blaming, build
from kdkit.registry import KdkitError
from kdkit.runs.fit import assemble, fit_teacher
from kdkit.runs.folder import RunFolder
from kdkit.runs.rows import MetricRows
from kdkit.runs.teacher import trained_weights
from kdkit.runs.trainer import quiet, refusals
from kdkit.train.caching import Memory


@dataclass(frozen=True)
class CacheReport:
    """One cache after it was filled or verified.

    Attributes:
        node: whose.
        folder: where it lies.
        rows: how many it has.
        there: how many of them are there and whole.
        gigabytes: its size when full.
        difference: largest difference to the live model; `None` where it was not asked for.
    """

    node: str
    folder: Path
    rows: int
    there: int
    gigabytes: float
    difference: float | None = None

    def cells(self) -> tuple[str, ...]:
        """As a line of a table."""
        difference = "" if self.difference is None else f"{self.difference:.2g}"
        return self.node, f"{self.rows:,}", f"{self.there:,}", f"{self.gigabytes:.3g}", difference, str(self.folder)


def cache(recipe: Recipe, *, verify: bool = False) -> list[CacheReport]:
    """Fill the caches that a recipe's fit would read, or compute again what is in them.

    Raises:
        KdkitError: no model of the recipe says `cache`, or the data do not allow it.
    """
    if not any(spec.cache for spec in recipe.models.values()):
        frozen = next((name for name in recipe.models if recipe.kind(name) == "frozen"), "teacher")
        raise KdkitError(f"no model of {recipe.name} says `cache`; add models.{frozen}.cache=true, here and to fit")
    experiment = build(recipe, weights=partial(trained_weights, fit=fit_teacher))
    with TemporaryDirectory() as folder, blaming(recipe), refusals(recipe), quiet():
        distiller, trainer = assemble(experiment, RunFolder(Path(folder)), MetricRows(Path(folder) / "rows.csv"))
        work = _Instead(verify)
        trainer.callbacks = [work]  # type: ignore[attr-defined]
        with suppress(_Done):
            trainer.fit(distiller, datamodule=experiment.datamodule)
    return work.found


class _Done(Exception):  # noqa: N818 (no error: there is nothing to train)
    pass


class _Instead(pl.Callback):
    """Does its work where training would start, on the same device and in the same precision, and ends the run."""

    def __init__(self, verify: bool) -> None:
        self.verify, self.found = verify, list[CacheReport]()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        distiller: Any = pl_module
        for name, memory in distiller.memories.items():
            self.found.append(self._report(name, memory, trainer.precision_plugin.forward_context))
        raise _Done

    def _report(self, name: str, memory: Memory, runs_in: Any) -> CacheReport:
        file = memory.cache.file
        if self.verify:
            rows, there, difference = memory.verify(runs_in)
            return CacheReport(name, memory.cache.folder, rows, there, file.nbytes / 1e9, difference)
        tell(f"filling {memory.cache.folder}", sys.stdout)
        chunks = memory.fill(runs_in)
        rows = sum(track(chunks, name, memory.chunks, disable=not sys.stdout.isatty()))
        return CacheReport(name, memory.cache.folder, rows, rows, file.nbytes / 1e9)
