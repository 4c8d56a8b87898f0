"""Scoring on folders of one's own: whatever lies there, by class name, from a run or from its weights file alone."""

import json
import shutil

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from kdkit import data, models
from kdkit.recipe import loads
from kdkit.registry import KdkitError
from kdkit.runs import eval_recipe
from kdkit.runs.evaluate import evaluate
from kdkit.runs.fit import fit

OPTIONS = {"widths": [4, 4, 4, 8]}
RECIPE = f"""\
data: {{name: folder, root: photos, holdout: 0.3, image_size: 8, batch_size: 8, num_workers: 0}}
models:
  student: {{arch: resnet8, options: {json.dumps(OPTIONS)}, mean: [0.4, 0.5, 0.6], std: [0.2, 0.2, 0.2]}}
  slow: {{ema: student, decay: 0.5}}
losses: [ce]
optimizer: {{name: sgd}}
lr: 0.1
trainer: {{max_epochs: 1, accelerator: cpu}}
"""


def photos(folder, *names, count=10):
    generator = torch.Generator().manual_seed(len(names) + count)
    for name in names:
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=generator).numpy()
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a folder that its recipe names relative to where it was started."""
    home = tmp_path_factory.mktemp("work")
    photos(home / "photos", "ant", "bee", "cat")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        fit(loads(RECIPE, name="r"), out=home / "run")
    return home / "run"


@pytest.fixture
def alone(run, tmp_path):
    """The student's weights file without its run."""
    return shutil.copy(run / "student.safetensors", tmp_path / "mine.safetensors")


@torch.no_grad()
def plain(run, root, place=(0, 1, 2), name="student", **options):
    """Mean NLL by a plain loop."""
    net = models.build("resnet8", num_classes=3, **OPTIONS)
    models.load_weights(net, run / f"{name}.safetensors")
    own = {"means": (0.4, 0.5, 0.6), "stds": (0.2, 0.2, 0.2), "image_size": 8, "num_workers": 0, "holdout": "all"}
    module = data.build("folder", root=root, **{**own, **options})
    batches = list(module.test_dataloader())
    x, y = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
    return len(y), pytest.approx(F.cross_entropy(net.eval()(x), torch.tensor(place)[y]).item(), abs=2e-4)


