"""Checkpoints and rows on disks that fail: what is whole is found, and what cannot be written is one clear error."""

import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from kdkit import storage
from kdkit.recipe import loads
from kdkit.registry import KdkitError
from kdkit.runs import fit as fitting
from kdkit.runs.fit import fit
from kdkit.runs.folder import RunFolder
from kdkit.runs.interrupt import Interrupted, interruptible
from kdkit.runs.result import read_figures
from kdkit.runs.resume import standing
from tests.cli.command import RECIPE, refused
from tests.damage import spoilt

EPOCHS = 4


class PowerCut(BaseException):
    pass


def recipe():
    return loads(RECIPE, name="r", overrides=["data.samples=16", f"trainer.max_epochs={EPOCHS}"])


def before_epoch(monkeypatch, epoch, deed):
    """Something happens at the first step of an epoch, counted from 0."""

    def patched(experiment, folder, rows):
        distiller, trainer = assemble(experiment, folder, rows)
        step = distiller.training_step

        def training_step(batch, batch_idx):
            if trainer.current_epoch == epoch:
                deed()
            step(batch, batch_idx)

        monkeypatch.setattr(distiller, "training_step", training_step)
        return distiller, trainer

    assemble = fitting.assemble
    monkeypatch.setattr(fitting, "assemble", patched)


