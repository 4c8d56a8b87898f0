"""Runs the long tests of docs/reliability.md and keeps a row of each: `python -m benchmarks.reliability recipes`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
ROWS = ROOT / "benchmarks" / "results" / "reliability.jsonl"
TESTS = {
    "recipes": ["tests/recipe/test_mutations.py", "tests/recipe/test_hostile.py"],
    "files": [
        "tests/models/test_damaged_weights.py",
        "tests/data/test_damaged_images.py",
        "tests/data/test_teacher_cache.py",
        "tests/runs/test_damaged_records.py",
    ],
    "code": ["tests/cli/test_no_custom_code.py"],
    "storage": ["tests/runs/test_storage.py"],
    "resume": ["tests/runs/test_killed.py"],
    "load": [
        "tests/runs/test_soak.py",
        "tests/runs/test_flat.py",
        "tests/runs/test_workers.py",
        "tests/train/test_cohort_soak.py",
    ],
    "supply": ["tests/test_supply_chain.py"],
    "numbers": [
        "tests/train/test_nonfinite.py",
        "tests/train/test_nonfinite_back.py",
        "tests/train/test_nonfinite_ranks.py",
        "tests/cli/test_nonfinite.py",
        "tests/runs/test_teacher_check.py",
    ],
}
BEGIN, END = "<!-- figures: made by benchmarks/reliability.py -->\n", "<!-- /figures -->"


def page(text: str, rows: list[dict[str, object]]) -> str:
    """The page with its table made anew: the last row of each heading."""
    last = {str(row["heading"]): row for row in rows}
    lines = ["| heading | figures | minutes | commit |", "| --- | --- | --- | --- |"]
    for heading in TESTS:
        if row := last.get(heading):
            lines.append(f"| {heading} | {row['figures']} | {row['minutes']} | `{row['commit']}` |")
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END, 1)[1]


def read() -> list[dict[str, object]]:
    """All rows."""
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]


def run(heading: str) -> dict[str, object]:
    """The tests of a heading, as many inputs as there are by night; their figures."""
    since = time.monotonic()
    words = [sys.executable, "-m", "pytest", "-q", "-s", "-o", "addopts=", "-p", "no:cacheprovider", *TESTS[heading]]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "KDKIT_NIGHTLY": "1"}, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    found = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("figure: ")]
    summary = re.search(r"^.*\b(?:passed|failed)\b.* in ", done.stdout, re.MULTILINE)
    tests = summary[0].strip("= ").removesuffix(" in") if summary else "no test ran"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    minutes = round((time.monotonic() - since) / 60, 1)
    figures = "; ".join([*found, f"tests: {tests}"])
    return {"heading": heading, "figures": figures, "minutes": minutes, "commit": commit.stdout.strip()}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        row = run(name)
        print(json.dumps(row, ensure_ascii=False))
        with ROWS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")
