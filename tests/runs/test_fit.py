import json
import math

import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file

from kdkit import models
from kdkit.recipe import content_key, load
from kdkit.registry import KdkitError
from kdkit.runs import fit as fitting
from kdkit.runs.fit import fit
from kdkit.runs.teacher import teacher_folder


class PowerCut(BaseException):
    pass


SMALL = [
    "data.image_size=8",
    "data.subset=96",
    "data.batch_size=32",
    "trainer.max_epochs=2",
    "models.student={arch: resnet8}",
]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def small(name, *words):
    return load(name, [*SMALL, *words])


@pytest.mark.drawn
def test_a_run_is_a_folder_that_tells_everything(tmp_path):
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    result = fit(small("student_digits", "seed=3", *(f"models.student.{word}={own[word]}" for word in own)))
    folder = result.folder
    assert folder.path.name == "student_digits-seed3"
    for path in (folder.recipe, folder.provenance, folder.metrics, folder.result, folder.curves, folder.checkpoint):
        assert path.exists(), path
    assert imread(folder.curves).shape[1] == 1200
    origin = json.loads(folder.provenance.read_text())
    assert {"versions", "machine", "seed", "fingerprint", "content", "commit"} <= set(origin)
    rows = folder.metrics.read_text().splitlines()
    assert len(rows) == 3
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    assert math.isclose(float(last["val/student/top1"]), result.last["student"]["top1"], rel_tol=1e-6)
    assert result.best["student"]["top1"] >= result.last["student"]["top1"]

    net = models.build("resnet8", num_classes=10)
    net.load_state_dict(load_file(folder.weights("student")), strict=True)
    told = models.read_metadata(folder.weights("student"))
    assert told["arch"] == "resnet8"
    assert {word: json.loads(told[word]) for word in own} == own
    again = load(folder.recipe)
    assert again.seed == 3
    assert again.trainer.max_epochs == 2


def test_cudnn_may_be_told_to_time_its_kernels_which_makes_no_other_recipe(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    plain, timed = small("student_digits"), small("student_digits", "trainer.benchmark=true")
    assert content_key(timed) == content_key(plain)
    fit(timed)
    assert torch.backends.cudnn.benchmark


def test_a_folder_is_never_overwritten_by_accident():
    recipe = small("student_digits")
    first = fit(recipe)
    with pytest.raises(KdkitError, match=r"already holds a run, which is complete; --resume"):
        fit(recipe)
    assert fit(recipe, resume=True).last == first.last
    with pytest.raises(KdkitError, match="was begun with another recipe"):
        fit(small("student_digits", "lr=0.5"), resume=True)
    torch.testing.assert_close(fit(recipe, overwrite=True).last, first.last)


def test_what_was_interrupted_goes_on_exactly(monkeypatch, tmp_path):
    recipe = small("kd_digits", "trainer.max_epochs=3", "models.teacher.weights=random", "models.teacher.arch=resnet14")
    whole = fit(recipe, out=tmp_path / "whole")
    assemble = fitting.assemble

    def failing(experiment, folder, rows):
        distiller, trainer = assemble(experiment, folder, rows)
        step = distiller.training_step

        def training_step(batch, batch_idx):
            if trainer.current_epoch == 1 and batch_idx == 1:
                raise PowerCut
            step(batch, batch_idx)

        monkeypatch.setattr(distiller, "training_step", training_step)
        return distiller, trainer

    monkeypatch.setattr(fitting, "assemble", failing)
    with pytest.raises(PowerCut):
        fit(recipe, out=tmp_path / "half")
    monkeypatch.setattr(fitting, "assemble", assemble)
    with pytest.raises(KdkitError, match="was interrupted"):
        fit(recipe, out=tmp_path / "half")
    rest = fit(recipe, out=tmp_path / "half", resume=True)
    one, other = (load_file(r.folder.weights("student")) for r in (whole, rest))
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert whole.folder.metrics.read_text() == rest.folder.metrics.read_text()


def test_a_teachers_recipe_is_trained_once_and_kept(tmp_path):
    common = (
        "protocol: digits_20\ndata: {image_size: 8, subset: 64}\ntrainer: {max_epochs: %d, check_teachers: false}\n"
    )
    wise, pupil = tmp_path / "wise.yaml", tmp_path / "pupil.yaml"
    wise.write_text(common % 2 + "models: {net: {arch: resnet8}}\nlosses: [ce]\n")
    models_ = "models: {teacher: {arch: resnet8, weights: wise}, student: {arch: resnet8}}\n"
    pupil.write_text(common % 1 + models_ + "losses: [kd]\n")
    first = fit(load(pupil), out=tmp_path / "one")
    folder = teacher_folder(load(wise))
    assert folder.complete
    assert len(folder.metrics.read_text().splitlines()) == 3  # its own two epochs, not its student's one
    made = folder.result.stat().st_mtime_ns
    again = fit(load(pupil, ["seed=5", "trainer.max_epochs=2"]), out=tmp_path / "two")
    assert folder.result.stat().st_mtime_ns == made
    assert len(list(folder.path.parent.glob("wise-*/result.json"))) == 1
    assert first.last["teacher"] == again.last["teacher"]
    wise.write_text(wise.read_text().replace("resnet8", "resnet14"))
    with pytest.raises(KdkitError, match="does not fit"):
        fit(load(pupil), out=tmp_path / "three")


def test_nan_keeps_the_last_good_checkpoint(tmp_path):
    (tmp_path / "poison.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Poison(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.calls = 0\n\n"
        "    def forward(self, student):\n        self.calls += 1\n"
        "        return student.mean() * (float('nan') if self.calls > 5 else 1.0)\n"
    )
    text = (
        "protocol: digits_20\nmodels: {student: {arch: resnet8}}\nlosses: [ce, poison.py:Poison: {name: poison}]\n"
        "data: {subset: 96, batch_size: 32}\ntrainer: {max_epochs: 3}\n"
    )
    (tmp_path / "poisoned.yaml").write_text(text)
    with pytest.raises(KdkitError, match="loss poison is not finite at step 4"):
        fit(load(tmp_path / "poisoned.yaml"), out=tmp_path / "run")
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=False)
    assert state["epoch"] == 0
    assert all(v.isfinite().all() for v in state["state_dict"].values() if v.is_floating_point())


