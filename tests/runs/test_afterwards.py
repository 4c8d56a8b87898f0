"""Verbs about a run that is over log what they found as a part of it, where it was logged."""

import json
import shutil
import threading
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from kdkit.runs import afterwards, loggers
from kdkit.runs.afterwards import log_found
from kdkit.runs.beside import unlogged
from kdkit.runs.folder import RunFolder
from tests.cli.command import RECIPE, kdkit

WORDS = ("trainer.accelerator=cpu",)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run that is logged to TensorBoard, and one like it that is logged nowhere else."""
    pytest.importorskip("tensorboard")
    top = tmp_path_factory.mktemp("logged")
    alone = RECIPE.replace("  teacher: {arch: resnet14, weights: random}\n", "").replace(
        "  - kd: {weight: 0.9, temperature: 4}\n", ""
    )
    (top / "r.yaml").write_text(alone.replace("accelerator: cpu", "accelerator: cpu, logger: tensorboard"))
    for name, words in (("run", ()), ("other", ("trainer.logger=csv", "seed=1"))):
        assert kdkit("fit", top / "r.yaml", *words, "--out", top / name).code == 0
    for i, name in enumerate("ab"):
        (top / "photos" / name).mkdir(parents=True)
        for j in range(6):
            pixels = np.random.default_rng(20 * i + j).integers(120 * i, 120 * i + 90, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(top / "photos" / name / f"{j}.png")
    return top


def logged(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    return {tag: read.Scalars(tag)[-1] for tag in read.Tags()["scalars"]}, read.Tags()["images"]


def test_eval_and_probe(fitted, monkeypatch, tmp_path):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path))
    run, photos = fitted / "run", str(fitted / "photos")
    assert kdkit("eval", run, *WORDS).code == 0
    probed = ("probe", run, *WORDS, "data.holdout=0.34", "data.num_workers=0", "--image-size", 8, "--data", photos)
    assert kdkit(*probed).code == 0
    found, _ = logged(run)
    its = json.loads((run / "eval.json").read_text())["test"]["student"]
    told = {**its, **{f"by_class/{name}": value for name, value in its["by_class"].items()}}
    for key in ("top1", "nll", "ece_adaptive", *(f"by_class/{name}" for name in its["by_class"])):
        assert found[f"eval/test/student/{key}"].value == pytest.approx(told[key], rel=1e-6)
    (its,) = json.loads((run / "probe.json").read_text()).values()
    for key, value in its["student"].items():  # no folder of this machine is in a name
        assert found[f"probe/photos holdout=0.34 num_workers=0 image_size=8/student/{key}"].value == pytest.approx(
            value, rel=1e-6
        )
    assert {event.step for tag, event in found.items() if tag.startswith(("eval/", "probe/"))} == {2}  # the last epoch
    assert found["val/student/top1"].step == 2  # which the training's numbers still have


def test_compare_with_its_figures(fitted, monkeypatch):
    monkeypatch.setattr("kdkit.study.write.planar", lambda *args: None)  # seconds
    assert kdkit("compare", fitted / "other", fitted / "run", "--taps", "logits", *WORDS).code == 0
    found, images = logged(fitted / "run")
    numbers = json.loads((fitted / "run" / "compare" / "compare.json").read_text())
    for key in ("agreement", "kl", "logit_correlation/mean"):
        value = numbers["students"]["run"]
        for part in key.split("/"):
            value = value[part]
        assert found[f"compare/students/run/{key}"].value == pytest.approx(value, rel=1e-6)
    assert found["compare/models/other/top1"].value == pytest.approx(numbers["models"]["other"]["top1"], rel=1e-6)
    assert {name.removesuffix(".png") for name in numbers["figures"]} <= set(images)
    assert not (fitted / "other" / "tensorboard").exists()


def test_a_service_that_fails_or_is_not_installed_is_a_warning(fitted, monkeypatch):
    def gone(folder):
        raise ConnectionError("no network")

    with monkeypatch.context() as patch:
        patch.setitem(loggers.MAKERS, "tensorboard", (gone, None))
        said = kdkit("eval", fitted / "run", *WORDS)
    assert said.code == 0
    assert "warning: tensorboard did not take what was found (no network)" in said.err
    monkeypatch.setattr(afterwards, "find_spec", lambda name: None)
    said = kdkit("eval", fitted / "run", *WORDS)
    assert said.code == 0
    assert "is not installed and gets nothing; pip install 'kdkit[tensorboard]'" in said.err


def test_wandb_offline_is_not_given_a_second_run_of_one_id(fitted, monkeypatch, tmp_path):
    """It cannot go on with one there, and where both are uploaded the second replaces the first."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(fitted / "other", run.path)
    run.recipe.write_text(run.recipe.read_text().replace("logger: csv", "logger: wandb"))
    run.logged.write_text('{"wandb": "abc123"}')
    given = []
    monkeypatch.setitem(loggers.MAKERS, "wandb", (lambda folder: Given(given), None))
    monkeypatch.setattr(afterwards, "find_spec", lambda name: object())
    monkeypatch.delenv("WANDB_MODE", raising=False)
    found = {"student": {"top1": 0.5}}
    kept = run.path / "wandb" / "offline-run-1"
    kept.mkdir(parents=True)
    log_found(run, "eval", found)
    (kept / "run-1.wandb.synced").touch()
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_found(run, "eval", found)
    assert given == []
    monkeypatch.delenv("WANDB_MODE")
    log_found(run, "eval", found)
    assert given == [({"eval/student/top1": 0.5}, 2)]


def test_two_verbs_at_a_time_both_keep_what_the_service_did_not_take(fitted, monkeypatch, tmp_path):
    run, both = RunFolder(tmp_path / "run"), threading.Barrier(2)
    shutil.copytree(fitted / "run", run.path)
    run.unlogged.unlink(missing_ok=True)

    def away(folder):
        with suppress(threading.BrokenBarrierError):  # one waits for the other to come this far, in vain
            both.wait(0.3)
        raise ConnectionError("no network")

    monkeypatch.setitem(loggers.MAKERS, "tensorboard", (away, None))
    verbs = [threading.Thread(target=log_found, args=(run, verb, {"top1": 0.5})) for verb in ("eval", "probe")]
    for verb in verbs:
        verb.start()
    for verb in verbs:
        verb.join()
    assert unlogged(run) == {"tensorboard": {"2": {"eval/top1": 0.5, "probe/top1": 0.5}}}


class Given:
    """What Lightning's logger is to us."""

    def __init__(self, given):
        self.given = given

    def log_metrics(self, metrics, step):
        self.given.append((metrics, step))

    def log_hyperparams(self, words):
        assert words["trainer"]["logger"] == "wandb"

    def finalize(self, status):
        assert status == "success"
