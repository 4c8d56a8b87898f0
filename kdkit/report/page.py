"""A run's page: one file with its graph, curves, figures, provenance and how it is made again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from kdkit.recipe.write import READING, dump
from kdkit.registry import KdkitError
from kdkit.report.charts import Chart, charts, gradient_charts
from kdkit.report.gather import Told, gather
from kdkit.report.graph_svg import graph_svg
from kdkit.report.links import arrows, boxes
from kdkit.runs.events import there
from kdkit.runs.folder import RunFolder, write_text
from kdkit.web import document

FIGURES = {
    "beliefs": ("Beliefs by depth", "How the modules' predictions sharpen from the first to the last."),
    "cka": ("Similarity of layers", "Linear CKA (unbiased) between layers of teacher and student."),
    "calibration": ("Calibration", "Accuracy against confidence; the nearer to the diagonal, the better."),
    "entropy": ("How sure they are", "Entropy of the predictions."),
    "who_is_right": ("Who is right", "Where the two agree, and who is right where they do not."),
    "logit_correlation": ("Correlations of logits", "Between classes: teacher minus student."),
    "embeddings": ("Embeddings", "In two dimensions, coloured by class."),
}
BROAD = ("who_is_right", "embeddings", "cases")
PERCENT = ("top", "ece", "agreement", "teacher_in")


def write_report(run: Path, path: Path | None = None, compare: Path | None = None) -> Path:
    """Write a run's page; `report.html` in its folder where no other place is named.

    Raises:
        KdkitError: as `gather`.
    """
    path = path or RunFolder(run).report
    write_text(path, page(gather(run, compare)))
    return path


def page(told: Told) -> str:
    """The whole page; everything that the run says is escaped."""
    found = boxes(told.recipe)
    taught = arrows(told.recipe)
    frozen = [box.name for box in found if box.kind == "frozen"]
    losses = [arrow.name for arrow in taught]
    drawn = charts(told.rows, frozen, [box.name for box in found], losses)
    try:
        drawn += gradient_charts(told.gradients, sorted(told.rows), losses)
    except (KeyError, ValueError) as error:
        raise KdkitError(f"gradients.csv of {told.name} is damaged ({error})") from None
    last = _last(told)
    under = {
        name: f"{100 * metrics['top1']:.2f} %" for name, metrics in last.items() if metrics.get("top1") is not None
    }
    for name, when in there(told.events).items():
        under[name] = f"{under[name]}, {when}" if name in under else when
    svg = graph_svg(found, taught, under)
    body = "\n".join(
        part
        for part in (
            _header(told),
            _tiles(told),
            _section("The recipe as a graph", f'<div class="scroll">{svg}</div>\n<p>{GRAPH}</p>'),
            _section("Curves", _charts(drawn) + _numbers(told, drawn)),
            _cohort(told),
            _tables(told),
            _figures(told),
            _section("How it is made again", _again(told)),
            _section("Provenance", _provenance(told)),
        )
        if part
    )
    data = {"epochs": sorted(told.rows), "charts": [asdict(chart) for chart in drawn]}
    numbers = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    body += f'\n<script type="application/json" id="numbers">{numbers}</script>'
    style = _file("uplot/uPlot.min.css") + _file("report.css")
    licence = "/* uPlot's licence:\n" + _file("uplot/LICENSE").replace("*/", "* /") + "*/"
    script = "\n".join((licence, *map(_file, ("before.js", "uplot/uPlot.iife.min.js", "report.js"))))
    return document(f"{told.name}: report", body, style, script)


GRAPH = (
    "Boxes are models, arrows are losses with their weights and the taps that they compare; knowledge flows along them."
)


def _file(name: str) -> str:
    return (files("kdkit.report") / name).read_text(encoding="utf-8")


def _header(told: Told) -> str:
    data, epochs = told.recipe["data"], told.recipe["trainer"]["max_epochs"]
    done = max(told.rows)
    state = f"{epochs} epochs" if told.result else f"not finished: {done} of {epochs} epochs"
    facts = [str(data.get("name", "")), state, f"seed {told.recipe.get('seed', 0)}"]
    if minutes := told.result.get("minutes"):
        facts.append(f"{minutes:.0f} minutes" if minutes >= 2 else f"{60 * minutes:.0f} seconds")
    facts.append(str(told.provenance.get("started", ""))[:10])
    line = " · ".join(fact for fact in facts if fact)
    return f"<header><h1>{escape(told.name)}</h1><p>{escape(told.title)} — {escape(line)}</p></header>"


def _last(told: Told) -> Mapping[str, Any]:
    if told.result:
        return dict(told.result.get("last", {}))
    found: dict[str, dict[str, float]] = {}
    for _, row in sorted(told.rows.items()):
        for key, value in row.items():
            if key.startswith("val/"):
                _, name, metric = key.split("/", 2)
                found.setdefault(name, {})[metric] = value
    return found


def _tiles(told: Told) -> str:
    tiles = []
    for name, metrics in _last(told).items():
        if metrics.get("top1") is None:
            continue
        best = told.result.get("best", {}).get(name, {})
        beside = "top-1 after the last epoch"
        moved = best.get("top1") is not None and best["top1"] > metrics["top1"]
        note = f"best epoch {best['epoch']:.0f}: {100 * best['top1']:.2f} %" if moved else ""
        tiles.append(
            f'<div class="tile"><span>{escape(name)}</span><b>{100 * metrics["top1"]:.2f} %</b>'
            f"<i>{escape(beside)}{'<br>' if note else ''}{escape(note)}</i></div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def _charts(drawn: Sequence[Chart]) -> str:
    parts = []
    for chart in drawn:
        values = [value for one in chart.series.values() for value in one if value is not None]
        switch = f'<button type="button">{"linear" if chart.log else "logarithmic"}</button>'
        head = f"<h3>{escape(chart.title)}</h3>{switch if values and min(values) > 0 and not chart.unit else ''}"
        parts.append(
            f'<div class="chart"><div class="head">{head}</div><div class="plot"></div>'
            f"<p>{escape(chart.caption)}</p></div>"
        )
    hint = (
        "<p>Hover to read values; drag sideways to zoom, double-click to see all; a click on a name hides its line.</p>"
    )
    return f'<div class="charts">{"".join(parts)}</div>\n{hint}'


def _numbers(told: Told, drawn: Sequence[Chart]) -> str:
    """The same as a table, for whoever has no script or wants to copy."""
    columns = [key for key in sorted({k for row in told.rows.values() for k in row}) if key not in ("epoch", "step")]
    rows = [[str(epoch), *(_number(row.get(key)) for key in columns)] for epoch, row in sorted(told.rows.items())]
    return f"<details><summary>Numbers by epoch</summary>{table(['epoch', *columns], rows)}</details>"


def _cohort(told: Told) -> str:
    """Who came, went and was treated."""
    cells = [[f"{event.epoch:g}", event.model, event.what, event.why] for event in told.events]
    return _section("Cohort", table(["after epoch", "model", "what", "why"], cells)) if cells else ""


def _tables(told: Told) -> str:
    parts = []
    for looked, models in told.evaluation.items():
        rows = {name: its for name, its in models.items() if isinstance(its, Mapping)}
        if rows:
            parts.append(_section(f"Evaluation: {looked}", _by_name("model", rows)))
    if told.comparison:
        models = told.comparison.get("models", {})
        students = told.comparison.get("students", {})
        content = (_by_name("model", models) if models else "") + (
            f"<p>Beside {escape(str(told.comparison.get('teacher', 'the teacher')))}:</p>"
            + _by_name("student", students)
            if students
            else ""
        )
        parts.append(_section("Teacher and student", content))
    if times := told.latency.get("times"):
        heads = ["model", "mode", "batch", "median ms", "p90 ms", "images/s"]
        keys = ("name", "mode", "batch", "median_ms", "p90_ms", "images_per_second")
        cells = [[_number(row.get(key)) for key in keys] for row in times]
        parts.append(_section(f"Latency on {told.latency.get('device', '')}", table(heads, cells)))
    return "\n".join(parts)


def _by_name(head: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a name, one column a number; what is nested is for files."""
    columns = list(dict.fromkeys(k for its in rows.values() for k, v in its.items() if isinstance(v, (int, float))))
    cells = [[name, *(_number(_scaled(key, its.get(key))) for key in columns)] for name, its in rows.items()]
    heads = [f"{key.replace('_', ' ')}{' %' if key.startswith(PERCENT) else ''}" for key in columns]
    return table([head, *heads], cells)


