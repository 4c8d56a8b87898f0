"""What frozen features are worth on other data: the transfer table of the CRD paper, with the model in eval mode."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit import data, models
from kdkit.data import DataModule
from kdkit.data.files import halves
from kdkit.data.home import home
from kdkit.graph.batch import Adapter, Facts
from kdkit.recipe import build, content_key
from kdkit.recipe.tree import split as parts
from kdkit.registry import KdkitError, constructor
from kdkit.runs.eval_recipe import eval_recipe, side_of_file
from kdkit.runs.evaluate import batches, weights_files
from kdkit.runs.told import read
from kdkit.runs.trained import behind, device
from kdkit.study.linear import linear_probe, neighbours
from kdkit.taps import Taps

Features = dict[str, Tensor]
VERSION = "1"


def probe(
    run: Path | str,
    on: str,
    overrides: Sequence[str] = (),
    *,
    image_size: int | None = None,
    tap: str = "embedding",
) -> dict[str, dict[str, Any]]:
    """Linear and nearest-neighbour accuracy on other data, of every model that a run trained.

    Features are those of eval mode, of images without augmentation, resized to what the model was trained on and
    normalised as it was; they are computed once and kept under KDKIT_HOME.

    Args:
        run: a run's folder, or one of its weights files.
        on: a data set's name, or a folder of class folders.
        overrides: `data.…=value` words for it: `data.root=/data`, `data.holdout=0.2`; and `trainer.accelerator`.
        image_size: side of the images; left out: that of the run's.
        tap: where the features are read; maps and tokens are averaged to one vector.

    Returns:
        `{"student": {"linear": 0.71, "knn": 0.65, "held_out": 0.7, "decay": 0.001, "features": 64}}`.

    Raises:
        KdkitError: no such run or data, or a model that does not run on them.
    """
    found = {}
    for name, path in weights_files(Path(run)).items():
        features = _features(name, path, on, overrides, image_size, tap)
        classes = int(max(features["train_y"].max(), features["test_y"].max())) + 1
        four = features["train_x"], features["train_y"], features["test_x"], features["test_y"]
        told = linear_probe(*four, classes=classes)
        found[name] = {
            "linear": told.top1,
            "knn": neighbours(*four, classes=classes),
            "held_out": told.held_out,
            "decay": told.decay,
            "features": four[0].shape[1],
            "train": len(four[1]),
            "test": len(four[3]),
        }
    return found


def _features(name: str, path: Path, on: str, overrides: Sequence[str], image_size: int | None, tap: str) -> Features:
    """Of the whole training and test set, in their order, on the device."""
    told = {name: read(path)}
    side = image_size or _side(path, told[name])
    words = _words(on, overrides, side)
    machine = [word for word in overrides if word.startswith("trainer.")]
    recipe = eval_recipe({name: path}, told, [f"data={json.dumps(words)}", *machine], "test")
    its = data.build(**words, augment=False)
    place = device(recipe)
    if not its.num_classes:
        raise KdkitError(f"data: {on} has no labels here; a probe needs them")
    its.device = place
    its.prepare_data()
    built = {"model": _hash(path), "built": content_key(recipe)}  # own code by what is in its file
    looked = {"data": its.identity(), "test": its.checksum(train=False), "root": str(its.root)}
    spec = {**built, **looked, "side": side, "tap": tap, "v": VERSION}
    key = blake2b(json.dumps(spec, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
    file = home() / "features" / f"{key}.safetensors"
    if file.is_file():
        return {word: value.to(place) for word, value in models.read_weights(file).items()}
    node = behind(build(recipe, weights=None).nodes[name], told[name])
    module = node.module
    assert module is not None
    models.load_weights(module, path, arch=str(recipe.models[name].arch))
    adapter = Adapter(replace(node, image_size=node.image_size or side), Facts.of(its)).eval().to(place)
    found = _compute(name, adapter, module.eval().to(place), its, on, tap)
    holder = torch.nn.Module()
    for word, value in found.items():
        holder.register_buffer(word, value)
    models.save_weights(holder, file)
    return found


@torch.no_grad()
def _compute(name: str, adapter: Any, module: Any, its: DataModule, on: str, tap: str) -> Features:
    found: Features = {}
    for split in ("train", "test"):
        xs, ys, taps = [], [], None
        for x, labels, *index in _batches(its, split, on):
            view = adapter(x)
            try:
                taps = taps or Taps(module, [tap], view[:2])
            except KdkitError as error:
                raise KdkitError(f"{name}: {error}") from error
            value = taps(view)[tap].float()
            value = value.mean((2, 3)) if value.ndim == 4 else value.mean(1) if value.ndim == 3 else value
            xs.append(value)
            ys.append((labels, *index))
        x, y = torch.cat(xs), torch.cat([y for y, *_ in ys])
        if len(ys[0]) > 1:  # the training images come shuffled
            order = torch.cat([i for _, i in ys]).argsort()
            x, y = x[order], y[order]
        found |= {f"{split}_x": x, f"{split}_y": y}
    return found


def _batches(its: DataModule, split: str, on: str) -> Any:
    if split == "test":
        return batches(its, "test", on)
    its.setup("fit")
    return its.train_dataloader()


def _words(on: str, overrides: Sequence[str], side: int) -> dict[str, Any]:
    """The words of the data."""
    words: dict[str, Any] = {"name": on} if on in data.DATA else {"name": "folder", "root": on}
    if words["name"] == "folder" and not Path(on).exists() and not data.data_root(on).exists():
        raise KdkitError(f"--data {on}: no such folder, and no data set of that name; known: {', '.join(data.DATA)}")
    given = {}
    for path, value in map(parts, overrides):
        if path[0] == "trainer":
            continue
        if path[0] != "data" or len(path) != 2 or path[1] in ("name", "augment", "label_noise"):
            raise KdkitError(
                f"{'.'.join(path)}: a probe takes data.… words about how its images are read, and no other"
            )
        given[path[1]] = value.plain
    if "image_size" in constructor(data.DATA[words["name"]]):
        words["image_size"] = side
    whole = {**words, **given}
    if (
        whole["name"] == "folder"
        and given.get("holdout") in (None, 0, "all")
        and not halves(data.data_root(str(whole["root"])))
    ):
        raise KdkitError(
            f"--data {on}: it has no val/ of images to be scored on beside those that are fitted; "
            "set data.holdout=0.2, the share that is scored"
        )
    return whole


def _side(path: Path, told: dict[str, Any]) -> int:
    """Of the images that a model was trained on."""
    if side := side_of_file(path, told):
        return side
    raise KdkitError(f"{path} does not say how large its images were; give --image-size, their side in pixels")


def _hash(path: Path) -> str:
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()
