"""The bundled real data set: 1,797 handwritten digits (Alpaydin & Kaynak 1998; CC BY 4.0, see digits.txt)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.data.data_facts import DataFacts
from kdkit.data.device_data import DeviceData
from kdkit.registry import KdkitError

TEST = 360  # the last of the file; the file goes writer by writer, so these are other hands


@dataclass(kw_only=True, eq=False, repr=False)
class Digits(DeviceData):
    """UCI's handwritten digits: the first 1,437 images train, the last 360 test; no download.

    Attributes:
        image_size: the 8×8 images are brought to this many pixels a side (bilinear).
        channels: the grey channel is repeated this often; 3 is what the CIFAR nets read.
    """

    folderless: ClassVar[bool] = True
    padding: int = 2
    flip: bool = False
    image_size: int = 16
    channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 8 or self.channels < 1:
            raise KdkitError(
                f"data: image_size must be at least 8 and channels at least 1, "
                f"got {self.image_size} and {self.channels}"
            )

    def describe(self) -> DataFacts:
        """The digits' facts; mean and deviation are those of the training images at 8×8."""
        size = (self.channels, self.image_size, self.image_size)
        return DataFacts(10, 1797 - TEST, size, (0.3054,) * self.channels, (0.3753,) * self.channels)

    @property
    def class_names(self) -> list[str]:
        """The digits."""
        return [str(digit) for digit in range(10)]

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """(n, channels, image_size, image_size) uint8 and labels."""
        with np.load(Path(__file__).with_name("digits.npz")) as stored:
            images, labels = torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"]).long()
        part = slice(None, -TEST) if train else slice(-TEST, None)
        grey = images[part, None].float() * (255 / 16)
        grey = F.interpolate(grey, self.image_size, mode="bilinear").round().to(torch.uint8)
        return grey.expand(-1, self.channels, -1, -1).contiguous(), labels[part]
