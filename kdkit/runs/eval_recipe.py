"""The recipe of an evaluation: the trained models and the data alone, so that no teacher need be there."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from kdkit.console import tell
from kdkit.data import DATA, data_root, facts
from kdkit.data.files import halves
from kdkit.recipe import Recipe, content_key, load, of_tree
from kdkit.recipe.errors import Mark
from kdkit.recipe.own_code import known_of
from kdkit.recipe.syntax import Item, parse_value
from kdkit.recipe.tree import split as parts
from kdkit.registry import KdkitError, constructor
from kdkit.runs.folder import RunFolder, read_json
from kdkit.runs.papers import read_recipe
from kdkit.runs.told import BUILDING, refuse_code

# What a recipe must say although nothing is trained here.
RUNNING: dict[str, Any] = {"losses": ["ce"], "optimizer": {"name": "sgd"}, "lr": 0.1, "trainer": {"max_epochs": 1}}
PLAIN = {"augment": False, "drop_last": False}  # the training images as they are
ALLOWED = ("data", "trainer.accelerator")

Headers = Mapping[str, Mapping[str, Any]]


def eval_recipe(files: Mapping[str, Path], told: Headers, overrides: Sequence[str], split: str) -> Recipe:
    """What the run's recipe says of models and data, else what the weights files' headers say.

    Args:
        files: weights by model, all in one folder.
        told: the files' headers.
        overrides: `key=value` words about the data.
        split: `test` or `train`.

    Raises:
        KdkitError: nothing says what a file is of, or what the data are; an override that changes nothing here.
    """
    changed = {".".join(path): value.plain for path, value in map(parts, overrides)}
    for key in changed:
        if key not in ALLOWED and not key.startswith("data."):
            raise KdkitError(f"{key}: nothing is trained here; only data.… and {ALLOWED[1]} can be changed")
    name, first = next(iter(files.items()))
    path = RunFolder(first.parent).recipe
    run = read_recipe(path) if path.is_file() else _said({}, first)
    models = {name: _model(run, name, file, told[name]) for name, file in files.items()}
    data = run.child("data")
    if data is None:
        if "data" not in told[name] and not {"data", "data.name", "data.root"} & changed.keys():
            raise KdkitError(f"{first} does not say what it was trained on; give it images with --data FOLDER")
        data = _said(told[name].get("data", {"name": "folder"}), first)
        if not changed.keys() - {"trainer.accelerator"} and data.plain.get("name") == "folder":
            raise KdkitError(f"{first} was trained on a folder of images; give it one with --data FOLDER")
    own = data.plain.get("name")
    if "data.root" in changed and not {"data", "data.name"} & changed.keys() and own in DATA and DATA[own].folderless:
        side = side_of(data.plain, told[name])  # of the run's images, which lie in no folder; those given are one
        data = _said({"name": "folder", **({"image_size": side, "resize": side} if side else {})}, first)
    part = _part(data.plain, changed, split)
    if isinstance(changed.get("data"), dict):  # which says all of the data anew
        part |= _sized(data.plain, told[name], changed)
        left_out = part.keys() - changed["data"].keys() - {key.removeprefix("data.") for key in changed}
        overrides = [*overrides, *(f"data.{word}={json.dumps(part[word])}" for word in sorted(left_out))]
    words = {**_said({**part, **(PLAIN if split == "train" else {})}, first).value}
    own = {word: value for word, value in data.value.items() if word != "two_views"}  # which are training's
    data = Item({**own, **words}, data.mark)
    seed = {"seed": run.value["seed"]} if run.child("seed") is not None else {}  # label noise follows from it
    root = Item({**_said(RUNNING, first).value, **seed, "models": Item(models, run.mark), "data": data}, run.mark)
    listed = run.child("models")
    known = listed is not None and all(listed.child(name) for name in files)
    code: dict[str, Any] = {"allow_custom": known, "known": known_of(path)}
    if path.is_file():
        _tell_changed(path.resolve())
    return of_tree(root, name="eval", folder=first.parent, overrides=overrides, **code)


def _model(run: Item, name: str, file: Path, told: Mapping[str, Any]) -> Item:
    """What builds the model of a file."""
    listed = run.child("models") or _said({}, file)
    spec = listed.child(name)
    if spec is None:
        spec = _said({word: told[word] for word in BUILDING if told.get(word)}, file)
        refuse_code(file, told)
    if (of := spec.child("ema")) and (whom := listed.child(of.value)):
        spec = Item({**whom.value, **spec.value}, spec.mark)
    if spec.child("arch") is None:
        raise KdkitError(f"{file} does not say what model it is of; give a run's folder")
    width = _said({"num_classes": told["num_classes"]} if "num_classes" in told else {}, file).value
    words = {word: spec.value[word] for word in BUILDING if word in spec.value}
    return Item({**width, **words, **_said({"frozen": False}, file).value}, spec.mark)


@cache
def _tell_changed(path: Path) -> None:
    """A line where a run's images or code are no longer what they were: a holdout is drawn from what there is."""
    with suppress(KdkitError, OSError):  # what is not there any more is told where it is needed
        begun = read_json(RunFolder(path.parent).provenance).get("content")
        if begun and begun != content_key(load(path)):
            tell(
                f"{path.parent} names images, code or weights that have other content than when it was trained: these "
                "are not its numbers, and what is held out now may have been trained on",
                sys.stderr,
            )


