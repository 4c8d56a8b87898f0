"""Suites become recipes; what is wrong is told with its line."""

import pickle
from functools import wraps
from pathlib import Path

import pytest

from kdkit.bench import methods
from kdkit.bench.expand import expand
from kdkit.bench.suite import load_suite
from kdkit.losses import RKDLoss
from kdkit.recipe import RecipeError, RecipeInfo, content_key, load, packaged, source, syntax
from kdkit.recipe.write import document
from tests.bench.grid import TINY, write

SUITES = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.yaml"))
METHODS = "methods: [student, kd]\n"


def cells(folder, text=TINY, overrides=()):
    return expand(load_suite(write(folder, text), overrides), folder / "teachers")


def refused(folder, text, *words):
    with pytest.raises(RecipeError) as error:
        cells(folder, text)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_a_grid_in_the_order_of_need(tmp_path):
    made = cells(tmp_path)
    assert [(c.method, c.seed) for c in made] == [("teacher", 0), ("student", 0), ("kd", 0), ("student", 1), ("kd", 1)]
    assert len({c.content for c in made}) == 5
    assert len({c.column for c in made}) == 1
    teacher, student, kd, *_ = made
    assert kd.needs == teacher.content
    assert student.needs is None
    assert list(student.recipe.models) == ["student"]
    assert content_key(source(kd.recipe, "teacher")) == teacher.content
    assert teacher.recipe.trainer.max_epochs == 2
    assert teacher.protocol_epochs == 20
    assert kd.content == content_key(kd.recipe)


def test_a_name_means_the_packaged_losses_between_the_pairs_models(tmp_path):
    text = TINY.replace("[student, kd]", "[crd, dml, sid, kd]")
    by = {c.method: document(c.recipe) for c in cells(tmp_path, text)}
    assert by["crd"]["losses"] == document(load("crd_cifar100"))["losses"]
    assert by["kd"]["losses"] == document(load("kd_digits"))["losses"]
    assert by["dml"]["models"]["peer"] == by["dml"]["models"]["student"] == by["crd"]["models"]["student"]
    assert by["sid"]["models"]["student"]["options"]["backbone"] == {"arch": "resnet8", "widths": [4, 4, 8, 16]}


def test_what_else_is_the_methods_comes_along(tmp_path, monkeypatch):
    recipe = tmp_path / "two_cifar100.yaml"
    recipe.write_text(
        "# two\nprotocol: cifar100_240\n"
        "models: {teacher: {arch: resnet56, weights: random}, student: {arch: resnet20}}\n"
        "stages: [{name: first, epochs: 0.5, losses: [hint]}, {name: second, losses: [ce, kd]}]\n"
        "trainer: {update: sequential}\n"
    )
    known = [*packaged(), RecipeInfo("two_cifar100", recipe, "two")]
    monkeypatch.setattr(methods, "packaged", lambda: known)
    by = {c.method: c.recipe for c in cells(tmp_path, TINY.replace("kd]", "two]"))}
    assert document(by["two"])["stages"] == document(load(recipe))["stages"]
    assert document(by["two"])["losses"] == document(load(recipe))["losses"]
    assert by["two"].trainer.update == "sequential"
    assert by["two"].trainer.max_epochs == 2


OWN = "from torch import nn\n\n\nclass Mine(nn.Module):\n    def forward(self, student): return student.mean()\n"
MINE = """protocol: cifar100_240
models:
  teacher: {arch: resnet56, weights: random}
  student: {arch: resnet20, when: {to: 0.9}}
  peer: {arch: resnet20}
  teacher_b: {arch: resnet32, weights: random}
losses:
  - ce
  - {my_loss.py:Mine: {weight: 2}}
  - hint: {name: both, from: teacher_b}
  - hint
stages: [{name: first, epochs: 0.5, train: [both.head]}, {name: second}]
trainer: {update: sequential}
"""
PROTOCOL = """trainer: {max_epochs: 3, update: sequential}
models: {peer: {arch: resnet20}}
data: {name: digits, batch_size: 64}
optimizer: {name: sgd}
lr: 0.1
"""


