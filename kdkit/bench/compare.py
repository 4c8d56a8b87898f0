"""Methods beside the student alone and the teacher, image by image: differences, tests, transfer ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kdkit.bench import packed, stats
from kdkit.bench.rows import Row, selects
from kdkit.bench.suite import ALONE, TEACHER

if TYPE_CHECKING:
    from kdkit.bench.table import Line

ROUNDED = 0.0025
"""How far a teacher's accuracy in another precision may be from its own."""


def compared(lines: list[Line], groups: dict[str, list[Row]]) -> list[Line]:
    """Lines with what the kept predictions say of each method beside the student alone and the teacher.

    Args:
        lines: of a table.
        groups: the rows of each line, by its name.
    """
    runs = [(name, row) for name, group in groups.items() for row in group if row.get("predictions")]
    alone = next((name for name, group in groups.items() if group[0]["method"] == ALONE), None)
    tuned = next((name for name, g in groups.items() if g[0].get("tuned", {}).get("of") == ALONE), None)
    if alone is None or len({row["predictions"]["images"] for _, row in runs}) != 1:
        return lines
    bases = {alone, tuned, *(name for name, group in groups.items() if group[0]["method"] == TEACHER)}
    if all(line.method in bases for line in lines):
        return lines  # nothing to compare
    right = np.stack([packed.right(row["predictions"]) for _, row in runs]).astype(np.float64)
    whole = np.concatenate([right.mean(axis=1)[None], stats.image_draws(right)])  # as it is, then drawn anew
    columns = {(name, row["seed"]): i for i, (name, row) in enumerate(runs)}
    teacher = next((i for i, (name, row) in enumerate(runs) if row["method"] == TEACHER), None)
    besides = {line.method: tuned if tuned and "tuned" in groups[line.method][0] else alone for line in lines}
    common = {
        method: [seed for name, seed in columns if name == method and (beside, seed) in columns]
        for method, beside in besides.items()
    }
    asked = {
        method: tuple(
            runs[columns[name, seed]][1]["content"] for name in (method, str(besides[method])) for seed in seeds
        )
        for method, seeds in common.items()
    }  # by which runs it is answered: a tuned method that is the published one asks nothing new
    tests = len({asked[method] for method, seeds in common.items() if len(seeds) > 1 and method not in bases})
    made, off = [], {}
    for line in lines:
        beside, seeds = besides[line.method], common[line.method]
        if line.method in bases:
            made.append(line)
            continue
        if not seeds:
            note = "not compared: it has no seed in common with the student alone"
            made.append(replace(line, notes=(*line.notes, note)))
            continue
        its, those = ([columns[name, seed] for seed in seeds] for name in (line.method, beside))
        mine, base = whole[:, its], whole[:, those]
        every = np.concatenate([np.full((1, len(seeds)), 1 / len(seeds)), stats.seed_draws(len(seeds))])
        gain = stats.difference(right[its] - right[those], tests)
        ratio = None
        if teacher is not None:
            ratio = stats.transfer((mine * every).sum(axis=1), (base * every).sum(axis=1), whole[:, teacher])
            if other := _of_another(groups[line.method], runs[teacher][1]):
                ratio = stats.Transfer(math.nan, reason=other)
        notes = [
            *line.notes,
            *(["Δ, p and transfer ratio are beside the tuned student alone"] if beside == tuned else []),
        ]
        notes += [f"no transfer ratio: {ratio.reason}"] if ratio and ratio.reason else []
        off[line.method] = _off(groups, [(line.method, mine[0]), (beside, base[0])], seeds)
        if len(seeds) < max(line.n, len({row["seed"] for row in groups[str(beside)]})):
            both = f"{len(seeds)} seed{'s' * (len(seeds) > 1)} that both have"
            notes.append(f"compared with the student alone on the {both}")
        made.append(replace(line, gain=gain, transfer=ratio, notes=tuple(notes)))
    anew = (
        "Δ, p and transfer ratio are of predictions that were made anew after training, "
        f"up to {100 * max(off.values(), default=0):.2f} points off the last epoch's"
    )
    found = {asked[line.method]: line.gain.p for line in made if line.gain}
    corrected = dict(zip(found, stats.holm(list(found.values())), strict=True))
    held = any(map(selects, (row for group in groups.values() for row in group)))  # the table says whose they are
    told = [(*line.notes, anew) if off.get(line.method, 0) > 1e-6 and not held else line.notes for line in made]
    return [
        replace(line, p=corrected[asked[line.method]] if line.gain else math.nan, notes=notes)
        for line, notes in zip(made, told, strict=True)
    ]


def _of_another(rows: Sequence[Row], teacher: Row) -> str:
    """Why a table's teacher is not the one that taught these rows; empty where it may be."""
    known = teacher["last"][teacher["node"]]["top1"]
    for row in rows:
        theirs = row["last"].get("teacher", {}).get("top1", known)
        if abs(theirs - known) > ROUNDED and not selects(row):
            return f"they learned from a teacher of {100 * theirs:.2f} %, not from this one of {100 * known:.2f} %"
    return ""


def _off(groups: dict[str, list[Row]], kept: Sequence[tuple[str, stats.Floats]], seeds: Sequence[int]) -> float:
    """How far kept predictions are from the last epoch's, as of rows that had looked again in another precision."""
    last = {(name, row["seed"]): row["last"][row["node"]]["top1"] for name, _ in kept for row in groups[name]}
    return max(abs(float(last[name, s] - r)) for name, right in kept for s, r in zip(seeds, right, strict=True))
