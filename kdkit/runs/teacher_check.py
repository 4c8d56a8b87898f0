"""Whether frozen models know what they are to teach: once, before a run's first step.

Weights in a wrong normalisation, or for classes in another order, load without a word and teach nonsense.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributions import Binomial

from kdkit import draws
from kdkit.console import tell
from kdkit.data import DataModule
from kdkit.data.order import Order
from kdkit.graph.batch import Batch
from kdkit.recipe import Recipe, RecipeError, source, tuning
from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder, first_rank
from kdkit.runs.result import read_result
from kdkit.runs.teacher import saw_held_out, teacher_folder
from kdkit.runs.told import read
from kdkit.train.converted import converted

log = logging.getLogger(__name__)

MOST, FEWEST = 512, 50
"""Images that are looked at, and how many it takes to say anything."""

DOUBT = 0.01
"""So probable may a teacher's hits be by chance, at most."""

POINTS, ERRORS, PART = 0.05, 3.0, 0.5
"""So far below its own run a teacher is told of: points, and standard errors on top; and refused: a part of it."""


@dataclass(frozen=True)
class Scored:
    """How a teacher did.

    Attributes:
        images: how many it saw.
        right: how many it got right.
        chance: the share that it would get right if what it says had nothing to do with what is there: Σ_c P(it says c)
            · P(it is c), the agreement by chance in Cohen's κ (1960).
        most: the largest share of images for which it says one and the same class.
    """

    images: int
    right: int
    chance: float
    most: float

    @property
    def top1(self) -> float:
        """The share that it got right."""
        return self.right / self.images

    @property
    def by_chance(self) -> bool:
        """Whether chance gets as many right with a probability that leaves doubt (exact binomial test)."""
        hits = torch.arange(self.right, self.images + 1, dtype=torch.float64)
        p = torch.tensor(self.chance, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        return float(Binomial(self.images, p, validate_args=False).log_prob(hits).logsumexp(0).exp()) > DOUBT


class TeacherCheck(pl.Callback):
    """Scores every frozen model that has weights, and logits of the data's classes, on a few images as they are.

    Args:
        recipe: of the run.
        data: its data: the images held out, else those of the test (nothing is chosen by them), else of the training.
    """

    def __init__(self, recipe: Recipe, data: DataModule) -> None:
        self.recipe, self.data = recipe, data

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Before caches are filled and the folder is the run's.

        Raises:
            RecipeError: one is at chance level, or far from what its own run came to.
        """
        fake = self.recipe.data.fake or self.recipe.data.name == "fake"
        names = [] if fake else [name for name in pl_module.graph.frozen if self._has_weights(name)]
        problems = []
        for name, found in _scores(pl_module, names, self.data).items():
            if text := _judged(self.recipe, name, found, self.data):
                problems.append(self.recipe.origin.problem(("models", name, "weights"), text))
        if problems:
            raise RecipeError(problems)

    def _has_weights(self, name: str) -> bool:
        spec = self.recipe.models[name]
        return spec.tune is not None or spec.source != "random"


def _scores(distiller: Any, names: list[str], data: DataModule) -> dict[str, Scored]:
    if not names or data.num_classes < 2:
        return {}
    said: dict[str, list[Tensor]] = {name: [] for name in names}
    labels: list[Tensor] = []
    with torch.no_grad(), distiller.trainer.precision_plugin.forward_context():
        for x, y in _images(distiller, data):
            labels.append(y)
            for name in list(said):
                logits = distiller._logits(name, x)
                if logits.ndim == 2 and logits.shape[-1] == data.num_classes:
                    said[name].append(logits.argmax(-1))
                else:
                    del said[name]
    true = torch.cat(labels) if labels else torch.zeros(0)
    if not len(true) or bool((true < 0).any()):
        return {}
    if len(true) < FEWEST:
        if said and first_rank():
            what = f"whether {' and '.join(said)} know{'s' * (len(said) == 1)} what is to be taught"
            tell(f"{len(true)} labelled images are too few to say {what}", sys.stdout)
        return {}
    return {name: scored(torch.cat(several), true, data.num_classes) for name, several in said.items()}


def _images(distiller: Any, data: DataModule) -> Iterator[tuple[Any, Tensor]]:
    data.setup("fit")
    train, ids = data.selects, data.parts[1] if data.selects else None
    labels = data.read_labels(train=train)
    if not len(labels):  # no test set
        train, ids, labels = True, data.parts[0], data.read_labels(train=True)
    ids = torch.arange(len(labels)) if ids is None else ids
    some = draws.permutation(draws.key("teacher check"), len(ids), "cpu")[:MOST].sort().values
    ids = ids[some]
    for raw in data.loader(train, ids, labels[ids], Order(len(ids), data.eval_batch_size), views=False):
        moved = distiller.transfer_batch_to_device(converted(distiller, raw), distiller.device, 0)
        batch = Batch.of(distiller.on_after_batch_transfer(moved, 0))
        assert batch.labels is not None
        yield batch.x, batch.labels


def scored(said: Tensor, true: Tensor, classes: int) -> Scored:
    """What classes that were said, (n,), come to beside those that are there."""
    says, there = (torch.bincount(part, minlength=classes).double() / len(true) for part in (said, true))
    return Scored(len(true), int((said == true).sum()), float(says @ there), float(says.max()))


def _judged(recipe: Recipe, name: str, found: Scored, data: DataModule) -> str:
    """Why a model is refused; nothing where it is not. How it does is told, with a warning where that is strange."""
    path, own = _own_run(recipe, name, data)
    least = None if own is None else own - POINTS - ERRORS * (own * (1 - own) / found.images) ** 0.5
    saw = f"{name} is right on {found.right} of {found.images} images ({100 * found.top1:.1f} %)"
    saw += ", on which it was trained" * saw_held_out(recipe, name)
    ended = "" if own is None else f"; its own run ended at {100 * own:.1f} %"
    if found.by_chance:
        saw += f", and chance on {100 * found.chance:.1f} %{ended}"
    elif own is not None and found.top1 < PART * own:
        saw += f", less than half of what its own run ended at ({100 * own:.1f} %)"
    else:
        if least is not None and found.top1 < least:
            log.warning("warning: %s%s: is its normalisation right?", saw, ended)
        elif first_rank():
            tell(saw, sys.stdout)
        return ""
    as_then = least is not None and found.top1 >= least
    why = "train it longer" if as_then else "; ".join(_reasons(recipe, name, path, found, data))
    return f"{saw}; {why}; if it is meant to teach as it is, say trainer.check_teachers=false"


def _own_run(recipe: Recipe, name: str, data: DataModule) -> tuple[Path | None, float | None]:
    """A model's weights file, and the top-1 of the run that made it, where that run looked at the same data."""
    spec = recipe.models[name]
    if spec.tune is not None or spec.source == "recipe":
        maker = tuning(recipe, name) if spec.tune is not None else source(recipe, name)
        path = teacher_folder(maker).weights(maker.trained[0])
    elif spec.source == "file":
        path = Path(str(spec.weights))
    else:
        return None, None
    try:
        told, folder = read(path), RunFolder(path.parent)
        same = told.get("classes", []) == data.class_names and (told.get("data") or {}).get("name") == recipe.data.name
        if not (same and folder.complete):
            return path, None
        return path, read_result(folder).last[told["node"]]["top1"]
    except (KdkitError, KeyError):  # nobody's run, or not told
        return path, None


def _reasons(recipe: Recipe, name: str, path: Path | None, found: Scored, data: DataModule) -> Iterator[str]:
    spec, told = recipe.models[name], {} if path is None else read(path)
    if (
        spec.mean is not None
        and {"mean", "std"} <= told.keys()
        and (told["mean"], told["std"]) != (spec.mean, spec.std)
    ):
        yield f"the recipe gives it mean {spec.mean} and std {spec.std}, its file says {told['mean']} and {told['std']}"
    theirs = told.get("classes") or []
    if theirs and data.class_names and theirs != data.class_names:
        other = "in another order" if sorted(theirs) == sorted(data.class_names) else "others"
        yield f"the classes that its file names are {other}"
    if found.most > 0.5:
        yield f"it says one and the same class for {100 * found.most:.0f} % of them"
    yield "mostly its mean and std are wrong, its classes stand in another order, or its weights are not what they seem"
