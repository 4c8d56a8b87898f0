"""A suite runs to its rows, whatever happens to one of its runs."""

from time import monotonic

import pytest

from kdkit.bench import engines, packed
from kdkit.bench import run as running
from kdkit.bench.engines import Here, Processes
from kdkit.bench.expand import expand
from kdkit.bench.job import Job
from kdkit.bench.job import run as run_job
from kdkit.bench.plan import Plan
from kdkit.bench.rows import NEEDED, append, place, read_rows
from kdkit.bench.run import make_plan, run_suite
from kdkit.bench.suite import load_suite
from kdkit.bench.table import blocks
from kdkit.recipe import content_key, loads
from kdkit.recipe.errors import RecipeError
from kdkit.registry import KdkitError
from kdkit.runs import fit as fitting
from kdkit.runs.lock import BusyError
from tests.bench.grid import TINY, write

BAD = """\
import os
from torch import nn


class Dies(nn.Module):
    def forward(self, student, progress):
        if progress > 0:
            os._exit(3)
        return student.mean()


class Raises(nn.Module):
    def forward(self, student, progress):
        if progress > 0:
            raise ZeroDivisionError("mine")
        return student.mean()
"""


def go(folder, text=TINY, *, name="suite", hours=None, processes=1, engine=None):
    told = []
    suite, rows = load_suite(write(folder, text, name)), folder / "rows.jsonl"
    engine = engine or Processes(processes)
    outcome = run_suite(suite, folder / "out", rows, hours=hours, engine=engine, tell=told.append)
    return outcome, read_rows(rows) if rows.exists() else [], told


def test_a_suite_becomes_rows_that_tell_everything(tmp_path):
    outcome, rows, _ = go(tmp_path)
    assert (outcome.done, outcome.failed, outcome.left) == (5, {}, 0)
    order = [(row["method"], row["seed"]) for row in rows]
    assert order == [("teacher", 0), ("student", 0), ("kd", 0), ("student", 1), ("kd", 1)]
    assert len({row["fingerprint"] for row in rows}) == 1
    for row in rows:
        right = packed.right(row["predictions"])
        assert right.mean() == pytest.approx(row["last"][row["node"]]["top1"], abs=1e-6)
        assert len(packed.predicted(row["predictions"])) == len(right) == 360
        assert row["curve"][-1][0] == row["epochs"] == 2
        assert (row["minutes"] > 0, row["peak_gb"] > 0.1, row["protocol_epochs"]) == (True, True, 20)
        assert str(tmp_path) not in str(row)
    assert len({row["variant"] for row in rows}) == 3
    student = next(row for row in rows if row["method"] == "student")
    assert content_key(loads(student["recipe"])) == student["content"]
    assert student["parameters"] < rows[0]["parameters"]
    assert "# resnet8_digits_20.yaml:" in next(row for row in rows if row["method"] == "kd")["recipe"]

    again, same, told = go(tmp_path)
    assert (again.done, same, told) == (0, rows, [])
    (tmp_path / "rows.jsonl").write_text("")  # the runs stand; only their rows are made again
    outcome, made, _ = go(tmp_path, TINY.replace("seeds: 2", "seeds: 1"))
    assert outcome.done == 3
    keys = ("content", "fingerprint", "last", "predictions", "minutes")
    assert [[row[k] for k in keys] for row in made] == [[row[k] for k in keys] for row in rows[:3]]


def test_one_that_fails_keeps_nobody_from_running(tmp_path):
    (tmp_path / "bad.py").write_text(BAD)
    methods = "[{dies: [ce, bad.py:Dies]}, {raises: [ce, bad.py:Raises]}, student]"
    text = TINY.replace("[student, kd]", methods).replace("seeds: 2", "seeds: 1")
    outcome, rows, told = go(tmp_path, text, processes=2)
    assert [row["method"] for row in rows if row["method"] != "teacher"] == ["student"]
    assert outcome.failed == {
        "tiny dies seed 0": "its process died (exit code 3)",
        "tiny raises seed 0": outcome.failed["tiny raises seed 0"],
    }
    assert "mine" in outcome.failed["tiny raises seed 0"]
    assert sum("FAILED" in line for line in told) == 2


def test_what_is_never_scored_has_no_row(tmp_path):
    text = TINY.replace("seeds: 2", "seeds: 1").replace("[student, kd]", "[student]")
    outcome, rows, _ = go(tmp_path, text.replace("overrides: [", "overrides: [trainer.limit_val_batches=0, "))
    assert rows == []
    assert "it was never scored, so it has no row" in outcome.failed["tiny teacher seed 0"]


def test_the_last_epoch_is_scored_whatever_is_validated_between(tmp_path):
    text = TINY.replace("seeds: 2", "seeds: 1").replace("[student, kd]", "[student]").replace("_epochs=2", "_epochs=3")
    text = text.replace("teacher: resnet8", "teacher: {arch: resnet8, weights: pretrained.pth}")
    (tmp_path / "pretrained.pth").touch()
    _, (row,), _ = go(tmp_path, text.replace("overrides: [", "overrides: [trainer.check_val_every_n_epoch=2, "))
    assert [epoch for epoch, _ in row["curve"]] == [2, 3]
    assert row["last"]["student"]["top1"] == pytest.approx(packed.right(row["predictions"]).mean(), abs=1e-6)


