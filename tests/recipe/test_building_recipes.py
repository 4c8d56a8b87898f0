"""From a recipe to models, losses and data."""

from pathlib import Path

import pytest
import torch

from kdkit import models
from kdkit.graph import Schedule
from kdkit.recipe import RecipeError, blaming, build, content_key, load, loads
from kdkit.registry import KdkitError

TEXT = """\
data: {name: fake, classes: 4, shape: [3, 16, 16]}
models:
  teacher: {arch: resnet14, weights: random}
  student: {arch: resnet8, optimizer: {name: adamw}, lr: {cosine: [1e-3, 0]}}
  slow: {ema: student, decay: 0.99}
losses:
  - ce: {label_smoothing: 0.1}
  - kd: {weight: {linear: [1, 0.5]}, temperature: {linear: [8, 4]}, from: [teacher.logits, slow.logits], to: student}
optimizer: {name: sgd, momentum: 0.9}
lr: 0.1
trainer: {max_epochs: 10, update: sequential, devices: 1}
seed: 3
"""


def test_an_experiment_is_what_the_recipe_says():
    built = build(loads(TEXT, name="mine"), weights=None)
    assert (built.name, built.seed, built.lr) == ("mine", 3, 0.1)
    assert built.optimizer == {"name": "sgd", "momentum": 0.9}
    assert built.trainer == {"max_epochs": 10, "update": "sequential", "devices": 1}
    assert {name: node.kind for name, node in built.nodes.items()} == {
        "teacher": "frozen",
        "student": "trained",
        "slow": "ema",
    }
    student, slow = built.nodes["student"], built.nodes["slow"]
    assert (student.optimizer, student.lr) == ({"name": "adamw"}, {"cosine": [1e-3, 0]})
    assert student.module(torch.zeros(2, 3, 16, 16)).shape == (2, 4)
    assert student.spec["arch"] == "resnet8"
    assert (slow.module, slow.of, slow.decay) == (None, "student", 0.99)
    ce, kd = built.edges
    assert (ce.name, ce.options) == ("ce", {"label_smoothing": 0.1})
    assert (kd.source, kd.target) == (["teacher.logits", "slow.logits"], "student")
    assert kd.weight == Schedule.parse({"linear": [1, 0.5]})
    assert kd.options["temperature"] == Schedule.parse({"linear": [8, 4]})
    assert built.datamodule.num_classes == 4


def test_the_initial_weights_follow_from_seed_and_name_alone():
    def weights(text: str, *overrides: str) -> torch.Tensor:
        return build(loads(text, overrides=overrides), weights=None).nodes["student"].module.conv1.weight

    alone = TEXT[: TEXT.index("losses:")].replace("  teacher: {arch: resnet14, weights: random}\n", "")
    alone += "losses: [ce]\ntrainer: {max_epochs: 1}\nseed: 3\n"
    assert torch.equal(weights(TEXT), weights(alone))
    assert not torch.equal(weights(TEXT), weights(TEXT, "seed=4"))
    peers = build(load("dml_cifar100"), weights=None).nodes
    assert not torch.equal(peers["student"].module.conv1.weight, peers["peer"].module.conv1.weight)


def test_a_teachers_weights_are_asked_for_by_recipe(tmp_path: Path):
    asked = []

    def resolve(recipe):
        asked.append(recipe)
        path = tmp_path / "weights.safetensors"
        net = build(recipe, weights=None).nodes[recipe.trained[0]].module
        torch.nn.init.constant_(net.conv1.weight, 0.5)
        models.save_weights(net, path, {"mean": "[0.1, 0.2, 0.3]", "std": "[1, 1, 1]"})
        return path

    recipe = load("kd_digits")
    node = build(recipe, weights=resolve).nodes["teacher"]
    assert [one.name for one in asked] == ["teacher_digits"]
    assert (node.module.conv1.weight == 0.5).all()
    assert (node.mean, node.std) == ((0.1, 0.2, 0.3), (1, 1, 1))  # the teacher's own input, told by its weights' file
    assert build(
        load("kd_digits", ["models.teacher.mean=[0,0,0]", "models.teacher.std=[1,1,1]"]), weights=resolve
    ).nodes["teacher"].mean == (0, 0, 0)

    asked.clear()
    tuned = loads(TEXT.replace("random}", "random, tune: {epochs: 2, lr: 1e-3}}", 1))
    assert (build(tuned, weights=resolve).nodes["teacher"].module.conv1.weight == 0.5).all()
    assert [(one.name, one.trainer.max_epochs) for one in asked] == [("tune_resnet14_fake", 2)]
    assert content_key(asked[0]) != content_key(load("teacher_digits"))


