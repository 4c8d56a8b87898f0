"""What cannot run is found before anything is trained, and keeps nobody else from running."""

import os
from time import sleep

import pytest
import torch

from kdkit import models
from kdkit.bench.dry import distinct, refused
from kdkit.bench.engines import Here
from kdkit.bench.expand import expand
from kdkit.bench.rows import read_rows
from kdkit.bench.run import make_plan, run_suite, without_the_wrong
from kdkit.bench.suite import load_suite
from kdkit.bench.tune import tune
from kdkit.recipe import loads
from kdkit.registry import KdkitError
from kdkit.runs.dry_run import dry_run
from tests.bench.grid import TINY, write
from tests.cli.command import kdkit
from tests.cli.command import refused as refused_verb

CACHED = ["models.teacher.cache.by=epochs", "data.subset=1400", "trainer.max_epochs=1000000000"]  # petabytes of maps
METHODS = """[
  student, at,
  {tap: [ce, hint: {from: teacher.stage2, to: student.stage7, head: conv1x1}]},
  {shape: [ce, mse: {taps: stage1}]},
  {shares: [ce, kd: {weight: {share: 0.6}}, hint: {weight: {share: 0.5}, taps: stage2}]},
  {head: [ce, mse: {from: teacher.logits, to: student.logits, head: conv1x1}]},
  {raises: [ce, own.py:Raises]},
  {dies: [ce, own.py:Dies]},
]"""
OWN = """\
import os
from torch import nn


class Raises(nn.Module):
    def forward(self, student):
        raise ZeroDivisionError("mine")


class Dies(nn.Module):
    def forward(self, student):
        os._exit(3)
"""


def tried(folder, text, overrides=()):
    cells = expand(load_suite(write(folder, text), overrides), folder / "teachers")
    return {cell.method: why for cell, why in refused(distinct(cells))}


def test_every_kind_of_mistake_is_a_line(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    found = tried(tmp_path, TINY.replace("[student, kd]", METHODS), CACHED)
    parts = {
        "at": "do not fit into the",
        "tap": "unknown tap 'stage7'",
        "shape": "16×",
        "shares": "shares must leave something to the other losses, got 0.6 (kd) + 0.5 (hint)",
        "head": "conv",
        "raises": "ZeroDivisionError: mine",
        "dies": "its process died (exit code 3)",
    }
    assert list(found) == list(parts)
    assert {method: part for method, part in parts.items() if part not in found[method]} == {}
    assert "losses.tap" not in found["tap"]
    assert "own.py:7: raise" in found["raises"]
    assert not any("\n" in why or why.startswith(":") for why in found.values())
    assert not (tmp_path / "home").exists()


def test_where_no_process_begins_nothing_is_refused(tmp_path, monkeypatch):
    """As under a script that begins a suite at once: every line of it was told to have died."""
    monkeypatch.setattr("kdkit.bench.dry._work", os._exit)  # takes one argument, and dies of four
    assert tried(tmp_path, TINY) == {}


def test_a_teacher_that_cannot_be_trained_is_told_once(tmp_path):
    found = tried(tmp_path, TINY.replace("data.subset=64", "'data={name: folder, root: nowhere}'"))
    assert list(found) == ["teacher", "student"]


def test_what_cannot_run_fails_at_once_and_the_others_run(tmp_path):
    text = TINY.replace("[student, kd]", "[{tap: [kd: {taps: logitz}]}, student]")
    told, rows = [], tmp_path / "rows.jsonl"
    outcome = run_suite(
        load_suite(write(tmp_path, text)), tmp_path / "out", rows, hours=None, engine=Here(), tell=told.append
    )
    assert (outcome.done, outcome.left, list(outcome.failed)) == (3, 0, ["tiny tap seed 0", "tiny tap seed 1"])
    assert [line.startswith("tiny tap cannot run: ") for line in told[:3]] == [False, True, False]
    assert "did you mean 'logits'" in told[1]


def test_the_hours_count_from_before_the_dry_run(tmp_path, monkeypatch):
    monkeypatch.setattr("kdkit.bench.run.refused", lambda _: sleep(0.2) or [])
    suite, rows = load_suite(write(tmp_path, TINY)), tmp_path / "rows.jsonl"
    told = []
    outcome = run_suite(suite, tmp_path / "out", rows, hours=0.1 / 3600, engine=Here(), tell=told.append)
    assert (outcome.done, outcome.left, len(told)) == (0, 5, 1)  # nothing was begun


def test_what_runs_on_other_machines_is_not_tried_on_this_one(tmp_path):
    """A Ray worker may have the folder, the file or the disk that the head has not."""
    path = write(tmp_path, TINY.replace("[student, kd]", "[student, {tap: [kd: {taps: logitz}]}]"))
    suite, away, told = load_suite(path), Here(), []
    plan = make_plan(suite, tmp_path / "out", tmp_path / "rows.jsonl")
    away.elsewhere = True
    assert without_the_wrong(plan, suite, tmp_path / "out", away, told.append) == (plan, {})
    assert told == []
    assert len(without_the_wrong(plan, suite, tmp_path / "out", Here(), told.append)[1]) == 2
    assert kdkit("bench", path, "--plan", "--engine", "ray").code == 0


def test_a_plan_that_cannot_run_is_refused(tmp_path):
    write(tmp_path, TINY.replace("[student, kd]", "[student, {tap: [kd: {taps: logitz}]}]"))
    said = refused_verb("bench", "suite.yaml", "--plan")
    assert (
        "1 of the lines cannot run; mend them, or leave them out\n  tiny tap: suite.yaml:3: losses.kd: model 'teacher'"
        in said
    )
    write(tmp_path, TINY)
    assert kdkit("bench", "suite.yaml", "--plan").code == 0


def test_a_plan_tells_epochs_beside_the_protocols(tmp_path):
    """The teacher's, too: what shortens all runs shortens it."""

    def lines(text):
        shown = kdkit("bench", write(tmp_path, text), "--plan").out.splitlines()
        return {line.split()[1]: line for line in shown if line.startswith("tiny")}

    short = lines(TINY)
    assert all(" 2 of 20 " in short[method] for method in ("teacher", "student", "kd"))
    assert lines(TINY.replace("trainer.max_epochs=2, ", ""))["kd"].split()[2:4] == ["20", "2"]


def test_what_is_trained_is_not_tried(tmp_path):
    """A disk may be full when only a row is missing."""
    text = TINY.replace("[student, kd]", "[student]").replace("seeds: 2", "seeds: 1")
    suite, out, rows = load_suite(write(tmp_path, text)), tmp_path / "out", tmp_path / "rows.jsonl"
    run_suite(suite, out, rows, hours=None, engine=Here(), tell=lambda _: None)
    rows.unlink()
    from kdkit.bench import run as running

    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "refused", lambda cells: asked.extend(cells) or [])
        run_suite(suite, out, rows, hours=None, engine=Here(), tell=lambda _: None)
    assert asked == []