def test_own_model_and_own_loss_from_files_beside_the_recipe(tmp_path):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\nclass Small(nn.Module):\n    def __init__(self, num_classes):\n"
        "        super().__init__()\n        self.body = nn.Sequential(\n"
        "            nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()),\n"
        "            nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU()),\n"
        "        )\n        self.pool = nn.AdaptiveAvgPool2d(1)\n        self.out = nn.Linear(12, num_classes)\n\n"
        "    def forward(self, x):\n        return self.out(self.pool(self.body(x)).flatten(1))\n"
    )
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\nclass Gap(nn.Module):\n    def __init__(self, power: float = 2.0):\n"
        "        super().__init__()\n        self.power = power\n\n"
        "    def forward(self, student, teacher):\n"
        "        return (student - teacher.detach()).abs().pow(self.power).mean()\n"
    )
    (tmp_path / "own.yaml").write_text(
        "protocol: digits_20\nmodels:\n  teacher: {arch: resnet8, weights: random}\n"
        "  student: {arch: nets.py:Small}\nlosses:\n  - ce\n  - kd\n"
        "  - hint: {from: teacher.layer2, to: student.body.1, head: conv_bn_relu}\n"
        "  - at: {from: teacher.layer3, to: student.body.1}\n"
        "  - mine.py:Gap: {weight: 0.5, power: {linear: [2.0, 1.0]}}\n"
        "data: {subset: 64, batch_size: 32}\ntrainer: {max_epochs: 2}\n"
    )
    result = fit(load(tmp_path / "own.yaml"))
    header = result.folder.metrics.read_text().splitlines()[0]
    assert {"loss/ce", "loss/kd", "loss/hint", "loss/at", "loss/Gap"} <= set(header.split(","))
    stored = load_file(result.folder.weights("student"))
    assert set(stored) == {
        "body.0.0.weight",
        "body.0.0.bias",
        "body.1.0.weight",
        "body.1.0.bias",
        "out.weight",
        "out.bias",
    }


def test_a_teacher_with_other_classes_is_tuned_to_the_data(tmp_path):
    with models.seeded(0, "wide"):
        wide = models.build("resnet8", num_classes=37)
    models.save_weights(wide, tmp_path / "wide.safetensors")
    text = (
        "protocol: digits_20\nmodels:\n  teacher: {arch: resnet8, weights: wide.safetensors%s}\n"
        "  student: {arch: resnet8}\nlosses: [ce, kd]\n"
        "data: {subset: 96, batch_size: 16}\ntrainer: {max_epochs: 2}\n"
    )
    path = tmp_path / "other.yaml"
    path.write_text(text % "")
    with pytest.raises(KdkitError, match="tune"):
        fit(load(path), out=tmp_path / "refused")
    path.write_text(text % ", tune: {epochs: 12, lr: 0.01}")
    result = fit(load(path), out=tmp_path / "tuned")
    rows = result.folder.metrics.read_text()
    assert "val/teacher/top1" in rows
    assert result.last["teacher"]["top1"] > 0.2
