"""Comparisons on the bundled digits, by plain loops and by models that are known to be alike."""

import json
import math
import shutil
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from kdkit import data, models
from kdkit.cli import app
from kdkit.recipe import load
from kdkit.registry import KdkitError
from kdkit.runs.evaluate import evaluate
from kdkit.runs.folder import RunFolder
from kdkit.runs.teacher import teacher_folder
from kdkit.study.compare import WHO, compare
from kdkit.study.embeddings import Sample, planar
from kdkit.study.subjects import _file, _names, teacher_of
from kdkit.study.write import run_of, write_comparison

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
DATA = ["data={name: digits, image_size: 8}", "trainer.accelerator=cpu"]
DIGITS = [str(i) for i in range(10)]


def net(seed, arch="resnet8"):
    torch.manual_seed(seed)
    made = models.build(arch, num_classes=10)
    made(torch.randn(64, 3, 8, 8))
    with torch.no_grad():
        made.fc.weight.mul_(3)
    return made.eval()


def save(module, path, arch="resnet8", **told):
    words = {"mean": MEAN, "std": STD, "num_classes": 10, **told}
    models.save_weights(module, path, {"arch": arch, **{k: json.dumps(v) for k, v in words.items()}})
    return str(path)


def undrawn(monkeypatch):
    """Figures take most of a comparison's time."""
    monkeypatch.setattr("kdkit.study.write._save", lambda figure, path: path.touch())


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    nets = {"t": net(0, "resnet14"), "s": net(1)}
    return (
        folder,
        nets,
        save(nets["t"], folder / "t.safetensors", "resnet14"),
        save(nets["s"], folder / "s.safetensors"),
    )


@torch.no_grad()
def plain(module):
    images, labels = data.build("digits", image_size=8).tensors(False)
    return module((images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)), labels