def test_without_weights_nothing_is_asked_for():
    build(load("kd_digits"), weights=None)
    assert build(load("kd_digits"), weights=lambda recipe: None).nodes["teacher"].mean is None
    other = load("kd_imagenet", ["data.name=cifar100"])
    teacher = build(other, weights=None).nodes["teacher"]  # and nothing is fetched
    assert teacher.module.fc.out_features == 1000  # its own, whatever the data
    assert teacher.mean == (0.485, 0.456, 0.406)


def test_a_teachers_file_must_fit_and_a_students_need_not_in_its_classifier(tmp_path: Path):
    with models.seeded(1, "x"):
        other = models.build("resnet8", num_classes=7)
    models.save_weights(other, tmp_path / "seven.safetensors")
    text = TEXT.replace("resnet14, weights: random", "resnet8, weights: seven.safetensors")
    with pytest.raises(RecipeError, match=r"r:3: models\.teacher\.weights: (.|\n)*`tune:` fits a model"):
        build(loads(text, name="r", folder=tmp_path), weights=lambda recipe: None)
    seven = build(
        loads(text.replace("tensors}", "tensors, num_classes: 7}"), folder=tmp_path), weights=lambda recipe: None
    )
    assert seven.nodes["teacher"].module(torch.zeros(1, 3, 16, 16)).shape == (1, 7)

    text = TEXT.replace("arch: resnet8", "arch: resnet8, weights: seven.safetensors")
    student = build(loads(text, folder=tmp_path), weights=lambda recipe: None).nodes["student"].module
    fresh = build(loads(TEXT), weights=None).nodes["student"].module
    assert torch.equal(student.layer3[0].conv1.weight, other.layer3[0].conv1.weight)
    assert torch.equal(student.fc.weight, fresh.fc.weight)


def test_what_a_model_or_the_data_refuse_is_told_with_its_line(tmp_path: Path):
    text = TEXT.replace("resnet14", "timm/resnet18x").replace("resnet8,", "torchvision/resnet81,")
    with pytest.raises(RecipeError) as caught:
        build(loads(text, name="r"), weights=None)
    first, second = map(str, caught.value.problems)
    assert first.startswith("r:3: models.teacher.arch: unknown timm model 'resnet18x'; did you mean 'resnet18")
    assert second.startswith("r:4: models.student.arch: unknown torchvision model 'resnet81'; did you mean 'resnet18'")
    with pytest.raises(RecipeError, match=r"r:4: models\.student\.options\.depht: unknown key 'depht'"):
        build(loads(TEXT.replace("resnet8,", "resnet8, options: {depht: 3},"), name="r"), weights=None)
    with pytest.raises(RecipeError, match=r"override 'data.batch_size=0': data\.batch_size: .*must be .*got 0"):
        build(loads(TEXT, overrides=["data.batch_size=0"]), weights=None)
    folder = TEXT.replace(
        "{name: fake, classes: 4, shape: [3, 16, 16]}", f"{{name: folder, root: {tmp_path / 'none'}}}"
    )
    with pytest.raises(RecipeError, match=r"r:1: data(\.root)?: "):
        build(loads(folder, name="r"), weights=None)
    (tmp_path / "bad.pth").write_bytes(b"not a pickle")
    with pytest.raises(
        RecipeError, match=r"r:3: models\.teacher\.weights: .*bad\.pth: is not a whole PyTorch weights file"
    ):
        build(
            loads(TEXT.replace("weights: random", "weights: bad.pth"), name="r", folder=tmp_path),
            weights=lambda recipe: None,
        )


