"""Each verb of the command line: what it prints, what it writes, how fast it answers and how it ends."""

import io
import json
import resource
import subprocess
import sys

import pytest
import typer
import yaml
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import kdkit.losses
from kdkit import cli
from kdkit.catalogue import losses_table
from kdkit.models import MODELS
from kdkit.recipe import content_key, load, packaged
from kdkit.registry import LOSSES
from kdkit.runs import fit as runs_fit
from tests.cli.command import RECIPE, kdkit, refused

VERBS = ["fit", "eval", "latency", "export", "report", "check", "losses", "models", "recipes", "init", "schema"]
HEAVY = ["torch", "torchvision", "timm", "pytorch_lightning", "pydantic", "numpy", "matplotlib", "yaml", "rich"]


def python(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=120)


def seconds():
    """Of a processor, by processes that have ended; other work on the machine lengthens those of the clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_at_once_and_imports_nothing_heavy():
    """In as little time as some modules of Python's own take, whose time a slow machine lengthens alike."""
    began = seconds()
    python("-c", "import asyncio, email.mime.text, http.server, unittest.mock, xml.dom.minidom")
    usual = seconds() - began
    told = python("-c", f"import sys; from kdkit.cli import main; sys.argv = ['kdkit', '--help']\n"
                  f"try: main()\nfinally: print('heavy:', [m for m in {HEAVY} if m in sys.modules])")  # fmt: skip
    assert told.returncode == 0
    assert "heavy: []" in told.stdout
    assert seconds() - began - usual < 5 * usual


def test_a_real_process_ends_with_code_2_and_no_traceback():
    told = python("-m", "kdkit.cli", "fit", "kd_digit")
    assert told.returncode == 2
    assert told.stdout == ""
    assert told.stderr.startswith("error: kd_digit: ")
    assert "Traceback" not in told.stderr


def test_help_names_every_verb_and_each_verb_gives_an_example():
    assert all(f"\n  {verb} " in kdkit("--help").out for verb in VERBS)
    for verb in VERBS:
        said = kdkit(verb, "--help")
        assert said.code == 0
        assert f"Example: kdkit {verb}" in said.out


def test_help_explains_every_word():
    assert "..." not in kdkit("--help").out.partition("Commands:")[2]  # no summary of a verb is cut
    for verb, command in typer.main.get_command(cli.app).commands.items():
        assert command.help, verb
        assert all(parameter.help for parameter in command.params), verb


def test_version():
    assert kdkit("--version").out == f"kdkit {kdkit_version()}\n"


def kdkit_version():
    from importlib.metadata import version

    return version("kdkit")


def test_losses_lists_every_loss_on_one_line_and_uncut():
    said = kdkit("losses")
    lines = {line.split()[0]: line for line in said.out.splitlines() if line.strip()}
    for info in LOSSES.values():
        assert all(part in lines[info.name] for part in (info.summary.rstrip("."), *info.taps, f"{info.weight:g}"))
    assert "\x1b" not in said.out
    assert "…" not in said.out
    assert max(map(len, lines.values())) <= 140


def test_a_narrow_terminal_wraps_the_losses_and_cuts_nothing():
    narrow = Console(width=80, file=io.StringIO())
    narrow.print(losses_table())
    text = narrow.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for info in LOSSES.values():
        assert set(info.summary.rstrip(".").split()) <= set(text.split())


@pytest.mark.parametrize("name", ["kd", "at"])
def test_losses_explains_one(name):
    said = kdkit("losses", name).out
    assert "Formula: " in said
    assert "Reference:" in said
    assert "arXiv" in said
    assert f"from kdkit.losses import {LOSSES[name].cls.__name__}" in said
    assert LOSSES[name].weight_source in said
    assert {"kd": "temperature=4.0", "at": "p=2.0, mode='code'"}[name] in said


OWN = """from torch import nn

class Gap(nn.Module):
    {doc}
    tap = "embedding"
    min_batch = 3

    def __init__(self, student_dim, gamma=2.0):
        super().__init__()

    def forward(self, student, teacher):
        return (student - teacher).square().mean()
"""


