"""What may be written where: nothing that is not kdkit's is ever deleted or mixed with a run."""

import json
import os
import sys

import pytest

from kdkit import models
from kdkit.registry import KdkitError
from kdkit.runs import folder as folders
from kdkit.runs.folder import RunFolder, first_rank, read_json, write_json
from kdkit.runs.lock import only_here
from tests.cli.command import refused


@pytest.fixture
def run(tmp_path):
    """A folder as a finished run leaves it."""
    folder = RunFolder(tmp_path / "run")
    folder.checkpoint.parent.mkdir(parents=True)
    for path in (folder.recipe, folder.metrics, folder.result, folder.curves, folder.checkpoint):
        path.write_text("kdkit's")
    write_json(folder.provenance, {"content": "0123456789abcdef"})
    models.save_weights(
        models.build("resnet8", num_classes=2), folder.weights("student"), {"recipe": "r", "node": "student"}
    )
    (folder.path / ".kdkit.0f3a").write_text("half a file")
    return folder


def files(folder):
    return sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file())


def test_overwriting_takes_kdkits_own_files_and_nothing_else(run):
    mine = [
        "thesis.tex",
        "notes.txt",
        "teacher.safetensors",
        "broken.safetensors",
        "checkpoints/mine.ckpt",
        "sub/result.json",
    ]
    (run.path / "sub").mkdir()
    for name in mine:
        (run.path / name).write_text("mine")
    os.replace(run.weights("student"), run.weights("best"))  # a copy under a name of one's own
    models.save_weights(
        models.build("resnet8", num_classes=2), run.weights("student"), {"recipe": "r", "node": "student"}
    )
    run.prepare(resume=False, overwrite=True)
    assert files(run) == sorted([*mine, "best.safetensors"])
    assert all((run.path / name).read_text() == "mine" for name in mine)


def test_a_run_leaves_nothing_behind_when_it_is_overwritten(run):
    run.prepare(resume=False, overwrite=True)
    assert list(run.path.iterdir()) == []


def test_the_lock_is_held_while_an_old_run_goes(run):
    with only_here(run):
        run.prepare(resume=False, overwrite=True)
        assert files(run) == [run.lock.name]


@pytest.mark.parametrize(("resume", "overwrite"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("name", ["thesis.tex", "recipe.yaml", "result.json", "provenance.json", ".git"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, name, resume, overwrite):
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(KdkitError, match=rf"is not a run's folder, and not empty \({name}"):
        RunFolder(tmp_path).prepare(resume=resume, overwrite=overwrite)
    assert (tmp_path / name).read_text() == '{"mine": 1}'


def test_both_words_together_are_refused(run):
    with pytest.raises(KdkitError, match="give one of them"):
        run.check(resume=True, overwrite=True)


def test_an_empty_folder_and_one_that_is_not_there_will_do(tmp_path):
    (tmp_path / ".kdkit.lock").touch()
    RunFolder(tmp_path).check(resume=False, overwrite=False)
    RunFolder(tmp_path / "a" / "b").check(resume=False, overwrite=False)
    assert not (tmp_path / "a").exists()


def test_a_run_that_has_nothing_to_go_on_with_begins_anew(run):
    run.result.unlink()
    run.checkpoint.unlink()
    for resume in (False, True):
        run.prepare(resume=resume, overwrite=False)
    assert not run.recipe.exists()


def test_resuming_what_has_no_checkpoint_leaves_nothing_of_its_beginning(run):
    for path in (run.result, run.checkpoint):
        path.unlink()
    run.prepare(resume=True, overwrite=False)
    assert files(run) == []


def test_resuming_deletes_nothing(run):
    before = files(run)
    run.prepare(resume=True, overwrite=False)
    assert files(run) == before


@pytest.mark.parametrize("teacher", [False, True])
def test_a_place_that_cannot_be_written(tmp_path, monkeypatch, teacher):
    (tmp_path / "file").touch()
    advice = "set KDKIT_HOME" if teacher else "give another folder with --out"
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(KdkitError, match=advice):
            RunFolder(path, teacher).check(resume=False, overwrite=False)
        with pytest.raises(KdkitError, match=advice), only_here(RunFolder(path, teacher)):
            pass
    monkeypatch.setattr(folders.os, "access", lambda *_: False)
    with pytest.raises(KdkitError, match=rf"cannot be written; {advice}"):
        RunFolder(tmp_path / "run", teacher).check(resume=False, overwrite=False)


def test_the_command_line_says_so_before_anything_is_imported(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "kdkit.recipe", None)
    assert "already holds a run" in refused("fit", "student_digits", "--out", run.path)


def test_two_runs_do_not_share_a_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    refusal = rf"another process trains into .*run \(pid {os.getpid()}, lock "
    with only_here(folder), pytest.raises(KdkitError, match=refusal), only_here(folder):
        pass
    with only_here(folder):
        folder.checkpoint.parent.mkdir(parents=True)
        folder.checkpoint.touch()
        assert "another process trains into" in refused("fit", "student_digits", "--out", folder.path)


def test_who_waits_is_told_whom_for_and_then_goes_on(tmp_path):
    folder, told = RunFolder(tmp_path / "run"), []
    first = only_here(folder)
    first.__enter__()

    def waiting(holder):
        told.append(holder)
        first.__exit__(None, None, None)

    with only_here(folder, waiting):
        pass
    assert told == [f"pid {os.getpid()}, lock {folder.lock}"]


@pytest.mark.parametrize(
    ("words", "first"),
    [({}, True), ({"LOCAL_RANK": "0"}, True), ({"LOCAL_RANK": "1"}, False), ({"RANK": "2", "LOCAL_RANK": "0"}, False)],
)
def test_the_rank_is_what_the_environment_says(monkeypatch, words, first):
    for word in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(word, raising=False)
    for word, value in words.items():
        monkeypatch.setenv(word, value)
    assert first_rank() is first


def test_json_has_no_word_for_nan(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": [float("nan"), 1.5], "b": {"c": float("-inf")}})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"a": [None, 1.5], "b": {"c": None}}
    path.write_text('{"a": 1')
    with pytest.raises(KdkitError, match=r"x\.json cannot be read"):
        read_json(path)
