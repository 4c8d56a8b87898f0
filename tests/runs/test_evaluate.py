"""Scoring a finished run: rebuilt from its recipe and weights, by a plain loop as the oracle."""

import json
import shutil
import sys
import threading
from contextlib import suppress
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from kdkit import data, models
from kdkit.console import show
from kdkit.registry import KdkitError
from kdkit.runs.evaluate import (
    _held_out,
    classes_table,
    evaluate,
    keep,
    predictions,
    results_table,
    score,
    write_evaluation,
)
from kdkit.runs.folder import write_json
from kdkit.runs.trained import Trained
from tests.cli.command import kdkit

logits = Trained.logits

RECIPE = """\
data: {name: digits, image_size: 8, batch_size: 32, drop_last: true}
models:
  teacher: {arch: resnet14, weights: gone_long_ago}
  student: {arch: resnet8}
  slow: {ema: student}
losses: [ce, kd]
optimizer: {name: sgd}
lr: 0.1
trainer: {max_epochs: 1, accelerator: cpu}
"""
LONE = """\
models: {net: {arch: resnet8}}
losses: [ce: {}]
optimizer: {name: sgd}
lr: 0.1
trainer: {max_epochs: 1, accelerator: cpu}
"""
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


def weights(path, seed, classes=10, mean=MEAN, std=STD):
    """A net with running statistics of its own, saved as a run saves it."""
    torch.manual_seed(seed)
    net = models.build("resnet8", num_classes=classes)
    net(torch.randn(64, 3, 8, 8))
    told = {
        "arch": "resnet8",
        "num_classes": str(classes),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
    }
    models.save_weights(net, path, told)
    return net.eval()


