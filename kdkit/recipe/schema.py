"""The words of a recipe as models that refuse every other word."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from kdkit.recipe.cohort import CohortSpec
from kdkit.recipe.errors import Mark, Problem
from kdkit.recipe.named import Data, Edge, Optimizer
from kdkit.recipe.syntax import Item
from kdkit.recipe.words import Ends, Flag, Number, NumberOrSchedule, Options, Positive, Time, Word, Words

Kind = Literal["trained", "frozen", "ema"]
Part = Annotated[float, Field(strict=True, gt=0, le=1)]
Share = Annotated[int, Field(strict=True, ge=0)] | Part
Place = Annotated[int, Field(strict=True, ge=0)]
RECIPE_ENDINGS = (".yaml", ".yml")
WEIGHTS_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


class TuneSpec(Words):
    """Fit a model to the data once, before it teaches; the result is kept."""

    epochs: Positive
    lr: NumberOrSchedule
    optimizer: Optimizer | None = None


class CacheSpec(Words):
    """How what a frozen model says is kept on disk; `cache: true` takes the defaults."""

    by: Literal["views", "epochs"] = "views"
    dtype: Literal["float16", "float32"] = "float16"
    top_k: Positive | None = None


def _cache(value: Any) -> Any:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


Cache = Annotated[CacheSpec | None, BeforeValidator(_cache, json_schema_input_type=bool | CacheSpec | None)]


class ModelSpec(Words):
    """One model.

    Attributes:
        arch: a built-in name, `timm/NAME`, `torchvision/NAME`, `package.module:callable` or `file.py:callable`.
        weights: a file, `pretrained`, `random`, or a recipe, which is trained first when its result is not there.
        tune: fit it to the data first; for a teacher with other classes.
        num_classes: width of its logits; left out: the data's, or its own for a frozen pretrained model.
        options: arguments of the architecture.
        classifier: the frozen model whose last layer it predicts by, which stays as it is.
        cache: keep on disk what it says of every view of every image (`by: epochs`: of every image in every epoch of
            this seed), and read it from there; for a frozen model.
        frozen: whether it stays as it is; left out: yes where its name begins with `teacher`.
        ema: the model that it is a slow copy of.
        decay: of that copy, per step.
        optimizer: its own instead of the recipe's.
        lr: its own instead of the recipe's.
        when: the time in which it trains.
        mean: of its input per channel, in [0, 1]; left out: what its weights were trained with, else the data's.
        std: likewise.
        image_size: side to which its images are resized.
        input: which input it reads where a sample has several.
    """

    arch: Word | None = None
    weights: Word | None = None
    tune: TuneSpec | None = None
    num_classes: Positive | None = None
    options: Options = Field(default_factory=dict)
    classifier: Word | None = None
    cache: Cache = None
    frozen: Flag | None = None
    ema: Word | None = None
    decay: NumberOrSchedule | None = None
    optimizer: Optimizer | None = None
    lr: NumberOrSchedule | None = None
    when: Time | None = None
    mean: list[Number] | None = None
    std: list[Number] | None = None
    image_size: Positive | None = None
    input: Word | Place | None = None

    @model_validator(mode="after")
    def _fits(self) -> ModelSpec:
        alien = self.model_fields_set - {"ema", "decay", "image_size", "mean", "std", "input"}
        if self.ema is not None and alien:
            raise ValueError(f"a slow copy of {self.ema!r} takes no {' and no '.join(sorted(alien))}")
        if self.ema is None and self.arch is None:
            raise ValueError("arch must be given, such as {arch: resnet20}; `kdkit models` lists them")
        if self.ema is None and self.decay is not None:
            raise ValueError("decay belongs to a slow copy: {ema: student, decay: 0.999}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together")
        return self

    @property
    def source(self) -> Literal["random", "pretrained", "file", "recipe"]:
        """Where its weights come from."""
        if self.weights in (None, "random"):
            return "random"
        if self.weights == "pretrained":
            return "pretrained"
        if self.weights.endswith(RECIPE_ENDINGS):
            return "recipe"
        return "file" if "/" in self.weights or self.weights.endswith(WEIGHTS_ENDINGS) else "recipe"


class StageSpec(Words):
    """A stage, once its losses have joined the recipe's.

    Attributes:
        name: what it is called.
        when: its time.
        train: the models that learn in it, or parts of them (`student.layer3`), also of losses (`ft.paraphraser`,
            `hint.head`), which otherwise learn with the models that they teach; left out: all.
    """

    name: Word
    when: Time | None = None
    train: Ends = None


class TrainerSpec(Words):
    """How long and on what a recipe trains: Lightning's words, and how a step is made.

    Attributes:
        max_epochs: length of the run; schedules are in proportion to it.
        update: all models learn at once, or one after the other.
        pcgrad: take conflicts out of gradients on weights that several taught places share.
        on_nonfinite: what a loss or a gradient that is NaN or infinite does: `stop` the run, `skip` the step, or
            `rollback` to a snapshot of the epoch.
        check_teachers: refuse frozen models of given weights that know no more than chance, or much less than their own
            run says.
        place: the rank that trains each model; left out: every rank trains all of them.
        channels_last: memory format of images.
        compile: compile the step, and on a GPU record it as one CUDA graph; `auto`: the latter alone.
        logger: where numbers and pictures go beside `metrics.csv`; `csv`: nowhere.
    """

    max_epochs: Positive
    precision: Literal["64-true", "32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: (
        Literal["auto"] | Annotated[int, Field(strict=True, ge=1)] | list[Annotated[int, Field(strict=True, ge=0)]]
    ) = "auto"
    strategy: Literal["auto", "ddp"] = "auto"
    num_nodes: Positive = 1
    gradient_clip_val: Annotated[float, Field(strict=True, gt=0)] | None = None
    accumulate_grad_batches: Positive = 1
    limit_train_batches: Positive | Part | None = None
    limit_val_batches: Share | None = None
    check_val_every_n_epoch: Positive = 1
    deterministic: Flag | Literal["warn"] = False
    benchmark: Flag | None = None
    update: Literal["simultaneous", "sequential"] = "simultaneous"
    pcgrad: Flag = False
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    check_teachers: Flag = True
    place: dict[Word, Annotated[int, Field(strict=True, ge=0)]] | None = None
    channels_last: Flag = True
    compile: Flag | Literal["auto"] = False
    logger: Literal["csv", "tensorboard", "wandb", "mlflow"] = "csv"


@dataclass(frozen=True)
class Origin:
    """Where a recipe was read.

    Attributes:
        name: what it is called.
        folder: where packages beside it are looked up.
        protocol: what was merged underneath.
        custom: whether it may bring its own Python.
        tree: what errors point into.
    """

    name: str = "recipe"
    folder: Path = field(default_factory=Path)
    protocol: str | None = None
    custom: bool = True
    tree: Item = field(default_factory=lambda: Item({}, Mark("recipe")))

    def problem(self, loc: tuple[int | str, ...], message: str) -> Problem:
        """A problem at the words that `loc` leads to, with the overrides that changed a part of them."""
        if not loc:
            return Problem.at(Mark(self.tree.mark.file), "", message)
        item = self.tree.deepest(loc)
        changed = sorted(item.overrides() - {item.mark.file})
        where = f"{self.where(loc)} (with {', '.join(changed)})" if changed else self.where(loc)
        return Problem.at(item.mark, where, message)

    def where(self, loc: tuple[int | str, ...]) -> str:
        """`("losses", 1, "weight")` as `losses.kd.weight`."""
        from kdkit.recipe.tree import edge_name

        steps = [str(step) for step in loc]
        edges = self.tree.value.get("losses")
        if len(loc) > 1 and loc[0] == "losses" and edges is not None and isinstance(loc[1], int):
            steps[1] = edge_name(edges.value[loc[1]])
            steps = steps[:2] if loc[2:] == ("loss",) else steps
        if len(loc) > 1 and loc[0] == "stages":
            stage = self.tree.deepest(loc[:2]).value
            steps[1] = str(stage["name"].value) if isinstance(stage, dict) and "name" in stage else steps[1]
        return ".".join(steps)


class Recipe(Words):
    """A recipe: models, the losses between them, data, and how they are trained.

    Attributes:
        protocol: another file whose words lie underneath this one's; merged in by `load`, hence `None` afterwards.
        models: by name; those whose name begins with `teacher`, or that say `frozen: true`, are frozen.
        losses: edges between them.
        data: what is looked at.
        optimizer: of every trained model that brings none of its own.
        lr: likewise.
        trainer: how long, on what.
        seed: what everything random follows from.
        balance: how the weights of the losses move by themselves; left out: they do not.
        stages: parts of the run with losses of their own, in which only some models, or parts of them, learn.
        cohort: models that come and go, and the rule that keeps them well.
    """

    protocol: Word | None = None
    models: Annotated[dict[str, ModelSpec], Field(min_length=1)]
    losses: Annotated[list[Edge], Field(min_length=1)]
    data: Data
    optimizer: Optimizer | None = None
    lr: NumberOrSchedule | None = None
    trainer: TrainerSpec
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    balance: Literal["equal_share", "gradnorm", "uncertainty"] | None = None
    stages: list[StageSpec] = Field(default_factory=list)
    cohort: CohortSpec | None = None
    _origin: Origin = PrivateAttr(default_factory=Origin)

    @property
    def origin(self) -> Origin:
        """Where it was read."""
        return self._origin

    @property
    def name(self) -> str:
        """What it is called: its file's name without ending."""
        return self._origin.name

    def kind(self, model: str) -> Kind:
        """Whether a model is trained, frozen, or a slow copy of another."""
        spec = self.models[model]
        if spec.ema is not None:
            return "ema"
        frozen = model.startswith("teacher") if spec.frozen is None else spec.frozen
        return "frozen" if frozen else "trained"

    @property
    def trained(self) -> list[str]:
        """Names of the trained models."""
        return [name for name in self.models if self.kind(name) == "trained"]

    def __eq__(self, other: object) -> bool:
        """Whether both say the same, wherever they were read."""
        from kdkit.recipe.write import document

        return isinstance(other, Recipe) and document(self) == document(other)

    __hash__ = None  # type: ignore[assignment]
