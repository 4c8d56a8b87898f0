"""Processes that decode images: one that dies is reported, and the run goes on from what it had."""

import os
import signal

import pytest
import torch

from kdkit.runs.folder import RunFolder
from kdkit.train.distiller import Distiller
from tests.cli.command import kdkit, refused
from tests.data.test_folder import make
from tests.runs.killing import equal, held

RECIPE = """\
data: {name: folder, root: photos, holdout: 0.2, image_size: 16, batch_size: 8, num_workers: 2}
models: {teacher: {arch: resnet8, weights: random}, student: {arch: resnet8}}
losses: [ce, kd]
optimizer: {name: sgd, momentum: 0.9}
lr: 0.05
trainer: {max_epochs: 3, accelerator: cpu}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    make(folder / "photos", {"ant": 60, "bee": 60})
    (folder / "r.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def killed(monkeypatch):
    """`killed(epoch, batch)`: at the beginning of that step of the next run one of its workers is."""

    def at(epoch, batch):
        step = Distiller.training_step

        def training_step(self, data, batch_idx):
            if (self.current_epoch, batch_idx) == (epoch, batch):
                worker = self.trainer.train_dataloader._loader._iterator._workers[0]
                os.kill(worker.pid, signal.SIGKILL)
                worker.join()
            step(self, data, batch_idx)

        monkeypatch.setattr(Distiller, "training_step", training_step)

    return at


def test_a_dead_worker_is_one_error_and_the_run_goes_on_to_the_bit(place, tmp_path, killed, monkeypatch):
    monkeypatch.chdir(place)
    alarm = signal.getsignal(signal.SIGCHLD)
    assert kdkit("fit", "r.yaml", "--out", tmp_path / "whole").code == 0
    with monkeypatch.context():
        killed(1, 4)
        said = refused("fit", "r.yaml", "--out", tmp_path / "run")
    assert "a process that decodes images has died" in said
    assert len(said.strip().splitlines()) == 1
    assert signal.getsignal(signal.SIGCHLD) is alarm  # else the next death would be an exception anywhere
    checkpoint = torch.load(RunFolder(tmp_path / "run").checkpoint, weights_only=True)
    assert list(checkpoint["rows"]) == [1]
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert kdkit("fit", "r.yaml", "--out", tmp_path / "run", "--resume").code == 0
    assert all(equal(a, b) for a, b in zip(held(tmp_path / "run"), held(tmp_path / "whole"), strict=True))
