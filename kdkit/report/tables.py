"""What `kdkit eval`, `kdkit compare`, `kdkit probe` and `kdkit latency` found, as tables of a run's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kdkit import web
from kdkit.console import si
from kdkit.report.gather import Told
from kdkit.runs.papers import reading

PERCENT = ("top", "ece", "agreement", "teacher_in", "linear", "knn", "held_out")
WORDS = {"knn": "kNN", "held_out": "held out", "decay": "λ", "kl": "KL", "js": "JS"}


def tables(told: Told) -> list[tuple[str, str]]:
    """Titles and what stands below them, of whatever is there."""
    parts = []
    with reading(f"eval.json of {told.name}"):
        for looked, models in told.evaluation.items():
            parts.append((f"Evaluation: {looked}", _by_name("model", models) + _by_class(models)))
    with reading(f"{told.name}/compare/compare.json"):
        parts += [("Teacher and student", _compared(told.comparison))] if told.comparison else []
    with reading(f"probe.json of {told.name}"):
        parts += [(f"Frozen features on {on}", _by_name("model", models)) for on, models in told.probes.items()]
    with reading(f"latency.json of {told.name}"):
        parts += [(f"Latency on {told.latency.get('device', '')}", _times(told.latency))] if told.latency else []
    return parts


def _compared(found: Mapping[str, Any]) -> str:
    content = _by_name("model", found["models"]) if found.get("models") else ""
    if students := found.get("students"):
        rows = {name: {**its, **_beside(its)} for name, its in students.items()}
        content += f"<p>Beside {escape(str(found.get('teacher', 'the teacher')))}:</p>{_by_name('student', rows)}"
        content += "".join(
            f"<p>Transfer of {escape(name)}: {escape(its['transfer']['reason'])}</p>"
            for name, its in students.items()
            if its.get("transfer", {}).get("reason")
        )
    return content


def _beside(its: Mapping[str, Any]) -> dict[str, Any]:
    """What is nested in a comparison and fits into a line."""
    found = {}
    if correlation := its.get("logit_correlation"):
        found = {"correlations: mean |Δ|": correlation["mean"], "Frobenius": correlation["frobenius"]}
    transfer = its.get("transfer") or {}
    if transfer.get("ratio") is not None:
        ends = (f"{transfer[end]:.2f}" for end in ("low", "high") if transfer.get(end) is not None)
        found["transfer [95 %]"] = f"{transfer['ratio']:.2f} [{', '.join(ends)}]"
    return found


def _times(found: Mapping[str, Any]) -> str:
    sizes = [
        (m["name"], m["arch"], f"{m['parameters']:,}", si(m["macs"]), "×".join(map(str, m["shape"])))
        for m in found.get("models", ())
    ]
    heads = ["model", "mode", "batch", "median ms", "p90 ms", "images/s"]
    keys = ("name", "mode", "batch", "median_ms", "p90_ms", "images_per_second")
    peak = any(row.get("peak_bytes") for row in found["times"])
    cells = [
        [
            *(number(row.get(key)) for key in keys),
            *([f"{si(row['peak_bytes'])}B" if row.get("peak_bytes") else ""] * peak),
        ]
        for row in found["times"]
    ]
    whole = table(["model", "architecture", "parameters", "MACs/image", "image"], sizes) + "<p></p>" if sizes else ""
    return whole + table([*heads, *["peak memory"] * peak], cells)


def _by_name(head: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a name, one column a number; what is nested is for files."""
    columns = list(
        dict.fromkeys(k for its in rows.values() for k, v in its.items() if isinstance(v, (int, float, str)))
    )
    cells = [[name, *(number(_scaled(key, its.get(key))) for key in columns)] for name, its in rows.items()]
    heads = [
        f"{WORDS.get(key, key.replace('top', 'top-').replace('_', ' '))}{' %' if key.startswith(PERCENT) else ''}"
        for key in columns
    ]
    return table([head, *heads], cells)


def _by_class(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracies of each class, the hardest for the first model above; folded, for there may be a thousand."""
    found = {name: its["by_class"] for name, its in models.items() if its.get("by_class")}
    if not found:
        return ""
    first = next(iter(found.values()))
    cells = [
        [word, *(number(_scaled("top1", its.get(word))) for its in found.values())]
        for word in sorted(first, key=first.get)
    ]
    return f"<details><summary>top-1 % by class</summary>{table(['class', *found], cells)}</details>"


def _scaled(key: str, value: Any) -> Any:
    return 100 * value if key.startswith(PERCENT) and isinstance(value, (int, float)) else value


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text."""
    return web.table([escape(head) for head in heads], [[escape(cell) for cell in row] for row in rows])


def number(value: Any) -> str:
    """As it is read best."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"
