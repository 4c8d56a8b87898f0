"""Protocols underneath, overrides on top."""

from pathlib import Path

import pytest

from kdkit.recipe import Recipe, RecipeError, build, load, loads
from kdkit.recipe.find import home
from kdkit.registry import KdkitError

TEXT = """\
protocol: cifar100_240
models:
  teacher: {arch: resnet56, weights: random}
  student: {arch: resnet20}
losses:
  - ce
  - kd: {weight: 0.9, temperature: 4}
  - kd: {name: warm, temperature: 8}
"""


def changed(*overrides: str) -> Recipe:
    return loads(TEXT, overrides=overrides)


def test_a_protocol_lies_underneath():
    recipe = changed()
    assert recipe.trainer.max_epochs == 240
    assert recipe.data.arguments == {"batch_size": 64}
    assert recipe.optimizer.arguments == {"momentum": 0.9, "weight_decay": 0.0005}
    assert recipe.lr == {"multistep": {"start": 0.05, "at": [0.625, 0.75, 0.875], "factor": 0.1}}
    assert recipe.origin.protocol == "cifar100_240"
    assert recipe.protocol is None


def test_the_recipes_words_win():
    recipe = loads(TEXT + "optimizer: {momentum: 0.8}\ntrainer: {max_epochs: 30}\nlr: {multistep: {start: 0.1}}\n")
    assert recipe.optimizer.arguments == {"momentum": 0.8, "weight_decay": 0.0005}
    assert recipe.trainer.max_epochs == 30
    assert recipe.lr["multistep"] == {"start": 0.1, "at": [0.625, 0.75, 0.875], "factor": 0.1}


def test_another_name_or_another_schedule_replaces_what_lies_underneath():
    recipe = loads(TEXT + "optimizer: {name: adamw}\nlr: {cosine: [0.1, 0]}\ndata: {name: digits}\n")
    assert recipe.optimizer.arguments == {}
    assert recipe.lr == {"cosine": [0.1, 0]}
    assert recipe.data.arguments == {}


def test_a_protocol_beside_the_recipe_comes_first(tmp_path: Path):
    words = "data: {name: digits}\noptimizer: {name: sgd}\nlr: 0.1\ntrainer: {max_epochs: 7}\n"
    (tmp_path / "cifar100_240.yaml").write_text(words)
    (tmp_path / "r.yaml").write_text(TEXT)
    assert load(tmp_path / "r.yaml").trainer.max_epochs == 7
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "cifar100_240.yaml").write_text(words.replace("7", "8"))
    assert load(tmp_path / "r.yaml").trainer.max_epochs == 8
    (tmp_path / "other.yaml").write_text(words.replace("7", "9"))
    assert load(tmp_path / "r.yaml", ["protocol=other.yaml"]).trainer.max_epochs == 9


def test_errors_in_a_protocol_name_its_line(tmp_path: Path):
    (tmp_path / "p.yaml").write_text("data: {name: digits}\noptimizer: {name: sgd, momentun: 0.9}\nlr: 0.1\n")
    with pytest.raises(
        RecipeError, match=r"p\.yaml:2: optimizer\.momentun: unknown key 'momentun'; did you mean 'momentum'"
    ):
        loads(TEXT, folder=tmp_path, overrides=["protocol=p", "trainer.max_epochs=3"])


@pytest.mark.parametrize(
    ("protocol", "right"),
    [
        ("cifar_240", r"recipe:1: protocol: no protocol is called 'cifar_240'; did you mean 'cifar100_240'"),
        ("none.yaml", r"recipe:1: protocol: .*none\.yaml: no such file"),
        ("[a]", r"recipe:1: protocol: must be a protocol's name or file, got \['a'\]"),
        ("nested.yaml", r"nested\.yaml:1: protocol: a protocol stands on no other"),
    ],
)
def test_protocols_that_are_not_there(protocol, right, tmp_path: Path):
    (tmp_path / "nested.yaml").write_text("protocol: cifar100_240\n")
    with pytest.raises(RecipeError, match=right):
        loads(TEXT.replace("cifar100_240", protocol), folder=tmp_path)


def test_overrides_reach_everything_by_name():
    recipe = changed(
        "trainer.max_epochs=30",
        "losses.kd.weight=0.5",
        "losses.warm.temperature={linear: [8, 2]}",
        "losses.ce.label_smoothing=0.1",
        "models.student.arch=resnet32",
        "models.student.lr=0.2",
        "data.root=/data",
        "trainer.precision=bf16-mixed",
        "seed=1",
    )
    ce, kd, warm = recipe.losses
    assert (ce.arguments, kd.weight, kd.arguments) == ({"label_smoothing": 0.1}, 0.5, {"temperature": 4.0})
    assert warm.arguments == {"temperature": {"linear": [8, 2]}}
    assert (recipe.models["student"].arch, recipe.models["student"].lr) == ("resnet32", 0.2)
    assert recipe.data.arguments == {"batch_size": 64, "root": "/data"}
    assert (recipe.trainer.max_epochs, recipe.trainer.precision, recipe.seed) == (30, "bf16-mixed", 1)


