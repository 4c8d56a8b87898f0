"""VGG for small images, with BatchNorm and one linear classifier (Simonyan and Zisserman, ICLR 2015, 1409.1556)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from torch import Tensor, nn

from kdkit.models.layers import he_normal, small_linear

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five blocks of 3×3 convolutions; each block ends with BatchNorm, and its ReLU is a module beside it.

    Args:
        convolutions: how many in each of the five blocks; VGG-13 has (2, 2, 2, 2, 2).
        num_classes: width of the logits.
        in_channels: channels of the image.
    """

    stages: ClassVar[dict[str, str]] = {"stem": "relu0"} | {f"stage{i}": f"relu{i}" for i in (1, 2, 3, 4)}

    def __init__(self, convolutions: Sequence[int], num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        for i, (count, inputs, outputs) in enumerate(zip(convolutions, (in_channels, *WIDTHS), WIDTHS, strict=False)):
            self.add_module(f"block{i}", nn.Sequential(*_block(count, inputs, outputs)))
            self.add_module(f"relu{i}", nn.ReLU())
            self.add_module(f"pool{i}", nn.MaxPool2d(2) if i < 4 else nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(512, num_classes)
        he_normal(self)
        small_linear(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        # At 32 pixels the last two blocks both work at 4×4, as in all distillation tables.
        left_out = 3 if x.shape[2] < 64 else None
        for i in range(5):
            x = self.get_submodule(f"relu{i}")(self.get_submodule(f"block{i}")(x))
            if i != left_out:
                x = self.get_submodule(f"pool{i}")(x)
        x = self.classifier(x.flatten(1))
        return x


def _block(convolutions: int, inputs: int, outputs: int) -> Iterator[nn.Module]:
    for i in range(convolutions):
        if i > 0:
            yield nn.ReLU()
        yield nn.Conv2d(outputs if i else inputs, outputs, 3, padding=1)
        yield nn.BatchNorm2d(outputs)
