"""Bad input through the command line: each mistake ends in one clear error and exit code 2, with no traceback."""

import json
import os

import pytest
import torch
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator

from kdkit import models
from tests.cli.command import RECIPE, kdkit, refused


@pytest.fixture
def wrong(tmp_path):
    """`wrong(found, instead)` writes the recipe with a mistake; `…, whole=text` another text altogether."""

    def write(found="", instead="", whole=None):
        assert found in RECIPE
        path = tmp_path / "wrong.yaml"
        path.write_text(RECIPE.replace(found, instead, 1) if whole is None else whole)
        return path

    return write


SIZED = ["models.teacher.num_classes=5", "models.student.num_classes=5"]  # where the data do not say how many

WORDS = [
    ("- kd:", "- kdd:", "wrong.yaml:7: losses.kdd: unknown loss 'kdd'; did you mean 'kd'"),
    (
        "arch: resnet8",
        "arch: resnet9",
        "wrong.yaml:4: models.student.arch: unknown model 'resnet9'; did you mean 'resnet8'",
    ),
    (
        "temperature",
        "temprature",
        "wrong.yaml:7: losses.kd.temprature: unknown key 'temprature'; did you mean 'temperature'?",
    ),
    ("weight: 0.9", "taps: embeding", "did you mean 'embedding'"),
    ("temperature: 4", "temperature: -1", "wrong.yaml:7: losses.kd.temperature: must be a number above 0, got -1.0"),
    ("temperature: 4", "temperature: 0", "wrong.yaml:7: losses.kd.temperature: must be a number above 0, got 0.0"),
    ("lr: 0.1", "lr: {multistep: {start: 0.1, at: [1, 9]}}", "epoch 9 never comes in a run of 2 epochs"),
    ("weights: random", "weights: gone.safetensors", "gone.safetensors does not exist"),
    ("  - ce\n", "  - dml: {among: [student]}\n", "wrong.yaml:6: losses.dml.among: "),
    ("arch: resnet14", "arch: resnet14, num_classes: 7", "`tune: {epochs: …, lr: …}`"),
    ("batch_size: 16", "batch_size: 0", "data.batch_size: must be at least 1, got 0"),
]


@pytest.mark.parametrize(("found", "instead", "right"), WORDS, ids=[instead for _, instead, _ in WORDS])
@pytest.mark.parametrize("verb", ["check", "fit"])
def test_a_wrong_word_or_value(wrong, tmp_path, verb, found, instead, right):
    out = ["--out", tmp_path / "run"] if verb == "fit" else []
    assert right in refused(verb, wrong(found, instead), *out)
    assert not (tmp_path / "run" / "checkpoints").exists()


TEXTS = [
    ("models: [unclosed", "not YAML"),
    ("\tmodels: x", "not YAML"),
    ("", "is empty"),
    ("# only a comment\n", "is empty"),
    ("- ce\n- kd\n", "must be a mapping"),
    ("just words", "must be a mapping"),
    ("models: !!python/object/apply:os.system ['touch pwned']", "tags"),
    ("models: &a {x: *a}", "refused"),
]


@pytest.mark.parametrize(("text", "right"), TEXTS, ids=[text[:20] for text, _ in TEXTS])
def test_what_is_no_recipe(wrong, tmp_path, monkeypatch, text, right):
    monkeypatch.chdir(tmp_path)
    error = refused("fit", wrong(whole=text))
    assert error.startswith("error: wrong.yaml")
    assert right in error
    assert not (tmp_path / "pwned").exists()