def test_a_number_sign_in_a_path_is_no_comment():
    assert changed("data.root=/data/set #1").data.arguments["root"] == "/data/set #1"
    assert changed('data.root="/data/set #2"').data.arguments["root"] == "/data/set #2"
    assert changed("optimizer={name: adamw} # mine").optimizer.name == "adamw"
    assert changed("trainer.max_epochs=3 # three").trainer.max_epochs == 3


def test_overrides_replace_whole_mappings_lists_and_schedules():
    recipe = changed(
        "optimizer={name: adamw, betas: [0.8, 0.9]}", "lr.cosine=[0.1, 0.0]", "losses=[ce, {kd: {weight: 2}}]"
    )
    assert recipe.optimizer.arguments == {"betas": (0.8, 0.9)}
    assert recipe.lr == {"cosine": [0.1, 0.0]}
    assert [(edge.loss, edge.weight) for edge in recipe.losses] == [("ce", 1.0), ("kd", 2.0)]
    assert changed("lr.multistep.start=0.1").lr["multistep"]["at"] == [0.625, 0.75, 0.875]
    assert changed("losses.kd={weight: 3}").losses[1].arguments == {}
    assert changed("models.slow={ema: student}").kind("slow") == "ema"
    assert changed("losses.kd.weight=1e-3").losses[1].weight == 0.001


@pytest.mark.parametrize(
    ("override", "right"),
    [
        (
            "trainer.max_epochs=x",
            r"override 'trainer.max_epochs=x': trainer.max_epochs: must be a whole number, got 'x'",
        ),
        ("trainer.max_epochs=2.5", "must be a whole number, got 2.5"),
        ("trainer.max_epoch=3", r"trainer.max_epoch: unknown key 'max_epoch'; did you mean 'max_epochs'"),
        ("trainer.channels_last=yes", "trainer.channels_last: must be true or false, got 'yes'"),
        ("trainer.precision=16", "must be '64-true', '32-true', 'bf16-mixed' or '16-mixed', got 16"),
        ("trainer.devices=0", "trainer.devices: must be 'auto' or at least 1 or a list, got 0"),
        ("trainer=3", "trainer: must be a mapping, got 3"),
        ("trainer.max_epochs", "must be key=value, such as trainer.max_epochs=30"),
        ("=3", "must be key=value"),
        ("a..b=3", "must be key=value"),
        ("seed=", "seed: must be a whole number, got nothing"),
        ("seed=-1", "seed: must be at least 0, got -1"),
        (
            "models.studnt.arch=resnet8",
            r"models.studnt: the recipe has no model 'studnt'; did you mean 'student'\? \(it has: teacher, student; "
            r"another one is given as a whole: models.studnt=\{arch: …\}\)",
        ),
        ("losses.crd.weight=1", r"losses.crd: the recipe has no loss 'crd'; did you mean .*'kd'|it has: ce, kd, warm"),
        (
            "losses.nope.weight=1",
            r"no loss 'nope' \(it has: ce, kd, warm; another one is added in the file, under `losses`\)",
        ),
        (
            "trainer.callbacks=[]",
            "trainer.callbacks: unknown key 'callbacks'; known: max_epochs.*a Trainer of your",
        ),
        ("lr.cosine=0.1", "override 'lr.cosine=0.1': lr: cosine: must be a mapping"),
        ("losses.warm.name=kd", "losses.kd.name: two losses are called 'kd'; give one of them a `name`"),
        ("losses.kd=3", r"losses.kd: must be options such as \{weight: 0.9\}, got 3"),
        ("losses.kd.weight.a=3", "losses.kd.weight: is 0.9 and has no 'a'; give it as a whole"),
        ("lr.multistep.at.0=0.5", "lr.multistep.at: is a list and has no '0'; give it as a whole"),
        ("data.batchsize=3", "data.batchsize: unknown key 'batchsize'; did you mean 'batch_size'"),
        (
            "data.name=cifar1000",
            r"override 'data.name=cifar1000': data.name: unknown data set 'cifar1000'; did you mean 'cifar100'",
        ),
        ("optimizer.name=sdg", r"optimizer.name: unknown optimizer 'sdg'; did you mean 'sgd'"),
        ("optimizer.lr=1", "unknown key 'lr'; the learning rate stands beside the optimizer, as `lr`"),
        ("max_epochs=3", "unknown key 'max_epochs'; it is a word of `trainer`: trainer: {max_epochs: …}"),
        ("health=true", "unknown key 'health'; it is a word of `cohort`: cohort: {health: …}"),
        ("optimizer.momentum=high", "optimizer.momentum: must be a number, got 'high'"),
        ("lr=[1", "override 'lr=\\[1': not YAML"),
        ("lr=!!python/name:os.system", "tags .* are refused"),
        ("lr=.nan", "lr: must be a number, got nan"),
        ("lr={cosin: [1, 0]}", "lr: unknown schedule 'cosin'; did you mean 'cosine'"),
        ("models.student=resnet20", "models.student: must be a mapping, got 'resnet20'"),
    ],
)
def test_overrides_that_are_wrong(override, right):
    with pytest.raises(RecipeError, match=right) as caught:
        changed(override)
    assert all(problem.line is None and override in problem.file for problem in caught.value.problems)


