"""What a weights file says of itself: enough to build its model again, to feed it, and to name its classes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdkit import models
from kdkit.data import DataModule
from kdkit.recipe import Experiment
from kdkit.recipe.write import READING, document
from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder, read_json, write_json

BUILDING = ("arch", "options", "num_classes", "image_size", "input")  # words that a forward pass follows from
JSON = ("options", "num_classes", "image_size", "input", "mean", "std", "classes", "data")
GIVEN = {"num_classes", "pretrained", "base", "allow_custom"}  # to whatever is built; no option may say them


def metadata(experiment: Experiment, name: str) -> dict[str, str]:
    """The header of a model's weights file; folders of this machine are left out."""
    data, node = experiment.datamodule, experiment.nodes[name]
    whom = experiment.nodes[str(node.of)] if node.of else node
    spec = {**(whom.spec or {}), **(node.spec or {})}
    words = document(experiment.recipe)["data"]
    told = {
        **{word: spec[word] for word in BUILDING if word in spec},
        "options": spec.get("options", {}),
        "num_classes": spec.get("num_classes") or data.num_classes,
        "mean": list(node.mean or whom.mean or data.mean),
        "std": list(node.std or whom.std or data.std),
        "classes": data.class_names,
        "data": {word: value for word, value in words.items() if word not in READING},
    }
    texts = {word: json.dumps(value) if word in JSON else str(value) for word, value in told.items()}
    return {"recipe": experiment.name, "node": name, "seed": str(experiment.seed), **texts}


def read(path: Path) -> dict[str, Any]:
    """The header of a weights file; empty where it has none.

    Raises:
        KdkitError: no such file, a damaged one, or a header that nothing can be read from.
    """
    found: dict[str, Any] = dict(models.read_metadata(path))
    for word in found.keys() & set(JSON):
        try:
            found[word] = json.loads(found[word])
        except json.JSONDecodeError as error:
            raise KdkitError(f"{path}: its header says {word}: {found[word]!r}, which is no JSON ({error})") from None
        except RecursionError:
            raise KdkitError(f"{path}: its header says {word}, nested too deeply to be read") from None
        check, wanted = FORMS[word]
        if found[word] is not None and not check(found[word]):
            raise KdkitError(f"{path}: its header says {word}: {found[word]!r}, which must be {wanted}")
    return found


def refuse_code(path: Path, told: Mapping[str, Any]) -> None:
    """Whoever has a weights file and nothing else has not asked for anybody's code.

    Raises:
        KdkitError: the file's model would be built by some.
    """
    if ":" in str(told.get("arch")):
        raise KdkitError(
            f"{path} is of your own code ({told['arch']}), and a weights file alone runs none; "
            "give the run's folder, or put its recipe.yaml and provenance.json beside the file"
        )


def _count(value: Any) -> bool:
    return type(value) is int and value > 0


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(v) in (int, float) and math.isfinite(v) for v in value)


FORMS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "options": (
        lambda v: isinstance(v, dict) and not GIVEN & v.keys(),
        f"a mapping without {', '.join(sorted(GIVEN))}",
    ),
    "num_classes": (_count, "a whole number above 0"),
    "image_size": (_count, "a whole number above 0"),
    "input": (lambda v: type(v) in (str, int), "a name or a number"),
    "mean": (_numbers, "a list of numbers"),
    "std": (lambda v: _numbers(v) and min(v) > 0, "a list of numbers above 0"),
    "classes": (
        lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v) and len({*v}) == len(v),
        "a list of names, each of its own",
    ),
    "data": (lambda v: isinstance(v, dict), "a mapping"),
}


def note_classes(folder: RunFolder, data: DataModule) -> None:
    """Put the names of the classes, by label, beside the run's provenance; they may be known only after a download."""
    write_json(folder.provenance, {**read_json(folder.provenance), "classes": data.class_names})