MORE = "'data={name: digits, subset: 64, batch_size: 32}', trainer.max_epochs=2"


@pytest.mark.parametrize("lacks", ["data", "trainer"])
def test_a_protocol_says_data_and_length(tmp_path, lacks):
    words = {"data": "data: {name: digits}\n", "trainer": "trainer: {max_epochs: 2}\n"}
    rest = "optimizer: {name: sgd}\nlr: 0.1\n" + "".join(text for word, text in words.items() if word != lacks)
    (tmp_path / "mine.yaml").write_text(rest)
    text = TINY.replace("protocol: digits_20", "protocol: mine.yaml")
    with pytest.raises(RecipeError, match=f"a suite's protocol says {lacks}.* and mine.yaml does not; say it there"):
        go(tmp_path, text.replace("data.subset=64, data.batch_size=32", MORE))


def test_a_packaged_methods_stages_are_as_long_as_the_suite_says(tmp_path):
    text = TINY.replace("[student, kd]", "[ft]").replace("seeds: 2", "seeds: 1")
    text = text.replace("overrides: [", "overrides: [stages.paraphrase.epochs=0.5, ")
    suite = load_suite(write(tmp_path, text))
    (cell,) = (c for c in expand(suite, tmp_path / "teachers") if c.method == "ft")
    first, second = cell.recipe.stages
    assert (first.when, second.when) == ({"to": 0.5}, {"from": 0.5})
    assert {edge.title: edge.when for edge in cell.recipe.losses}["ce"] == {"from": 0.5}


def test_without_its_teacher_a_run_fails_with_it(tmp_path):
    text = TINY.replace("data.subset=64", "'data={name: folder, root: nowhere}'").replace("seeds: 2", "seeds: 1")
    outcome, rows, _ = go(tmp_path, text)
    assert rows == []
    assert outcome.failed["tiny kd seed 0"] == "its teacher failed"
    assert "nowhere" in outcome.failed["tiny teacher seed 0"]


def test_a_budget_stops_in_mid_run_and_the_next_call_goes_on(tmp_path, monkeypatch):
    text = TINY.replace("[student, kd]", "[student]").replace("seeds: 2", "seeds: 1").replace("_epochs=2", "_epochs=16")
    text = text.replace("teacher: resnet8", "teacher: {arch: resnet8, weights: pretrained.pth}")
    (tmp_path / "pretrained.pth").touch()
    whole, (row,), _ = go(tmp_path, text)
    assert whole.done == 1
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "out").rename(tmp_path / "before")

    def clock():  # an hour is over when the first checkpoint is there
        return 1e9 if list((tmp_path / "out").glob("tiny-student-*/checkpoints/last.ckpt")) else monotonic()

    monkeypatch.setattr(engines.engine, "LOOK", 0.02)
    monkeypatch.setattr(running, "monotonic", clock)
    outcome, rows, told = go(tmp_path, text, hours=1)
    assert (outcome.done, outcome.left, rows) == (0, 1, [])
    assert "holds the run so far" in told[-1]
    monkeypatch.undo()
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    outcome, (resumed,), told = go(tmp_path, text)
    assert "goes on" in told[1]
    assert resumed["resumed"]
    assert resumed["minutes"] > 0  # of both parts: the checkpoint says how long it took to get there
    for word in ("last", "best", "curve", "predictions", "content"):
        assert resumed[word] == row[word]


def test_two_pairs_share_the_student_alone(tmp_path):
    """It is trained once, and has a row in both columns."""
    student = "student: {arch: resnet8, options: {widths: [4, 4, 8, 16]}}"
    pairs = f"pairs: [{{teacher: resnet8, {student}, name: one}}, {{teacher: resnet14, {student}, name: two}}]\n"
    text = f"{TINY.splitlines()[0]}\n{pairs}methods: [student]\nseeds: 1\n{TINY.splitlines()[-1]}\n"
    suite = load_suite(write(tmp_path, text))
    plan = make_plan(suite, tmp_path / "out", tmp_path / "rows.jsonl")
    assert [(c.pair, c.method) for c in plan.left] == [
        ("one", "teacher"), ("one", "student"), ("two", "teacher"), ("two", "student"),
    ]  # fmt: skip
    one, two = (c for c in plan.left if c.method == "student")
    assert one.content == two.content
    assert one.column != two.column
    outcome, rows, told = go(tmp_path, text)
    assert outcome.done == 4
    mine = [row for row in rows if row["method"] == "student"]
    assert [row["pair"] for row in mine] == ["one", "two"]
    assert mine[0]["started"] == mine[1]["started"]
    assert any("the same run as one student" in line for line in told)
    one, two = blocks(rows)  # a table for each pair, with its teacher and the student alone
    assert [[line.method for line in block.lines] for block in (one, two)] == [["teacher", "student"]] * 2
    assert mine[1]["teacher"] == "resnet14"
    assert not any("may not be compared" in note for block in (one, two) for note in block.notes)


