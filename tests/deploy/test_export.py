"""Exported models say of images what the run's model says, and load by the lines that their cards show."""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from kdkit import models
from kdkit.data import build as module
from kdkit.deploy import export as room
from kdkit.deploy import int8
from kdkit.deploy.export import export
from kdkit.deploy.formats import _example
from kdkit.deploy.onnx_file import OnnxNet
from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder
from kdkit.runs.result import write_figures
from tests.cli.command import kdkit, refused

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
OWN = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, width, 3), nn.Linear(width, num_classes)

    def forward(self, x):
        features = torch.relu(self.conv(x)).mean((2, 3))
        return {"features": features, "logits": self.fc(features)}
"""
OUTER = """\
from torch import nn

class Outer(nn.Module):
    def __init__(self, num_classes, backbone):
        super().__init__()
        self.backbone, self.fc = backbone, nn.Linear(3, num_classes)

    def forward(self, x):
        return self.fc(self.backbone(x))
"""
RECIPE = """\
data: {name: digits, image_size: SIDE, batch_size: 32}
models:
  teacher: {arch: resnet14, weights: /secret/folder/teacher.pth}
  student: {arch: ARCH, options: OPTIONS}
losses: [{ce: {}}, {/secret/folder/my_loss.py:Mine: {weight: 2}}]
optimizer: {name: sgd}
lr: 0.1
trainer: {max_epochs: 1, accelerator: cpu}
seed: 0
"""
onnx = pytest.mark.skipif(
    not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="kdkit[export] is not installed",
)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A finished run's folder with a student of any architecture."""
    monkeypatch.chdir(tmp_path)

    def made(arch="resnet8", options=None, side=8, name="run"):
        folder = tmp_path / name
        folder.mkdir()
        text = RECIPE.replace("ARCH", arch).replace("OPTIONS", json.dumps(options or {})).replace("SIDE", str(side))
        (folder / "recipe.yaml").write_text(text)
        if code := re.findall(r"/\S+\.py", f"{arch} {json.dumps(options)}"):
            (folder / "provenance.json").write_text(json.dumps({"code": code}))
        torch.manual_seed(3)
        net = models.build(arch, num_classes=10, **(options or {}))
        net(torch.randn(16, 3, side, side))  # running statistics of its own
        told = {"arch": arch, "num_classes": "10", "mean": json.dumps(MEAN), "std": json.dumps(STD)}
        models.save_weights(net, folder / "student.safetensors", {**told, "options": json.dumps(options or {})})
        return folder, net.eval()

    return made


def picture(folder, side):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def names_of_its_card(folder, monkeypatch):
    """What the lines that the card shows make, run in the folder."""
    monkeypatch.chdir(folder)
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    seen = {}
    exec(lines, seen)
    return seen


def by_its_card(folder, monkeypatch):
    return torch.as_tensor(names_of_its_card(folder, monkeypatch)["logits"])


@torch.no_grad()
def said(net, x):
    out = net(x)
    return out["logits"] if isinstance(out, dict) else out


def check(made, side, form, monkeypatch, **words):
    run, net = made
    found = export(run, form, **words)
    assert (found.images, found.noise) == (64, False)
    assert found.difference <= 1e-4 * 10
    folder = found.folder.resolve()
    expected = said(net, picture(folder, side))
    torch.testing.assert_close(by_its_card(folder, monkeypatch), expected, atol=1e-4, rtol=1e-4)
    return folder


@pytest.mark.parametrize("form", [pytest.param("onnx", marks=onnx), "torch", "safetensors"])
def test_each_format_says_what_the_model_says(make, form, monkeypatch):
    folder = check(make("resnet8", {"widths": [4, 4, 8, 16]}), 8, form, monkeypatch)
    config = json.loads((folder / "config.json").read_text())
    assert (config["arch"], config["options"], config["input_shape"]) == (
        "resnet8",
        {"widths": [4, 4, 8, 16]},
        [3, 8, 8],
    )
    assert (config["mean"], config["classes"]) == (list(MEAN), [str(i) for i in range(10)])
    if form == "safetensors":
        assert models.read_metadata(folder / "model.safetensors")["image_size"] == "8"
    if form == "onnx":
        notes = OnnxNet(folder / "model.onnx").session.get_modelmeta().custom_metadata_map
        assert {word: json.loads(notes[word]) for word in config} == config
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "image-classification"
    assert "secret" not in card  # this machine's folders are nobody's business
    assert "weights: teacher.pth" in card
    assert "my_loss.py:Mine: {weight: 2}" in card


