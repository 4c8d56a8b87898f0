"""A run's page: one file with its graph, curves, figures, provenance and how it is made again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from kdkit.recipe.write import dump
from kdkit.registry import KdkitError
from kdkit.report.charts import Chart, charts, gradient_charts
from kdkit.report.figures import figures
from kdkit.report.gather import Told, gather
from kdkit.report.graph_svg import graph_svg
from kdkit.report.links import arrows, boxes, ends
from kdkit.report.tables import number, table, tables
from kdkit.runs.events import there
from kdkit.runs.folder import RunFolder, write_text
from kdkit.runs.moments import Moment, moments
from kdkit.runs.papers import reading
from kdkit.runs.teacher import own_run
from kdkit.web import document


def write_report(run: Path, path: Path | None = None, compare: Path | None = None) -> Path:
    """Write a run's page; where no other place is named `report.html` in its folder, or here for a shared teacher.

    Raises:
        KdkitError: as `gather`.
    """
    text, own = page(gather(run, compare)), own_run(run)
    path = path or (own.report if own else Path(RunFolder(run).report.name))
    try:
        write_text(path, text)
    except OSError as error:
        raise KdkitError(f"{path} cannot be written: {error.strerror}; give another --out") from None
    return path


def page(told: Told) -> str:
    """The whole page; everything that the run says is escaped.

    Raises:
        KdkitError: a file of the run says what no run says.
    """
    name = told.name
    with reading(f"provenance.json of {name}"):
        noted, end = ends(told.provenance), (_needs(told), _provenance(told))
    with reading(f"recipe.yaml of {name}"):
        found, taught = boxes(told.recipe), arrows(told.recipe, noted, _weights(told))
        frozen = [box.name for box in found if box.kind == "frozen"]
        losses = [arrow.name for arrow in taught]
        again, epochs = _recipe(told), int(told.recipe["trainer"]["max_epochs"])
        stages = [(str(stage["name"]), stage.get("when") or {}) for stage in told.recipe.get("stages") or ()]
        marks = moments(told.events, stages, epochs)
    drawn = charts(told.rows, frozen, [box.name for box in found], losses)
    with reading(f"gradients.csv of {name}"):
        drawn += gradient_charts(told.gradients, sorted(told.rows), losses)
    with reading(f"result.json of {name}"):
        last = _last(told)
        top = _header(told, epochs), _tiles(told, last)
        under = {n: f"{100 * its['top1']:.2f} %" for n, its in last.items() if its.get("top1") is not None}
    for model, when in there(told.events).items():
        under[model] = f"{under[model]}, {when}" if model in under else when
    with reading(f"recipe.yaml and provenance.json of {name}"):
        svg = graph_svg(found, taught, under)
    parts = (
        *top,
        _section("The recipe as a graph", f'<div class="scroll">{svg}</div>\n<p>{GRAPH}</p>'),
        _section("Curves", _charts(drawn, marks) + _numbers(told)),
        _section("Cohort", _cohort(told)),
        *(_section(*part) for part in tables(told)),
        _section("Figures", figures(told)),
        _section("How it is made again", again + end[0]),
        _section("Provenance", end[1]),
    )
    data = {"epochs": sorted(told.rows), "marks": marks, "charts": [asdict(chart) for chart in drawn]}
    numbers = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    body = "\n".join(filter(None, parts)) + f'\n<script type="application/json" id="numbers">{numbers}</script>'
    style = _file("uplot/uPlot.min.css") + _file("report.css")
    licence = "/* uPlot's licence:\n" + _file("uplot/LICENSE").replace("*/", "* /") + "*/"
    script = "\n".join((licence, *map(_file, ("before.js", "uplot/uPlot.iife.min.js", "report.js"))))
    return document(f"{name}: report", body, style, script)


GRAPH = (
    "Boxes are models, arrows are losses with their weights and the taps that they compare; knowledge flows along "
    "them. A weight that moved stands as the run had it last, with the recipe's below."
)

UPRIGHT = " Upright lines: a stage begins, a model comes, goes or is treated."


def _weights(told: Told) -> dict[str, float]:
    """Those that the run noted, by loss, as it had them last."""
    noted = {key: value for _, row in sorted(told.rows.items()) for key, value in row.items()}
    return {key.removeprefix("weight/"): value for key, value in noted.items() if key.startswith("weight/")}


def _file(name: str) -> str:
    return (files("kdkit.report") / name).read_text(encoding="utf-8")


def _header(told: Told, epochs: int) -> str:
    data = told.recipe["data"]
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


def _tiles(told: Told, last: Mapping[str, Any]) -> str:
    tiles = []
    for name, metrics in last.items():
        if metrics.get("top1") is None:
            continue
        best = told.result.get("best", {}).get(name, {})
        beside = f"top-1 after {'the last epoch' if told.result else f'epoch {max(told.rows)}'}"
        moved = best.get("top1") is not None and best["top1"] > metrics["top1"]
        note = f"best epoch {best['epoch']:.0f}: {100 * best['top1']:.2f} %" if moved else ""
        tiles.append(
            f'<div class="tile"><span>{escape(name)}</span><b>{100 * metrics["top1"]:.2f} %</b>'
            f"<i>{beside}{'<br>' if note else ''}{escape(note)}</i></div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _section(title: str, content: str) -> str:
    """Nothing where there is no content."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def _charts(drawn: Sequence[Chart], marks: Sequence[Moment]) -> str:
    parts = []
    for chart in drawn:
        values = [value for one in chart.series.values() for value in one if value is not None]
        switch = f'<button type="button">{"linear" if chart.log else "logarithmic"}</button>'
        head = f"<h3>{escape(chart.title)}</h3>{switch if values and min(values) > 0 and not chart.unit else ''}"
        parts.append(
            f'<div class="chart"><div class="head">{head}</div><div class="plot"></div>'
            f"<p>{escape(chart.caption)}</p></div>"
        )
    hint = "Hover to read values; drag sideways to zoom, double-click to see all; a click on a name hides its line."
    return f'<div class="charts">{"".join(parts)}</div>\n<p>{hint}{UPRIGHT * bool(marks)}</p>'


def _numbers(told: Told) -> str:
    """The same as a table, for whoever has no script or wants to copy."""
    columns = [key for key in sorted({k for row in told.rows.values() for k in row}) if key not in ("epoch", "step")]
    rows = [[str(epoch), *(number(row.get(key)) for key in columns)] for epoch, row in sorted(told.rows.items())]
    return f"<details><summary>Numbers by epoch</summary>{table(['epoch', *columns], rows)}</details>"


def _cohort(told: Told) -> str:
    """Who came, went and was treated."""
    cells = [[f"{event.epoch:.4g}", event.model, event.what, event.why] for event in told.events]
    return table(["after epoch", "model", "what", "why"], cells) if cells else ""


def _recipe(told: Told) -> str:
    folders = told.recipe["data"].get("name") in ("folder", "imagenet")
    text = f"# recipe.yaml\n{dump(told.recipe)}"
    return f"<pre>{escape(text)}</pre>\n<pre>kdkit fit recipe.yaml{' data.root=FOLDER' * folders}</pre>\n"


def _needs(told: Told) -> str:
    versions = told.provenance.get("versions", {})
    commit = told.provenance.get("commit")
    needs = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    notes = [f"With {needs}{f'; kdkit at commit {commit}' if commit else ''}." if needs else ""]
    if str(commit or "").endswith("+"):
        notes.append("The + says that kdkit's files had changes that were not committed.")
    notes.append("Files and folders of the machine are left out of the recipe (root, weights, own code).")
    return f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes if note)}</ul>"


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
