"""Models and losses of the user's own that fail, lately or at once: one error with their line, and what is kept."""

import pytest
import torch

from kdkit.recipe import loads
from kdkit.registry import KdkitError
from kdkit.report.gather import gather
from kdkit.report.links import arrows, ends
from kdkit.runs.fit import fit

CODE = """
import torch
from torch import nn

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, student):
        self.asked += 1
        if self.asked > {after}:
            raise KeyError("a word")
        return student.square().mean()

class Never(Late):
    def __init__(self):
        raise KeyError("a word")

class Lazy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.LazyLinear(num_classes)
"""
RECIPE = """
protocol: digits_20
models: {student: {arch: resnet8}}
losses: [ce, own.py:Late]
data: {name: digits, image_size: 8, subset: 64, batch_size: 32}
trainer: {max_epochs: 2}
"""


def refused(folder, text=RECIPE, after=0):
    (folder / "own.py").write_text(CODE.replace("{after}", str(after)))
    with pytest.raises(KdkitError) as caught:
        fit(loads(text, folder=folder), out=folder / "run")
    return str(caught.value)


def test_a_loss_that_fails_in_the_second_epoch(tmp_path):
    text = refused(tmp_path, after=1 + 2)  # the dry run's and those of the first epoch
    assert text.startswith(f"{tmp_path / 'own.py'}:13: raise KeyError(\"a word\")\n  KeyError: 'a word'\n")
    kept = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert text.endswith(f"training has stopped; {kept} holds the run so far")
    assert torch.load(kept, weights_only=False)["epoch"] == 0


def test_a_loss_that_fails_at_the_first_step(tmp_path):
    assert refused(tmp_path, after=1).endswith("training has stopped; there is no checkpoint yet")


def test_a_loss_that_cannot_be_built(tmp_path):
    text = refused(tmp_path, RECIPE.replace(":Late", ":Never"))
    assert "recipe:4: losses.Never: the loss could not be built: KeyError: 'a word'\n" in text
    assert text.endswith('raise KeyError("a word")')


def test_layers_without_a_size(tmp_path):
    text = refused(tmp_path, RECIPE.replace("resnet8", "own.py:Lazy").replace(", own.py:Late", ""))
    assert "recipe:3: models.student.arch: fc.weight, fc.bias would get a size from a first batch" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("mean: [0.5, 0.5], std: [1, 1]", "mean and std have 2 channels, the data 3"),
        ("mean: [0, 0, 0], std: [1, 0, 1]", "recipe:3: models.student.std: must be above 0 for every channel"),
    ],
)
def test_an_input_of_its_own(tmp_path, words, told):
    assert told in refused(tmp_path, RECIPE.replace("arch: resnet8", f"arch: resnet8, {words}"))


def test_what_no_optimiser_takes_has_its_line(tmp_path):
    text = refused(tmp_path, RECIPE.replace(", own.py:Late", "") + "optimizer: {name: sgd, momentum: -3}\n")
    assert "recipe:7: optimizer: Invalid momentum value: -3" in text


def test_a_file_that_leaves_python(tmp_path):
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    text = refused(tmp_path, RECIPE.replace("own.py:Late", "leaves.py:Loss"))
    assert "leaves.py:2: sys.exit(0)\n  SystemExit: 0" in text


def test_weights_that_the_run_would_delete_are_refused(tmp_path):
    recipe = "protocol: digits_20\nmodels: {student: {arch: resnet8%s}}\nlosses: [ce]\n"
    recipe += "data: {image_size: 8, subset: 64}\ntrainer: {max_epochs: 1}\n"
    first = fit(loads(recipe % "", folder=tmp_path), out=tmp_path / "run").folder
    again = loads(recipe % f", weights: {first.weights('student')}", folder=tmp_path)
    with pytest.raises(KdkitError, match=r"models\.student\.weights lie in .*run, whose run would go"):
        fit(again, out=tmp_path / "run", overwrite=True)
    assert first.complete


def test_a_value_error_has_its_line_too(tmp_path):
    (tmp_path / "own.py").write_text(CODE.replace("{after}", "1").replace("KeyError", "ValueError"))
    with pytest.raises(KdkitError, match=r'step 0: a word\n  .*own.py:13: raise ValueError\("a word"\)'):
        fit(loads(RECIPE, folder=tmp_path), out=tmp_path / "run")


def test_who_teaches_whom_is_noted_for_the_page(tmp_path):
    """Its page runs none of this code, and yet knows that the loss reads no teacher."""
    recipe = RECIPE.replace("models: {", "models: {teacher: {arch: resnet8, weights: random}, ")
    (tmp_path / "own.py").write_text(CODE.replace("{after}", "1000"))
    run = fit(loads(recipe.replace("max_epochs: 2", "max_epochs: 1"), folder=tmp_path), out=tmp_path / "run").folder
    (tmp_path / "own.py").unlink()
    told = gather(run.path)
    found = {(arrow.name, arrow.sources, arrow.target) for arrow in arrows(told.recipe, ends(told.provenance))}
    assert found == {("ce", ("labels",), "student"), ("Late", ("labels",), "student")}
