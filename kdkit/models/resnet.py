"""ResNets for CIFAR: three stages of basic blocks at 32², 16² and 8² (He et al., CVPR 2016, 1512.03385, §4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from kdkit.models.layers import conv, he_normal


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut: the input, or where the shape changes a 1×1 convolution of it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H / stride, W / stride)."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(residual + self.downsample(x))
        return out


class ResNet(nn.Module):
    """The CIFAR ResNet of depth 6n + 2.

    Args:
        depth: 8, 14, 20, 32, 44, 56, 110, …: 6n + 2 for n blocks a stage.
        num_classes: width of the logits.
        widths: channels of the stem and of the three stages; `resnet8x4` has (32, 64, 128, 256).
        in_channels: channels of the image.
    """

    stages: ClassVar[dict[str, str]] = {"stem": "relu", "stage1": "layer1", "stage2": "layer2", "stage3": "layer3"}

    def __init__(
        self, depth: int, num_classes: int, widths: Sequence[int] = (16, 16, 32, 64), in_channels: int = 3
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"ResNet: depth must be 6n + 2 (8, 14, 20, …), got {depth}")
        self.conv1 = conv(in_channels, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.fc(self.avgpool(x).flatten(1))
        return x


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
