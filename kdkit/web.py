"""Pages that need nothing but themselves: one file, light and dark, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #fff; --line: #dfe4ea; --stripe: #f6f8fa }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #9aa5b4; --paper: #14181e; --line: #313944; --stripe: #1a2028 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 80rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.4rem } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem } h1, h2, h3 { overflow-wrap: anywhere }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .35rem .65rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600; vertical-align: bottom }
tr:last-child td { border-bottom: 0 }
tbody tr:nth-child(even) td { background: var(--stripe) }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper) }
td:first-child { font-weight: 600; white-space: normal; overflow-wrap: break-word; max-width: min(22rem, 45vw) }
ul { padding-left: 1.2rem; color: var(--soft); font-size: .87rem; overflow-wrap: anywhere } b { color: var(--ink) }
p { color: var(--soft); font-size: .87rem }
""".strip()


def document(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page.

    Args:
        title: as text.
        body: HTML whose parts are escaped already.
        style: CSS beside the common one.
        script: JavaScript that runs at the end.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n{style}\n</style>\n</head>\n<body>\n"
        f"{body}\n<script>\n{script}\n</script>\n</body>\n</html>\n"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column stays in sight; it scrolls by itself where it is wider than the page.

    Args:
        heads: of its columns; HTML that is escaped already.
        rows: cells, likewise.
    """
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
