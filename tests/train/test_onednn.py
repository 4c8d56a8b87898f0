import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

import kdkit
from kdkit.models import build
from kdkit.recipe import load
from kdkit.registry import KdkitError
from kdkit.runs.check import check
from kdkit.train.onednn import emulated, no_wide_strides, overruns
from tests.nets import loader, net
from tests.processes import CONTEXT
from tests.train.running import fit


def trains():
    """What ended the process, or its tensors, where channels_last was kept."""
    torch.set_num_threads(2)
    x, y = torch.randn(29 * 8, 3, 32, 32), torch.randint(0, 10, (29 * 8,))
    student = build("resnet8", num_classes=10, widths=[4, 4, 8, 16])
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    data = DataLoader(list(zip(x, y, strict=True)), batch_size=29)
    trainer.fit(kdkit.Distiller({"student": student}, ["ce"]), data)


def pointwise(channels: int, stride: int = 2, groups: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 32, 1, stride, groups=groups))


def test_what_onednn_writes_past_is_known():
    assert overruns([net(8), pointwise(8)])
    assert overruns([pointwise(32, groups=4)])
    assert not overruns([pointwise(16), pointwise(8, stride=1)])
    assert not overruns([nn.Sequential(nn.Conv2d(3, 8, 3, 2))])


@pytest.mark.parametrize(("channels", "laid_out"), [(8, False), (16, True)])
def test_a_narrow_net_trains_as_it_came_on_a_cpu(channels, laid_out):
    student = nn.Sequential(*pointwise(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))
    distiller = kdkit.Distiller({"student": student}, ["ce"])
    fit(distiller)
    assert student[0].weight.is_contiguous(memory_format=torch.channels_last) is laid_out
    x = distiller.on_after_batch_transfer(next(iter(loader())), 0)[0]
    assert x.is_contiguous(memory_format=torch.channels_last) is laid_out


def test_a_narrow_resnet_survives_odd_batches_and_two_threads():
    process = CONTEXT.Process(target=trains)
    process.start()
    process.join()
    assert process.exitcode == 0


def strided(side: int, kernel: int = 3, stride: int = 2) -> nn.Module:
    """A net whose last convolution sees maps of `side` from images of 8 × 8."""
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.AdaptiveAvgPool2d(side), nn.Conv2d(16, 8, kernel, stride, kernel // 2)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


@pytest.mark.parametrize(
    ("net", "precision", "refused"),
    [
        (strided(1), "bf16-mixed", True),
        (strided(2, stride=3), "bf16-mixed", True),
        (strided(1), "bf16-true", True),
        (strided(1), "32-true", False),
        (strided(2), "bf16-mixed", False),
        (strided(1, kernel=1), "bf16-mixed", False),
        (strided(1, stride=1), "bf16-mixed", False),
    ],
)
def test_a_stride_wider_than_its_map_is_not_trained_in_bf16_on_a_cpu(net, precision, refused):
    distiller = kdkit.Distiller({"student": net}, ["ce"])
    if refused:
        with pytest.raises(
            KdkitError, match=r"student\.2 has stride . on a map of .×., whose gradient torch gets wrong"
        ):
            fit(distiller, precision=precision)
    else:
        fit(distiller, precision=precision)
    assert not any(module._forward_pre_hooks for module in net.modules())


class ByName(nn.Module):
    """Its convolution is given its map by name."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.conv(input=x.mean((2, 3), keepdim=True)).flatten(1))


def test_a_map_may_be_given_by_name():
    with pytest.raises(KdkitError, match=r"student\.conv has stride 2 on a map of 1×1"):
        fit(kdkit.Distiller({"student": ByName()}, ["ce"]), precision="bf16-mixed")
    fit(kdkit.Distiller({"student": ByName()}, ["ce"]))


def test_such_a_net_trains_elsewhere():
    net, x = strided(1), torch.randn(4, 3, 8, 8)
    with no_wide_strides({"net": net}, "bf16-mixed", torch.device("cuda")):
        net(x)
    with pytest.raises(KdkitError, match=r"net\.2 has"), no_wide_strides({"net": net}, "bf16-mixed", x.device):
        net(x)


def test_check_tells_of_it_too(tmp_path):
    words = ["trainer.precision=bf16-mixed", "trainer.accelerator=cpu", "models.net.arch=timm/test_resnet"]
    with pytest.raises(KdkitError, match=r"teacher_digits.yaml: net\.\S+ has stride 2 on a map of 1×1, whose"):
        check(load("teacher_digits", words))


@pytest.mark.parametrize("has", [False, True])
def test_bf16_that_a_cpu_imitates_is_told_before_hours_are_spent(has, monkeypatch, caplog):
    told = "this CPU has no instructions for bf16: trainer.precision=bf16-mixed is imitated, and slower than 32-true"
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    words = ["trainer.accelerator=cpu", "data.subset=64"]
    assert told not in check(load("teacher_digits", words)).notes
    assert (told in check(load("teacher_digits", [*words, "trainer.precision=bf16-mixed"])).notes) is not has
    fit(kdkit.Distiller({"student": net(8)}, ["ce"]), precision="bf16-mixed")
    assert (told in caplog.text) is not has
    assert not list(emulated("bf16-mixed", torch.device("cuda")))
