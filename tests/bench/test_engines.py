"""Engines take jobs and give answers, whatever becomes of a run; what runs can be watched."""

import io
import json
import multiprocessing
import os
import signal
from time import monotonic, sleep

import pytest
from rich.console import Console

from kdkit.bench import live
from kdkit.bench.engines import Here, Processes, processes
from kdkit.bench.expand import expand
from kdkit.bench.job import Job
from kdkit.bench.live import Running, State, progress
from kdkit.bench.rows import read_rows
from kdkit.bench.run import run_suite
from kdkit.bench.suite import load_suite
from kdkit.runs.lock import only_here
from tests.bench.grid import TINY, write
from tests.cli.command import kdkit, refused
from tests.processes import CONTEXT

ALONE = TINY.replace("[student, kd]", "[student]").replace("seeds: 2", "seeds: 1")
ALONE = ALONE.replace("teacher: resnet8", "teacher: {arch: resnet8, weights: pretrained.pth}")
LONG = ALONE.replace("_epochs=2", "_epochs=400")


@pytest.fixture(autouse=True)
def _weights(tmp_path):
    (tmp_path / "pretrained.pth").touch()


def job(folder, text=ALONE):
    (cell,) = expand(load_suite(write(folder, text)), folder / "teachers")
    return Job(cell, "suite", folder, folder / "out", 1)


@pytest.mark.parametrize("method", [None, "spawn"])
def test_what_a_run_starts_begins_as_it_would_without_a_server(method, monkeypatch):
    """Workers that decode images would each import everything anew."""
    monkeypatch.setattr(processes, "alone", lambda job: ("done", multiprocessing.get_start_method(allow_none=True)))
    ours, theirs = multiprocessing.Pipe(duplex=False)
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        multiprocessing.set_start_method("forkserver", force=True)  # as a process of its server finds it
        processes._work(None, dict(os.environ), os.getcwd(), method, theirs)
        assert ours.recv() == ("done", method)
    finally:
        multiprocessing.set_start_method(before, force=True)
        ours.close()
        theirs.close()


def test_this_process_runs_fails_and_stops_in_time(tmp_path, capsys):
    suite = load_suite(write(tmp_path, ALONE))
    outcome = run_suite(suite, tmp_path / "out", tmp_path / "rows.jsonl", hours=None, engine=Here(), tell=print)
    assert (outcome.done, outcome.left) == (1, 0)
    assert len(read_rows(tmp_path / "rows.jsonl")) == 1
    assert "epoch 2/2" in capsys.readouterr().out

    engine, before = Here(), signal.SIG_IGN
    signal.signal(signal.SIGINT, before)  # as under `kdkit bench … &`
    engine.begin(job(tmp_path, LONG))
    assert engine.room() == 0
    (answer,) = engine.answers(monotonic() + 1.5)
    assert answer.word == "stopped", answer
    assert signal.getsignal(signal.SIGINT) == before
    assert engine.room() == 1
    engine.begin(job(tmp_path, ALONE.replace("data.subset=64", "'data={name: folder, root: nowhere}'")))
    (answer,) = engine.answers(None)
    assert answer.word == "failed"
    assert "nowhere" in answer.what


def test_each_of_several_gpus_has_its_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_gpus", lambda: ["4", "7"])
    engine, one = Processes(3), job(tmp_path)
    assert [engine.environment(one, place)[processes.GPUS] for place in range(3)] == ["4", "7", "4"]
    several = job(tmp_path, ALONE.replace("overrides: [", "overrides: [trainer.devices=2, "))
    assert engine.environment(several, 1) == dict(os.environ)
    monkeypatch.setattr(processes, "_gpus", lambda: ["0"])
    assert Processes(3).environment(one, 1) == dict(os.environ)


def bench_in(folder):
    os.chdir(folder)
    kdkit("bench", "suite.yaml")


def test_a_suite_that_is_killed_leaves_no_run_behind(tmp_path):
    write(tmp_path, LONG)
    bench = CONTEXT.Process(target=bench_in, args=(tmp_path,))
    bench.start()
    end = monotonic() + 240
    while not (found := list(tmp_path.glob("runs/suite/tiny-student-*/checkpoints/last.ckpt"))) and monotonic() < end:
        sleep(0.05)
    bench.kill()
    bench.join()
    assert found
    folder, began = job(tmp_path, LONG).folder, monotonic()
    folder = type(folder)(found[0].parent.parent)
    with only_here(folder, waiting=lambda who: None):  # waits for the run, which nobody waits for any more
        assert monotonic() - began < 30
    assert not folder.complete


def test_an_answer_that_nobody_waits_for_is_no_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "alone", lambda _: ("done", {}))
    asked, answer = CONTEXT.Pipe(duplex=False)
    asked.close()
    method = multiprocessing.get_start_method(allow_none=True)
    processes._work(None, dict(os.environ), str(tmp_path), method, answer)


def test_a_run_is_followed_by_the_rows_that_it_writes(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(live, "monotonic", lambda: now[0])
    one = job(tmp_path, ALONE.replace("_epochs=2", "_epochs=10"))
    one.folder.path.mkdir(parents=True)
    run = Running(one, 50.0, now[0])
    assert (run.epoch, run.top1, run.left) == (0, None, 50)
    now[0] = 104.0
    one.folder.metrics.write_text("epoch,step,val/student/top1\n1,2,0.25\n2,4,\n")
    run.look()
    assert (run.epoch, run.top1, run.left) == (2, 0.25, 16)
    now[0] = 105.0
    run.look()
    assert run.left == 15
    again = Running(one, None, now[0])  # begun anew from epoch 2: its own pace is not known yet
    assert (again.first, again.left) == (2, None)

    text = io.StringIO()
    Console(file=text, width=100).print(live.shown(State([run], 3, 1, "2 left, some 4 m")))
    assert "3 done, 1 failed; 2 left, some 4 m; 1 running" in text.getvalue()
    assert "tiny student 0 2/10 25.00 15 s" in " ".join(text.getvalue().split())


def test_only_a_terminal_shows_what_runs(monkeypatch):
    text = io.StringIO()
    with progress(text) as (tell, watch):
        tell("a [b] line")
        assert watch is None
    assert text.getvalue() == "a [b] line\n"
    monkeypatch.setattr(live, "console", lambda file: Console(file=file, force_terminal=True, width=80))
    with progress(text := io.StringIO()) as (tell, watch):
        watch(State([], 7, 0, "nothing is left"))
        tell("a line")
    assert "7 done; nothing is left" in text.getvalue()
    assert "a line" in text.getvalue()


def test_words_of_engines_that_do_not_go_together(tmp_path):
    write(tmp_path)
    assert "--engine must be one of processes, here, ray, got 'rya'; did you mean 'ray'?" in refused(
        "bench", "suite.yaml", "--engine", "rya"
    )
    assert "--engine must be one of" in refused("bench", "suite.yaml", "--plan", "--engine", "dask")
    assert "--address, --gpus-per-run goes with --engine ray" in refused(
        "bench", "suite.yaml", "--address", "auto", "--gpus-per-run", "0.5"
    )
    assert "--processes goes with --engine processes, not with here" in refused(
        "bench", "suite.yaml", "--engine", "here", "--processes", "2"
    )
    said = kdkit("bench", "suite.yaml", "--engine", "here", "--hours", "0")
    assert "5 runs are left" in said.out
    assert json.dumps(said.err) == '""'
