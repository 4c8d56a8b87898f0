"""What `kdkit check` reckons, against sums done by hand."""

import io
import time

import pytest
import torch
from torch import nn

from kdkit.console import show
from kdkit.recipe import load, loads
from kdkit.registry import KdkitError
from kdkit.runs.check import check, count_macs
from kdkit.runs.dry_run import STAND_IN

FAKE = "name: fake, samples: 100, classes: 5, shape: [3, 8, 8], batch_size: 16"


def report(models, losses, folder=None, data=FAKE, overrides=()):
    text = f"data: {{{data}}}\nmodels: {{{models}}}\nlosses: [{losses}]\n"
    text += "optimizer: {name: sgd}\nlr: 0.1\ntrainer: {max_epochs: 4}\n"
    return check(loads(text, folder=folder, overrides=overrides))


PAIR = "teacher: {arch: resnet14, weights: random}, student: {arch: resnet8}"


def resnet_macs(blocks, classes=100):
    """Of RepDistiller's CIFAR ResNet on 32×32 images, layer by layer."""
    total, inputs = 3 * 16 * 9 * 32 * 32, 16
    for width, side in ((16, 32), (32, 16), (64, 8)):
        for block in range(blocks):
            total += (inputs * width + width * width) * 9 * side * side
            total += inputs * width * side * side * (block == 0 and inputs != width)  # the 1×1 shortcut
            inputs = width
    return total + 64 * classes


def test_sizes_and_cost_of_a_published_recipe(monkeypatch, tmp_path):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path))
    told = check(load("kd_cifar100"))
    teacher, student = told.nodes
    assert (teacher.kind, teacher.arch, teacher.parameters) == ("frozen", "resnet56", 861_620)
    assert (student.kind, student.arch, student.parameters) == ("trained", "resnet20", 278_324)
    assert (teacher.macs, student.macs) == (resnet_macs(9), resnet_macs(3)) == (125_753_600, 40_818_944)
    assert (told.batch_size, told.steps_per_epoch, told.epochs) == (64, 782, 240)
    assert told.macs_per_step == 64 * (resnet_macs(9) + 3 * resnet_macs(3))
    assert teacher.weights == "teacher_resnet56_cifar100: trained first, 240 epochs"
    assert student.weights == "initial"
    assert (told.facts.num_samples, told.facts.num_classes, told.facts.input_shape) == (50_000, 100, (3, 32, 32))


def test_crd_on_cifar100_in_seconds(monkeypatch, tmp_path):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path))
    began = time.process_time()
    told = check(load("crd_cifar100"))
    assert time.process_time() - began < 5  # what importing torch takes comes on top
    banks, heads = 2 * 50_000 * 128 * 4, 2 * (64 * 128 + 128)
    crd = next(row for row in told.edges if row.name == "crd")
    assert banks <= crd.bank < 1.05 * banks
    assert crd.parameters == heads
    assert (crd.source, crd.source_shape) == ("teacher.embedding", (64,))
    assert told.bank_bytes == crd.bank


def test_every_pair_of_taps_has_a_row_with_its_shapes():
    told = report(PAIR, "ce, at, cosine: {head: linear, weight: {linear: [1, 0]}, when: {from: 1, to: 3}}")
    assert [(row.name, row.source, row.source_shape, row.target, row.target_shape) for row in told.edges] == [
        ("ce", "", None, "student.logits", (5,)),
        *[("at", f"teacher.stage{i}", s, f"student.stage{i}", s) for i, s in STAGES.items()],
        ("cosine", "teacher.embedding", (64,), "student.embedding", (64,)),
    ]
    cosine = told.edges[-1]
    assert (cosine.head, cosine.parameters, cosine.when) == ("linear", 64 * 64 + 64, "1–3")
    assert cosine.weight.startswith("linear(start=1.0, end=0.0")
    assert all((row.head, row.parameters, row.when) == ("", 0, "") for row in told.edges[:-1])


STAGES = {1: (16, 8, 8), 2: (32, 4, 4), 3: (64, 2, 2)}


