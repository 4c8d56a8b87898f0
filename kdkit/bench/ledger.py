"""What tuning tried: a note for the method's line, and every trial in a table of its own."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from kdkit.registry import KdkitError

Row = dict[str, Any]


def newest(rows: Sequence[Row]) -> list[Row]:
    """Without what was tuned with fewer trials than the same method in another row."""
    most: dict[str, int] = {}
    for row in rows:
        if "tuned" in row:
            most[row["method"]] = max(row["tuned"]["trials"], most.get(row["method"], 0))
    return [row for row in rows if "tuned" not in row or row["tuned"]["trials"] == most[row["method"]]]


def tuned_note(row: Row) -> str:
    """How the values of a tuned row were found."""
    how = row["tuned"]
    return (
        f"equal budget: trial {how['trial'] + 1} of {how['trials']}, {100 * how['score']:.2f} % on held-out training "
        f"images: {_said(how['values'])}"
    )


def ledger(rows: Sequence[Row], form: str) -> str:
    """Every trial with its values and its score, method by method.

    Args:
        rows: of trials.
        form: `md` or `csv`.

    Raises:
        KdkitError: another form.
    """
    if form not in ("md", "csv"):
        raise KdkitError(f"trials are shown as md or csv, got --format {form}; leave their file out")
    studies: dict[str, list[Row]] = {}
    for row in rows:
        studies.setdefault(row["study"], []).append(row)
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        heads = "pair method study trial held_out_top1 values minutes seed commit why"
        writer.writerow(heads.split())
        for row in (row for its in studies.values() for row in its):
            words = [row["pair"], row["method"], row["study"], row["trial"] + 1, f"{100 * _score(row):.6g}"]
            rest = [row["minutes"], row["seed"], row["commit"], row.get("why", "")]
            writer.writerow([*words, _said(row["values"]), *rest])
        return text.getvalue()
    return "\n".join(_markdown(its) for its in studies.values())


def _markdown(rows: Sequence[Row]) -> str:
    words = list(rows[0]["values"])
    best = max(rows, key=_score)
    heads = ["trial", *(f"`{word.removeprefix('losses.')}`" for word in words), "held-out top-1 %", "minutes"]
    lines = ["| " + " | ".join(heads) + " |", "| ---: |" + " ---: |" * (len(heads) - 1)]
    for row in rows:
        score = "not finite" if "why" in row else f"{100 * _score(row):.2f}"
        score = f"**{score}**" if row is best else score
        minutes = "–" if row["minutes"] is None else f"{row['minutes']:.1f}"
        cells = [str(row["trial"] + 1), *(f"{row['values'][word]:g}" for word in words), score, minutes]
        lines.append("| " + " | ".join(cells) + " |")
    commits = ", ".join(sorted({str(row["commit"]) for row in rows}))
    facts = f"- seed {rows[0]['seed']}, study {rows[0]['study']}, commit {commits}"
    title = f"**Trials of {rows[-1]['method']}, {rows[-1]['pair']} on {rows[-1]['data']}**"
    return "\n".join([title, "", *lines, "", facts]) + "\n"


def _score(row: Row) -> float:
    return float(row["last"][row["node"]]["top1"])


def _said(values: Mapping[str, float]) -> str:
    return ", ".join(f"{word.removeprefix('losses.')} {value:g}" for word, value in values.items())
