"""A teacher that is trained first: what is said meanwhile, and how Ctrl-C in the middle of it ends."""

import os
import signal
import sys

import pytest

from kdkit.recipe import load
from kdkit.registry import KdkitError
from kdkit.runs import fit as fitting
from kdkit.runs import teacher as teachers
from kdkit.runs.fit import fit
from kdkit.runs.folder import RunFolder
from kdkit.runs.interrupt import Interrupted, interruptible
from kdkit.runs.lock import only_here
from kdkit.runs.teacher import teacher_folder, trained_weights
from tests.cli.command import RECIPE, kdkit


@pytest.fixture
def pupil(tmp_path, monkeypatch):
    """The file of a recipe whose teacher is a recipe, of two epochs, too."""
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    alone = "losses: [ce]\n" + RECIPE.partition("losses:")[0] + "optimizer:" + RECIPE.partition("optimizer:")[2]
    wise = alone.replace("  teacher: {arch: resnet14, weights: random}\n", "").replace("student", "net")
    (tmp_path / "wise.yaml").write_text(wise)
    (tmp_path / "pupil.yaml").write_text(RECIPE.replace("resnet14, weights: random", "resnet8, weights: wise"))
    return tmp_path / "pupil.yaml"


@pytest.fixture
def ctrl_c(monkeypatch):
    """`ctrl_c(epoch)`: Ctrl-C in that epoch of whatever trains next, counted from 0."""
    assemble = fitting.assemble

    def press(epoch):
        def pressed(experiment, folder, rows):
            distiller, trainer = assemble(experiment, folder, rows)
            step = distiller.training_step

            def training_step(batch, batch_idx):
                if trainer.current_epoch == epoch:
                    raise KeyboardInterrupt
                step(batch, batch_idx)

            distiller.training_step = training_step
            return distiller, trainer

        monkeypatch.setattr(fitting, "assemble", pressed)

    before = signal.getsignal(signal.SIGINT)
    yield press
    assert signal.getsignal(signal.SIGINT) is before  # Lightning leaves it ignored


def told(text):
    return [line.split("  ")[0] for line in text.splitlines()]


def test_no_teacher_is_trained_for_a_pupil_that_cannot_begin(pupil, tmp_path, capsys):
    """It was trained to its end, and then that was told."""
    wrong = load(pupil, ["trainer.accelerator=cpu", "losses=[{mse: {from: teacher.stage1, to: student.stage2}}]"])
    with pytest.raises(KdkitError, match=r"losses\.mse: .*16×8×8.*32×4×4"):
        fit(wrong, out=tmp_path / "run")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_interrupted_goes_on_with_the_same_command(pupil, tmp_path, monkeypatch, ctrl_c):
    teacher, run = teacher_folder(load(tmp_path / "wise.yaml", ["trainer.accelerator=cpu"])), tmp_path / "run"
    words = ["fit", str(pupil), "--out", str(run), "--overwrite"]
    monkeypatch.setattr(sys, "argv", ["kdkit", *words])
    goes_on = f"go on with: kdkit {' '.join(words)}\n"

    ctrl_c(0)
    said = kdkit(*words)
    assert (said.code, told(said.out)) == (130, [f"training wise first: 2 epochs, into {teacher.path}"])
    assert f"stopped. {teacher.path} has no checkpoint yet, for its first epoch is not over; {goes_on}" in said.err

    ctrl_c(1)
    said = kdkit(*words)
    assert told(said.out) == [f"training wise first: 2 epochs, into {teacher.path}", "epoch 1/2"]
    assert f"stopped. {teacher.checkpoint} holds the teacher so far; {goes_on}" in said.err
    assert not run.exists()

    ctrl_c(9)
    lines = told(kdkit(*words).out)
    assert lines[:5] == [
        f"going on with wise first after epoch 1: 2 epochs, into {teacher.path}",
        "epoch 2/2",
        f"using wise from {teacher.path}",
        f"training pupil: 2 epochs, into {run}",
        "epoch 1/2",
    ]
    again = told(kdkit(*words).out)
    assert again[:2] == [f"using wise from {teacher.path}", f"training pupil: 2 epochs, into {run}"]


def test_lightnings_way_of_leaving_python_is_ctrl_c_and_others_are_meant(tmp_path):
    with pytest.raises(SystemExit), interruptible(RunFolder(tmp_path)):
        sys.exit(3)

    def lightning():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    with pytest.raises(Interrupted), interruptible(RunFolder(tmp_path)):
        lightning()


def test_who_waits_for_a_teacher_says_so_and_uses_what_the_other_made(pupil, tmp_path, monkeypatch):
    recipe, heard = load(tmp_path / "wise.yaml"), []
    folder = teacher_folder(recipe)
    other = only_here(folder)
    other.__enter__()

    def hear(text, file):
        heard.append(text)
        if text.startswith("waiting"):
            folder.result.write_text("{}")
            other.__exit__(None, None, None)

    monkeypatch.setattr(teachers, "tell", hear)
    assert trained_weights(recipe, lambda *_: pytest.fail("trained twice")) == folder.weights("net")
    assert heard == [
        f"waiting for another run that trains wise (pid {os.getpid()}, lock {folder.lock})",
        f"using wise from {folder.path}",
    ]


def test_a_home_that_is_a_file(pupil, tmp_path):
    (tmp_path / "home").write_text("")
    with pytest.raises(KdkitError, match=r"home is no folder; set KDKIT_HOME to a folder that can be written"):
        fit(load(pupil), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