def _scaled(key: str, value: Any) -> Any:
    return 100 * value if key.startswith(PERCENT) and isinstance(value, (int, float)) else value


def _figures(told: Told) -> str:
    parts = []
    for name, uri in told.figures.items():
        title, caption = FIGURES.get(name, (name.replace("_", " "), ""))
        if name.startswith("cases_"):
            title, caption = f"Where they differ: {name.removeprefix('cases_')}", "Images, by who is right."
        broad = ' class="broad"' if name.startswith(BROAD) else ""
        parts.append(
            f'<figure{broad}><h3>{escape(title)}</h3><img src="{uri}" alt="{escape(title)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return _section("Figures", f'<div class="figures">{"".join(parts)}</div>') if parts else ""


def _again(told: Told) -> str:
    versions = told.provenance.get("versions", {})
    commit = told.provenance.get("commit")
    needs = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    root = " data.root=FOLDER" if told.recipe["data"].get("name") in ("folder", "imagenet") else ""
    notes = [f"With {needs}{f'; kdkit at commit {commit}' if commit else ''}." if needs else ""]
    if str(commit or "").endswith("+"):
        notes.append("The + says that kdkit's files had changes that were not committed.")
    notes.append(
        f"Files and folders of the machine are left out of the recipe ({', '.join(READING[:1])}, weights, own code)."
    )
    text = f"# recipe.yaml\n{dump(told.recipe)}"
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes if note)
    return f"<pre>{escape(text)}</pre>\n<pre>kdkit fit recipe.yaml{root}</pre>\n<ul>{listed}</ul>"


def _provenance(told: Told) -> str:
    machine = told.provenance.get("machine", {})
    facts = {
        "started": told.provenance.get("started"),
        "machine": ", ".join(str(machine[k]) for k in ("system", "processor") if machine.get(k)),
        "GPUs": ", ".join(map(str, machine.get("gpus") or [])),
        "threads": machine.get("threads"),
        **told.provenance.get("versions", {}),
        "commit": told.provenance.get("commit"),
        "seed": told.provenance.get("seed"),
        "fingerprint": told.provenance.get("fingerprint"),
        "content": told.provenance.get("content"),
    }
    lines = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items() if v not in (None, ""))
    return f"<dl>{lines}</dl>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column stays in sight; it scrolls by itself where it is wider than the page."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"