def test_a_renamed_method_takes_its_rows_along(tmp_path, monkeypatch):
    """Those of another suite, which calls the same recipe otherwise, stay as they are."""
    told, file = [], tmp_path / "rows.jsonl"
    suite = load_suite(write(tmp_path, TINY.replace("[student, kd]", "[student, {mine: [ce, kd]}]")))
    for cell in make_plan(suite, tmp_path / "out", file).cells:
        words = dict.fromkeys(NEEDED - {"seed"}, 1) | place(cell, suite.name) | {"content": cell.content}
        append(file, {**words, "variant": "v", "seed": cell.seed, "last": {}})
    tuned = {"of": "mine", "trials": 2, "trial": 0, "score": 0.5, "values": {}}
    append(
        file, {**words, "variant": "w", "seed": 0, "last": {}, "method": "mine-tuned", "content": "c", "tuned": tuned}
    )
    before = read_rows(file)
    renamed = TINY.replace("[student, kd]", "[student, {ours: [ce, kd]}]")
    outcome = run_suite(
        load_suite(write(tmp_path, renamed, "other")),
        tmp_path / "out",
        file,
        hours=None,
        engine=Here(),
        tell=told.append,
    )
    assert (outcome.done, read_rows(file), told) == (0, before, [])
    run_suite(load_suite(write(tmp_path, renamed)), tmp_path / "out", file, hours=None, engine=Here(), tell=told.append)
    added = read_rows(file)[len(before) :]
    assert [row["method"] for row in added] == ["ours", "ours", "ours-tuned"]
    assert added[-1]["tuned"] == {**tuned, "of": "ours"}
    assert told == [f"tiny ours seed {seed}: the run that was tiny mine" for seed in (0, 1)]


def test_rows_that_cannot_be_written_are_told_before_anything_is_trained(tmp_path, monkeypatch):
    suite = load_suite(write(tmp_path))
    (tmp_path / "file").touch()
    rows = tmp_path / "file" / "rows.jsonl"
    with pytest.raises(KdkitError, match=r"file/rows.jsonl cannot be written: .*; give another file with"):
        run_suite(suite, tmp_path / "out", rows, hours=None, engine=Here(), tell=print)

    def full(path, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(running, "append", full)
    text = TINY.replace("seeds: 2", "seeds: 1").replace("[student, kd]", "[student]")
    outcome, rows, _ = go(tmp_path, text, engine=Here())
    assert (outcome.done, rows) == (0, [])
    assert outcome.failed["tiny student seed 0"].endswith(
        "(No space left on device); the run stands, and gets its row later"
    )
    monkeypatch.undo()
    outcome, rows, told = go(tmp_path, text, engine=Here())
    assert (outcome.done, len(rows)) == (2, 2)
    assert any("is trained already" in line for line in told)


def test_a_run_that_another_process_takes_first_is_waited_for(tmp_path, monkeypatch):
    text = TINY.replace("[student, kd]", "[student]").replace(
        "teacher: resnet8", "teacher: {arch: resnet8, weights: w.pth}"
    )
    (tmp_path / "w.pth").touch()
    cell = make_plan(load_suite(write(tmp_path, text)), tmp_path / "out", tmp_path / "none").cells[0]
    real, calls = fitting.fit, []

    def late(*args, **words):
        calls.append(args)
        if len(calls) == 1:
            real(*args, **words)
            raise BusyError("another process trains there")
        return real(*args, **words)

    monkeypatch.setattr(fitting, "fit", late)
    row = run_job(Job(cell, "suite", tmp_path, tmp_path / "out", 1))
    assert len(calls) == 2
    assert row["last"]["student"]["top1"] > 0
    assert row["peak_gb"] is None  # of the other process's run


def test_the_time_left_is_told_by_runs_of_its_like(tmp_path):
    cells = make_plan(load_suite(write(tmp_path)), tmp_path / "out", tmp_path / "none").cells
    row = {"pair": "tiny", "epochs": 2, "resumed": False}
    by = {(c.method, c.seed): c for c in cells}

    def done(method, seed, minutes):
        cell = by[method, seed]
        return {**row, "method": method, "content": cell.content, "fingerprint": cell.column, "minutes": minutes}

    assert Plan.of(cells, []).seconds(by["kd", 0]) is None
    assert "known after the first" in Plan.of(cells, []).estimate(1)
    plan = Plan.of(cells, [done("student", 0, 2.0), done("teacher", 0, 50.0)])
    assert plan.seconds(by["kd", 0]) == 120  # another method of the pair, and no teacher
    plan = Plan.of(cells, [done("student", 0, 2.0), done("kd", 0, 4.0)])
    assert plan.seconds(by["kd", 1]) == 240
    assert plan.seconds(by["student", 1]) == 120
    assert plan.estimate(2) == "3 left, some 3 m and 1 of unknown length"
