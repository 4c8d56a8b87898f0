"""From a recipe to what trains: modules with their weights, edges, data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdkit.recipe.blame import blaming
from kdkit.recipe.errors import Problem, RecipeError
from kdkit.recipe.named import OptimizerSpec
from kdkit.recipe.schema import ModelSpec, Recipe
from kdkit.recipe.sources import source, tuning
from kdkit.recipe.write import document

if TYPE_CHECKING:
    from torch import nn

    from kdkit.data import DataModule
    from kdkit.graph import Edge, Node, Stage
    from kdkit.graph.health import Rule
    from kdkit.graph.membership import Plan

Resolver = Callable[[Recipe], "Path | None"]


@dataclass(frozen=True)
class Experiment:
    """A recipe, built.

    Attributes:
        name: of the recipe.
        recipe: what it was built from.
        nodes: models by name, weights loaded.
        files: where weights came from, of the models whose weights came from a file.
        edges: losses.
        datamodule: a Lightning data module.
        optimizer: `{"name": …, …}`; `None` where every trained model has its own.
        lr: a number or a schedule, likewise.
        trainer: the words given under `trainer`: Lightning's, and `update`, `channels_last`.
        seed: what everything random follows from.
        stages: spans in which only some models, or parts of them, learn.
        balance: how the losses' weights move by themselves.
        cohort: who comes and goes.
        health: the rule that keeps a cohort well.
    """

    name: str
    recipe: Recipe
    nodes: dict[str, Node]
    files: dict[str, Path]
    edges: list[Edge]
    datamodule: DataModule
    optimizer: Mapping[str, Any] | None
    lr: Any
    trainer: dict[str, Any]
    seed: int
    stages: list[Stage]
    balance: str | None = None
    cohort: Plan | None = None
    health: Rule | None = None


def build(recipe: Recipe, *, weights: Resolver | None) -> Experiment:
    """Build models, losses and data; every model is built before any weights are made.

    Args:
        recipe: as `load` gives it.
        weights: gives the weights file of a recipe that trains one model, which it trains where its result is not there
            yet: a teacher's own recipe, or the one that fits it to the data (`tune`). Where it gives `None` the model
            keeps its initial weights. `None` instead of a function: nothing is loaded and nothing fetched.

    Raises:
        RecipeError: what the data, a model or its weights do not allow, with the line that asks for it.
    """
    from kdkit import data
    from kdkit.graph import Span, Stage
    from kdkit.models.classifier import reuse_classifier

    with blaming(recipe, "data"):
        datamodule = data.build(recipe.data.name, seed=recipe.seed, fake=recipe.data.fake, **recipe.data.arguments)
        num_classes = datamodule.num_classes
    modules: dict[str, nn.Module] = {}
    problems: list[Problem] = []
    for name in recipe.models:
        try:
            if recipe.kind(name) != "ema":
                modules[name] = _module(recipe, name, num_classes, fetch=weights is not None)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    files = {n: _weights(recipe, n, modules[n], num_classes, weights) for n in modules if weights is not None}
    for name, spec in recipe.models.items():
        if spec.classifier is not None:
            with blaming(recipe, "models", name, "classifier"):
                reuse_classifier(modules[name], modules[spec.classifier], num_classes, copy=weights is not None)
    return Experiment(
        name=recipe.name,
        recipe=recipe,
        nodes={name: _node(recipe, name, modules.get(name), files.get(name)) for name in recipe.models},
        files={name: path for name, path in files.items() if path is not None},
        edges=[edge.edge() for edge in recipe.losses],
        datamodule=datamodule,
        optimizer=_optimizer(recipe.optimizer),
        lr=recipe.lr,
        trainer=recipe.trainer.model_dump(exclude_unset=True),
        seed=recipe.seed,
        balance=recipe.balance,
        stages=[Stage(stage.name, Span.parse(stage.when), stage.train) for stage in recipe.stages],
        cohort=None if recipe.cohort is None else recipe.cohort.plan,
        health=None if recipe.cohort is None else recipe.cohort.rule,
    )


def _module(recipe: Recipe, name: str, num_classes: int, *, fetch: bool) -> nn.Module:
    """A model with its initial weights, which follow from (seed, name), or with published ones."""
    from kdkit import data, models

    spec = recipe.models[name]
    width = spec.num_classes or num_classes or None
    if spec.num_classes is None and recipe.kind(name) == "frozen" and spec.tune is None:
        if spec.source == "pretrained":
            width = None  # its own; the loss says so where they do not fit
        elif spec.source == "recipe":
            theirs = source(recipe, name).data
            with blaming(recipe, "models", name, "weights"):
                width = data.facts(theirs.name, **theirs.arguments).num_classes
    with blaming(recipe, "models", name), models.seeded(recipe.seed, name):
        made = models.build(
            str(spec.arch),
            num_classes=width,
            pretrained=fetch and spec.source == "pretrained" and spec.tune is None,
            base=recipe.origin.folder,
            allow_custom=recipe.origin.custom,
            **spec.options,
        )
        if recipe.kind(name) == "trained":
            models.check_saved(made)
        return made


def _weights(recipe: Recipe, name: str, module: nn.Module, num_classes: int, resolve: Resolver) -> Path | None:
    """Load a model's weights; the file that they came from, if they came from one."""
    from kdkit import models
    from kdkit.models.start import start_from

    spec = recipe.models[name]
    if spec.tune is not None:
        path = resolve(tuning(recipe, name))
    elif spec.source == "recipe":
        path = resolve(source(recipe, name))
    else:
        path = Path(str(spec.weights)) if spec.source == "file" else None
    if path is not None:
        with blaming(recipe, "models", name, "weights"):
            if recipe.kind(name) == "frozen":
                models.load_weights(module, path, arch=str(spec.arch))
            else:
                options = {"base": recipe.origin.folder, "allow_custom": recipe.origin.custom, **spec.options}
                start_from(module, path, str(spec.arch), spec.num_classes or num_classes or None, **options)
    return path


def _node(recipe: Recipe, name: str, module: nn.Module | None, path: Path | None) -> Node:
    from kdkit.graph import Node, Span

    spec = recipe.models[name]
    mean, std = (spec.mean, spec.std) if spec.mean else _statistics(spec, module, path)
    with blaming(recipe, "models", name):
        return Node(
            module,
            recipe.kind(name),
            of=spec.ema,
            decay=0.999 if spec.decay is None else spec.decay,
            optimizer=_optimizer(spec.optimizer),
            lr=spec.lr,
            mean=None if mean is None else tuple(mean),
            std=None if std is None else tuple(std),
            image_size=spec.image_size,
            input=spec.input,
            when=Span.parse(spec.when),
            cache=False if spec.cache is None else spec.cache.model_dump(exclude_unset=True),
            spec=document(recipe)["models"][name],
        )


def _statistics(spec: ModelSpec, module: nn.Module | None, path: Path | None) -> tuple[Any, Any]:
    """The input normalisation that weights were trained with: told by their file, else by their architecture."""
    from kdkit import models

    if path is not None and (told := models.read_metadata(path)).keys() >= {"mean", "std"}:
        return json.loads(told["mean"]), json.loads(told["std"])
    if module is None or spec.source not in ("pretrained", "file"):
        return None, None
    return models.normalisation(module) or (None, None)


def _optimizer(spec: OptimizerSpec | None) -> dict[str, Any] | None:
    return None if spec is None else {"name": spec.name, **spec.arguments}
