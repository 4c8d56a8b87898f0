"""Random images of any shape: for tests, and to try a recipe without its data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit import draws
from kdkit.data.data_facts import DataFacts
from kdkit.data.device_data import DeviceData


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

    classes: int = 10
    samples: int = 256
    shape: tuple[int, int, int] = (3, 32, 32)
    means: tuple[float, ...] | None = None
    stds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_root()

    @classmethod
    def like(
        cls, facts: DataFacts, batch_size: int, seed: int, *, held_out: bool = False, two_views: bool = False
    ) -> FakeData:
        """Four batches with the facts of another data set, and as many that are held out of training."""
        samples = max(1, min(facts.num_samples, 4 * batch_size))
        return cls(
            batch_size=batch_size,
            seed=seed,
            classes=facts.num_classes,
            samples=2 * samples if held_out else samples,
            val_split=samples if held_out else 0,
            shape=facts.input_shape,
            means=facts.mean,
            stds=facts.std,
            two_views=two_views,
        )

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
