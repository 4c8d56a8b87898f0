"""What `kdkit check` says beside its sizes: how models learn, what is missing, what is idle."""

import io
import math
from pathlib import Path

import pytest

from kdkit.console import show
from kdkit.models.published import fetched
from kdkit.registry import KdkitError
from kdkit.runs.check import GPUS
from kdkit.train.balance import Balance
from tests.runs.test_check import PAIR, report


def text_of(told):
    file = io.StringIO()
    show(told, file)
    return file.getvalue()


def test_how_each_model_learns():
    models = (
        "a: {arch: resnet8, optimizer: {name: adamw, weight_decay: 0.1}, lr: {cosine: [0.01, 0]}}, b: {arch: resnet8}"
    )
    told = report(models, "ce")
    a, b = told.learning
    assert (a.name, a.optimizer, a.options, a.first, a.schedule) == (
        "a",
        "adamw",
        {"weight_decay": 0.1},
        0.01,
        "cosine",
    )
    assert a.last == pytest.approx(0.005 * (1 + math.cos(math.pi * 27 / 28)))  # the last of 4 · 7 steps
    assert (b.name, b.optimizer, b.options, b.first, b.last, b.schedule) == ("b", "sgd", {}, 0.1, 0.1, "")
    lines = text_of(told).splitlines()
    assert "learns  a: adamw (weight_decay 0.1), lr 0.01 → 3.14e-05, cosine" in lines
    assert "learns  b: sgd, lr 0.1" in lines


def test_stages_and_what_lies_beside_in_any_of_them():
    models = "teacher: {arch: resnet14, weights: random}, student: {arch: resnet8}"
    stages = "{name: first, epochs: 1, train: [ft.paraphraser]}, {train: student, losses: [ce]}"
    told = report(models, "ft", overrides=[f"stages=[{stages}]"])
    gap = report(models, "ce: {when: {to: 1}}, kd: {name: late, when: {from: 3}}")
    assert gap.notes == ("stages: from epoch 1 to 3 nothing learns: no loss reaches what may",)
    assert told.stages == ("first, 0–1: ft.paraphraser", "stage2, 1–: student")
    assert "stage   first, 0–1: ft.paraphraser" in text_of(told).splitlines()
    weights = 64 * 64 + 64 * 32 + 32 * 32
    assert told.edges[0].parameters == 3 * 9 * weights + 2 * (64 + 32 + 32) + (32 + 64 + 64)


@pytest.mark.parametrize(
    ("lr", "shown"),
    [
        ("{one_cycle: {peak: 0.1}}", "lr 0 → 0.1 → 0.0051, one_cycle"),
        ("{warmup: {to: {cosine: [0.1, 0]}, over: 1}}", "lr 0 → 0.0854 → 0.000314, warmup"),
        ("{linear: [0.1, 0.2]}", "lr 0.1 → 0.196, linear"),
    ],
)
def test_a_rate_that_rises_shows_its_highest(lr, shown):
    lines = text_of(report(PAIR, "ce, kd", overrides=[f"lr={lr}"])).splitlines()
    assert [line.endswith(shown) for line in lines if "learns" in line] == [True]


def test_logits_of_other_classes_are_noted():
    student = "student: {arch: resnet8, num_classes: 12}"
    assert report(student, "ce").notes == ("student: its logits have 12 classes and the data 5, so it is not scored",)


