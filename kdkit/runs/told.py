"""What a weights file says of itself: enough to build its model again, to feed it, and to name its classes."""

from __future__ import annotations

import json
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
    return found


def note_classes(folder: RunFolder, data: DataModule) -> None:
    """Put the names of the classes, by label, beside the run's provenance; they may be known only after a download."""
    write_json(folder.provenance, {**read_json(folder.provenance), "classes": data.class_names})
