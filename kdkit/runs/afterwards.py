"""What is found of a run once it is over, given to whoever the run is logged to beside metrics.csv."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdkit.console import tell
from kdkit.runs.beside import Beside, logged_as, offline, unlogged
from kdkit.runs.folder import RunFolder
from kdkit.runs.loggers import MAKERS, pictures_of
from kdkit.runs.papers import read_recipe
from kdkit.runs.result import read_figures
from kdkit.storage import one_at_a_time


def log_found(run: RunFolder, verb: str, found: Mapping[str, Any], pictures: Sequence[Path] = ()) -> None:
    """Log numbers and pictures as a part of a run, after its last epoch; nothing for a run that logs nowhere else.

    A service that takes nothing is a warning: what was found stands in the run's folder, and is given to it next time.

    Args:
        run: its folder.
        verb: what the numbers' names begin with: `eval/test/student/top1`.
        found: numbers in mappings of mappings; whatever else is in them is left out.
        pictures: files.
    """
    if not run.recipe.is_file():
        return
    words = read_recipe(run.recipe).plain
    kind = words.get("trainer", {}).get("logger")
    if kind not in MAKERS:
        return
    if find_spec(kind) is None:
        _warn(f"{kind}, which {run.path} is logged to, is not installed and gets nothing; pip install 'kdkit[{kind}]'")
        return
    begun = kind in logged_as(run) or (kind == "wandb" and any(run.path.glob("wandb/offline-run-*")))
    if kind == "wandb" and begun and offline(run):
        _warn("wandb is offline, where it cannot go on with a run, and gets nothing; upload the run, and do this again")
        return
    with one_at_a_time(run.unlogged):  # else of two verbs each keeps only its own of what the service did not take
        logger = Beside(kind, *MAKERS[kind], words, run)
        own = pictures_of(run) if kind in unlogged(run) or not begun else []
        logger.hold(dict(_flat(found, verb)), int(read_figures(run).get("epochs") or 1) if run.complete else 1)
        logger.close([*own, *pictures])


def short(words: Sequence[str]) -> str:
    """What was looked at, without folders of this machine: `test root=photos`."""
    pairs = (word.removeprefix("data.").rpartition("=") for word in words if not word.startswith("trainer."))
    return " ".join(f"{name}{equals}{Path(value).name}" for name, equals, value in pairs)


def _warn(text: str) -> None:
    tell(text, sys.stderr, "warning:", "bold yellow")


def _flat(found: Mapping[str, Any], name: str) -> Iterator[tuple[str, float]]:
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}/{key}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{name}/{key}", float(value)
