"""A small data set that lives on the device: no worker, no copy, no Python per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kdkit.data.order import Loader, Order
from kdkit.data.views import CropFlip, Normalise


class DeviceLoader(Loader):
    """Batches out of one uint8 tensor on the device.

    Args:
        images: (n, C, H, W) uint8, moved to `device`.
        labels: (n,) int64.
        order: the batches.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        views: random crops and flips; None: the images as they are.
        with_index: hand out `(x, y, index)` instead of `(x, y)`.
        device: where the images live and the batches appear.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        order: Order,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        views: CropFlip | None = None,
        with_index: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(order)
        self.images = images.to(device)
        self.labels = labels.to(device)
        self.views = views
        self.with_index = with_index
        self.device = device
        self.normalise = Normalise(mean, std, device)

    def numbered(self, index: Tensor, number: Tensor) -> Tensor:
        """The images `index` (B,) in the views of those numbers, as a batch would hold them."""
        images = self.images.index_select(0, index)
        return self.normalise(images if self.views is None else self.views.numbered(images, number))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = self.batch_sampler
        for position, index in order.batches(self.device):
            images = self.images.index_select(0, index)
            if self.views is not None:
                images = self.views(images, order.epoch, index)
            batch = self.normalise(images), self.labels.index_select(0, index)
            order.position = position
            yield (*batch, index) if self.with_index else batch