@pytest.mark.parametrize("form", ["timm", "safetensors", pytest.param("onnx", marks=onnx)])
def test_a_model_of_timms(make, form, monkeypatch):
    made = make("timm/test_vit", {"img_size": 32}, side=32)
    folder = check(made, 32, form, monkeypatch)
    if form == "timm":
        config = json.loads((folder / "config.json").read_text())
        assert (config["architecture"], config["num_classes"], config["pretrained_cfg"]["mean"]) == (
            "test_vit",
            10,
            list(MEAN),
        )
        assert config["model_args"]["img_size"] in (32, [32, 32])  # what builds it, as timm says it
        assert config["label_names"] == [str(i) for i in range(10)]
        assert not {config["pretrained_cfg"].get(word) for word in ("license", "tag")} - {None}  # of other weights
        assert "num_classes" not in config["model_args"]  # transformers has it from above and would pass it twice


@torch.no_grad()
def test_transformers_reads_timms_folder(make):
    transformers = pytest.importorskip("transformers")
    run, net = make("timm/test_vit", {"img_size": 32}, side=32)
    opened = transformers.AutoModelForImageClassification.from_pretrained(export(run, "timm").folder).eval()
    x = picture(run, 32)
    torch.testing.assert_close(opened(x).logits, net(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "On the test set of `digits`."),
        (
            ", val_split: 0.1",
            "On images held out of the training set (`val_split: 0.1` of `digits`), not on the test set. "
            "A teacher may have been trained on them.",
        ),
    ],
)
def test_the_card_says_what_its_accuracy_is_about(make, words, told):
    folder, _ = make("resnet8", {"widths": [4, 4, 8, 16]})
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("batch_size: 32", f"batch_size: 32{words}"))
    found = {"student": {"top1": 0.5, "epoch": 1}}
    write_figures(RunFolder(folder), {"last": found, "best": found})
    card = (export(folder, "safetensors").folder / "README.md").read_text()
    rest = card.partition("## Accuracy in training\n\n")[2]
    assert rest.startswith(f"{told}\n\n| model |")


