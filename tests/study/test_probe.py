"""Probes by libraries and plain loops; features as the model gives them in eval mode, and kept."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from kdkit import data, models
from kdkit.cli import app
from kdkit.registry import KdkitError
from kdkit.runs.evaluate import evaluate
from kdkit.study import probe as probing
from kdkit.study.linear import _fit, linear_probe, neighbours
from kdkit.study.probe import _features, _side, probe

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A net of other classes than the data that it is probed on."""
    torch.manual_seed(0)
    net = models.build("resnet8", num_classes=7)
    net(torch.randn(64, 3, 8, 8))
    path = tmp_path_factory.mktemp("probed") / "net.safetensors"
    told = {"mean": MEAN, "std": STD, "num_classes": 7, "classes": list("abcdefg"), "data": {"name": "fake"}}
    told["data"] |= {"shape": [3, 8, 8], "classes": 7}
    models.save_weights(net, path, {"arch": "resnet8", **{k: json.dumps(v) for k, v in told.items()}})
    return path, net.eval()


def blobs(n, classes=4, wide=6, noise=1.2):
    drawn = torch.Generator().manual_seed(1)
    centres = torch.randn(classes, wide, generator=drawn)
    y = torch.randint(classes, (n,), generator=drawn)
    return centres[y] + noise * torch.randn(n, wide, generator=drawn), y


@pytest.mark.parametrize("decay", [1e-3, 1.0])
def test_the_fit_is_scikit_learns(decay):
    sklearn = pytest.importorskip("sklearn.linear_model")
    x, y = blobs(300)
    mine = _fit(x, y, torch.zeros(7, 4), decay)
    theirs = sklearn.LogisticRegression(C=1 / (decay * len(x)), max_iter=2000, tol=1e-8).fit(x.numpy(), y.numpy())
    p = (x @ mine[:-1] + mine[-1]).softmax(1)
    assert np.allclose(p, theirs.predict_proba(x.numpy()), atol=2e-3)


def test_regularisation_is_chosen_without_a_look_at_the_test():
    x, y = blobs(400)
    wide = torch.cat([x, torch.randn(400, 200)], 1)  # much to overfit
    told = linear_probe(wide[:150], y[:150], wide[150:], y[150:], 4)
    again = linear_probe(wide[:150], y[:150], -wide[150:], y[150:].flip(0), 4)
    assert (told.decay, told.held_out) == (again.decay, again.held_out)
    assert told.decay > 1e-6
    assert told.top1 > 0.6 > again.top1


@pytest.mark.parametrize(
    ("grid", "best", "is_told"),
    [((100, 10, 1), 1, True), ((0.01, 0.001, 1e-4), 0.01, True), ((10, 0.1, 1e-4), 0.1, False)],
    ids=["weakest", "strongest", "between"],
)
def test_a_best_one_at_the_end_of_what_was_tried_is_told(grid, best, is_told, monkeypatch, caplog):
    monkeypatch.setattr("kdkit.study.linear.GRID", grid)
    x, y = blobs(400)
    x = torch.cat([x, torch.randn(400, 20, generator=torch.Generator().manual_seed(0))], 1)
    assert linear_probe(x[:300], y[:300], x[300:], y[300:], 4).decay == best
    assert any("may be better" in told for told in caplog.messages) == is_told


def test_one_at_the_end_that_is_no_better_than_the_next_is_not_told(monkeypatch, caplog):
    monkeypatch.setattr("kdkit.study.linear.GRID", (0.1, 0.01))
    x, y = blobs(400, noise=0.01)
    told = linear_probe(x[:300], y[:300], x[300:], y[300:], 4)
    assert (told.held_out, told.decay) == (1, 0.1)
    assert not caplog.messages


def test_what_is_held_out_was_not_fitted_on():
    x, y = torch.randn(300, 300), torch.randint(4, (300,))  # nothing to learn, all to remember
    assert linear_probe(x[:250], y[:250], x[250:], y[250:], 4).held_out < 0.6


def test_a_feature_that_never_moves_changes_nothing():
    x, y = blobs(300)
    flat = torch.cat([x, torch.full((300, 1), 7.0)], 1)
    one, two = (linear_probe(z[:200], y[:200], z[200:], y[200:], 4) for z in (x, flat))
    assert one == two


