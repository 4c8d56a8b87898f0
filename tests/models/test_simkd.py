"""A student that predicts by its teacher's classifier: its shape, whose weights it has, and what leaves with it."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from kdkit import models
from kdkit.losses import MSELoss
from kdkit.models.classifier import reuse_classifier
from kdkit.models.start import start_from
from kdkit.recipe import RecipeError, loads
from kdkit.recipe.build import build
from kdkit.registry import KdkitError
from kdkit.runs import fit as fitting
from kdkit.runs.fit import fit
from kdkit.taps import Taps
from tests.cli.command import kdkit

RECIPE = """
data: {name: digits, subset: 64, batch_size: 32, image_size: 16}
models:
  teacher: {arch: resnet8, options: {widths: [4, 4, 8, 24]}, weights: t.safetensors}
  student: {arch: simkd, options: {backbone: {arch: resnet8, widths: [4, 4, 4, 8]}, width: 24}, classifier: teacher}
losses: [{mse: {taps: stage-1}}]
optimizer: {name: sgd}
lr: 0.01
trainer: {max_epochs: 2, accelerator: cpu, check_teachers: false}
"""


def by_hand(net, x):
    """The paper's figure 1: maps, projector, pooling, the teacher's layer."""
    maps = net.layer3[0](net.layer2(net.layer1(net.relu(net.bn1(net.conv1(x))))))
    projected = net.layer3[1](maps)
    return projected.mean((2, 3)) @ net.fc.weight.T + net.fc.bias


def test_its_prediction():
    net = models.build("simkd", num_classes=5, backbone="resnet8", width=40, factor=4).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(net(x), by_hand(net, x))
    convolutions = [m for m in net.layer3[1] if isinstance(m, nn.Conv2d)]
    shapes = [tuple(m.weight.shape) for m in convolutions]
    assert shapes == [(10, 64, 1, 1), (10, 10, 3, 3), (40, 10, 1, 1)]
    plain = sum(p.numel() for p in models.build("resnet20", num_classes=100).parameters())
    grown = models.build("simkd", num_classes=100, backbone="resnet20", width=64)
    assert sum(p.numel() for p in grown.parameters()) - plain == 13_568


@pytest.mark.parametrize(
    "backbone",
    ["resnet8", "wrn_16_2", "vgg8", "mobilenetv2", "shufflenetv2", "timm/test_resnet", "torchvision/resnet18"],
)
def test_any_backbone(backbone):
    """The tap of the last stage, and the classifier, read behind the projector."""
    net = models.build("simkd", num_classes=5, backbone=backbone, width=24).eval()
    taps = Taps(net, ["stage-1", "embedding"], torch.randn(2, 3, 64, 64))
    with taps.open():
        net(torch.randn(2, 3, 64, 64))
        found = taps.take()
    assert found["stage-1"].shape[:2] == (2, 24)
    torch.testing.assert_close(found["stage-1"].mean((2, 3)), found["embedding"])


def strided():
    layers = [nn.Conv2d(3 if i == 0 else 8, 8, 3, stride=2, padding=1) for i in range(5)]
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return nn.Sequential(OrderedDict(a=nn.Sequential(*layers), b=pooled))


def test_the_place_is_not_told_by_the_width():
    """Its last maps are of one pixel at 32, and those before have as many channels as the teacher's width."""
    net = models.build("simkd", num_classes=5, backbone=strided(), width=8)
    assert next(path for path, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)) == "a.1.1"


def test_a_backbone_that_calls_a_part_of_it_stages():
    net = models.build("simkd", num_classes=5, backbone="timm/repvgg_a0", width=24).eval()
    assert Taps(net, ["stage-1"], torch.randn(2, 3, 64, 64)).shapes["stage-1"][0] == 24


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"backbone": "resnet8"}, "width"),
        ({"backbone": "resnet8", "width": 0}, "simkd: width must be a whole number of at least 1, got 0"),
        ({"backbone": "resnet8", "width": 4, "factor": 8}, "simkd: factor must be at most the width, 4, got 8"),
        ({"backbone": "resnet8", "width": 4, "after": "layer9"}, "in the backbone, got 'layer9'; did you mean"),
        (
            {"backbone": "resnet8", "width": 4, "after": "layer2"},
            "reads, pooled, as 64 numbers; layer2 gives 32 channels",
        ),
        ({"backbone": "resnet8", "width": 4, "after": "fc"}, "64 numbers; fc gives none"),
        ({"backbone": "timm/test_vit", "width": 4}, "does not read the maps of patch_embed.proj"),
    ],
)
def test_refused(words, message):
    with pytest.raises(KdkitError, match=message):
        models.build("simkd", num_classes=5, **words)


class InPlace(nn.Module):
    """As torchvision's DenseNet, which goes on in place with what its last layer gives."""

    def __init__(self):
        super().__init__()
        self.features, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(torch.relu_(self.features(x)).mean((2, 3)))


