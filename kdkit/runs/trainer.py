"""Lightning's Trainer as a run uses it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from kdkit.console import tell
from kdkit.recipe import Recipe, RecipeError
from kdkit.runs.folder import RunFolder, first_rank
from kdkit.runs.keeping import Keeper, TwoKept
from kdkit.runs.loggers import beside
from kdkit.runs.progress import progress_callback
from kdkit.runs.rows import MetricRows

MACHINE = ("accelerator", "devices", "strategy", "num_nodes", "precision")


def make_trainer(recipe: Recipe, options: Mapping[str, Any], folder: RunFolder, rows: MetricRows) -> pl.Trainer:
    """The Trainer of a run.

    Args:
        recipe: whose errors are told.
        options: Lightning's words.
        folder: of the run; nothing is written yet.
        rows: what is logged.

    Raises:
        RecipeError: this machine has not what the recipe asks for.
    """
    with refusals(recipe, ValueError, TypeError, RuntimeError), quiet():
        trainer = pl.Trainer(
            **{word: value for word, value in options.items() if word != "logger"},
            default_root_dir=folder.path,
            logger=[rows, *beside(recipe, folder)],
            callbacks=[Keeper(folder, rows), LastIsScored(), progress_callback()],
            plugins=[TwoKept(folder)],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    wanted = options.get("precision", trainer.precision)
    if trainer.precision != wanted:  # Lightning takes another one and only warns
        message = f"{wanted} does not run on this machine; say {trainer.precision}"
        raise RecipeError([recipe.origin.problem(("trainer", "precision"), message)])
    return trainer


class LastIsScored(pl.Callback):
    """The last epoch is validated, whether `check_val_every_n_epoch` comes to it or not: its number is the result."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Also of a run that goes on in the middle of it."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See the class."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


@contextmanager
def refusals(recipe: Recipe, *others: type[Exception]) -> Iterator[None]:
    """What Lightning cannot do on this machine or with these words is told at the recipe's `trainer`.

    Args:
        recipe: what is run.
        others: exceptions that mean the same here.

    Raises:
        RecipeError: Lightning's refusal, after the words that it may be about.
    """
    try:
        yield
    except (MisconfigurationException, *others) as error:  # type: ignore[misc]
        text, given = " ".join(str(error).split()), recipe.trainer.model_fields_set
        guilty = [word for word in sorted(given) if word in text] + [word for word in MACHINE if word in given]
        where = ("trainer", *guilty[:1])
        hint = "; leave it out, and the run takes what this machine has" if where[-1] == "accelerator" else ""
        raise RecipeError([recipe.origin.problem(where, f"Lightning refuses it: {text}{hint}")]) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's advice about workers, logging intervals and its own products; what kdkit notes is printed."""
    notes, own = _Notes(logging.INFO), logging.getLogger("kdkit")
    level = own.level
    if first_rank():
        own.addHandler(notes)
        own.setLevel(logging.INFO)
    levels = {name: logging.getLogger(name).level for name in ("pytorch_lightning", "lightning.pytorch")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning")
        warnings.filterwarnings("ignore", message=r".*(does not have many workers|isinstance.treespec).*")
        try:
            yield
        finally:
            for name, before in levels.items():
                logging.getLogger(name).setLevel(before)
            own.removeHandler(notes)
            own.setLevel(level)


class _Notes(logging.Handler):
    """Lines of kdkit's own logger among those of the run."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(record.getMessage(), sys.stdout)
