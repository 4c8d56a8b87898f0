"""Wide residual networks for CIFAR (Zagoruyko and Komodakis, BMVC 2016, 1605.07146): pre-activation blocks, widened."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from kdkit.models.layers import conv, he_normal


class PreactBlock(nn.Module):
    """BatchNorm, ReLU, 3×3 convolution; twice; where the width changes the shortcut starts after the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = conv(outputs, outputs, 3)
        self.convShortcut = conv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H / stride, W / stride), not activated."""
        active = self.relu1(self.bn1(x))
        residual: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return residual + (x if self.convShortcut is None else self.convShortcut(active))


class Stage(nn.Module):
    """Some blocks in a row; a module of its own because the published weights are named `block1.layer.0.…`."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = PreactBlock(inputs, outputs, stride)
        self.layer = nn.Sequential(first, *(PreactBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H / stride, W / stride), not activated."""
        x = self.layer(x)
        return x


class WideResNet(nn.Module):
    """WRN-depth-width. Its stages give the sums of residuals, before BatchNorm and ReLU: what distillation papers tap.

    The activated maps are one module further: `block2.layer.0.relu1` for stage 1, `block3.layer.0.relu1` for stage 2,
    `relu` for stage 3.

    Args:
        depth: 6n + 4 for n blocks a stage: 16, 22, 28, 40.
        width: how many times wider than a ResNet.
        num_classes: width of the logits.
        in_channels: channels of the image.
    """

    stages: ClassVar[dict[str, str]] = {"stem": "conv1", "stage1": "block1", "stage2": "block2", "stage3": "block3"}

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"WideResNet: depth must be 6n + 4 (10, 16, 22, 28, 40, …), got {depth}")
        self.conv1 = conv(in_channels, 16, 3)
        self.block1 = Stage(16, 16 * width, blocks, stride=1)
        self.block2 = Stage(16 * width, 32 * width, blocks, stride=2)
        self.block3 = Stage(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        he_normal(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.relu(self.bn1(x))
        x = self.fc(self.avgpool(x).flatten(1))
        return x
