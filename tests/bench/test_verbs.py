"""The verbs of suites."""

from tests.bench.grid import TINY, write
from tests.cli.command import kdkit, refused


def test_bench_plans_runs_and_plans_again(tmp_path):
    write(tmp_path, TINY.replace("seeds: 2", "seeds: 1"))
    said = kdkit("bench", "suite.yaml", "--plan")
    assert said.code == 0
    assert "3 runs, 0 done; 3 left; how long a run takes is known after the first" in said.out
    assert not (tmp_path / "runs/suite/results.jsonl").exists()
    said = kdkit("bench", "suite.yaml", "--out", "here", "--results", "mine.jsonl")
    assert said.code == 0
    assert "rows are in mine.jsonl; next: kdkit table mine.jsonl" in said.out
    said = kdkit("bench", "suite.yaml", "--out", "here", "--results", "mine.jsonl", "--plan")
    assert "3 runs, 3 done; nothing is left" in said.out
    write(tmp_path, TINY.replace("seeds: 2", "seeds: 1"), "copy")
    said = kdkit("bench", "copy.yaml", "--results", "mine.jsonl")
    assert "next: kdkit table mine.jsonl, or look at runs/copy/report.html" in said.out
    other = kdkit("bench", "suite.yaml", "--results", "mine.jsonl", "--plan", "losses.kd.weight=0.5").out
    assert "3 runs, 2 done; 1 left" in other


def test_what_failed_is_told_at_the_end(tmp_path):
    write(
        tmp_path, TINY.replace("data.subset=64", "'data={name: folder, root: nowhere}'").replace("seeds: 2", "seeds: 1")
    )
    err = refused("bench", "suite.yaml")
    assert "3 of the runs failed; the same command tries them again" in err
    assert "tiny kd seed 0: its teacher failed" in err


def test_what_is_wrong_with_a_suite_is_one_message(tmp_path):
    assert "suite.yaml: no such file" in refused("bench", "suite.yaml", "--plan")
    write(tmp_path, TINY.replace("kd]", "krd]"))
    assert "suite.yaml:3: methods.krd: no packaged recipe" in refused("bench", "suite.yaml", "--plan")


def test_no_hours_run_nothing(tmp_path):
    write(tmp_path)
    said = kdkit("bench", "suite.yaml", "--hours", "0")
    assert said.code == 0
    assert "the 0 hours are over, 5 runs are left; the same command goes on with them" in said.out
