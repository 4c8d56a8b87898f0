"""Other places that a run's numbers and pictures go to, beside metrics.csv: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from kdkit.recipe import Recipe, RecipeError
from kdkit.recipe.write import document
from kdkit.runs.folder import RunFolder, read_json, write_json


class Beside(Logger):
    """A logger that is made with the run's first numbers: by then the run has begun, and its folder is its own.

    It gets what metrics.csv gets, with epochs that are over as steps, and at the end the run's pictures.

    Args:
        kind: its name in a recipe.
        make: makes Lightning's logger.
        show: gives it a picture.
        words: the recipe, which it gets first.
        folder: where its id is kept, so that a run that goes on is the same one there.
    """

    def __init__(
        self,
        kind: str,
        make: Callable[[RunFolder], Any],
        show: Callable[[Any, Path], None],
        words: Mapping[str, Any],
        folder: RunFolder,
    ) -> None:
        super().__init__()
        self.kind, self.make, self.show, self.words, self.folder = kind, make, show, words, folder
        self.inner: Any = None

    @property
    def name(self) -> str:
        """Its name in a recipe."""
        return self.kind

    @property
    def version(self) -> int:
        """There is one."""
        return 0

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Pass them on."""
        if "epoch" in metrics:
            if self.inner is None:
                self._begin()
            told = {key: float(value) for key, value in metrics.items() if key != "epoch"}
            self.inner.log_metrics(told, step=int(metrics["epoch"]) + 1)

    def _begin(self) -> None:
        before = logged_as(self.folder)
        self.inner = self.make(self.folder)
        if self.kind not in before:  # else it has them
            self.inner.log_hyperparams(dict(self.words))
            write_json(self.folder.logged, {**before, self.kind: str(getattr(self.inner, "version", "") or "")})

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """It gets the recipe."""

    @rank_zero_only
    def save(self) -> None:
        """Write what it holds back."""
        if self.inner is not None:
            self.inner.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """A run that failed ends here; of one that did not the pictures are still to come."""
        if self.inner is not None:
            self.inner.save()
            if status != "success":
                self._end(status)

    def close(self, pictures: list[Path]) -> None:
        """Give it the pictures, and end."""
        if self.inner is not None:
            for picture in pictures:
                self.show(self.inner, picture)
            self._end("success")

    def _end(self, status: str) -> None:
        """W&B, too, which else took what the next run in this process logs for a part of this one."""
        self.inner.finalize(status)
        if finish := getattr(getattr(self.inner, "experiment", None), "finish", None):
            finish()


def beside(recipe: Recipe, folder: RunFolder) -> list[Logger]:
    """The logger that a recipe's `trainer.logger` names, beside metrics.csv.

    Raises:
        RecipeError: its package is not installed.
    """
    kind = recipe.trainer.logger
    if kind == "csv":
        return []
    make, show = MAKERS[kind]
    if find_spec(kind) is None:
        message = f"{kind} is not installed; pip install 'kdkit[{kind}]' brings it"
        raise RecipeError([recipe.origin.problem(("trainer", "logger"), message)])
    return [Beside(kind, make, show, document(recipe), folder)]


def logged_as(folder: RunFolder) -> dict[str, str]:
    """The run's ids at whom it logs to, by the logger's name.

    Raises:
        KdkitError: the file is damaged.
    """
    if not folder.logged.is_file():
        return {}
    return dict(read_json(folder.logged, "delete it, and the run is logged as another one from here on"))


def pass_on(trainer: pl.Trainer, figures: Mapping[str, float], epoch: int) -> None:
    """Give numbers that metrics.csv has not, after so many epochs, to whoever logs beside it."""
    for logger in trainer.loggers:
        if isinstance(logger, Beside):
            logger.log_metrics({**figures, "epoch": epoch - 1})


def show_pictures(trainer: pl.Trainer, folder: RunFolder) -> None:
    """Give the run's pictures to whoever logs beside metrics.csv."""
    pictures = [path for path in (folder.curves, folder.beliefs) if path.is_file()]
    for logger in trainer.loggers:
        if isinstance(logger, Beside):
            logger.close(pictures)


def _tensorboard(folder: RunFolder) -> TensorBoardLogger:
    return TensorBoardLogger(folder.path, name=folder.tensorboard.name, version="", default_hp_metric=False)


def _in_tensorboard(logger: Any, picture: Path) -> None:
    from matplotlib.image import imread

    logger.experiment.add_image(picture.stem, imread(picture)[..., :3], dataformats="HWC")


def _wandb(folder: RunFolder) -> WandbLogger:
    words: dict[str, Any] = {"name": folder.path.resolve().name, "project": os.environ.get("WANDB_PROJECT", "kdkit")}
    return WandbLogger(save_dir=folder.path, id=logged_as(folder).get("wandb"), **words)


def _in_wandb(logger: Any, picture: Path) -> None:
    logger.log_image(picture.stem, [str(picture)])


def _mlflow(folder: RunFolder) -> MLFlowLogger:
    there, folder_name = folder.path.resolve(), folder.path.resolve().name
    words: dict[str, Any] = {"tracking_uri": os.environ.get("MLFLOW_TRACKING_URI")}
    if words["tracking_uri"] is None:  # else pictures would lie in the working directory
        words = {"tracking_uri": f"sqlite:///{there / 'mlflow.db'}", "artifact_location": str(there / "mlflow")}
    words |= {"run_name": folder_name, "run_id": logged_as(folder).get("mlflow")}
    return MLFlowLogger(os.environ.get("MLFLOW_EXPERIMENT_NAME", "kdkit"), **words)


def _in_mlflow(logger: Any, picture: Path) -> None:
    logger.experiment.log_artifact(logger.run_id, str(picture))


MAKERS: dict[str, tuple[Callable[[RunFolder], Any], Callable[[Any, Path], None]]] = {
    "tensorboard": (_tensorboard, _in_tensorboard),
    "wandb": (_wandb, _in_wandb),
    "mlflow": (_mlflow, _in_mlflow),
}
