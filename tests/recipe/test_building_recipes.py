"""From a recipe to models, losses and data."""

from pathlib import Path

import pytest
import torch

from kdkit import models
from kdkit.graph import Schedule, Span
from kdkit.graph.health import Rule
from kdkit.graph.membership import Plan
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
    assert (built.datamodule.num_classes, built.datamodule.seed) == (4, 3)


def test_a_node_has_its_models_words():
    words = "image_size: 8, input: 1, mean: [0.1, 0.2, 0.3], std: [1, 2, 3]"
    text = TEXT.replace("resnet8,", f"resnet8, {words}, when: {{from: 2}},").replace(", decay: 0.99", "")
    nodes = build(loads(text), weights=None).nodes
    student, slow = nodes["student"], nodes["slow"]
    assert (student.image_size, student.input, student.when) == (8, 1, Span(2))
    assert (student.mean, student.std) == ((0.1, 0.2, 0.3), (1, 2, 3))
    assert (slow.decay, slow.cache, nodes["teacher"].cache) == (0.999, False, False)
    kept = build(loads(text, overrides=["models.teacher.cache={by: epochs, top_k: 2}"]), weights=None).nodes["teacher"]
    assert kept.cache == {"by": "epochs", "top_k": 2}


def test_an_edge_has_its_losses_words():
    words = "gather: true, clip: 2, ensemble: geometric, when: {to: 3}, taps: logits, weight: 2"
    text = TEXT[: TEXT.index("  - kd")] + f"  - kd: {{{words}, from: [teacher, slow], to: student, name: soft}}\n"
    edge = build(loads(text + TEXT[TEXT.index("optimizer: {name: sgd") :]), weights=None).edges[1]
    assert (edge.name, edge.gather, edge.clip, edge.ensemble) == ("soft", True, Schedule.parse(2), "geometric")
    assert (edge.when, edge.taps, edge.weight) == (Span(end=3), "logits", Schedule.parse(2))


def test_a_loss_without_a_weight_has_the_one_of_its_reduction():
    words = "- ce: {label_smoothing: 0.1}\n  - at\n  - kdkit.losses:ATLoss\n  - at: {name: light, weight: 2}"
    recipe = loads(TEXT.replace("- ce: {label_smoothing: 0.1}", words))
    assert [edge.weight for edge in recipe.losses[:4]] == [1, 1000, 1000, 2]


def test_a_cohort_has_its_words():
    cohort = "cohort: {join: {student: {epoch: 2, warmup: 1}}, leave: {peer: {epoch: 8}}, ramp: 3, health: HEALTH}\n"
    text = TEXT.replace("teacher:", "peer:") + cohort
    built = build(loads(text.replace("HEALTH", "{patience: 4}")), weights=None)
    assert built.cohort == Plan({"student": {"epoch": 2, "warmup": 1}}, {"peer": {"epoch": 8}}, 3)
    assert built.health == Rule(patience=4)
    assert build(loads(text.replace("HEALTH", "true")), weights=None).health == Rule()
    assert build(loads(text.replace("HEALTH", "false")), weights=None).health is None
    with pytest.raises(RecipeError, match=r"cohort\.health: all models of a run in fp16 share one loss scale"):
        loads(text.replace("HEALTH", "true"), overrides=["trainer.precision=16-mixed"])
    with pytest.raises(RecipeError, match="cohort: a cohort has at least two trained models, got student"):
        loads(TEXT + "cohort: {health: true}\n")


def test_weights_from_a_file_bring_the_input_of_their_architecture(tmp_path: Path):
    with models.seeded(1, "x"):
        models.save_weights(models.build("timm/test_resnet", num_classes=4), tmp_path / "t.safetensors")
    text = TEXT.replace("arch: resnet14", "arch: timm/test_resnet")
    of_file = loads(text.replace("weights: random", "weights: t.safetensors"), folder=tmp_path)
    assert build(of_file, weights=lambda recipe: None).nodes["teacher"].mean == (0.5, 0.5, 0.5)
    assert build(loads(text), weights=None).nodes["teacher"].mean is None


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


def test_a_teacher_has_the_classes_that_it_was_trained_on(tmp_path: Path):
    asked = []

    def classes(teacher: str) -> int:
        text = TEXT.replace("{arch: resnet14, weights: random}", teacher)
        built = build(loads(text, folder=tmp_path), weights=asked.append)  # what is tuned is not fetched either
        return built.nodes["teacher"].module(torch.zeros(2, 3, 16, 16)).shape[1]

    (tmp_path / "t.yaml").write_text(
        "data: {name: fake, classes: 7, shape: [3, 16, 16]}\nmodels: {t: {arch: resnet14}}\nlosses: [ce]\n"
        "optimizer: {name: sgd}\nlr: 0.1\ntrainer: {max_epochs: 1}\n"
    )
    assert classes("{arch: resnet14, weights: t}") == 7
    assert classes("{arch: resnet14, weights: t, tune: {epochs: 1, lr: 0.1}}") == 4
    assert classes("{arch: timm/test_resnet, weights: pretrained, tune: {epochs: 1, lr: 0.1}}") == 4
    assert [recipe.name for recipe in asked] == ["t", "tune_resnet14_fake", "tune_test_resnet_fake"]


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

    with models.seeded(1, "x"):
        slim = models.build("resnet8", num_classes=7, widths=[4, 4, 8, 8])
    models.save_weights(slim, tmp_path / "slim.safetensors")
    text = TEXT.replace("arch: resnet8", "arch: resnet8, options: {widths: [4, 4, 8, 8]}, weights: slim.safetensors")
    student = build(loads(text, folder=tmp_path), weights=lambda recipe: None).nodes["student"].module
    assert torch.equal(student.layer3[0].conv1.weight, slim.layer3[0].conv1.weight)


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
