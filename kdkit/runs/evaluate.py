"""How good the models of a finished run are, on its own data or on other data of the same classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from torch import Tensor, nn

from kdkit import models
from kdkit.console import table
from kdkit.data import DataModule
from kdkit.fault import what, where
from kdkit.graph import Node
from kdkit.graph.batch import Adapter, Facts
from kdkit.graph.labels import check_labels
from kdkit.recipe import Recipe, build
from kdkit.registry import KdkitError
from kdkit.runs.eval_recipe import eval_recipe
from kdkit.runs.folder import RunFolder
from kdkit.runs.told import read
from kdkit.taps.trace import logits_of
from kdkit.train.scores import Scores

ENDING = ".safetensors"


def evaluate(run: Path | str, overrides: Sequence[str] = (), *, split: str = "test") -> dict[str, dict[str, float]]:
    """Top-1, top-5 (above five classes) and mean negative log-likelihood of every model that a run trained.

    Each model is rebuilt from the run's recipe and its own weights file, and sees images normalised as in its training.

    Args:
        run: a run's folder, or one of its weights files, which is enough by itself where kdkit wrote it.
        overrides: `key=value` changes to the recipe's data: `data.root=/data`, a folder of class folders, is scored
            whole; and `trainer.accelerator`.
        split: `test`, or `train`: the training images, without augmentation.

    Returns:
        `{"student": {"top1": 0.71, "top5": 0.92, "nll": 1.05}}`, accuracies in [0, 1].

    Raises:
        KdkitError: no finished run there, damaged weights, data of other classes than the model's or without labels.
    """
    if split not in ("train", "test"):
        raise KdkitError(f"split must be 'train' or 'test', got {split!r}")
    files = weights_files(Path(run))
    told = {name: read(path) for name, path in files.items()}
    return _scores(eval_recipe(files, told, overrides, split), files, told, split)


def results_table(results: Mapping[str, Mapping[str, float]], title: str | None = None) -> Group:
    """The metrics of each model as a table: accuracies in percent."""
    names = list(dict.fromkeys(name for metrics in results.values() for name in metrics))
    cells = [
        (node, *(f"{metrics[n] * (100 if n.startswith('top') else 1):.2f}" if n in metrics else "" for n in names))
        for node, metrics in results.items()
    ]
    heads = [f">{n.replace('top', 'top-')} %" if n.startswith("top") else f">{n}" for n in names]
    return table(("model", *heads), cells, title)


def weights_files(run: Path) -> dict[str, Path]:
    """Weights by model of a run's folder, or of one of its files.

    Raises:
        KdkitError: nothing there, or no weights yet.
    """
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


def predictions(run: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """What every model that a run trained says of each test image: its class, and whether that is right.

    Raises:
        KdkitError: as `evaluate`.
    """
    files = weights_files(run)
    told = {name: read(path) for name, path in files.items()}
    said: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in files}
    for name, logits, labels in _seen(eval_recipe(files, told, [], "test"), files, told, "test"):
        said[name].append(((best := logits.argmax(-1)).cpu(), (best == labels).cpu()))
    return {name: (torch.cat([c for c, _ in parts]), torch.cat([r for _, r in parts])) for name, parts in said.items()}


def _scores(
    recipe: Recipe, files: Mapping[str, Path], told: Mapping[str, Mapping[str, Any]], split: str
) -> dict[str, dict[str, float]]:
    scores = Scores(list(files), once=[])
    for name, logits, labels in _seen(recipe, files, told, split):
        scores.update(name, logits, labels)
    found: dict[str, dict[str, float]] = {name: {} for name in files}
    for key, value in scores.compute().items():
        name, metric = key.split("/")
        found[name][metric] = float(value)
    return found


@torch.inference_mode()
def _seen(
    recipe: Recipe, files: Mapping[str, Path], told: Mapping[str, Mapping[str, Any]], split: str
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every model's logits on every batch, and the labels as that model numbers them."""
    experiment = build(recipe, weights=None)
    data = experiment.datamodule
    unlabelled = f"data: {recipe.data.name} has no labels here; models are evaluated on labelled images"
    if not data.num_classes:
        raise KdkitError(unlabelled)
    gpu = None if recipe.trainer.accelerator == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    data.device = gpu or torch.device("cpu")
    facts = Facts.of(data)
    nets = {
        name: _net(experiment.nodes[name], path, str(recipe.models[name].arch), facts, told[name]).to(data.device)
        for name, path in files.items()
    }
    data.prepare_data()
    data.setup("fit" if split == "train" else "test")
    loader = data.train_dataloader() if split == "train" else data.test_dataloader()
    if not loader:
        raise KdkitError(
            f"data: {recipe.data.name} has no test images here (holdout: 0); give others with --data FOLDER, "
            "or score the training images with --split train"
        )
    classes = {name: told[name].get("classes") or data.class_names for name in files}
    places = {name: _places(path, classes[name], data).to(data.device) for name, path in files.items()}
    for x, labels, *_ in loader:
        check_labels(labels, data.num_classes)
        if (labels < 0).any():
            raise KdkitError(unlabelled)
        for name, net in nets.items():
            logits = _logits(name, net, x)
            if logits.shape[-1] != (wanted := len(classes[name]) or data.num_classes):
                raise KdkitError(f"{name} has {logits.shape[-1]} classes, the data {wanted}; name its own data")
            yield name, logits, places[name][labels]


def _net(node: Node, path: Path, arch: str, facts: Facts, told: Mapping[str, Any]) -> nn.Module:
    """A model with its weights, behind the normalisation that it was trained with."""
    module = node.module
    assert module is not None  # only an EMA copy has none, and none is asked for here
    models.load_weights(module, path, arch=arch)
    if told.keys() >= {"mean", "std"}:
        node = replace(node, mean=tuple(told["mean"]), std=tuple(told["std"]))
    return nn.Sequential(Adapter(node, facts), module).eval()


def _logits(name: str, net: nn.Module, x: Any) -> Tensor:
    try:
        return logits_of(net(x))
    except KdkitError:
        raise
    except Exception as error:  # anybody's code fails in any way
        line = f"\n  {where(error)}".rstrip()
        raise KdkitError(f"{name} does not run on images of shape {tuple(x.shape[1:])}: {what(error)}{line}") from error


def _places(path: Path, mine: Sequence[str], data: DataModule) -> Tensor:
    """The model's class for each of the data's, by name; the same numbers where either has no names.

    Raises:
        KdkitError: the data have a class that the model does not know.
    """
    theirs = data.class_names
    if not mine or not theirs:
        return torch.arange(data.num_classes)
    if strange := [name for name in theirs if name not in mine]:
        unseen = [name for name in mine if name not in theirs]
        raise KdkitError(
            f"{path} was trained on other classes: it does not know {_listed(strange)}"
            + (f", and knows {_listed(unseen)}, which these data have not" if unseen else "")
            + "; name the classes as in training, or leave out what it does not know"
        )
    return torch.tensor([mine.index(name) for name in theirs])


def _listed(names: Sequence[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
