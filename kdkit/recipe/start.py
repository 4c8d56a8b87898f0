"""The first recipe of a newcomer, made for the models and the images that are there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdkit.recipe.find import packaged
from kdkit.recipe.syntax import scalar
from kdkit.registry import KdkitError, nearest

if TYPE_CHECKING:
    from torch import nn

    from kdkit.data import DataModule

PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
PIXELS = 32  # what kdkit's own nets were made for


@dataclass(frozen=True)
class Start:
    """A first recipe.

    Attributes:
        text: commented YAML.
        found: what the data are, in one line.
    """

    text: str
    found: str


def start(teacher: str, student: str, data: str, file: str = "recipe.yaml") -> Start:
    """A commented recipe that distils one architecture into another, after a look at both and at the data.

    Args:
        teacher: its architecture, as in `arch`.
        student: likewise.
        data: a registered data set, or a folder of class folders, or one that holds such folders as `train` and `val`.
        file: what the recipe will be called, for the commands in its comments.

    Raises:
        KdkitError: no such architecture or folder, or a folder without two classes to train on.
    """
    images = _images(data)
    classes, root, sizeable = images.module.num_classes, images.root, images.sizeable
    teaches, learns = (_Net.look(word, arch, classes) for word, arch in (("teacher", teacher), ("student", student)))
    sizes = [net.size for net in (teaches, learns) if net.size]
    size = max(sizes, default=PIXELS) if sizeable else images.module.input_shape[-1]
    where = f", root: {_quoted(root)}" if root else ""
    where += ", holdout: 0.15" if images.held_out else ""
    where += f", image_size: {size}" if sizeable else ""
    own = f"teacher_{teacher}_{data}"
    if teaches.published and data == "imagenet":
        weights, fitted = "pretrained", "published weights"
    elif teaches.published:
        weights, fitted = (
            "pretrained, tune: {epochs: 10, lr: 1.0e-4}",
            "published weights, fitted to your classes once and kept",
        )
    elif own in [info.name for info in packaged()]:
        weights, fitted = own, "a recipe: trained once and kept"
    else:
        weights, fitted = "random, tune: {epochs: 60, lr: 1.0e-3}", "trained on your data once and kept"
    begins = ", weights: pretrained" if learns.published else ""
    text = f"""\
# {_last(teacher)} → {_last(student)} on {_last(data)}: {images.found}
# kdkit check {file}        shapes, sizes and cost, before an hour is spent
# kdkit fit {file} trainer.max_epochs=5
# {images.place}
data: {{name: {images.name}{where}, batch_size: 64}}
models:                        # a model whose name begins with `teacher` is frozen, every other one is trained
  # {fitted}; `weights: teacher.safetensors` takes your own instead
  teacher: {{arch: {_quoted(teacher)}, weights: {weights}{teaches.resized(size)}}}
  student: {{arch: {_quoted(student)}{begins}{learns.resized(size)}}}
losses:                        # `kdkit losses` lists them, `kdkit losses kd` explains one
  - ce: {{weight: 0.1}}
  - kd: {{weight: 0.9, temperature: 4}}
  # - cosine: {{weight: 1, head: linear}}       # embeddings alike, whatever their widths
optimizer: {{name: {"adamw, weight_decay: 0.05" if begins else "sgd, momentum: 0.9, weight_decay: 5.0e-4"}}}
lr: {{warmup: {{to: {{cosine: [{"1.0e-3" if begins else "0.05"}, 0.0]}}, over: 0.05}}}}      # below 1: share of the run
trainer: {{max_epochs: 30}}      # precision: bf16-mixed, devices: 2, … go here
seed: 0
"""
    return Start(text, images.found)


@dataclass(frozen=True)
class _Net:
    """What a first recipe has to know of a net.

    Attributes:
        size: pixels a side that its weights were made for; 0 where it says none.
        published: whether there are weights to fetch.
    """

    size: int
    published: bool

    @classmethod
    def look(cls, word: str, arch: str, classes: int) -> _Net:
        from kdkit import models

        try:
            return cls.of(arch, models.build(arch, num_classes=classes))
        except KdkitError as error:
            raise KdkitError(f"--{word}: {error}") from None

    @classmethod
    def of(cls, arch: str, net: nn.Module) -> _Net:
        if arch.startswith("torchvision/"):
            from torchvision import models as zoo

            name = arch.removeprefix("torchvision/").partition(".")[0]
            return cls(next(iter(zoo.get_model_weights(name))).transforms().crop_size[0], True)
        facts = getattr(net, "pretrained_cfg", {})  # timm's
        return cls(facts.get("input_size", (0,))[-1], any(facts.get(place) for place in ("url", "hf_hub_id")))

    def resized(self, size: int) -> str:
        """The word for a net that was made for another size than the data's."""
        return f", image_size: {self.size}" if self.size not in (0, size) else ""