@pytest.fixture
def run(tmp_path):
    """A run's folder: a trained student and its slow copy."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    nets = {name: weights(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate(("student", "slow"))}
    return tmp_path, nets


@torch.no_grad()
def plain(net, split, mean=MEAN, std=STD):
    images, labels = data.build("digits", image_size=8).tensors(split == "train")
    x = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    logits = net(x)
    order = logits.argsort(1, descending=True)
    return {
        "top1": (order[:, 0] == labels).float().mean().item(),
        "top5": (order[:, :5] == labels[:, None]).any(1).float().mean().item(),
        "nll": F.cross_entropy(logits, labels).item(),
        "brier": (logits.softmax(1) - F.one_hot(labels, 10)).square().sum(1).mean().item(),
        **calibration(logits, labels),
    }


def calibration(logits, labels):
    """Both errors by groups in plain Python."""
    said, classes = logits.softmax(1).max(1)
    pairs = sorted(zip(said.tolist(), (classes == labels).tolist(), strict=True))
    ends = [len(pairs) * i // 15 for i in range(16)]
    wide = [[pair for pair in pairs if i / 15 < pair[0] <= (i + 1) / 15] for i in range(15)]
    even = [pairs[a:b] for a, b in pairwise(ends)]
    gap = {"ece": wide, "ece_adaptive": even}
    return {n: sum(abs(sum(r - c for c, r in g)) for g in groups) / len(pairs) for n, groups in gap.items()}


@pytest.mark.parametrize("split", ["test", "train"])
def test_every_model_of_a_run_by_a_plain_loop(run, split):
    folder, nets = run
    found = evaluate(folder, split=split)
    assert list(found) == ["slow", "student"]  # the teacher has no weights here and is not asked for
    for name, net in nets.items():
        assert found[name] == pytest.approx(plain(net, split), abs=2e-4)
    assert found["slow"] != found["student"]


def test_one_weights_file_of_a_run(run):
    folder, nets = run
    assert evaluate(folder / "student.safetensors") == {
        "student": pytest.approx(plain(nets["student"], "test"), abs=2e-4)
    }


def test_a_weights_file_by_itself(tmp_path):
    path = tmp_path / "alone.safetensors"
    net = weights(path, 3)
    found = evaluate(path, ["data.name=digits", "data.image_size=8"])
    assert found == {"alone": pytest.approx(plain(net, "test"), abs=2e-4)}
    with pytest.raises(KdkitError, match=r"alone\.safetensors does not say what it was trained on; .*--data FOLDER"):
        evaluate(path)


def test_without_a_normalisation_of_its_own_the_data_are_taken_as_they_are(tmp_path):
    net = models.build("resnet8", num_classes=10).eval()
    path = tmp_path / "bare.safetensors"
    models.save_weights(net, path, {"arch": "resnet8", "num_classes": "10"})
    facts = data.facts("digits")
    found = evaluate(path, ["data.name=digits", "data.image_size=8"])["bare"]
    assert found == pytest.approx(plain(net, "test", facts.mean, facts.std), abs=2e-4)


def test_the_last_batch_counts_as_much_as_its_images(run):
    folder, _ = run
    whole = evaluate(folder, ["data.eval_batch_size=360"])
    parts = evaluate(folder, ["data.eval_batch_size=100"])
    assert whole["student"] == pytest.approx(parts["student"], abs=1e-4)


@pytest.mark.parametrize("split", ["test", "train"])
def test_overrides_and_splits_that_cannot_be(run, tmp_path, split):
    folder, _ = run
    with pytest.raises(KdkitError, match="no labels"):
        evaluate(folder, ["data.name=fake", "data={name: fake, classes: 0}"], split=split)
    with pytest.raises(KdkitError, match="has 10 classes, the data 7"):
        evaluate(folder, ["data={name: fake, classes: 7, shape: [3, 8, 8]}"], split=split)
    with pytest.raises(KdkitError, match="unknown key 'rot'; did you mean 'root'"):
        evaluate(folder, ["data.rot=x"], split=split)


def test_a_folder_for_a_run_whose_data_lie_in_none_is_one_of_images(run, tmp_path):
    made = torch.Generator().manual_seed(0)
    for label in "0123456789":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(2):
            pixels = torch.randint(0, 256, (9, 12, 3), dtype=torch.uint8, generator=made)
            Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / label / f"{i}.png")
    root = f"data.root={tmp_path / 'photos'}"
    words = ["data.name=folder", "data.image_size=8", "data.resize=8"]  # whole, as the run's own images are
    assert evaluate(run[0], [root]) == evaluate(run[0], [root, *words])
    with pytest.raises(KdkitError, match=r"override 'data.root=.*': data\.root: must be a readable folder"):
        evaluate(run[0], [f"data.root={tmp_path / 'none'}"])


def test_what_is_no_finished_run(tmp_path, run):
    folder, _ = run
    with pytest.raises(KdkitError, match="no such run"):
        evaluate(tmp_path / "gone")
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    with pytest.raises(KdkitError, match="not a run's folder"):
        evaluate(empty)
    (empty / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(KdkitError, match="not finished; `kdkit fit … --resume`"):
        evaluate(empty)
    with pytest.raises(KdkitError, match="split must be 'train' or 'test', got 'val'"):
        evaluate(folder, split="val")
    for damage in (b"", b"not tensors"):
        (folder / "student.safetensors").write_bytes(damage)
        with pytest.raises(KdkitError, match=r"student\.safetensors"):
            evaluate(folder)


def test_weights_of_another_architecture(run):
    folder, _ = run
    net = models.build("resnet14", num_classes=10)
    models.save_weights(net, folder / "student.safetensors")
    with pytest.raises(KdkitError, match=r"student\.safetensors does not fit resnet8\n"):
        evaluate(folder)
    models.save_weights(net, folder / "student.safetensors", {"arch": "resnet14"})
    with pytest.raises(KdkitError, match="does not fit resnet8: its weights are of resnet14, the model is resnet8\n"):
        evaluate(folder)


def test_the_table_is_in_percent(capsys):
    results = {"student": {"top1": 0.7116, "top5": 0.9, "nll": 1.055}, "small": {"top1": 0.5, "nll": 2.0}}
    show(results_table(results, "after the last epoch"), sys.stdout)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["after", "the", "last", "epoch"]
    assert lines[1] == ["model", "top-1", "%", "top-5", "%", "nll"]
    assert lines[3:] == [["student", "71.16", "90.00", "1.05"], ["small", "50.00", "2.00"]]


def test_predictions_are_those_that_the_score_counts(run):
    folder, nets = run
    said = predictions(folder)
    for name, metrics in evaluate(folder).items():
        classes, right = said[name]
        assert right.float().mean().item() == pytest.approx(metrics["top1"])
        _, labels = data.build("digits", image_size=8).tensors(False)
        assert torch.equal(right, classes == labels)
    assert list(said) == sorted(nets)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_predictions_are_in_the_precision_of_the_run(tmp_path, monkeypatch, precision):
    words = [f"trainer.precision={precision}", "trainer.max_epochs=1", "trainer.accelerator=cpu", "data.subset=128"]
    words.append("models.net.arch=resnet8")
    assert kdkit("fit", "teacher_digits", *words, "--out", str(tmp_path / "run")).code == 0
    last = json.loads((tmp_path / "run" / "result.json").read_text())["last"]["net"]["top1"]
    seen = []
    monkeypatch.setattr(Trained, "logits", lambda self, x: seen.append(logits(self, x)) or seen[-1])
    _, right = predictions(tmp_path / "run")["net"]
    assert right.double().mean().item() == pytest.approx(last, abs=1e-6)
    assert {out.dtype for out in seen} == {torch.bfloat16 if precision == "bf16-mixed" else torch.float64}
    seen.clear()
    told = kdkit("eval", str(tmp_path / "run")).out
    assert f"scored in 32-true; the run scored itself in {precision}" in told
    assert {out.dtype for out in seen} == {torch.float32}


def test_classes_by_a_plain_loop_and_the_hardest_first(run, capsys):
    folder, nets = run
    found = score(folder).by_class
    images, labels = data.build("digits", image_size=8).tensors(False)
    x = (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        right = nets["student"](x).argmax(1) == labels
    for digit in range(10):
        assert found["student"][str(digit)] == pytest.approx(right[labels == digit].float().mean().item())
    show(classes_table(found, 3), sys.stdout)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["top-1", "%", "of", "the", "3", "hardest", "of", "10", "classes"]
    assert lines[1] == ["class", "slow", "student"]
    assert [line[0] for line in lines[3:]] == sorted(found["slow"], key=lambda n: (found["slow"][n], n))[:3]


def test_a_temperature_of_images_held_out_of_training_and_of_no_others(run):
    folder, nets = run
    assert "temperature" not in evaluate(folder)["student"]
    assert "temperature" not in evaluate(folder, ["data.val_split=200"])["student"]  # it was trained on those
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(recipe.replace("image_size: 8,", "image_size: 8, val_split: 200,"))
    found = evaluate(folder, ["data.eval_batch_size=64"])["student"]
    module = data.build("digits", image_size=8, val_split=200)
    images, labels = (part[module.parts[1]] for part in module.tensors(True))
    assert len(labels) == 200

    def logits(images):
        return nets["student"]((images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))

    with torch.no_grad():
        held_out, (test, truth) = logits(images), module.tensors(False)
        scaled = calibration(logits(test) / found["temperature"], truth)["ece"]

    def nll(t):
        return F.cross_entropy(held_out / t, labels).item()

    assert nll(found["temperature"]) <= min(nll(found["temperature"] * k) for k in (0.95, 1.05))
    assert found["ece_scaled"] == pytest.approx(scaled, abs=2e-4)
    assert "temperature" not in evaluate(folder, ["data={name: digits, image_size: 8}"])["student"]


@pytest.mark.parametrize(("name", "held_out"), [("cifar10", True), ("folder", False)])
def test_what_another_folder_holds_out_was_not_held_out_of_training(name, held_out):
    """CIFAR-10 that was moved is still CIFAR-10."""
    module, recipe = SimpleNamespace(selects=True), SimpleNamespace(data=SimpleNamespace(name=name))
    assert _held_out(module, recipe, ["data.root=/elsewhere"]) == held_out


def test_what_was_found_is_kept_by_what_was_looked_at(run, tmp_path):
    folder, _ = run
    path = tmp_path / "eval.json"
    write_evaluation(path, score(folder), "test", [])
    write_evaluation(
        path, score(folder, split="train"), "train", ["data.eval_batch_size=99", "trainer.accelerator=cpu"]
    )
    kept = json.loads(path.read_text())
    assert list(kept) == ["test", "train data.eval_batch_size=99"]
    assert kept["test"]["student"]["top1"] == evaluate(folder)["student"]["top1"]
    assert len(kept["test"]["slow"]["by_class"]) == 10
    both = tmp_path / "both.json"
    named = tmp_path / "lr=0.1"
    shutil.copytree(folder, named)
    assert kdkit("eval", folder, "--out", both).code == kdkit("eval", named, "--out", both).code == 0
    assert list(json.loads(both.read_text())) == [f"test {folder}", f"test {named}"]
    path.write_text("[]")
    with pytest.raises(KdkitError, match=r"eval\.json could not be written .*--out FILE"):
        write_evaluation(path, score(folder), "test", [])


def test_what_is_found_never_lies_with_a_teacher_that_runs_share(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    shared, own = tmp_path / "home" / "teachers" / "t-0123", tmp_path / "runs" / "mine"
    probing = ("probe", "--data", "digits", "data.subset=40", "trainer.accelerator=cpu")
    for folder in (shared, own):
        folder.mkdir(parents=True)
        weights(folder / "net.safetensors", 0)
        (folder / "recipe.yaml").write_text(RECIPE.split("models:")[0] + LONE)
        (folder / "metrics.csv").write_text("epoch,step\n1,9\n")
        before = sorted(path.name for path in folder.iterdir())
        said = [kdkit(*words, folder) for words in (("eval",), probing, ("report",))]
        assert [its.code for its in said] == [0] * 3, said
        made = sorted({path.name for path in folder.iterdir()} - {*before})
        assert made == ([] if folder == shared else ["eval.json", "probe.json", "report.html"])
        told = f"nothing is kept: {folder} is no folder of a run of yours; --out names a file"
        assert [told in its.out for its in said] == [folder == shared, folder == shared, False]
    assert (tmp_path / "report.html").is_file()
    assert kdkit("eval", shared, "--out", "kept.json").code == 0
    assert list(json.loads((tmp_path / "kept.json").read_text())) == [f"test {shared}"]


@pytest.mark.parametrize("name", ["my-net 2", "3rd", "class"])
def test_a_weights_file_may_be_called_as_one_likes(tmp_path, name):
    """It is a model's name here, which a recipe would want to be a plain word."""
    told = {"num_classes": "10", "data": '{"name": "digits", "subset": 64}'}
    models.save_weights(
        models.build("resnet8", num_classes=10), tmp_path / f"{name}.safetensors", {"arch": "resnet8", **told}
    )
    (found,) = evaluate(tmp_path / f"{name}.safetensors", ["trainer.accelerator=cpu"]).values()
    assert 0 <= found["top1"] <= 1


