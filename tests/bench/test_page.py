"""The page of results is made from its rows, and nothing above depends on this room."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import tables
from kdkit.bench import shipped
from kdkit.bench.rows import read_rows
from kdkit.bench.shipped import shipped_files, shipped_rows
from kdkit.bench.suite import load_suite
from tests.cli.command import kdkit

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "benchmarks" / "results" / "digits.jsonl"


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_the_page_is_made_from_the_rows(path):
    text = path.read_text(encoding="utf-8")
    assert tables.TABLE.search(text)
    assert tables.page(text) == text, "run python -m benchmarks.tables"


def test_the_rows_are_the_suites(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = kdkit("bench", ROOT / "benchmarks" / "digits.yaml", "--plan", "--results", ROWS)
    done = int(re.search(r"(\d+) done", said.out)[1])
    assert done == len(read_rows(ROWS)), "rows of recipes that the suite does not have any more; run it again"
    suite = load_suite(ROOT / "benchmarks" / "digits.yaml")
    assert {row["method"] for row in read_rows(ROWS)} == {"teacher", *(method.name for method in suite.methods)}


def test_they_come_with_kdkit(tmp_path, monkeypatch):
    assert ROWS in shipped_files()
    assert 'results/digits.jsonl" = "kdkit/_results/digits.jsonl"' in (ROOT / "pyproject.toml").read_text()
    one = next(row for row in shipped_rows() if row["method"] == "kd")
    assert str(ROOT) not in str(one)


def test_what_is_no_row_of_a_suite_does_not_come_with_kdkit(tmp_path, monkeypatch):
    folder, row = tmp_path / "benchmarks" / "results", ROWS.read_text(encoding="utf-8").partition("\n")[0]
    folder.mkdir(parents=True)
    trial = json.dumps({**json.loads(row), "trial": 0, "study": "s", "values": {}})
    for name, text in {
        "rows": row,
        "trials": trial,
        "begun": "",
        "torn": row[:-9],
        "odd": "[1]",
        "speed": "{}",
    }.items():
        (folder / f"{name}.jsonl").write_text(text + "\n" * bool(text), encoding="utf-8")
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "kdkit" / "bench" / "shipped.py"))
    assert shipped_files() == [folder / "rows.jsonl"]


def test_only_the_command_line_knows_this_room():
    room = ROOT / "kdkit"
    files = [path for path in room.rglob("*.py") if path.relative_to(room).parts[0] not in ("bench", "cli")]
    assert files
    assert not [str(path) for path in files if "kdkit.bench" in path.read_text(encoding="utf-8")]