@dataclass(frozen=True)
class _Images:
    """What a first recipe has to know of the data.

    Attributes:
        name: as registered.
        module: which reads them.
        root: their folder; empty for a data set that has a place of its own.
        held_out: whether the test set is a share of them.
        sizeable: whether they are brought to any size.
        place: where they lie, in a sentence.
        found: how many there are.
    """

    name: str
    module: DataModule
    root: str
    held_out: bool
    sizeable: bool
    place: str
    found: str


def _images(data: str) -> _Images:
    from kdkit.data import DATA, Folder

    if data in DATA and data != "folder":
        module = DATA[data]()
        facts = module.facts
        found = f"{facts.num_classes} classes, {facts.num_samples:,} images to train on"
        place = "their folder is data.root=FOLDER, or the variable KDKIT_DATA"
        return _Images(data, module, "", False, isinstance(module, Folder), place, found)
    folder = Folder(root=data).folder
    if not folder.is_dir():
        known = nearest(data, list(DATA)) or f"; known: {', '.join(name for name in DATA if name != 'folder')}"
        raise KdkitError(f"--data: no folder {data}, and no data set of that name{known}")
    root = _root(folder, data)
    held_out = not (Path(folder, "val").is_dir() and root == data)
    images = Folder(root=root, holdout=0.15 if held_out else None)
    try:
        train, test = (len(files.names) for files in images.sets)
    except KdkitError as error:
        raise KdkitError(f"--data: {str(error).removeprefix('data: ').partition('; for images without')[0]}") from None
    names = images.class_names
    if len(names) < 2:
        raise KdkitError(f"--data: {root} holds one class, {names[0]}; name the folder that holds the class folders")
    if PARTS.issuperset(names):
        raise KdkitError(f"--data: {root} holds {' and '.join(names)}, which are no classes; call them train and val")
    found = f"{len(names)} classes, {train:,} images to train on, {test:,} to test on"
    place = "`root` holds a folder for each class; `holdout` is the share of each that is the test set"
    if not held_out:
        place = "`root` holds train/ and val/, and these a folder for each class; val/ is the test set"
    return _Images("folder", images, root, held_out, True, place, found)


def _root(folder: Path, data: str) -> str:
    """Where the class folders are, or `train` and `val` with these inside."""
    if not (folder / "train").is_dir():
        if (folder / "val").is_dir():
            hint = f"--data {Path(data, 'val')} holds out a share of its images instead"
            raise KdkitError(f"--data: {data} has val/ and no train/, so nothing to train on; {hint}")
        return data
    if (folder / "val").is_dir():
        return data
    if others := sorted(PARTS & {entry.name for entry in folder.iterdir() if entry.is_dir()} - {"train"}):
        raise KdkitError(
            f"--data: {data} has train/ and {others[0]}/; the test images must be in {data}/val: rename it"
        )
    return f"{data.rstrip('/')}/train"


def _last(name: str) -> str:
    return " ".join(Path(name).name.split())


def _quoted(text: str) -> str:
    """Quoted where YAML would read it as something else."""
    plain = scalar(text) == text and not set(text) & set("{}[],:#&*!|>'\"%@` ")
    return text if plain else "'" + text.replace("'", "''") + "'"
