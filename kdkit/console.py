"""Text for people: tables that read well in a terminal and, plain and whole, in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

WIDE = 10_000  # a pipe has no width: what reads it cuts or wraps as it likes


def console(file: TextIO) -> Console:
    """A console on `file`: as wide as its terminal; without colour and without any width where it is none."""
    plain = Console(file=file, highlight=False)
    return plain if plain.is_terminal else Console(file=file, highlight=False, width=WIDE, no_color=True)


def show(part: Any, file: TextIO) -> None:
    """Print anything rich can; in a pipe without trailing blanks."""
    out = console(file)
    if out.is_terminal:
        out.print(part)
        return
    with out.capture() as captured:
        out.print(part)
    print("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")), file=file)


def tell(text: str, file: TextIO, word: str = "", style: str = "") -> None:
    """Print a line whole and unwrapped, after a word that stands out: `error:`, `warning:`."""
    console(file).print(Text.assemble((f"{word} " if word else "", style), text), soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Group:
    """A titled table; a column whose name begins with `>` is set flush right, one without content left out."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False, collapse_padding=True)
    cells = [tuple(row) for row in rows]
    kept = [i for i in range(len(columns)) if not cells or any(row[i] for row in cells)]
    for name in (columns[i] for i in kept):
        right = name.startswith(">")
        made.add_column(name.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    for row in cells:
        made.add_row(*(Text(row[i]) for i in kept))
    return Group(*([Text(title, style="bold")] if title else []), made)


def si(value: float, unit: str = "") -> str:
    """Three digits and a prefix: `278 k`, `40.8 M`, `23`."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size * 0.9995:
            return f"{_digits(value / size)} {prefix}{unit}"
    return f"{value:g}{' ' + unit if unit else ''}"


def duration(seconds: float) -> str:
    """`40 s`, `3 m`, `2 h 05 m`."""
    if seconds < 60:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} m" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} m"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
