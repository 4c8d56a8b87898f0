"""Other places that a run's numbers and pictures go to, beside metrics.csv: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from kdkit.recipe import Recipe, RecipeError
from kdkit.recipe.write import document
from kdkit.runs.beside import Beside, logged_as, unlogged
from kdkit.runs.folder import RunFolder


def beside(recipe: Recipe, folder: RunFolder) -> list[Logger]:
    """The logger that a recipe's `trainer.logger` names, beside metrics.csv.

    Raises:
        RecipeError: its package is not installed.
        KdkitError: what the folder says of an earlier part of the run is damaged.
    """
    kind = recipe.trainer.logger
    if kind == "csv":
        return []
    logged_as(folder)
    unlogged(folder)
    make, show = MAKERS[kind]
    if find_spec(kind) is None:
        message = f"{kind} is not installed; pip install 'kdkit[{kind}]' brings it"
        raise RecipeError([recipe.origin.problem(("trainer", "logger"), message)])
    return [Beside(kind, make, show, document(recipe), folder)]


def pass_on(trainer: pl.Trainer, figures: Mapping[str, float], epoch: int) -> None:
    """Give numbers that metrics.csv has not, after so many epochs, to whoever logs beside it."""
    for logger in trainer.loggers:
        if isinstance(logger, Beside):
            logger.log_metrics({**figures, "epoch": epoch - 1})


def show_pictures(trainer: pl.Trainer, folder: RunFolder) -> None:
    """Give the run's pictures to whoever logs beside metrics.csv."""
    for logger in trainer.loggers:
        if isinstance(logger, Beside):
            logger.close(pictures_of(folder))


def pictures_of(folder: RunFolder) -> list[Path]:
    """What its training drew."""
    return [path for path in (folder.curves, folder.beliefs) if path.is_file()]


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
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # else one call to a server that is away
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # takes ten minutes
    words |= {"run_name": folder_name, "run_id": logged_as(folder).get("mlflow")}
    return MLFlowLogger(os.environ.get("MLFLOW_EXPERIMENT_NAME", "kdkit"), **words)


def _in_mlflow(logger: Any, picture: Path) -> None:
    place = logger.experiment.get_run(logger.run_id).info.artifact_uri
    if os.environ.get("MLFLOW_TRACKING_URI") is None and not Path(place).parents[2].is_dir():
        raise FileNotFoundError(f"the run's folder was moved, and mlflow.db says that its pictures lie in {place}")
    logger.experiment.log_artifact(logger.run_id, str(picture))


MAKERS: dict[str, tuple[Callable[[RunFolder], Any], Callable[[Any, Path], None]]] = {
    "tensorboard": (_tensorboard, _in_tensorboard),
    "wandb": (_wandb, _in_wandb),
    "mlflow": (_mlflow, _in_mlflow),
}
