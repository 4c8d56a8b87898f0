"""The names of the built-in nets, all on one page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from kdkit.models.mobilenet import MobileNetV2
from kdkit.models.resnet import ResNet
from kdkit.models.resnet50 import BasicBlock, Bottleneck, FourStageResNet
from kdkit.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from kdkit.models.sid import sid
from kdkit.models.sid_cnn import SimpleCNN
from kdkit.models.simkd import simkd
from kdkit.models.vgg import VGG
from kdkit.models.wrn import WideResNet
from kdkit.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry("model")

for depth in (8, 14, 20, 32, 44, 56, 110):
    MODELS.add(f"resnet{depth}", partial(ResNet, depth))
for depth in (8, 32):
    MODELS.add(f"resnet{depth}x4", partial(ResNet, depth, widths=(32, 64, 128, 256)))

MODELS.add("resnet18_cifar", partial(FourStageResNet, BasicBlock, (2, 2, 2, 2)))
MODELS.add("resnet34_cifar", partial(FourStageResNet, BasicBlock, (3, 4, 6, 3)))
MODELS.add("resnet50_cifar", partial(FourStageResNet, Bottleneck, (3, 4, 6, 3)))

for depth, width in ((16, 1), (16, 2), (28, 2), (28, 10), (40, 1), (40, 2), (40, 4)):
    MODELS.add(f"wrn_{depth}_{width}", partial(WideResNet, depth, width))

MODELS.add("vgg8", partial(VGG, (1, 1, 1, 1, 1)))
MODELS.add("vgg11", partial(VGG, (1, 1, 2, 2, 2)))
MODELS.add("vgg13", partial(VGG, (2, 2, 2, 2, 2)))
MODELS.add("vgg16", partial(VGG, (2, 2, 3, 3, 3)))
MODELS.add("vgg19", partial(VGG, (2, 2, 4, 4, 4)))

MODELS.add("mobilenetv2", MobileNetV2)
MODELS.add("shufflenetv1", ShuffleNetV1)
MODELS.add("shufflenetv2", ShuffleNetV2)

MODELS.add("simple_cnn", SimpleCNN)
MODELS.add("sid", sid)
MODELS.add("simkd", simkd)