def test_a_student_beside_its_teacher_by_plain_formulas(pair):
    folder, nets, teacher, student = pair
    numbers = compare(teacher, [student], DATA).numbers
    (t, labels), (s, _) = plain(nets["t"]), plain(nets["s"])
    its = numbers["students"]["s"]
    assert its["agreement"] == pytest.approx((t.argmax(1) == s.argmax(1)).float().mean().item())
    assert its["kl"] == pytest.approx(F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean").item(), rel=1e-3)
    gap = np.corrcoef(t.double().numpy().T) - np.corrcoef(s.double().numpy().T)
    assert its["logit_correlation"]["frobenius"] == pytest.approx(np.linalg.norm(gap), rel=1e-2)
    rights = [(a == y, b == y, a == b) for a, b, y in zip(t.argmax(1), s.argmax(1), labels, strict=True)]
    counts = [sum(1 for a, b, _ in rights if (a, b) == who) for who in ((1, 1), (1, 0), (0, 1))]
    assert list(its["who"].values())[:3] == counts
    assert sum(its["who"].values()) == numbers["images"] == 360
    assert list(its["who"]) == list(WHO)
    assert numbers["models"]["s"]["nll"] == pytest.approx(
        evaluate(folder / "s.safetensors", DATA)["s"]["nll"], rel=1e-5
    )
    entropy = -(t.softmax(1) * t.log_softmax(1)).sum(1).mean().item()
    assert numbers["models"]["t"]["entropy"] == pytest.approx(entropy, rel=1e-3)
    assert sum(numbers["models"]["t"]["entropies"]["share"]) == pytest.approx(1, abs=1e-3)
    for m in numbers["models"].values():
        bars = zip(*(m["reliability"][word] for word in ("number", "accuracy", "confidence")), strict=True)
        assert sum(n / 360 * abs(right - sure) for n, right, sure in bars if n) == pytest.approx(m["ece"], abs=1e-5)
    assert its["cka"]["teacher"] == ["stem", "stage1", "stage2", "stage3", "embedding", "logits"]


def test_a_model_is_like_itself_though_its_classes_stand_in_another_order(pair, tmp_path):
    _, nets, _, _ = pair
    save(nets["s"], tmp_path / "a.safetensors", classes=DIGITS)
    turned = net(1)
    with torch.no_grad():
        turned.fc.weight.copy_(nets["s"].fc.weight.flip(0))
        turned.fc.bias.copy_(nets["s"].fc.bias.flip(0))
    save(turned, tmp_path / "b.safetensors", classes=DIGITS[::-1])
    found = compare(str(tmp_path / "a.safetensors"), [str(tmp_path / "b.safetensors")], DATA)
    its = found.numbers["students"]["b"]
    assert its["agreement"] == its["teacher_in_top5"] == 1
    assert its["kl"] == pytest.approx(0, abs=1e-5)
    assert its["logit_correlation"]["frobenius"] == pytest.approx(0, abs=1e-4)
    assert np.diag(its["cka"]["values"]) == pytest.approx(1, abs=1e-4)
    assert not any(found.cases["b"].found.values())


def test_images_on_which_they_differ_most(pair):
    _, nets, teacher, student = pair
    found = compare(teacher, [student], DATA).cases["s"].found
    (t, labels), (s, _) = plain(nets["t"]), plain(nets["s"])
    p, q = t.softmax(1), s.softmax(1)
    gaps = (torch.special.entr((p + q) / 2) - (torch.special.entr(p) + torch.special.entr(q)) / 2).sum(1)
    wrong = (t.argmax(1) != labels) & (s.argmax(1) != labels) & (t.argmax(1) != s.argmax(1))
    kind = "both are wrong, each in its own way"
    best = gaps[wrong].sort(descending=True)
    assert [case.gap for case in found[kind]] == pytest.approx(best.values[:8].tolist(), abs=1e-3)
    images = data.build("digits", image_size=8).tensors(False)[0]
    first = int(wrong.nonzero()[best.indices[0]])
    assert torch.allclose(found[kind][0].image, images[first] / 255, atol=1e-4)
    assert found[kind][0].label == str(int(labels[first]))


def test_the_ratio_of_transfer_from_the_student_alone(pair, tmp_path):
    _, _, teacher, student = pair
    alone = save(net(5), tmp_path / "alone.safetensors")
    numbers = compare(teacher, [student], DATA, alone=alone).numbers
    told, accuracy = numbers["students"]["s"]["transfer"], {n: m["top1"] for n, m in numbers["models"].items()}
    ratio = (accuracy["s"] - accuracy["alone"]) / (accuracy["t"] - accuracy["alone"])
    assert told["alone"] == "alone"
    assert told["reason"] if math.isnan(told["ratio"]) else told["ratio"] == pytest.approx(ratio)
    assert list(numbers["students"]) == ["s", "alone"]


def test_the_verb_writes_every_figure(pair, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    _, _, teacher, student = pair
    out = tmp_path / "out"
    words = ["compare", teacher, student, *DATA, "--out", str(out), "--taps", "stages,logits"]
    monkeypatch.setattr("kdkit.study.embeddings.EACH", 6)
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    told = json.loads((out / "compare.json").read_text())
    assert told["students"]["s"]["cka"]["student"] == ["stage1", "stage2", "stage3", "logits"]
    assert {p.name for p in out.glob("*.png")} == set(told["figures"])
    wanted = "calibration cases_s cka embeddings entropy logit_correlation who_is_right"
    assert set(told["figures"]) == {f"{name}.png" for name in wanted.split()}
    points = told["embeddings"]["points"]
    assert {name: len(at) for name, at in points.items()} == {"t": 60, "s": 60}
    assert sorted(told["embeddings"]["labels"]) == sorted(6 * DIGITS)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    undrawn(monkeypatch)
    said = CliRunner().invoke(app, ["compare", teacher, student, *DATA, "--out", str(out)])
    assert said.exit_code == 0
    assert "pip install 'kdkit[study]'" in said.stderr
    assert json.loads((out / "compare.json").read_text())["embeddings"] is None


def test_the_picture_of_embeddings_names_each_point_by_its_own_class():
    pytest.importorskip("sklearn")
    sample = Sample(20, chosen=2, each=5)
    sample.add(torch.tensor([10, 0, 3] * 5), {"net": torch.randn(15, 4)})
    found = planar(sample, [f"c{i}" for i in range(20)])
    assert (found["classes"], found["labels"]) == (["c0", "c10"], ["c10", "c0"] * 5)


def test_it_lies_where_its_user_looks(pair, tmp_path, monkeypatch):
    """In the first student's run or here; not with a teacher that is shared, nor in a run that merely is here."""
    _, _, teacher, student = pair
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("kdkit.study.write.planar", lambda *words: None)
    undrawn(monkeypatch)
    shared, run = tmp_path / "home" / "teachers" / "t-0123", tmp_path / "runs" / "s"
    for folder, weights, arch in ((shared, teacher, "resnet14"), (run, student, "resnet8")):
        folder.mkdir(parents=True)
        shutil.copy(weights, folder / "net.safetensors")
        (folder / "recipe.yaml").write_text(f"models: {{net: {{arch: {arch}}}}}\nlosses: [ce]\ntrainer: {{}}\n")
    swapped = CliRunner().invoke(app, ["compare", str(run), str(shared), *DATA, "--taps", "logits"])
    assert swapped.exit_code == 0, swapped.output
    assert (tmp_path / "compare" / "compare.json").is_file()
    assert f"are in compare\n{shared}, the first student, is no run of yours to keep them in; --out" in swapped.output
    assert sorted(path.name for path in shared.iterdir()) == ["net.safetensors", "recipe.yaml"]
    assert [run_of(str(word)) for word in (run, run / "net.safetensors")] == [RunFolder(run)] * 2
    assert [run_of(str(word)) for word in (shared, student, shared / "net.safetensors")] == [None] * 3
    (tmp_path / "recipe.yaml").touch()
    assert [run_of(word) for word in ("teacher_digits", "timm/resnet18")] == [None] * 2


def test_what_cannot_be_compared(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    folder, nets, teacher, student = pair
    with pytest.raises(KdkitError, match=r"holds several models; name one: .*s\.safetensors, .*t\.safetensors"):
        compare(teacher, [str(folder)], DATA)
    with pytest.raises(KdkitError, match="none says what images it was trained on; give them with --data FOLDER"):
        compare(teacher, [student])
    with pytest.raises(KdkitError, match="no such model; give a run's folder"):
        compare(teacher, ["resnet20"], DATA)
    with pytest.raises(KdkitError, match="teacher_digits has no result yet"):
        compare("teacher_digits", [student], DATA)
    with pytest.raises(KdkitError, match="named twice"):
        compare(teacher, [student, student], DATA)
    with pytest.raises(KdkitError, match="t: unknown tap 'stage9'"):
        compare(teacher, [student], DATA, taps=["stage9"])
    with pytest.raises(KdkitError, match="split must be"):
        compare(teacher, [student], DATA, split="val")
    other = save(nets["s"], tmp_path / "other.safetensors", classes=list("abcdefghij"))
    with pytest.raises(KdkitError, match="was trained on other classes"):
        compare(teacher, [other], DATA)
    monkeypatch.setattr("kdkit.study.write.planar", lambda *words: None)
    taken = tmp_path / "file"
    taken.touch()
    with pytest.raises(KdkitError, match="could not be written"):
        write_comparison(compare(teacher, [student], DATA, taps=["logits"]), taken)


def test_a_run_of_ones_own_code_beside_a_published_model(tmp_path, monkeypatch):
    """The data are those of the run; what a library publishes is fed as it wants to be."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self, num_classes=10):\n        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())\n"
        "        self.head = nn.Linear(8, num_classes)\n\n"
        "    def forward(self, x):\n        return self.head(self.body(x).mean((2, 3)))\n"
    )
    (tmp_path / "recipe.yaml").write_text(
        "data: {name: digits, image_size: 16}\nmodels:\n  student: {arch: 'mine.py:Net'}\n"
        "losses: [ce]\noptimizer: {name: sgd}\nlr: 0.1\ntrainer: {max_epochs: 1, accelerator: cpu}\n"
    )
    own = models.build("mine.py:Net", num_classes=10, base=tmp_path)
    models.save_weights(own, tmp_path / "student.safetensors")
    build = models.build
    theirs = build("timm/test_resnet.r160_in1k", num_classes=10, pretrained=False).eval()
    asked = []

    def published(name, *, num_classes, pretrained, **words):
        if words:  # the run's own
            return build(name, num_classes=num_classes, pretrained=pretrained, **words)
        asked.append((name, num_classes, pretrained))
        return theirs

    monkeypatch.setattr("kdkit.study.subjects.models.build", published)
    found = compare("timm/some", [str(tmp_path)], ["trainer.accelerator=cpu"])
    assert asked == [("timm/some", None, True)]
    assert found.numbers["teacher"] == "some"
    assert list(found.numbers["students"]) == [tmp_path.name]
    assert found.numbers["images"] == 360
    images, labels = data.build("digits", image_size=16).tensors(False)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in models.normalisation(theirs))
    with torch.no_grad():
        nll = F.cross_entropy(theirs((images / 255 - mean) / std), labels).item()
    assert found.numbers["models"]["some"]["nll"] == pytest.approx(nll, rel=1e-5)


def test_nothing_is_cut_at_the_edge_of_a_figure(pair, tmp_path, monkeypatch):
    """The titles above maps of a fixed shape once were: in what is saved the outermost pixels are white."""
    _, _, teacher, student = pair
    monkeypatch.setattr("kdkit.study.embeddings.EACH", 6)
    found = compare(teacher, [student, save(net(7), tmp_path / "other.safetensors")], DATA, taps=["logits"])
    folder = write_comparison(found, tmp_path / "out")
    for path in folder.glob("*.png"):
        picture = matplotlib.image.imread(path)[..., :3]
        edge = np.concatenate([picture[[0, -1]].reshape(-1, 3), picture[:, [0, -1]].reshape(-1, 3)])
        assert (edge > 0.99).all(), path.name


def test_a_packaged_recipe_is_called_by_its_name(tmp_path):
    """Its one model may be called `net`, which says nothing beside a student."""
    assert _names(["teacher_digits", "timm/resnet18"], [tmp_path / "net.safetensors", None]) == [
        "teacher_digits",
        "resnet18",
    ]


def test_students_of_two_runs_are_told_apart_by_their_runs(tmp_path):
    files = [tmp_path / run / "student.safetensors" for run in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        file.touch()
    assert _names([str(file) for file in files], files) == ["one/student", "two/student"]


def test_a_recipes_file_is_the_teacher_that_was_trained_by_it(tmp_path, monkeypatch):
    """What a run of a suite names in its recipe; its result lies under `KDKIT_HOME`."""
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("protocol: digits_20\nmodels: {net: {arch: resnet8}}\nlosses: [ce]\n", encoding="utf-8")
    with pytest.raises(KdkitError, match=r"has no result yet among the teachers .*; name the folder of its run here"):
        _file(str(recipe))
    folder = teacher_folder(load(recipe)).path
    folder.mkdir(parents=True)
    for name in ("net.safetensors", "result.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    assert _file(str(recipe)) == folder / "net.safetensors"


def test_a_teacher_is_called_as_its_students_run_calls_it(pair, tmp_path):
    _, nets, teacher, _ = pair
    student = save(nets["s"], tmp_path / "student.safetensors")
    (tmp_path / "provenance.json").write_text(json.dumps({"weights": {"big": teacher, "lost": "gone.safetensors"}}))
    numbers = compare("big", [student], DATA, taps=["logits"]).numbers
    by_file = compare(teacher, [student], DATA, taps=["logits"]).numbers
    assert numbers["models"]["big"] == by_file["models"]["t"]
    with pytest.raises(KdkitError, match=r"learned from gone\.safetensors, which is not there any more"):
        compare("lost", [student], DATA, taps=["logits"])
    with pytest.raises(KdkitError, match="small: no such model"):
        compare("small", [student], DATA, taps=["logits"])
    (tmp_path / "provenance.json").write_text('{"weights": 3}')
    with pytest.raises(KdkitError, match=r"provenance\.json is damaged"):
        compare("big", [student], DATA, taps=["logits"])


def test_a_run_alone_knows_its_teacher(tmp_path):
    (tmp_path / "student.safetensors").write_bytes(b"")
    told = tmp_path / "provenance.json"
    told.write_text('{"weights": {"big": "t.safetensors", "student": "warm.safetensors"}}')
    assert teacher_of(str(tmp_path)) == teacher_of(str(tmp_path / "student.safetensors")) == "big"
    told.write_text('{"weights": {"big": "t.safetensors", "small": "u.safetensors"}}')
    with pytest.raises(KdkitError, match=r"learned from big, small; name the teacher: kdkit compare TEACHER "):
        teacher_of(str(tmp_path))
    told.write_text("{}")
    with pytest.raises(KdkitError, match=r"learned from no weights that are kept; name the teacher"):
        teacher_of(str(tmp_path))
    with pytest.raises(KdkitError, match=r"is no run of a student; name both: kdkit compare TEACHER STUDENT"):
        teacher_of("timm/resnet18")


def test_a_teacher_of_another_program_is_known_by_its_students_recipe(pair, tmp_path):
    """A checkpoint says nothing of itself; the run that learned from it does."""
    _, nets, _, _ = pair
    torch.save(nets["t"].state_dict(), tmp_path / "their-teacher.pth")
    (tmp_path / "run").mkdir()
    student = save(nets["s"], tmp_path / "run" / "student.safetensors")
    with pytest.raises(KdkitError, match="does not say what model it is of"):
        compare(str(tmp_path / "their-teacher.pth"), [student], DATA, taps=["logits"])
    teacher = {"arch": "resnet14", "weights": str(tmp_path / "their-teacher.pth"), "mean": MEAN, "std": STD}
    words = {
        "models": {"teacher": teacher, "student": {"arch": "resnet8"}},
        "data": {"name": "digits", "image_size": 8},
    }
    (tmp_path / "run" / "recipe.yaml").write_text(json.dumps(words))
    found = compare(str(tmp_path / "their-teacher.pth"), [str(tmp_path / "run")], DATA[1:], taps=["logits"]).numbers
    t, labels = plain(nets["t"])
    assert found["models"]["their-teacher"]["top1"] == pytest.approx((t.argmax(1) == labels).float().mean().item())


def test_each_model_sees_images_of_the_size_it_was_trained_on(pair, tmp_path):
    """They are the teacher's, and a student of larger ones was shown the small ones as they are."""
    _, nets, teacher, _ = pair
    told = {"classes": DIGITS, "data": {"name": "digits", "image_size": 16}}
    student = save(nets["s"], tmp_path / "s16.safetensors", **told)
    found = compare(teacher, [student], DATA, taps=["logits"]).numbers
    images, labels = data.build("digits", image_size=8).tensors(False)
    larger = F.interpolate(
        (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1),
        size=(16, 16),
        mode="bilinear",
    )
    with torch.no_grad():
        right = (nets["s"](larger).argmax(1) == labels).float().mean().item()
    assert found["models"]["s16"]["top1"] == pytest.approx(right, abs=2e-3)
    assert found["models"]["t"]["top1"] == pytest.approx(
        (plain(nets["t"])[0].argmax(1) == labels).float().mean().item()
    )


def test_what_a_run_calls_its_teacher_is_no_folder_of_that_name(pair, tmp_path, monkeypatch):
    _, nets, teacher, _ = pair
    (tmp_path / "run").mkdir()
    save(nets["s"], tmp_path / "run" / "student.safetensors")
    (tmp_path / "run" / "provenance.json").write_text(json.dumps({"weights": {"teacher": teacher}}))
    (tmp_path / "teacher").mkdir()
    save(net(7, "resnet14"), tmp_path / "teacher" / "net.safetensors", "resnet14")
    monkeypatch.chdir(tmp_path)
    assert str(_file("teacher", ["teacher", "run"])) == teacher
    assert _file("./teacher", ["./teacher", "run"]) == Path("teacher/net.safetensors")
