"""What README and docs print runs as printed, given the obvious surroundings."""

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import typer
from pytorch_lightning import LightningDataModule

from kdkit import cli, models
from kdkit.bench.expand import expand
from kdkit.bench.suite import load_suite
from kdkit.graph.batch import Batch
from kdkit.recipe import load, loads, packaged
from kdkit.runs.check import check
from kdkit.train.repro import save
from tests.cli.command import kdkit
from tests.nets import loader, net
from tests.recipe.test_start import photos

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_A_RUN = ("eval", "table", "compare", "probe", "latency", "export", "report")  # whose words alone are looked at
AROUND = {
    "protocol": "protocol: cifar100_240\n",
    "models": "models: {teacher: {arch: resnet56, weights: random}, student: {arch: resnet20}}\n",
    "losses": "losses: [ce]\n",
}


def blocks(language):
    """Every fenced block of a language, named by its page and its place there."""
    found = []
    for page in PAGES:
        texts = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        found += [pytest.param(text, id=f"{page.stem}-{i}") for i, text in enumerate(texts, 1)]
    return found


def commands():
    """Every command line of a console block, `kdkit a; kdkit b` as two, without the comment and the file it fills."""
    text = "".join(block.values[0] for block in blocks("console")).replace("\\\n", " ")
    lines = [re.sub(r"\s[#>] ?.*", "", line) for line in re.findall(r"^\$ (.*)", text, re.MULTILINE)]
    return sorted({command.strip() for line in lines for command in line.split(";")})


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """A folder with what the snippets take for granted: an assistant's weights, a loss and a method, photos."""
    torch.save(models.build("resnet32", num_classes=100).state_dict(), tmp_path / "assistant.pth")
    for language, name in (("python", "my_loss.py"), ("yaml", "staged.yaml")):
        own = next(text for text in (block.values[0] for block in blocks(language)) if text.startswith(f"# {name}"))
        (tmp_path / name).write_text(own)
    photos(tmp_path / "photos")
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_recipe_can_be_bound(surroundings, text):
    if re.search("^pairs:", text, re.MULTILINE):
        (surroundings / "suite.yaml").write_text(text)
        assert expand(load_suite(surroundings / "suite.yaml"), surroundings / "teachers")
        return
    around = "".join(words for key, words in AROUND.items() if not re.search(rf"^{key}:", text, re.MULTILINE))
    check(loads(around + text, folder=surroundings))


class Data(LightningDataModule):
    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader(indexed=False)


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec|on_after_batch|in eval mode)")
@pytest.mark.parametrize("text", blocks("python"))
def test_python_runs(text, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    short = {"fast_dev_run": True, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    monkeypatch.setattr(pl, "Trainer", partial(pl.Trainer, **short))
    mine = {
        "student_logits": torch.randn(4, 10, requires_grad=True),
        "teacher_logits": torch.randn(4, 10),
        "teacher": net(8),
        "student": net(4, seed=1),
        "datamodule": Data(),
    }
    if "nonfinite" in text:
        facts = {"step": 123, "epoch": 1, "values": {"loss ce": torch.nan}}
        where = re.search('torch.load."(.*?)"', text)[1]
        save(Path(where), facts, Batch(torch.randn(4, 3, 8, 8), None, torch.arange(4)), {"student": mine["student"]})
    names = dict(mine)
    exec(compile(text, "snippet", "exec"), names)
    if "loss" in names:
        assert names["loss"].requires_grad
        assert names["loss"].ndim == 0
    if "distiller" in names:
        assert names["distiller"].student is mine["student"]
        assert not mine["student"]._forward_hooks


@pytest.mark.parametrize("command", commands())
def test_a_command_is_one(surroundings, monkeypatch, command):
    program, verb, *words = shlex.split(command)
    if program == "make":
        assert f"\n{verb}:" in (ROOT / "Makefile").read_text()
    if program != "kdkit":
        return
    if verb not in ("fit", "check", "bench", "tune", *OF_A_RUN):
        assert kdkit(verb, *words).code == 0
        return
    context = typer.main.get_command(cli.app).commands[verb].make_context(verb, words)
    if verb in OF_A_RUN:
        return
    if verb in ("bench", "tune"):
        assert (suite := Path(context.params["suite"])).name == "suite.yaml" or load_suite(ROOT / suite)
        return
    recipe = context.params["recipe"]
    if recipe in [info.name for info in packaged()]:
        monkeypatch.chdir(ROOT)
        load(recipe, context.params["overrides"] or [])
    else:
        assert recipe.endswith(".yaml")
