"""How good the models of a finished run are, on its own data or on other data of the same classes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from torch import Tensor
from torchmetrics.classification import MulticlassStatScores

from kdkit.console import table
from kdkit.data import DATA, DataModule
from kdkit.graph.labels import check_labels
from kdkit.metrics import fit_temperature
from kdkit.metrics.quality import CalibrationError, quality
from kdkit.recipe import Recipe
from kdkit.recipe.write import READING
from kdkit.registry import KdkitError, constructor
from kdkit.runs.eval_recipe import eval_recipe
from kdkit.runs.folder import RunFolder, write_json
from kdkit.runs.papers import read_recipe
from kdkit.runs.told import read
from kdkit.runs.trained import FULL, UNLABELLED, Trained, trained
from kdkit.storage import one_at_a_time

ENDING = ".safetensors"
PERCENT = ("top", "ece")
DECIMALS = {"brier": 3, "temperature": 3}


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        figures: by model: `top1`, `top5` (above five classes), `nll`, `brier`, `ece` (15 bins of equal width),
            `ece_adaptive` (of equal counts); where `val_split` held images out of training also `temperature`, fitted
            on those, and `ece_scaled`, the error at it.
        by_class: by model, top-1 of each class that the data have.
    """

    figures: dict[str, dict[str, float]]
    by_class: dict[str, dict[str, float]]

    @property
    def whole(self) -> dict[str, Any]:
        """All of it by model, as in `eval.json`."""
        return {name: {**self.figures[name], "by_class": self.by_class[name]} for name in self.figures}


def evaluate(run: Path | str, overrides: Sequence[str] = (), *, split: str = "test") -> dict[str, dict[str, float]]:
    """`score`, without the classes: `{"student": {"top1": 0.71, "top5": 0.92, "nll": 1.05, …}}`."""
    return score(run, overrides, split=split).figures


def score(run: Path | str, overrides: Sequence[str] = (), *, split: str = "test") -> Evaluation:
    """How good every model that a run trained is; accuracies and calibration errors in [0, 1].

    Each model is rebuilt from the run's recipe and its own weights file, and sees images normalised as in its training.

    Args:
        run: a run's folder, or one of its weights files, which is enough by itself where kdkit wrote it.
        overrides: `key=value` changes to the recipe's data: `data.root=/data`, a folder of class folders, is scored
            whole; and `trainer.accelerator`.
        split: `test`, or `train`: the training images, without augmentation.

    Raises:
        KdkitError: no finished run there, damaged weights, data of other classes than the model's or without labels.
    """
    if split not in ("train", "test"):
        raise KdkitError(f"split must be 'train' or 'test', got {split!r}")
    files = weights_files(Path(run))
    told = {name: read(path) for name, path in files.items()}
    recipe = eval_recipe(files, told, overrides, split)
    data, nets = trained(recipe, files, told)
    temperatures = _temperatures(data, nets) if _held_out(data, recipe, overrides) else {}
    metrics: dict[str, Any] = {}
    scaled: dict[str, Any] = {}
    counts: dict[str, Any] = {}
    for name, logits, labels in seen(data, nets, split, recipe):
        if name not in metrics:
            classes = logits.shape[-1]
            metrics[name] = quality(classes).to(logits.device)
            scaled[name] = CalibrationError(classes, validate_args=False).to(logits.device)
            counts[name] = MulticlassStatScores(classes, average=None, validate_args=False).to(logits.device)
        metrics[name].update(logits.float(), labels)
        counts[name].update(logits, labels)
        if name in temperatures:
            scaled[name].update(logits.float() / temperatures[name], labels)
    figures = {name: in_order(metrics[name].compute()) for name in nets}
    for name, temperature in temperatures.items():
        figures[name] |= {"temperature": temperature, "ece_scaled": float(scaled[name].compute())}
    return Evaluation(figures, {name: _by_class(nets[name], counts[name].compute(), data) for name in nets})


def write_evaluation(path: Path, found: Evaluation, split: str, overrides: Sequence[str], of: str = "") -> None:
    """Put it into a JSON file beside what was scored there before, under what was looked at.

    Args:
        path: the file.
        found: what goes into it.
        split: that was scored.
        overrides: `key=value` words about the data.
        of: whose it is, in a file that may be of several runs.

    Raises:
        KdkitError: it cannot be written.
    """
    key = " ".join([split, *(word for word in overrides if not word.startswith("trainer.")), *([of] if of else [])])
    keep(path, key, found.whole)


def keep(path: Path, key: str, found: Any) -> None:
    """Put one entry into a JSON file of several.

    Raises:
        KdkitError: it cannot be written.
    """
    try:
        with one_at_a_time(path):
            before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            write_json(path, {**before, key: found})
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise KdkitError(f"{path} could not be written ({error}); give another place with --out FILE") from None


def results_table(results: Mapping[str, Mapping[str, float]], title: str | None = None) -> Group:
    """The metrics of each model as a table: accuracies and calibration errors in percent."""
    names = list(dict.fromkeys(name for metrics in results.values() for name in metrics))
    cells = [
        (node, *(_cell(n, metrics[n]) if n in metrics else "" for n in names)) for node, metrics in results.items()
    ]
    heads = [f">{n.replace('top', 'top-').replace('_', ' ')}{' %' * n.startswith(PERCENT)}" for n in names]
    return table(("model", *heads), cells, title)


