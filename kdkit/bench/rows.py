"""Rows of results: one JSON line a run, appended whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from kdkit.bench.expand import Cell, mark
from kdkit.bench.kinds import no_number
from kdkit.bench.packed import pack
from kdkit.recipe import content_key, source
from kdkit.recipe.write import READING, document, dump
from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder, read_json
from kdkit.runs.result import check_metrics, read_figures
from kdkit.storage import crc32, one_at_a_time

log = logging.getLogger(__name__)

Row = dict[str, Any]
NEEDED = {
    "suite", "pair", "method", "teacher", "student", "data", "node", "seed", "content", "fingerprint", "variant",
    "last", "best", "epochs", "protocol", "protocol_epochs", "minutes", "peak_gb", "parameters", "curve", "recipe",
    "commit", "versions", "machine",
}  # fmt: skip
LACKS = {"variant", "protocol", "protocol_epochs", "parameters", "curve", "recipe"}  # a trial may
SUM = re.compile(r'(.*), "crc32": "([0-9a-f]{8})"}')  # how a line ends; older ones have none
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def key(row: Row) -> tuple[str, str]:
    """What makes it the row of a cell."""
    return row["content"], row["fingerprint"] + mark(row)


def read_rows(path: Path) -> list[Row]:
    """Every row of a file; what a power cut left of a last one is none, which a warning tells.

    Raises:
        KdkitError: no such file, or a line that is no row of `kdkit bench`, or not as it was written.
    """
    if path.is_dir():
        there = (path / "results.jsonl").exists()
        where = f"its rows are in {path / 'results.jsonl'}" if there else "name a file of rows"
        raise KdkitError(f"{path} is a folder; {where}")
    try:
        text, torn = _text(path)
        if torn:  # or another process is writing it
            with one_at_a_time(path):
                text, torn = _text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise KdkitError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if torn:
        _tell_torn(path)
    found = []
    for i, line in enumerate(text.split("\n")[:-1], 1):
        try:
            row = json.loads(line, parse_constant=no_number)
        except (ValueError, RecursionError) as error:
            raise _alien(path, i, f"is no JSON ({error})", text) from None
        needed = NEEDED - LACKS | {"study", "values"} if isinstance(row, dict) and "trial" in row else NEEDED
        if not isinstance(row, dict) or (missing := needed - row.keys()):
            which = "" if not isinstance(row, dict) else f"; it has no {', '.join(sorted(missing))}"
            raise _alien(path, i, f"is no row of `kdkit bench`{which}", text)
        if row.pop("crc32", None) is not None and not _as_written(line):
            why = "is damaged, or was edited: its checksum is not its content's"
            raise KdkitError(f"{path}:{i}: {why}; take the line out, and `kdkit bench` runs it again")
        found.append(row)
    return found


def _text(path: Path) -> tuple[str, bool]:
    """What it holds, and whether its last row was cut off, which is left out."""
    left = path.read_bytes()
    whole = _ended(left)
    return whole.decode().replace("\r\n", "\n"), len(whole) < len(left)


@cache
def _tell_torn(path: Path) -> None:
    log.warning("warning: %s: its last row was cut off, and counts for nothing", path)


def latest(rows: Sequence[Row], shipped: Sequence[Row] = ()) -> list[Row]:
    """One row of each run by its name: the last one's, with what an earlier one alone knows (time and memory).

    A recipe has one name in a suite, that of its last row, as after its method was renamed. Where rows of a run say
    different accuracies, as of two machines, the last has `again: True`.

    Args:
        rows: one's own.
        shipped: kdkit's, of runs that are not one's own.
    """
    own = {key(row) for row in rows}
    whole = [*({**row, "shipped": True} for row in shipped if key(row) not in own), *rows]
    called = {_recipe(row): row["method"] for row in whole}
    found: dict[tuple[tuple[str, str], str], Row] = {}
    for row in [*rows, *whole[: len(whole) - len(rows)]]:
        name = called[_recipe(row)]
        old = found.get((key(row), name), row)
        again = {"again": True} if "again" in old or old["last"] != row["last"] else {}
        known = {word: old[word] if row[word] is None else row[word] for word in ("minutes", "peak_gb")}
        found[key(row), name] = {**row, "method": name, **known, **again}
    return list(found.values())


def _recipe(row: Row) -> tuple[str, str, str]:
    return row["suite"], row["variant"], row["fingerprint"] + mark(row)


def check_writable(path: Path) -> None:
    """Raise `KdkitError` where no row can be added to a file, before anything is trained for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise KdkitError(f"{path} cannot be written: {error.strerror}; give another file with --results") from None


