import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

import kdkit
from kdkit.models import build
from kdkit.train.layout import overruns
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
