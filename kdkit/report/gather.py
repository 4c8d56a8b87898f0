"""All that a run's page is made from, read from its folder; what is not there is left out."""

from __future__ import annotations

import base64
import csv
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdkit.registry import KdkitError
from kdkit.runs import events
from kdkit.runs.folder import RunFolder, read_json
from kdkit.runs.papers import MEND, read_recipe, reading
from kdkit.runs.portable import portable
from kdkit.runs.result import check_metrics, read_figures

Rows = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Told:
    """A run, read.

    Attributes:
        name: of its folder.
        title: of its recipe, as its first line says it.
        recipe: without folders of this machine.
        rows: metrics by epoch; what is not finite, and what is of a model that was not there, is left out.
        result: figures at the end; empty where the run is not finished.
        provenance: versions, commit, machine, seed.
        evaluation: what `kdkit eval` wrote, by what was looked at.
        comparison: the numbers of `kdkit compare`.
        figures: its pictures by name.
        probes: what `kdkit probe` wrote, by data.
        gradients: what `kdkit fit --diagnose` saw: a row for each epoch, model and loss.
        latency: what `kdkit latency --out RUN/latency.json` wrote.
        events: who joined, left and was treated in a cohort.
    """

    name: str
    title: str
    recipe: dict[str, Any]
    rows: Rows
    result: dict[str, Any]
    provenance: dict[str, Any]
    evaluation: dict[str, Any]
    comparison: dict[str, Any]
    figures: dict[str, Picture]
    latency: dict[str, Any]
    probes: dict[str, Any]
    gradients: list[dict[str, str]]
    events: list[events.Told]


def gather(run: Path, compare: Path | None = None) -> Told:
    """Read a run's folder.

    Args:
        run: the folder.
        compare: where `kdkit compare` wrote; left out: `compare` in the run's folder, where it is there.

    Raises:
        KdkitError: no run's folder, a damaged file, or no comparison where one was named.
    """
    folder = RunFolder(run)
    if not folder.recipe.is_file() or not folder.metrics.is_file():
        why = "has no whole epoch yet" if folder.recipe.is_file() else "is not a run's folder"
        raise KdkitError(f"{run} {why}; give the folder that `kdkit fit` writes")
    if compare is not None and not (compare / "compare.json").is_file():
        raise KdkitError(f"{compare} holds no compare.json; give the folder that `kdkit compare` wrote")
    compare = compare or run / "compare"
    check_metrics(folder)
    comparison = _json(compare / "compare.json")
    names = [name for name in comparison.get("figures") or () if isinstance(name, str)]
    figures = {"beliefs": _picture(folder.beliefs)}
    figures |= {Path(name).stem: _picture(compare / Path(name).name) for name in names}
    happened = events.read_events(folder.cohort)
    first = folder.recipe.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    return Told(
        name=run.resolve().name,
        title=first.lstrip("# ").partition(",")[0],
        recipe=portable(read_recipe(folder.recipe, "models", "losses", "data", "trainer").plain),
        rows=events.without_absent(_rows(folder.metrics), happened),
        result=read_figures(folder) if folder.complete else {},
        provenance=_json(folder.provenance),
        evaluation=_json(run / "eval.json"),
        comparison=comparison,
        figures={name: picture for name, picture in figures.items() if picture},
        latency=_json(run / "latency.json"),
        probes=_json(folder.probes),
        gradients=_table(folder.gradients),
        events=happened,
    )


def _json(path: Path) -> dict[str, Any]:
    return dict(read_json(path, MEND)) if path.is_file() else {}


def _table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with reading(path), path.open(encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key and value} for row in csv.DictReader(file)]


def _rows(path: Path) -> Rows:
    try:
        read = [{key: float(value) for key, value in row.items()} for row in _table(path)]
        rows = {int(row["epoch"]): {k: v for k, v in row.items() if math.isfinite(v)} for row in read}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KdkitError(f"{path} is damaged ({error})") from None
    if not rows:
        raise KdkitError(f"{path} holds no epoch yet")
    return rows


def _picture(path: Path) -> Picture | None:
    if path.suffix != ".png" or not path.is_file():
        return None
    content = path.read_bytes()
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        raise KdkitError(f"{path} is no picture; `kdkit compare` draws it anew")
    return Picture(f"data:image/png;base64,{base64.b64encode(content).decode()}", *struct.unpack(">II", content[16:24]))