def test_peers_slow_copies_and_ensembles():
    told = report(
        "a: {arch: resnet8}, b: {arch: resnet8}, slow: {ema: a}", "ce, dml: {among: [a, b]}, kd: {from: slow, to: b}"
    )
    assert [(n.name, n.kind, n.arch, n.weights) for n in told.nodes] == [
        ("a", "trained", "resnet8", "initial"),
        ("b", "trained", "resnet8", "initial"),
        ("slow", "ema", "copy of a", ""),
    ]
    assert told.macs_per_step == 16 * 7 * told.nodes[0].macs  # two forward and backward, one forward alone
    assert [(row.source, row.target) for row in told.edges if row.name == "dml"] == [
        ("a.logits", "b.logits"),
        ("b.logits", "a.logits"),
    ]
    random = "{arch: resnet8, weights: random}"
    several = f"teacher_a: {random}, teacher_b: {random}, student: {{arch: resnet8}}"
    told = report(several, "kd: {from: [teacher_a, teacher_b], ensemble: arithmetic}")
    assert [row.source for row in told.edges] == ["teacher_a.logits + teacher_b.logits"]


@pytest.mark.parametrize(
    ("override", "steps"),
    [
        ("seed=0", 7),
        ("data.drop_last=true", 6),
        ("trainer.limit_train_batches=3", 3),
        ("trainer.limit_train_batches=30", 7),
        ("trainer.limit_train_batches=0.5", 3),
        ("data.val_split=20", 5),
        ("data.batch_size=100", 1),
    ],
)
def test_steps_of_an_epoch(override, steps):
    assert report(PAIR, "ce, kd", overrides=[override]).steps_per_epoch == steps


OWN = """\
import torch
from torch import nn

class Bank(nn.Module):
    \"\"\"Keeps four numbers for every sample, and two more.\"\"\"
    def __init__(self, num_samples, sample_labels=None):
        super().__init__()
        if len(sample_labels) != num_samples:
            raise ValueError("Bank: sample_labels must be of every sample")
        self.register_buffer("bank", torch.zeros(num_samples, 4))
        self.register_buffer("other", torch.zeros(2))

    def forward(self, student, index):
        return (student.mean(1) * self.bank[index, 0]).mean()

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.ReLU()
        self.fc = nn.Linear(32 * 8 * 8, num_classes)

    def forward(self, x):
        return self.fc(self.act(self.conv(x)).flatten(1))
"""


@pytest.mark.parametrize("samples", [100, 3 * STAND_IN])
def test_banks_are_reckoned_at_their_real_size(tmp_path, samples):
    (tmp_path / "own.py").write_text(OWN)
    data = FAKE.replace("samples: 100", f"samples: {samples}")
    told = report("student: {arch: resnet8}", "own.py:Bank", tmp_path, data)
    assert told.bank_bytes == samples * 4 * 4 + 2 * 4
    assert told.facts.num_samples == samples


@pytest.mark.parametrize(("precision", "share"), [("32-true", 1), ("bf16-mixed", 2)])
@pytest.mark.parametrize("batch_size", [2, 16, 64])
def test_activations_are_what_autograd_keeps(tmp_path, batch_size, precision, share):
    (tmp_path / "own.py").write_text(OWN)
    told = report(
        "teacher: {arch: resnet14, weights: random}, student: {arch: own.py:Net}",
        "ce",
        tmp_path,
        overrides=[f"data.batch_size={batch_size}", f"trainer.precision={precision}"],
    )
    image, hidden = 3 * 8 * 8, 32 * 8 * 8  # the convolution's input; ReLU's output, which is the classifier's input too
    assert told.activation_bytes == pytest.approx(batch_size * (image + hidden) * 4 / share, rel=0.03)


