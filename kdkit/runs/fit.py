"""Fitting a recipe: a folder with weights, metrics and their provenance comes out."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from kdkit import models
from kdkit.recipe import Experiment, Recipe, build, content_key, fingerprint, resolved
from kdkit.registry import KdkitError
from kdkit.runs.curves import draw_curves
from kdkit.runs.folder import RunFolder, write_json, write_text
from kdkit.runs.progress import progress_callback
from kdkit.runs.provenance import provenance
from kdkit.runs.rows import MetricRows
from kdkit.runs.teacher import first_rank, trained_weights
from kdkit.train.distiller import Distiller


@dataclass(frozen=True)
class Result:
    """What a finished run came to.

    Attributes:
        folder: where everything lies.
        last: metrics of each node after the last epoch: `{"student": {"top1": 0.71, …}}`.
        best: likewise at the epoch of the best top-1, to be named so; nothing was selected by it.
    """

    folder: RunFolder
    last: dict[str, dict[str, float]]
    best: dict[str, dict[str, float]]


def fit(recipe: Recipe, *, out: Path | None = None, resume: bool = False, overwrite: bool = False) -> Result:
    """Run a recipe to its end.

    Args:
        recipe: as `kdkit.recipe.load` gives it.
        out: the run's folder; left out, `runs/<recipe>-seed<seed>`.
        resume: go on from the folder's last checkpoint; a finished run is only read.
        overwrite: delete what the folder holds.

    Raises:
        KdkitError: the recipe, the data or the folder do not allow it, or a loss became non-finite.
    """
    folder = RunFolder(out or Path("runs") / f"{recipe.name}-seed{recipe.seed}")
    if resume and folder.provenance.exists():
        _check_same(recipe, folder)
    if resume and folder.complete:
        return read_result(folder)
    experiment = build(recipe, weights=lambda inner: trained_weights(inner, fit))
    if first_rank():  # the others are started in the middle of the first one's fit
        folder.prepare(resume=resume, overwrite=overwrite)
        write_text(folder.recipe, resolved(recipe))
        keys = {"seed": recipe.seed, "fingerprint": fingerprint(recipe), "content": content_key(recipe)}
        write_json(folder.provenance, {**provenance(), **keys})
    checkpoint = folder.checkpoint if resume and folder.checkpoint.exists() else None
    began = time.perf_counter()
    rows = MetricRows(folder.metrics)
    distiller, trainer = assemble(experiment, folder, rows)
    with _quiet():
        if checkpoint is not None:
            rows.cut(_epoch_of(checkpoint))
        trainer.fit(distiller, datamodule=experiment.datamodule, ckpt_path=checkpoint, weights_only=False)
    if trainer.is_global_zero:
        for name in distiller.graph.models:
            models.save_weights(distiller.graph.model(name), folder.weights(name), _metadata(experiment, name))
        draw_curves(rows.rows, folder.curves, experiment.name)
        minutes = (time.perf_counter() - began) / 60
        write_json(folder.result, {**_figures(rows), "epochs": len(rows.rows), "minutes": minutes})
    trainer.strategy.barrier()
    return read_result(folder)


def _check_same(recipe: Recipe, folder: RunFolder) -> None:
    """A run goes on with the recipe that it began with."""
    began = json.loads(folder.provenance.read_text(encoding="utf-8"))["content"]
    if began != content_key(recipe):
        raise KdkitError(
            f"{folder.path} was begun with another recipe ({folder.recipe} tells which); give --resume the same words, "
            "or start anew with --overwrite or another --out"
        )


def assemble(experiment: Experiment, folder: RunFolder, rows: MetricRows) -> tuple[Distiller, pl.Trainer]:
    """The Lightning module and the Trainer of an experiment."""
    options = dict(experiment.trainer)
    distiller = Distiller(
        experiment.nodes,
        experiment.edges,
        optimizer=experiment.optimizer,
        lr=experiment.lr,
        seed=experiment.seed,
        update=options.pop("update", "simultaneous"),
        channels_last=options.pop("channels_last", True),
    )
    keep = ModelCheckpoint(
        folder.checkpoint.parent, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    with _quiet():
        trainer = pl.Trainer(
            **options,
            default_root_dir=folder.path,
            logger=rows,
            callbacks=[keep, progress_callback()],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    return distiller, trainer


def read_result(folder: RunFolder) -> Result:
    """The figures of a finished run."""
    figures = json.loads(folder.result.read_text(encoding="utf-8"))
    return Result(folder, figures["last"], figures["best"])


def _figures(rows: MetricRows) -> dict[str, Any]:
    """Last and best by node, out of `val/<node>/<metric>`."""
    last: dict[str, dict[str, float]] = {}
    best: dict[str, dict[str, float]] = {}
    for epoch, row in sorted(rows.rows.items()):
        nodes: dict[str, dict[str, float]] = {}
        for key, value in row.items():
            if key.startswith("val/"):
                _, node, metric = key.split("/")
                nodes.setdefault(node, {})[metric] = value
        for node, metrics in nodes.items():
            last[node] = metrics
            if node not in best or metrics["top1"] > best[node]["top1"]:
                best[node] = {**metrics, "epoch": epoch + 1}
    return {"last": last, "best": best}


def _metadata(experiment: Experiment, name: str) -> dict[str, str]:
    """What a weights file says of itself: how to build the net, and how its input is normalised."""
    data, node = experiment.datamodule, experiment.nodes[name]
    spec = node.spec or {}
    return {
        "recipe": experiment.name,
        "node": name,
        "seed": str(experiment.seed),
        "arch": str(spec.get("arch", "")),
        "num_classes": str(data.num_classes),
        "mean": json.dumps(list(node.mean or data.mean)),
        "std": json.dumps(list(node.std or data.std)),
    }


def _epoch_of(checkpoint: Path) -> int:
    import torch

    return int(torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)["epoch"]) + 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice about workers, logging intervals and its own products."""
    import logging

    levels = {name: logging.getLogger(name).level for name in ("pytorch_lightning", "lightning.pytorch")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning")
        warnings.filterwarnings("ignore", message=r".*(does not have many workers|isinstance.treespec).*")
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
