"""The small convolutional net of the paper on synergistic information distillation."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class SimpleCNN(nn.Module):
    """Four 3×3 convolutions (32, 64, 128, 128 channels) without BatchNorm, pooled twice, then a feature of 128 numbers.

    As in the released code of Ye and Tang (arXiv 2510.03273), where the cascade's modules take the classifier's place.

    Args:
        num_classes: width of the logits.
        in_channels: channels of the image.
        features: width of the feature.
    """

    stages: ClassVar[dict[str, str]] = {"stem": "relu1", "stage1": "relu2", "stage2": "relu4"}

    def __init__(self, num_classes: int, in_channels: int = 3, features: int = 128) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(in_channels, 32, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()
        self.conv3, self.relu3 = nn.Conv2d(64, 128, 3, padding=1), nn.ReLU()
        self.conv4, self.relu4 = nn.Conv2d(128, 128, 3, padding=1), nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.embed = nn.Linear(128, features)
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        x = self.pool(self.relu2(self.conv2(self.relu1(self.conv1(x)))))
        x = self.pool(self.relu4(self.conv4(self.relu3(self.conv3(x)))))
        logits: Tensor = self.classifier(self.embed(x.mean((2, 3))))
        return logits
