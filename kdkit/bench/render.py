"""A table as Markdown, CSV, LaTeX or HTML."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from kdkit.bench.table import Block, Line
from kdkit.registry import KdkitError, nearest

HEADS = (
    "method",
    "n",
    "last epoch, top-1 %",
    "best epoch, top-1 %",
    "published",
    "Δ published",
    "Δ alone",
    "p (Holm)",
    "n seeds can detect",
    "transfer ratio [95 %]",
    "epochs to 95 %",
    "minutes",
    "peak GB",
)
LEGEND = (
    "Mean ± standard deviation over n seeds. The last epoch is the number; the best one was chosen on test images. "
    "Δ alone: points above the student alone with the same seeds; p: paired test over seeds × test images, corrected "
    "for the number of methods; n seeds can detect: the least difference, in points, that n seeds find four times out "
    "of five at 5 %. Transfer ratio: (method − alone) / (teacher − alone). Epochs to 95 %: the first epoch with 95 % "
    "of the accuracy after the last one."
)


def render(blocks: Sequence[Block], form: str) -> str:
    """The text of all tables.

    Args:
        blocks: the tables.
        form: `md`, `csv`, `latex` or `html`.

    Raises:
        KdkitError: another form.
    """
    if form not in FORMS:
        raise KdkitError(f"format must be one of {', '.join(FORMS)}, got {form!r}{nearest(form, list(FORMS))}")
    return FORMS[form](blocks)


def cells(line: Line) -> list[str]:
    """A line as people read it; a number that is none is a dash."""
    gain, ratio = line.gain, line.transfer
    return [
        line.method,
        str(line.n),
        _spread(line.last),
        _spread(line.best),
        _number(line.published and line.published.top1),
        _number(line.delta, "+.2f"),
        _number(gain and 100 * gain.mean, "+.2f"),
        "< 0.001" if line.p < 0.001 else _number(line.p, ".3f"),
        _number(100 * gain.detectable if gain and gain.detectable <= 1 else None),
        f"{_number(ratio.ratio)} [{_number(ratio.low)}, {_number(ratio.high)}]"
        if ratio and not math.isnan(ratio.ratio)
        else "–",
        _number(line.reach, ".0f"),
        _number(line.minutes, ".1f"),
        _number(line.gigabytes),
    ]


def _spread(value: tuple[float, float]) -> str:
    return f"{100 * value[0]:.2f}" + ("" if math.isnan(value[1]) else f" ± {100 * value[1]:.2f}")


def _number(value: Any, form: str = ".2f") -> str:
    if value is None or math.isnan(value):
        return "–"
    text = format(value, form)
    return (text if float(text) else format(0.0, form)).replace("-", "−")  # zero has no minus


def noted(block: Block) -> tuple[list[list[int]], list[str]]:
    """Which notes each line has, counted from 1, and all notes; sources of published numbers are among them."""
    notes: list[str] = []
    marks = []
    for line in block.lines:
        mine = [*line.notes, *([f"published: {line.published.source}"] if line.published else [])]
        notes += [note for note in mine if note not in notes]
        marks.append(sorted(notes.index(note) + 1 for note in mine))
    return marks, notes


def _markdown(blocks: Sequence[Block]) -> str:
    parts = []
    for block in blocks:
        marks, notes = noted(block)
        rows = ["| " + " | ".join(HEADS) + " |", "| --- |" + " ---: |" * (len(HEADS) - 1)]
        for line, its in zip(block.lines, marks, strict=True):
            mark = f" <sup>{', '.join(map(str, its))}</sup>" if its else ""
            first, *rest = (cell.replace("|", r"\|") for cell in cells(line))
            rows.append(f"| `{first}`{mark} | {' | '.join(rest)} |")
        told = [*(f"- **{note}**" for note in block.notes), *(f"- <sup>{i}</sup> {n}" for i, n in enumerate(notes, 1))]
        parts.append("\n".join([f"**{block.title}**", "", *rows, "", *told, f"- {block.facts}"]))
    return "\n\n".join(parts) + f"\n\n{LEGEND}\n"


def _csv(blocks: Sequence[Block]) -> str:
    """Plain numbers, in percent and points; notes in words."""
    heads = (
        "table method n last last_sd best best_sd published published_delta source gain gain_error p_holm detectable"
    )
    heads += " transfer transfer_low transfer_high epochs_to_95 minutes peak_gb notes facts"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads.split())
    for block in blocks:
        for line in block.lines:
            gain, ratio, theirs = line.gain, line.transfer, line.published
            values: list[Any] = [*(100 * v for v in (*line.last, *line.best)), theirs and theirs.top1, line.delta]
            values += [theirs and theirs.source, *([100 * gain.mean, 100 * gain.error] if gain else [None, None])]
            values += [line.p, gain and 100 * gain.detectable]
            values += [ratio.ratio, ratio.low, ratio.high] if ratio else [None] * 3
            values += [line.reach, line.minutes, line.gigabytes, "; ".join([*block.notes, *line.notes]), block.facts]
            writer.writerow([block.title, line.method, line.n, *map(_plain, values)])
    return text.getvalue()


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _latex(blocks: Sequence[Block]) -> str:
    parts = []
    for block in blocks:
        marks, notes = noted(block)
        rows = [" & ".join(map(_tex, HEADS)) + r" \\ \hline"]
        for line, its in zip(block.lines, marks, strict=True):
            first, *rest = map(_tex, cells(line))
            mark = rf"\textsuperscript{{{','.join(map(str, its))}}}" if its else ""
            rows.append(" & ".join([first + mark, *rest]) + r" \\")
        columns = "l" + "r" * (len(HEADS) - 1)
        body = "\n".join([rf"\begin{{tabular}}{{{columns}}}", *rows, r"\end{tabular}"])
        told = [*block.notes, *(f"{i}: {note}" for i, note in enumerate(notes, 1)), block.facts]
        caption = ". ".join([block.title, *told, LEGEND])
        parts.append("\n".join([r"\begin{table}", body, rf"\caption{{{_tex(caption)}}}", r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "$": r"\$",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
_TEX |= {
    "±": r"$\pm$",
    "−": "$-$",
    "Δ": r"$\Delta$",
    "–": "--",
    "→": r"$\to$",
    "×": r"$\times$",
    "<": "$<$",
    ">": "$>$",
}


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _TEX)), lambda found: _TEX[found[0]], text)


def _html(blocks: Sequence[Block]) -> str:
    from kdkit.bench.page import page

    return page(blocks)


FORMS: dict[str, Callable[[Sequence[Block]], str]] = {
    "md": _markdown,
    "csv": _csv,
    "latex": _latex,
    "html": _html,
}