def test_a_recipe_beside_the_suite_is_a_method(tmp_path):
    """Between the pair's models; a model of another architecture, and how a model takes part, are the method's."""
    (tmp_path / "my_loss.py").write_text(OWN)
    (tmp_path / "mine.yaml").write_text(MINE)
    text = TINY.replace("[student, kd]", "[student, kd, mine.yaml]")
    by = {c.method: c for c in cells(tmp_path, text)}
    cell, whole = by["mine"], document(by["mine"].recipe)
    student = document(by["kd"].recipe)["models"]["student"]
    assert list(whole["models"]) == ["teacher", "student", "peer", "teacher_b"]
    assert whole["models"]["student"] == {"when": {"to": 0.9}, **student}
    assert whole["models"]["peer"] == student
    assert whole["models"]["teacher"] == document(by["kd"].recipe)["models"]["teacher"]
    assert whole["models"]["teacher_b"] == {"arch": "resnet32", "weights": "random"}
    assert whole["losses"] == document(load(tmp_path / "mine.yaml"))["losses"]
    assert whole["stages"] == document(load(tmp_path / "mine.yaml"))["stages"]
    assert whole["trainer"]["update"] == "sequential"
    assert whole["trainer"]["max_epochs"] == 2
    assert whole["data"] == document(by["kd"].recipe)["data"]
    assert (cell.node, cell.needs, cell.written) == ("student", by["teacher"].content, True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("cifar100_240\n", "cifar100_240\nlr: 0.1\n"), "mine.yaml:2: lr: is one for all methods of a suite"),
        (("resnet20, when", "resnet20, lr: 0.1, when"), "mine.yaml:4: models.student.lr: is one for all methods of"),
        (("cifar100_240\n", "own.yaml\n"), "own.yaml:2: models: is a method's own, and a suite has a protocol of its"),
        (("cifar100_240\n", "own.yaml\n"), "own.yaml:1: trainer.update: is a method's own"),
        (
            ("student: {arch: resnet20, when: {to: 0.9}}", "student: {ema: peer}"),
            "place of the trained model `student`, and",
        ),
        (("sequential}", "sequential, max_epochs: 3}"), "mine.yaml:13: trainer.max_epochs: is one for all methods"),
        (("  student:", "  small:"), "mine.yaml:2: models: a suite puts its pairs' students in place of the trained"),
        (("- hint\n", "- hnt\n"), "mine.yaml:11: losses.hnt: unknown loss 'hnt'"),
        (("my_loss.py", "../my_loss.py"), "mine.yaml:9"),
        (("epochs: 0.5", "epoch: 0.5"), "mine.yaml:12: stages.0.epoch: unknown key 'epoch'; did you mean 'epochs'"),
    ],
)
def test_what_a_methods_recipe_cannot_say_is_told_with_its_line(tmp_path, change, words):
    (tmp_path / "my_loss.py").write_text(OWN)
    (tmp_path / "own.yaml").write_text(PROTOCOL)
    (tmp_path / "mine.yaml").write_text(MINE.replace(*change))
    refused(tmp_path, TINY.replace("[student, kd]", "[mine.yaml]"), words)


OTHERS = """protocol: digits_20
models:
  teacher: {arch: resnet8, weights: random}
  teacher_a: {arch: resnet8, weights: random}
  teacher_b: {arch: resnet8, weights: teacher_digits, options: {widths: [8, 8, 8, 8]}}
  teacher_c: {arch: resnet20, weights: random}
  student: {arch: resnet20}
  small: {arch: resnet20, options: {widths: [4, 4, 4, 4]}}
  pupil: {arch: resnet8, weights: random}
losses: [ce, kd: {from: teacher_c, to: student}]
balance: uncertainty
cohort: {ramp: 0.25}
"""


def test_only_what_is_said_as_the_teacher_or_the_student_is_a_pairs_model(tmp_path):
    """A teacher that was born of the student's architecture, or has weights or options of its own, keeps them."""
    recipe = OTHERS.replace("teacher_digits", "small.yaml")
    (tmp_path / "small.yaml").write_text(
        "protocol: digits_20\nmodels: {net: {arch: resnet8, options: {widths: [8, 8, 8, 8]}}}\nlosses: [ce]\n"
    )
    (tmp_path / "mine.yaml").write_text(recipe)
    by = {c.method: c.recipe for c in cells(tmp_path, TINY.replace("[student, kd]", "[kd, mine.yaml]"))}
    own, made = document(load(tmp_path / "mine.yaml"))["models"], document(by["mine"])["models"]
    pair = document(by["kd"])["models"]
    assert made["teacher"] == made["teacher_a"] == pair["teacher"]
    assert made["student"] == pair["student"]
    assert all(made[name] == own[name] for name in ("teacher_b", "teacher_c", "small", "pupil"))
    assert by["mine"].balance == "uncertainty"
    assert document(by["mine"])["cohort"] == {"ramp": 0.25}


