"""The rows that come with kdkit: every baseline of its own tables, for whoever uses the same protocol."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from kdkit.bench.rows import NEEDED, Row, read_rows


def shipped_files() -> list[Path]:
    """Files of rows: inside the installed package, or in the source checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_results"
    folder = installed if installed.is_dir() else package.parent / "benchmarks" / "results"
    return [path for path in sorted(folder.glob("*.jsonl")) if _of_a_suite(path)]


def shipped_rows() -> list[Row]:
    """All of them."""
    return [row for path in shipped_files() for row in read_rows(path)]


def _of_a_suite(path: Path) -> bool:
    """Whether its first row is a run's: other benchmarks have rows of their own, and trials are no baselines."""
    with path.open(encoding="utf-8") as file, suppress(ValueError):
        row = json.loads(file.readline())
        return isinstance(row, dict) and row.keys() >= NEEDED and "trial" not in row
    return False