def test_two_verbs_at_a_time_both_keep_what_they_found(monkeypatch, tmp_path):
    path, both = tmp_path / "eval.json", threading.Barrier(2)

    def slow(target, found):
        with suppress(threading.BrokenBarrierError):  # one waits for the other to come this far, in vain
            both.wait(0.3)
        write_json(target, found)

    monkeypatch.setattr("kdkit.runs.evaluate.write_json", slow)
    verbs = [threading.Thread(target=keep, args=(path, split, {"top1": 0.5})) for split in ("train", "test")]
    for verb in verbs:
        verb.start()
    for verb in verbs:
        verb.join()
    assert json.loads(path.read_text()) == {"train": {"top1": 0.5}, "test": {"top1": 0.5}}


@pytest.mark.parametrize("seed", [3, 4])
def test_noisy_labels_are_those_that_it_was_trained_on(run, seed):
    folder, nets = run
    noisy = RECIPE.replace("name: digits", "name: digits, label_noise: 0.5")
    (folder / "recipe.yaml").write_text(f"{noisy}seed: {seed}\n")
    its = data.build("digits", image_size=8, label_noise=0.5, seed=seed)
    its.setup("fit")
    seen = [(y, index) for _, y, index in its.train_dataloader()]
    labels, order = (torch.cat(parts) for parts in zip(*seen, strict=True))
    images, _ = its.tensors(True)
    x = (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        right = (nets["student"](x).argmax(1) == labels[order.argsort()]).float().mean().item()
    assert evaluate(folder, split="train")["student"]["top1"] == pytest.approx(right, abs=2e-4)
