"""A suite's page: one file with tables, training curves and accuracy against cost; it needs no network."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path

from kdkit.bench import plots
from kdkit.bench.render import HEADS, LEGEND, cells, noted
from kdkit.bench.rows import key, read_rows
from kdkit.bench.table import Block
from kdkit.bench.table import blocks as make_blocks
from kdkit.runs.folder import write_text
from kdkit.web import document, table

STYLE = """
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { color: var(--soft); font-size: .87rem }
svg { display: block; width: 100%; height: auto; color: var(--ink) } svg text { font-family: inherit !important }
th { white-space: normal }
.key { display: flex; flex-wrap: wrap; gap: .2rem .9rem; margin: .75rem 0; font-size: .87rem }
.key label { cursor: pointer; overflow-wrap: anywhere }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin: 0 .3em }
.key input:not(:checked) ~ * { opacity: .35 }
""".strip()
SCRIPT = """
for (const box of document.querySelectorAll(".key input")) box.onchange = () => {
  for (const part of box.closest("section").querySelectorAll("svg .line-" + box.value))
    part.style.display = box.checked ? "" : "none";
};
""".strip()


def page(blocks: Sequence[Block]) -> str:
    """The whole page; everything that rows say is escaped."""
    title = ", ".join(dict.fromkeys(block.title for block in blocks))
    body = "\n".join(_section(block, i) for i, block in enumerate(blocks))
    whole = f"<h1>Benchmark results</h1>\n{body}\n<p>{escape(LEGEND)}</p>"
    return document(title, whole, STYLE, SCRIPT)


def write_report(suite: str, results: Path, path: Path, wanted: Collection[tuple[str, str]] = ()) -> Path | None:
    """Write the page of a suite's rows; `None` where there are none yet.

    Args:
        suite: its name, for a file of rows may have those of several.
        results: the file of rows.
        path: the page's.
        wanted: `Outcome.keys`: some of its runs may have stood already, under another suite's name.
    """
    rows = read_rows(results) if results.exists() else []
    rows = [row for row in rows if row["suite"] == suite or key(row) in wanted]
    if not rows:
        return None
    write_text(path, page(make_blocks(rows)))
    return path


def _section(block: Block, i: int) -> str:
    seeds = max((line.n for line in block.lines), default=0)
    told = "mean over seeds, band: one standard deviation" if seeds > 1 else "one seed"
    figures = [
        (plots.curves(block, f"curves{i}"), f"Top-1 on the test images by epoch; {told}."),
        (
            plots.cost(block, f"cost{i}"),
            "Top-1 after the last epoch against the minutes of a run.",
        ),
    ]
    shown = "".join(f"<figure>{svg}<figcaption>{escape(text)}</figcaption></figure>\n" for svg, text in figures)
    names = "".join(
        f'<label><input type="checkbox" checked value="{j}"><i style="background:{plots.colour(j)}"></i>'
        f"<span>{escape(line.method)}</span></label>"
        for j, line in enumerate(block.lines)
    )
    return (
        f"<section>\n<h2>{escape(block.title)}</h2>\n{_table(block)}\n"
        f'<div class="key">{names}</div>\n<div class="figures">\n{shown}</div>\n</section>'
    )


def _table(block: Block) -> str:
    marks, notes = noted(block)
    rows = []
    for line, its in zip(block.lines, marks, strict=True):
        first, *rest = (escape(cell) for cell in cells(line))
        mark = f"&nbsp;<sup>{', '.join(map(str, its))}</sup>" if its else ""
        rows.append([f"{first}{mark}", *rest])
    told = [f"<b>{escape(note)}</b>" for note in block.notes]
    told += [f"<sup>{i}</sup> {escape(note)}" for i, note in enumerate(notes, 1)] + [escape(block.facts)]
    heads = [escape(head).replace(" %", "&nbsp;%") for head in HEADS]
    return f"{table(heads, rows)}\n<ul>{''.join(f'<li>{note}</li>' for note in told)}</ul>"
