"""Models that are compared, and the images that all of them look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdkit import models
from kdkit.data import DataModule
from kdkit.graph import Node
from kdkit.graph.batch import Adapter, Facts
from kdkit.recipe import Recipe, load, packaged
from kdkit.recipe.write import document
from kdkit.registry import KdkitError
from kdkit.runs.eval_recipe import eval_recipe
from kdkit.runs.evaluate import plain_word, weights_files
from kdkit.runs.folder import RunFolder, read_json
from kdkit.runs.papers import MEND, read_recipe, reading
from kdkit.runs.teacher import teacher_folder
from kdkit.runs.told import BUILDING, read
from kdkit.runs.trained import Trained, device, on_device, places, trained

LIBRARIES = ("timm/", "torchvision/")


def subjects(
    words: Sequence[str], overrides: Sequence[str] = (), split: str = "test"
) -> tuple[DataModule, list[Trained], Recipe]:
    """The models that words mean, and the data of the first one that says what it was trained on.

    Args:
        words: runs' folders, weights files (another program's, too, where a run among them names it), what a run among
            them calls a model that it learned from, recipes that were run for a student or under a packaged name, or
            `timm/NAME`, `torchvision/NAME` with published weights.
        overrides: `key=value` words about the data.
        split: `test` or `train`.

    Returns:
        Data, models by the order of the words, and the recipe whose data they are.

    Raises:
        KdkitError: no such model, a run of several, nothing that says what the images are, other classes.
    """
    files = [None if word.startswith(LIBRARIES) else _file(word, words) for word in words]
    told = [{} if file is None else read(file) or _of_a_run(file, files) for file in files]
    names = _names(words, files)
    given = any(word.split("=")[0] in ("data", "data.name", "data.root") for word in overrides)
    sources = [i for i, file in enumerate(files) if file is not None and (given or _says(file, told[i]))]
    if not sources:
        raise KdkitError(f"{', '.join(words)}: none says what images it was trained on; give them with --data FOLDER")
    first = sources[0]
    recipe, data, found = _trained(names[first], files[first], told[first], overrides, split)
    same = [f"data={json.dumps(document(recipe)['data'])}", *(w for w in overrides if w.startswith("trainer."))]
    for i, (name, file) in enumerate(zip(names, files, strict=True)):
        if file is None:
            found[name] = _published(words[i], name, data, recipe)
        elif i != first:
            found |= _trained(name, file, told[i], same, split, data)[2]
    return data, [found[name] for name in names], recipe


def teacher_of(run: str) -> str:
    """What a run calls the model that it learned from.

    Raises:
        KdkitError: it is no run, or it learned from none, or from several.
    """
    path = Path(run)
    folder = RunFolder(path if path.is_dir() else path.parent)
    if not folder.provenance.is_file():
        raise KdkitError(f"{run} is no run of a student; name both: kdkit compare TEACHER STUDENT")
    names = sorted(_weights(folder).keys() - weights_files(folder.path).keys())
    if len(names) != 1:
        found = f"learned from {', '.join(names)}" if names else "learned from no weights that are kept"
        raise KdkitError(f"{run} {found}; name the teacher: kdkit compare TEACHER {run}")
    return names[0]


def _trained(
    name: str,
    file: Path | None,
    told: dict[str, Any],
    overrides: Sequence[str],
    split: str,
    data: DataModule | None = None,
) -> tuple[Recipe, DataModule, dict[str, Trained]]:
    assert file is not None
    own = plain_word(file.stem)  # what its run calls it
    recipe = eval_recipe({own: file}, {own: told}, overrides, split)
    data, found = trained(recipe, {own: file}, {own: told}, data)
    return recipe, data, {name: replace(found[own], name=name)}


def _file(word: str, words: Sequence[str] = ()) -> Path:
    """The one weights file that a word means, among others."""
    path = Path(word)
    if (path.name == word or not path.exists()) and (found := _learned_from(word, words)):
        return found  # a folder of that name is ./NAME
    file = path.suffix in (".yaml", ".yml") and path.is_file()
    if file or (not path.exists() and word in {info.name for info in packaged()}):
        folder = teacher_folder(load(word))
        if not folder.complete:
            right = f"name the folder of its run here, which `kdkit fit {word}` makes"
            raise KdkitError(f"{word} has no result yet among the teachers that were trained for a student; {right}")
        path = folder.path
    if not path.exists():
        known = "a run's folder, a weights file, or a model such as timm/resnet18"
        raise KdkitError(f"{word}: no such model; give {known}")
    files = list(weights_files(path).values())
    if len(files) > 1:
        raise KdkitError(f"{word} holds several models; name one: {', '.join(map(str, files))}")
    return files[0]


def _learned_from(name: str, words: Sequence[str]) -> Path | None:
    """The weights of a model that one of the other words' runs calls so."""
    for run in (RunFolder(path if path.is_dir() else path.parent) for path in map(Path, words)):
        if run.provenance.is_file():
            told = _weights(run).get(name)
            if told is not None and not Path(told).is_file():
                raise KdkitError(f"{run.path} learned from {told}, which is not there any more")
            if told is not None:
                return Path(told)
    return None


def _weights(run: RunFolder) -> dict[str, str]:
    """The files that a run's models began with."""
    with reading(run.provenance):
        return {**read_json(run.provenance, MEND).get("weights", {})}


def _of_a_run(file: Path, files: Sequence[Path | None]) -> dict[str, Any]:
    """What a run beside it says of a file that says nothing of itself: a teacher's that kdkit did not write."""
    for recipe in (RunFolder(other.parent).recipe for other in files if other is not None):
        specs = read_recipe(recipe, "models").plain["models"].values() if recipe.is_file() else ()
        for spec in specs:
            place = Path(str(spec.get("weights") or ""))
            if place.is_file() and place.samefile(file):
                widths = [read(other).get("num_classes") for other in files if other and other.parent == recipe.parent]
                words = {word: spec[word] for word in (*BUILDING, "mean", "std") if spec.get(word)}
                return {**({"num_classes": widths[0]} if widths and widths[0] else {}), **words}
    return {}


def _says(file: Path, told: dict[str, Any]) -> bool:
    return "data" in told or RunFolder(file.parent).recipe.is_file()


def _names(words: Sequence[str], files: Sequence[Path | None]) -> list[str]:
    """Short ones that differ."""
    named = [file is None or not Path(word).is_file() for word, file in zip(words, files, strict=True)]
    called = [Path(word).name or Path(word).resolve().name for word in words]  # `.` has no name of its own
    short = [name if its else Path(name).stem for name, its in zip(called, named, strict=True)]
    names = [
        f"{file.resolve().parent.name}/{name}" if file is not None and short.count(name) > 1 else name
        for name, file in zip(short, files, strict=True)
    ]
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise KdkitError(f"{', '.join(twins)}: named twice; compare different models")
    return names


def _published(word: str, name: str, data: DataModule, recipe: Recipe) -> Trained:
    """A model of a library with its published weights."""
    module = models.build(word, num_classes=None, pretrained=True)
    mean, std = models.normalisation(module) or (None, None)
    node = Node(module, "frozen", mean=mean, std=std)
    adapter, at = Adapter(node, Facts.of(data)), places(word, [], data)
    return on_device(Trained(name, word, adapter, module, [], at), device(recipe))