def _alien(path: Path, line: int, what: str, text: str) -> KdkitError:
    """What is told of a line that is no row; where the file has none, it is the file that is wrong."""
    if '"pair": ' in text:
        return KdkitError(f"{path}:{line}: {what}; take the line out")
    return KdkitError(f"{path} is no file of rows, for line {line} {what}; give one that `kdkit bench` wrote")


def append(path: Path, row: Row) -> None:
    """Add a row: one write under a lock; what a power cut left of another is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    line = f'{text[:-1]}, "crc32": "{crc32(text.encode())}"}}\n'.encode()
    with one_at_a_time(path), path.open("a+b") as file:
        file.seek(0)
        before = file.read()
        if before != (whole := _ended(before)):
            file.truncate(min(len(before), len(whole)))
        file.write(whole[len(before) :] + line)
        file.flush()
        os.fsync(file.fileno())


def _ended(text: bytes) -> bytes:
    """Without what is left of a last line that was torn; one that lacks its end alone, as editors leave it, gets it."""
    last = text[text.rfind(b"\n") + 1 :]
    return text + b"\n" if _as_written(last.decode(errors="replace")) else text[: len(text) - len(last)]


def _as_written(line: str) -> bool:
    found = SUM.fullmatch(line)
    return found is not None and crc32(f"{found[1]}}}".encode()) == found[2]


def place(cell: Cell, suite: str) -> Row:
    """Where a row stands in a table: whatever is of the cell, and not of the run, which several cells may share."""
    return {
        "suite": suite,
        "pair": cell.pair,
        "method": cell.method,
        "teacher": cell.ends[0],
        "student": cell.ends[1],
        "fingerprint": cell.column,
        "protocol": cell.protocol,
        "protocol_epochs": cell.protocol_epochs,
        "changes": list(cell.changes),
        "written": cell.written,
        **cell.told,
    }


def identity(cell: Cell, suite: str, folder: RunFolder) -> Row:
    """Which run a row is of, and where it ran."""
    return {
        "data": cell.recipe.data.name,
        "node": cell.node,
        **{k: v for k, v in read_json(folder.provenance).items() if k not in ("classes", "code", "weights")},
        **place(cell, suite),
        "content": cell.content,
    }


def make_row(cell: Cell, suite: str, folder: RunFolder, extra: Row, hidden: Sequence[Path]) -> Row:
    """All that a table needs to know of a finished run.

    Args:
        cell: what was run.
        suite: its name.
        folder: of the run.
        extra: what was measured around it.
        hidden: folders of this machine, which no row tells.
    """
    from kdkit.models import read_weights
    from kdkit.runs.evaluate import predictions

    said: Row = {}
    if not cell.trial:  # which sees no test image
        classes, correct = predictions(folder.path)[cell.node]
        said["predictions"] = pack(classes.numpy(), correct.numpy())
    weights = read_weights(folder.weights(cell.node))
    check_metrics(folder)
    figures = read_figures(folder)
    return {
        **identity(cell, suite, folder),
        "variant": content_key(cell.recipe.model_copy(update={"seed": 0})),  # rows that differ in their seed alone
        **figures,
        **extra,
        "parameters": sum(t.numel() for name, t in weights.items() if not name.endswith(STATISTICS)),
        "curve": _curve(folder, cell.node),
        "recipe": _portable(cell, hidden),
        **said,
    }


def _curve(folder: RunFolder, node: str) -> list[list[float]]:
    """Top-1 after every epoch that was validated."""
    import csv

    with folder.metrics.open(encoding="utf-8", newline="") as file:
        rows = [(row["epoch"], row.get(f"val/{node}/top1")) for row in csv.DictReader(file)]
    return [[int(epoch), round(float(top1), 5)] for epoch, top1 in rows if top1]


def _portable(cell: Cell, hidden: Sequence[Path]) -> str:
    """The resolved recipe without folders of this machine; a teacher's own recipe is written below its name."""
    whole = document(cell.recipe)
    whole["data"] = {k: v for k, v in whole["data"].items() if k not in READING}
    text = dump(whole)
    for name, spec in cell.recipe.models.items():
        if spec.source == "recipe":
            theirs, short = document(source(cell.recipe, name)), Path(str(spec.weights)).name
            theirs["data"] = {k: v for k, v in theirs["data"].items() if k not in READING}
            text = text.replace(str(spec.weights), short)
            text += f"# {short}:\n" + "".join(f"#   {line}\n" for line in dump(theirs).splitlines())
    for folder in sorted(map(str, hidden), key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return text


def selects(row: Row) -> bool:
    """Whether its accuracies are of held-out training images, as of a run that may be chosen by them."""
    return bool(_val_split(row["recipe"]))


@cache
def _val_split(recipe: str) -> Any:
    return ((yaml.safe_load(recipe) or {}).get("data") or {}).get("val_split")
