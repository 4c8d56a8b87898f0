"""Random images of any shape: for tests, and to try a recipe without its data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from kdkit import draws
from kdkit.data.data_facts import DataFacts
from kdkit.data.device_data import DeviceData
from kdkit.data.module import DataModule


@dataclass(kw_only=True, eq=False, repr=False)
class FakeData(DeviceData):
    """Seeded noise with labels in turn; half as many test as training images.

    Attributes:
        classes: number of classes.
        samples: number of training images.
        shape: (C, H, W).
        means: per channel; default 0.5.
        stds: per channel; default 0.25.
    """

    folderless: ClassVar[bool] = True
    classes: int = 10
    samples: int = 256
    shape: tuple[int, int, int] = (3, 32, 32)
    means: tuple[float, ...] | None = None
    stds: tuple[float, ...] | None = None
    _shorter_side: int | None = field(default=None, init=False)

    @classmethod
    def like(cls, module: DataModule) -> FakeData:
        """Four batches with the facts of other data, and as many that are held out of training."""
        facts, held_out = module.facts, module.selects
        samples = max(1, min(facts.num_samples, 4 * module.batch_size))
        made = cls(
            batch_size=module.batch_size,
            seed=module.seed,
            classes=facts.num_classes,
            samples=2 * samples if held_out else samples,
            val_split=samples if held_out else 0,
            shape=facts.input_shape,
            means=facts.mean,
            stds=facts.std,
            two_views=getattr(module, "two_views", False),
        )
        made._shorter_side = module.shorter_side
        return made

    @property
    def shorter_side(self) -> int | None:
        """That of the data it stands for."""
        return self._shorter_side

    def describe(self) -> DataFacts:
        """As asked for."""
        channels, height, width = self.shape
        mean, std = self.means or (0.5,) * channels, self.stds or (0.25,) * channels
        return DataFacts(self.classes, self.samples, (channels, height, width), tuple(mean), tuple(std))

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Noise."""
        count = self.samples if train else max(1, self.samples // 2)
        generator = torch.Generator().manual_seed(draws.key("fake", train) & 0xFFFFFFFF)
        images = torch.randint(0, 256, (count, *self.shape), dtype=torch.uint8, generator=generator)
        return images, torch.arange(count) % max(1, self.classes)