def test_a_new_name_that_knows_less_is_told_with_the_override_that_gives_the_whole():
    right = r"momentum: adamw has no 'momentum' \(override 'optimizer.name=adamw'\).*\"optimizer=\{name: adamw\}\""
    with pytest.raises(RecipeError, match=right):
        changed("optimizer.name=adamw")
    assert changed("optimizer={name: adamw}").optimizer.arguments == {}
    own = "models.student.optimizer"
    with pytest.raises(RecipeError, match=rf"\"{own}=\{{name: adamw\}}\""):
        loads(
            TEXT.replace("resnet20", "resnet20, optimizer: {name: sgd, momentum: 0.9}"), overrides=[f"{own}.name=adamw"]
        )
    with pytest.raises(RecipeError, match=r"optimizer\.momentum: unknown key 'momentum'; known: name, betas"):
        changed("optimizer={name: adamw, momentum: 0.9}")


def test_what_is_wrong_with_a_whole_names_the_overrides_that_changed_a_part():
    text = TEXT.replace("temperature: 8", "weight: {linear: {start: 1, end: 0}}")
    with pytest.raises(
        RecipeError, match=r"^recipe:8: losses.warm.weight \(with override '.*over=300'\): over: epoch 300"
    ):
        loads(text, overrides=["losses.warm.weight.linear.over=300"])
    with pytest.raises(RecipeError, match=r"^recipe:2: models \(with override 'models.student.frozen=true'"):
        changed("models.student.frozen=true", "models.student.weights=random")


def test_a_loss_named_twice_cannot_be_overridden_until_it_has_a_name():
    text = TEXT.replace("name: warm, ", "")
    with pytest.raises(RecipeError, match=r"losses.kd: 2 losses are called 'kd'; give each a `name`"):
        loads(text, overrides=["losses.kd.weight=1"])


def test_all_wrong_overrides_are_told_together():
    with pytest.raises(RecipeError) as caught:
        changed("trainer.max_epochs=x", "seed=y", "losses.kd.temprature=1")
    assert [problem.where for problem in caught.value.problems] == [
        "losses.kd.temprature",
        "seed",
        "trainer.max_epochs",
    ]
    assert str(caught.value).startswith("3 problems\n  1. override 'losses.kd.temprature=1'")


NETS = """\
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
"""


@pytest.mark.parametrize("word", ["arch", "options.backbone", "options.backbone={arch: FILE}", "weights"])
def test_files_of_an_override_lie_below_the_working_directory(word, tmp_path, monkeypatch):
    """Also with a packaged recipe, unless they lie beside the recipe; an error names where one would put them."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    file = "net.pth" if word == "weights" else "net.py:Net"
    key, _, value = word.partition("=")
    said = f"models.student.{key}={value.replace('FILE', file) or file}"

    def found(recipe):
        options = recipe.models["student"].options
        inner = options["backbone"] if "backbone" in word else getattr(recipe.models["student"], word)
        return inner["arch"] if isinstance(inner, dict) else inner

    missing = str(tmp_path / "here" / file.partition(":")[0])
    with pytest.raises(KdkitError) as caught:
        build(load("sid_cifar100", [said]), weights=None)
    assert missing in str(caught.value)
    (tmp_path / "r.yaml").write_text((home() / "sid_cifar100.yaml").read_text())
    for folder in (tmp_path / "here", tmp_path):  # below the working directory; beside the recipe
        (folder / file.partition(":")[0]).write_text(NETS)
        assert found(load(tmp_path / "r.yaml", [said])) == str(folder / file)
    assert found(load("sid_cifar100", [said])) == str(tmp_path / "here" / file)