def test_a_folder_without_images_is_named_whole(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    path = wrong("{name: fake, samples: 32, classes: 5, shape: [3, 8, 8],", "{name: folder, root: empty, holdout: 0.1,")
    error = refused("check", path)
    assert f"wrong.yaml:1: data.root: {tmp_path / 'empty'} must hold one folder of images per class" in error


def test_data_that_only_training_misses_are_told_with_their_line(wrong, tmp_path):
    path = wrong("{name: fake, samples: 32, classes: 5, shape: [3, 8, 8],", f"{{name: cifar10, root: {tmp_path},")
    error = refused("fit", path, "--out", tmp_path / "run")
    assert "wrong.yaml:1: data.root: must be a folder that holds cifar-10-batches-py/ whole" in error
    assert f"it was not found in {tmp_path}; set data.root=FOLDER or KDKIT_DATA" in error


def test_a_recipe_that_is_not_there(tmp_path):
    assert "no such file" in refused("fit", tmp_path / "gone.yaml")
    assert "is a folder" in refused("check", f"{tmp_path}/")
    assert "did you mean 'kd_digits'" in refused("check", "kd_digit")


def test_all_mistakes_are_told_at_once(wrong):
    error = refused("check", wrong(whole=RECIPE.replace("temperature: 4", "temperature: hot") + "sed: 1\n"))
    assert "2 problems" in error
    assert "'hot'" in error
    assert "did you mean 'seed'" in error


def test_a_wrong_override(wrong):
    path = wrong()
    assert "no loss 'kdd'; did you mean 'kd'" in refused("check", path, "losses.kdd.weight=1")
    assert "must be key=value" in refused("check", path, "seed")
    assert "override 'seed=x': seed: must be a whole number, got 'x'" in refused("check", path, "seed=x")


def test_a_tap_that_only_the_teacher_has(wrong):
    error = refused(
        "check", wrong("weight: 0.9, temperature: 4}", "}\n  - mse: {from: teacher.layer2.1, to: student.layer2.1}")
    )
    assert "student" in error
    assert "layer2.1" in error
    assert "layer2.0" in error


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other", "code"])
def test_a_weights_file_that_cannot_be_loaded(wrong, tmp_path, damage):
    path = tmp_path / ("t.pth" if damage == "code" else "t.safetensors")
    net = models.build("resnet20" if damage == "other" else "resnet14", num_classes=5)
    models.save_weights(net, path.with_suffix(".safetensors"))
    content = path.with_suffix(".safetensors").read_bytes()
    if damage == "code":
        torch.save({"model": Pwning()}, path)
    elif damage != "other":
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"hello"}[damage])
    recipe = wrong("weights: random", f"weights: {path.name}")
    for verb in ("check", "fit"):
        assert path.name in refused(verb, recipe, *(["--out", tmp_path / "run"] if verb == "fit" else []))


class Pwning:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_data_folder_that_is_not_there(wrong, tmp_path):
    data = "data: {name: fake, samples: 32, classes: 5, shape: [3, 8, 8], batch_size: 16}"
    gone = tmp_path / "gone"
    folder = wrong(data, f"data: {{name: folder, root: {gone}, holdout: 0.1, image_size: 32}}")
    assert str(gone) in refused("fit", folder, "--out", tmp_path / "run")
    assert str(gone) in refused("check", folder)
    cifar = wrong(data, f"data: {{name: cifar100, root: {gone}}}")
    assert str(gone) in refused("fit", cifar, "--out", tmp_path / "run")


def test_a_batch_of_one_with_a_batchnorm_head(wrong, tmp_path):
    spoiled = wrong("weight: 0.9, temperature: 4}", "}\n  - cosine: {head: {mlp: {norm: batch}}}")
    for verb in ("check", "fit"):
        out = ["--out", tmp_path / "run"] if verb == "fit" else []
        error = refused(verb, spoiled, "data.batch_size=1", *out)
        assert "wrong.yaml:8: losses.cosine: " in error  # the dry run of both tells the line
        assert "batch must be larger than 1" in error


def test_a_loss_that_needs_labels_where_there_are_none(wrong):
    spoiled = wrong("classes: 5", "classes: 0")
    assert "wrong.yaml:6: losses.ce: the loss needs each sample's labels" in refused("check", spoiled, *SIZED)


NAN = """\
import torch
from torch import nn

class Spoils(nn.Module):
    \"\"\"Finite for an epoch, then not.\"\"\"
    def forward(self, student, progress):
        return student.mean() * torch.where(progress >= 0.5, torch.nan, 1.0)
"""


def test_a_loss_that_becomes_nan_stops_the_run_and_keeps_the_checkpoint(wrong, tmp_path):
    (tmp_path / "spoils.py").write_text(NAN)
    run = tmp_path / "run"
    error = refused("fit", wrong("  - ce\n", "  - ce\n  - spoils.py:Spoils\n"), "--out", run)
    assert "Spoils is not finite at step 2" in error
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)
    assert checkpoint["epoch"] == 0
    assert checkpoint["global_step"] == 2
    assert all(torch.isfinite(v).all() for v in checkpoint["state_dict"].values())
    assert not (run / "result.json").exists()
    assert not (run / "student.safetensors").exists()