@pytest.mark.parametrize("name", ["teacher", "teacher_slow"])
def test_a_teacher_may_be_a_slow_copy(tmp_path, name):
    models = f"{{student: {{arch: resnet20}}, {name}: {{ema: student, decay: 0.9}}}}"
    (tmp_path / "mine.yaml").write_text(f"protocol: digits_20\nmodels: {models}\nlosses: [ce, kd]\n")
    by = {c.method: c for c in cells(tmp_path, TINY.replace("[student, kd]", "[kd, mine.yaml]"))}
    assert document(by["mine"].recipe)["models"][name] == {"ema": "student", "decay": 0.9}
    assert by["kd"].needs
    assert by["mine"].needs is None  # nothing of it comes from the pair's teacher


def test_a_net_around_the_pairs_student_learns_as_that_does(tmp_path):
    text = TINY.replace("[student, kd]", "[sid, kd]").replace("arch: resnet8,", "lr: 0.3, arch: resnet8,")
    by = {c.method: document(c.recipe)["models"].get("student") for c in cells(tmp_path, text)}
    assert by["sid"]["lr"] == by["kd"]["lr"] == 0.3
    net = "{arch: torchvision/resnet18, weights: pretrained}"
    given = TINY.replace("{arch: resnet8, options: {widths: [4, 4, 8, 16]}}", net)
    refused(tmp_path, given.replace("kd]", "sid]"), "suite.yaml:2: pairs: the student loses its weights inside sid")


def test_a_packaged_recipe_without_a_student_is_no_method(tmp_path):
    refused(tmp_path, TINY.replace("kd]", "dml_hetero]"), "suite.yaml:3", "and dml_hetero_cifar100 trains cnn, vit")


def test_a_methods_losses_may_all_be_its_stages(tmp_path):
    stages = "stages: [{epochs: 0.5, losses: [hint]}, {losses: [ce, kd]}]"
    models = "{teacher: {arch: resnet56, weights: random}, student: {arch: resnet20}}"
    (tmp_path / "mine.yaml").write_text(f"protocol: digits_20\nmodels: {models}\n{stages}\n")
    (made,) = (c.recipe for c in cells(tmp_path, TINY.replace("[student, kd]", "[mine.yaml]")) if c.seed == 1)
    assert document(made)["losses"] == document(load(tmp_path / "mine.yaml"))["losses"]


def test_a_methods_recipe_lies_beside_the_suite(tmp_path):
    refused(tmp_path, TINY.replace("kd]", "mine.yaml]"), "suite.yaml:3: methods: no recipe mine.yaml lies beside the")
    refused(tmp_path, TINY.replace("kd]", "../mine.yaml]"), "suite.yaml:3: methods: a method's recipe must lie beside")
    refused(tmp_path, TINY.replace("kd]", "student.yaml]"), "`student` is the student without a teacher")
    (tmp_path / "my method.yaml").write_text("losses: [ce]\n")
    named = TINY.replace("kd]", "my method.yaml]")
    refused(tmp_path, named, "must be a plain word, got 'my method'; rename the file, such as my_method.yaml")


def test_losses_written_out(tmp_path):
    (tmp_path / "my_loss.py").write_text(OWN)
    text = TINY.replace(
        "[student, kd]", "[{mine: [ce, {my_loss.py:Mine: {weight: 2}}]}, {taught: [ce, kd: {temperature: 2}]}]"
    )
    by = {c.method: c.recipe for c in cells(tmp_path, text)}
    assert by["mine"].losses[1].loss == f"{tmp_path}/my_loss.py:Mine"
    assert list(by["mine"].models) == ["student"]  # no loss of it asks for a teacher
    assert list(by["taught"].models) == ["teacher", "student"]
    assert by["taught"].losses[1].arguments["temperature"] == 2


