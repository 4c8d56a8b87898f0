"""Equal budget: as many trials for every method, none of which sees a test image; the best one gets them all."""

import inspect
import json
import math
import sys
from time import monotonic

import pytest
import torch
import yaml
from torch import nn

from kdkit import losses as _registered  # noqa: F401
from kdkit.bench import tune as tuning
from kdkit.bench.engines import Here
from kdkit.bench.expand import expand
from kdkit.bench.job import Job
from kdkit.bench.job import run as run_job
from kdkit.bench.ledger import ledger
from kdkit.bench.plan import Plan
from kdkit.bench.rows import append, read_rows
from kdkit.bench.run import Outcome
from kdkit.bench.space import Dimension, space, suggest
from kdkit.bench.suite import TEACHER, load_suite
from kdkit.bench.table import blocks
from kdkit.bench.tune import HELD_OUT, ledger_of, tune
from kdkit.data.digits import Digits
from kdkit.recipe import loads
from kdkit.registry import FILLED_WORDS, LOSSES, KdkitError, constructor
from tests.bench.grid import TINY, write
from tests.cli.command import kdkit, refused

SUITE = TINY.replace("seeds: 2", "seeds: 1").replace("max_epochs=2", "max_epochs=1")


@pytest.fixture
def here(monkeypatch):
    """Runs happen in this process; what each of them read of the test images is kept by its method and trial."""
    seen = {}

    def run_plan(plan, suite, out, results, *, deadline, engine, tell, watch):
        outcome = Outcome()
        for cell in plan.left:
            if deadline is not None and monotonic() >= deadline:
                outcome.left += 1
                continue
            real, touched = Digits.read, []

            def read(self, train, real=real, touched=touched):
                touched.append(train)
                return real(self, train)

            monkeypatch.setattr(Digits, "read", read)
            append(results, run_job(Job(cell, suite.name, suite.folder, out, torch.get_num_threads())))
            monkeypatch.setattr(Digits, "read", real)
            seen[cell.method, cell.seed, cell.told.get("trial")] = False in touched
            outcome.done += 1
        return outcome

    monkeypatch.setattr(tuning, "run_plan", run_plan)
    return seen


def go(folder, text=SUITE, *, trials=3, hours=None):
    suite, rows = load_suite(write(folder, text)), folder / "rows.jsonl"
    outcome = tune(suite, folder / "out", rows, trials=trials, hours=hours, engine=Here(), tell=lambda _: None)
    trials = read_rows(ledger_of(rows)) if ledger_of(rows).exists() else []
    return outcome, trials, read_rows(rows) if rows.exists() else []


def recipe(losses):
    words = "models: {teacher: {arch: resnet8, weights: random}, student: {arch: resnet8}}"
    return loads(f"protocol: digits_20\n{words}\nlosses: {losses}\n")


def test_what_is_moved():
    kd = recipe("[{ce: {weight: 0.1}}, {kd: {weight: 0.9, temperature: 12}}]")
    assert space(kd) == [
        Dimension("losses.ce.label_smoothing", 0.0, 0.2, 0.0),
        Dimension("losses.kd.weight", 0.9 / 10, 9.0, 0.9),
        Dimension("losses.kd.temperature", 1.0, 12.0, 12.0),
    ]
    still = recipe(
        "[ce, {kd: {weight: {cosine: [1, 0]}, temperature: {linear: [4, 2]}}}, {at: {weight: {share: 0.3}}}]"
    )
    assert [d.word for d in space(still)] == ["losses.ce.label_smoothing", "losses.at.p"]