@pytest.mark.parametrize("net", [InPlace(), "resnet8"])
def test_a_net_that_overwrites_its_last_maps(net):
    """The projector's ReLU takes its gradient from what it gave; the backward pass once failed."""
    made = models.build("simkd", num_classes=5, backbone=net, width=24)
    assert any(type(module).__name__ == "Copy" for module in made.modules()) == (net != "resnet8")
    taps = Taps(made, ["stage-1"], x := torch.randn(2, 3, 32, 32))
    taps(x)["stage-1"].square().mean().backward()
    made(x).sum().backward()
    assert next(made.parameters()).grad.abs().sum() > 0


def test_maps_of_other_sizes_are_told_what_to_do():
    pooled = "the head `identity` pools the larger maps; `taps: embedding` compares them all pooled"
    with pytest.raises(ValueError, match=pooled):
        MSELoss()(torch.randn(2, 8, 4, 4), torch.randn(2, 8, 1, 1))
    with pytest.raises(ValueError, match="give the edge a head"):
        MSELoss()(torch.randn(2, 8, 4, 4), torch.randn(2, 4, 4, 4))


def test_a_classifier_that_does_not_fit():
    student, teacher = models.build("resnet8", num_classes=5), models.build("wrn_16_2", num_classes=5)
    with pytest.raises(KdkitError, match=r"reads 64 numbers and the teacher's 128.*`width: 128`"):
        reuse_classifier(student, teacher, 5)
    with pytest.raises(KdkitError, match=r"^classifier: the teacher must have one linear layer of 5 outputs"):
        reuse_classifier(student, models.build("resnet8", num_classes=7), 5)


def nets(own, theirs):
    student, teacher = (models.build("resnet8", num_classes=5) for _ in range(2))
    student.fc, teacher.fc = own, theirs
    return student, teacher


@pytest.mark.parametrize("theirs", [nn.Linear(64, 5, bias=False), weight_norm(nn.Linear(64, 5))])
def test_a_teachers_layer_without_a_bias_or_with_a_norm_on_its_weights(theirs):
    """The student's own bias, or its own weights, once stayed as they were drawn, and frozen."""
    student, teacher = nets(nn.Linear(64, 5), theirs)
    reuse_classifier(student, teacher, 5)
    x = torch.randn(3, 64)
    assert torch.equal(student.fc(x), teacher.fc(x))
    assert not any(parameter.requires_grad for parameter in student.fc.parameters())


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (nn.Linear(64, 5, bias=False), "the student's has no bias, as the teacher's has; `arch: simkd`"),
        (weight_norm(nn.Linear(64, 5)), "the student's computes its weights from others; `arch: simkd`"),
    ],
)
def test_a_students_layer_that_cannot_hold_the_teachers(own, message):
    with pytest.raises(KdkitError, match=message):
        reuse_classifier(*nets(own, nn.Linear(64, 5)), 5)


def test_a_run_and_what_leaves_with_it(tmp_path, monkeypatch):
    """The teacher's layer is the student's from the first step to the exported file, and never moves."""
    monkeypatch.chdir(tmp_path)
    teacher = models.build("resnet8", num_classes=10, widths=[4, 4, 8, 24])
    teacher.requires_grad_(False).fc.weight.mul_(3)
    models.save_weights(teacher, tmp_path / "t.safetensors", {"arch": "resnet8"})
    fit(loads(RECIPE, folder=tmp_path), out=tmp_path / "run")
    stored = models.read_weights(tmp_path / "run" / "student.safetensors")
    assert torch.equal(stored["fc.weight"], teacher.fc.weight)
    assert torch.equal(stored["fc.bias"], teacher.fc.bias)
    start = build(loads(RECIPE, folder=tmp_path), weights=None).nodes["student"].module.state_dict()
    assert not torch.equal(stored["layer3.1.0.weight"], start["layer3.1.0.weight"])
    assert not torch.equal(stored["conv1.weight"], start["conv1.weight"])
    for words in (["eval", "run"], ["eval", "run/student.safetensors"], ["export", "run", "--format", "safetensors"]):
        said = kdkit(*words)
        assert said.code == 0, said


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("classifier: teacher", "classifier: teecher", "must name a frozen model, got 'teecher'; frozen: teacher"),
        ("classifier: teacher", "classifier: student", "must name a frozen model, got 'student'"),
        (", classifier: teacher", "", "simkd predicts by its teacher's last layer; say `classifier: teacher`"),
        ("weights: t.safetensors", "weights: random, classifier: student", "teacher is frozen and predicts by its own"),
    ],
)
def test_recipes_that_are_refused(old, new, message, tmp_path):
    (tmp_path / "t.safetensors").touch()
    with pytest.raises(RecipeError, match=message):
        loads(RECIPE.replace(old, new), folder=tmp_path)


def test_a_frozen_one_predicts_by_its_own(tmp_path):
    """Beside another teacher it was asked for a `classifier`, and refused one."""
    (tmp_path / "t.safetensors").touch()
    frozen = (
        "  assistant: {arch: simkd, options: {backbone: resnet8, width: 24}, weights: random, frozen: true}\nlosses"
    )
    assert loads(RECIPE.replace("losses", frozen), folder=tmp_path).kind("assistant") == "frozen"


