"""STL-10 (Coates, Ng, Lee, AISTATS 2011), read and downloaded by torchvision."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.data.data_facts import DataFacts
from kdkit.data.device_data import DeviceData
from kdkit.data.download import FAILURES, fetch, may_download, told_missing
from kdkit.data.files import data_root
from kdkit.registry import KdkitError


@dataclass(kw_only=True, eq=False, repr=False)
class STL10(DeviceData):
    """STL-10's labelled images: 5,000 + 8,000 of 96×96, 10 classes; normalised by its training pixels.

    Attributes:
        image_size: the images are brought to this many pixels a side (bilinear, antialiased).
        download: fetch the set where it is missing; by default into kdkit's own cache folder only.
    """

    padding: int = 12
    image_size: int = 96
    download: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 1:
            raise KdkitError(f"data: image_size must be at least 1, got {self.image_size}")

    def describe(self) -> DataFacts:
        """STL-10's facts."""
        size = (3, self.image_size, self.image_size)
        return DataFacts(10, 5_000, size, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713))

    @property
    def missing(self) -> str:
        """Its folder, where there is none."""
        return told_missing(data_root(self.root) / _theirs().base_folder, self._downloads())

    @property
    def class_names(self) -> list[str]:
        """The classes, by label."""
        return ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]

    def prepare_data(self) -> None:
        """Download where that is wanted; Lightning calls it in one process per machine."""
        if self._downloads():
            self._open("test")

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """All images, (n, 3, image_size, image_size) uint8, and labels."""
        samples = self._open("train" if train else "test")
        images, labels = torch.from_numpy(samples.data), torch.from_numpy(samples.labels).long()
        if self.image_size == images.shape[-1]:
            return images.contiguous(), labels
        small = [
            F.interpolate(part.float(), self.image_size, mode="bilinear", antialias=True).round().clamp(0, 255).byte()
            for part in images.split(500)
        ]
        return torch.cat(small), labels

    def _downloads(self) -> bool:
        return may_download(self.root, self.download)

    def _open(self, split: str) -> Any:
        folder, problem = data_root(self.root), None
        with suppress(*FAILURES):
            return _theirs()(str(folder), split=split, download=False)
        if self._downloads():
            try:
                fetch(folder, _theirs().base_folder, lambda part: _theirs()(part, split=split, download=True))
                return _theirs()(str(folder), split=split, download=False)
            except FAILURES as error:
                problem = error
        failed = f"; its download failed ({problem})" if problem else ", or download it with data.download=true"
        raise KdkitError(
            f"data: {_theirs().base_folder}/ was not found whole in {folder}; "
            f"set data.root=FOLDER or KDKIT_DATA{failed}"
        ) from problem


def _theirs() -> Any:
    from torchvision.datasets import STL10 as Theirs  # noqa: N811

    return Theirs