def cut():
    raise PowerCut


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    return fit(recipe(), out=tmp_path_factory.mktemp("runs") / "whole").folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that the power left in its last epoch."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "stopped")
    with pytest.MonkeyPatch.context() as patch:
        before_epoch(patch, EPOCHS - 1, cut)
        with pytest.raises(PowerCut):
            fit(recipe(), out=folder.path)
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of it."""
    return RunFolder(shutil.copytree(stopped.path, tmp_path / "run"))


def same(folder, whole):
    """Weights, rows and figures are those of the run that nothing happened to."""
    assert folder.weights("student").read_bytes() == whole.weights("student").read_bytes()
    assert folder.metrics.read_text() == whole.metrics.read_text()
    one, other = ({**read_figures(f), "minutes": 0} for f in (folder, whole))
    assert one == other


def goes_on(folder, whole, capsys=None):
    fit(recipe(), out=folder.path, resume=True)
    same(folder, whole)


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_two_are_kept_however_the_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    for name in ("runs/r", "link/r"):
        fit(recipe(), out=Path(name))
        assert RunFolder(Path(name)).previous.exists()


def test_the_last_two_are_kept_and_say_where_they_stand(run, whole):
    assert standing(run).epochs == EPOCHS - 1
    os.replace(run.previous, run.checkpoint)
    assert standing(run).epochs == EPOCHS - 2
    goes_on(run, whole)


FLAWS = {
    "cut": lambda raw: raw[: len(raw) // 2],
    "torn": lambda raw: raw[:-4096] + bytes(4096),
    "a bit": lambda raw: raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :],
    "empty": lambda raw: b"",
    "text": lambda raw: b"hello",
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_damaged_last_checkpoint_is_told_and_the_one_before_it_used(run, whole, capsys, flaw):
    run.checkpoint.write_bytes(FLAWS[flaw](run.checkpoint.read_bytes()))
    goes_on(run, whole)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{run.checkpoint} is damaged: it cannot be read as a checkpoint; the one before it is used"
    assert said[1].startswith(f"going on with r after epoch {EPOCHS - 2}: ")
    assert standing(run).epochs == EPOCHS


def test_a_lost_last_checkpoint(run, whole):
    run.checkpoint.unlink()
    assert run.begun
    goes_on(run, whole)


@pytest.mark.parametrize(
    ("error", "why"), [(OSError(5, "Input/output error"), "Input/output"), (MemoryError(), "no mem")]
)
def test_a_disk_that_fails_costs_no_checkpoint(run, tmp_path, monkeypatch, error, why):
    def fail(path):
        raise error

    monkeypatch.setattr("kdkit.models.whole.check_zip", fail)
    (tmp_path / "r.yaml").write_text(RECIPE)
    kept = run.checkpoint.read_bytes(), run.previous.read_bytes()
    words = ["data.samples=16", f"trainer.max_epochs={EPOCHS}", "--out", run.path, "--resume"]
    assert f"{run.checkpoint} cannot be read ({why}" in refused("fit", tmp_path / "r.yaml", *words)
    assert (run.checkpoint.read_bytes(), run.previous.read_bytes()) == kept


def test_two_damaged_ones_are_an_error(run, tmp_path):
    for path in (run.checkpoint, run.previous):
        path.write_bytes(path.read_bytes()[:5000])
    (tmp_path / "r.yaml").write_text(RECIPE)
    words = ["data.samples=16", f"trainer.max_epochs={EPOCHS}", "--out", run.path, "--resume"]
    assert f"{run.checkpoint} is damaged" in refused("fit", tmp_path / "r.yaml", *words)


def test_no_flaw_goes_unseen(run):
    right = {path: state(path) for path in (run.checkpoint, run.previous)}
    before = 0
    for content in spoilt(run.checkpoint.read_bytes(), 60, 2000):
        run.checkpoint.write_bytes(content)
        used = standing(run).checkpoint
        before += used == run.previous
        found, wanted = state(used), right[used]
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert before > 30


def test_a_damaged_checkpoint_never_takes_the_place_of_the_good_one(run, monkeypatch):
    run.checkpoint.write_bytes(b"damaged")
    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", lambda a, b: cut() if Path(b) == run.checkpoint else replace(a, b))
        with pytest.raises(PowerCut):
            fit(recipe(), out=run.path, resume=True)
    assert standing(run).epochs == EPOCHS - 2


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_power_fails_while_a_checkpoint_is_written(run, whole, monkeypatch, call, count):
    """At every call of the system that a checkpoint takes, from the first to the last."""
    made, done = getattr(os, call), []

    def failing(*words):
        there = os.fspath(words[0]) if call != "fsync" else os.readlink(f"/proc/self/fd/{words[0]}")
        if "checkpoints" in there:
            done.append(there)
            if len(done) == count:
                raise PowerCut
        return made(*words)

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, call, failing)
        patch.setattr(storage.os, "unlink", lambda *_: None)  # nobody cleans up after a power cut
        if call == "chmod" and count == 2:
            fit(recipe(), out=run.path, resume=True)
        else:
            with pytest.raises(PowerCut):
                fit(recipe(), out=run.path, resume=True)
    assert standing(run).epochs in (EPOCHS - 1, EPOCHS)
    goes_on(run, whole)


class Pressed:
    """A file in whose writing somebody presses Ctrl-C."""

    def __init__(self, file, at, times):
        self.file, self.left, self.times, self.flush = file, at, times, file.flush

    def write(self, data):
        self.left -= 1
        for _ in range(self.times if self.left == 0 else 0):
            signal.raise_signal(signal.SIGINT)
        return self.file.write(data)


@pytest.mark.parametrize(("at", "times"), [(1, 1), (2, 1), (9, 1), (2, 3)])
def test_ctrl_c_while_a_checkpoint_is_written(run, whole, monkeypatch, at, times):
    """It is answered when the file lies there; for torch it would be a refused write, and a second one the end."""
    save, known = torch.save, set(run.checkpoint.parent.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda content, file: save(content, Pressed(file, at, times)))
        with pytest.raises(Interrupted, match="holds the run so far"):
            fit(recipe(), out=run.path, resume=True)
    assert standing(run).epochs == EPOCHS
    assert set(run.checkpoint.parent.iterdir()) == known
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    goes_on(run, whole)


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
def test_ctrl_c_at_every_call_of_the_system_waits_for_both_names(tmp_path, monkeypatch, call):
    """Between the two renames there is no file of that name."""
    last, before = tmp_path / "last", tmp_path / "before"
    last.write_text("1")
    made, frames = getattr(os, call), []

    def pressing(*words):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return made(*words)

    monkeypatch.setattr(storage.os, call, pressing)
    monkeypatch.setattr(signal, "default_int_handler", lambda number, frame: frames.append(frame))
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with storage.whole(last, before=before) as file:
            file.write(b"2")
    finally:
        signal.signal(signal.SIGINT, heard)
    assert (last.read_text(), before.read_text()) == ("2", "1")
    assert len(frames) == 1
    assert frames[0] is not None
    assert sorted(tmp_path.iterdir()) == [before, last]


def test_ctrl_c_beside_a_refused_write_is_answered(tmp_path):
    """Whoever lives on without the file would go on without it."""
    with pytest.raises(KeyboardInterrupt) as caught, storage.whole(tmp_path / "file"):  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        raise OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(caught.value.__context__, OSError)
    assert not list(tmp_path.iterdir())


def test_signals_are_put_back_whatever_the_end_of_a_run_meets(tmp_path):
    answers = {number: lambda *_: None for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: signal.signal(number, answer) for number, answer in answers.items()}
    try:
        with pytest.raises(PowerCut), interruptible(RunFolder(tmp_path)):  # noqa: PT012
            for number in answers:
                signal.signal(number, signal.SIG_IGN)
            raise PowerCut
        assert {number: signal.getsignal(number) for number in answers} == answers
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)


def test_an_interrupted_run_names_the_checkpoint_that_is_there(tmp_path):
    folder = RunFolder(tmp_path)
    assert "no checkpoint yet" in str(Interrupted(folder))
    folder.previous.parent.mkdir()
    folder.previous.touch()
    assert str(Interrupted(folder)) == f"{folder.previous} holds the run so far"


def test_ctrl_c_beside_a_full_disk_tells_of_both(run, monkeypatch):
    def full(*_):
        signal.raise_signal(signal.SIGINT)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(Interrupted, match=r"holds the run so far; its last epoch could not be saved \(.*No space left"):
        fit(recipe(), out=run.path, resume=True)
    assert standing(run).epochs == EPOCHS - 1


@pytest.mark.parametrize("damage", ["", "epoch,step\nx,y\n", "\x00\x01", "no such columns\n1\n"])
def test_rows_come_from_the_checkpoint(run, whole, damage):
    run.metrics.write_text(damage)
    goes_on(run, whole)


@pytest.fixture
def disk(tmp_path):
    """`disk(bytes)` is a small file system of its own, or is made that size."""
    place = tmp_path / "disk"
    place.mkdir()

    def make(size, *options):
        again = ["remount"] if os.path.ismount(place) else []
        words = ",".join([*again, f"size={size}", *options])
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", words, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return place

    yield make
    if os.path.ismount(place):
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_stops_the_run_with_a_whole_checkpoint(whole, disk):
    size = whole.checkpoint.stat().st_size
    folder = RunFolder(disk(int(2.6 * size)) / "run")
    with pytest.raises(
        KdkitError, match=r"last\.ckpt cannot be written \(.*\); training has stopped; .*last\.ckpt is whole"
    ):
        fit(recipe(), out=folder.path)
    assert standing(folder).epochs == 2
    disk(8 * size)
    goes_on(folder, whole)


def test_a_disk_without_any_room(disk):
    place = disk(1 << 16)
    (place / "fill").write_bytes(bytes((1 << 16) - 8192))
    with pytest.raises(KdkitError, match=r"cannot be written .*No space left on device.*there is no checkpoint yet"):
        fit(recipe(), out=place / "run")


def test_a_disk_that_becomes_read_only(whole, tmp_path, monkeypatch):
    place = tmp_path / "run"

    def mount(*words):
        done = subprocess.run([*words, place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def read_only():
        mount("mount", "--bind", place)
        mount("mount", "-o", "remount,bind,ro")

    try:
        with monkeypatch.context() as patch:
            before_epoch(patch, 2, read_only)
            with pytest.raises(KdkitError, match=r"cannot be written \(Read-only file system\).*last\.ckpt is whole"):
                fit(recipe(), out=place)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # Lightning's end failed on the way to it
        with pytest.raises(KdkitError, match=r"run .*cannot be written.*; give another folder with --out"):
            fit(recipe(), out=place, resume=True)
    finally:
        subprocess.run(["umount", place], capture_output=True)
    goes_on(RunFolder(place), whole)


def test_a_folder_that_vanishes(tmp_path, monkeypatch):
    before_epoch(monkeypatch, 2, lambda: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(KdkitError, match=r"run is gone.*training has stopped"):
        fit(recipe(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_emptied(tmp_path, monkeypatch):
    def empty():
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").mkdir()

    before_epoch(monkeypatch, 2, empty)
    with pytest.raises(KdkitError, match=r"run is gone, or was emptied, while the run trained"):
        fit(recipe(), out=tmp_path / "run")


def test_a_file_that_may_not_grow(tmp_path, monkeypatch):
    """Where no disk can be mounted: the system's limit on the size of a file, in place of a full disk."""
    write = torch.save

    def refusing(content, file):
        file.write(b"part of it")
        raise OSError(errno.EFBIG, "File too large")

    before_epoch(monkeypatch, 2, lambda: monkeypatch.setattr(torch, "save", refusing))
    with pytest.raises(KdkitError, match=r"last\.ckpt cannot be written \(File too large\).*is whole"):
        fit(recipe(), out=tmp_path / "run")
    monkeypatch.setattr(torch, "save", write)
    assert standing(RunFolder(tmp_path / "run")).epochs == 2