def test_a_photograph_is_fed_as_in_evaluation(make, tmp_path, monkeypatch):
    timm_data = pytest.importorskip("timm.data")
    run, _ = make("timm/test_vit", {"img_size": 32}, side=32)
    pixels = np.kron(np.random.default_rng(0).integers(0, 256, (6, 11, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    for name in "0123456789":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.roll(pixels, i)).save(tmp_path / "photos" / name / f"{i}.png")
    words = (run / "recipe.yaml").read_text()
    photos = "{name: folder, root: photos, holdout: all, image_size: 32, num_workers: 0}"
    (run / "recipe.yaml").write_text(words.replace("{name: digits, image_size: 32, batch_size: 32}", photos))
    write_figures(RunFolder(run), {kind: {"student": {"top1": 0.5, "epoch": 1}} for kind in ("last", "best")})
    folder = export(run, "timm").folder.resolve()
    noise = export(run, "timm", out=tmp_path / "noise", overrides=["data.fake=true"]).folder
    assert "On the test set of its folder of images." in (folder / "README.md").read_text()
    data = module("folder", root=tmp_path / "photos", holdout="all", image_size=32)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    wanted = (data.transform(augment=False)(torch.from_numpy(pixels).movedim(-1, 0)) / 255 - mean) / std
    photo = Image.fromarray(pixels)
    photo.save(folder / "photo.png")
    by_card = torch.as_tensor(names_of_its_card(folder, monkeypatch)["images"])[0]
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert json.loads((noise / "config.json").read_text())["pretrained_cfg"] == config
    view = timm_data.create_transform(**timm_data.resolve_data_config(config))(photo)
    for fed in (by_card, view):
        torch.testing.assert_close(fed, wanted, atol=2.5 / 255 / min(STD), rtol=0)


@pytest.mark.parametrize("form", ["safetensors", "torch", pytest.param("onnx", marks=onnx)])
def test_a_model_from_a_file_of_ones_own(make, tmp_path, form, monkeypatch):
    (tmp_path / "my_net.py").write_text(OWN)
    made = make(f"{tmp_path}/my_net.py:Net", {"width": 3})
    folder = check(made, 8, form, monkeypatch)
    assert (folder / "my_net.py").exists() == (form == "safetensors")
    assert sum(path.stat().st_size for path in folder.glob("model.*")) < 64 * 3 * 8 * 8 * 4  # no images are kept in it
    assert str(tmp_path) not in (folder / "README.md").read_text()


def test_a_file_brings_what_it_imports_from_beside_it(make, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "parts.py").write_text(OWN)
    (tmp_path / "inner" / "more.py").write_text("from parts import Net\n")
    (tmp_path / "my_net.py").write_text("from inner.more import Net\n")
    folder = check(make(f"{tmp_path}/my_net.py:Net"), 8, "safetensors", monkeypatch)
    for name in [name for name in sys.modules if re.match(r"parts|inner|kdkit_file_my_net", name)]:
        monkeypatch.delitem(sys.modules, name)
    assert "torch" in names_of_its_card(folder, monkeypatch)
    assert Path(sys.modules["parts"].__file__) == folder / "parts.py"
    again = export(tmp_path / "run", "safetensors", out=folder, overwrite=True)
    assert (again.folder / "inner" / "more.py").is_file()
    assert not (again.folder / "inner" / "inner").exists()


def test_a_file_that_needs_more_than_lies_beside_it_stays_where_it_is(make, tmp_path, monkeypatch):
    (tmp_path / "beside.txt").write_text("4")
    opens = 'from pathlib import Path\n\nWIDTH = int(Path(__file__).with_name("beside.txt").read_text())\n'
    (tmp_path / "my_net.py").write_text(opens + OWN)
    run, _ = make(f"{tmp_path}/my_net.py:Net")
    found = export(run, "safetensors", out=tmp_path / "out")
    assert not (found.folder / "my_net.py").exists()
    assert "is not in this folder" in (found.folder / "README.md").read_text()


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_a_net_of_ones_own_inside_another_comes_with_it(make, tmp_path, form, monkeypatch):
    (tmp_path / "my_net.py").write_text(OWN.replace('{"features": features, "logits": self.fc(features)}', "features"))
    (tmp_path / "outer.py").write_text(OUTER)
    options = {"backbone": {"arch": f"{tmp_path}/my_net.py:Net", "width": 3}}
    folder = check(make(f"{tmp_path}/outer.py:Outer", options), 8, form, monkeypatch)
    files = [path for path in folder.glob("*") if path.suffix != ".pt2" and path.is_file()]
    assert [path.name for path in files if str(tmp_path).encode() in path.read_bytes()] == []
    assert (folder / "my_net.py").exists() == (form == "safetensors")


def test_a_model_of_torchvisions(make, monkeypatch):
    check(make("torchvision/squeezenet1_1", side=32), 32, "safetensors", monkeypatch)


@onnx
def test_int8_and_what_it_costs(make, capsys):
    run, _ = make()
    found = {method: export(run, "onnx", out=run / method, int8=method) for method in ("static", "dynamic")}
    for method, exported in found.items():
        int8 = exported.int8
        assert (int8.method, int8.images) == (method, 360)
        assert 0 <= int8.after <= 1
        assert int8.agreement > 0.5
        plain = kdkit("eval", run).out.split()
        assert f"{100 * int8.before:.2f}" in plain  # the same figure as `kdkit eval`'s
        assert f"{method} quantisation" in (exported.folder / "README.md").read_text()
        assert (exported.folder / "model.int8.onnx").stat().st_size < exported.file.stat().st_size
    exported = export(run, "onnx", out=run / "dynamic", overwrite=True)  # nothing of the former one is left
    assert sorted(path.name for path in exported.folder.iterdir()) == ["README.md", "config.json", "model.onnx"]
    made = pytest.importorskip("onnx").load(run / "static" / "model.int8.onnx").graph.initializer
    assert any(list(its.dims) == [16] for its in made if its.name.endswith("_scale"))  # one for each channel


def test_int8_is_measured_on_training_images_as_the_model_sees_them(make):
    run, _ = make()
    seen = torch.cat(list(int8._training_images(room._leaving("student", run / "student.safetensors", []))))
    pixels = 255 * (seen * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1))
    found, known = pixels.round().byte(), module("digits", image_size=8).tensors(True)[0].byte()
    assert len(found) == int8.CALIBRATION
    assert {x.numpy().tobytes() for x in found} <= {x.numpy().tobytes() for x in known}


@torch.no_grad()
def test_int8_is_scored_by_the_names_of_the_classes(make, monkeypatch):
    run, net = make()
    path = run / "student.safetensors"
    turned = json.dumps([str(i) for i in reversed(range(10))])
    models.save_weights(net, path, {**models.read_metadata(path), "classes": turned})
    first = torch.nn.Linear(3 * 8 * 8, 10)
    first.weight.zero_(), first.bias.copy_(torch.arange(10).flip(0))  # says the first class of everything
    monkeypatch.setattr(
        int8, "_Module", {Path("a"): net, Path("b"): torch.nn.Sequential(torch.nn.Flatten(), first)}.get
    )
    found = int8._scored(room._leaving("student", path, []), Path("a"), Path("b"), "static")
    images, labels = module("digits", image_size=8).tensors(False)
    said = net((images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).argmax(1)
    shares = [float(right.double().mean()) for right in (said == 9 - labels, labels == 9, said == 0)]
    assert found == int8.Int8("b", "static", 360, *map(pytest.approx, shares))


def test_a_file_that_says_something_else_is_never_written(make, tmp_path, monkeypatch):
    run, _ = make()
    right = room.WRITERS["safetensors"]

    def wrong(leaving, folder):
        written = right(leaving, folder)
        return type(written)(written.file, lambda x: written.answers(x) + 0.1, "")

    monkeypatch.setattr(room, "WRITERS", {**room.WRITERS, "safetensors": wrong})
    with pytest.raises(KdkitError, match=r"differ from the model's by 0\.1 on 1 images"):
        export(run, "safetensors")
    assert not any((tmp_path / "exports").iterdir())


def test_an_exporter_sees_two_images_where_there_is_one():
    """Of one alone it takes the size of the batch as a constant."""
    one = SimpleNamespace(images=torch.rand(1, 3, 8, 8))
    assert torch.equal(_example(one), torch.cat([one.images] * 2))


def test_the_verb_and_what_it_refuses(make, tmp_path):
    run, net = make()
    told = kdkit("export", run, "--format", "safetensors")
    assert told.code == 0
    assert "model.safetensors" in told.out
    assert "64 test images" in told.out
    assert "exports/run-safetensors is not empty; --overwrite replaces" in refused(
        "export", run, "--format", "safetensors"
    )
    assert kdkit("export", run, "data.fake=true", "--format", "safetensors", "--overwrite").out.count("noise") == 1
    assert "resnet8 is no model of timm's" in refused("export", run, "--format", "timm")
    assert "--format must be one of onnx, torch, safetensors, timm, got 'onx'; did you mean 'onnx'" in refused(
        "export", run, "--format", "onx"
    )
    assert "--int8 goes with --format onnx" in refused("export", run, "--format", "torch", "--int8", "static")
    assert "--int8 must be dynamic or static" in refused("export", run, "--int8", "half")
    assert "no model 'teacher'; choose one with --model: student" in refused("export", run, "--model", "teacher")
    assert "no such run" in refused("export", tmp_path / "gone")
    models.save_weights(net, run / "peer.safetensors", {"arch": "resnet8", "num_classes": "10"})
    (run / "student.safetensors").rename(run / "other.safetensors")
    assert "several models; choose one with --model: other, peer" in refused("export", run)


@onnx
def test_without_the_extra_the_message_names_it(make, monkeypatch):
    run, _ = make()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime is not installed; pip install 'kdkit[export]' brings it" in refused("export", run)


def test_a_model_that_cannot_be_written_down_is_one_message(make, tmp_path):
    (tmp_path / "my_net.py").write_text(
        OWN.replace("        features =", "        if float(x.sum()) > 0: x = x + 1\n        features =")
    )
    run, _ = make(f"{tmp_path}/my_net.py:Net")
    told = refused("export", run, "--format", "torch")
    assert "Net cannot be exported: " in told
    assert "if float(x.sum()) > 0" in told
    assert "--format safetensors" in told


def test_files_of_ones_own_beside_an_export_stay(make, tmp_path):
    run, _ = make()
    (tmp_path / "mine").mkdir()
    for name in ("model.py", "model.yaml"):
        (tmp_path / "mine" / name).write_text("mine")
    export(run, "safetensors", out=tmp_path / "mine", overwrite=True)
    assert {"model.py", "model.yaml", "model.safetensors"} <= {path.name for path in (tmp_path / "mine").iterdir()}