def test_a_later_phase_counts_where_it_keeps_more(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    models = "a: {arch: own.py:Net}, b: {arch: own.py:Net, when: {from: 2}}"
    one = report("a: {arch: own.py:Net}", "ce", tmp_path).activation_bytes
    assert report(models, "ce", tmp_path).activation_bytes == pytest.approx(2 * one, rel=0.15)  # the images are shared


def test_nothing_is_fetched(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("fetched")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", forbidden)
    data = FAKE.replace("[3, 8, 8]", "[3, 32, 32]")
    told = report(
        "teacher: {arch: torchvision/squeezenet1_1, weights: pretrained}, student: {arch: resnet8}", "ce", data=data
    )
    assert told.nodes[0].weights == "pretrained"
    assert told.nodes[0].parameters == 1_235_496


def test_weights_of_a_file_are_read(tmp_path):
    from kdkit import models

    path = tmp_path / "t.safetensors"
    pair = "teacher: {arch: resnet14, weights: t.safetensors}, student: {arch: resnet8}"
    models.save_weights(models.build("resnet14", num_classes=5), path)
    assert report(pair, "ce, kd", tmp_path).nodes[0].weights == str(path)
    models.save_weights(models.build("resnet14", num_classes=6), path)
    with pytest.raises(KdkitError, match="has 6 classes in the file, 5 in the model"):
        report(pair, "ce, kd", tmp_path)


def test_what_training_would_refuse_is_refused(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(KdkitError, match="student"):
        report(PAIR, "hint: {from: teacher.stage2, to: student.stage1}")
    with pytest.raises(KdkitError, match="unknown key 'momentun'"):
        report(PAIR, "ce, kd", overrides=["optimizer.momentun=1"])
    with pytest.raises(KdkitError, match=r"optimizer.*momentum"):
        report(PAIR, "ce, kd", overrides=["optimizer.momentum=-1"])


def test_the_report_in_a_pipe_is_whole_and_plain():
    file = io.StringIO()
    told = report(PAIR, "ce, at, kd")
    show(told, file)
    text = file.getvalue()
    assert "\x1b" not in text
    assert "…" not in text
    lines = text.splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert any(line.split()[:4] == ["student", "trained", "resnet8", f"{told.nodes[1].parameters:,}"] for line in lines)
    assert sum(line.startswith("at ") for line in lines) == 3
    assert "steps   7 of 16 images an epoch, 28 in 4 epochs" in lines
    assert "head" not in text  # a column without content is left out


def test_a_phase_that_teaches_nothing_is_counted_as_nothing():
    text = f"data: {{{FAKE}}}\nmodels: {{{PAIR}}}\noptimizer: {{name: sgd}}\nlr: 0.1\ntrainer: {{max_epochs: 4}}\n"
    text += "stages: [{name: first, epochs: 0.5, train: [student.layer1], losses: [hint: {taps: stage1}]}]\n"
    assert check(loads(text)).activation_bytes > 0


def test_a_last_batch_of_one_sample_that_a_model_cannot_be_trained_on():
    data = "name: fake, samples: 97, classes: 5, shape: [3, 4, 4], batch_size: 16"
    with pytest.raises(KdkitError, match=r"last batch holds one sample, .*`drop_last: true` under `data`"):
        report(PAIR, "ce, kd", data=data)
    for override in ("data.drop_last=true", "data.batch_size=17", "trainer.limit_train_batches=6"):
        report(PAIR, "ce, kd", data=data, overrides=[override])
    report(PAIR, "ce, kd", data=data.replace("3, 4, 4", "3, 8, 8"))


def test_attention_counts_in_eval_mode_too():
    """Its fast path is one operation, which no counter knows."""
    net = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    tokens = 10
    projections = tokens * (4 * 32 * 32 + 2 * 32 * 64)
    assert count_macs(net, torch.randn(1, tokens, 32)) == projections + 2 * tokens * tokens * 32
    assert torch.backends.mha.get_fastpath_enabled()


def test_losses_that_see_a_share_of_the_batch_are_told():
    words = ["trainer.devices=2", "trainer.strategy=ddp"]
    found = report(PAIR, "ce, kd, rkd, pkt: {gather: true}", overrides=words).notes
    told = "rkd sees the samples of one process alone, of 2 that share a batch; `gather: true` shows all"
    assert [note for note in found if "process" in note] == [told]
    assert not [note for note in report(PAIR, "ce, rkd").notes if "process" in note]


def test_a_teacher_that_was_trained_on_what_is_held_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path))
    told = "teacher: was trained on the images that data.val_split holds out, too; the test's say how good it is"
    assert told in check(load("kd_digits", ["data.val_split=0.2"])).notes
    assert told not in check(load("kd_digits")).notes
    assert told not in check(load("kd_digits", ["data.val_split=0.2", "models.teacher.weights=random"])).notes