def test_losses_explains_one_of_your_own(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(OWN.format(doc='"""How far apart."""'))
    name, _, doc, _, *facts = kdkit("losses", f"{mine}:Gap").out.splitlines()
    assert (name, doc) == (f"{mine}:Gap", "How far apart.")
    assert [fact.split(maxsplit=1)[0] for fact in facts[2:]] == ["options", "reads", "samples"]
    told = " ".join(" ".join(facts).split())
    assert f"- {mine}:Gap: {{weight: 1}}" in told
    assert "kdkit.Edge(Gap) options gamma=2.0 reads student, teacher at embedding samples 3 of a batch" in told


def test_a_loss_without_a_docstring_is_not_explained_by_that_of_torch(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(OWN.format(doc=""))
    assert kdkit("losses", f"{mine}:Gap").out.splitlines()[2].startswith("in a recipe")


def test_models():
    assert set(MODELS) <= set(kdkit("models").out.split())
    assert kdkit("models", "wrn_40").out.split() == ["wrn_40_1", "wrn_40_2", "wrn_40_4"]
    assert "timm/vit_tiny_patch16_224" in kdkit("models", "timm/vit_tiny*").out.split()


def test_a_packaged_recipe_or_protocol_is_printed_as_a_file_to_begin_with(tmp_path):
    (tmp_path / "mine.yaml").write_text(kdkit("recipes", "crd_cifar100").out)
    assert content_key(load(tmp_path / "mine.yaml")) == content_key(load("crd_cifar100"))
    (tmp_path / "own.yaml").write_text(kdkit("recipes", "cifar100_240").out)
    (tmp_path / "mine.yaml").write_text(
        (tmp_path / "mine.yaml").read_text().replace("protocol: cifar100_240", "protocol: own.yaml")
    )
    assert content_key(load(tmp_path / "mine.yaml")) == content_key(load("crd_cifar100"))
    assert "no packaged recipe or protocol has this name; did you mean 'cifar100_240'" in refused(
        "recipes", "cifar100_24"
    )


def test_recipes_lists_them_all():
    said = kdkit("recipes").out
    assert len(packaged()) >= 10
    assert all(any(info.name in line and info.title in line for line in said.splitlines()) for info in packaged())


def test_init_writes_a_recipe_that_loads_and_never_writes_over_one(tmp_path):
    path = tmp_path / "mine.yaml"
    words = ["init", "--teacher", "resnet14", "--student", "resnet8", "--data", "digits", "--out", path]
    said = kdkit(*words)
    assert said.code == 0
    assert str(path) in said.out
    assert load(path).models["student"].arch == "resnet8"
    assert kdkit("check", path).code == 0
    path.write_text("mine")
    again = kdkit(*words)
    assert again.code == 2
    assert "exists already" in again.err
    assert path.read_text() == "mine"


def test_schema_is_json_that_knows_the_losses():
    schema = json.loads(kdkit("schema").out)
    assert set(LOSSES) <= set(schema["$defs"]["Loss"]["anyOf"][1]["properties"])


def test_check_reads_every_image_and_names_each_that_is_broken(tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "data: {name: folder, root: photos, holdout: 1, image_size: 8}\nmodels: {student: {arch: resnet8}}\n"
        "losses: [ce]\noptimizer: {name: sgd}\nlr: 0.1\ntrainer: {max_epochs: 1}\n"
    )
    for name in ("a/0", "a/1", "b/0", "b/1"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "photos" / f"{name}.png")
    root = f"data.root={tmp_path / 'photos'}"
    assert kdkit("check", recipe, root, "--images").out.splitlines()[-1] == "images  all 4 are whole"
    for name in ("a/1.png", "b/0.png"):  # one of each set, or two of one
        (tmp_path / "photos" / name).write_bytes((tmp_path / "photos" / name).read_bytes()[:40])
    said = kdkit("check", recipe, root, "--images")
    told = said.err.splitlines()
    assert said.code == 2
    assert sorted(line.split(": ")[0] for line in told[:2]) == [
        str(tmp_path / "photos" / n) for n in ("a/1.png", "b/0.png")
    ]
    assert told[2:] == ["error: 2 of 4 images cannot be read; mend or remove them"]
    assert "none is read from a file" in kdkit("check", "kd_digits", "--images").out


def test_check_of_a_packaged_recipe_needs_no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("KDKIT_DATA", str(tmp_path))
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path))
    said = kdkit("check", "kd_cifar100")
    assert said.code == 0
    assert "278,324" in said.out
    assert "187,680" in said.out
    assert not list(tmp_path.iterdir())


