"""Teachers that know nothing are refused before the first step: wrong normalisation, order of classes, weights."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

from kdkit import models
from kdkit.recipe import load
from kdkit.registry import KdkitError
from kdkit.runs import teacher_check
from kdkit.runs.fit import fit
from kdkit.runs.folder import write_json
from kdkit.runs.teacher import saw_held_out
from kdkit.runs.teacher_check import Scored, scored
from tests.cli.command import kdkit, refused

ALONE = """\
data: {name: digits, image_size: 8, batch_size: 100, padding: 1}
models: {net: {arch: resnet8}}
losses: [ce]
optimizer: {name: sgd, momentum: 0.9}
lr: {linear: [0.1, 0.01]}
trainer: {max_epochs: 5, accelerator: cpu}
"""
PUPIL = """\
data: {name: digits, image_size: 8, batch_size: 100, padding: 1, subset: 100}
models:
  teacher: {arch: resnet8, weights: WEIGHTS}
  student: {arch: resnet8}
losses: [kd]
optimizer: {name: sgd}
lr: 0.1
trainer: {max_epochs: 1, accelerator: cpu, limit_train_batches: 1, limit_val_batches: 1}
"""


@pytest.fixture(scope="module")
def wise(tmp_path_factory):
    """The folder of a run whose net knows the digits."""
    folder = tmp_path_factory.mktemp("wise")
    (folder / "wise.yaml").write_text(ALONE)
    result = fit(load(folder / "wise.yaml"), out=folder / "run")
    assert result.last["net"]["top1"] > 0.8
    return folder / "run"


@pytest.fixture
def pupil(tmp_path):
    """Writes the recipe of a student of these weights."""

    def written(weights, words=""):
        (tmp_path / "pupil.yaml").write_text(PUPIL.replace("WEIGHTS", f"{weights}{words}"))
        return [tmp_path / "pupil.yaml", "--out", tmp_path / "run"]

    return written


def changed(wise, path, change, **header):
    """A copy of the weights, changed."""
    state = models.read_weights(wise / "net.safetensors")
    change(state)
    net = models.build("resnet8", num_classes=10)
    net.load_state_dict(state)
    models.save_weights(net, path, {**models.read_metadata(wise / "net.safetensors"), **header})
    return path


def one_line(text):
    return " ".join(text.replace("│", " ").split())


def test_a_good_teacher_is_told_once_before_the_first_epoch(wise, pupil):
    said = kdkit("fit", *pupil(wise / "net.safetensors"))
    assert said.code == 0
    assert "warning" not in said.out + said.err
    told = re.findall(r"^(teacher is right on \d+ of 360 images \([89]\d\.\d %\))$", said.out, re.MULTILINE)
    assert len(told) == 1
    assert said.out.index("training pupil") < said.out.index(told[0]) < said.out.index("epoch 1/1")


def shifted(state):
    """Every class one place further."""
    for name in [name for name in state if name.startswith("fc.")]:
        state[name] = state[name].roll(1, 0)


def test_that_there_are_too_few_images_to_say_is_told(pupil, tmp_path):
    models.save_weights(models.build("resnet8", num_classes=10), tmp_path / "blank.safetensors", {"arch": "resnet8"})
    said = kdkit("fit", *pupil(tmp_path / "blank.safetensors"), "data.val_split=49")
    assert said.code == 0
    assert "49 labelled images are too few to say whether teacher knows what is to be taught" in said.out


def test_classes_in_another_order_are_refused_and_nothing_is_left(wise, pupil, tmp_path):
    path = changed(wise, tmp_path / "shifted.safetensors", shifted)
    words = pupil(path)
    error = one_line(refused("fit", *words))
    assert "pupil.yaml:3: models.teacher.weights: teacher is right on" in error
    assert "of 360 images" in error
    assert "and chance on 10." in error
    assert "say trainer.check_teachers=false" in error
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".kdkit.lock"]
    assert kdkit("fit", *words, "trainer.check_teachers=false").code == 0


def test_a_file_that_says_so_itself_is_quoted(wise, pupil, tmp_path):
    classes = '["1", "2", "3", "4", "5", "6", "7", "8", "9", "0"]'
    path = changed(wise, tmp_path / "shifted.safetensors", shifted, classes=classes)
    assert "the classes that its file names are in another order" in one_line(refused("fit", *pupil(path)))


def test_a_wrong_normalisation_is_refused_and_told(wise, pupil):
    words = ", mean: [120, 120, 120], std: [60, 60, 60]"
    error = one_line(refused("fit", *pupil(wise / "net.safetensors", words)))
    assert "the recipe gives it mean [120.0, 120.0, 120.0] and std [60.0, 60.0, 60.0], its file says [0.3054" in error
    assert "it says one and the same class for" in error
    assert "its own run ended at" in error


def test_weights_that_were_never_trained_are_refused(pupil, tmp_path):
    models.save_weights(models.build("resnet8", num_classes=10), tmp_path / "new.safetensors")
    assert "and chance on" in refused("fit", *pupil(tmp_path / "new.safetensors"))
    assert kdkit("fit", *pupil("random")).code == 0  # said on purpose


def confused(state):
    """Six of ten classes one place further."""
    for name in [name for name in state if name.startswith("fc.")]:
        state[name][4:] = state[name][4:].roll(1, 0)


@pytest.mark.parametrize(("own", "refuses"), [(0.2, None), (None, False), (0.999, True)])
def test_it_is_measured_by_its_own_run(wise, pupil, tmp_path, own, refuses):
    """`own`: what the papers beside the weights say; None: a bit more than what is seen."""
    path = changed(wise, tmp_path / "own" / "net.safetensors", confused)
    seen = accuracy(path)
    assert 0.2 < seen < 0.49
    own = own or seen + 0.15
    write_json(path.parent / "result.json", {"last": {"net": {"top1": own}}, "best": {"net": {"top1": own}}})
    if refuses:
        assert "less than half of what its own run ended at (99.9 %)" in one_line(refused("fit", *pupil(path)))
        return
    said = kdkit("fit", *pupil(path))
    assert said.code == 0
    warned = f"its own run ended at {100 * own:.1f} %: is its normalisation right?"
    assert (warned in one_line(said.out)) == (refuses is False)


def test_a_teacher_whose_own_run_came_to_nothing_is_refused_too(pupil, tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    (tmp_path / "lazy.yaml").write_text(
        ALONE.replace("{linear: [0.1, 0.01]}", "1.0e-6").replace("epochs: 5", "epochs: 1")
    )
    error = one_line(refused("fit", *pupil("lazy")))
    assert "; its own run ended at " in error
    assert "; train it longer; if it is meant to teach as it is" in error


def accuracy(path):
    from kdkit.runs.evaluate import evaluate

    return evaluate(path)["net"]["top1"]


def test_a_run_that_goes_on_is_not_checked_again(wise, pupil, tmp_path, monkeypatch):
    words = pupil(wise / "net.safetensors")
    assert kdkit("fit", *words).code == 0
    (tmp_path / "run" / "result.json").unlink()
    monkeypatch.setattr("kdkit.runs.teacher_check._scores", lambda *_: pytest.fail("scored again"))
    assert kdkit("fit", *words, "--resume").code == 0


def test_chance_is_what_independent_answers_agree_on():
    """Cohen's expected agreement, and the binomial tail by its sum."""
    said, true = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 1, 2])
    found = scored(said, true, 4)
    assert (found.images, found.right, found.most) == (6, 4, 0.5)
    assert found.chance == pytest.approx((3 * 2 + 1 * 3 + 2 * 1) / 36)
    for right in range(7):
        p = found.chance
        tail = sum(math.comb(6, k) * p**k * (1 - p) ** (6 - k) for k in range(right, 7))
        assert Scored(6, right, p, 1.0).by_chance == (tail > 0.01)
    constant = scored(torch.zeros(100, dtype=torch.int64), (torch.arange(100) >= 95).long(), 2)
    assert constant.right == 95
    assert constant.by_chance  # it says the commonest class, whatever it sees