def test_overrides_go_where_they_belong(tmp_path):
    made = {
        c.method: c for c in cells(tmp_path, TINY, ["losses.kd.weight=0.3", "models.teacher.cache=true"]) if c.seed == 0
    }
    assert made["kd"].recipe.losses[1].weight == 0.3
    assert made["kd"].recipe.models["teacher"].cache is not None
    plain = {c.method: c for c in cells(tmp_path) if c.seed == 0}
    assert made["student"].content == plain["student"].content
    assert made["teacher"].content == plain["teacher"].content
    assert made["kd"].column == plain["kd"].column  # a method's weight is no part of the protocol
    other = {c.method: c for c in cells(tmp_path, TINY, ["lr=0.01"]) if c.seed == 0}
    assert other["kd"].column != plain["kd"].column
    assert plain["kd"].changes == ("data.subset=64", "data.batch_size=32", "data.image_size=8")
    assert made["kd"].changes == (*plain["kd"].changes, "losses.kd.weight=0.3")
    assert made["student"].changes == plain["student"].changes
    assert (
        cells(tmp_path, TINY, ["data.eval_batch_size=2", "trainer.accelerator=cpu"])[1].changes == plain["kd"].changes
    )
    own = {c.method: c for c in cells(tmp_path, TINY.replace("name: tiny", "overrides: [lr=0.01]"))}
    assert own["teacher"].content == plain["teacher"].content
    assert own["kd"].content != plain["kd"].content
    assert own["kd"].pair == "resnet8-resnet8"


def test_overrides_of_stages_go_to_the_methods_that_have_them(tmp_path):
    stages = "stages: [{name: a, epochs: 1, losses: [rkd]}, {losses: [ce, kd]}]"
    models = "{teacher: {arch: resnet56, weights: random}, student: {arch: resnet20}}"
    (tmp_path / "mine.yaml").write_text(f"protocol: digits_20\nmodels: {models}\n{stages}\n")
    text = TINY.replace("[student, kd]", "[kd, mine.yaml]")
    plain, made = ({c.method: c for c in cells(tmp_path, text, extra)} for extra in ((), ["stages.a.epochs=0.5"]))
    assert made["mine"].recipe.losses[0].when == {"to": 0.5}
    assert "stages.a.epochs=0.5" in made["mine"].changes
    assert [made[name].content == plain[name].content for name in ("teacher", "kd", "mine")] == [True, True, False]
    assert made["kd"].changes == plain["kd"].changes
    for text, where in (("cohort.ramp=0", "cohort.ramp"), ("stages.a.epochs=0.5", "stages.a")):
        with pytest.raises(RecipeError, match=rf"{where}: no run of the suite has it$"):
            cells(tmp_path, TINY, [text])


def test_a_packaged_teacher_is_used_where_it_is_the_same(tmp_path):
    text = "protocol: digits_20\npairs: [{teacher: resnet20, student: resnet8}]\nmethods: [kd]\nseeds: [3]\n"
    teacher, kd = cells(tmp_path, text)
    assert kd.recipe.models["teacher"].weights == "teacher_digits"
    assert teacher.recipe.name == "teacher_digits"
    assert kd.seed == 3


def test_a_teacher_with_weights_is_not_trained(tmp_path):
    text = TINY.replace("teacher: resnet8", "teacher: {arch: torchvision/resnet18, weights: pretrained}")
    assert [c.method for c in cells(tmp_path, text) if c.seed == 0] == ["student", "kd"]


