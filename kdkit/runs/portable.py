"""A run's recipe as it may leave this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdkit.recipe.write import GUARDS, MACHINE, READING


def portable(words: dict[str, Any]) -> dict[str, Any]:
    """A resolved recipe without folders and devices of this machine: a file is called by its name alone."""
    models = {
        name: {key: _file_name(value) if key == "weights" else without_folders(value) for key, value in spec.items()}
        for name, spec in words["models"].items()
    }
    losses = [{_file_name(loss): options for loss, options in edge.items()} for edge in words["losses"]]
    data = {key: value for key, value in words["data"].items() if key not in READING}
    trainer = {key: value for key, value in words["trainer"].items() if key not in MACHINE or key in GUARDS}
    return {**words, "models": models, "losses": losses, "data": data, "trainer": trainer}


def without_folders(value: Any) -> Any:
    """Every `/FOLDER/FILE.py:NAME` in it as `FILE.py:NAME`."""
    if isinstance(value, dict):
        return {word: without_folders(part) for word, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(part) for part in value]
    return _file_name(value) if isinstance(value, str) and ".py:" in value else value


def _file_name(text: Any) -> Any:
    place = str(text).rpartition(":")[0] or str(text)
    return str(text).replace(place, Path(place).name, 1) if Path(place).is_absolute() else text