def test_an_unknown_exception_keeps_its_traceback(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(runs_fit, "fit", broken)
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    result = CliRunner().invoke(cli.app, ["fit", str(path)])
    assert isinstance(result.exception, ZeroDivisionError)
    assert result.exit_code == 1


@pytest.mark.parametrize("lightning", [False, True])
@pytest.mark.parametrize("saved", [False, True])
def test_interrupting_tells_what_is_saved_and_how_to_go_on(monkeypatch, tmp_path, saved, lightning):
    def stopped(recipe, *, out, **_):
        if saved:
            (out / "checkpoints").mkdir(parents=True)
            (out / "checkpoints" / "last.ckpt").touch()
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if lightning:
                sys.exit(1)  # what Lightning makes of Ctrl-C
            raise

    monkeypatch.setattr(runs_fit, "fit", stopped)
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    words = ["fit", str(path), "--out", str(tmp_path / "a run"), "--overwrite", "seed=3"]
    monkeypatch.setattr(sys, "argv", ["kdkit", *words])
    said = kdkit(*words)
    assert said.code == 130
    assert "Traceback" not in said.err
    assert f"kdkit fit {path} --out '{tmp_path}/a run' seed=3 --resume" in said.err
    assert ("last.ckpt holds the run so far" if saved else "has no checkpoint yet") in said.err


def test_without_test_images_nothing_is_scored_and_that_is_said(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / "photos" / name / f"{k}.png")
    recipe = tmp_path / "r.yaml"
    words = yaml.safe_load(RECIPE)
    del words["models"]["teacher"], words["losses"][1]
    words["data"] = {
        "name": "folder",
        "root": str(tmp_path / "photos"),
        "holdout": 0,
        "image_size": 8,
        "num_workers": 0,
    }
    recipe.write_text(yaml.safe_dump(words))
    said = kdkit("fit", recipe, "--out", tmp_path / "run")
    assert said.code == 0
    assert "nothing was scored: there are no labelled test images" in said.out
    assert "no test images here" in kdkit("eval", tmp_path / "run").err
    assert "student" in kdkit("eval", tmp_path / "run", "--data", tmp_path / "photos", "--split", "train").out


def test_a_teacher_is_trained_first_then_there_and_the_run_can_be_scored(monkeypatch, tmp_path):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    words = yaml.safe_load(RECIPE)
    alone = {**words, "models": {"big": {"arch": "resnet14"}}, "losses": ["ce"], "trainer": {"max_epochs": 3}}
    (tmp_path / "big.yaml").write_text(yaml.safe_dump(alone))
    words["models"]["teacher"]["weights"] = "big.yaml"
    recipe, run = tmp_path / "small.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(words))

    assert "big: trained first, 3 epochs" in kdkit("check", recipe).out
    fitted = kdkit("fit", recipe, "--out", run, "--resume")
    assert fitted.code == 0
    assert fitted.out.startswith(f"{run} holds no epoch to go on from; the run begins anew\n")
    assert str(run) in fitted.out
    lines = fitted.out.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == [
        *(f"epoch {i}/3" for i in (1, 2, 3)),
        *(f"epoch {i}/2" for i in (1, 2)),
    ]
    assert "big: there" in kdkit("check", recipe).out

    result = json.loads((run / "result.json").read_text())["last"]["student"]
    scored = next(line.split() for line in kdkit("eval", run).out.splitlines() if line.startswith("student"))
    assert float(scored[1]) == pytest.approx(100 * result["top1"], abs=0.01)
    assert float(scored[2]) == pytest.approx(result["nll"], abs=0.01)

    assert refused("eval", run, "--data", "fake").startswith("error: --data fake: data.root: must be a readable folder")
    again = kdkit("fit", recipe, "--out", run, "--resume")
    assert again.code == 0
    assert "begins anew" not in again.out
    assert "epoch 1/" not in again.out
    assert str(run) in again.out


def test_a_head_is_explained():
    said = kdkit("losses", "bottleneck").out
    assert "Through a narrow layer" in said
    assert "width=None, activation=relu, variational=False, beta=0.001; as every head's: l2" in said
