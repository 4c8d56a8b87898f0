"""What a finished run came to."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder, plain, read_json, write_json
from kdkit.storage import crc32

NOT_FINITE = "which makes the accuracy meaningless too; a lower learning rate usually helps"

Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Result:
    """What a finished run came to.

    Attributes:
        folder: where everything lies.
        last: metrics of each node after the last epoch: `{"student": {"top1": 0.71, …}}`.
        best: likewise at the epoch of the best top-1, to be named so; nothing was selected by it.
    """

    folder: RunFolder
    last: Metrics
    best: Metrics

    @property
    def not_finite(self) -> list[str]:
        """Names of metrics after the last epoch that are no numbers: `student nll`."""
        return [
            f"{node} {name}" for node, found in self.last.items() for name, v in found.items() if not math.isfinite(v)
        ]


def read_result(folder: RunFolder) -> Result:
    """The figures of a finished run.

    Raises:
        KdkitError: the file is damaged.
    """
    figures = read_figures(folder)
    try:
        return Result(folder, _numbers(figures["last"]), _numbers(figures["best"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KdkitError(f"{folder.result} is damaged ({error!r}); --overwrite begins the run anew") from None


def write_figures(folder: RunFolder, found: Mapping[str, Any]) -> None:
    """Write result.json: the figures, their checksum, and that of metrics.csv."""
    sums = {folder.result.name: _sum(plain(found))}
    if folder.metrics.exists():
        sums[folder.metrics.name] = _sum_of_rows(folder)
    write_json(folder.result, {**found, "crc32": sums})


def read_figures(folder: RunFolder) -> dict[str, Any]:
    """All that result.json tells, but for checksums; older versions wrote none.

    Raises:
        KdkitError: the file is damaged.
    """
    found: dict[str, Any] = read_json(folder.result)
    sums = found.pop("crc32", None)
    if sums is not None and not (isinstance(sums, dict) and sums.get(folder.result.name) == _sum(found)):
        raise KdkitError(f"{folder.result} is damaged: its checksum is not its content's; {folder.anew}")
    return found


def check_metrics(folder: RunFolder) -> None:
    """Raise `KdkitError` where metrics.csv is not what the run, which is finished, wrote."""
    sums = read_json(folder.result).get("crc32") if folder.complete else None
    wanted = sums.get(folder.metrics.name) if isinstance(sums, dict) else None
    if wanted is not None and folder.metrics.exists() and _sum_of_rows(folder) != wanted:
        told = f"its checksum is not the one in {folder.result.name}"
        raise KdkitError(f"{folder.metrics} is damaged, or was edited: {told}; {folder.anew}")


def _sum_of_rows(folder: RunFolder) -> str:
    """Of metrics.csv, however its lines end: git and spreadsheets change that."""
    return crc32(folder.metrics.read_bytes().replace(b"\r\n", b"\n"))


def _sum(found: Any) -> str:
    return crc32(json.dumps(found).encode())


def figures(rows: Mapping[int, Mapping[str, float]], nodes: Collection[str]) -> dict[str, Any]:
    """Last and best of each node, in the recipe's order, out of `val/<node>/<metric>`."""
    last: Metrics = {}
    best: Metrics = {}
    for node in nodes:
        for epoch, row in sorted(rows.items()):
            names = {key.rpartition("/")[2]: key for key in row if key.startswith(f"val/{node}/")}
            metrics = {name: row[names[name]] for name in sorted(names, key=_place)}
            if metrics:
                last[node] = metrics
                if node not in best or metrics["top1"] > best[node]["top1"]:
                    best[node] = {**metrics, "epoch": epoch}
    return {"last": last, "best": best}


def _place(name: str) -> tuple[bool, str]:
    """Accuracies first."""
    return not name.startswith("top"), name


def _numbers(found: Mapping[str, Mapping[str, float | None]]) -> Metrics:
    """JSON's null is what was no number."""
    told = {node: metrics.items() for node, metrics in found.items()}
    return {node: {k: math.nan if v is None else float(v) for k, v in pairs} for node, pairs in told.items()}
