"""A run begins with its first step: what is refused before that costs nothing of the run that the folder holds."""

import json
import logging

import pytest
import torch

from kdkit.recipe import loads
from kdkit.registry import KdkitError
from kdkit.runs.beginning import Beginning
from kdkit.runs.fit import fit
from kdkit.runs.folder import RunFolder
from kdkit.runs.trainer import quiet
from tests.cli.command import RECIPE, refused


def recipe(*words):
    return loads(RECIPE, name="r", overrides=["data.samples=16", "trainer.max_epochs=1", *words])


def contents(folder):
    files = (path for path in folder.path.rglob("*") if path.is_file() and path != folder.lock)
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in files}


@pytest.fixture
def old(tmp_path):
    return fit(recipe(), out=tmp_path / "run").folder


WRONG = {
    "tap": ["losses.kd={from: teacher.nowhere, to: student.logits}"],
    "classes": ["models.student.num_classes=3"],
    "optimizer": ["trainer.gradient_clip_val=1", "trainer.gradient_clip_algorithm=wrong"],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_overwriting_with_what_is_refused_loses_nothing(old, tmp_path, wrong):
    before = contents(old)
    assert "student.safetensors" in before
    (tmp_path / "r.yaml").write_text(RECIPE)
    refused("fit", tmp_path / "r.yaml", "data.samples=16", "--out", old.path, "--overwrite", *WRONG[wrong])
    assert contents(old) == before


def test_what_fails_just_before_the_first_batch_loses_nothing(old, monkeypatch):
    def broken(*_):
        raise KdkitError("no memory for the cache")

    before = contents(old)
    monkeypatch.setattr("kdkit.train.distiller.speed_up", broken)  # the last thing before the first batch
    with pytest.raises(KdkitError, match="no memory"):
        fit(recipe("seed=1"), out=old.path, overwrite=True)
    assert contents(old) == before


def test_a_run_that_is_refused_writes_nothing(tmp_path):
    with pytest.raises(KdkitError):
        fit(recipe(*WRONG["tap"]), out=tmp_path / "new")
    assert contents(RunFolder(tmp_path / "new")) == {}


@pytest.mark.drawn
def test_overwriting_begins_with_the_first_step(old):
    (old.path / "notes.txt").write_text("mine")
    before = contents(old)
    fit(recipe("seed=1"), out=old.path, overwrite=True)
    after = contents(old)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] == before[name]} == {"notes.txt"}
    assert json.loads(old.provenance.read_text())["seed"] == 1


def test_minutes_are_those_of_every_part(old):
    assert 0 < json.loads(old.result.read_text())["minutes"] < 5
    state = torch.load(old.checkpoint, weights_only=False)
    kept = state["callbacks"]["Beginning"]
    assert 0 < kept["minutes"] < 5
    old.result.unlink()
    for minutes, found in ((60.0, pytest.approx(60, abs=5)), (None, None)):
        if minutes is None:
            del state["callbacks"]["Beginning"]  # it does not say
        else:
            kept["minutes"] = minutes
        torch.save(state, old.checkpoint)
        old.result.unlink(missing_ok=True)
        fit(recipe(), out=old.path, resume=True)
        assert json.loads(old.result.read_text())["minutes"] == found


def test_the_time_of_a_part_adds_to_that_before():
    first = Beginning(print, resumed=False)
    second = Beginning(print, resumed=True)
    first.since -= 120
    second.load_state_dict(first.state_dict())
    second.since -= 60
    assert second.minutes == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_kdkit_notes_is_printed_once_while_it_trains(capsys, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    note = logging.getLogger("kdkit.train.captured").info
    note("before")
    with quiet():
        note("training without a CUDA graph: %s", "[dropout]")
        logging.getLogger("pytorch_lightning.utilities").info("our products")
    note("after")
    assert capsys.readouterr() == ("training without a CUDA graph: [dropout]\n" if rank == "0" else "", "")
