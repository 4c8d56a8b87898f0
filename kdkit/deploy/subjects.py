"""Models to be timed: those of a run, that of a weights file, or one by its name; their weights do not matter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from kdkit import data, models
from kdkit.models.custom import load_factory
from kdkit.recipe.errors import RecipeError
from kdkit.recipe.own_code import known_of, strays
from kdkit.registry import KdkitError
from kdkit.runs.eval_recipe import side_of
from kdkit.runs.evaluate import ENDING
from kdkit.runs.folder import RunFolder
from kdkit.runs.papers import read_recipe
from kdkit.runs.told import BUILDING, read, refuse_code

CODE = re.compile(r"\w:\w")  # file.py:Class, package.module:Class
CLASSES, SIDE = 100, 32  # of kdkit's own nets, which have no width and no size of their own


@dataclass(frozen=True)
class Subject:
    """A model that is timed.

    Attributes:
        name: what tables call it.
        arch: its architecture.
        net: the model, on the CPU.
        shape: (C, H, W) of one image.
    """

    name: str
    arch: str
    net: nn.Module
    shape: tuple[int, int, int]


def subjects(what: Sequence[str], *, image_size: int | None = None, num_classes: int | None = None) -> list[Subject]:
    """The models that words mean: every model of a run's folder, teachers too; a weights file's; a name's.

    Args:
        what: folders, `.safetensors` files, or names as in a recipe's `arch`.
        image_size: side of the images; left out: the run's, or what the model was made for.
        num_classes: width of the logits, for a model by its name; left out: its own, or 100 for kdkit's nets.

    Raises:
        KdkitError: nothing of that name, or a folder that is no run.
    """
    found = [subject for word in what for subject in _of(word, image_size, num_classes)]
    names = [subject.name for subject in found]
    for i, name in enumerate(names):
        if names.count(name) > 1:
            found[i] = Subject(f"{name} ({names[: i + 1].count(name)})", found[i].arch, found[i].net, found[i].shape)
    return found


def _of(word: str, image_size: int | None, num_classes: int | None) -> list[Subject]:
    path = Path(word)
    if path.is_dir():
        return _of_run(path, image_size)
    if path.suffix == ENDING:
        told = read(path)
        own = _listed(path) if "arch" not in told or CODE.search(f"{told['arch']} {told.get('options')}") else {}
        told |= own
        if "arch" not in told:
            raise KdkitError(f"{path} does not say what model it is of; give a run's folder, or the model's name")
        if not own:
            refuse_code(path, told)
        shape = _shape(told, told.get("data"), image_size)
        return [_made(path.stem, told, shape, told.get("num_classes"), path.parent if own else None)]
    net = models.build(word, num_classes=num_classes or _classes(word))
    return [Subject(word, word, net, _published_shape(net, image_size))]


def _classes(name: str) -> int | None:
    """Of a model that was given by its name: `CLASSES` where it wants to be told, `None` where it has its own."""
    if ":" not in name:
        return None if "/" in name else CLASSES
    asked = signature(load_factory(name)).parameters.get("num_classes")
    return CLASSES if asked and asked.default is asked.empty else None


def _of_run(folder: Path, image_size: int | None) -> list[Subject]:
    recipe = RunFolder(folder).recipe
    if not recipe.is_file():
        raise KdkitError(f"{folder} is not a run's folder; give one that `kdkit fit` wrote, or a model's name")
    words = _said(recipe)
    told = words["data"]
    width = None
    if any(not spec.get("num_classes") for spec in words["models"].values()):
        headers = [read(path) for path in sorted(folder.glob(f"*{ENDING}"))]
        width = next((h["num_classes"] for h in headers if "num_classes" in h), None) or _facts(told).num_classes
    return [
        _made(name, spec, _shape(spec, told, image_size), spec.get("num_classes") or width, folder)
        for name, spec in words["models"].items()
        if "arch" in spec  # a slow copy costs what its model costs
    ]


def _listed(file: Path) -> dict[str, Any]:
    """What the recipe beside a weights file says of its model: words that may name code, as a file's own may not."""
    recipe = RunFolder(file.parent).recipe
    models = _said(recipe)["models"] if recipe.is_file() else {}
    spec = models.get(file.stem, {})
    return {word: value for word, value in {**models.get(spec.get("ema"), {}), **spec}.items() if word in BUILDING}


def _said(recipe: Path) -> dict[str, Any]:
    """A run's recipe, which names no code from elsewhere."""
    said = read_recipe(recipe, "models", "data")
    if found := list(strays(said, recipe.parent, known_of(recipe))):
        raise RecipeError(found)
    return said.plain  # type: ignore[no-any-return]


def _made(name: str, spec: Mapping[str, Any], shape: Any, width: int | None, base: Path | None) -> Subject:
    """A model of a run, whose code lies in `base` or where its recipe says; without a `base` none of it may run."""
    arch, options = str(spec["arch"]), spec.get("options") or {}
    net = models.build(arch, num_classes=width, base=base, allow_custom=base is not None, **options)
    return Subject(name, arch.rpartition("/")[2] if ".py:" in arch else arch, net, shape)


def _shape(spec: Mapping[str, Any], told: Mapping[str, Any] | None, image_size: int | None) -> tuple[int, int, int]:
    """What the model is fed: the data's images, at its own resolution where it has one."""
    side = image_size or spec.get("image_size")
    if told is None and side is None:
        raise KdkitError("nothing says how large the images are; give --image-size 224")
    try:
        channels, height, width = _facts(told).input_shape if told else (3, 0, 0)
    except KdkitError:
        side = side or side_of(told or {}, {})
        if side is None:
            raise
        channels, height, width = 3, 0, 0
    shape = channels, side or height, side or width
    if not all(type(n) is int and n > 0 for n in shape):
        raise KdkitError(f"data: {dict(told or {})} do not say how large the images are; give --image-size")
    return shape


def _facts(told: Mapping[str, Any]) -> data.DataFacts:
    try:
        return data.facts(**told)
    except KdkitError as error:
        raise KdkitError(f"{error}; to time models without the data, give --image-size") from None
    except (TypeError, ValueError) as error:
        raise KdkitError(f"data: {dict(told)} cannot be read ({error}); give --image-size") from None


def _published_shape(net: nn.Module, image_size: int | None) -> tuple[int, int, int]:
    config = getattr(net, "pretrained_cfg", None) or {}
    size = config.get("input_size") or ((3, 224, 224) if hasattr(net, "normalisation") else (3, SIDE, SIDE))
    return (int(size[0]), image_size or int(size[1]), image_size or int(size[2]))