def test_every_stage_has_a_scale_of_its_own():
    """The first of its losses, whose weight beside the others' would be one more learning rate."""
    first, second = "{name: hints, epochs: 0.5, losses: [nst, at]}", "{name: labels, losses: [ce, sp]}"
    weights = [d.word for d in space(recipe(f"[]\nstages: [{first}, {second}]")) if d.word.endswith(".weight")]
    assert weights == ["losses.at.weight", "losses.sp.weight"]
    whole = recipe(f"[ce]\nstages: [{first}, {{name: labels, losses: [sp]}}]")
    moved = [d.word for d in space(whole) if d.word.endswith(".weight")]
    assert moved == ["losses.nst.weight", "losses.at.weight", "losses.sp.weight"]
    in_turn = recipe("[{ce: {when: {from: 0.125}}}, {fsp: {when: {to: 0.125}}}]")
    assert not [d for d in space(in_turn) if d.word.endswith(".weight")]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_takes_the_ends_of_its_space(name):
    info = LOSSES[name]
    options, words = info.example()
    for pick in (min, max):
        loss = info.cls(**{**options, **{word: pick(ends) for word, ends in info.space.items()}})
        if not FILLED_WORDS & constructor(info.cls).keys():
            assert math.isfinite(float(loss(**words)))


def test_trials_follow_from_those_before():
    dimensions = [Dimension("a", 0.1, 10.0, 1.0), Dimension("b", 0.0, 1.0, 0.5)]
    known = []
    for i in range(30):
        values = suggest(dimensions, known, i)
        assert values == suggest(dimensions, list(known), i)
        assert all(d.low <= values[d.word] <= d.high for d in dimensions)
        known.append((values, -abs(math.log(values["a"] / 4)) - abs(values["b"] - 0.2)))
    assert known[0][0] == {"a": 1.0, "b": 0.5}
    best = max(known, key=lambda one: one[1])[0]
    assert (abs(math.log(best["a"] / 4)) < 0.5, abs(best["b"] - 0.2) < 0.2) == (True, True)


def test_the_test_set_is_read_after_the_last_trial(tmp_path, here):
    outcome, trials, rows = go(tmp_path)
    assert (outcome.done, outcome.failed, outcome.left) == (1 + 2 * 3 + 4, {}, 0)
    assert [(row["method"], row["trial"]) for row in trials] == [(m, i) for i in range(3) for m in ("student", "kd")]
    assert {key: touched for key, touched in here.items() if key[2] is not None} == {
        (method, 0, i): False for i in range(3) for method in ("student", "kd")
    }
    assert here["kd-tuned", 0, None] is True
    for row in trials:
        assert "predictions" not in row
        assert yaml.safe_load(row["recipe"])["data"]["val_split"] == HELD_OUT
        assert {"seed", "commit", "machine", "values", "study", "curve"} <= row.keys()
        assert str(tmp_path) not in json.dumps(row)
    assert [row["method"] for row in rows] == ["teacher", "student", "kd", "student-tuned", "kd-tuned"]
    assert len({row["fingerprint"] for row in rows}) == 1
    for row in rows[3:]:
        how = row["tuned"]
        mine = [t for t in trials if t["method"] == how["of"]]
        assert how["score"] == max(t["last"][t["node"]]["top1"] for t in mine)
        assert how["values"] == mine[how["trial"]]["values"]
        assert "val_split" not in yaml.safe_load(row["recipe"])["data"]
        assert row["predictions"]["images"] == 360
    (block,) = blocks(rows)
    assert [line.method for line in block.lines] == ["teacher", "student", "student-tuned", "kd", "kd-tuned"]

    again, same, _ = go(tmp_path)
    assert (again.done, same) == (0, trials)
    more, longer, rows = go(tmp_path, trials=4)  # the ones before stand
    assert longer[: len(trials)] == trials
    assert len(longer) == 8
    assert more.done >= 2