def test_own_code_is_built_from_its_file(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, width=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(768, width), nn.Linear(width, num_classes))\n"
        "class Gap(nn.Module):\n"
        "    def __init__(self, power: float | None = None):\n"
        "        super().__init__()\n"
        "        self.power = power\n"
        "    def forward(self, student, teacher): return (student - teacher).abs().pow(self.power).mean()\n"
    )
    text = TEXT.replace("arch: resnet8", "arch: mine.py:net, options: {width: 6}").replace(
        "- kd: {", "- mine.py:Gap: {"
    )
    text = text.replace("temperature", "power")
    built = build(loads(text, folder=tmp_path), weights=None)
    assert built.nodes["student"].module[1].out_features == 6
    assert built.edges[1].cls.__name__ == "Gap"
    assert built.edges[1].name == "Gap"
    assert built.edges[1].options["power"] == Schedule.parse({"linear": [8, 4]})


def test_own_code_in_a_package_is_looked_up_beside_the_recipe(tmp_path: Path, monkeypatch):
    package = tmp_path / "recipes" / "own_things"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(
        "from torch import nn\n"
        "def net(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.Linear(4, num_classes))\n"
    )
    (package / "losses.py").write_text(
        "from torch import nn\n"
        "class Gap(nn.Module):\n"
        "    def __init__(self, power: float = 2.0):\n"
        "        super().__init__()\n"
        "        self.power = power\n"
        "    def forward(self, student, teacher): return (student - teacher).abs().pow(self.power).mean()\n"
    )
    text = TEXT.replace("arch: resnet8", "arch: own_things.nets:net").replace("- kd: {", "- own_things.losses:Gap: {")
    recipe = tmp_path / "recipes" / "r.yaml"
    recipe.write_text(text.replace("temperature", "power"))
    monkeypatch.chdir(tmp_path)
    built = build(load(recipe), weights=None)
    assert built.edges[1].cls.__module__ == "own_things.losses"
    assert built.edges[1].options["power"] == Schedule.parse({"linear": [8, 4]})
    recipe.write_text(text.replace("temperature", "pwer"))
    with pytest.raises(RecipeError, match=r"r\.yaml:8: losses\.Gap\.pwer: unknown key 'pwer'; did you mean 'power'"):
        load(recipe)


@pytest.mark.parametrize(
    ("overrides", "right"),
    [
        (["models.student.options.widths=3"], r"^override '.*widths=3': models.student.options.widths: must be a list"),
        (["models.student.options={depht: 3}"], r"^override '.*{depht: 3}': .*options.depht: unknown key 'depht'"),
        (
            ["models.teacher.options.widths=[1]"],
            r"^r:3: models.teacher.options \(with override 'models.teacher.options.widths=\[1\]'\): resnet14",
        ),
        (
            ["models.teacher.options.in_chanels=3"],
            r"^override '.*in_chanels=3': models.teacher.options.in_chanels: .* did you mean 'in_channels'",
        ),
    ],
)  # fmt: skip
def test_options_that_do_not_suit_an_architecture_are_told_with_their_override(overrides, right):
    text = TEXT.replace("weights: random", "weights: random, options: {in_channels: 3}")
    with pytest.raises(RecipeError, match=right):
        build(loads(text, name="r", overrides=overrides), weights=None)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("edge 'kd': teacher has 10 classes and student 4", r"r:8: losses\.kd: teacher has 10 classes"),
        ("model 'student' (models: teacher, student): no tap 'slow.logits'", r"r:8: losses\.kd: model 'student'"),
        ("model 'student' (models: teacher, student): cannot run", r"r:4: models\.student: model 'student'"),
        ("the losses do not fit", "^r: the losses do not fit"),
    ],
)
def test_errors_of_the_graph_get_the_line_they_are_about(text, right):
    with pytest.raises(RecipeError, match=right), blaming(loads(TEXT, name="r")):
        raise KdkitError(text)
