"""Python that comes with a recipe: whose it is, and that none of it runs where that is forbidden."""

import json
import os

import pytest

from kdkit.consent import WORD
from kdkit.models.custom import load_factory
from kdkit.recipe import load, loads
from kdkit.recipe.errors import RecipeError
from kdkit.registry import KdkitError
from tests.cli.command import RECIPE, kdkit, refused

CODE = """
import os
os.makedirs({marker!r}, exist_ok=True)
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(192, num_classes))

class Loss(nn.Module):
    def forward(self, student):
        return student.square().mean()
"""
SUITE = """
protocol: p.yaml
pairs: [{teacher: resnet14, student: %s}]
methods: [student, kd, %s]
seeds: 1
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with code of one's own, recipes that use it in every way there is, and a marker that says it ran."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    (tmp_path / "own.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    student, loss = "student: {arch: resnet8}", "- ce\n"
    texts = {
        "net": RECIPE.replace(student, "student: {arch: own.py:Net}"),
        "package": RECIPE.replace(student, "student: {arch: own:Net}"),
        "loss": RECIPE.replace(loss, "- ce\n  - own.py:Loss\n"),
        "inner": RECIPE.replace(student, "student: {arch: sid, options: {backbone: own.py:Net, modules: 2}}"),
        "taught": RECIPE.replace("weights: random", "weights: teach.yaml"),
        "teach": RECIPE.replace("  teacher: {arch: resnet14, weights: random}\n", "").replace("- kd", "- own.py:Loss"),
    }
    texts["teach"] = texts["teach"].replace(": {weight: 0.9, temperature: 4}", "")
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    protocol = RECIPE.partition("models:")[0] + "optimizer:" + RECIPE.partition("optimizer:")[2]
    (tmp_path / "p.yaml").write_text(protocol)
    (tmp_path / "suite.yaml").write_text(SUITE % ("own.py:Net", "crd_inbatch"))
    (tmp_path / "suite2.yaml").write_text(SUITE % ("resnet8", "mine: [ce, 'own.py:Loss']"))
    return tmp_path


def ran(folder):
    return (folder / "ran").exists()


@pytest.mark.parametrize("recipe", ["net", "package", "loss", "inner", "taught"])
@pytest.mark.parametrize("verb", [["check"], ["fit"], ["cache", "models.teacher.cache=true"]])
def test_no_code_of_a_recipe_runs(own, verb, recipe):
    error = refused(verb[0], f"{recipe}.yaml", *verb[1:], "--no-custom-code")
    assert "own" in error
    assert "not run here" in error or "which is not allowed here" in error
    assert not ran(own)
    assert not (own / "runs").exists()


@pytest.mark.parametrize("suite", ["suite", "suite2"])
@pytest.mark.parametrize("verb", [["bench"], ["bench", "--plan"], ["tune", "--trials", "1"]])
def test_no_code_of_a_suite_runs(own, verb, suite):
    error = refused(verb[0], f"{suite}.yaml", *verb[1:], "--no-custom-code")
    assert "which is not allowed here" in error
    assert not ran(own)


def test_no_code_of_a_run_is_scored_or_gone_on_with(own):
    kdkit("fit", "net.yaml", "--out", "run")
    assert ran(own)
    (own / "ran").rmdir()
    error = refused("eval", "run", "--no-custom-code")
    assert "which is not allowed here" in error
    for verb in (["compare", "run/student.safetensors"], ["probe", "--data", "digits"], ["latency"], ["export"]):
        assert "not allowed here" in refused(verb[0], "run", *verb[1:], "--no-custom-code")
    assert "not allowed here" in refused("fit", "run/recipe.yaml", "--out", "run", "--resume", "--no-custom-code")
    assert not ran(own)
    assert kdkit("eval", "run").code == 0


def test_a_page_is_drawn_without_a_run_of_its_code(own):
    kdkit("fit", "loss.yaml", "--out", "run")
    (own / "ran").rmdir()
    path = own / "run" / "recipe.yaml"
    path.write_text(path.read_text().replace("own.py", "other.py"))  # this process has run the first one
    (own / "own.py").rename(own / "other.py")
    assert kdkit("report", "run").code == 0
    assert "Loss" in (own / "run" / "report.html").read_text()
    assert not ran(own)


def test_it_is_forbidden_to_what_a_verb_starts_and_no_longer(own, monkeypatch):
    refused("check", "net.yaml", "--no-custom-code")
    assert WORD not in os.environ
    assert kdkit("check", "net.yaml").code == 0
    monkeypatch.setenv(WORD, "1")
    assert "not allowed here" in refused("check", "net.yaml")
    with pytest.raises(RecipeError, match="not allowed here"):
        load("net.yaml")


def test_code_lies_beside_the_recipe_or_is_named_by_the_user(own):
    (own / "deep").mkdir()
    text = RECIPE.replace("student: {arch: resnet8}", "student: {arch: ../own.py:Net}")
    for where in ("../own.py", "x/../../own.py", "./../own.py"):
        (own / "deep" / "r.yaml").write_text(text.replace("../own.py", where))
        assert "must lie beside the recipe" in refused("check", "deep/r.yaml")
    (own / "deep" / "r.yaml").write_text(text.replace("../own.py", "own.py"))
    assert "no such file" in refused("check", "deep/r.yaml")  # not that of the working directory
    assert not ran(own)
    assert kdkit("check", "deep/r.yaml", "models.student.arch=own.py:Net").code == 0
    assert ran(own)


def test_no_path_leads_elsewhere_but_a_runs_own(own, tmp_path_factory):
    """Absolute ones, those of a suite's overrides and those of a run that was edited."""
    there = tmp_path_factory.mktemp("elsewhere")
    student, net = "student: {arch: resnet8}", f"{own / 'own.py'}:Net"
    for inside in (net, f"sid, options: {{backbone: {net}, modules: 2}}", "~/own.py:Net"):
        (there / "r.yaml").write_text(RECIPE.replace(student, f"student: {{arch: {inside!s}}}"))
        assert "must lie beside the recipe" in refused("check", there / "r.yaml")
    (there / "r.yaml").write_text(RECIPE.replace("- ce\n", f"- ce\n  - {own / 'own.py'}:Loss\n"))
    assert "must lie beside the recipe" in refused("check", there / "r.yaml")
    nested = f"sid, options: {{backbone: {{arch: sid, modules: 2, backbone: {net}}}, modules: 2}}"
    (there / "r.yaml").write_text(RECIPE.replace(student, f"student: {{arch: {nested}}}"))
    assert "must lie beside the recipe" in refused("check", there / "r.yaml")
    suite = SUITE % ("resnet8", "crd_inbatch")
    (there / "p.yaml").write_text((own / "p.yaml").read_text())
    staged = f"stages=[{{name: a, losses: [{{'{own / 'own.py'}:Loss': {{weight: 1}}}}]}}]"
    for more in (f"models.student.arch={net}", "models.student={arch: own.py:Net}", staged):
        (there / "suite.yaml").write_text(f'{suite}overrides: ["{more}"]\n')
        assert "must lie beside the suite" in refused("bench", there / "suite.yaml", "--plan")
    mine = f"mine: [ce, {{'{own / 'own.py'}:Loss': {{weight: 1}}}}]"
    for other in (suite.replace("student: resnet8", f"student: {net}"), suite.replace("crd_inbatch", mine)):
        (there / "suite.yaml").write_text(other)
        assert "must lie beside the suite" in refused("bench", there / "suite.yaml", "--plan")
    assert not ran(own)
    assert kdkit("fit", "net.yaml", "--out", there / "run").code == 0
    for verb in (["eval"], ["latency", "--batch", "1", "--mode", "eager"], ["fit", "--resume", "--out", there / "run"]):
        assert kdkit(verb[0], there / ("run/recipe.yaml" if verb[0] == "fit" else "run"), *verb[1:]).code == 0, verb
    (own / "own.py").rename(own / "other.py")
    recipe = there / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("own.py", "other.py"))
    for verb in (["eval"], ["latency"], ["export"], ["probe", "--data", "digits"]):
        assert "must lie beside the recipe" in refused(verb[0], there / "run", *verb[1:]), verb


