"""MobileNetV2 for small images (Sandler et al., CVPR 2018, 1801.04381): inverted residuals with linear bottlenecks."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from kdkit.models.layers import conv, he_normal, small_linear

# Expansion (None: the net's own), channels at width 1, blocks, stride of the first. Where the paper strides the second
# row, this net does not: 32 pixels are few.
ROWS = (
    (1, 16, 1, 1),
    (None, 24, 2, 1),
    (None, 32, 3, 2),
    (None, 64, 4, 2),
    (None, 96, 3, 1),
    (None, 160, 3, 2),
    (None, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1×1 up, depthwise 3×3, 1×1 down without activation; the shortcut joins where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            conv(inputs, wide, 1),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            conv(wide, wide, 3, stride, groups=wide),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            conv(wide, outputs, 1),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H / stride, W / stride), not activated."""
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """MobileNetV2 as the CIFAR tables of distillation use it: half as wide, ReLU in place of ReLU6.

    Args:
        num_classes: width of the logits.
        width: multiplier of all channels; the last 1,280 grow with it but never shrink.
        expansion: how many times wider a block is inside.
        in_channels: channels of the image.
    """

    stages: ClassVar[dict[str, str]] = {
        "stem": "conv1", "stage1": "blocks.1", "stage2": "blocks.2", "stage3": "blocks.4", "stage4": "blocks.6"
    }  # fmt: skip

    def __init__(self, num_classes: int, width: float = 0.5, expansion: int = 6, in_channels: int = 3) -> None:
        super().__init__()
        inputs, last = int(32 * width), int(1280 * max(1.0, width))
        self.conv1 = nn.Sequential(conv(in_channels, inputs, 3, 2), nn.BatchNorm2d(inputs), nn.ReLU())
        self.blocks = nn.ModuleList()
        for own_expansion, channels, count, stride in ROWS:
            outputs, row = int(channels * width), nn.Sequential()
            for i in range(count):
                row.append(InvertedResidual(inputs, outputs, 1 if i else stride, own_expansion or expansion))
                inputs = outputs
            self.blocks.append(row)
        self.conv2 = nn.Sequential(conv(inputs, last, 1), nn.BatchNorm2d(last), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        linear = nn.Linear(last, num_classes)
        self.classifier = nn.Sequential(linear)
        he_normal(self)
        small_linear(linear)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        x = self.conv1(x)
        for row in self.blocks:
            x = row(x)
        x = self.classifier(self.avgpool(self.conv2(x)).flatten(1))
        return x