def test_a_stop_changes_nothing(tmp_path, here):
    whole = tmp_path / "whole"
    whole.mkdir()
    text = SUITE.replace("[student, kd]", "[kd]")
    _, trials, _ = go(whole, text)
    half = tmp_path / "half"
    half.mkdir()
    stopped, none, _ = go(half, text, hours=0)
    assert (stopped.done, stopped.left, none) == (0, 1 + 3 + 1 + 1, [])
    go(half, text, trials=2)
    _, resumed, rows = go(half, text)
    values = [[(row["method"], row["values"], row["last"]) for row in some] for some in (trials, resumed)]
    assert values[0] == values[1]
    out, path = kdkit("table", str(half / "rows.jsonl")).out, str(ledger_of(half / "rows.jsonl"))
    assert "equal budget: trial " in out
    assert " of 3, " in out
    assert " of 2, " not in out  # the one of two trials is in the file, but not in the table
    assert [row["tuned"]["trials"] for row in rows if "tuned" in row] == [2, 3]
    shown = kdkit("table", str(half / "rows.jsonl"), path).out
    assert shown.startswith(out)
    assert "**Trials of kd, tiny on digits**" in shown
    assert "| `ce.label_smoothing` | `kd.weight` | `kd.temperature` | held-out top-1 % |" in shown
    assert kdkit("table", path, "--format", "csv").out.count("\n") == 1 + len(resumed)
    said = refused("table", str(half / "rows.jsonl"), path, "--format", "csv")
    assert "a CSV is one table, and runs and trials are two" in said
    assert "trials are shown as md or csv" in refused("table", path, "--format", "html")


def test_where_nothing_is_better_the_published_run_is_the_tuned_one(tmp_path):
    cells = expand(load_suite(write(tmp_path, SUITE)), tmp_path / "teachers")
    study = next(tuning.Study(cell, space(cell.recipe)) for cell in cells if cell.method == "kd")
    rows = []
    for i in range(3):
        told = study.next(rows).told
        rows.append({**told, "node": "student", "last": {"student": {"top1": 0.5 - 0.1 * i}}})
    best = study.winner(rows, 3)
    assert (best.method, best.content, best.told["tuned"]["trial"]) == ("kd-tuned", study.cell.content, 0)
    assert best.key != study.cell.key
    rows[2]["last"]["student"]["top1"] = 0.9
    assert study.winner(rows, 3).content != study.cell.content


def test_a_trial_that_comes_to_no_number_is_the_worst(tmp_path):
    suite = load_suite(write(tmp_path, SUITE.replace("[student, kd]", "[{wild: [ce, {mse: {weight: 1.0e+12}}]}]")))
    cells = expand(suite, tmp_path / "teachers")
    run_job(Job(next(c for c in cells if c.method == TEACHER), suite.name, tmp_path, tmp_path / "out", 1))
    wild = next(cell for cell in cells if cell.method == "wild")
    study = tuning.Study(wild, space(wild.recipe))
    row = run_job(Job(study.next([]), suite.name, tmp_path, tmp_path / "out", 1))
    assert tuning.score(row) == 0
    assert "not finite" in row["why"]
    append(tmp_path / "t.jsonl", row)
    assert "not finite" in ledger(read_rows(tmp_path / "t.jsonl"), "md")
    assert study.next([row]).told["trial"] == 1


def test_processes_and_the_verb(tmp_path):
    write(tmp_path, SUITE.replace("[student, kd]", "[{mine: [ce, {mse: {}}]}, {nothing: [mse]}]"))
    said = kdkit("tune", "suite.yaml", "--trials", "2", "--processes", "2")
    assert said.code == 0, said.err
    assert "tiny nothing: nothing to tune" in said.out
    rows = [row["method"] for row in read_rows(tmp_path / "runs/suite/results.jsonl")]
    assert sorted(rows) == ["mine", "mine-tuned", "nothing", "teacher"]
    assert len(read_rows(tmp_path / "runs/suite/results.trials.jsonl")) == 2
    assert "kdkit table runs/suite/results.jsonl runs/suite/results.trials.jsonl" in " ".join(said.out.split())


def test_without_optuna_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(KdkitError, match=r"pip install 'kdkit\[tune\]'"):
        go(tmp_path)