def test_a_width_that_does_not_fit_is_told_with_its_line(tmp_path):
    models.save_weights(models.build("resnet8", num_classes=10), tmp_path / "t.safetensors", {"arch": "resnet8"})
    text = RECIPE.replace("options: {widths: [4, 4, 8, 24]}, ", "")
    with pytest.raises(RecipeError, match=r"models.student.classifier: .*`width: 64`"):
        fit(loads(text, folder=tmp_path), out=tmp_path / "run")


@pytest.fixture
def folder(tmp_path):
    """With a teacher's weights."""
    teacher = models.build("resnet8", num_classes=10, widths=[4, 4, 8, 24])
    models.save_weights(teacher, tmp_path / "t.safetensors", {"arch": "resnet8"})
    return tmp_path


@pytest.mark.parametrize("classes", [10, 7])
def test_it_starts_from_a_plain_backbone(folder, classes):
    """The backbone's weights go where its layers are now; all else is as without them."""
    backbone = models.build("resnet8", num_classes=classes, widths=[4, 4, 4, 8])
    models.save_weights(backbone, folder / "b.safetensors", {"arch": "resnet8"})
    text = RECIPE.replace("classifier: teacher", "classifier: teacher, weights: b.safetensors")
    drawn, started = (build(loads(t, folder=folder), weights=lambda _: None) for t in (RECIPE, text))
    plain, mine = (made.nodes["student"].module.state_dict() for made in (drawn, started))
    theirs = backbone.state_dict()
    assert torch.equal(mine["conv1.weight"], theirs["conv1.weight"])
    assert torch.equal(mine["layer3.0.0.conv2.weight"], theirs["layer3.0.conv2.weight"])
    for word in ("layer3.1.0.weight", "fc.weight"):
        assert torch.equal(mine[word], plain[word])
    models.save_weights(models.build("resnet14", num_classes=10, widths=[4, 4, 4, 8]), folder / "b.safetensors")
    with pytest.raises(RecipeError, match=r"models\.student\.weights: .*b\.safetensors does not fit resnet8"):
        build(loads(text, folder=folder), weights=lambda _: None)


def stored(run, name="student"):
    return models.read_weights(run / f"{name}.safetensors")


def test_resumed_cached_and_beside_a_slow_copy_it_is_the_same(folder, monkeypatch):
    monkeypatch.setenv("KDKIT_HOME", str(folder / "home"))
    recipe = loads(RECIPE, name="r", folder=folder)
    fit(recipe, out=folder / "whole")
    whole, assemble = stored(folder / "whole"), fitting.assemble

    def failing(experiment, run, rows):
        distiller, trainer = assemble(experiment, run, rows)
        step = distiller.training_step

        def training_step(batch, batch_idx):
            if trainer.current_epoch == 1:
                raise KdkitError("power cut")
            step(batch, batch_idx)

        distiller.training_step = training_step
        return distiller, trainer

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "assemble", failing)
        with pytest.raises(KdkitError, match="power cut"):
            fit(recipe, out=folder / "half")
    fit(recipe, out=folder / "half", resume=True)
    fit(loads(RECIPE, folder=folder, overrides=["models.teacher.cache.dtype=float32"]), out=folder / "cached")
    slow = RECIPE.replace("\nlosses", "\n  slow: {ema: student, decay: 0.5}\nlosses")
    fit(loads(slow, folder=folder), out=folder / "slow")
    for run in ("half", "cached", "slow"):
        assert all(torch.equal(value, whole[key]) for key, value in stored(folder / run).items()), run
    copy = stored(folder / "slow", "slow")
    assert torch.equal(copy["fc.weight"], stored(folder, "t")["fc.weight"])
    assert not torch.equal(copy["conv1.weight"], whole["conv1.weight"])


AROUND = """\
from torch import nn


def net(num_classes, backbone):
    backbone.fc = nn.Identity()  # frees a classifier, whose place in memory another tensor gets
    return nn.Sequential(backbone, *(nn.Linear(64, 64) for _ in range(8)), nn.Linear(64, num_classes))
"""


def test_what_is_around_a_backbone_stays_as_it_was_drawn(tmp_path):
    (tmp_path / "around.py").write_text(AROUND)
    models.save_weights(models.build("resnet8", num_classes=5), tmp_path / "b.safetensors", {"arch": "resnet8"})
    with models.seeded(0, "student"):
        net = models.build("around.py:net", num_classes=5, backbone="resnet8", base=tmp_path)
    drawn = [layer.weight.clone() for layer in net[1:]]
    start_from(net, tmp_path / "b.safetensors", "around.py:net", 5, backbone="resnet8", base=tmp_path)
    assert torch.equal(net[0].conv1.weight, models.read_weights(tmp_path / "b.safetensors")["conv1.weight"])
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(net[1:], drawn, strict=True))