def test_a_seed_that_is_trained_gets_its_row_though_the_others_cannot_run(tmp_path, monkeypatch):
    text = TINY.replace("[student, kd]", "[student]").replace("data.subset=64", "data.subset=32")
    out, rows = tmp_path / "out", tmp_path / "rows.jsonl"
    words = {"hours": None, "engine": Here(), "tell": lambda _: None}
    run_suite(load_suite(write(tmp_path, text.replace("seeds: 2", "seeds: 1"))), out, rows, **words)
    rows.unlink()
    monkeypatch.setattr("kdkit.bench.run.refused", lambda cells: [(cell, "the disk is full") for cell in cells])
    outcome = run_suite(load_suite(write(tmp_path, text)), out, rows, **words)
    assert outcome.failed == {"tiny student seed 1": "the disk is full"}
    assert [(row["method"], row["seed"]) for row in read_rows(rows)] == [("teacher", 0), ("student", 0)]


PAIR = """\
data: {name: fake, samples: 100, classes: 5, shape: [3, 8, 8], batch_size: 16}
models: {teacher: {arch: resnet14, weights: random}, student: {arch: resnet8}}
losses: [ce, at]
optimizer: {name: sgd}
lr: 0.1
trainer: {max_epochs: 4}
"""


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["models.teacher.cache.by=epochs", "data.samples=4000000000", "trainer.max_epochs=1000"], "do not fit into"),
        (["models.teacher.cache.top_k=2", "losses=[ce, kd]"], "say losses.kd.temperature=1"),
        (["trainer.place={student: 0}", "trainer.compile=true"], "place: models on several ranks"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(overrides, why):
    recipe = loads(PAIR, overrides=overrides)
    with pytest.raises(KdkitError, match=why):
        dry_run(recipe)


def test_nets_are_copied_where_they_are_asked_for_again():
    def net(seed, **words):
        with models.seeded(seed, "net"):
            return models.build("resnet8", num_classes=5, **words)

    with models.copied():
        one, again, other, narrow = net(0), net(0), net(1), net(0, widths=[4, 4, 8, 16])
    assert all(torch.equal(a, b) and a is not b for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.fc.weight, other.fc.weight)
    assert narrow.fc.in_features == 16
    assert torch.equal(net(0).fc.weight, one.fc.weight)


def test_a_net_that_cannot_be_copied_is_built_again(tmp_path):
    """A suite of such nets was refused, though every run of it runs."""
    (tmp_path / "mine.py").write_text(
        "import threading\nfrom torch import nn\n\n\nclass Net(nn.Linear):\n    def __init__(self, num_classes):\n"
        "        super().__init__(4, num_classes)\n        self.lock = threading.Lock()\n"
    )
    with models.copied():
        one, again = (models.build("mine.py:Net", num_classes=5, base=tmp_path) for _ in range(2))
    assert one is not again


def test_tuning_leaves_out_what_cannot_run(tmp_path):
    pytest.importorskip("optuna")
    text = TINY.replace("[student, kd]", "[{tap: [ce, kd: {taps: logitz}]}]")
    told, rows = [], tmp_path / "rows.jsonl"
    read = load_suite(write(tmp_path, text))
    outcome = tune(read, tmp_path / "out", rows, trials=1, hours=0, engine=Here(), tell=told.append)
    assert list(outcome.failed) == ["tiny tap seed 0", "tiny tap seed 1"]
    assert [line for line in told if "tap" in line] == [f"tiny tap cannot run: {outcome.failed['tiny tap seed 0']}"]