def test_the_word_is_one_of_the_recipe(pupil):
    with pytest.raises(KdkitError, match="check_teachers"):
        load(pupil("random")[0], ["trainer.check_teachers=sometimes"])


def test_what_it_looks_at_is_of_all_the_images(monkeypatch):
    """A folder's lie class by class."""
    monkeypatch.setattr(teacher_check, "converted", lambda distiller, raw: raw)
    labels = torch.arange(10).repeat_interleave(200)
    images = SimpleNamespace(setup=lambda stage: None, selects=False, parts=None, eval_batch_size=512)
    images.read_labels, images.loader = lambda train: labels, lambda train, ids, y, order, views: [(ids, y)]
    distiller = SimpleNamespace(device="cpu", transfer_batch_to_device=lambda batch, *_: batch)
    distiller.on_after_batch_transfer = lambda batch, _: batch
    ((x, y),) = teacher_check._images(distiller, images)
    assert torch.equal(labels[x], y)
    assert (len(y), y.unique().tolist()) == (teacher_check.MOST, list(range(10)))


@pytest.mark.parametrize(("seed", "saw"), [(0, False), (1, True)])
def test_another_split_holds_out_other_images(monkeypatch, seed, saw):
    def of(split_seed):
        return SimpleNamespace(name="digits", arguments={"val_split": 0.1, "split_seed": split_seed})

    ours = SimpleNamespace(models={"teacher": SimpleNamespace(tune=None, source="recipe")}, data=of(0))
    monkeypatch.setattr("kdkit.runs.teacher.source", lambda recipe, name: SimpleNamespace(data=of(seed)))
    assert saw_held_out(ours, "teacher") == saw