def test_every_image_of_another_folder_is_scored_and_the_held_out_ones_of_its_own(run, tmp_path, capsys, monkeypatch):
    other = photos(tmp_path / "other", "ant", "bee", "cat", count=4)
    count, nll = plain(run, other)
    assert count == 12
    assert evaluate(run, [f"data.root={other}"])["student"]["nll"] == nll
    assert f"every image of {other} is scored; data.holdout=0.3" in capsys.readouterr().err
    count, part = plain(run, other, holdout=0.3)
    assert count == 4
    assert evaluate(run, [f"data.root={other}", "data.holdout=0.3"])["student"]["nll"] == part != nll
    monkeypatch.chdir(run.parent)
    count, own = plain(run, "photos", holdout=0.3)
    assert count == 9
    assert evaluate("run", ["data.root=photos"])["student"]["nll"] == own
    told = "the part of photos is scored that the run held out; data.holdout=all scores every image\n"
    assert capsys.readouterr().err == told
    assert evaluate("run")["student"]["nll"] == own
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("what", ["images", "code"])
def test_a_run_whose_images_or_code_have_changed_says_so(tmp_path, capsys, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", "ant", "bee", "cat")
    (tmp_path / "blocks.py").write_text("from torch.nn import ReLU as Act\n")
    lines = ["from torch import nn", "from blocks import Act", "", "class Net(nn.Sequential):"]
    lines += [
        "    def __init__(self, num_classes):",
        "        layers = nn.Conv2d(3, 4, 3), Act(), nn.AdaptiveAvgPool2d(1)",
    ]
    lines += ["        super().__init__(*layers, nn.Flatten(), nn.Linear(4, num_classes))"]
    (tmp_path / "net.py").write_text("\n".join(lines))
    words = RECIPE.replace(f"resnet8, options: {json.dumps(OPTIONS)}", "net.py:Net")
    fit(loads(words, name="r", folder=tmp_path), out=tmp_path / "run")
    evaluate("run")
    assert "other content" not in capsys.readouterr().err
    if what == "images":
        (tmp_path / "photos" / "ant" / "3.png").unlink()
    else:
        (tmp_path / "blocks.py").write_text("from torch.nn import GELU as Act\n")
    eval_recipe._tell_changed.cache_clear()  # as in another process
    evaluate("run")
    told = "names images, code or weights that have other content than when it was trained"
    assert told in capsys.readouterr().err


def test_a_relative_folder_is_found_from_anywhere(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert evaluate(run)["slow"]["nll"] == plain(run, run.parent / "photos", name="slow", holdout=0.3)[1]


def test_train_and_val_below_a_folder(run, tmp_path):
    photos(tmp_path / "train", "ant", "bee", "cat", count=2)
    photos(tmp_path / "val", "ant", "bee", "cat", count=3)
    count, nll = plain(run, tmp_path, holdout=None)
    assert count == 9
    assert evaluate(run, [f"data.root={tmp_path}"])["student"]["nll"] == nll


def test_classes_are_those_of_the_same_name(run, tmp_path):
    fewer = photos(tmp_path / "fewer", "bee", "cat")
    assert evaluate(run, [f"data.root={fewer}"])["student"]["nll"] == plain(run, fewer, place=(1, 2))[1]
    other = photos(tmp_path / "other", "ant", "cat", "dog")
    with pytest.raises(
        KdkitError, match=r"slow\.safetensors was trained on other .*not know dog, and knows bee, which"
    ):
        evaluate(run, [f"data.root={other}"])
    with pytest.raises(KdkitError, match=r"does not know 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"):
        evaluate(run, ["data={name: digits, image_size: 8}"])


def test_the_classes_are_kept_with_the_run(run):
    assert json.loads((run / "provenance.json").read_text())["classes"] == ["ant", "bee", "cat"]


def test_a_weights_file_brings_all_but_the_images(run, alone, tmp_path):
    told = models.read_metadata(alone)
    assert json.loads(told["options"]) == OPTIONS
    assert "photos" not in json.dumps(told)
    other = photos(tmp_path / "other", "ant", "bee", "cat", count=4)
    assert evaluate(alone, [f"data.root={other}"])["mine"] == evaluate(run, [f"data.root={other}"])["student"]
    slow = shutil.copy(run / "slow.safetensors", tmp_path)
    assert evaluate(slow, [f"data.root={other}"])["slow"] == evaluate(run, [f"data.root={other}"])["slow"]
    with pytest.raises(KdkitError, match=r"mine\.safetensors was trained on a folder of images; .*--data FOLDER$"):
        evaluate(alone)
    with pytest.raises(KdkitError, match=r"mine\.safetensors was trained on other classes"):
        evaluate(alone, [f"data.root={photos(tmp_path / 'dogs', 'dog')}"])


def test_a_weights_file_runs_no_code(alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = torch.nn.Linear(1, 1)
    models.save_weights(net, "evil.safetensors", {"arch": "os:system", "options": '{"command": "touch ran"}'})
    with pytest.raises(KdkitError, match=r"evil\.safetensors is of your own code \(os:system\), and .* runs none"):
        evaluate("evil.safetensors", ["data.name=digits"])
    nested = {"arch": "sid", "num_classes": "10", "options": '{"backbone": "os:system"}'}
    models.save_weights(net, "evil.safetensors", nested)
    with pytest.raises(KdkitError, match="not allowed here"):
        evaluate("evil.safetensors", ["data.name=digits"])
    assert not (tmp_path / "ran").exists()


def test_no_test_set(run, tmp_path):
    with pytest.raises(KdkitError, match=r"no test images .*--data FOLDER.*--split train"):
        evaluate(run, ["data.holdout=0"])
    assert evaluate(run, ["data.holdout=0"], split="train")["student"]["top1"] >= 0


@pytest.mark.parametrize(
    "override", ["trainer.max_epochs=3", "losses.ce.weight=3", "seed=1", "models.student.arch=vgg8"]
)
def test_an_override_that_changes_nothing_here(run, override):
    with pytest.raises(KdkitError, match=r"nothing is trained here; only data\.… and trainer\.accelerator can be"):
        evaluate(run, [override])
    assert evaluate(run, ["trainer.accelerator=cpu"])


def test_images_of_a_size_that_the_model_cannot_read(run, tmp_path):
    (tmp_path / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    net = models.build("timm/vit_tiny_patch16_224", num_classes=10, img_size=32, depth=1)
    told = {"arch": "timm/vit_tiny_patch16_224", "options": '{"img_size": 32, "depth": 1}', "num_classes": "10"}
    models.save_weights(net, tmp_path / "vit.safetensors", told)
    assert evaluate(tmp_path / "vit.safetensors", ["data={name: digits, image_size: 32}"])
    with pytest.raises(KdkitError, match=r"vit does not run on images of shape \(3, 16, 16\): AssertionError: "):
        evaluate(tmp_path / "vit.safetensors", ["data={name: digits, image_size: 16}"])


@pytest.mark.parametrize("split", ["test", "train"])
def test_images_without_classes_score_nothing(run, tmp_path, split):
    flat = photos(tmp_path, "flat") / "flat"
    words = [f"data.root={flat}", "data.labels=false", "data.classes=3"]
    with pytest.raises(KdkitError, match=r"^data: folder has no labels here; models are evaluated on labelled images"):
        evaluate(run, words, split=split)


def test_other_data_given_as_a_whole_come_as_large_as_in_training_and_every_image_is_scored(run, tmp_path):
    other = photos(tmp_path / "other", "ant", "bee", "cat", count=4)
    count, nll = plain(run, other)
    assert count == 12
    assert evaluate(run, [f"data={{name: folder, root: '{other}', num_workers: 0}}"])["student"]["nll"] == nll
    larger = evaluate(run, [f"data={{name: folder, root: '{other}', image_size: 16, holdout: 0.3, num_workers: 0}}"])
    assert larger["student"]["nll"] == plain(run, other, image_size=16, holdout=0.3)[1] != nll
