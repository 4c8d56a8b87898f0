"""Going on with a run: whether it is the same one, and where it stopped."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdkit.fault import what
from kdkit.recipe import Recipe, content_key, resolved
from kdkit.recipe.syntax import parse, read
from kdkit.recipe.tree import edge_name, normalise
from kdkit.recipe.write import MACHINE, READING
from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder, read_json

CONNECTOR = "pytorch_lightning.trainer.connectors.checkpoint_connector"
FREE = {*(f"trainer.{word}" for word in MACHINE), *(f"data.{word}" for word in READING)}


def check_same(recipe: Recipe, folder: RunFolder) -> None:
    """A run goes on with the recipe that it began with.

    Raises:
        KdkitError: it has another one; what differs is named.
    """
    if read_json(folder.provenance).get("content") == content_key(recipe):
        return
    old, new = _words(normalise(read(folder.recipe))), _words(normalise(parse(resolved(recipe), recipe.name)))
    found = list(_differences(old, new, ""))
    named = "what it names (a file of weights or code, a teacher's recipe, a folder of images)"
    what = ", ".join(found) or f"{named} has other content by now"
    longer = any(line.startswith("trainer.max_epochs ") for line in found)
    why = (
        ". Schedules are shares of the run: in a longer or shorter one the epochs behind it would have had other rates"
    )
    remedy = f"give --resume the recipe that it began with ({folder.recipe})" if found else "put that back"
    raise KdkitError(
        f"{folder.path} was begun with another recipe: {what}{why if longer else ''}; {remedy}, or start anew with "
        "--overwrite or another --out"
    )


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
        checkpoint: what it goes on from.
        epochs: whole ones behind it.
        rows: of these; `None` in checkpoints of older versions.
        note: why it is not the last one.
    """

    checkpoint: Path
    epochs: int
    rows: dict[int, dict[str, float]] | None
    note: str = ""


def standing(folder: RunFolder) -> Standing:
    """What a run goes on from: its last checkpoint, or the one before where the last is damaged.

    Raises:
        KdkitError: neither is whole, or they are none of kdkit's, or the disk does not give what it holds: nothing is
            known then of the last one, and nothing is used in its place.
    """
    if not folder.checkpoint.exists() and folder.previous.exists():  # the power failed between two names
        return _read(folder, folder.previous)
    try:
        return _read(folder, folder.checkpoint)
    except _DamagedError as error:
        if not folder.previous.exists():
            raise
        try:
            before = _read(folder, folder.previous)
        except _DamagedError:
            raise error from None
        return replace(before, note=f"{str(error).partition(';')[0]}; the one before it is used")


def drop_damaged(folder: RunFolder, used: Standing) -> None:
    """A last checkpoint that is not used goes, so that it never takes the place of the one that is."""
    if used.checkpoint == folder.previous:
        folder.checkpoint.unlink(missing_ok=True)


class _DamagedError(KdkitError):
    """A checkpoint that is none any more."""


def _read(folder: RunFolder, path: Path) -> Standing:
    import torch

    from kdkit.models.whole import check_zip, of_the_disk

    try:
        check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a broken file can fail in any way
        if of_the_disk(error) or isinstance(error, MemoryError):
            why = getattr(error, "strerror", None) or "no memory is left"
            raise KdkitError(f"{path} cannot be read ({why}); once it can, the same command goes on") from error
        raise _DamagedError(f"{path} is damaged: it cannot be read as a checkpoint; {_mend(folder)}") from error
    if not isinstance(content, dict) or not {"epoch", "state_dict", "kdkit"} <= content.keys():
        raise _DamagedError(f"{path} is no checkpoint of a kdkit run; {_mend(folder)}")
    rows = content.get("rows")
    return Standing(path, int(content["epoch"]) + 1 if rows is None else len(rows), rows)


@contextmanager
def resuming(folder: RunFolder) -> Iterator[None]:
    """Whatever fails inside while Lightning restores the run's checkpoint becomes one error.

    Raises:
        KdkitError: the checkpoint does not fit the run: other models, or another version's.
    """
    try:
        yield
    except KdkitError:
        raise
    except Exception as error:  # states of all kinds are loaded, and fail in any way
        within = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if not any(f.f_globals.get("__name__") == CONNECTOR and "restore" in f.f_code.co_name for f in within):
            raise
        text = " ".join(what(error).split())
        short = text if len(text) <= 300 else f"{text[:299]}…"
        raise KdkitError(f"{folder.checkpoint} does not fit this run: {short}; {_mend(folder)}") from error


def _mend(folder: RunFolder) -> str:
    return f"put a copy of this run's checkpoint in its place, or {folder.anew}"


def _words(root: Any) -> dict[str, Any]:
    """A recipe's words, its losses by name."""
    edges = root.value["losses"]
    return {**root.plain, "losses": {edge_name(edge): edge.plain for edge in edges.value}}


def _differences(old: Any, new: Any, where: str) -> Iterator[str]:
    if where in FREE:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
    elif old != new:
        yield f"{where} {_shown(old)} → {_shown(new)}"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = str(value).replace("'", "")
    return text if len(text) <= 60 else f"{text[:57]}…"
