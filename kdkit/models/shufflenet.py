"""ShuffleNet V1 and V2 for small images (Zhang et al., CVPR 2018, 1707.01083; Ma et al., ECCV 2018, 1807.11164).

Both start with a 1×1 convolution at full resolution, without the papers' pooling stem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdkit.models.layers import conv


class GroupedBottleneck(nn.Module):
    """V1's unit: grouped 1×1, shuffle, depthwise 3×3, grouped 1×1; the input is added, or concatenated (stride 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        middle = outputs // 4
        first_groups = 1 if inputs == 24 else groups  # the stem's 24 channels are too few to group
        self.conv1 = conv(inputs, middle, 1, groups=first_groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(first_groups)
        self.conv2 = conv(middle, middle, 3, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = conv(middle, outputs, 1, groups=groups)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H, W), or (B, outputs + inputs, H / 2, W / 2) with stride 2."""
        branch = self.shuffle(self.relu1(self.bn1(self.conv1(x))))
        branch = self.relu2(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        out: Tensor = self.relu3(branch + x if self.pool is None else torch.cat([branch, self.pool(x)], 1))
        return out


class ShuffleNetV1(nn.Module):
    """ShuffleNet V1.

    Args:
        num_classes: width of the logits.
        widths: channels of the three stages.
        blocks: units in each stage.
        groups: groups of the 1×1 convolutions.
        in_channels: channels of the image.
    """

    stages: ClassVar[dict[str, str]] = {"stem": "relu", "stage1": "layer1", "stage2": "layer2", "stage3": "layer3"}

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int] = (240, 480, 960),
        blocks: Sequence[int] = (4, 8, 4),
        groups: int = 3,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, 24, 1)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.layer1 = _grouped_stage(24, widths[0], blocks[0], groups)
        self.layer2 = _grouped_stage(widths[0], widths[1], blocks[1], groups)
        self.layer3 = _grouped_stage(widths[1], widths[2], blocks[2], groups)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.linear(self.avgpool(x).flatten(1))
        return x


class SplitUnit(nn.Module):
    """V2's unit: half of the channels pass untouched, half through 1×1, depthwise 3×3, 1×1; then both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        untouched, branch = x.chunk(2, dim=1)
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(branch)))))
        branch = self.relu3(self.bn3(self.conv3(branch)))
        out: Tensor = self.shuffle(torch.cat([untouched, branch], 1))
        return out


class DownUnit(nn.Module):
    """V2's unit with stride 2: both branches read all channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = conv(inputs, inputs, 3, 2, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = conv(inputs, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.conv3 = conv(inputs, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.conv4 = conv(half, half, 3, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu5 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H / 2, W / 2)."""
        left = self.relu2(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(self.relu3(self.bn3(self.conv3(x)))))
        right = self.relu5(self.bn5(self.conv5(right)))
        out: Tensor = self.shuffle(torch.cat([left, right], 1))
        return out


class ShuffleNetV2(nn.Module):
    """ShuffleNet V2; each stage is a unit with stride 2 and then `blocks` more.

    Args:
        num_classes: width of the logits.
        widths: channels of the three stages and of the last convolution; the defaults are width 1.
        blocks: units after the first in each stage.
        in_channels: channels of the image.
    """

    stages: ClassVar[dict[str, str]] = {"stem": "relu", "stage1": "layer1", "stage2": "layer2", "stage3": "layer3"}

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int] = (116, 232, 464, 1024),
        blocks: Sequence[int] = (3, 7, 3),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, 24, 1)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.layer1 = _split_stage(24, widths[0], blocks[0])
        self.layer2 = _split_stage(widths[0], widths[1], blocks[1])
        self.layer3 = _split_stage(widths[1], widths[2], blocks[2])
        self.conv2 = conv(widths[2], widths[3], 1)
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.relu2 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.linear(self.avgpool(x).flatten(1))
        return x


def _grouped_stage(inputs: int, outputs: int, blocks: int, groups: int) -> nn.Sequential:
    first = GroupedBottleneck(inputs, outputs - inputs, 2, groups)
    return nn.Sequential(first, *(GroupedBottleneck(outputs, outputs, 1, groups) for _ in range(blocks - 1)))


def _split_stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(DownUnit(inputs, outputs), *(SplitUnit(outputs) for _ in range(blocks)))
