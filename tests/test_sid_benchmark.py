"""The benchmark of SID runs, goes on where it stopped, and its page is made from its rows."""

import json

import pytest

from benchmarks import sid, sid_page


def test_the_page_is_made_from_the_rows():
    rows = sid_page.load()
    assert sid_page.PAGE.read_text() == sid_page.page(rows), "run python -m benchmarks.sid_page"
    drawn = sid_page.PLOT.read_text()
    assert all(name in drawn for name in sid_page.NAMES.values())
    assert sid_page.NAMES.keys() == sid.METHODS.keys()


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_of_accuracy_and_no_cell_twice(tmp_path, monkeypatch):
    monkeypatch.setitem(sid.METHODS, "head", sid.METHODS["sid"])
    words = ["digits", "--quick", "--out", str(tmp_path / "rows.jsonl"), "--runs", str(tmp_path / "runs")]
    sid.main(words)
    (row,) = read(tmp_path / "rows.jsonl")
    assert {"set": "digits", "method": "head", "noise": 0.0, "seed": 0, "epochs": 1}.items() <= row.items()
    assert 0 <= row["top1"] <= 1
    assert len(row["by_depth"]["accuracy"]) == len(row["by_depth"]["improved"]) == sid.MODULES["modules"]
    assert row["by_depth"]["accuracy"][-1] == pytest.approx(row["top1"], abs=1e-5)
    assert sid_page.load(tmp_path / "rows.jsonl") == [], "quick rows never count"
    cells = [("head", 0.0, 0)]
    monkeypatch.setattr(sid, "cells", lambda name: iter(cells))
    sid.main(words)
    assert len(read(tmp_path / "rows.jsonl")) == 1


def test_rows_of_cost(tmp_path, monkeypatch):
    monkeypatch.setattr(sid, "COSTS", {name: sid.COSTS[name] for name in ("bp", "sid_isolated lean")})
    sid.main(["cost", "--quick", "--out", str(tmp_path / "rows.jsonl")])
    bp, isolated = read(tmp_path / "rows.jsonl")
    assert (bp["time_to_bp"], bp["memory_to_bp"]) == ([1, 1, 1], 1)
    assert isolated["memory_to_bp"] < 0.9


def test_every_cell_is_a_run_that_can_be():
    for name in sid.SETS:
        for method, noise, seed in sid.cells(name):
            run = sid.recipe(name, method, noise, seed)
            assert (run.seed, run.data.arguments.get("label_noise", 0.0)) == (seed, noise)


def row(method, seed, top1, **words):
    where = {"bench": "sid accuracy", "set": "digits", "noise": 0.0, "epochs": 20, "parameters": 7}
    origin = {"machine": "a", "threads": 1, "torch": "2", "commit": "c", "date": "2026-01-01"}
    return {**where, "method": method, "seed": seed, "top1": top1, **origin, **words}


def test_a_difference_is_one_where_its_interval_says_so():
    rows = [row("sid", seed, 0.9 + 0.001 * seed) for seed in range(3)] + [row("bp", seed, 0.85) for seed in range(3)]
    mean, half, seeds = sid_page.gain(rows, "sid", "bp", set="digits")
    assert (mean, seeds) == (pytest.approx(5.1), 3)
    assert half == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-3)
    assert sid_page.verdict((mean, half, seeds)).endswith("above")
    assert sid_page.verdict((0.1, 0.2, 3)).endswith("not told apart")
    assert sid_page.verdict((-0.3, 0.2, 3)).endswith("below")
    assert sid_page.gain(rows[:4], "sid", "bp") is None
    page = sid_page.page(rows)
    assert "| SID, α = ½ | 7 | 90.10 ± 0.10 (3) |" in page
    assert sid_page.NOT_RUN in page, "no cost was measured"