def _cell(name: str, value: float) -> str:
    return f"{value * (100 if name.startswith(PERCENT) else 1):.{DECIMALS.get(name, 2)}f}"


def classes_table(found: Mapping[str, Mapping[str, float]], shown: int | None = 10) -> Group:
    """Top-1 of each class for each model, the hardest for the first model above; the rest of many is left out."""
    first = next(iter(found.values()))
    order = sorted(first, key=lambda name: (first[name], name))[:shown]
    rows = [
        (name, *(f"{100 * classes[name]:.1f}" if name in classes else "" for classes in found.values()))
        for name in order
    ]
    title = (
        "top-1 % by class"
        if len(order) == len(first)
        else f"top-1 % of the {len(order)} hardest of {len(first)} classes"
    )
    return table(("class", *(f">{name}" for name in found)), rows, title)


def weights_files(run: Path) -> dict[str, Path]:
    """Weights by model of a run's folder, or of one of its files.

    Raises:
        KdkitError: nothing there, or no weights yet.
    """
    if run.is_file():
        return {plain_word(run.stem): run}
    if not run.is_dir():
        raise KdkitError(f"{run}: no such run; give the folder that `kdkit fit` wrote, or a weights file")
    files = {plain_word(path.stem): path for path in sorted(run.glob(f"*{ENDING}"))}
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


def precision_of(run: Path) -> str:
    """In which a run was trained and validated."""
    path = RunFolder(run).recipe
    trainer = read_recipe(path).plain.get("trainer", {}) if path.is_file() else {}
    return str(trainer.get("precision", FULL))


def plain_word(text: str) -> str:
    """A file's name as a model's: `my-net 2` is `my_net_2`."""
    word = re.sub(r"\W", "_", text)
    return word if word.isidentifier() and not iskeyword(word) else f"net_{word}"


def predictions(run: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """What every model that a run trained says of each test image: its class, and whether that is right.

    In the precision of the run, so that as many are right as it found after its last epoch.

    Raises:
        KdkitError: as `evaluate`.
    """
    files = weights_files(run)
    told = {name: read(path) for name, path in files.items()}
    recipe = eval_recipe(files, told, [], "test")
    own = recipe.trainer.model_copy(update={"precision": precision_of(run)})
    recipe = recipe.model_copy(update={"trainer": own})
    said: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in files}
    for name, logits, labels in seen(*trained(recipe, files, told), "test", recipe):
        said[name].append(((best := logits.argmax(-1)).cpu(), (best == labels).cpu()))
    return {name: (torch.cat([c for c, _ in parts]), torch.cat([r for _, r in parts])) for name, parts in said.items()}


@torch.inference_mode()
def seen(
    data: DataModule, nets: Mapping[str, Trained], split: str, recipe: Recipe
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every model's logits on every batch, and the labels as that model numbers them."""
    for x, labels in batches(data, split, recipe.data.name):
        for name, net in nets.items():
            yield name, net.logits(x), net.places[labels]


def batches(data: DataModule, split: str, name: str) -> Iterator[tuple[Any, Tensor]]:
    """Images and labels of `test`, `train`, or of what was held out (`val`), on the device.

    Raises:
        KdkitError: there are none.
    """
    data.setup({"train": "fit", "val": "validate"}.get(split, "test"))
    loader = {"train": data.train_dataloader, "val": data.val_dataloader}.get(split, data.test_dataloader)()
    if not loader:
        raise KdkitError(
            f"data: {name} has no test images here (holdout: 0); give others with --data FOLDER, "
            "or score the training images with --split train"
        )
    for x, labels, *_ in loader:
        check_labels(labels, data.num_classes)
        if (labels < 0).any():
            raise KdkitError(UNLABELLED.format(name))
        yield x, labels


def _held_out(data: DataModule, recipe: Recipe, overrides: Sequence[str]) -> bool:
    """Whether the data hold images that training never saw and that are not those of the test."""
    changed = {word.split("=", 1)[0].removeprefix("data.") for word in overrides if word.startswith("data")}
    other = "root" in changed and "holdout" in constructor(DATA[recipe.data.name])
    return data.selects and not other and changed <= set(READING)


@torch.inference_mode()
def _temperatures(data: DataModule, nets: Mapping[str, Trained]) -> dict[str, float]:
    said: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in nets}
    for x, labels in batches(data, "val", "val_split"):
        for name, net in nets.items():
            said[name].append((net.logits(x).float().cpu(), net.places[labels].cpu()))
    return {name: fit_temperature(*map(torch.cat, zip(*parts, strict=True))) for name, parts in said.items()}


def in_order(found: Mapping[str, Tensor]) -> dict[str, float]:
    """Accuracies first."""
    return {
        name: float(found[name]) for name in ("top1", "top5", "nll", "brier", "ece", "ece_adaptive") if name in found
    }


def _by_class(net: Trained, counts: Tensor, data: DataModule) -> dict[str, float]:
    """Of torchmetrics' (tp, fp, tn, fn, support) by class."""
    names = data.class_names or [str(i) for i in range(data.num_classes)]
    rows = counts.tolist()
    return {
        name: rows[place][0] / rows[place][4]
        for name, place in zip(names, net.places.tolist(), strict=True)
        if rows[place][4]
    }
