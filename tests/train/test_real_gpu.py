"""Recorded steps on a real GPU are the ordinary ones. Without a GPU all is skipped, but for a walk on paper."""

import copy
import json

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.backends import cudnn

import kdkit
from benchmarks import losses, scaling, step
from kdkit import data
from kdkit.train import captured as recording
from kdkit.train.profile import StepProfiler
from tests.cli.command import kdkit as command
from tests.gpu import gpu
from tests.nets import net
from tests.train.test_gpu import CASES, NOT_RECORDED, run

NO_GPU = "no CUDA device here: what is recorded, timed and read there is checked on one"
pytestmark = pytest.mark.filterwarnings("default")  # a driver's warning is no failure


@pytest.fixture
def real():
    """A GPU, whose sums come out alike."""
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    with cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


class Look(pl.Callback):
    """How many recordings there were at the end, and why there are no more."""

    def __init__(self):
        self.made, self.why = 0, []

    def on_train_end(self, trainer, module):
        if module.captured is not None:
            self.made += sum(its.start is not None for its in module.captured.recordings.values())
            self.why += [module.captured.refused] if module.captured.refused else []


def recorded_and_not(case):
    """The same run both ways, and what was seen of the recorded one."""
    case, look = {"precision": "32-true", **case}, Look()
    plain = run(copy.deepcopy(case), compile=False)
    return plain, run({**copy.deepcopy(case), "callbacks": [look]}), look


def assert_same(one, other, **tolerance):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value.cpu(), other[name].cpu(), **tolerance, msg=lambda m, name=name: f"{name}: {m}")


def check(case, recorded):
    plain, quick, look = recorded_and_not(case)
    assert look.why == []
    assert bool(look.made) == recorded
    assert_same(plain, quick, rtol=1e-3, atol=1e-4)


def check_late(folder, cache):
    """Images made on the device within the recording, and a teacher that is read from a cache."""

    def fit(compile, cache, *callbacks):
        words = {"cache": {"dtype": "float32", "folder": str(folder)}} if cache else {}
        nodes = {"teacher": kdkit.frozen(net(12, seed=1, classes=10), **words), "student": net(8, seed=2, classes=10)}
        made = kdkit.Distiller(nodes, ["ce", "kd"], lr=0.05, compile=compile)
        words = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = pl.Trainer(accelerator="gpu", devices=1, max_epochs=3, callbacks=list(callbacks), **words)
        trainer.fit(made, data.build("digits", image_size=8, subset=100, batch_size=50, padding=1))
        return made

    look = Look()
    assert_same(fit(False, False), fit("auto", cache, look), rtol=1e-3, atol=1e-4)
    assert look.why == []
    assert look.made == 1


def test_these_tests_run(monkeypatch, tmp_path):
    with gpu(monkeypatch):
        check(CASES["plain"], recorded=True)
        check_late(tmp_path, cache=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("bf16", "adamw")])  # rounding grows in these
def test_a_recorded_step_is_the_step(real, name):
    check(CASES[name], name not in NOT_RECORDED)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["plain", "bf16", "adamw"])
@pytest.mark.parametrize("compile", ["auto", True])
def test_these_are_recorded(real, name, compile):
    for _ in range(2):  # the second fit of a process, too
        look = Look()
        run({**CASES[name], "callbacks": [look]}, compile=compile)
        assert look.why == []
        assert look.made == 1


@pytest.mark.gpu
@pytest.mark.parametrize("cache", [False, True])
def test_images_are_made_within_a_recording(real, tmp_path, cache):
    check_late(tmp_path, cache)


@pytest.mark.gpu
def test_a_loader_that_pins_memory_meanwhile(real, tmp_path):
    for k in range(60):
        path = tmp_path / "photos" / f"class{k % 3}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (4 * k, 0, 255 - 4 * k)).save(path)
    nodes, look = {"teacher": kdkit.frozen(net(12, classes=3)), "student": net(8, classes=3)}, Look()
    made = kdkit.Distiller(nodes, ["ce", "kd"], lr=0.01, compile="auto")
    module = data.build("folder", root=tmp_path / "photos", holdout=0.2, image_size=32, batch_size=4, num_workers=2)
    words = {"logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(accelerator="gpu", devices=1, max_epochs=2, callbacks=[look], **words)
    trainer.fit(made, module)
    assert look.why == []
    assert look.made


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["plain", "clip", "crd", "ema", "skip", "students"])
@pytest.mark.parametrize("compile", ["auto", False])
def test_no_step_waits(real, monkeypatch, name, compile):
    """By torch's own watch, in every step but those that make something for the first time."""
    plain, seen = kdkit.Distiller.training_step, []

    def watched(self, batch, number):
        seen.append(number)
        torch.cuda.set_sync_debug_mode("error" if len(seen) > recording.WARM + 2 and number < 6 else "default")
        try:
            plain(self, batch, number)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(kdkit.Distiller, "training_step", watched)
    run(CASES[name], compile=compile)
    assert len(seen) == 14


@pytest.mark.gpu
def test_a_profile(real, tmp_path):
    told = []
    watch = StepProfiler(tmp_path / "trace.json.gz", lambda *found: told.append(found), warm=6, steps=4)
    run({"callbacks": [watch]})
    ((parts, wall, idle),) = told
    assert [part.name for part in parts].count("recorded step") == 1
    assert 0 <= idle < wall
    assert any(part.device > 0 for part in parts)


@pytest.mark.gpu
def test_latency(real):
    said = command("latency", "resnet8", "--mode", "eager", "compiled", "--batch", "2", "--repeats", "5")
    assert said.code == 0, said
    assert torch.cuda.get_device_name(0) in said.out


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("bench", "words"),
    [
        (losses, ["--losses", "kd", "crd", "rkd", "at", "nst", "--batch", "8"]),
        (step, ["--methods", "kd", "crd", "--teacher", "live"]),
        (step, ["--epoch", "--images", "40", "--methods", "kd", "--teacher", "live"]),
        (scaling, ["--axes", "students", "negatives"]),
    ],
    ids=["losses", "step", "epoch", "scaling"],
)
def test_benchmarks(real, tmp_path, bench, words):
    out = tmp_path / "rows.jsonl"
    bench.main([*words, "--device", "cuda", "--quick", "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows
    assert {row["machine"] for row in rows} == {torch.cuda.get_device_name(0)}
