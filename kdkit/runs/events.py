"""What cohort.csv tells: who joined, left and was treated when, and which numbers are of models that were not there."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kdkit.registry import KdkitError

Rows = Mapping[int, Mapping[str, float]]


class Told(NamedTuple):
    """A line of it; `epoch` counts what is over, and may be a fraction."""

    epoch: float
    model: str
    what: str
    why: str


def read_events(path: Path) -> list[Told]:
    """Every line; none where there is no file.

    Raises:
        KdkitError: the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [Told(float(r["epoch"]), r["model"], r["what"], r["why"]) for r in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise KdkitError(f"{path} is damaged ({error})") from None


def away(events: Iterable[Told]) -> dict[str, list[tuple[float, float]]]:
    """From when to when each model was not there, in epochs; those who always were have no entry."""
    found: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        mine = found.setdefault(event.model, [])
        if event.what == "joins":
            mine.append((mine.pop()[0] if mine else 0.0, event.epoch))
        elif event.what == "gone":
            mine.append((event.epoch, float("inf")))
    return {name: several for name, several in found.items() if several}


def without_absent(rows: Rows, events: Sequence[Told]) -> dict[int, dict[str, float]]:
    """Metrics by epoch without the accuracy and the learning rate of a model in epochs that it took no part in."""
    gaps = away(events)

    def absent(key: str, epoch: int) -> bool:
        kind, _, name = key.partition("/")
        name = name.partition("/")[0]
        return kind in ("val", "lr") and any(a <= epoch - 1 and epoch <= b for a, b in gaps.get(name, ()))

    return {epoch: {k: v for k, v in row.items() if not absent(k, epoch)} for epoch, row in rows.items()}


def there(events: Sequence[Told]) -> dict[str, str]:
    """In which epochs a model that came or went took part: `epochs 1–4`."""
    found = {}
    for name, gaps in away(events).items():
        edges = [0.0, *(time for gap in gaps for time in gap), float("inf")]
        spans = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
        ends = (f"{a:.4g}–{'' if b == float('inf') else f'{b:.4g}'}" for a, b in spans)
        found[name] = f"epochs {', '.join(ends)}"
    return found