def test_values_that_come_again_are_not_run_again(tmp_path, here, monkeypatch):
    monkeypatch.setattr(tuning, "suggest", lambda dimensions, *_: {d.word: d.usual for d in dimensions})
    outcome, trials, rows = go(tmp_path, SUITE.replace("[student, kd]", "[kd]"))
    assert outcome.left == 0
    assert [row["trial"] for row in trials] == [0, 1, 2]
    assert len({row["last"]["student"]["top1"] for row in trials}) == 1
    assert sum(key[2] is not None for key in here) == 1
    assert [row["method"] for row in rows][-1] == "kd-tuned"


@pytest.mark.parametrize("said", ["{'warmth': (1.0, 2.0)}", "{'slope': 3.0}", "{'slope': (2.0, 1.0)}"])
def test_a_space_that_is_none(tmp_path, said):
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\n\nclass Own(nn.Module):\n"
        f"    space = {said}\n\n    def __init__(self, slope=1.0):\n        super().__init__()\n\n"
        "    def forward(self, student): return student.mean()\n"
    )
    with pytest.raises(KdkitError, match=r"losses\.Own: `space` must give two ends"):
        space(recipe(f"[ce, {tmp_path}/own.py:Own]"))


class Cut(nn.Module):
    space = {"k": (1, 8), "scale": (0.5, 2.0)}  # noqa: RUF012  as people write it

    def __init__(self, k: int = 4, scale: float = 1) -> None:
        super().__init__()
        self.k, self.scale = k, scale

    def forward(self, student):
        return self.scale * student[:, : self.k].square().mean()


def test_whole_numbers_stay_whole(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(f"from torch import nn\n\n{inspect.getsource(Cut)}")
    monkeypatch.chdir(tmp_path)
    moved = space(recipe("[ce, own.py:Cut]"))
    assert [(d.word, type(d.usual)) for d in moved if "Cut" in d.word][1:] == [
        ("losses.Cut.k", int),
        ("losses.Cut.scale", float),
    ]
    known = []
    for i in range(15):
        values = suggest(moved, known, i)
        assert 1 <= values["losses.Cut.k"] <= 8
        assert isinstance(values["losses.Cut.k"], int)
        known.append((values, float(i)))
    assert len({values["losses.Cut.k"] for values, _ in known}) > 2


def test_a_teacher_that_fails_keeps_no_other_pair_from_its_trials(tmp_path, here, monkeypatch):
    pairs = (
        "pairs: [{teacher: resnet8, student: resnet8, name: good}, {teacher: resnet14, student: resnet8, name: bad}]"
    )
    text = SUITE.replace(SUITE.splitlines()[1], pairs).replace("[student, kd]", "[kd]")
    real = tuning.run_plan

    def failing(plan, *args, **words):
        lost = [cell for cell in plan.left if (cell.pair, cell.method) == ("bad", TEACHER)]
        return real(Plan([cell for cell in plan.cells if cell not in lost], plan.rows), *args, **words)

    monkeypatch.setattr(tuning, "run_plan", failing)
    outcome, trials, rows = go(tmp_path, text, trials=1)
    assert [(row["pair"], row["method"]) for row in trials] == [("good", "kd")]
    assert [(row["pair"], row["method"]) for row in rows] == [("good", "teacher"), ("good", "kd"), ("good", "kd-tuned")]
    assert outcome.failed == {"bad kd seed 0": "its teacher failed"}


def test_a_renamed_method_goes_on_with_its_trials(tmp_path, here):
    text = SUITE.replace("[student, kd]", "[{mine: [ce, kd]}]")
    (study,) = go(tmp_path, text, trials=1)[1]
    first, second = go(tmp_path, text.replace("mine", "ours"), trials=2)[1]
    assert (first["study"], second["study"]) == (study["study"], study["study"])
    assert (second["trial"], second["method"]) == (1, "ours")
