"""Writes the tables of losses and of parity: `python docs/catalogue.py`. A test fails where they are stale."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import kdkit.losses  # noqa: F401  fills the registry
from kdkit.models.heads.kinds import HEADS
from kdkit.registry import LOSSES, LossInfo, constructor

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- losses: made by docs/catalogue.py -->", "<!-- /losses -->"
PARITY_BEGIN, PARITY_END = "<!-- parity: made by docs/catalogue.py -->", "<!-- /parity -->"


def summary_table() -> str:
    """A line for each loss."""
    lines = ["| loss | class | what it is | tap | weight | paper |", "| --- | --- | --- | --- | --- | --- |"]
    for info in _sorted():
        taps = ", ".join(f"`{tap}`" for tap in info.taps)
        what = info.summary.rstrip(".").replace("|", r"\|")
        lines.append(f"| `{info.name}` | `{info.cls.__name__}` | {what} | {taps} | {info.weight:g} | {info.paper} |")
    return "\n".join(lines)


def catalogue() -> str:
    """The page `losses.md`: every loss with its whole docstring."""
    head = (
        "# Losses\n\nMade from the docstrings by `docs/catalogue.py`. Every class is an `nn.Module` over plain "
        "tensors, importable from `kdkit.losses`; the name is its word in a recipe.\n"
    )
    return "\n".join([head, *(_entry(info) for info in _sorted()), heads()])


def heads() -> str:
    """A line for each head."""
    lines = ["## Heads", "", "The word in a recipe's `head:`; which fits where: [guide.md](guide.md).", ""]
    lines += ["| head | options | what it is |", "| --- | --- | --- |"]
    for name, info in sorted(HEADS.items()):
        words = ", ".join(f"`{word}`" for word in info.words)
        lines.append(f"| `{name}` | {words} | {info.summary.rstrip('.').replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _entry(info: LossInfo) -> str:
    options = ", ".join(str(p).replace("'", "") for p in constructor(info.cls).values())
    taps = f"Tap{'s' * (len(info.taps) > 1)} " + ", ".join(f"`{tap}`" for tap in info.taps)
    where = f"{taps}, weight {info.weight:g} ({info.weight_source})" + (f", head `{info.head}`." if info.head else ".")
    doc = inspect.getdoc(info.cls) or ""
    return f"## `{info.name}`\n\n`{info.cls.__name__}({options})` · {info.paper}. {where}\n\n```text\n{doc}\n```\n"


def _sorted() -> list[LossInfo]:
    return sorted(LOSSES.values(), key=lambda info: info.name)


def readme() -> str:
    """The README with its table renewed."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{summary_table()}\n{END}", text, flags=re.DOTALL)


def reproduce() -> str:
    """The page `reproduce.md` with its table renewed."""
    text = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    made = f"{PARITY_BEGIN}\n{parity_table()}\n{PARITY_END}"
    return re.sub(f"{PARITY_BEGIN}.*?{PARITY_END}", lambda _: made, text, flags=re.DOTALL)


def parity_table() -> str:
    """A line for each method and learning rate, over all of its steps."""
    lines = [
        "| loss | learning rate | steps | loss | gradient | each by itself | one bit of rounding |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = (ROOT / "benchmarks" / "results" / "parity.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, rows):
        if row["steps"] == 200:
            figures = " | ".join(f"{row[word]:.1e}" for word in ("loss", "gradient", "own_path", "rounding"))
            lines.append(f"| `{row['method']}` | {row.get('lr', 0.05):g} | 200 | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    (ROOT / "docs" / "losses.md").write_text(catalogue(), encoding="utf-8")
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    (ROOT / "docs" / "reproduce.md").write_text(reproduce(), encoding="utf-8")