def _part(own: Mapping[str, Any], changed: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Which images of another folder of class folders are scored: all, or those of its `val`."""
    whole = changed["data"] if isinstance(changed.get("data"), dict) else {}
    root, name = (
        changed.get("data.root", whole.get("root")),
        changed.get("data.name", whole.get("name", own.get("name"))),
    )
    if not isinstance(root, str) or name not in DATA or "holdout" not in constructor(DATA[name]):
        return {}
    folder = data_root(root)
    if halves(folder):
        return {"holdout": None}
    mine = own.get("root")
    same = isinstance(mine, str) and data_root(mine).resolve() == folder.resolve()
    if same or split == "train" or "data.holdout" in changed or "holdout" in whole:
        if same and split != "train" and own.get("holdout") and "data.holdout" not in changed:
            tell(f"the part of {root} is scored that the run held out; data.holdout=all scores every image", sys.stderr)
        return {}
    if own.get("holdout"):
        tell(f"every image of {root} is scored; data.holdout={own['holdout']} scores its held-out part", sys.stderr)
    return {"holdout": "all"}


def side_of(own: Mapping[str, Any], told: Mapping[str, Any]) -> int | None:
    """Of the images that a model was trained on, by the words of its data and its header; `None`: nothing says it."""
    if told.get("image_size"):
        return int(told["image_size"])
    with suppress(KdkitError, TypeError, ValueError):
        takes = constructor(DATA[own["name"]]) if own.get("name") in DATA else {}
        usual = takes["image_size"].default if "image_size" in takes else None
        return int(own.get("image_size", usual) or facts(**own).input_shape[1])
    return None


def side_of_file(file: Path, told: Mapping[str, Any]) -> int | None:
    """Of the images that the model of a weights file was trained on: by its header, else by the recipe beside it."""
    recipe = RunFolder(file.parent).recipe
    said = read_recipe(recipe).child("data") if recipe.is_file() else None
    return side_of(told.get("data") or (said.plain if said is not None else {}), told)


def _sized(own: Mapping[str, Any], told: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Other data come as large as those of the training, where they are given without a size."""
    name = changed.get("data.name", changed["data"].get("name"))
    side = side_of(own, told) if name in DATA and "image_size" in constructor(DATA[name]) else None
    return {"image_size": side} if side else {}


def _said(words: Mapping[str, Any], file: Path) -> Item:
    """Words as a tree whose errors name the file."""
    return parse_value(json.dumps(words, ensure_ascii=False), Mark(str(file)))
