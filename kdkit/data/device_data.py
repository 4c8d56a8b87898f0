"""Data modules whose sets live on the device: read once, cropped and mirrored there."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from kdkit import draws
from kdkit.data.device_loader import DeviceLoader
from kdkit.data.module import DataModule
from kdkit.data.order import Order
from kdkit.data.views import CropFlip
from kdkit.registry import KdkitError


@dataclass(kw_only=True, eq=False, repr=False)
class DeviceData(DataModule):
    """A data module whose sets are small enough to live on the device as uint8.

    Attributes:
        padding: pixels of zero padding before the random crop; 0: no crop.
        flip: mirror every second training image.
        two_views: give training two random views of each image, which models name by `input: view1` and `view2`;
            evaluation has the image as it is for both.
    """

    padding: int = 4
    flip: bool = True
    two_views: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.padding < 0:
            raise KdkitError(f"data: padding must be 0 or more pixels, got {self.padding}")
        if self.two_views and not (self.augment and (self.padding or self.flip)):
            raise KdkitError("data: two_views of an image would be the same one without augment, padding or flip")
        self._sets: dict[bool, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """(n, C, H, W) uint8 and (n,) int64 of the training or the test set."""

    def tensors(self, train: bool) -> tuple[Tensor, Tensor]:
        """`read`, once."""
        if train not in self._sets:
            self._sets[train] = self.read(train)
        return self._sets[train]

    def read_labels(self, train: bool) -> Tensor:
        """All labels of the training or the test set."""
        return self.tensors(train)[1]

    @property
    def crops(self) -> CropFlip | None:
        """The random views of training."""
        return CropFlip(self.seed, self.padding, self.flip) if self.augment else None

    @property
    def num_views(self) -> int | None:
        """162 for the CIFAR protocols: 9 × 9 crops, mirrored or not."""
        return 1 if self.crops is None else self.crops.count

    def view_number(self, epoch: int | Tensor, index: Tensor) -> Tensor:
        """See `DataModule.view_number`."""
        return torch.zeros_like(index) if self.crops is None else self.crops.number(epoch, index)

    def checksum(self, train: bool = True) -> str:
        """Of the pixels."""
        images = self.tensors(True)[0].index_select(0, self.parts[0]) if train else self.tensors(False)[0]
        return blake2b(images.numpy().data, digest_size=8).hexdigest()

    def loader(self, train: bool, ids: Tensor | None, labels: Tensor, order: Order, views: bool) -> DeviceLoader:
        """See `DataModule.loader`."""
        images = self.tensors(train)[0]
        second = CropFlip(draws.key(self.seed, "view2"), self.padding, self.flip) if self.two_views else None
        if ids is not None and len(ids) < len(images):
            images = images[ids]
        return DeviceLoader(
            images,
            labels,
            order,
            mean=self.mean,
            std=self.std,
            views=self.crops if views else None,
            second=second if views else None,
            with_index=views,
            device=self.target_device(),
        )
