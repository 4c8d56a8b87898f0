"""A recipe tried on noise: whatever would fail in training fails here, before data, teachers and hours are spent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdkit.data import DataFacts, DataModule
from kdkit.graph.alone import check_alone, ends_alone
from kdkit.graph.batch import Batch, Facts
from kdkit.recipe import Experiment, Recipe, RecipeError, blaming, build
from kdkit.runs.distilling import make_distiller
from kdkit.runs.dry_step import dry_steps, measured
from kdkit.runs.teacher import teacher_folder
from kdkit.runs.trained import device
from kdkit.train.caching import CachePlan
from kdkit.train.distiller import Distiller
from kdkit.train.onednn import no_wide_strides
from kdkit.train.optim import rate
from kdkit.untouched import untouched

SAMPLES = 4
STAND_IN = 65_536  # a larger training set is bound with this many samples, and what grows with them is scaled up


@dataclass(frozen=True)
class DryRun:
    """A recipe that was tried.

    Attributes:
        experiment: built.
        distiller: its graph bound to noise.
        batch: the noise.
        facts: what the graph was told of the data.
        stumbles: losses whose value was no number.
    """

    experiment: Experiment
    distiller: Distiller
    batch: Batch
    facts: Facts
    stumbles: tuple[str, ...]


def dry_run(recipe: Recipe, *, values: bool = True) -> DryRun:
    """Bind a recipe's graph to fake data of the right shape, and take a step of each phase.

    No image is read, nothing is fetched, trained or written: a model whose weights are not there yet keeps its initial
    ones.

    Args:
        recipe: as `kdkit.recipe.load` gives it.
        values: whether losses are looked for whose value is no number, which training may yet get over.

    Raises:
        KdkitError: whatever does not fit.
    """
    published = any(spec.source == "pretrained" and spec.tune is None for spec in recipe.models.values())
    experiment = build(recipe, weights=None if published else _finished)
    data, facts = experiment.datamodule, experiment.datamodule.facts
    if not facts.num_samples:
        raise RecipeError([recipe.origin.problem(("data",), "holds no images to train on")])
    samples = max(SAMPLES, *(edge.min_batch for edge in experiment.edges))
    batch, stand_in = _fake_batch(data, min(samples, data.batch_size)), _stand_in(facts)
    with blaming(recipe):
        distiller = _bound(recipe, experiment, batch, stand_in)
        if ends_alone(facts.num_samples, data.batch_size, data.drop_last, recipe.trainer.limit_train_batches):
            check_alone(distiller.graph, batch)
        for name in distiller.graph.whole:
            CachePlan.of(distiller.graph, name, data).check_room()
        with untouched(distiller.graph):
            stumbles = tuple(dry_steps(distiller.graph, batch)) if values or measured(distiller.graph) else ()
    if data.drop_last and facts.num_samples < data.batch_size:
        told = (
            f"must be at most the {facts.num_samples} samples there are where drop_last is true, got {data.batch_size}"
        )
        raise RecipeError([recipe.origin.problem(("data", "batch_size"), told)])
    return DryRun(experiment, distiller, batch, stand_in, stumbles)


def _fake_batch(data: DataModule, size: int) -> Batch:
    """Noise, normalised as the data are; a batch size of 1 stays one, for BatchNorm's sake."""
    ids, facts = torch.arange(size), data.facts
    images: Any = torch.randn(size, *facts.input_shape, generator=torch.Generator().manual_seed(0))
    if getattr(data, "two_views", False):
        images = {"view1": images, "view2": images}
    return Batch(images, ids % facts.num_classes if facts.num_classes else torch.full_like(ids, -1), ids)


def _stand_in(facts: DataFacts) -> Facts:
    """What the graph is told of the data."""
    samples = min(facts.num_samples, STAND_IN)
    labels = torch.arange(samples) % facts.num_classes if facts.num_classes else None
    return Facts(facts.num_classes, samples, labels, facts.mean, facts.std)


def _bound(recipe: Recipe, experiment: Experiment, batch: Batch, facts: Facts) -> Distiller:
    """The graph as training would bind it, optimisers and learning rates included."""
    distiller = make_distiller(experiment)
    epochs = recipe.trainer.max_epochs
    learning = {name: distiller.graph.model(name) for name in distiller.graph.trained}
    with no_wide_strides(learning, recipe.trainer.precision, device(recipe)):
        distiller.graph.bind(batch, facts, epochs)
    specs = {name: distiller.graph.nodes[name].lr for name in distiller.graph.trained}
    distiller.rates = {name: rate(name, lr, distiller.lr, epochs) for name, lr in specs.items()}
    distiller.configure_optimizers()
    return distiller


def _finished(maker: Recipe) -> Path | None:
    """The weights that a recipe makes, where they are there."""
    folder = teacher_folder(maker)
    return folder.weights(maker.trained[0]) if folder.complete else None