def test_a_link_to_the_recipes_folder_is_no_way_out_of_it(own, tmp_path_factory):
    link = tmp_path_factory.mktemp("linked") / "link"
    link.symlink_to(own)
    (own / "r.yaml").write_text(RECIPE.replace("student: {arch: resnet8}", f"student: {{arch: {link / 'own.py'}:Net}}"))
    assert kdkit("check", "r.yaml").code == 0


def test_a_teacher_of_ones_own_in_a_suite_is_taught(own):
    (own / "suite.yaml").write_text((SUITE % ("resnet8", "at")).replace("resnet14", "own.py:Net").replace(", at]", "]"))
    told = kdkit("bench", "suite.yaml", "--out", "table", "--results", "rows.jsonl")
    assert told.code == 0, told.err
    rows = [json.loads(line) for line in (own / "rows.jsonl").read_text().splitlines()]
    assert {row["method"] for row in rows} == {"teacher", "student", "kd"}
    assert str(own) not in json.dumps(rows)


NO_MODELS = ["subprocess:run", "os:system", "torch.hub:load", "torch:load", "pathlib:Path", "numpy:load"]
NO_MODELS += ["torch.utils.model_zoo:load_url", "timm.models._builder:load_state_dict_from_url"]


@pytest.mark.parametrize("arch", NO_MODELS)
def test_what_runs_anything_is_no_model(own, arch):
    with pytest.raises(KdkitError, match="makes no model and no loss"):
        load_factory(arch)


WORDS = ["__class__", "_origin", "model_config", "origin", "__dict__.x", "kind", "trained", "models.student.source"]
WORDS += ["models.student.__init__", "trainer.logger", "trainer.callbacks", "trainer.plugins", "data.root.__class__"]
WORDS += ["losses.kd.cls", "losses.kd.loss", "optimizer.params", "data.seed", "trainer.default_root_dir", "losses.0"]


@pytest.mark.parametrize("word", WORDS)
def test_an_override_stays_within_the_schema(word):
    with pytest.raises(RecipeError):
        loads(RECIPE, overrides=[f"{word}=1"])
