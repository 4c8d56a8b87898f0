"""What is found of a run once it is over, given to whoever the run is logged to beside metrics.csv."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdkit.console import tell
from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder
from kdkit.runs.loggers import MAKERS, Beside
from kdkit.runs.papers import read_recipe
from kdkit.runs.result import read_figures


def log_found(run: RunFolder, verb: str, found: Mapping[str, Any], pictures: Sequence[Path] = ()) -> None:
    """Log numbers and pictures as a part of a run, after its last epoch; nothing for a run that logs nowhere else.

    A service that takes nothing is a warning: what was found stands in the run's folder all the same.

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
    if kind == "wandb" and _offline(run):
        _warn("wandb is offline, where it cannot go on with a run, and gets nothing; upload the run, and do this again")
        return
    epochs = int(read_figures(run).get("epochs") or 1) if run.complete else 1
    logger = Beside(kind, *MAKERS[kind], words, run)
    try:
        logger.log_metrics({**dict(_flat(found, verb)), "epoch": epochs - 1})
        logger.close(list(pictures))
    except KdkitError:
        raise
    except Exception as error:  # each service has its own
        why = " ".join(str(error).split())[:200]
        _warn(f"{kind} did not take what was found ({why})")


def short(words: Sequence[str]) -> str:
    """What was looked at, without folders of this machine: `test root=photos`."""
    pairs = (word.removeprefix("data.").rpartition("=") for word in words if not word.startswith("trainer."))
    return " ".join(f"{name}{equals}{Path(value).name}" for name, equals, value in pairs)


def _offline(run: RunFolder) -> bool:
    """Whether W&B would write another run of the same id, which replaces the first where both are uploaded."""
    waiting = (part for part in run.path.glob("wandb/offline-run-*") if not any(part.glob("*.synced")))
    return os.environ.get("WANDB_MODE") in ("offline", "dryrun") or any(waiting)


def _warn(text: str) -> None:
    tell(text, sys.stderr, "warning:", "bold yellow")


def _flat(found: Mapping[str, Any], name: str) -> Iterator[tuple[str, float]]:
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}/{key}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{name}/{key}", float(value)