def strict(path):
    """JSON without the bare NaN that Python alone reads."""
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{path} holds {word}"))


def test_metrics_that_are_not_finite_are_told_and_null(wrong, tmp_path):
    (tmp_path / "nets.py").write_text(HUGE)
    recipe = wrong("arch: resnet8", "arch: nets.py:Huge")
    said = kdkit("fit", recipe, "--out", tmp_path / "run")
    assert said.code == 0
    assert "\nwarning: student nll is not finite after epoch 1," in said.out
    assert said.out.count("warning: ") == 1  # once, though both epochs are so
    assert "warning: student nll is not finite" in said.err
    assert strict(tmp_path / "run" / "result.json")["last"]["student"]["nll"] is None
    again = kdkit("fit", recipe, "--out", tmp_path / "run", "--resume")
    assert "nan" in again.out
    assert "warning: student nll" in again.err


HUGE = """\
import torch
from torch import nn

class Huge(nn.Sequential):
    \"\"\"Its predictions are finite while it trains and NaN when it is evaluated.\"\"\"
    def __init__(self, num_classes):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
    def forward(self, x):
        return super().forward(x) * (1.0 if self.training else torch.nan)
"""


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("accelerator=tpu", "must be"),
        ("devices=[7]", "'trainer.devices=[7]': trainer.devices: Lightning refuses it: `devices` selected"),
        ("precision=16-mixed", "trainer.precision: 16-mixed does not run on this machine; say bf16-mixed"),
        ("limit_val_batches=0.01", "trainer.limit_val_batches: Lightning refuses it: You requested to check 0.01"),
    ],
)
def test_a_machine_that_is_not_there(wrong, tmp_path, word, right):
    assert right in refused("fit", wrong(), f"trainer.{word}", "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("word", "right"), [("gpu", "No supported gpu backend"), ("mps", "`MPSAccelerator` can not run")]
)
def test_a_gpu_where_there_is_none(wrong, tmp_path, monkeypatch, word, right):
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: False))
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: False))
    error = refused("fit", wrong(), f"trainer.accelerator={word}", "--out", tmp_path / "run")
    assert f"'trainer.accelerator={word}': trainer.accelerator: Lightning refuses it: {right}" in error
    assert "; leave it out, and the run takes what this machine has" in error
    assert not (tmp_path / "run").exists()


def test_custom_code_is_refused_where_it_is_not_wanted(wrong, tmp_path):
    (tmp_path / "spoils.py").write_text("open('pwned', 'w')")
    recipe = wrong("  - ce\n", "  - spoils.py:Spoils\n")
    for verb in ("check", "fit"):
        assert "spoils.py" in refused(verb, recipe, "--no-custom-code")


def test_a_folder_that_holds_a_run_is_not_written_over(wrong, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text(json.dumps({"last": {}, "best": {}}))
    (run / "provenance.json").write_text(json.dumps({"content": "0123456789abcdef"}))
    error = refused("fit", wrong(), "--out", run)
    assert "--resume" in error
    assert "--overwrite" in error


@pytest.mark.parametrize(
    "words", [["losses", "atn"], ["models", "nosuchmodelanywhere"], ["eval", "gone"], ["eval", "."]]
)
def test_other_verbs(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(*words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fit"], "missing argument 'RECIPE'\nusage: "),
        (["probe", "tv"], "missing option '--data'\nusage: "),
        (["fitt"], "no such command 'fitt'. Did you mean 'fit'?"),
        (["--foo"], "no such option: --foo"),
        (["eval", "x", "--splitt", "y"], "no such option: --splitt (Possible options: --split)"),
        (["latency", "x", "--batch", "0"], "invalid value for '--batch'"),
        (["fit", "kd_digits", "--out"], "option '--out' requires an argument"),
        (["compare", "a", "data.root=b"], "a is no run of a student; name both: kdkit compare TEACHER STUDENT"),
    ],
)
def test_a_command_line_that_cannot_be_read(words, told):
    """As all errors look; click's own are a `Usage:` and an `Error:` of two lines."""
    said = refused(*words)
    assert said.startswith(f"error: {told}")
    assert "…." not in said
    assert "Error:" not in said
    assert "{" not in said