def test_what_is_missing_or_idle_is_noted(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    near, far = (f"torchvision/squeezenet1_{i}, weights: pretrained, frozen: true" for i in (0, 1))
    models = f"teacher_a: {{arch: {near}}}, teacher_b: {{arch: {far}}}, student: {{arch: resnet8}}"
    here = tmp_path / "hub" / "checkpoints"
    here.mkdir(parents=True)
    (here / "squeezenet1_0-b66bff10.pth").touch()
    data = "name: cifar100, root: ."
    told = report(
        models, "ce, kd: {from: teacher_a, to: student, taps: embedding, head: linear, weight: 0}", tmp_path, data
    )
    folder = Path("cifar-100-python").absolute()
    assert told.notes == (
        f"data: {folder} was not found; set data.root=FOLDER or KDKIT_DATA, or data.download=true",
        "teacher_b: the pretrained weights of torchvision/squeezenet1_1 will be downloaded",
        "teacher_b: no loss reads it; it is only scored",
    )
    assert all(f"note    {note}" in text_of(told).splitlines() for note in told.notes)
    assert not report(PAIR, "ce, kd").notes


def test_a_batch_larger_than_the_data_and_a_gpu_that_is_not_there_are_noted(monkeypatch):
    words = ["data.batch_size=512", "trainer.accelerator=gpu"]
    monkeypatch.setitem(GPUS, "gpu", (lambda: False, lambda: False))
    assert report(PAIR, "ce, kd", overrides=words).notes == (
        "data: a batch of 512 is more than the 100 images; an epoch is one batch of 100",
        "trainer: accelerator gpu is not on this machine, where `kdkit fit` refuses it",
    )
    monkeypatch.setitem(GPUS, "gpu", (lambda: False, lambda: True))
    assert not report(PAIR, "ce, kd", overrides=["data.batch_size=100", *words[1:]]).notes


def test_a_net_of_another_image_size_is_told_with_what_to_say():
    vit = "student: {arch: timm/test_vit, options: {dynamic_img_size: false}}"
    words = r"say data\.image_size=160, `image_size: 160` at the model alone, or `options: {img_size: 32}` there\n"
    with pytest.raises(KdkitError, match=words):
        report(vit, "ce", overrides=["data.shape=[3, 32, 32]"])
    for cure in ("image_size=160", "options.img_size=32"):
        assert report(vit, "ce", overrides=[f"models.student.{cure}", "data.shape=[3, 32, 32]"])


def test_timms_weights_are_looked_for_where_timm_puts_them(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert not fetched("timm/resnet18")
    repo = tmp_path / "models--timm--resnet18.a1_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "snapshots" / "abc" / "model.safetensors").touch()
    assert fetched("timm/resnet18")
    assert fetched("own.py:Net")


def test_tables_fit_a_hundred_columns(tmp_path):
    name = "a_teacher_with_quite_a_long_name"
    models = f"{name}: {{arch: resnet14, weights: random, frozen: true}}, student: {{arch: resnet8}}"
    weight = "{warmup: {to: {cosine: [100, 0]}, over: 2}}"
    hint = f"hint: {{from: {name}.stage2, to: student.stage2, head: conv_bn_relu, weight: {weight}, when: {{from: 1}}}}"
    text = text_of(report(models, f"ce, {hint}, kd"))
    assert max(map(len, text.splitlines())) <= 100
    assert "banks" not in text  # there are none
    assert "banks" in text_of(report(PAIR, "ce, crd: {num_negatives: 8}"))


def test_a_batch_of_one_has_no_relations():
    with pytest.raises(KdkitError, match=r"losses\.rkd: .* needs at least 3 of them, got 1; raise the batch size"):
        report(PAIR, "ce, rkd", overrides=["data.batch_size=1"])


@pytest.mark.parametrize("kind", ["gradnorm", "uncertainty"])
def test_balance_takes_part_in_the_dry_run(kind, monkeypatch):
    looked = []
    look = Balance.look
    monkeypatch.setattr(Balance, "look", lambda self, *words: looked.append(look(self, *words)))
    told = report(PAIR, "ce, kd", overrides=[f"balance={kind}"])
    assert len(looked) == 1
    assert [row.weight for row in told.edges] == [f"1 ({kind} moves it)", f"1 ({kind} moves it)"]
    assert not told.notes
    assert [row.weight for row in report(PAIR, "ce, kd").edges] == ["1", "1"]


def test_what_balance_would_stumble_over_is_refused(tmp_path):
    """The gradient of each loss by itself is taken, as in training."""
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "class Once(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, x):\n        return x.sum()\n"
        "    @staticmethod\n    def backward(ctx, g):\n        raise RuntimeError('not by itself')\n\n"
        "class Mine(nn.Module):\n    def forward(self, student):\n        return Once.apply(student)\n"
    )
    assert report("student: {arch: resnet8}", "ce, own.py:Mine", tmp_path).notes == ()
    with pytest.raises(KdkitError, match="not by itself"):
        report("student: {arch: resnet8}", "ce, own.py:Mine", tmp_path, overrides=["balance=gradnorm"])


def test_a_loss_that_is_no_number_is_told_by_name(tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\nclass Mine(nn.Module):\n    def forward(self, student):\n"
        "        return (-student.square()).sqrt().mean()\n"
    )
    (note,) = report("student: {arch: resnet8}", "ce, own.py:Mine", tmp_path).notes
    assert note.startswith("Mine: is nan in a dry run on noise; trainer.on_nonfinite")


def test_a_batch_larger_than_the_data_is_all_of_them():
    told = report(PAIR, "ce, kd", overrides=["data.batch_size=5000"])
    assert "steps   1 of 100 images an epoch, 4 in 4 epochs" in text_of(told).splitlines()
    whole = report(PAIR, "ce, kd", overrides=["data.batch_size=100"])
    assert (told.macs_per_step, told.activation_bytes) == (whole.macs_per_step, whole.activation_bytes)
    with pytest.raises(
        KdkitError, match=r"data\.batch_size: must be at most the 100 samples there are where drop_last"
    ):
        report(PAIR, "ce, kd", overrides=["data.batch_size=5000", "data.drop_last=true"])
