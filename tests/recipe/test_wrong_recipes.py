# ruff: noqa: E501  one mistake a line
"""A recipe that is wrong: each mistake with its line, what was found, what would be right, and the nearest word."""

from pathlib import Path

import pytest
import torch

from kdkit.recipe import RecipeError, load, loads

TEXT = """\
data: {name: digits}
models:
  teacher: {arch: resnet20, weights: random}
  student: {arch: resnet8}
losses:
  - ce
  - kd:
      weight: 0.9
      temperature: 4
optimizer: {name: sgd}
lr: 0.1
trainer: {max_epochs: 10}
"""
TEACHER, STUDENT = "teacher: {arch: resnet20, weights: random}", "student: {arch: resnet8}"


def problems(text: str, folder: Path | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        loads(text, name="r.yaml", folder=folder)
    return [str(problem) for problem in caught.value.problems]


def test_the_recipe_that_the_others_spoil_is_right():
    recipe = loads(TEXT)
    assert [recipe.kind(name) for name in recipe.models] == ["frozen", "trained"]
    assert loads(TEXT.replace("weight: 0.9", "head: none")).losses[1].edge().head is None
    loads(TEXT.replace("weight: 0.9", "weight: 1.0e+12").replace("lr: 0.1", "lr: 10000"))  # the largest that are taken
    loads(TEXT.replace("weight: 0.9", "taps: teachers"))  # a place in a model may be called anything
    loads(TEXT.replace("max_epochs: 10", "max_epochs: 10, limit_val_batches: 0"))  # none are looked at


def test_whoever_is_called_a_teacher_is_frozen_unless_it_says_otherwise():
    words = {"teacher_b": "{arch: resnet8, weights: random}", "teacher2": "{arch: resnet8, frozen: false}"}
    words |= {"mentor": "{arch: resnet8, weights: random, frozen: true}", "slow": "{ema: student, image_size: 8}"}
    recipe = loads(TEXT.replace(STUDENT, "\n  ".join([STUDENT, *(f"{name}: {said}" for name, said in words.items())])))
    kinds = [recipe.kind(name) for name in recipe.models]
    assert kinds == ["frozen", "trained", "frozen", "trained", "frozen", "ema"]
    assert recipe.models["slow"].image_size == 8


@pytest.mark.parametrize(
    ("found", "instead", "line", "right"),
    [
        # words
        ("lr: 0.1", "lr: 0.1\nseeds: 3", 12, "seeds: unknown key 'seeds'; it is a word of a suite, which `kdkit bench` runs"),
        ("lr: 0.1", "lr: 0.1\nlosess: []", 12, "losess: unknown key 'losess'; did you mean 'losses'"),
        ("weight: 0.9", "weigth: 0.9", 8, "losses.kd.weigth: unknown key 'weigth'; did you mean 'weight'"),
        ("temperature: 4", "temprature: 4", 9, "losses.kd.temprature: unknown key 'temprature'; did you mean 'temperature'?"),
        ("arch: resnet8", "arhc: resnet8", 4, "models.student.arhc: unknown key 'arhc'; did you mean 'arch'?"),
        ("- ce", "- cee", 6, "losses.cee: unknown loss 'cee'; did you mean 'ce'"),
        ("- ce", "- ce: {loss: 1}", 6, "losses.ce: unknown key 'loss'; the loss is the word before the colon"),
        ("resnet8", "teacher_digits", 4, "models.student.arch: teacher_digits is a recipe; say which net it trains, and it as the"),
        ("resnet8", "resnet9", 4, "models.student.arch: unknown model 'resnet9'; did you mean 'resnet8'"),
        ("trainer: {max_epochs: 10}", "trainer: {epochs: 10}", 12, "trainer.epochs: unknown key 'epochs'; did you mean 'max_epochs'?"),
        ("name: sgd", "name: SGD", 10, "optimizer.name: unknown optimizer 'SGD'; did you mean 'sgd' or 'asgd'?"),
        ("name: sgd", "name: sgd, momentun: 1", 10, "optimizer.momentun: unknown key 'momentun'; did you mean 'momentum'?"),
        ("name: digits", "name: digits, rot: x", 1, "data.rot: unknown key 'rot'; did you mean 'root'"),
        ("name: digits", "root: x", 1, "data.name: must be given"),
        ("lr: 0.1\n", "", 1, "lr: must be given, such as 0.05, or a schedule; 'student' has none of its own"),
        ("arch: resnet8", "weights: random", 4, "models.student: arch must be given, such as {arch: resnet20}"),
        ("weight: 0.9", "head: linaer", 8, "losses.kd.head: unknown head 'linaer'; did you mean 'linear'"),
        # values
        ("temperature: 4", "temperature: four", 9, "losses.kd.temperature: must be a number, got 'four'; a schedule"),
        ("weight: 0.9", "weight: {share: 1}", 8, "losses.kd.weight: a share must lie between 0 and 1, got 1"),
        ("weight: 0.9", "weight: {shar: 0.5}", 8, "losses.kd.weight: unknown schedule 'shar'; did you mean 'share'?"),
        ("weight: 0.9", "weight: {share: 0.5}\n      clip: 1", 7, "share and clip both say how hard it pulls"),
        ("temperature: 4", "temperature: {share: 0.5}", 9, "losses.kd.temperature: unknown schedule 'share'"),
        ("temperature: 4", "temperature: '4'", 9, "losses.kd.temperature: must be a number, got '4'"),
        ("temperature: 4", "temperature: true", 9, "losses.kd.temperature: must be a number, got True"),
        ("weight: 0.9", "weight: -0.9", 8, "losses.kd.weight: must be at least 0 all the time, got -0.9"),
        ("weight: 0.9", "weight: {linear: [1, -1]}", 8, "losses.kd.weight: must be at least 0 all the time, got -1"),
        ("weight: 0.9", "{from: teacher.stage2, taps: stage1}".strip("{}").replace(", ", "\n      "), 9, "losses.kd.taps: `taps` says where both ends are read, and 'teacher.stage2' names a tap of its own"),
        ("weight: 0.9", "weight: {cosine: [1]}", 8, "losses.kd.weight: cosine: must be [start, end], got [1]"),
        ("weight: 0.9", "weight: {cosine: [null, 0]}", 8, "losses.kd.weight: cosine.start must be a finite number, got None"),
        ("weight: 0.9", "weight: {exp: {start: 1, rate: -1e6}}", 8, "losses.kd.weight: exp(start=1.0, rate=-1000000.0, by=epoch): grows beyond all numbers"),
        ("weight: 0.9", "when: {from: 4, til: 6}", 8, "losses.kd.when: unknown word 'til'"),
        ("weight: 0.9", "ensemble: mean", 8, "losses.kd.ensemble: must be 'arithmetic' or 'geometric', got 'mean'"),
        ("weight: 0.9", "taps: [1]", 8, "losses.kd.taps.0: must be text, got 1"),
        ("weight: 0.9", "name: a.b", 8, "losses.a.b.name: must be a name without '.', got 'a.b'"),
        ("- ce", "- ce: {label_smoothing: 10}", 6, "losses.ce.label_smoothing: must lie in [0, 1], got 10.0"),
        ("  - ce\n", "  - [ce]\n", 6, "losses: an entry must be a loss such as `kd` or `kd: {weight: 0.9}`, got ['ce']"),
        ("  - kd:\n      weight: 0.9\n      temp", "  - kd:\n    weight: 0.9\n    temp", 7, "losses: an entry must be one loss, got kd, weight, temperature"),
        ("lr: 0.1", "lr: -0.1", 11, "lr: must be at least 0 all the time, got -0.1"),
        ("lr: 0.1", "lr: 1.0e+30", 11, "lr: must be at most 10000 all the time, got 1e+30"),
        ("lr: 0.1", "lr: {warmup: {to: 20000, over: 5}}", 11, "lr: must be at most 10000 all the time, got 20000"),
        ("resnet8}", "resnet8, lr: 10001}", 4, "models.student.lr: must be at most 10000 all the time, got 10001"),
        ("random}", "random, tune: {epochs: 2, lr: 1.0e+9}}", 3, "models.teacher.tune.lr: must be at most 10000 all the time, got 1e+09"),
        ("weight: 0.9", "weight: 1.0e+300", 8, "losses.kd.weight: must be at most 1e+12 all the time, got 1e+300"),
        ("arch: resnet8", "arch: resnet8, mean: [0.5]", 4, "models.student: mean and std go together"),
        ("arch: resnet8", "arch: resnet8, decay: 0.9", 4, "models.student: decay belongs to a slow copy"),
        ("weight: 0.9", "clip: {linear: [1, -1]}", 8, "losses.kd.clip: must be at least 0 all the time, got -1"),
        ("max_epochs: 10", "max_epochs: 10, gradient_clip_val: 0.0", 12, "trainer.gradient_clip_val: must be above 0, got 0.0"),
        # the graph
        ("temperature: 4", "temperature: -1", 9, "losses.kd.temperature: must be a number above 0, got -1.0"),
        ("temperature: 4", "temperature: 0", 9, "losses.kd.temperature: must be a number above 0, got 0.0"),
        ("temperature: 4", "temperature: {linear: [4, -1]}", 9, "losses.kd.temperature: must be a number above 0, got -1.0"),
        ("- ce", "- ce: {label_smoothing: {linear: [0, 2]}}", 6, "losses.ce.label_smoothing: must lie in [0, 1], got 2.0"),
        ("lr: 0.1", "lr: {multistep: {start: 1, at: [5, 20]}}", 11, "lr: at: epoch 20 never comes in a run of 10 epochs"),
        ("weight: 0.9", "weight: {cosine: {start: 1, end: 0, over: 30}}", 8, "losses.kd.weight: over: epoch 30 never comes"),
        ("temperature: 4", "temperature: {multistep: {start: 4, at: [20]}}", 9, "losses.kd.temperature: at: epoch 20 never comes"),
        ("weight: 0.9", "when: {from: 12}", 8, "losses.kd.when: when.from: epoch 12 never comes in a run of 10 epochs"),
        ("arch: resnet8", "arch: resnet8, when: {from: 12}", 4, "models.student.when: when.from: epoch 12 never comes"),
        ("weight: 0.9", "from: stages:preat", 8, "losses.kd.from: unknown side 'preat' of 'stages:preat'; did you mean 'preact'"),
        ("weight: 0.9", "from: techer.stage2", 8, "losses.kd.from: no model is called 'techer'; did you mean 'teacher'?"),
        ("weight: 0.9", "to: teacher", 8, "losses.kd.to: 'teacher' is frozen and cannot learn"),
        ("weight: 0.9", "to: [student.logits, student.logits]\n      from: [teacher, teacher, teacher]", 8, "3 sources"),
        ("- ce", "- ce: {from: teacher}", 6, "losses.ce.from: this loss reads no teacher; leave out `from`"),
        ("- ce", "- dml: {among: [student]}", 6, "losses.dml.among: among must name at least two different models, got ['student']"),
        ("- ce", "- dml: {among: [student, teacher]}", 6, "losses.dml.among: 'teacher' is frozen; peers are trained models"),
        ("- ce", "- dml: {among: [student, peer]}", 6, "losses.dml.among: no model is called 'peer'; did you mean 'teacher'?"),
        ("- ce", "- dml: {among: [student], from: teacher}", 6, "losses.dml.among: `among` already says who teaches whom"),
        ("- ce", "- kd", 7, "losses.kd: two losses are called 'kd'; give one of them a `name`"),
        (TEACHER, "", 7, "losses.kd: who teaches? none of the models (student) is called 'teacher' or is the only frozen one"),
        (TEACHER, "a: {arch: resnet8, weights: random, frozen: true}\n  b: {arch: resnet8, weights: random, frozen: true}", 8, "losses.kd: who teaches?"),
        ("weights: random}", "frozen: false}", 7, "losses.kd: teacher.logits cannot teach itself"),
        ("arch: resnet8", "arch: resnet8, weights: random, frozen: true", 2, "models: no model is trained; say `frozen: false`"),
        (STUDENT, STUDENT + "\n  idle: {arch: resnet8}\n  slow: {ema: idle}", 8, ""),
        (", weights: random", "", 3, "models.teacher: teacher is frozen and has no weights; give it `weights:`"),
        ("random}", "random, lr: 0.1}", 3, "models.teacher.lr: teacher is frozen and takes no lr"),
        ("random}", "random, optimizer: {name: sgd}}", 3, "models.teacher.optimizer: teacher is frozen and takes no optimizer"),
        ("random}", "random, when: {from: 1}}", 3, "models.teacher.when: teacher is frozen and takes no when"),
        ("resnet8}", "resnet8, cache: true}", 4, "models.student.cache: student learns, so what it says changes and cannot be cached"),
        ("resnet8}", "resnet8, tune: {epochs: 3, lr: 0.1}}", 4, "models.student.tune: tune fits a frozen model"),
        ("random}", "random, tune: {epochs: 0, lr: 0.1}}", 3, "models.teacher.tune.epochs: must be at least 1, got 0"),
        ("random}", "random, tune: {epoch: 2, lr: 0.1}}", 3, "models.teacher.tune.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
        (STUDENT, STUDENT + "\n  slow: {ema: studnt}", 5, "models.slow.ema: must name a trained model, got 'studnt'; did you mean 'student'?"),
        (STUDENT, STUDENT + "\n  slow: {ema: teacher}", 5, "models.slow.ema: must name a trained model, got 'teacher'"),
        (STUDENT, STUDENT + "\n  slow: {ema: student, arch: resnet8}", 5, "models.slow: a slow copy of 'student' takes no arch"),
        (STUDENT, STUDENT + "\n  slow: {ema: student, decay: 1.5}", 5, "models.slow.decay: must be at most 1 all the time, got 1.5"),
        (STUDENT, STUDENT + "\n  a-b: {ema: student}", 5, "models.a-b: a model's name must be a plain word, got 'a-b'"),
        # weights
        ("weights: random", "weights: none.pth", 3, "models.teacher.weights: the weights file"),
        ("weights: random", "weights: last.ckpt", 3, "models.teacher.weights: the weights file"),
        ("weights: random", "weights: model.bin", 3, "models.teacher.weights: the weights file"),
        ("weights: random", "weights: teacher_digit", 3, "models.teacher.weights: no weights from 'teacher_digit': teacher_digit: no recipe has this name; did you mean 'teacher_digits'"),
        ("weights: random", "weights: pretrained", 3, "models.teacher.weights: there are no published weights of resnet20 to fetch"),
        ("weights: random", "weights: dml_cifar100", 3, "must train one model to give weights, got student, peer"),
    ],
)  # fmt: skip
def test_one_mistake(found, instead, line, right):
    text = TEXT.replace(found, instead, 1)
    assert text != TEXT
    if right:
        told = problems(text)
        assert len(told) == 1, told
        assert told[0].startswith(f"r.yaml:{line}: "), told
        assert right in told[0]
    else:  # a model that no loss names is reached by all of them
        loads(text)


def test_a_trained_model_that_no_loss_reaches():
    told = problems(
        TEXT.replace("- ce", "- ce: {to: student}")
        .replace("weight: 0.9", "to: student")
        .replace(STUDENT, f"{STUDENT}\n  idle: {{arch: resnet8}}")
    )
    assert told == ["r.yaml:5: models.idle: is trained, but no loss reaches it; name it in a loss's `to`"]


def test_nor_one_that_only_teaches():
    text = TEXT.replace("- ce", "- ce: {to: student}").replace("weight: 0.9", "from: peer\n      to: student")
    told = problems(text.replace(STUDENT, f"{STUDENT}\n  peer: {{arch: resnet8}}"))
    assert told == ["r.yaml:5: models.peer: is trained, but no loss reaches it; name it in a loss's `to`"]


def test_what_is_missing_altogether():
    assert problems("seed: 1") == [
        "r.yaml:1: models: must be given, such as {student: {arch: resnet20}}",
        "r.yaml:1: losses: must be given, such as [ce]",
        "r.yaml:1: data: must be given, such as {name: cifar100}; or a `protocol` brings it",
        "r.yaml:1: trainer: must be given, such as {max_epochs: 30}; or a `protocol` brings it",
    ]


def test_every_section_of_the_wrong_kind():
    told = problems(
        "models: [a]\nlosses: ce\ndata: 3\noptimizer: sgd\nlr: fast\ntrainer: {}\nstages: 3\nseed: 1.5\nprotocol:\n"
    )
    assert told == [
        "r.yaml:1: models: must be a mapping, got ['a']",
        "r.yaml:2: losses: must be a list, got 'ce'",
        "r.yaml:3: data: must be a mapping such as {name: …}, got 3",
        "r.yaml:4: optimizer: must be a mapping such as {name: …}, got 'sgd'",
        "r.yaml:5: lr: must be a number, got 'fast'; a schedule such as {cosine: [1.0, 0.0]} is right too",
        "r.yaml:6: trainer.max_epochs: must be given, such as 30",
        "r.yaml:7: stages: must be a list, got 3",
        "r.yaml:8: seed: must be a whole number, got 1.5",
    ]


def test_all_problems_of_a_stage_are_told_together_in_the_order_of_their_lines():
    text = (
        TEXT.replace("arch: resnet8", "arhc: resnet8")
        .replace("temperature: 4", "temperature: four")
        .replace("lr: 0.1", "lr: fast")
    )
    told = problems(text)
    assert [line.split(": ")[0] for line in told] == ["r.yaml:4", "r.yaml:9", "r.yaml:11"]
    text = (
        TEXT.replace("temperature: 4", "temperature: -4")
        .replace("- ce", "- ce: {label_smoothing: 2}")
        .replace("lr: 0.1", "lr: {cosine: {start: 1, end: 0, over: 99}}")
    )
    assert [line.split(": ")[1] for line in problems(text)] == [
        "losses.ce.label_smoothing",
        "losses.kd.temperature",
        "lr",
    ]


def test_both_ends_of_every_schedule_are_tried_and_every_argument_judged():
    text = (
        TEXT.replace("- kd:", "- rkd:")
        .replace("weight: 0.9", "distance_weight: {linear: [-1, 5]}")
        .replace("temperature: 4", "angle_weight: {linear: [5, -2]}")
    )
    told = problems(text)
    assert "losses.rkd.distance_weight: must be a number of at least 0, got -1.0" in told[0]
    assert "losses.rkd.angle_weight: must be a number of at least 0, got -2.0" in told[1]


def test_recipes_that_wait_for_each_other(tmp_path: Path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(TEXT.replace("weights: random", f"weights: {other}"))
    with pytest.raises(RecipeError, match=r"waits for itself: a → b → a"):
        load(tmp_path / "a.yaml")


def test_a_wrong_teachers_recipe_is_told_with_its_own_line(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(TEXT.replace("temperature: 4", "temperature: -1"))
    told = problems(TEXT.replace("weights: random", "weights: mine"), tmp_path)
    assert told[0].startswith("r.yaml:3: models.teacher.weights: no weights from")
    assert "mine.yaml:9: losses.kd.temperature: must be a number above 0" in told[0]


def test_a_run_where_its_weights_are_wanted_tells_their_name(tmp_path: Path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "student.safetensors").touch()
    [told] = problems(TEXT.replace("weights: random", "weights: runs/one"), tmp_path)
    assert told.endswith("runs/one is a folder; name a file in it: student.safetensors")


def test_an_unknown_recipe_offers_the_nearest(tmp_path: Path, monkeypatch):
    with pytest.raises(RecipeError, match="crd_cifar10: no recipe has this name; did you mean 'crd_cifar100'"):
        load("crd_cifar10")
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(TEXT)
    with pytest.raises(RecipeError, match=r"did you mean mine\.yaml\? A file is given with its ending"):
        load("mine")
    assert load("mine.yaml").name == "mine"
    with pytest.raises(RecipeError, match=r"recipes/kd_digits\.yml: no such file; the packaged .* name, kd_digits$"):
        load("recipes/kd_digits.yml")
    Path("kd_digits.yaml").write_text(TEXT)
    assert load("kd_digits.yaml").origin.folder == Path()


OWN = """\
from torch import nn

class Mine(nn.Module):
    tap = "embedding"

    def __init__(self, student_dim: int, power: float = 2.0, mode="mean", sizes: tuple[int, ...] = (1,)):
        super().__init__()
        if power <= 0:
            raise ValueError(f"mine: power must be above 0, got {power}")

    def forward(self, student, teacher):
        return (student - teacher).abs().mean()

class Plain(Mine):
    def __init__(self, student_dim: int, power: float = 2.0):
        nn.Module.__init__(self)
        if power <= 0:
            raise ValueError("the power has to be above 0")

class Levels(nn.Module):
    tap = ("stages", "embedding")

    def __init__(self, student_dims, teacher_dims, power: float = 2.0):
        super().__init__()
        if power <= 0:
            raise ValueError(f"levels: power must be above 0, got {power}")
        if len(student_dims) != 4:
            raise ValueError("levels: four of them")
        first, *_, last = student_dims
        a, b, c, d = student_dims

    def forward(self, students, teachers):
        return sum((s - t).abs().mean() for s, t in zip(students, teachers))

class Foreign(nn.Module):
    def forward(self, student, techer):
        return student.sum()

notes = 3
"""


@pytest.mark.parametrize(
    ("loss", "right"),
    [
        ("mine.py:Mine: {power: -1}", "losses.Mine.power: must be above 0, got -1.0"),
        ("crd: {head: lineal}", "losses.crd.head: must be 'linear' or 'mlp', got 'lineal'"),
        ("mine.py:Plain: {power: -1}", "losses.Plain: the power has to be above 0"),
        ("mine.py:Levels: {power: -1}", "losses.Levels.power: must be above 0, got -1.0"),
        ("mine.py:Mine: {power: {linear: [1, -1]}}", "losses.Mine.power: must be above 0, got -1.0"),
        ("mine.py:Mine: {mode: 3}", "losses.Mine.mode: must be text, got 3"),
        ("mine.py:Mine: {sizes: [1, a]}", "losses.Mine.sizes.1: must be a whole number, got 'a'"),
        ("mine.py:Mine: {pwer: 1}", "losses.Mine.pwer: unknown key 'pwer'; did you mean 'power'"),
        ("mine.py:Mine: {student_dim: 1}", "losses.Mine.student_dim: unknown key 'student_dim'"),
        ("mine.py:Mien", "has no 'Mien'; did you mean 'Mine'"),
        ("mine.py:Foreign", "Foreign.forward asks for 'techer'; did you mean 'teacher'"),
        ("mine.py:notes", "must be a class or a function"),
        ("none.py:Mine", "none.py: no such file"),
        ("no.such.package:Mine", "no.such.package: no such module"),
    ],
)
def test_losses_of_ones_own(loss, right, tmp_path: Path):
    (tmp_path / "mine.py").write_text(OWN)
    told = problems(TEXT.replace("- ce", f"- {loss}"), tmp_path)
    assert len(told) == 1
    assert told[0].startswith("r.yaml:6: losses.")
    assert right in told[0]


def test_a_loss_that_looks_at_its_levels_is_left_to_the_graph(tmp_path: Path):
    (tmp_path / "mine.py").write_text(OWN)
    recipe = loads(TEXT.replace("- ce", "- mine.py:Levels: {power: 3}"), name="r.yaml", folder=tmp_path)
    assert recipe.losses[0].arguments == {"power": 3.0}


def test_to_read_a_recipe_draws_nothing(tmp_path: Path):
    seeding = OWN.replace(
        "        super().__init__()\n        if",
        "        super().__init__()\n        torch.manual_seed(7)\n        if",
        1,
    )
    (tmp_path / "mine.py").write_text(f"import torch\n{seeding}")
    before = torch.get_rng_state()
    loads(TEXT.replace("- ce", "- mine.py:Mine: {power: 3}"), folder=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_strangers_recipe_runs_none_of_its_code(tmp_path: Path):
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{OWN}")
    (tmp_path / "r.yaml").write_text(
        TEXT.replace("- ce", "- mine.py:Mine").replace("arch: resnet8", "arch: mine.py:Net")
    )
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "r.yaml", allow_custom=False)
    assert [problem.where for problem in caught.value.problems] == ["models.student.arch", "losses.Mine"]
    assert "brings its own code" in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("data", ["name: digits", "name: digits, root: data"])
def test_nor_that_of_a_teachers_recipe(data, tmp_path: Path):
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{OWN}")
    (tmp_path / "t.yaml").write_text(TEXT.replace("- ce", "- mine.py:Mine"))
    (tmp_path / "r.yaml").write_text(TEXT.replace("weights: random", "weights: t").replace("name: digits", data))
    with pytest.raises(RecipeError, match="brings its own code"):
        load(tmp_path / "r.yaml", allow_custom=False)
    assert not (tmp_path / "ran").exists()


def test_a_milestone_of_tuning_is_one_of_its_own_epochs():
    text = TEXT.replace("random}", "random, tune: {epochs: 30, lr: {multistep: {start: 0.1, at: [20]}}}}")
    assert loads(text).models["teacher"].tune.epochs == 30
    assert problems(text.replace("30", "3")) == [
        "r.yaml:3: models.teacher.tune.lr: at: epoch 20 never comes in a run of 3 epochs; give an earlier one or a "
        "share below 1"
    ]


@pytest.mark.parametrize(
    ("words", "right"),
    [
        ("models: {student: {arch: resnet8}, slow: {ema: student, when: {from: 3}}}", "takes no when"),
        (
            "models: {student: {arch: resnet8}}\ntrainer: {limit_train_batches: 0}",
            "trainer.limit_train_batches: must be",
        ),
        (
            "models: {student: {arch: resnet8}}\ntrainer: {limit_train_batches: 1.5}",
            "trainer.limit_train_batches: must be",
        ),
    ],
)
def test_what_would_be_ignored_or_train_nothing(words, right):
    with pytest.raises(RecipeError, match=right):
        loads(f"protocol: digits_20\nlosses: [ce]\n{words}\n")
