"""Trained models ready to be looked at: each behind the normalisation of its training, its classes told by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdkit import models
from kdkit.data import DataModule
from kdkit.fault import what, where
from kdkit.graph import Node
from kdkit.graph.batch import Adapter, Facts
from kdkit.recipe import Recipe, build
from kdkit.registry import KdkitError
from kdkit.runs.eval_recipe import side_of_file
from kdkit.taps.trace import logits_of

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
FULL, DOUBLE = "32-true", "64-true"


@dataclass(frozen=True)
class Trained:
    """One model.

    Attributes:
        name: what it is called.
        path: its weights, or its name.
        adapter: from the data's images to its input.
        module: the model, in eval mode.
        classes: its classes by name, in its own order; empty where they have no names.
        places: its class for each of the data's.
        precision: in which it looks at them, as a recipe's `trainer` says it.
    """

    name: str
    path: Path | str
    adapter: nn.Module
    module: nn.Module
    classes: Sequence[str]
    places: Tensor
    precision: str = FULL

    def logits(self, x: Any) -> Tensor:
        """Of a batch.

        Raises:
            KdkitError: the model does not run on such images, or has another width than it says.
        """
        try:
            with torch.autocast(x.device.type, AUTOCAST.get(self.precision), enabled=self.precision in AUTOCAST):
                logits = logits_of(self.module(self.adapter(x.double() if self.precision == DOUBLE else x)))
        except KdkitError:
            raise
        except Exception as error:  # anybody's code fails in any way
            line = f"\n  {where(error)}".rstrip()
            raise KdkitError(
                f"{self.name} does not run on images of shape {tuple(x.shape[1:])}: {what(error)}{line}"
            ) from error
        if logits.shape[-1] != (wanted := len(self.classes) or len(self.places)):
            raise KdkitError(f"{self.name} has {logits.shape[-1]} classes, the data {wanted}; name its own data")
        return logits


def trained(
    recipe: Recipe, files: Mapping[str, Path], told: Mapping[str, Mapping[str, Any]], data: DataModule | None = None
) -> tuple[DataModule, dict[str, Trained]]:
    """The models of an evaluation's recipe, on the device, and the data that they look at.

    Args:
        recipe: as `eval_recipe` makes it.
        files: weights by model.
        told: the files' headers.
        data: other data than the recipe's.

    Raises:
        KdkitError: damaged weights, data without labels or of classes that a model does not know.
    """
    experiment = build(recipe, weights=None)
    data = experiment.datamodule if data is None else data
    if not data.num_classes:
        raise KdkitError(UNLABELLED.format(recipe.data.name))
    data.device = device(recipe)
    data.prepare_data()
    facts, found = Facts.of(data), {}
    for name, path in files.items():
        node, classes = behind(experiment.nodes[name], told[name]), told[name].get("classes") or data.class_names
        if data is not experiment.datamodule:  # other data come in their own size, and a model sees its own
            node = replace(node, image_size=node.image_size or side_of_file(path, told[name]))
        module = node.module
        assert module is not None  # only an EMA copy has none, and none is asked for here
        models.load_weights(module, path, arch=str(recipe.models[name].arch))
        at = places(path, classes, data)
        model = Trained(name, path, Adapter(node, facts), module, classes, at, recipe.trainer.precision)
        found[name] = on_device(model, data.device)
    return data, found


UNLABELLED = "data: {} has no labels here; models are evaluated on labelled images"


def device(recipe: Recipe) -> torch.device:
    """Where an evaluation runs: the accelerator, unless the recipe says `cpu`."""
    gpu = None if recipe.trainer.accelerator == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    return gpu or torch.device("cpu")


def on_device(model: Trained, device: torch.device) -> Trained:
    """There, in eval mode."""
    dtype = torch.float64 if model.precision == DOUBLE else None
    adapter, module = (part.eval().to(device, dtype) for part in (model.adapter, model.module))
    return replace(model, adapter=adapter, module=module, places=model.places.to(device))


def behind(node: Node, told: Mapping[str, Any]) -> Node:
    """The node with the normalisation that its weights were trained with."""
    if told.keys() >= {"mean", "std"}:
        return replace(node, mean=tuple(told["mean"]), std=tuple(told["std"]))
    return node


def places(path: Path | str, mine: Sequence[str], data: DataModule) -> Tensor:
    """The model's class for each of the data's, by name; the same numbers where either has no names.

    Raises:
        KdkitError: the data have a class that the model does not know.
    """
    theirs = data.class_names
    if twins := sorted({name for name in theirs if theirs.count(name) > 1}):
        raise KdkitError(f"data: two classes are called {twins[0]!r}; give each a name of its own")
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
