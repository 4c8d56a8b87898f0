"""Renews the tables of README.md and docs/benchmarks.md from the rows that they name: `python -m benchmarks.tables`."""

from __future__ import annotations

import re
from pathlib import Path

from kdkit.bench.render import render
from kdkit.bench.rows import read_rows
from kdkit.bench.table import blocks

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
TABLE = re.compile(r"(?P<begin><!-- kdkit table (?P<rows>\S+) -->\n).*?(?P<end><!-- /kdkit table -->)", re.DOTALL)


def page(text: str) -> str:
    """The page with every table made anew."""

    def made(found: re.Match[str]) -> str:
        return found["begin"] + render(blocks(read_rows(ROOT / found["rows"])), "md") + found["end"]

    return TABLE.sub(made, text)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