def test_neighbours_by_a_plain_loop():
    x, y = blobs(120)
    right = 0
    for i in range(80, 120):
        cosines = F.cosine_similarity(x[i : i + 1], x[:80])
        near = sorted(range(80), key=lambda j: -cosines[j])[:20]
        votes = [sum(float((cosines[j] / 0.07).exp()) for j in near if y[j] == c) for c in range(4)]
        right += votes.index(max(votes)) == y[i]
    assert neighbours(x[:80], y[:80], x[80:], y[80:], 4) == pytest.approx(right / 40)


def test_features_are_those_of_eval_mode_in_order_and_are_kept(weights, monkeypatch):
    path, net = weights
    kept = {}
    compute = probing._compute
    monkeypatch.setattr(probing, "_compute", lambda *args: kept.setdefault("found", compute(*args)))
    told = probe(path, "digits", ["trainer.accelerator=cpu"])["net"]
    assert told["linear"] > 0.3  # of a net that learned nothing; by chance: a tenth
    assert (told["train"], told["test"]) == (1437, 360)
    images, labels = data.build("digits", image_size=8).tensors(True)
    net.fc = nn.Identity()
    with torch.no_grad():
        x = net((images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    assert torch.allclose(kept["found"]["train_x"], x, atol=1e-4)
    assert torch.equal(kept["found"]["train_y"], labels)
    monkeypatch.setattr(probing, "_compute", None)
    assert probe(path, "digits", ["trainer.accelerator=cpu"])["net"] == told
    with pytest.raises(TypeError):  # other features
        probe(path, "digits", ["trainer.accelerator=cpu"], tap="stage1")


def test_features_are_of_one_model_one_data_set_and_one_size(weights, tmp_path, monkeypatch):
    calls, compute, path = [], probing._compute, tmp_path / "net.safetensors"
    monkeypatch.setattr(probing, "_compute", lambda *args: calls.append(args) or compute(*args))

    def found(*words, size=None):
        samples = len(_features("net", path, "fake", ["trainer.accelerator=cpu", *words], size, "stem")["train_x"])
        return samples, len(calls)

    path.write_bytes(weights[0].read_bytes())
    assert [found(), found()] == [(256, 1)] * 2
    adapter = calls[0][1]
    assert adapter(torch.zeros(2, 3, 32, 32)).shape == (2, 3, 8, 8)  # as large as those that it was trained on
    assert found("data.subset=50") == (50, 2)
    assert found(size=16) == (256, 3)
    models.save_weights(models.build("resnet8", num_classes=7), path, models.read_metadata(path))
    assert found() == (256, 4)


def test_a_folder_by_the_verb(weights, tmp_path, monkeypatch):
    path, _ = weights
    for i, name in enumerate(("dark", "light")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for j in range(12):
            pixels = np.random.default_rng(20 * i + j).integers(120 * i, 120 * i + 90, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{j}.png")
    words = ["data.holdout=0.25", "data.num_workers=0", "trainer.accelerator=cpu"]
    place = tmp_path / "probe.json"
    said = CliRunner().invoke(
        app, ["probe", str(path), *words, "--data", str(tmp_path / "photos"), "--tap", "stem", "--out", str(place)]
    )
    assert said.exit_code == 0, said.output
    (found,) = json.loads(place.read_text()).values()
    assert (found["net"]["train"], found["net"]["test"], found["net"]["features"]) == (18, 6, 16)
    assert found["net"]["linear"] == 1
    assert "100.00" in said.output
    options = ["--data", str(tmp_path / "photos"), "--tap", "stem", "--out", str(tmp_path / "again.json")]
    said = CliRunner().invoke(app, ["probe", str(tmp_path / "none"), str(path), *words, *options])  # none is not there
    assert "100.00" in said.output
    assert said.exit_code == 2
    assert next(iter(json.loads((tmp_path / "again.json").read_text()))).endswith(str(path))
    monkeypatch.setattr(probing, "_compute", None)
    assert probe(path, str(tmp_path / "photos"), words, tap="stem") == found
    held = data.build("folder", root=tmp_path / "photos", holdout=0.25).sets[1].paths()
    for photo in held:  # those that are scored on are no part of the data's identity, by which caches of training go
        os.utime(photo, ns=(10**18, 10**18))
    with pytest.raises(TypeError):  # images written anew are others
        probe(path, str(tmp_path / "photos"), words, tap="stem")


def test_what_cannot_be_probed(weights, tmp_path):
    path, _ = weights
    with pytest.raises(KdkitError, match="no such folder, and no data set of that name; known: cifar10"):
        probe(path, "stl11")
    with pytest.raises(KdkitError, match=r"data\.augment: a probe takes data"):
        probe(path, "digits", ["data.augment=true"])
    with pytest.raises(KdkitError, match="net: unknown tap 'stage8'"):
        probe(path, "digits", tap="stage8")
    models.save_weights(models.build("resnet8", num_classes=7), tmp_path / "a.safetensors", {"arch": "resnet8"})
    with pytest.raises(KdkitError, match="how large its images were; give --image-size"):
        probe(tmp_path / "a.safetensors", "digits")


def test_a_folder_without_a_part_to_be_scored_wants_to_know_its_share(weights, tmp_path, capsys):
    for word in ("left", "right"):
        (tmp_path / "photos" / word).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / word / "0.png")
    for words in ([], ["data.holdout=0"], ["data.holdout=all"]):
        with pytest.raises(KdkitError, match=r"has no val/ of images to be scored on .*; set data\.holdout=0\.2"):
            probe(weights[0], str(tmp_path / "photos"), words, image_size=8)
    assert capsys.readouterr().err == ""


def test_stl10_is_torchvisions(monkeypatch, tmp_path):
    class Theirs:
        base_folder = "stl10_binary"

        def __init__(self, root, split, download):
            if root != str(tmp_path):
                raise RuntimeError("not found")
            n = {"train": 6, "test": 4}[split]
            self.data = np.full((n, 3, 96, 96), 100, np.uint8)
            self.labels = np.arange(n) % 10

    monkeypatch.setattr("torchvision.datasets.STL10", Theirs)
    images, labels = data.build("stl10", root=tmp_path, image_size=32).tensors(False)
    assert images.shape == (4, 3, 32, 32)
    assert images.unique().tolist() == [100]
    assert labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(KdkitError, match=r"stl10_binary/ was not found whole .*data\.download=true"):
        data.build("stl10", root=tmp_path / "gone").tensors(True)


def test_features_of_code_that_changed_are_computed_anew(tmp_path):
    text = "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, num_classes):\n"
    text += "        super().__init__()\n        self.fc = nn.Linear(192, num_classes)\n"
    text += "    def forward(self, x):\n        return self.fc(x.flatten(1)%s)\n"
    (tmp_path / "recipe.yaml").write_text(
        "models: {net: {arch: net.py:Net}}\nlosses: [ce]\ndata: {name: digits, image_size: 8}\n"
    )
    torch.manual_seed(0)
    net = nn.Module()
    net.fc = nn.Linear(192, 10)
    models.save_weights(net, tmp_path / "net.safetensors")
    words, found = ["data.image_size=8", "trainer.accelerator=cpu"], []
    for change in ("", " * 0"):
        (tmp_path / "net.py").write_text(text % change)
        found.append(probe(tmp_path / "net.safetensors", "digits", words, image_size=8, tap="logits")["net"]["linear"])
    assert found[0] > 0.5 > found[1]


def test_the_side_of_images_of_a_file_by_itself(tmp_path):
    """What its header says, else what such data usually have, else one clear question; never a guess."""
    path = tmp_path / "net.safetensors"
    assert _side(path, {"data": {"name": "folder"}}) == 224
    assert _side(path, {"data": {"name": "folder", "image_size": 64}}) == 64
    assert _side(path, {"data": {"name": "cifar100"}}) == 32
    for told in ({}, {"data": {"name": "gone"}}):
        with pytest.raises(
            KdkitError, match=r"net\.safetensors does not say how large its images were; give --image-s"
        ):
            _side(path, told)
    (tmp_path / "recipe.yaml").write_text("models: {net: {arch: resnet8}}\ndata: {name: digits, image_size: 12}\n")
    assert _side(path, {}) == 12


def test_two_classes_of_one_name_are_refused(tmp_path, weights, monkeypatch):
    """Which of the two a name means nobody knows: a model's by its header, the data's where models are scored."""
    path, net = weights
    twice = {"num_classes": "7", "classes": json.dumps(list("aabcdef"))}
    models.save_weights(net, tmp_path / "net.safetensors", {"arch": "resnet8", **twice})
    with pytest.raises(KdkitError, match=r"its header says classes: .* a list of names, each of its own"):
        probe(tmp_path / "net.safetensors", "digits", image_size=8)
    monkeypatch.setattr(data.DATA["fake"], "class_names", property(lambda self: list("aabcdef")), raising=False)
    with pytest.raises(KdkitError, match="data: two classes are called 'a'"):
        evaluate(path, ["trainer.accelerator=cpu"])
