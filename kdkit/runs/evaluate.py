"""How good the models of a finished run are, on its own data or on other data of the same classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from torch import nn

from kdkit import models
from kdkit.console import table
from kdkit.graph import Node
from kdkit.graph.batch import Adapter, Facts
from kdkit.recipe import Recipe, build, loads
from kdkit.recipe.syntax import read
from kdkit.recipe.write import dump
from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder
from kdkit.train.scores import Scores

ENDING = ".safetensors"
# What a recipe must say although nothing is trained here.
RUNNING: dict[str, Any] = {"losses": ["ce"], "optimizer": {"name": "sgd"}, "lr": 0.1, "trainer": {"max_epochs": 1}}
BUILDING = ("arch", "options", "num_classes", "image_size", "input")  # words that a forward pass follows from


def evaluate(run: Path | str, overrides: Sequence[str] = (), *, split: str = "test") -> dict[str, dict[str, float]]:
    """Top-1, top-5 (above five classes) and mean negative log-likelihood of every model that a run trained.

    Each model is rebuilt from the run's recipe and its own weights file, and sees images normalised as in its training.

    Args:
        run: a run's folder, or one of its weights files; a file that kdkit wrote is enough by itself when `overrides`
            name the data (`data.name=cifar100`).
        overrides: `key=value` changes to the recipe's data: `data.root=/data`.
        split: `test`, or `train`: the training images, without augmentation.

    Returns:
        `{"student": {"top1": 0.71, "top5": 0.92, "nll": 1.05}}`, accuracies in [0, 1].

    Raises:
        KdkitError: no finished run there, damaged weights, other classes than the data's, or data without labels.
    """
    if split not in ("train", "test"):
        raise KdkitError(f"split must be 'train' or 'test', got {split!r}")
    files = _weights_files(Path(run))
    if split == "train":
        overrides = [*overrides, "data.augment=false", "data.drop_last=false"]
    return _scores(_recipe(files, overrides), files, split)


def results_table(results: Mapping[str, Mapping[str, float]], title: str | None = None) -> Group:
    """The metrics of each model as a table: accuracies in percent."""
    names = list(dict.fromkeys(name for metrics in results.values() for name in metrics))
    cells = [
        (node, *(f"{metrics[n] * (100 if n.startswith('top') else 1):.2f}" if n in metrics else "" for n in names))
        for node, metrics in results.items()
    ]
    heads = [f">{n.replace('top', 'top-')} %" if n.startswith("top") else f">{n}" for n in names]
    return table(("model", *heads), cells, title)


def _weights_files(run: Path) -> dict[str, Path]:
    if run.is_file():
        return {run.name.removesuffix(ENDING): run}
    if not run.is_dir():
        raise KdkitError(f"{run}: no such run; give the folder that `kdkit fit` wrote, or a weights file")
    files = {path.name.removesuffix(ENDING): path for path in sorted(run.glob(f"*{ENDING}"))}
    if not files:
        unfinished = RunFolder(run).checkpoint.exists()
        raise KdkitError(
            f"{run} holds no weights: "
            + (
                "the run is not finished; `kdkit fit … --resume` continues it"
                if unfinished
                else "it is not a run's folder"
            )
        )
    return files


def _recipe(files: Mapping[str, Path], overrides: Sequence[str]) -> Recipe:
    """A recipe of the trained models and the data alone, so that neither the teacher nor its weights need be there."""
    told = {name: models.read_metadata(path) for name, path in files.items()}
    folder = next(iter(files.values())).parent
    path = RunFolder(folder).recipe
    whole: dict[str, Any] = read(path).plain if path.is_file() else {}
    specs = whole.get("models", {})
    nodes = {}
    for name, facts in told.items():
        spec = specs.get(name, {"arch": facts.get("arch")})
        spec = specs[spec["ema"]] if "ema" in spec else spec
        if not spec.get("arch"):
            raise KdkitError(f"{files[name]} does not say what model it is of; give a run's folder")
        width = {"num_classes": int(facts["num_classes"])} if "num_classes" in facts else {}
        nodes[name] = {**width, **{word: spec[word] for word in BUILDING if word in spec}, "frozen": False}
    text = dump({**RUNNING, "models": nodes, "data": whole.get("data", {})})
    return loads(text, name=str(path if whole else files[name]), folder=folder, overrides=overrides)


def _scores(recipe: Recipe, files: Mapping[str, Path], split: str) -> dict[str, dict[str, float]]:
    experiment = build(recipe, weights=None)
    data = experiment.datamodule
    if not data.num_classes:
        raise KdkitError(f"data: {recipe.data.name} has no labels here; models are evaluated on labelled images")
    gpu = None if recipe.trainer.accelerator == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    data.device = gpu or torch.device("cpu")
    nets = {name: _net(experiment.nodes[name], path, Facts.of(data)).to(data.device) for name, path in files.items()}
    data.prepare_data()
    data.setup("fit" if split == "train" else "test")
    scores = Scores(list(nets), once=[])
    with torch.inference_mode():
        for x, labels, *_ in data.train_dataloader() if split == "train" else data.test_dataloader():
            for name, net in nets.items():
                logits = net(x)
                if logits.shape[-1] != data.num_classes:
                    raise KdkitError(
                        f"{name} has {logits.shape[-1]} classes, the data {data.num_classes}; name its own data"
                    )
                scores.update(name, logits, labels)
    found: dict[str, dict[str, float]] = {name: {} for name in nets}
    for key, value in scores.compute().items():
        name, metric = key.split("/")
        found[name][metric] = float(value)
    return found


def _net(node: Node, path: Path, facts: Facts) -> nn.Module:
    """A model with its weights, behind the normalisation that it was trained with."""
    module = node.module
    assert module is not None  # only an EMA copy has none, and none is asked for here
    models.load_weights(module, path)
    told = models.read_metadata(path)
    if told.keys() >= {"mean", "std"}:
        node = replace(node, mean=tuple(json.loads(told["mean"])), std=tuple(json.loads(told["std"])))
    return nn.Sequential(Adapter(node, facts), module).eval()