def test_wrong_words_are_told_with_their_line(tmp_path):
    refused(tmp_path, TINY + "lr: 1\n", "lr: unknown key 'lr'; it is a word of a recipe, which `kdkit fit` runs")
    refused(tmp_path, TINY.replace("methods", "metods"), "suite.yaml:3: metods: unknown key", "did you mean 'methods'")
    refused(tmp_path, TINY.replace("name: tiny", "nam: tiny"), "suite.yaml:2: pairs.0.nam: unknown key 'nam'", "'name'")
    refused(
        tmp_path, TINY.replace("digits_20", "digits_2"), "suite.yaml:1: protocol: no protocol is called", "'digits_20'"
    )
    refused(tmp_path, TINY.replace("kd]", "krd]"), "suite.yaml:3", "no packaged recipe is called 'krd_digits'", "'crd'")
    (tmp_path / "krd.yaml").write_text("losses: [ce]\n")
    refused(tmp_path, TINY.replace("kd]", "krd]"), "did you mean krd.yaml? A file is given with its ending")
    refused(tmp_path, TINY.replace("kd]", "{mine: [ce, kdd]}]"), "suite.yaml:3", "unknown loss 'kdd'", "'kd'")
    refused(tmp_path, TINY.replace("kd]", "{mine: 3}]"), "suite.yaml:3: methods.mine: must be a list of losses")
    refused(tmp_path, TINY.replace("kd]", "kd, kd]"), "suite.yaml:3: 'kd' stands twice")
    refused(tmp_path, TINY.replace("student, kd]", "student: [ce, kd]]"), "`student` is the student without a teacher")
    refused(tmp_path, TINY.replace("name: tiny", "name: ../x"), "suite.yaml:2: pairs.0.name: a pair's name must be")
    refused(tmp_path, TINY.replace("kd]", "teacher]"), "teachers are trained by themselves")
    refused(tmp_path, TINY.replace("seeds: 2", "seeds: 0"), "suite.yaml:4: seeds: must be at least 1")
    refused(tmp_path, TINY.replace("seeds: 2", "seeds: two"), "suite.yaml:4: seeds: must be")
    refused(tmp_path, TINY.replace("seeds: 2\n", ""), "seeds: must be given")
    refused(tmp_path, TINY.replace("teacher: resnet8", "teacher: resnet9"), "unknown model 'resnet9'", "suite.yaml:2")
    refused(tmp_path, TINY.replace("max_epochs=2", "max_epoch=2"), "override 'trainer.max_epoch=2'", "'max_epochs'")
    refused(
        tmp_path,
        TINY.replace("max_epochs=2", "max_epochs=2, losses.crd.weight=1"),
        "losses.crd: no run of the suite has it",
    )
    refused(tmp_path, TINY.replace("max_epochs=2", "max_epochs=2, seed=1"), "the suite says its seed itself")


def test_another_process_knows_the_suites_lines(tmp_path):
    text = TINY.replace("[student, kd]", "\n  - student\n  - mine: [ce, kd: {temperature: 2}]")
    origin = pickle.loads(pickle.dumps(cells(tmp_path, text)[-1])).recipe.origin
    told = [origin.problem(loc, "") for loc in (("models", "teacher", "weights"), ("losses", 1), ("data", "subset"))]
    assert [str(problem) for problem in told] == [
        "suite.yaml:2: models.teacher.weights",
        "suite.yaml:5: losses.kd",
        "override 'data.subset=64': data.subset",
    ]


def test_all_that_is_wrong_is_told_together(tmp_path):
    refused(
        tmp_path,
        TINY.replace("[student, kd]", "[krd, {mine: [ce, kd: {temperature: -1}]}]"),
        "2 problems",
        "temperature",
    )


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_the_suites_of_the_repository_expand(path, tmp_path):
    made = expand(load_suite(path), tmp_path)
    read = load_suite(path)
    runs = len(read.suite.pairs) * len(read.methods) * len(read.seeds)
    assert len([c for c in made if c.method != "teacher"]) == runs
    assert all(c.recipe.trained for c in made)


def test_two_methods_that_are_one_run(tmp_path):
    twice = TINY.replace("[student, kd]", "[kd, a: [ce, {kd: {weight: 0.5}}], b: [ce, {kd: {weight: 0.5}}]]")
    refused(tmp_path, twice, "b and a are the same recipe for tiny; leave one of them out")


def test_what_all_runs_share_is_read_and_judged_once(tmp_path, monkeypatch):
    asked, parsed = [], []

    def counted(cls, name, calls):
        plain = getattr(cls, name)
        monkeypatch.setattr(cls, name, wraps(plain)(lambda *a, **k: (calls.append(name), plain(*a, **k))[1]))

    counted(RKDLoss, "__init__", asked)
    counted(syntax._Loader, "get_single_node", parsed)
    pairs = "[{teacher: resnet8, student: resnet8, name: a}, {teacher: resnet20, student: resnet8, name: b}]"
    text = f"protocol: digits_20\npairs: {pairs}\nmethods: [mine: [ce, rkd: {{distance_weight: 3.5}}]]\nseeds: 3\n"
    assert len(cells(tmp_path, text)) == 8
    assert len(asked) == 1
    before = len(parsed)
    cells(tmp_path, text)
    assert len(parsed) == before


def test_a_recipe_that_changed_is_read_anew(tmp_path):
    recipe = tmp_path / "r.yaml"
    for rate in (0.1, 0.2):
        recipe.write_text(f"protocol: digits_20\nmodels: {{student: {{arch: resnet8}}}}\nlosses: [ce]\nlr: {rate}\n")
        assert load(recipe).lr == rate
